"""A run small enough to train within a test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffusion.config import RunConfig, TrainingConfig
from diffusion.corruption import Corruption
from diffusion.network import NetworkConfig
from diffusion.process import ForwardProcess, named_process
from diffusion.size import Size

SIZE = 8

REMAINDER = ForwardProcess(
    blur="sine",
    sigma_max=0.16,
    levels=1000,
    signal="log-snr",
    noise=0.5,
    noise_schedule="variance-preserving",
    target="remainder",
    level_density="log-normal",
    sampler="ancestral",
    sampling_noise=1.0,
)


def corruption(process: str | ForwardProcess = "beyond-blur", size: int | tuple[int, int] = SIZE, **changes: object) -> Corruption:
    """A process by name or numbers, some of them changed, for images of a size."""
    numbers = named_process(process) if isinstance(process, str) else process
    return Corruption(replace(numbers, **changes), Size.of(size))


def tiny_config(process: str = "beyond-blur", size: int | tuple[int, int] = SIZE, **training: object) -> RunConfig:
    values = {"images": 48, "batch": 8, "warmup": 16, "seed": 3} | training
    return RunConfig(
        process_name=process,
        data="stripes",
        channels=1,
        size=size,
        process=replace(named_process(process), levels=6),
        network=NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1),
        training=TrainingConfig(**values),
    )


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
