"""Observers of a training: progress bar, metrics.jsonl, grids of samples, TensorBoard, early stopping, and a user's own.

One's own is a class with the methods that matter, often a single one:

    class Mail(Observer):
        def scored(self, images, score):
            send(f"{score:.2f} after {images} images")

    train(config, dataset, folder, observers=[Mail(), SampleGrids()], score=score)
"""

from __future__ import annotations

import codecs
import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from tqdm.auto import tqdm

from diffusion.data.products import save_image
from diffusion.files import whole_file
from lbm_warp.checks import InputError, check_integer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from diffusion.run import RunConfig
    from diffusion.sampling.pipeline import Pipeline

SCORE = "frechet_distance"


class Observer:
    """What a training tells. Subclass it and write the methods that matter; none of them does anything by default.

    They are called on rank 0 while the other ranks wait, in the order of the observers, except for :meth:`should_stop`. An
    InputError or OSError in one ends the training on all ranks, with the last checkpoint named.
    """

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        """The training begins or goes on, after so many images, in a run folder."""

    def resumed(self, images: int, pipeline: Pipeline) -> None:
        """It goes on from a checkpoint. It may have been killed before the observers were told of that."""

    def stepped(self, images: int) -> None:
        """A step is done."""

    def logged(self, line: dict[str, float]) -> None:
        """Means over the last steps, with the number of images so far as ``images``: a line of metrics.jsonl."""

    def scored(self, images: int, score: float) -> None:
        """The averaged weights have a score, the smaller the better."""

    def checkpointed(self, images: int, pipeline: Pipeline) -> None:
        """A checkpoint is made, and written beside the training; the pipeline has its averaged weights."""

    def ended(self, complete: bool) -> None:
        """The training ends, complete or not, also by an error."""

    def should_stop(self) -> bool:
        """Whether to write a checkpoint and stop: asked on every rank, before the first step and after each."""
        return False


class Progress(Observer):
    """A progress bar, on the terminal or in a notebook; ``by_clock`` tells that the log says how long the training is."""

    def __init__(self, by_clock: bool = False) -> None:
        self.by_clock = by_clock

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        total = None if self.by_clock else config.training.images
        self.bar = tqdm(total=total, initial=images, desc="training", unit="img", smoothing=0.05)

    def stepped(self, images: int) -> None:
        self.bar.update(images - self.bar.n)

    def logged(self, line: dict[str, float]) -> None:
        self.bar.total = line.get("length", self.bar.total)
        said = {"loss": f"{line['loss']:.4g}"}
        if "flop_per_second" in line:
            said["FLOP/s"] = f"{line['flop_per_second']:.2g}"
        if "share_of_peak" in line:
            said["of peak"] = f"{line['share_of_peak']:.0%}"
        self.bar.set_postfix(said)

    def ended(self, complete: bool) -> None:
        self.bar.close()


class MetricsFile(Observer):
    """metrics.jsonl in the run folder: one line every few steps, and one for every score."""

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        """Drop the lines after the checkpoint that the run goes on from, and what a killed run left incomplete."""
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["images"] <= images]
        with whole_file(self.path) as aside:
            aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def logged(self, line: dict[str, float]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def scored(self, images: int, score: float) -> None:
        self.logged({"images": images, SCORE: score})


class SampleGrids(Observer):
    """A grid of samples after every checkpoint: samples/<images>.png in the run folder.

    Args:
        count: number of samples.
    """

    def __init__(self, count: int = 36) -> None:
        check_integer("count", count, 1)
        self.count = count

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        self.folder = folder

    def resumed(self, images: int, pipeline: Pipeline) -> None:
        if not grid_path(self.folder, images).is_file():
            self.checkpointed(images, pipeline)

    def checkpointed(self, images: int, pipeline: Pipeline) -> None:
        save_image(grid_path(self.folder, images), grid(pipeline.sample(self.count)), "grid")


class TensorBoard(Observer):
    """TensorBoard's event files, tensorboard/ in the run folder: the log, the scores, and the grids of a :class:`SampleGrids` that
    is told before it. After a run went back to a checkpoint, its new entries replace the later ones.

    Raises:
        InputError: if TensorBoard is not installed.
    """

    _writer: SummaryWriter | None = None

    def __init__(self) -> None:
        if find_spec("tensorboard") is None:
            raise InputError("--tensorboard: TensorBoard is not installed; pip install tensorboard, or leave the option out")

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        self.folder = folder

    def logged(self, line: dict[str, float]) -> None:
        writer = self._at(int(line["images"]))
        for name, value in line.items():
            if name != "images":
                writer.add_scalar(name, value, int(line["images"]))
        writer.flush()

    def scored(self, images: int, score: float) -> None:
        self.logged({"images": images, SCORE: score})

    def checkpointed(self, images: int, pipeline: Pipeline) -> None:
        path = grid_path(self.folder, images)
        if path.is_file():
            with Image.open(path) as picture:
                self._at(images).add_image("samples", np.asarray(picture), images, dataformats="HWC")
            self._at(images).flush()

    def ended(self, complete: bool) -> None:
        if self._writer is not None:
            self._writer.close()

    def _at(self, images: int) -> SummaryWriter:
        """The writer, made at first use; entries of older files from ``images`` on are hidden."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder / "tensorboard", purge_step=images)
        return self._writer


class EarlyStop(Observer):
    """Stop a training that has become no better in the last ``patience`` scores. A run that is resumed remembers its scores.

    Args:
        patience: number of scores, at least 1.
    """

    def __init__(self, patience: int) -> None:
        check_integer("patience", patience, 1)
        self.patience = patience
        self.scores: list[float] = []

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        self.scores = [line[SCORE] for line in read_metrics(folder) if SCORE in line]

    def scored(self, images: int, score: float) -> None:
        self.scores.append(score)

    def should_stop(self) -> bool:
        """As :meth:`Observer.should_stop`: the best score is ``patience`` scores old."""
        scores = [math.inf if math.isnan(score) else score for score in self.scores]
        return bool(scores) and len(scores) - 1 - scores.index(min(scores)) >= self.patience


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without those that a killed run left incomplete."""
    path, lines = folder / "metrics.jsonl", []
    content = path.read_bytes() if path.exists() else b""
    # Editors add a mark and change the encoding; a crash of the machine leaves zeros.
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    for text in content.decode(encoding, "replace").splitlines():
        try:
            line = json.loads(text.strip("\0"))
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("images"), int):
            lines.append(line)
    return lines


def grid_path(folder: Path, images: int) -> Path:
    """The grid of samples of a run after so many images."""
    return folder / "samples" / f"{images:09d}.png"


def grid(images: torch.Tensor, gap: int = 4) -> np.ndarray:
    """Images [N, C, H, W] as one sheet on white, uint8 [height, width, 3], about square; small ones are enlarged."""
    count, channels, height, width = images.shape
    columns = min(max(round(math.sqrt(count * height / width)), 1), count)
    factor = max(1, -(-64 // min(height, width)))
    colours = images[:, : 3 if channels >= 3 else 1].clamp(0.0, 1.0).expand(-1, 3, -1, -1)
    tiles = (255.0 * colours).round().to(torch.uint8).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    tiles = functional.pad(tiles, (0, gap, 0, gap, 0, 0, 0, -count % columns), value=255)
    sheet = tiles.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return functional.pad(sheet, (gap, 0, gap, 0), value=255).permute(1, 2, 0).contiguous().numpy()
