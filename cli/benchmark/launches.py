"""Measure how long each kernel of a call of the operator takes on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import warp as wp

from cli.benchmark import measure
from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import InputError

COLUMNS = {
    "name": ("kernel", 44, 1.0),
    "launches": ("launches", 10, 1.0),
    "median_us": ("us a launch", 13, 1.0),
    "total_ms": ("ms in all", 11, 1.0),
}


@dataclass(frozen=True)
class Launches(measure.Benchmark):
    """Time of each kernel of a call of the operator, on a GPU. A launch that fills it once takes as long as one of its blocks."""

    columns = COLUMNS
    size: int = 128
    """Side of the images in pixels."""
    batch: int = 32
    """Images at a time, of three channels."""
    device: str = "cuda"
    """cuda or cuda:N."""

    def run(self) -> None:
        """Time a call to 0.16 L at Pe = 8, after one that compiles; print a table, write the numbers."""
        device = measure.pick_device(self.device)
        self.check(size=2, batch=1)
        if device.type != "cuda":
            raise InputError("kernels are timed on a GPU: --device cuda")
        sigma = 0.16 * self.size
        operator = AdvectionDiffusion(Schedule.geometric(min(0.5, sigma), sigma, 50), peclet=8.0)
        u, seed = torch.rand((self.batch, 3, self.size, self.size), device=device), torch.arange(self.batch)
        operator(u, 50, seed)
        wp.timing_begin(cuda_filter=wp.TIMING_KERNEL)
        for _ in range(self.repeats):
            operator(u, 50, seed)
        rows = times_of(wp.timing_end(), self.repeats)
        self.timed(measure.describe(device), f"{self.batch} images of 3 x {self.size} x {self.size}, to 0.16 L at Pe = 8", rows)


def times_of(results: Iterable[Any], calls: int) -> list[measure.Row]:
    """A row for every kernel of the results of Warp's timing of so many calls, the longest first."""
    times: dict[str, list[float]] = {}
    for result in results:
        times.setdefault(result.name, []).append(result.elapsed)
    rows = [
        {
            "name": name,
            "launches": len(found) / calls,
            "median_us": 1e3 * sorted(found)[len(found) // 2],
            "total_ms": sum(found) / calls,
        }
        for name, found in times.items()
    ]
    return sorted(rows, key=lambda row: -row["total_ms"])
