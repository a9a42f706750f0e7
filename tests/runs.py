"""A run small enough to train within a test."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diffusion.config import RunConfig, TrainingConfig
from diffusion.network import NetworkConfig
from diffusion.process import named_process

SIZE = 8


def tiny_config(process: str = "beyond-blur", **training: object) -> RunConfig:
    values = {"images": 48, "batch": 8, "warmup": 16, "seed": 3} | training
    return RunConfig(
        process_name=process,
        data="stripes",
        channels=1,
        size=SIZE,
        process=replace(named_process(process), levels=6),
        network=NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention=(), dropout=0.1),
        training=TrainingConfig(**values),
    )


def stripes(count: int = 20) -> list[np.ndarray]:
    """Pictures that differ: bars of random place and brightness."""
    generator = np.random.default_rng(0)
    pictures = np.zeros((count, 1, SIZE, SIZE), dtype=np.float32)
    for picture, column in zip(pictures, generator.integers(0, SIZE - 2, count), strict=True):
        picture[..., column : column + 2] = generator.uniform(0.5, 1.0)
    return list(pictures)


def without_dropout(config: RunConfig) -> RunConfig:
    return replace(config, network=replace(config.network, dropout=0.0))
