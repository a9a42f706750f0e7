"""A run small enough to train within a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np

from cli.jobs import Job
from diffusion.denoisers import Remainder
from diffusion.density import LogNormal
from diffusion.forward.operators import FlowAndBlur, Sine
from diffusion.forward.scales import LogSNR
from diffusion.learning_rate import WarmUpAndDecay
from diffusion.methods import Method, named_method
from diffusion.network import NetworkConfig
from diffusion.run import RunConfig, TrainingConfig
from diffusion.samplers import Resample
from diffusion.size import Size

SIZE = 8

REMAINDER = Method(FlowAndBlur(blur=Sine(0.16), levels=1000), LogSNR(), Remainder(), LogNormal(), Resample())


def tiny_config(
    process: str | Method = "beyond-blur",
    size: int | tuple[int, int] = SIZE,
    learning_rate: float = 1e-3,
    network: object = NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1),
    classes: tuple[str, ...] = (),
    **training: object,
) -> RunConfig:
    """A run of a method, or of a named one with six levels."""
    values = {"images": 48, "batch": 8, "schedule": WarmUpAndDecay(learning_rate, 16), "seed": 3} | training
    method = named_method(process).changed(levels=6) if isinstance(process, str) else process
    name = process if isinstance(process, str) else "own"
    return RunConfig(name, "stripes", 1, size, method, network, TrainingConfig(**values), classes)


def stripes(count: int = 20, size: int | tuple[int, int] = SIZE) -> list[np.ndarray]:
    """Pictures that differ: bars of random place and brightness."""
    generator = np.random.default_rng(0)
    height, width = Size.of(size)
    pictures = np.zeros((count, 1, height, width), dtype=np.float32)
    for picture, column in zip(pictures, generator.integers(0, width - 2, count), strict=True):
        picture[..., column : column + 2] = generator.uniform(0.5, 1.0)
    return list(pictures)


def exit_code(main: Callable[[list[str]], None], *arguments: object) -> int:
    """Run a command; returns what it ends with."""
    try:
        main([str(word) for word in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def in_this_process(jobs: Sequence[Job], devices: Sequence[str]) -> Iterator[tuple[Job, str]]:
    """As cli.jobs.side_by_side, one job after the other, without processes that import torch again."""
    for job in jobs:
        commands = ((import_module(module).main, *arguments, "--device", devices[0]) for _, module, *arguments in job.commands)
        yield job, "it failed" if any(exit_code(*command) for command in commands) else ""


def files(folder: Path) -> dict[str, bytes]:
    """The contents of all files in a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def without_dropout(config: RunConfig) -> RunConfig:
    return replace(config, network=replace(config.network, dropout=0.0))


def said(output: tuple[str, str]) -> tuple[str, str]:
    """Standard output, and standard error without what reports progress."""
    out, err = output
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(("preparing", "training:", "prior:"))]
    return out, "".join(line + "\n" for line in lines)
