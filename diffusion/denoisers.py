"""Denoisers: what the network sees and predicts, the loss, and the clean image that the prediction implies.

With x the clean image, m = 1/2 and u_k = m + s_k (y_k - m) + sigma_k eps, y_k = A_k(x):

    denoiser    the network sees     and predicts             clean image
    Step        u_k                  m_{k-1} - u_k            (none: the residual sampler adds the step; m_k is u_k without noise)
    CleanImage  u_k                  x - u_k                  u_k + F
    Noise       u_k                  eps                      A_k^{-1} of m + (u_k - m - sigma_k F) / s_k
    Remainder   c_k (z_k - E y_k)    (x - base_k) / gain_k    base_k + gain_k F

``Step`` is inverse heat dissipation's form, ``CleanImage`` soft and cold diffusion's, ``Noise`` that of DDPM and blurring
diffusion. ``Remainder`` predicts what a Wiener filter leaves over. With z_k = m + (u_k - m) / s_k = y_k + r_k eps and r_k = sigma_k
/ s_k, in every cosine mode

    base_k = E x + W_k (z_k - E y_k),    W_k = <x y_k> / (<y_k y_k> + r_k^2),

is the best linear estimate of x, gain_k^2 the mean over modes of <x x> - W_k <x y_k>, what is left to know, and 1 / c_k^2 the mean
of <y_k y_k> + r_k^2. So inputs and targets have variance one at every level, whatever the process. Noise that is not white has its
own r_k in every mode. Without blur and with one number for the spectrum (``spectrum`` flat, about the mean 1/2) this is the
preconditioning of EDM (Karras et al. 2022, table 1).

The base depends on the whole image, which a small network would have to learn to filter by itself before it can say what the filter
leaves over. With ``network_input`` estimates it is told: it sees the filter's estimate of the clean image and that of the noise,

    base_k   and   V_k (z_k - E y_k) over its rms,    V_k = r_k^2 / (<y_k y_k> + r_k^2).

Drawings have many pixels that are exactly black or white. No linear filter knows of such a point mass, and where the noise is weak
the estimates hide it: a difference of r_k is small beside the contrast of the picture. With ``tell_ends`` the network also sees how
far each pixel is from either end, in units of the noise,

    tanh(z_k / 2 r_k)   and   tanh((z_k - 1) / 2 r_k).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from diffusion.forward.process import ForwardProcess, Level
from diffusion.forward.statistics import Statistics
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp.checks import InputError, check_choice
from lbm_warp.heat import from_modes, to_modes


@dataclass(frozen=True)
class Denoiser:
    """Base class: how a network stands for a clean image.

    A researcher's own denoiser writes :meth:`target` and :meth:`clean`, and others of these methods where they differ. ``forward``
    is the forward process everywhere, and ``level`` one level for all images, or int64 [N] on the CPU, 1 to K.
    """

    tell_flow: bool = False
    """Whether the network sees the flow beside the image, as more channels: how far it has carried the image, in pixels.
    With a strong flow it should: the mean image over all flows makes no exact sampler."""
    needs_statistics = False
    gives_step = False
    gives_velocity = True

    def gives_clean(self, forward: ForwardProcess) -> bool:
        """Whether the prediction implies the clean image under a forward process; true by default."""
        return True

    def check(self, forward: ForwardProcess) -> None:
        """Raise InputError if this denoiser makes no sense for a forward process."""
        if self.tell_flow and not forward.operator.told_channels:
            raise InputError(
                f"tell flow needs a frozen flow to be told; {type(forward.operator).__name__} has none, or one that moves"
            )

    def measure(self, dataset: Sequence[np.ndarray], forward: ForwardProcess, device: torch.device) -> Statistics:
        """The moments of the training pictures that it needs."""
        return Statistics.measure(dataset, forward.operator, device)

    def channels(self, channels: int, forward: ForwardProcess) -> int:
        """Channels of what the network sees of images of so many channels."""
        return channels + (forward.operator.told_channels if self.tell_flow else 0)

    def outputs(self, channels: int) -> int:
        """Channels of what the network predicts for images of so many channels; as many by default."""
        return channels

    def inputs(self, forward: ForwardProcess, u: torch.Tensor, level: Level) -> torch.Tensor:
        """What the network sees of images u_k, float32 [N, C', H, W]; the images themselves by default."""
        return u

    def seen(self, forward: ForwardProcess, inputs: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        """The inputs, and what the network is told beside them: values around 1/2, as the network maps them from [0, 1]."""
        if not self.tell_flow:
            return inputs
        told = forward.operator.told(level, seeds(seed, "flow"), Size(*inputs.shape[2:]), inputs.device)
        return torch.cat([inputs, 0.5 + 0.5 * told], dim=1)

    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        """What the network has to predict for images u_k, float32 [N, C, H, W]."""
        raise NotImplementedError(f"{type(self).__name__} needs a method target(forward, u0, u, level, seed)")

    def example(
        self, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor
    ) -> tuple[torch.Tensor, Any]:
        """What the network sees of clean images at their levels, and what :meth:`loss` compares its prediction with.

        Args:
            u0: clean images, float32 [N, C, H, W] in [0, 1].
            level: their levels.
            seed: seeds of flow and noise, int64 [N].
        """
        u = forward.corrupt(u0, level, seed)
        return self.seen(forward, self.inputs(forward, u, level), level, seed), self.target(forward, u0, u, level, seed)

    def loss(
        self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, level: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        """Loss of each image, summed over its pixels, float32 [N]; the squared error by default.

        For ``Step`` that is the loss of Rissanen et al. (2023, section 3.3), for ``Noise`` the simple loss of Ho et al. (2020).

        Args:
            prediction: what the network predicts, float32 [N, C, H, W].
            target: what :meth:`example` gave.
            level, seed: levels and seeds of the images, int64 [N] on the CPU.
        """
        return summed(difference(prediction, target).square())

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        """The clean images that the network's prediction for images u_k implies, float32 [N, C, H, W].

        Args:
            seed: seeds of the images, int64 [N].
        """
        raise InputError(f"{type(self).__name__} gives no clean image")

    def velocity(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        """du / dt that the prediction implies (:meth:`ForwardProcess.velocity`); arguments as for :meth:`clean`."""
        return forward.velocity(self.clean(forward, prediction, u, level, seed), u, level, seed)


def difference(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The prediction minus its target, which must have its shape."""
    if prediction.shape != target.shape:
        raise InputError(f"the target must have the shape of the prediction, {list(prediction.shape)}, got {list(target.shape)}")
    return prediction - target


def summed(error: torch.Tensor) -> torch.Tensor:
    """Sum over pixels, [N]."""
    return error.flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Step(Denoiser):
    """The network predicts the step to the level below."""

    gives_step = True
    gives_velocity = False

    def gives_clean(self, forward: ForwardProcess) -> bool:
        return False

    def check(self, forward: ForwardProcess) -> None:
        """As :meth:`Denoiser.check`: levels must differ."""
        super().check(forward)
        if forward.operator.unchanged:
            raise InputError("target step needs a blur: without one all levels are the same image")

    def example(
        self, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Denoiser.example`, with one pass for both levels."""
        before, u = forward.pair(u0, level, seed)
        return self.seen(forward, u, level, seed), before - u


@dataclass(frozen=True)
class CleanImage(Denoiser):
    """The network predicts the clean image, as a correction to what it sees."""

    error: Literal["squared", "absolute", "filtered"] = "squared"
    """Loss of the error e: squared, e^2; absolute, |e| (Bansal et al. 2022); filtered, (A_k e)^2 / sigma_k^2, soft score matching
    (Daras et al. 2023)."""

    def __post_init__(self) -> None:
        check_choice("error", self.error, ("squared", "absolute", "filtered"))

    def check(self, forward: ForwardProcess) -> None:
        super().check(forward)
        if self.error == "filtered":
            white(forward, "error filtered")
            if not forward.operator.linear:
                raise InputError("error filtered needs a linear operator, without a background: offset 0")

    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        return u0 - u

    def loss(
        self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, level: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        error = difference(prediction, target)
        if self.error == "filtered":
            error = forward.operator(error, level, seeds(seed, "flow")) / forward.at(forward.noise, level, error)
        return summed(error.abs() if self.error == "absolute" else error.square())

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        return u + prediction


@dataclass(frozen=True)
class Noise(Denoiser):
    """The network predicts the noise."""

    def check(self, forward: ForwardProcess) -> None:
        """As :meth:`Denoiser.check`: the image must follow from its noise."""
        super().check(forward)
        noisy(forward, "target noise")
        with_signal(forward, "target noise")
        if not forward.operator.invertible:
            raise InputError(
                "target noise needs an operator that loses nothing: no blur; or a blur floor above 0, walls and peclet 0"
            )

    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        return forward.unit_noise(seed, u0)

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        signal, noise = (forward.at(scale, level, u) for scale in (forward.signal, forward.noise))
        return 0.5 + forward.operator.invert((u - 0.5 - noise * prediction) / signal, level)


@dataclass(frozen=True)
class Remainder(Denoiser):
    """The network predicts what a Wiener filter leaves over, in units of its rms."""

    spectrum: Literal["measured", "flat"] = "measured"
    """Spectrum of the images: that of the training pictures, or one number for all modes (EDM)."""
    network_input: Literal["image", "estimates"] = "image"
    """What the network sees: the image, or what the Wiener filter makes of it, estimates of the clean image and of the noise."""
    tell_ends: bool = False
    """Whether the network also sees how far each pixel is from black and from white, in units of the noise: for pictures of which
    many pixels are exactly black or white."""
    needs_statistics = True

    def __post_init__(self) -> None:
        check_choice("spectrum", self.spectrum, ("measured", "flat"))
        check_choice("network input", self.network_input, ("image", "estimates"))
        if self.network_input == "estimates" and self.spectrum == "flat":
            raise InputError("network input estimates needs spectrum measured")

    def check(self, forward: ForwardProcess) -> None:
        super().check(forward)
        noisy(forward, "target remainder")
        with_signal(forward, "target remainder")
        if self.spectrum == "flat" and not forward.operator.unchanged:
            raise InputError("spectrum flat needs an operator that leaves images as they are")

    def measure(self, dataset: Sequence[np.ndarray], forward: ForwardProcess, device: torch.device) -> Statistics:
        return Statistics.measure(dataset, forward.operator, device, flat=self.spectrum == "flat")

    def channels(self, channels: int, forward: ForwardProcess) -> int:
        return super().channels(channels * ((2 if self.network_input == "estimates" else 1) + 2 * self.tell_ends), forward)

    def inputs(self, forward: ForwardProcess, u: torch.Tensor, level: Level) -> torch.Tensor:
        return self._estimate(forward, u, level)[0]

    def example(
        self, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Denoiser.example`, with one estimate for both."""
        inputs, base, gain = self._estimate(forward, forward.corrupt(u0, level, seed), level)
        return self.seen(forward, inputs, level, seed), (u0 - base) / gain

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        _, base, gain = self._estimate(forward, u, level)
        return base + gain * prediction

    def _estimate(self, forward: ForwardProcess, u: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the network [N, C to 4 C, H, W], base [N, C, H, W] and gain [N, 1, 1, 1] at levels of images."""
        statistics = forward.statistics_like(u)
        if statistics is None:
            raise InputError("target remainder needs the statistics of the training pictures")
        signal, noise = (forward.at(scale, level, u) for scale in (forward.signal, forward.noise))
        mean, variance, covariance = statistics.interpolated(level, forward.levels)
        power = forward.noise_power_like(u)
        noise_variance = (noise / signal) ** 2 * (1.0 if power is None else power)
        seen = variance + noise_variance
        wiener = covariance / seen
        gain = _mean(statistics.variance - wiener * covariance).clamp_min(1e-12).sqrt()
        z = 0.5 + (u - 0.5) / signal
        modes = to_modes(z - mean)
        base = statistics.mean + from_modes(wiener * modes)
        # The network maps its input from [0, 1] to [-1, 1].
        if self.network_input == "image":
            inputs = [0.5 + 0.5 * (z - mean) / _mean(seen).sqrt()]
        else:
            rest = noise_variance / seen
            inputs = [base, 0.5 + 0.5 * from_modes(rest * modes) / _mean(rest * noise_variance).sqrt()]
        if self.tell_ends:
            inputs += [0.5 + 0.5 * torch.tanh(0.5 * (z - end) * signal / noise) for end in (0.0, 1.0)]
        return torch.cat(inputs, dim=1), base, gain


@dataclass(frozen=True)
class Reverse:
    """A network that undoes a forward process, for images with these flows.

    Attributes:
        forward: the forward process.
        denoiser: what the network sees and predicts.
        network: called as ``network(inputs, level)`` with float32 [N, C', H, W] and int64 [N] on their device; gives float32
            [N, C, H, W].
        seed: seeds of the flows that corrupted the images, int64 [N].
    """

    forward: ForwardProcess
    denoiser: Denoiser
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    seed: torch.Tensor

    def predict(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """What the network predicts for images u_k, float32 [N, C, H, W]."""
        inputs = self.denoiser.seen(self.forward, self.denoiser.inputs(self.forward, u, level), level, self.seed)
        return self.network(inputs, torch.as_tensor(level).expand(len(u)).to(u.device))

    def clean(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """The clean images that the network predicts, float32 [N, C, H, W]."""
        return self.denoiser.clean(self.forward, self.predict(u, level), u, level, self.seed)

    def velocity(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        """du / dt of images u_k that the network predicts, float32 [N, C, H, W]."""
        return self.denoiser.velocity(self.forward, self.predict(u, level), u, level, self.seed)

    def mean(self, clean: torch.Tensor, level: Level) -> torch.Tensor:
        """Level k of clean images without its noise, in the flows of these images."""
        return self.forward.mean(clean, level, self.seed)


def noisy(forward: ForwardProcess, what: str) -> None:
    """Raise InputError unless a process has noise at every level above 0."""
    if not (forward.noise[1:] > 0.0).all():
        raise InputError(f"{what} needs noise above 0")


def with_signal(forward: ForwardProcess, what: str) -> None:
    """Raise InputError unless a process has some signal at every level."""
    if not (forward.signal > 0.0).all():
        raise InputError(f"{what} needs some signal at every level; that of level {int(forward.signal.argmin())} is 0")


def with_velocity(forward: ForwardProcess, what: str) -> None:
    """Raise InputError unless a process has noise at every level above 0, and enough levels for a derivative in time."""
    noisy(forward, what)
    if forward.levels < 3:
        raise InputError(f"{what} needs at least 3 levels, got {forward.levels}")


def white(forward: ForwardProcess, what: str) -> None:
    """Raise InputError unless a process has white noise at every level above 0."""
    noisy(forward, what)
    if forward.scales.noise_power(Size(8, 8)) is not None:
        raise InputError(f"{what} needs white noise: noise exponent 0")


def _mean(moment: torch.Tensor) -> torch.Tensor:
    """Mean over channels and modes, [N, 1, 1, 1]."""
    return moment.mean(dim=(-3, -2, -1), keepdim=True)
