"""Measure how fast the training's loader reads prepared pictures that the system keeps in memory."""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import timer

from cli.benchmark import measure
from diffusion.data.dataset import ImageDataset
from diffusion.data.loader import batches
from diffusion.size import Size


@dataclass(frozen=True)
class Data(measure.Benchmark):
    """Reading prepared colour pictures as training does: images/s."""

    size: str = "128"
    """Size of the pictures in pixels: one number for squares, or height x width such as 96x128."""
    images: int = 4096
    """Pictures in the data set, random ones in a temporary file."""
    batch: int = 64
    """Pictures at a time."""
    workers: tuple[int, ...] = (0, 1, 2)
    """Numbers of processes that read; 0 reads in the training process."""

    def run(self) -> None:
        """Read the same pictures with every number of workers; print the speeds, write them."""
        self.check(images=1, batch=1, workers=0)
        size = Size.of(self.size)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pictures.npy"
            np.save(file, np.random.default_rng(0).integers(0, 256, (self.images, 3, *size), dtype=np.uint8))
            dataset = ImageDataset("random", "random pictures", np.load(file, mmap_mode="r"))
            speeds = self.interleaved([partial(self.epoch, dataset, workers) for workers in self.workers])
        found = zip(self.workers, map(statistics.median, speeds), strict=True)
        rows: list[measure.Row] = [{"workers": workers, "images_per_second": median} for workers, median in found]
        work = f"{self.images} pictures of 3 x {size[0]} x {size[1]}, batches of {self.batch}"
        self.timed(measure.describe(torch.device("cpu")), work, rows)

    def epoch(self, dataset: ImageDataset, workers: int) -> float:
        """Pictures a second in an epoch, after one that starts the workers and is not counted."""
        with batches(dataset, 0, 0, 2 * self.images, self.batch, workers=workers) as reading:
            for _ in range(-(-self.images // self.batch)):
                next(reading)
            start = timer()
            return sum(map(len, reading)) / (timer() - start)
