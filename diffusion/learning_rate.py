"""Learning rates: the step size of the optimiser over a training.

A schedule of one's own is a frozen dataclass with one method:

    @dataclass(frozen=True)
    class CosineDecay(LearningRate):
        peak: float = 1e-3

        def at(self, first, last, images):
            return 0.5 * self.peak * (1.0 + math.cos(math.pi * first / images))
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lbm_warp.checks import check_integer, check_number


class LearningRate:
    """Base class of learning rates. Subclass it as a frozen dataclass and write :meth:`at`."""

    def at(self, first: int, last: int, images: int) -> float:
        """The learning rate of one step.

        Args:
            first: images seen before the step, from 0.
            last: images seen after it, at most ``images``.
            images: length of the training.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method at(first, last, images)")

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""


@dataclass(frozen=True)
class WarmUpAndDecay(LearningRate):
    """A learning rate that grows linearly from zero, stays, and falls linearly to zero."""

    learning_rate: float = 1e-3
    """Adam's step size, > 0."""
    warmup: int = 6_400
    """Images over which the learning rate grows linearly from zero."""
    decay: float = 0.0
    """Share of the training, at its end, over which the learning rate falls linearly to zero, 0 to 1."""

    def at(self, first: int, last: int, images: int) -> float:
        rising = min(1.0, last / max(self.warmup, 1))
        falling = min(1.0, (images - first) / max(self.decay * images, 1.0))
        return self.learning_rate * min(rising, falling)

    def validate(self) -> None:
        check_number("learning rate", self.learning_rate, 1e-12, 10.0)
        check_integer("warmup", self.warmup, 0)
        check_number("decay", self.decay, 0.0, 1.0)


@dataclass(frozen=True)
class InverseSquareRoot(LearningRate):
    """A learning rate that grows linearly from zero, stays, and falls as 1 / sqrt(images), whatever the length of the training.

    Karras et al. 2024 (EDM2, arXiv:2312.02696).
    """

    learning_rate: float = 1e-3
    """Adam's step size, > 0."""
    warmup: int = 6_400
    """Images over which the learning rate grows linearly from zero."""
    constant: int = 64_000
    """Images after which it falls."""

    def at(self, first: int, last: int, images: int) -> float:
        return self.learning_rate * min(1.0, last / max(self.warmup, 1)) / math.sqrt(max(last / self.constant, 1.0))

    def validate(self) -> None:
        check_number("learning rate", self.learning_rate, 1e-12, 10.0)
        check_integer("warmup", self.warmup, 0)
        check_integer("constant", self.constant, 1)
