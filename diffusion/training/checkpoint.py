"""Run folders: what a training run writes and sampling reads.

    config.json               process, network, image shape, training: everything the run is
    ema.safetensors           averaged weights, the ones to sample with
    model.safetensors         weights as trained
    prior.safetensors         thumbnails that sampling starts from
    checkpoints/              <images>.safetensors: weights, average and optimiser at one moment, to resume from
    metrics.jsonl             one line every few steps
    samples/                  grids made while training

Files are JSON and safetensors: reading a run never executes anything in it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open

from diffusion.files import load_tensors, save_tensors
from lbm_warp.checks import InputError


class Checkpoints:
    """The folder checkpoints/ of a run: everything it takes to resume, as one file a moment, so that moments never mix.

    The last two are kept, so that one is left should a disk spoil the other, and of older ones the first at or after every multiple
    of ``keep_every`` images.

    Args:
        folder: the run folder.
        keep_every: images; None keeps the last two only.

    Attributes:
        good: the last checkpoint that is known to be whole.
    """

    def __init__(self, folder: Path, keep_every: int | None = None) -> None:
        self.folder = folder / "checkpoints"
        self.keep_every = keep_every
        self.good: Path | None = None

    def path(self, images: int) -> Path:
        """The file of this number of images."""
        return self.folder / f"{images:09d}.safetensors"

    def paths(self) -> dict[int, Path]:
        """The files by their number of images, oldest first."""
        found = {path.stem: path for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()}
        return {int(stem): found[stem] for stem in sorted(found, key=int)}

    def save(self, images: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write the checkpoint of this number of images, then remove those that need not be kept.

        Raises:
            InputError: if it cannot be written; the ones before are then left as they are.
        """
        metadata = metadata | {"images": str(images), "checksum": _checksum(tensors)}
        save_tensors(self.path(images), tensors, metadata)
        paths = self.paths()
        # What lies beyond this moment could not be read, or the run would have gone on from there.
        older = [number for number in paths if number <= images]
        keep = set(older[-2:])
        if self.keep_every is not None:
            first = {number // self.keep_every: number for number in reversed(older)}
            keep |= {number for multiple, number in first.items() if multiple > 0}
        for number in paths.keys() - keep:
            paths[number].unlink(missing_ok=True)

    def resume(self, load: Callable[[Path], None]) -> list[InputError]:
        """Go back to the newest checkpoint that is whole.

        Args:
            load: takes a checkpoint over or raises InputError; called for the newest, then for older ones until it does.

        Returns:
            What was wrong with the newer ones.

        Raises:
            InputError: if there are checkpoints and none can be read.
        """
        problems: list[InputError] = []
        for path in reversed(self.paths().values()):
            try:
                load(path)
            except InputError as error:
                problems.append(error)
            else:
                self.good = path
                return problems
        if problems:
            raise InputError(f"no checkpoint can be read; {problems[0]}; choose another --out to begin anew")
        return problems

    def tidy(self) -> None:
        """Remove what a process that was killed left half-written in the run folder."""
        for part in self.folder.parent.rglob(".*.part.*"):
            part.unlink(missing_ok=True)

    def last(self) -> str:
        """What is safe, in words."""
        return f"the last good checkpoint is {self.good}" if self.good else "there is no checkpoint yet"


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata that :meth:`Checkpoints.save` wrote.

    Raises:
        InputError: if the file is damaged, be it only that a number is another.
    """
    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("checksum") != _checksum(tensors):
        raise InputError(f"{path}: not what was written (the checksum is another)")
    return tensors, metadata


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of the contents, tensor by tensor in the order of the names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"
