"""Densities of the training levels: how often each level is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffusion.denoisers import noisy
from diffusion.forward.process import ForwardProcess
from diffusion.rng import below, uniform
from lbm_warp.checks import InputError, check_number


class Density:
    """Base class: subclass it and write :meth:`weights`."""

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        """Relative frequencies of the levels 1..K, >= 0, float64 [K]."""
        raise NotImplementedError(f"{type(self).__name__} needs a method weights(forward)")

    def check(self, forward: ForwardProcess) -> None:
        """Raise InputError if the density makes no sense for a forward process."""
        self.shares(forward)

    def shares(self, forward: ForwardProcess) -> np.ndarray:
        """Shares of the levels 1..K among the training levels, float64 [K]; their sum is one."""
        weights = np.asarray(self.weights(forward), dtype=np.float64)
        if weights.shape != (forward.levels,) or not np.isfinite(weights).all() or (weights < 0.0).any() or not weights.any():
            kind = type(self).__name__
            raise InputError(
                f"{kind}.weights must give a finite number >= 0 for each of {forward.levels} levels, and not only zeros"
            )
        return weights / weights.sum()

    def draw(self, forward: ForwardProcess, seed: torch.Tensor) -> torch.Tensor:
        """A training level for every seed, int64 [N], 1 to K."""
        return 1 + torch.from_numpy(np.searchsorted(self.shares(forward).cumsum()[:-1], uniform(seed, "level").numpy()))


@dataclass(frozen=True)
class Uniform(Density):
    """All levels alike."""

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        return np.ones(forward.levels)

    def draw(self, forward: ForwardProcess, seed: torch.Tensor) -> torch.Tensor:
        return 1 + below(forward.levels, seed, "level")


@dataclass(frozen=True)
class LogNormal(Density):
    """A log-normal noise-to-signal ratio, as in EDM (Karras et al. 2022, table 1)."""

    log_mean: float = -1.2
    """Mean of the natural logarithm of that ratio, of images from -1 to 1; by default EDM's."""
    log_deviation: float = 1.2
    """Standard deviation of that logarithm, > 0."""

    def __post_init__(self) -> None:
        check_number("log mean", self.log_mean, -20.0, 20.0)
        check_number("log deviation", self.log_deviation, 0.01, 100.0)

    def check(self, forward: ForwardProcess) -> None:
        noisy(forward, "a log-normal density of levels")
        super().check(forward)

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        with np.errstate(divide="ignore"):
            deviation = (np.log(2.0 * forward.noise[1:] / forward.signal[1:]) - self.log_mean) / self.log_deviation
        return np.exp(-0.5 * deviation**2)


@dataclass(frozen=True)
class LogitNormal(Density):
    """A logit-normal time t = 1 - k / K, which runs from noise to image: most of the training between the two (Esser et al. 2024,
    section 3.1)."""

    logit_mean: float = 0.0
    """Mean of log(t / (1 - t))."""
    logit_deviation: float = 1.0
    """Standard deviation of that logarithm, > 0."""

    def __post_init__(self) -> None:
        check_number("logit mean", self.logit_mean, -20.0, 20.0)
        check_number("logit deviation", self.logit_deviation, 0.01, 100.0)

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        # The middle of each level's share of the time.
        t = 1.0 - (np.arange(forward.levels) + 0.5) / forward.levels
        deviation = (np.log(t / (1.0 - t)) - self.logit_mean) / self.logit_deviation
        return np.exp(-0.5 * deviation**2) / (t * (1.0 - t))
