"""Checkpoints. A run folder holds:

    config.json               the configuration: method, network, image size, training
    data.json                 where the pictures are, and what they are told by
    init.json                 the run or model that its weights began from, where it began from one
    ema.safetensors           averaged weights, for sampling
    model.safetensors         weights
    prior.safetensors         thumbnails that sampling starts from
    statistics.safetensors    moments of the pictures, for processes that need them
    checkpoints/              <images>.safetensors: weights, averages and optimiser state, to resume from
    best.safetensors          averaged weights with the smallest Frechet distance so far, with best.json, where scores are asked for
    metrics.jsonl             one line every few steps
    samples/                  grids of samples made during training

Files are JSON and safetensors: reading a run never executes code from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from diffusion.files import CHECKSUM, PART, load_with_metadata, read_json, save_tensors, write_json
from lbm_warp.checks import InputError

BEST = "best.safetensors"
# What a training writes into the run folder itself.
TENSORS = tuple(f"{name}.safetensors" for name in ("model", "ema", "best", "prior", "statistics"))
FILES = ("config.json", "data.json", "init.json", "best.json", "metrics.jsonl", *TENSORS)


class Checkpoints:
    """The folder checkpoints/ of a run. A checkpoint is one file with everything that resuming needs.

    The last two are kept, so one is left if the other is damaged. Of the older ones, the first at or after every multiple of
    ``keep_every`` images is kept. They are written beside the training, in a thread, one at a time.

    Args:
        folder: the run folder.
        keep_every: number of images; None keeps the last two only.

    Attributes:
        good: the last checkpoint that is known to be complete.
        damaged: newer ones that could not be loaded.
    """

    def __init__(self, folder: Path, keep_every: int | None = None) -> None:
        self.folder = folder / "checkpoints"
        self.keep_every = keep_every
        self.good: Path | None = None
        self.damaged: set[Path] = set()
        self._writing: Future[None] | None = None

    def keep_best(self, score: dict[str, float], weights: dict[str, torch.Tensor]) -> None:
        """Write best.safetensors and best.json if the score, a line of the log, is the best so far; NaN never is."""
        folder = self.folder.parent
        record = folder / "best.json"
        new = score["frechet_distance"]
        there = record.is_file() and (folder / BEST).is_file()
        if math.isnan(new) or (there and read_json(record)["frechet_distance"] <= new):
            return
        save_tensors(folder / BEST, weights)
        write_json(record, score)

    def path(self, images: int) -> Path:
        """The checkpoint file at this number of images."""
        return self.folder / f"{images:09d}.safetensors"

    def paths(self) -> dict[int, Path]:
        """The checkpoint files by number of images, oldest first."""
        found = {path.stem: path for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()}
        return {int(stem): found[stem] for stem in sorted(found, key=int)}

    def save(self, images: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Copy the state, and begin to write it: a checkpoint and the weights that sampling reads. The state may then change.

        Args:
            images: number of images seen.
            tensors: weights (``network.``), averages (``average.``) and moments by name.
            metadata: further values, as text.

        Raises:
            InputError: if the one before could not be written.
        """
        self.finish()
        copies = {name: torch.empty_like(t, device="cpu", pin_memory=t.is_cuda, requires_grad=False) for name, t in tensors.items()}
        # On CUDA the copies are queued: the step that comes behind them changes nothing in them, and nobody waits.
        for name, tensor in tensors.items():
            copies[name].copy_(tensor.detach(), non_blocking=True)
        copied = torch.cuda.Event() if any(tensor.is_cuda for tensor in tensors.values()) else None
        if copied is not None:
            copied.record()
        thread = ThreadPoolExecutor(1)
        self._writing = thread.submit(self._write, images, copies, metadata, copied)
        thread.shutdown(wait=False)

    def finish(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            InputError: if it could not be written; older checkpoints are then left as they are.
        """
        if self._writing is not None:
            self._writing.result()

    def check(self) -> None:
        """Raise what :meth:`finish` would, without waiting."""
        if self._writing is not None and self._writing.done():
            self._writing.result()

    def _write(
        self, images: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str], copied: torch.cuda.Event | None
    ) -> None:
        """Write a checkpoint and the weights, and remove older checkpoints that need not be kept."""
        if copied is not None:
            copied.synchronize()
        save_tensors(self.path(images), tensors, metadata | {"images": str(images)})
        self.good = self.path(images)
        # Those of later moments are another process's, unless they are known to be damaged.
        paths = {number: path for number, path in self.paths().items() if number <= images or path in self.damaged}
        older = [number for number in paths if number <= images]
        keep = set(older[-2:])
        if self.keep_every is not None:
            first = {number // self.keep_every: number for number in reversed(older)}
            keep |= {number for multiple, number in first.items() if multiple > 0}
        for number in paths.keys() - keep:
            paths[number].unlink(missing_ok=True)
        self.save_weights(tensors)

    def save_weights(self, tensors: dict[str, torch.Tensor]) -> None:
        """Write the weights, and the averaged ones that sampling reads; ``tensors`` as for :meth:`save`."""
        for file, prefix in (("model", "network."), ("ema", "average.")):
            weights = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            save_tensors(self.folder.parent / f"{file}.safetensors", weights)

    def resume(self, load: Callable[[Path], None]) -> list[InputError]:
        """Load the newest checkpoint that is complete.

        Args:
            load: loads a checkpoint file, or raises InputError; called with the newest file, then with older ones.

        Returns:
            The errors of the newer checkpoints.

        Raises:
            InputError: if there are checkpoints and none can be read.
        """
        problems: list[InputError] = []
        for path in reversed(self.paths().values()):
            try:
                load(path)
            except InputError as error:
                problems.append(error)
                self.damaged.add(path)
            else:
                self.good = path
                return problems
        if problems:
            raise InputError(f"no checkpoint can be read; {problems[0]}; choose another --out to begin anew")
        return problems

    def tidy(self) -> None:
        """Remove incomplete files that a killed training left in the run folder; those of other commands may be alive."""
        run = self.folder.parent
        for part in (*run.glob(".*.part.*"), *self.folder.glob(".*.part.*"), *(run / "samples").glob(".*.part.*")):
            found = PART.fullmatch(part.name)
            if part.parent != run or (found and f"{found[1]}{found[4]}" in FILES):
                part.unlink(missing_ok=True)

    def last(self) -> str:
        """The last good checkpoint, in words."""
        return f"the last good checkpoint is {self.good}" if self.good else "there is no checkpoint yet"


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata that :meth:`Checkpoints.save` wrote.

    Raises:
        InputError: if the file is damaged, or has no checksum.
    """
    tensors, metadata = load_with_metadata(path)
    if CHECKSUM not in metadata:
        raise InputError(f"{path}: not a complete checkpoint (it has no checksum)")
    return tensors, metadata
