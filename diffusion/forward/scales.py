"""Scales of a forward process: how the contrast of the images falls with the level, and how the noise grows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from diffusion.size import Size
from lbm_warp.checks import InputError, check_number


class Scales:
    """Signal s_k and noise sigma_k of levels 1..K, for images from 0 to 1. Subclass it and write one method or both.

    ``t`` is the level as a share k / K of all, float64 [K], rising to 1.
    """

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        """Signal scale s, 0 to 1, float64 [K]; one by default."""
        return np.ones_like(t)

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        """Standard deviation of the noise, float64 [K]; none by default."""
        return np.zeros_like(t)

    def noise_power(self, size: Size) -> torch.Tensor | None:
        """Variance of every cosine mode of the unit noise, mean one, float64 [H, W]; None for white noise."""
        return None

    def of_levels(self, levels: int) -> tuple[np.ndarray, np.ndarray]:
        """Signal and noise of levels 0..K, float64 [K + 1] each; level 0 is the clean image.

        Raises:
            InputError: if they are not finite, or out of their ranges.
        """
        t = np.arange(1, levels + 1) / levels
        signal, noise = (np.asarray(scale, dtype=np.float64) for scale in (self.signal_at(t), self.noise_at(t)))
        for name, scale, most in (("signal_at", signal, 1.0), ("noise_at", noise, np.inf)):
            if scale.shape != t.shape or not np.isfinite(scale).all() or (scale < 0.0).any() or (scale > most).any():
                raise InputError(
                    f"{type(self).__name__}.{name} must give a finite number for each of {levels} levels, 0 to {most:g}"
                )
        return np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])


@dataclass(frozen=True)
class _Noisy(Scales):
    noise: float = 0.5
    """Standard deviation of the Gaussian noise at level K, 0 to 1; 0.5 is usual where the signal falls to zero."""
    noise_exponent: float = 0.0
    """Exponent p of the noise's spectrum: the amplitude of the cosine mode with k half waves a side is ~ (1 + k)^-p. 0 is white
    noise, negative is blue, 1 about as the spectrum of photographs, 5/3 that of the waves of beyond-blur."""

    def __post_init__(self) -> None:
        check_number("noise", self.noise, 0.0, 1.0)
        check_number("noise exponent", self.noise_exponent, -4.0, 4.0)

    def noise_power(self, size: Size) -> torch.Tensor | None:
        if not self.noise_exponent:
            return None
        k = torch.hypot(*torch.meshgrid(*(torch.arange(side) * (size.shorter / side) for side in size), indexing="ij")).double()
        power = (1.0 + k) ** (-2.0 * self.noise_exponent)
        return power / power.mean()


@dataclass(frozen=True)
class ConstantNoise(_Noisy):
    """Full contrast and the same noise at every level."""

    noise: float = 0.01

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return self.noise * np.ones_like(t)


@dataclass(frozen=True)
class FirstQuarter(_Noisy):
    """Full contrast, and noise that grows by a factor of ten over the first quarter of the levels and stays: soft diffusion (Daras
    et al. 2023, section 5)."""

    noise: float = 0.1

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return self.noise * 10.0 ** (np.minimum(4.0 * t, 1.0) - 1.0)


@dataclass(frozen=True)
class VariancePreserving(_Noisy):
    """Noise that grows as sqrt(1 - s^2) while the contrast s falls, as a subclass says."""

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return self.noise * np.sqrt(1.0 - self.signal_at(t) ** 2)


@dataclass(frozen=True)
class LinearBeta(VariancePreserving):
    """sqrt(abar_k) with beta from 1e-4 to 0.02 over 1,000 steps (Ho et al. 2020, section 4); of K steps each counts 1,000 / K."""

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        betas = 1.0 - (1.0 - np.linspace(1e-4, 0.02, len(t))) ** (1000.0 / len(t))
        return np.sqrt(np.cumprod(1.0 - betas))


@dataclass(frozen=True)
class Cosine(VariancePreserving):
    """Cosine of an angle that grows linearly, with log-SNR from 10 to -10 (Hoogeboom and Salimans 2023, appendix A)."""

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        first, last = np.arctan(np.exp(-5.0)), np.arctan(np.exp(5.0))
        return np.cos(first + t * (last - first))


@dataclass(frozen=True)
class LogSNR(VariancePreserving):
    """Noise over signal from 0.004 to 40, evenly spaced in its logarithm: s = 1 / sqrt(1 + ratio^2)."""

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        ratio = 0.004 * 1e4 ** share(t)
        return 1.0 / np.sqrt(1.0 + ratio**2)


@dataclass(frozen=True)
class LinearPath(_Noisy):
    """The straight path of flow matching: with the time t from 0 (noise) to 1 (image), the signal is t and the noise 1 - t of its
    own at level K (Lipman et al. 2023, section 4.1; Liu et al. 2023). A little of the signal is left at level K, so that image,
    noise and velocity follow from each other at every level."""

    least_signal: float = 1e-3
    """Signal at level K, 1e-6 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("least signal", self.least_signal, 1e-6, 1.0)

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        return 1.0 - (1.0 - self.least_signal) * t

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return self.noise * t


def share(t: np.ndarray) -> np.ndarray:
    """0 at level 1 to 1 at level K; a single level is the last one."""
    return (t - t[0]) / (t[-1] - t[0]) if len(t) > 1 else np.ones(1)
