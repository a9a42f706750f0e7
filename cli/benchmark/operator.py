"""Measure the corruption operator beside other ways to corrupt the same images in the same flow."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.utils.benchmark import Timer

from cli import figures
from cli.benchmark import measure
from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import check_number
from lbm_warp.textbook import evolve, midpoint_velocity

LEVELS = 50


@dataclass(frozen=True)
class Operator(measure.Benchmark):
    """The corruption operator beside others (the default)."""

    sizes: tuple[int, ...] = (128,)
    """Sides of the images in pixels."""
    batches: tuple[int, ...] = (4,)
    """Images at a time."""
    channels: int = 3
    """Channels of the images."""
    peclet: float = 8.0
    """Peclet number."""
    sigma_max: float = 0.16
    """Blur width of the result, as a fraction of the side."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    slow: bool = True
    """Also measure contenders that take minutes on large images: the plain kernel, torch, and SciPy if it is installed."""
    plot: Path | None = None
    """Draw cost against image size to this picture."""

    def run(self) -> None:
        """Time every contender on the same images in the same flow; print a table, write the numbers."""
        device = measure.pick_device(self.device)
        self.check(sizes=2, batches=1, channels=1)
        check_number("--sigma-max", self.sigma_max, 0.01, 10.0)
        copy, described = copy_bandwidth(device), measure.describe(device)
        task = f"{self.channels} channels, Pe = {self.peclet:g}, to {self.sigma_max:g} L"
        settings = {name: getattr(self, name) for name in ("channels", "peclet", "sigma_max")}
        facts = {"copy_bytes_per_second": copy, "settings": settings}
        rows = self.timed(described, f"copies {copy / 1e9:.3g} GB/s; {task}", self.rows(device, copy), **facts)
        if self.plot is not None:
            figures.save_figure(self.plot, figures.cost_curves(rows, f"{described}, {task}"))

    def rows(self, device: torch.device, copy: float) -> Iterator[measure.Row]:
        """A row of numbers for every contender, the operator first; ``copy`` is the copy bandwidth [bytes/s]."""
        for size, batch in product(self.sizes, self.batches):
            contenders = self.contenders(size, batch, device)
            runs = [partial(measure.seconds, run) for _, _, run in contenders]
            medians = [statistics.median(times) for times in self.interleaved(runs)]
            for (name, iterations, _), seconds in zip(contenders, medians, strict=True):
                updates = iterations and batch * self.channels * size**2 * iterations / seconds
                yield {
                    "size": size,
                    "batch": batch,
                    "name": name,
                    "iterations": iterations,
                    "median_seconds": seconds,
                    "images_per_second": batch / seconds,
                    "cell_updates_per_second": updates,
                    # One float read and one written per cell and channel, and two of velocity per cell shared by the channels.
                    "share_of_copy_bandwidth": updates and updates * (8 + 8 / self.channels) / copy,
                    "times_the_operator": seconds / medians[0],
                }

    def contenders(self, size: int, batch: int, device: torch.device) -> list[tuple[str, int | None, Callable[[], object]]]:
        """Ways to corrupt the same images in the same flow to the same blur: name, iterations (None without a grid), and call."""
        sigma = self.sigma_max * size
        schedule = Schedule.geometric(min(0.5, sigma), sigma, LEVELS)
        operator, one_grid = (
            AdvectionDiffusion(schedule, peclet=self.peclet, coarsen=coarsen, exact=False) for coarsen in (True, False)
        )
        u0 = torch.rand((batch, self.channels, size, size), generator=torch.Generator().manual_seed(0)).to(device)
        seed = torch.arange(batch)
        contenders: list[tuple[str, int | None, Callable[[], object]]] = [
            (name, round(way.iterations(size, size)[-1]), partial(way, u0, LEVELS, seed))
            for name, way in (("operator", operator), ("without coarsening", one_grid))
        ]
        for _, _, run in contenders:
            run()  # compiles its kernels
        if self.slow:
            # At relaxation time 1 the plain solver diffuses 1/6 px^2 an iteration: sigma^2 = 2 alpha t.
            plain = round(3.0 * sigma**2)
            step = one_grid.plan(size, size).grids[0].velocity_per_theta / 3.0
            velocity = midpoint_velocity(step * operator.velocity(seed, size, size, device), periodic=False)
            evolve(u0, velocity, 1)
            contenders.append(("stored populations", plain, partial(evolve, u0, velocity, plain)))
            contenders.append(("torch", plain, partial(in_torch, u0, velocity, plain)))
            if importlib.util.find_spec("scipy"):
                contenders.append(("SciPy", None, partial(in_scipy, u0.cpu().numpy(), velocity.cpu().numpy(), plain)))
        return contenders


def in_torch(u: torch.Tensor, velocity: torch.Tensor, iterations: int) -> torch.Tensor:
    """The textbook scheme (theta = 1/3, walls) in torch operations: nine weights, and nine shifted products a step."""
    theta = 1.0 / 3.0
    x, y = ([(theta + v * v - v) / 2, 1 - theta - v * v, (theta + v * v + v) / 2] for v in velocity[:, :, None].unbind(dim=1))
    weights = [[along_x * along_y for along_x in x] for along_y in y]
    height, width = u.shape[2:]
    for _ in range(iterations):
        spread = u.new_zeros((*u.shape[:2], height + 2, width + 2))
        for j, i in product(range(3), range(3)):
            spread[..., j : j + height, i : i + width] += weights[j][i] * u
        # The part that left through a wall returns mirrored.
        spread[..., 1, :] += spread[..., 0, :]
        spread[..., -2, :] += spread[..., -1, :]
        spread[..., 1] += spread[..., 0]
        spread[..., -2] += spread[..., -1]
        u = spread[..., 1:-1, 1:-1]
    return u


def in_scipy(u: np.ndarray, velocity: np.ndarray, iterations: int) -> np.ndarray:
    """Semi-Lagrangian steps of at most one pixel of motion: look up where each pixel came from, then blur. One core."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    steps = max(1, int(np.ceil(np.abs(velocity).max() * iterations)))
    sigma = np.sqrt(iterations / 3.0 / steps)
    grid = np.mgrid[: u.shape[2], : u.shape[3]]
    u = u.copy()
    for image, (vx, vy) in zip(u, velocity * (iterations / steps), strict=True):
        for channel in image:
            for _ in range(steps):
                channel[:] = map_coordinates(channel, grid - np.stack([vy, vx]), order=1, mode="nearest")
                gaussian_filter(channel, sigma, mode="reflect", output=channel)
    return u


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.ones(2**26 if device.type == "cuda" else 2**25, device=device)
    tensors = {"source": source, "target": torch.empty_like(source)}
    timer = Timer("target.copy_(source)", globals=tensors, num_threads=torch.get_num_threads())
    return 2 * source.nbytes / timer.blocked_autorange().median
