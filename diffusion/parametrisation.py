"""What the network sees and predicts, and the clean image that its prediction implies.

With x the clean image, m = 1/2 and u_k = m + s_k (y_k - m) + sigma_k eps, y_k = A_k(x):

    target      the network sees     and predicts             clean image
    step        u_k                  A_{k-1}(x) - u_k         (none: the residual sampler adds the step)
    clean       u_k                  x - u_k                  u_k + F
    noise       u_k                  eps                      m + (u_k - m - sigma_k F) / (s_k d_k), mode by mode
    remainder   c_k (z_k - E y_k)    (x - base_k) / gain_k    base_k + gain_k F

d_k is the factor of a cosine mode in A_k (1 without blur). ``step`` is inverse heat dissipation's form, ``clean`` soft and cold
diffusion's, ``noise`` that of DDPM and blurring diffusion. ``remainder`` predicts what a Wiener filter leaves over. With
z_k = m + (u_k - m) / s_k = y_k + r_k eps and r_k = sigma_k / s_k, in every cosine mode

    base_k = E x + W_k (z_k - E y_k),    W_k = <x y_k> / (<y_k y_k> + r_k^2),

is the best linear estimate of x, gain_k^2 the mean over modes of <x x> - W_k <x y_k>, what is left to know, and 1 / c_k^2 the mean
of <y_k y_k> + r_k^2. So inputs and targets have variance one at every level, whatever the process. Noise that is not white has its
own r_k in every mode. Without blur and with one number for the spectrum (``spectrum`` flat, about the mean 1/2) this is the
preconditioning of EDM (Karras et al. 2022, table 1).

The base depends on the whole image, which a small network would have to learn to filter by itself before it can say what the filter
leaves over. With ``network_input`` estimates it is told: it sees the filter's estimate of the clean image and that of the noise,

    base_k   and   V_k (z_k - E y_k) over its rms,    V_k = r_k^2 / (<y_k y_k> + r_k^2).
"""

from __future__ import annotations

from typing import Protocol

import torch

from diffusion.corruption import Corruption
from diffusion.rng import seeds
from diffusion.statistics import Statistics
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines

Level = int | torch.Tensor


class Parametrisation(Protocol):
    """How a network stands for a clean image. ``level`` is one for all images, or int64 [N] on the CPU, 1 to K."""

    def example(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network sees of clean images at their levels, and what it has to predict.

        Args:
            u0: clean images, float32 [N, C, H, W] in [0, 1].
            level: their levels.
            seed: seeds of flow and noise, int64 [N].

        Returns:
            ``(inputs, target)``, float32 [N, C, H, W] each; the inputs [N, 2 C, H, W] for ``network_input`` estimates.
        """

    def inputs(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """What the network sees of images u_k, float32 [N, C, H, W] or [N, 2 C, H, W]."""

    def clean(self, prediction: torch.Tensor, u: torch.Tensor, level: Level) -> torch.Tensor:
        """The clean images that the network's prediction for images u_k implies, float32 [N, C, H, W]."""


class Plain:
    """The published forms, in which the network sees the image itself: targets ``step``, ``clean`` and ``noise``."""

    def __init__(self, corruption: Corruption) -> None:
        self.corruption = corruption
        self.target = corruption.process.target

    def example(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Parametrisation.example`."""
        if self.target == "step":
            before, u = self.corruption.pair(u0, level, seed)
        else:
            before, u = u0, self.corruption.corrupt(u0, level, seed)
        return u, self.corruption.unit_noise(seed, u0) if self.target == "noise" else before - u

    def inputs(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Parametrisation.inputs`."""
        return u

    def clean(self, prediction: torch.Tensor, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Parametrisation.clean`; not for the target ``step``, which implies none."""
        if self.target == "clean":
            return u + prediction
        signal, noise = (self.corruption.at(scale, level, u) for scale in (self.corruption.signal, self.corruption.noise))
        scaled = (u - 0.5 - noise * prediction) / signal
        if self.corruption.process.blur == "none":
            return 0.5 + scaled
        rows, columns = (cosines(side)[1].to(u) for side in u.shape[2:])
        return 0.5 + rows.T @ (rows @ scaled @ columns.T / self.corruption.transfer(level, u)) @ columns


class Remainder:
    """What a Wiener filter leaves over, in units of its rms: target ``remainder``."""

    def __init__(self, corruption: Corruption, statistics: Statistics) -> None:
        self.corruption = corruption
        self.statistics = statistics

    def example(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Parametrisation.example`."""
        u = self.corruption.corrupt(u0, level, seed)
        inputs, base, gain = self._estimate(u, level)
        return inputs, (u0 - base) / gain

    def inputs(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Parametrisation.inputs`."""
        return self._estimate(u, level)[0]

    def clean(self, prediction: torch.Tensor, u: torch.Tensor, level: Level) -> torch.Tensor:
        """As :meth:`Parametrisation.clean`."""
        _, base, gain = self._estimate(u, level)
        return base + gain * prediction

    def _estimate(self, u: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the network [N, C or 2 C, H, W], base [N, C, H, W] and gain [N, 1, 1, 1] at levels of images."""
        statistics = self.statistics
        signal, noise = (self.corruption.at(scale, level, u) for scale in (self.corruption.signal, self.corruption.noise))
        mean, variance, covariance = (
            self._interpolated(moment, level, u)
            for moment in (statistics.corrupted_mean, statistics.corrupted_variance, statistics.covariance)
        )
        power = self.corruption.noise_power
        noise_variance = (noise / signal) ** 2 * (1.0 if power is None else power.to(u))
        seen = variance + noise_variance
        wiener = covariance / seen
        gain = _mean(statistics.variance.to(u) - wiener * covariance).clamp_min(1e-12).sqrt()
        rows, columns = (cosines(side)[1].to(u) for side in u.shape[2:])
        excess = 0.5 + (u - 0.5) / signal - mean
        modes = rows @ excess @ columns.T
        base = statistics.mean.to(u) + rows.T @ (wiener * modes) @ columns
        # The network maps its input from [0, 1] to [-1, 1].
        if self.corruption.process.network_input == "image":
            return 0.5 + 0.5 * excess / _mean(seen).sqrt(), base, gain
        share = noise_variance / seen
        estimated_noise = rows.T @ (share * modes) @ columns / _mean(share * noise_variance).sqrt()
        return torch.cat([base, 0.5 + 0.5 * estimated_noise], dim=1), base, gain

    def _interpolated(self, moment: torch.Tensor, level: Level, like: torch.Tensor) -> torch.Tensor:
        """A moment between the levels at which it was measured, [N, C, H, W] or, for one level, [1, C, H, W]."""
        place = torch.as_tensor(level).reshape(-1).double() * ((len(moment) - 1) / self.corruption.levels)
        lower = place.floor().long().clamp(max=len(moment) - 2)
        weight = (place - lower).to(like.dtype)[:, None, None, None].to(like.device)
        moment = moment.to(like)
        return torch.lerp(moment[lower], moment[lower + 1], weight)


def _mean(moment: torch.Tensor) -> torch.Tensor:
    """Mean over channels and modes, [N, 1, 1, 1]."""
    return moment.mean(dim=(-3, -2, -1), keepdim=True)


def prediction_loss(
    corruption: Corruption, prediction: torch.Tensor, target: torch.Tensor, level: torch.Tensor, seed: torch.Tensor
) -> torch.Tensor:
    """Loss of predictions e = prediction - target, summed over pixels, mean over the batch.

    - ``squared``: e^2. For the target ``step`` it is that of Rissanen et al. (2023, section 3.3), for ``noise`` the simple loss of
      Ho et al. (2020).
    - ``absolute``: |e| (Bansal et al. 2022).
    - ``filtered``: (A_k e)^2 / sigma_k^2, soft score matching (Daras et al. 2023).

    Args:
        corruption: the forward process.
        prediction, target: what the network predicts and should predict, float32 [N, C, H, W].
        level, seed: levels and seeds of the images, int64 [N] on the CPU.
    """
    error = prediction - target
    if corruption.process.loss == "filtered":
        error = corruption.operator(error, level, seeds(seed, "flow")) / corruption.at(corruption.noise, level, error)
    error = error.abs() if corruption.process.loss == "absolute" else error.square()
    return error.flatten(1).sum(dim=1).mean()


def parametrisation(corruption: Corruption, statistics: Statistics | None) -> Parametrisation:
    """The parametrisation of a process.

    Raises:
        InputError: if it needs statistics and there are none.
    """
    if corruption.process.target != "remainder":
        return Plain(corruption)
    if statistics is None:
        raise InputError("target remainder needs the statistics of the training pictures")
    return Remainder(corruption, statistics)
