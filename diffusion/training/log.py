"""The log of a training: losses, speed, and the time of each part of a step. Logging never makes a step wait for the device."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from diffusion.training.estimate import FEW_STEPS, Work
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError


class StepLog:
    """Losses, gradients and times of the steps since the last line of the log. Every rank keeps it: losses are summed over ranks.

    Args:
        images: images seen before the first step.
        ranks: the processes of the run.
        work: gives the operations a second of a line.
    """

    def __init__(self, images: int, ranks: Ranks, work: Work | None = None) -> None:
        self.images = images
        self.ranks = ranks
        self.work = work
        self.watch = Stopwatch(ranks.device)
        self.restart()

    def restart(self) -> None:
        """Discard the steps since the last line, and restart the clock."""
        self.steps: list[tuple[int, int]] = []
        self.losses: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []
        self.start = time.perf_counter()

    def add(self, step: int, images: int, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Add a step. Its loss stays on the device until the next line.

        Args:
            step: number of the step in the run, from 1.
            images: images seen after it.
            loss: this rank's part of the mean loss of the batch, a scalar on the device.
            norm: norm of the gradient before clipping, a scalar on the device.
        """
        self.steps.append((step, images))
        self.losses.append(loss)
        self.norms.append(norm)

    def finite(self) -> bool:
        """Whether loss and gradient of the steps since the last line are finite on this rank."""
        return bool(torch.stack([*self.losses, *self.norms]).isfinite().all()) if self.steps else True

    def line(self, learning_rate: float) -> dict[str, float]:
        """The line for the steps since the last line, the same on every rank.

        Raises:
            InputError: if a loss or a gradient is not finite, on every rank.
        """
        losses = self.ranks.sum(torch.stack(self.losses).double())
        norms = torch.stack(self.norms).double()
        for (step, images), loss, norm in zip(self.steps, losses.tolist(), norms.tolist(), strict=True):
            if not math.isfinite(loss + norm):
                what = f"loss is {loss}" if not math.isfinite(loss) else f"norm of the gradient is {norm}"
                raise InputError(f"the {what} in step {step}, at image {images}: try a smaller learning rate")
        step, images = self.steps[-1]
        speed = (images - self.images) / (time.perf_counter() - self.start)
        line = {
            "images": images,
            "step": step,
            "loss": losses.mean().item(),
            "gradient_norm": norms.mean().item(),
            "learning_rate": learning_rate,
            "images_per_second": round(speed, 2),
        }
        if self.work is not None and len(self.steps) >= FEW_STEPS:  # a short run need not count its operations
            line |= self.work.at(speed)
        line |= {f"{name}_ms": round(spent / len(self.steps), 3) for name, spent in self.watch.read().items()}
        self.images = images
        self.restart()
        return line


class Stopwatch:
    """Time of the parts of a step on a device. On CUDA it records events, and reads them only in :meth:`read`.

    Args:
        device: the device that does the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a block as the part ``name``."""
        begin = self._now()
        yield
        self._spans.append((name, begin, self._now()))

    def read(self) -> dict[str, float]:
        """Milliseconds spent on each part since the last call."""
        if self.device.type == "cuda" and self._spans:
            self._spans[-1][2].synchronize()
        spent: dict[str, float] = defaultdict(float)
        for name, begin, end in self._spans:
            spent[name] += begin.elapsed_time(end) if self.device.type == "cuda" else 1e3 * (end - begin)
        self._spans = []
        return dict(spent)

    def _now(self) -> Any:
        """Seconds, or an event on CUDA."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
