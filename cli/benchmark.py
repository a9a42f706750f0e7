"""Measure speed as ratios, everything side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from tqdm import tqdm

from cli import console
from diffusion.files import write_json
from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import check_integer
from lbm_warp.grids import curved
from lbm_warp.populations import evolve


@dataclass(frozen=True)
class Benchmark:
    """Options of ``python -m cli.benchmark``."""

    what: Annotated[Literal["operator"], tyro.conf.Positional] = "operator"
    """operator: the corruption operator against a plain D2Q9 kernel over stored populations."""
    size: int = 128
    """Side of the images in pixels."""
    batch: int = 4
    """Images at a time."""
    channels: int = 3
    """Channels of the images."""
    peclet: float = 8.0
    """Peclet number."""
    sigma_max: float = 20.0
    """Blur in pixels up to which both corrupt."""
    repeats: int = 5
    """Runs of each; medians are reported."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


def benchmark(options: Benchmark) -> None:
    """Corrupt the same images in the same flow both ways, in turn; compare times and results."""
    device = console.pick_device(options.device)
    for name, lowest in (("size", 2), ("batch", 1), ("channels", 1), ("repeats", 1)):
        check_integer(f"--{name}", getattr(options, name), lowest)
    operator = AdvectionDiffusion(Schedule.geometric(0.5, options.sigma_max, 200), options.peclet)
    march = operator.march(options.size, options.size)
    generator = torch.Generator().manual_seed(0)
    u0 = torch.rand((options.batch, options.channels, options.size, options.size), generator=generator).to(device)
    seed = torch.arange(options.batch)
    level = operator.schedule.levels
    # At relaxation time 1 the plain solver diffuses 1/6 px^2 an iteration: sigma^2 = 2 alpha t.
    plain_iterations = round(3.0 * options.sigma_max**2)
    step = march.grids[0].velocity_per_theta / 3.0
    velocity = step * curved(operator.velocity(seed, options.size, options.size, device), step, periodic=False)

    contenders: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        "fast operator": (round(march.work) + 1, lambda: operator(u0, level, seed)),
        "stored populations": (plain_iterations, lambda: evolve(u0, velocity, plain_iterations)),
    }
    results = {name: run() for name, (_, run) in contenders.items()}  # also compiles the kernels
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in tqdm(range(options.repeats), desc="measuring", unit="round"):
        for name, (_, run) in contenders.items():
            _synchronise(device)
            start = time.perf_counter()
            run()
            _synchronise(device)
            seconds[name].append(time.perf_counter() - start)

    report = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "images": [*u0.shape],
        "peclet": options.peclet,
        "sigma_px": options.sigma_max,
        "contenders": {},
    }
    print(f"{tuple(u0.shape)} to sigma = {options.sigma_max:g} px at Pe = {options.peclet:g} on {report['device']}")
    print(f"{'':20}{'iterations':>11}{'median s':>10}{'images/s':>10}{'MLUPS':>9}")
    for name, (iterations, _) in contenders.items():
        median = statistics.median(seconds[name])
        row = {
            "iterations": iterations,
            "median_seconds": median,
            "seconds": seconds[name],
            "images_per_second": options.batch / median,
            "million_cell_updates_per_second": u0.numel() * iterations / median / 1e6,
        }
        report["contenders"][name] = row
        rates = f"{row['images_per_second']:>10.3g}{row['million_cell_updates_per_second']:>9.4g}"
        print(f"{name:20}{iterations:>11}{median:>10.3g}{rates}")
    fast, plain = (report["contenders"][name]["median_seconds"] for name in contenders)
    difference = (results["fast operator"] - results["stored populations"]).abs().max().item()
    report |= {"ratio": plain / fast, "largest_difference": difference}
    print(f"the operator is {plain / fast:.1f} times as fast; largest difference of the results {255 * difference:.2f} / 255")
    if options.out is not None:
        write_json(options.out, report)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    console.run(benchmark, Benchmark, "benchmark")
