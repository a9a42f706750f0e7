"""The residual sampler: the predicted step and fresh noise, level by level.

Fewer steps than levels. The network predicts the step to the level below, u_{k-1} - u_k. A step from level k to j < k - 1
multiplies that prediction. Under blur alone a cosine mode of wavenumber kappa obeys

    d u / d log(sigma) = -kappa^2 sigma^2 u,

so to first order in log(sigma) the step to level j is the predicted one times

    m = log(sigma_k / sigma_j) / log(sigma_k / sigma_{k-1}).

The exact factor of the mode is exp(x (1 - s)) with x = kappa^2 sigma_k^2 / 2 and s = (sigma_j / sigma_k)^2; this one is 1 + x log(1
/ s). The two agree to second order in 1 - s at x = 1. In pictures, whose power falls as 1 / kappa^2, the modes that change in a
step have the power x exp(-2 x) dx, with mean x = 1. A step linear in sigma^2 would agree to second order only at x = 0.

The prediction also removes sampling noise, in the modes that the blur has erased. All noise is removed in one step; multiplied by m
the step would add m - 1 times the noise. So only the part that undoes blur is multiplied: each cosine mode by the Wiener filter
that takes the prediction p = u_k + residual for the signal and the residual for the noise,

    u_j = p + (m - 1) W residual,    W = p^2 / (p^2 + residual^2).

With as many steps as levels m is 1, and the sampler is the one the network was trained for. Fewer steps add less noise in all. A
sampling noise larger by sqrt(m) adds the same variance in all, and helps where noise is the only difference between samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from diffusion.denoisers import Reverse
from diffusion.forward.process import ForwardProcess, UnitNoise
from diffusion.samplers.base import Sampler, gaussian_divergence
from diffusion.size import Size
from lbm_warp.heat import from_modes, to_modes


@dataclass(frozen=True)
class Residual(Sampler):
    """u_{k-1} = v + network(v, k) with v = u_k + delta eps (Rissanen et al. 2023, algorithm 2).

    The noise lets one corrupted image become many different pictures.
    """

    sampling_noise: float = 1.25
    needs_step: ClassVar[bool] = True
    has_density: ClassVar[bool] = True

    def begin(self, forward: ForwardProcess, u: torch.Tensor, level: int, noise: UnitNoise) -> torch.Tensor:
        """As :meth:`Sampler.begin`: every step adds its noise itself, the first one too."""
        return u

    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        u = u + self.sampling_noise * float(reverse.forward.noise[level]) * noise(level)
        residual = reverse.predict(u, level)
        u = u + residual
        if below < level - 1:
            factor = reverse.forward.operator.stretch(level, below, Size(*u.shape[2:]))
            u = u + (factor - 1.0) * _wiener(residual, u)
        return u

    def last_image(self, reverse: Reverse, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return u + reverse.predict(u, level)

    def end_deviation(self, forward: ForwardProcess) -> float:
        """As :meth:`Sampler.end_deviation`: the noise of the sampler."""
        return self.sampling_noise * float(forward.noise[1])

    def divergence(
        self, reverse: Reverse, x: torch.Tensor, u: torch.Tensor, level: torch.Tensor, below: torch.Tensor
    ) -> torch.Tensor:
        """As :meth:`Sampler.divergence`: q(u_j | u_k, x) = q(u_j | x) = N(M_j(x), sigma^2), p = N(what the network gives, delta^2)
        (Rissanen et al. 2023, equation 11)."""
        error = reverse.mean(x, below) - (u + reverse.predict(u, level))
        own = torch.from_numpy(reverse.forward.noise)[below]
        return gaussian_divergence(reverse.forward, error, own, self.sampling_noise * own)


def _wiener(residual: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """The part of the residual that undoes blur: every cosine mode multiplied by its Wiener filter."""
    signal, rest = to_modes(prediction), to_modes(residual)
    return from_modes(rest * signal.square() / (signal.square() + rest.square()).clamp_min(1e-12))
