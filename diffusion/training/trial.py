"""A few steps on random pictures, of which nothing is kept: how fast a training is here."""

from __future__ import annotations

import time

import torch

from diffusion.forward.statistics import Statistics
from diffusion.run import RunConfig
from diffusion.training.log import StepLog
from diffusion.training.loop import ENDLESS, ExecutionConfig, Trainer
from diffusion.training.ranks import Ranks
from diffusion.training.state import TrainingState


def random_pictures(config: RunConfig, count: int) -> torch.Tensor:
    """Noise in the shape of a run's pictures, float32 [count, C, H, W] in [0, 1]."""
    return torch.rand((count, *config.shape), generator=torch.Generator().manual_seed(0))


def random_statistics(config: RunConfig, device: torch.device) -> Statistics | None:
    """The moments of such pictures, for a denoiser that needs them."""
    if not config.method.denoiser.needs_statistics:
        return None
    return config.method.denoiser.measure(list(random_pictures(config, 16).numpy()), config.forward, device)


def measured_speed(config: RunConfig, ranks: Ranks, execution: ExecutionConfig, seconds: float = 10.0) -> float:
    """Images a second of all ranks, as measured for so long, after three steps that set up the libraries and compile.

    Raises:
        InputError: as a training does.
    """
    state = TrainingState.initial(config, ranks.device)
    labels = (lambda numbers: torch.zeros(len(numbers), dtype=torch.int64)) if config.classes else None
    trainer = Trainer(config, state, ranks, execution, random_statistics(config, ranks.device), labels)
    pictures = random_pictures(config, len(ranks.share(config.training.batch)))
    log = StepLog(0, ranks)

    def time_of(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step(pictures, log, ENDLESS)
        log.line(0.0)  # waits for the device
        return time.perf_counter() - start

    time_of(2)
    # As many on every rank.
    steps = ranks.broadcast(max(round(seconds / time_of(1)), 1))
    return steps * config.training.batch / time_of(steps)
