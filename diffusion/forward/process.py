"""A forward process: an operator and scales.

    u_k = m + s_k (A_k(u_0) - m) + sigma_k eps

with the operator A_k of level k, the signal scale s_k and the noise scale sigma_k (images run from 0 to 1, their middle is m =
1/2). In units where images run from -1 to 1 this is s_k A_k(x_0) + 2 sigma_k eps for an operator that leaves a flat image as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from diffusion.forward.operators import Operator
from diffusion.forward.scales import Scales
from diffusion.forward.statistics import Statistics
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import from_modes, to_modes
from lbm_warp.random import normal

Level = int | torch.Tensor
Table = TypeVar("Table")
# Noise of unit variance for a level, in the shape of the images.
UnitNoise = Callable[[int], torch.Tensor]


@dataclass(frozen=True, eq=False)
class ForwardProcess:
    """What corrupts images of any size. The flow and the noise of an image are functions of its seed, whatever the level, the
    batch and the device.

    Attributes:
        operator: A_k, levels 0..K.
        scales: s_k and sigma_k.
        statistics: moments of the training pictures under it, where they are measured.

    Raises:
        InputError: from its methods and properties, if the scales are out of their ranges.
    """

    operator: Operator
    scales: Scales
    statistics: Statistics | None = None

    @property
    def levels(self) -> int:
        """K, the number of the most corrupted level."""
        return self.operator.levels

    @cached_property
    def _of_levels(self) -> tuple[np.ndarray, np.ndarray]:
        return self.scales.of_levels(self.levels)

    @property
    def signal(self) -> np.ndarray:
        """s_k of levels 0..K, float64 [K + 1]."""
        return self._of_levels[0]

    @property
    def noise(self) -> np.ndarray:
        """sigma_k of levels 0..K, float64 [K + 1]."""
        return self._of_levels[1]

    @property
    def ratio(self) -> np.ndarray:
        """Noise over signal, sigma_k / s_k, of levels 0..K, float64 [K + 1]; infinite without signal."""
        with np.errstate(divide="ignore"):
            return self.noise / self.signal

    @cached_property
    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Derivatives of s_k and sigma_k in the time t = 1 - k / K, float64 [K + 1] each; those of level 0 are level 1's.

        By differences of second order in 1 / K.
        """
        if self.levels < 3:
            raise InputError(f"a derivative in time needs at least 3 levels, got {self.levels}")
        slopes = [-self.levels * np.gradient(scale[1:], edge_order=2) for scale in (self.signal, self.noise)]
        signal, noise = (np.concatenate([slope[:1], slope]) for slope in slopes)
        return signal, noise

    def measured(self, statistics: Statistics | None) -> ForwardProcess:
        """The process with these moments of the training pictures."""
        return replace(self, statistics=statistics)

    def in_one_flow(self) -> ForwardProcess:
        """The process for many calls with the same seeds: see :meth:`Operator.in_one_flow`."""
        process = replace(self, operator=self.operator.in_one_flow())
        vars(process)["_placed"] = self._placed
        return process

    @cached_property
    def _placed(self) -> dict[tuple[Any, ...], Any]:
        """Tables on the devices where they are needed: they go there once."""
        return {}

    def _once(self, name: str, like: torch.Tensor, table: Callable[[], Table]) -> Table:
        key = name, like.device, like.dtype, like.shape[2:]
        if key not in self._placed:
            with torch.inference_mode(False):  # sampling makes them, and a gradient may need them later
                self._placed[key] = table()
        return self._placed[key]

    def statistics_like(self, u: torch.Tensor) -> Statistics | None:
        """The moments on the device of images, in their dtype."""
        return self._once("statistics", u, lambda: self.statistics and self.statistics.to(u))

    def noise_power_like(self, u: torch.Tensor, exponent: float = 1.0) -> torch.Tensor | None:
        """Variance of every cosine mode of the unit noise of images, or a power of it, [H, W] on their device, in their dtype; None
        for white noise."""

        def table() -> torch.Tensor | None:
            variance = self.scales.noise_power(Size(*u.shape[2:]))
            return None if variance is None else variance.pow(exponent).to(u)

        return self._once(f"noise power {exponent}", u, table)

    def mean(self, u0: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        """Level k without its noise, m + s_k (A_k(u_0) - m).

        Args:
            u0: clean images, float32 [N, C, H, W].
            level: k, 0 to K, one for all or int64 [N] on the CPU.
            seed: seeds of the images, int64 [N].

        Returns:
            float32 [N, C, H, W].
        """
        return self.scaled(self.operator(u0, level, seeds(seed, "flow")), level)

    def means(self, u0: torch.Tensor, levels: tuple[int, ...], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """:meth:`mean` at several levels of one trajectory, in one pass."""
        flow, of_all = seeds(seed, "flow"), [torch.full((len(u0),), level) for level in levels]
        images = self.operator.at(u0, of_all, flow)
        return tuple(self.scaled(u, level) for u, level in zip(images, levels, strict=True))

    def corrupt(self, u0: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        """Level k of clean images, u_k; arguments as for :meth:`mean`."""
        return self.mean(u0, level, seed) + self.at(self.noise, level, u0) * self.unit_noise(seed, u0)

    def pair(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Level k - 1 without its noise and level k with it, for levels 1 to K; arguments as for :meth:`mean`."""
        before, after = self.operator.pair(u0, level, seeds(seed, "flow"))
        noise = self.at(self.noise, level, u0) * self.unit_noise(seed, u0)
        return self.scaled(before, level - 1), self.scaled(after, level) + noise

    def trajectory(self, u0: torch.Tensor, seed: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """``(k, u_k)`` for all levels 0 to K in one pass; arguments as for :meth:`mean`."""
        noise = self.unit_noise(seed, u0)
        for level, u in self.operator.trajectory(u0, seeds(seed, "flow")):
            yield level, self.scaled(u, level) + float(self.noise[level]) * noise

    def velocity(self, clean: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        """du / dt of the path of clean images through images u_k, in the time t = 1 - k / K from noise to image:

            s' (y - m) + s y' + sigma' eps,    y = A_k(x),    eps = (u_k - m - s (y - m)) / sigma.

        The derivative of y is the operator's own (``Operator.rate``). With x the mean of the clean images given u_k and the flow,
        and a linear operator, this is the velocity of the ODE that carries the distribution of level K to that of the images
        (Lipman et al. 2023, theorem 1).

        Args:
            clean, u: float32 [N, C, H, W].
            level: k, 1 to K, one for all or int64 [N] on the CPU.
            seed: seeds of the images, int64 [N].
        """
        y, slope = self.operator.rate(clean, level, seeds(seed, "flow"))
        signal, noise = (self.at(scale, level, u) for scale in (self.signal, self.noise))
        signal_rate, noise_rate = (self.at(scale, level, u) for scale in self.rates)
        eps = (u - 0.5 - signal * (y - 0.5)) / noise
        return signal_rate * (y - 0.5) + signal * slope + noise_rate * eps

    def scaled(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """Images with the contrast of a level, m + s_k (u - m)."""
        if (self.signal == 1.0).all():
            return u
        return 0.5 + self.at(self.signal, level, u) * (u - 0.5)

    def unit_noise(self, seed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """eps of unit variance, in the shape of ``like`` [N, C, H, W]."""
        return self.coloured(normal(seeds(seed, "noise"), like.shape, like.device))

    def coloured(self, white: torch.Tensor) -> torch.Tensor:
        """White noise [N, C, H, W] with the spectrum of the process's noise."""
        amplitude = self.noise_power_like(white, 0.5)
        return white if amplitude is None else from_modes(amplitude * to_modes(white))

    def whitened(self, noise: torch.Tensor) -> torch.Tensor:
        """Cosine modes of noise [N, C, H, W] in units of their standard deviation; white noise as it is, pixel by pixel."""
        amplitude = self.noise_power_like(noise, 0.5)
        return noise if amplitude is None else to_modes(noise) / amplitude

    def seeded_noise(self, seed: torch.Tensor, like: torch.Tensor) -> UnitNoise:
        """Noise of unit variance in the shape of ``like`` [N, C, H, W] for all levels, from one seed a sample, int64 [N].

        The seeds of all levels go to the device at once.
        """
        table = seeds(seed[None], "noise", np.arange(self.levels + 1)[:, None]).to(like.device, non_blocking=True)
        return lambda level: self.coloured(normal(table[level], like.shape, like.device))

    def at(self, scale: np.ndarray, level: Level, like: torch.Tensor) -> torch.Tensor | float:
        """A scale, [K + 1], at one level for all images, or at one level each as [N, 1, 1, 1]."""
        if isinstance(level, int):
            return float(scale[level])
        return torch.from_numpy(scale)[level].to(like.device, like.dtype, non_blocking=True)[:, None, None, None]
