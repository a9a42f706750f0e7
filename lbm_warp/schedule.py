"""The corruption schedule: the blur width of levels 0 to K, both included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lbm_warp.checks import InputError, check_integer, check_number

MOST_LEVELS = 100_000


@dataclass(frozen=True, eq=False, init=False)
class Schedule:
    """Blur width of every corruption level.

    Level 0 is the clean image, level K the most corrupted one. A Gaussian blur of standard deviation sigma is the solution of the
    heat equation at alpha t = sigma^2 / 2. So the blur width measures time, and all levels lie on one trajectory.

    Args:
        sigma: blur width of levels 0..K [pixels], shape [K + 1], sigma[0] = 0, strictly increasing, finite.

    Raises:
        InputError: if ``sigma`` is not such a sequence.
    """

    sigma: np.ndarray

    def __init__(self, sigma: Sequence[float] | np.ndarray) -> None:
        try:
            sigma = np.array(sigma, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"sigma must be numbers, those of levels 0, 1, ..., got {type(sigma).__name__}") from None
        if sigma.ndim != 1 or len(sigma) < 2:
            raise InputError(f"sigma must hold level 0 and at least one more, got shape {sigma.shape}")
        if not np.isfinite(sigma).all() or sigma[0] != 0.0 or (np.diff(sigma) <= 0.0).any():
            raise InputError("sigma must be finite, start at 0 for the clean image and grow with every level")
        sigma.setflags(write=False)
        object.__setattr__(self, "sigma", sigma)

    @classmethod
    def geometric(cls, sigma_min: float = 0.5, sigma_max: float = 20.0, levels: int = 200) -> Schedule:
        """Blur widths in geometric progression, the schedule of inverse heat dissipation (Rissanen et al. 2023).

        Args:
            sigma_min: blur width of level 1 [pixels], > 0.
            sigma_max: blur width of level K [pixels], >= sigma_min (equal only for a single level).
            levels: K, 1 to 100,000, without level 0.

        Raises:
            InputError: if a value is out of range.
        """
        check_integer("levels", levels, 1, MOST_LEVELS)
        for name, value in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
            check_number(name, value, 0.0)
        if sigma_min == 0.0:
            raise InputError("sigma_min must be positive, got 0")
        if sigma_max < sigma_min:
            raise InputError(f"sigma_max must be at least sigma_min = {sigma_min:g} px, got {sigma_max:g} px")
        if levels == 1:
            return cls(np.array([0.0, sigma_max]))
        return cls(np.concatenate([[0.0], np.geomspace(sigma_min, sigma_max, levels)]))

    @property
    def levels(self) -> int:
        """K, the index of the most corrupted level."""
        return len(self.sigma) - 1

    def fourier(self, length: int) -> np.ndarray:
        """Fourier number alpha t / L^2 = sigma^2 / (2 L^2) of levels 0..K, float64 [K + 1].

        ``length`` is the shorter side of the image [pixels].
        """
        return np.asarray(0.5 * (self.sigma / length) ** 2)
