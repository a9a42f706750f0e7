"""Forward processes: how an image is destroyed, and what the network is asked to undo.

Level k of every process here is u_k = A_k(u_0), the advection-diffusion operator of ``lbm_warp``. The network sees it under a
little Gaussian noise and learns the less corrupted u_{k-1} (inverse heat dissipation, Rissanen et al. 2023). What sets the
processes apart is the flow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from diffusion.rng import seeds
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence, Turbulence
from lbm_warp.checks import InputError, check_boundary, check_integer, check_name, check_number
from lbm_warp.random import normal

TURBULENCE: dict[str, Turbulence] = {
    "curl-noise": CurlNoise(),
    "spectral": SpectralTurbulence(),
    "compressible": SpectralTurbulence(compressible=True),
}


@dataclass(frozen=True)
class Flow:
    """The flow that sets a process apart: Peclet number, kind of turbulence, and the background it acts on."""

    peclet: float
    turbulence: str = "curl-noise"
    offset: float = 0.0


# The compressible field on a background of 9.5 is what the paper's public research code amounts to: transport, plus noise with the
# flow's own spectrum. At Pe = 0.1 a particle hardly moves; at Pe = 2 pure transport has as much to show.
FLOWS = {
    "beyond-blur": Flow(peclet=0.1, turbulence="compressible", offset=9.5),
    "beyond-blur-curl": Flow(peclet=2.0),
    "ihd": Flow(peclet=0.0),
}


@dataclass(frozen=True)
class ForwardProcess:
    """A corruption process for square images of any size.

    Raises:
        InputError: if a value is out of its range.
    """

    peclet: float
    """Advection against diffusion, >= 0."""
    turbulence: Literal["curl-noise", "spectral", "compressible"]
    """Kind of velocity field."""
    offset: float
    """Background the flow acts on (felt by compressible flows only)."""
    boundary: str = "wall"
    """``wall`` or ``periodic``."""
    sigma_min: float = 0.5
    """Blur of level 1 [pixels]."""
    sigma_max: float = 0.5
    """Blur of level K [image sides]."""
    levels: int = 60
    """K, the number of the most corrupted level."""
    noise: float = 0.01
    """Standard deviation of the Gaussian noise on what the network sees in training, > 0."""
    sampling_noise: float = 1.25
    """Standard deviation of the noise added in each sampling step, in units of ``noise``, >= 0."""

    def __post_init__(self) -> None:
        if self.turbulence not in TURBULENCE:
            raise InputError(f"turbulence must be one of {', '.join(TURBULENCE)}, got {self.turbulence!r}")
        check_boundary(self.boundary)
        check_number("peclet", self.peclet, 0.0)
        check_number("noise", self.noise, 1e-6, 1.0)
        check_number("sampling noise", self.sampling_noise, 0.0)
        check_integer("levels", self.levels, 1)

    def operator(self, size: int) -> AdvectionDiffusion:
        """The corruption operator for images of ``size`` x ``size`` pixels."""
        schedule = Schedule.geometric(self.sigma_min, self.sigma_max * size, self.levels)
        return AdvectionDiffusion(schedule, self.peclet, TURBULENCE[self.turbulence], self.boundary, self.offset)

    def training_pair(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network sees at level k, and what it should make of it.

        Args:
            u0: clean images, float32 [N, C, S, S].
            level: k, int64 [N], 1 to K.
            seed: seeds of flow and noise, int64 [N].

        Returns:
            ``(u_k + noise, u_{k-1})``, float32 [N, C, S, S] each.
        """
        target, corrupted = self.operator(u0.shape[-1]).pair(u0, level, seeds(seed, "flow"))
        return corrupted + self.noise * normal(seeds(seed, "noise"), u0.shape, u0.device), target


def named_flow(name: str) -> Flow:
    """The flow of a process by its name.

    Raises:
        InputError: if there is none, with the nearest name.
    """
    check_name("process", name, FLOWS)
    return FLOWS[name]
