"""The ODE whose velocity the network predicts: deterministic sampling, and an exact density by the change of variables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from diffusion.denoisers import Denoiser, Reverse, white, with_velocity
from diffusion.forward.process import ForwardProcess, UnitNoise
from diffusion.samplers.base import Sampler
from lbm_warp.checks import InputError
from lbm_warp.random import normal


@dataclass(frozen=True)
class ODE(Sampler):
    """Integrate du / dt = v(u, t) in the time t = 1 - k / K from noise to image.

    v is the mean velocity of the path given u_k (``ForwardProcess.velocity``), whose part under the operator is the operator's own
    time derivative: it carries the distribution of level K to that of the images without fresh noise, for any linear operator,
    with and without flow (Lipman et al. 2023; Ma et al. 2026). For a process without blur and flow it is the probability flow ODE
    (Song et al. 2021). With a random flow that mean needs a network that is told the flow, or one that predicts the velocity
    itself; it does not follow from a clean image that is the mean over all flows (:class:`Resample`).

    The operator must change smoothly with the level. Steps are Heun's, of second order, with two network calls each, or Euler's.
    The last one, from level 1, gives the clean image, or is Euler's where that is not known.
    """

    steps: int | None = 30
    order: Literal[1, 2] = 2
    """Order of the steps: 2, Heun's; 1, Euler's."""
    has_density: ClassVar[bool] = True
    integrates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in (1, 2):
            raise InputError(f"order must be 1 or 2, got {self.order!r}")

    def check(self, forward: ForwardProcess, denoiser: Denoiser) -> None:
        if not denoiser.gives_velocity:
            raise InputError(
                f"sampler ODE needs the velocity, which denoiser {type(denoiser).__name__} does not give: take Residual"
            )
        with_velocity(forward, "sampler ODE")
        if not forward.operator.linear:
            raise InputError(f"sampler ODE needs a linear operator, which {type(forward.operator).__name__} is not")

    def check_density(self, forward: ForwardProcess) -> None:
        super().check_density(forward)
        white(forward, "the likelihood of sampler ODE")

    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        if below == 0 and reverse.denoiser.gives_clean(reverse.forward):
            return reverse.clean(u, level)
        here = reverse.velocity(u, level)
        time = (level - below) / reverse.forward.levels
        there = u + time * here
        if below == 0 or self.order == 1:
            return there
        return u + 0.5 * time * (here + reverse.velocity(there, below))

    def log_density(
        self, reverse: Reverse, u: torch.Tensor, visited: Sequence[int], seed: torch.Tensor, probes: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Sampler.log_density`.

        With the divergence of v estimated by Hutchinson's random signs e, of expectation e (dv / du) e (Chen et al. 2018; Grathwohl
        et al. 2019),

            log p_1(u(1)) = log p_0(u(0)) - integral of div v dt.
        """
        signs = [normal(seed + number, u.shape, u.device).sign() for number in range(probes)]
        change = u.new_zeros(len(u), dtype=torch.float64)

        def slope(at: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                at = at.detach().requires_grad_()
                v = reverse.velocity(at, level)
                gradients = [torch.autograd.grad(v, at, sign, retain_graph=True)[0] for sign in signs]
            traces = [(sign * gradient).double().flatten(1).sum(dim=1) for sign, gradient in zip(signs, gradients, strict=True)]
            return v.detach(), torch.stack(traces).mean(dim=0)

        for below, level in pairwise(reversed(visited)):
            time = (level - below) / reverse.forward.levels
            here, trace = slope(u, below)
            guess = u - time * here
            if self.order == 2:
                there, other = slope(guess, level)
                guess, trace = u - 0.5 * time * (here + there), 0.5 * (trace + other)
            u, change = guess, change - time * trace
        return u, change
