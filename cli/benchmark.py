"""Measure speed and memory, everything side by side in one run."""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from tyro.conf import subcommand

from cli import console, figures, measure
from cli.throughput import SampleBenchmark, TrainBenchmark, benchmark_sampling, benchmark_training
from diffusion.files import write_json
from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import check_integer, check_number
from lbm_warp.grids import midpoint_velocity
from lbm_warp.populations import evolve

LEVELS = 50


@dataclass(frozen=True)
class OperatorBenchmark:
    """Options of ``python -m cli.benchmark operator``."""

    sizes: tuple[int, ...] = (128,)
    """Sides of the images in pixels."""
    batches: tuple[int, ...] = (4,)
    """Images at a time."""
    channels: int = 3
    """Channels of the images."""
    peclet: float = 8.0
    """Peclet number."""
    sigma_max: float = 0.16
    """Blur up to which all corrupt, as a fraction of the side."""
    repeats: int = 3
    """Runs of each; medians are reported."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    slow: bool = True
    """Measure those too that take minutes on large images: the plain kernel, torch, and SciPy if it is installed."""
    out: Path | None = None
    """Write the numbers to this JSON file."""
    plot: Path | None = None
    """Draw cost against image size to this picture."""


class Contender(NamedTuple):
    """A way to corrupt images: cell updates it takes, in iterations of the pixel grid (None where it has none), and the call."""

    name: str
    iterations: int | None
    run: Callable[[], object]


def benchmark_operator(options: OperatorBenchmark) -> None:
    """Corrupt the same images in the same flow every way, in turn; print a table, write the numbers."""
    device = console.pick_device(options.device)
    for name in ("sizes", "batches"):
        for value in getattr(options, name):
            check_integer(f"--{name}", value, 2 if name == "sizes" else 1)
    for name in ("channels", "repeats"):
        check_integer(f"--{name}", getattr(options, name), 1)
    check_number("--sigma-max", options.sigma_max, 0.01, 10.0)
    cases = [(size, batch) for size in options.sizes for batch in options.batches]
    copy = _copy_bandwidth(device)
    described = measure.describe(device)
    task = f"{options.channels} channels, Pe = {options.peclet:g}, to {options.sigma_max:g} L"
    print(f"{described}; copies {copy / 1e9:.3g} GB/s; {task}")
    heads = f"{'iterations':>11}{'median s':>10}{'images/s':>10}{'MLUPS':>8}{'of copy':>9}{'times':>8}"
    print(f"{'size':>5}{'batch':>6}  {'':20}{heads}")
    rows = []
    with tqdm(total=len(cases), desc="measuring", unit="case", leave=False) as progress:
        for size, batch in cases:
            contenders = _contenders(options, size, batch, device)
            medians = _medians(contenders, options.repeats, device)
            for contender, seconds in zip(contenders, medians, strict=True):
                updates = contender.iterations and batch * options.channels * size**2 * contender.iterations / seconds
                # One float read and one written per cell and channel, and two of velocity per cell shared by the channels.
                share = updates and updates * (8 + 8 / options.channels) / copy
                row = {
                    "size": size,
                    "batch": batch,
                    "name": contender.name,
                    "iterations": contender.iterations,
                    "median_seconds": seconds,
                    "images_per_second": batch / seconds,
                    "cell_updates_per_second": updates,
                    "share_of_copy_bandwidth": share,
                    "times_the_operator": seconds / medians[0],
                }
                rows.append(row)
                numbers = f"{updates / 1e6:>8.4g}{share:>9.2g}" if updates else f"{'':17}"
                line = f"{size:>5}{batch:>6}  {contender.name:20}{contender.iterations or '':>11}"
                progress.write(f"{line}{seconds:>10.3g}{batch / seconds:>10.3g}{numbers}{seconds / medians[0]:>8.3g}")
            progress.update()
    if options.out is not None:
        settings = {
            "channels": options.channels,
            "peclet": options.peclet,
            "sigma_max": options.sigma_max,
            "repeats": options.repeats,
        }
        write_json(options.out, {"device": described, "copy_bytes_per_second": copy, "settings": settings, "rows": rows})
    if options.plot is not None:
        figures.save_figure(options.plot, figures.cost_curves(rows, f"{described}, {task}"))


def _contenders(options: OperatorBenchmark, size: int, batch: int, device: torch.device) -> list[Contender]:
    """The operator first; what it is compared with is told the same velocity and blurs as far."""
    sigma = options.sigma_max * size
    schedule = Schedule.geometric(min(0.5, sigma), sigma, LEVELS)
    operator, one_grid = (AdvectionDiffusion(schedule, options.peclet, coarsen=coarsen, exact=False) for coarsen in (True, False))
    u0 = torch.rand((batch, options.channels, size, size), generator=torch.Generator().manual_seed(0)).to(device)
    seed = torch.arange(batch)
    plan = one_grid.plan(size, size)
    contenders = [
        Contender("operator", round(operator.iterations(size, size)[-1]), lambda: operator(u0, LEVELS, seed)),
        Contender("without coarsening", round(plan.iterations[-1]), lambda: one_grid(u0, LEVELS, seed)),
    ]
    if options.slow:
        # At relaxation time 1 the plain solver diffuses 1/6 px^2 an iteration: sigma^2 = 2 alpha t.
        plain = round(3.0 * sigma**2)
        step = plan.grids[0].velocity_per_theta / 3.0
        velocity = step * midpoint_velocity(operator.velocity(seed, size, size, device), step, periodic=False)
        contenders += [
            Contender("stored populations", plain, lambda: evolve(u0, velocity, plain)),
            Contender("torch", plain, lambda: in_torch(u0, velocity, plain)),
        ]
        if importlib.util.find_spec("scipy"):
            contenders.append(Contender("SciPy", None, lambda: in_scipy(u0.cpu().numpy(), velocity.cpu().numpy(), plain)))
    return contenders


def in_torch(u: torch.Tensor, velocity: torch.Tensor, iterations: int) -> torch.Tensor:
    """The operator's scheme (theta = 1/3, walls) in nothing but torch operations: weights once, nine shifted products a step."""
    theta = 1.0 / 3.0
    x, y = ([(theta + v * v - v) / 2, 1 - theta - v * v, (theta + v * v + v) / 2] for v in velocity[:, :, None].unbind(dim=1))
    weights = [[along_x * along_y for along_x in x] for along_y in y]
    height, width = u.shape[2:]
    for _ in range(iterations):
        spread = u.new_zeros((*u.shape[:2], height + 2, width + 2))
        for j in range(3):
            for i in range(3):
                spread[..., j : j + height, i : i + width] += weights[j][i] * u
        # What left through a wall comes back mirrored.
        spread[..., 1, :] += spread[..., 0, :]
        spread[..., -2, :] += spread[..., -1, :]
        spread[..., 1] += spread[..., 0]
        spread[..., -2] += spread[..., -1]
        u = spread[..., 1:-1, 1:-1]
    return u


def in_scipy(u: np.ndarray, velocity: np.ndarray, iterations: int) -> np.ndarray:
    """Semi-Lagrangian: in steps of at most a pixel of motion, look up where each pixel came from, then blur. One core."""
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


def _medians(contenders: list[Contender], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each."""
    for contender in contenders[:2]:
        contender.run()  # compiles the kernels
    timed = [partial(measure.seconds, contender.run, device) for contender in contenders]
    return [statistics.median(times) for times in measure.in_turns(timed, repeats)]


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a large copy on the device."""
    source = torch.ones(2**26 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    times = [measure.seconds(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.numel() * 4 / statistics.median(times)


Benchmark = (
    Annotated[OperatorBenchmark, subcommand("operator", description="The corruption operator beside others (the default).")]
    | Annotated[TrainBenchmark, subcommand("train", description="Training: images a second, share of corruption, memory.")]
    | Annotated[SampleBenchmark, subcommand("sample", description="Sampling: images a second, share of corruption, memory.")]
)


def benchmark(options: OperatorBenchmark | TrainBenchmark | SampleBenchmark) -> None:
    """Run the benchmark that the options belong to."""
    if isinstance(options, TrainBenchmark):
        benchmark_training(options)
    elif isinstance(options, SampleBenchmark):
        benchmark_sampling(options)
    else:
        benchmark_operator(options)


if __name__ == "__main__":
    console.run(benchmark, Benchmark, "benchmark", subcommand="operator")
