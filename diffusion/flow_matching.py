"""Flow matching: the network predicts the clean image, the noise or the velocity, and the loss compares one of the three.

Image and noise lie on a path u_t = t A_t(x) + (1 - t) eps in units where images run from -1 to 1, with the operator A_t and the
time t = 1 - k / K from noise to image (``LinearPath``; other scales serve as well). Its velocity is

    v = du / dt = A_t(x) + t dA_t(x) / dt - eps.

Without blur and flow this is conditional flow matching (Lipman et al. 2023) and rectified flow (Liu et al. 2023); with blur, heat
dissipation flow matching (Ma et al. 2026, arXiv 2605.19371), here with a flow as well. From what is predicted the others follow:

    from x      eps = (u - s A x) / sigma, v from both
    from eps    x = A^{-1} (u - sigma eps) / s
    from v      ((s' - s sigma' / sigma) A + s A') x = v - (sigma' / sigma) u

The last two are solved mode by mode,

so all nine pairs of prediction and loss can be built where no mode is lost (no blur, or a blur floor above 0 and no flow). With a
flow, the clean image goes with any loss, and the velocity with its own. Near level K an error of a predicted noise is divided by
the little signal that is left there (``least_signal``), and a small network shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from diffusion.denoisers import Denoiser, difference, summed, with_signal, with_velocity
from diffusion.forward.process import ForwardProcess, Level
from diffusion.size import Size
from lbm_warp.checks import InputError, check_choice
from lbm_warp.heat import from_modes, to_modes

Quantity = Literal["clean", "noise", "velocity"]


@dataclass(frozen=True)
class FlowMatching(Denoiser):
    """What the network predicts, and what the loss compares, in units where images run from -1 to 1."""

    prediction: Quantity = "clean"
    """What the network predicts: the clean image x, the noise eps or the velocity v."""
    loss_in: Quantity = "velocity"
    """What the loss compares, which follows from the prediction."""

    def __post_init__(self) -> None:
        check_choice("prediction", self.prediction, get_args(Quantity))
        check_choice("loss in", self.loss_in, get_args(Quantity))

    def gives_clean(self, forward: ForwardProcess) -> bool:
        return self.prediction == "clean" or self._solves(forward)

    def check(self, forward: ForwardProcess) -> None:
        super().check(forward)
        with_velocity(forward, "flow matching")
        with_signal(forward, "flow matching")
        if not self.gives_clean(forward) and not self.prediction == self.loss_in == "velocity":
            raise InputError(
                f"prediction {self.prediction} with loss in {self.loss_in} needs an operator that loses no mode (no blur, or a "
                "blur floor above 0 and no flow); with others predict clean, or velocity with its own loss"
            )

    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> Any:
        """The images u_k, and what the loss compares."""
        truth = {
            "clean": lambda: 2.0 * u0 - 1.0,
            "noise": lambda: forward.unit_noise(seed, u0),
            "velocity": lambda: 2.0 * forward.velocity(u0, u, level, seed),
        }
        return u, truth[self.loss_in]()

    def loss(
        self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, level: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        u, truth = target
        implied = {
            "clean": lambda: 2.0 * self.clean(forward, prediction, u, level, seed) - 1.0,
            "noise": lambda: self._noise(forward, prediction, u, level, seed),
            "velocity": lambda: 2.0 * self.velocity(forward, prediction, u, level, seed),
        }
        return summed(difference(implied[self.loss_in](), truth).square())

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        if self.prediction == "clean":
            return 0.5 + 0.5 * prediction
        signal, noise = (forward.at(scale, level, u) for scale in (forward.signal, forward.noise))
        if self.prediction == "noise":
            return 0.5 + forward.operator.invert((u - 0.5 - noise * prediction) / signal, level)
        signal_rate, noise_rate = (forward.at(rate, level, u) for rate in forward.rates)
        rest = 0.5 * prediction - noise_rate / noise * (u - 0.5)
        return 0.5 + self._divided(forward, rest, signal_rate - signal * noise_rate / noise, signal, level)

    def velocity(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        return 0.5 * prediction if self.prediction == "velocity" else super().velocity(forward, prediction, u, level, seed)

    def _noise(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        """The noise that the prediction implies."""
        if self.prediction == "noise":
            return prediction
        mean = forward.mean(self.clean(forward, prediction, u, level, seed), level, seed)
        return (u - mean) / forward.at(forward.noise, level, u)

    def _solves(self, forward: ForwardProcess) -> bool:
        """Whether the image follows from noise or velocity."""
        return forward.operator.diagonal and forward.operator.invertible

    def _divided(self, forward: ForwardProcess, rest: torch.Tensor, of_value: Any, of_slope: Any, level: Level) -> torch.Tensor:
        """The solution x of (a A + b A') x = rest, mode by mode."""
        operator, size = forward.operator, Size(*rest.shape[2:])
        if operator.unchanged:
            return rest / of_value
        value, slope = (part.to(rest) for part in operator.transfer_rate(level, size))
        return from_modes(to_modes(rest) / (of_value * value + of_slope * slope))
