"""Measure how fast the training's loader reads prepared pictures: 8-bit colour images, random and in memory."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import timer

from cli.benchmark import measure
from diffusion.data.loader import batches
from diffusion.files import write_json
from diffusion.size import Size
from lbm_warp.checks import check_integer


class Prepared(Sequence[np.ndarray]):
    """Pictures as float32 [C, H, W] in [0, 1], kept as uint8 levels [N, C, H, W]."""

    def __init__(self, levels: np.ndarray) -> None:
        self.levels = levels

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.levels[number].astype(np.float32) / 255


@dataclass(frozen=True)
class Data:
    """Reading prepared pictures as the training does: images/s."""

    size: str = "128"
    """Size of the images in pixels: 64, or height x width as in 96x128."""
    images: int = 4096
    """Images in the data set."""
    batch: int = 64
    """Images in a batch."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of processes that read."""
    repeats: int = 3
    """Epochs for each number of processes; medians are reported."""
    out: Path | None = None
    """Write the numbers to this JSON file."""

    def run(self) -> None:
        """Read the same pictures with every number of processes; print the speeds, write them."""
        size = Size.of(self.size)
        for name in ("images", "batch", "repeats"):
            check_integer(f"--{name}", getattr(self, name), 1)
        for workers in self.workers:
            check_integer("--workers", workers, 0)
        dataset = Prepared(np.random.default_rng(0).integers(0, 256, (self.images, 3, *size), dtype=np.uint8))
        work = f"{self.images} colour images of {size} pixels, batches of {self.batch}, medians of {self.repeats}"
        described = measure.describe(torch.device("cpu"))
        print(f"{described}; {work}")
        runs = [partial(images_per_second, dataset, self.batch, workers) for workers in self.workers]
        medians = map(statistics.median, measure.interleaved(runs, self.repeats))
        rows = [{"workers": workers, "images_per_second": speed} for workers, speed in zip(self.workers, medians, strict=True)]
        measure.print_table(("workers", "images_per_second"), rows, heads=True)
        if self.out is not None:
            write_json(self.out, {"device": described, "work": work, "rows": rows})


def images_per_second(dataset: Sequence[np.ndarray], batch: int, workers: int) -> float:
    """Speed of an epoch, after one that starts the processes and is not counted."""
    count = len(dataset)
    with batches(dataset, 0, 0, 2 * count, batch, workers=workers) as reading:
        for _ in range(-(-count // batch)):
            next(reading)
        start = timer()
        read = sum(map(len, reading))
    return read / (timer() - start)
