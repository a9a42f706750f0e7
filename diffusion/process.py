"""Forward processes: how an image is destroyed, and what the network is asked about it.

All are one formula, with the advection-diffusion operator A_k of ``lbm_warp`` up to the blur width of level k, a signal scale s_k
and a noise scale sigma_k (images run from 0 to 1, their middle is m = 1/2):

    u_k = m + s_k (A_k(u_0) - m) + sigma_k eps.

In units where images run from -1 to 1 this is s_k A_k(x_0) + 2 sigma_k eps, because A_k leaves a flat image alone. Earlier methods
are choices of its numbers (``PROCESSES``); a new one is made by naming others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from diffusion.rng import seeds
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence, Turbulence
from lbm_warp.checks import InputError, Integers, check_boundary, check_choice, check_integer, check_name, check_number
from lbm_warp.planner import Plan
from lbm_warp.random import normal

TURBULENCE: dict[str, Turbulence] = {
    "curl-noise": CurlNoise(),
    "spectral": SpectralTurbulence(),
    "compressible": SpectralTurbulence(compressible=True),
}

# Blur widths of levels 1..K at t = k / K, from the narrowest to the widest.
BLUR: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    # Inverse heat dissipation (Rissanen et al. 2023, section 3.1): logarithmically spaced.
    "geometric": lambda t, low, high: low * (high / low) ** ((t - t[0]) / max(t[-1] - t[0], 1e-300)),
    # Blurring diffusion (Hoogeboom and Salimans 2023, appendix A).
    "sine": lambda t, low, high: high * np.sin(0.5 * np.pi * t) ** 2,
    # Cold diffusion's generation from blur (Bansal et al. 2022): 300 steps each blur by exp(0.01 k) more, and variances add up.
    "exponential": lambda t, low, high: high * np.sqrt(np.expm1(6.0 * t) / np.expm1(6.0)),
}


def _linear_beta(t: np.ndarray) -> np.ndarray:
    """sqrt(abar_k) with beta from 1e-4 to 0.02 over 1,000 steps (Ho et al. 2020, section 4); with K steps each counts 1,000 / K."""
    betas = 1.0 - (1.0 - np.linspace(1e-4, 0.02, len(t))) ** (1000.0 / len(t))
    return np.sqrt(np.cumprod(1.0 - betas))


def _cosine(t: np.ndarray) -> np.ndarray:
    """cos of an angle that grows evenly, with log-SNR from 10 to -10 (Hoogeboom and Salimans 2023, appendix A)."""
    first, last = np.arctan(np.exp(-5.0)), np.arctan(np.exp(5.0))
    return np.cos(first + t * (last - first))


# Signal scales s of levels 1..K.
SIGNAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear-beta": _linear_beta,
    "cosine": _cosine,
}
# Noise scales of levels 1..K, in units of the noise, from t and s.
NOISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "constant": lambda t, s: np.ones_like(t),
    "geometric": lambda t, s: 10.0 ** (t - 1.0),
    "variance-preserving": lambda t, s: np.sqrt(1.0 - s**2),
}
TARGETS = ("step", "clean", "noise")
SAMPLERS = ("residual", "resample", "ancestral")
# What eight bits a value cannot tell apart.
QUANTUM = 1.0 / 255.0


@dataclass(frozen=True)
class ForwardProcess:
    """A corruption process for images of any size; sizes are shorter sides.

    Raises:
        InputError: if a value is out of its range, or a sampler does not fit the target.
    """

    peclet: float = 0.0
    """Advection against diffusion, >= 0."""
    turbulence: Literal["curl-noise", "spectral", "compressible"] = "curl-noise"
    """Kind of velocity field."""
    offset: float = 0.0
    """Background the flow acts on (felt by compressible flows only)."""
    transport: bool = True
    """Whether the flow carries the image. If not it acts on the background alone, and the image just blurs: the same structured
    noise without transport, A_0(u) + A(c) - c, to tell the two apart."""
    boundary: Literal["wall", "periodic"] = "wall"
    """What happens at the border."""
    blur: Literal["geometric", "sine", "exponential", "none"] = "geometric"
    """How the blur grows with the level; none leaves images sharp, and where they are."""
    sigma_min: float = 0.5
    """Blur of level 1 where it grows geometrically [pixels]."""
    sigma_max: float = 0.5
    """Blur of level K [image sides]."""
    levels: int = 60
    """K, the number of the most corrupted level."""
    signal: Literal["constant", "linear-beta", "cosine"] = "constant"
    """How the contrast fades with the level."""
    noise: float = 0.01
    """Standard deviation of the Gaussian noise at level K, >= 0; half the full contrast, 0.5, is the usual one where it fades."""
    noise_schedule: Literal["constant", "geometric", "variance-preserving"] = "constant"
    """How the noise grows: the same at all levels, tenfold in all, or as the contrast fades."""
    target: Literal["step", "clean", "noise"] = "step"
    """What the network finds: the step to the level before, the clean image, or the noise (in images that stay sharp)."""
    sampler: Literal["residual", "resample", "ancestral"] = "residual"
    """How samples are drawn: the network's step and fresh noise; or its clean image, corrupted again a level lower, with the noise
    that was there (resample) or with some of it fresh (ancestral)."""
    sampling_noise: float = 1.25
    """Standard deviation of the noise that sampling adds, in units of the process's own, >= 0: in every step of the residual
    sampler, and at the start of all."""

    def __post_init__(self) -> None:
        choices = {"turbulence": TURBULENCE, "blur": (*BLUR, "none"), "signal": SIGNAL, "noise_schedule": NOISE}
        for name, known in (choices | {"target": TARGETS, "sampler": SAMPLERS}).items():
            check_choice(name.replace("_", " "), getattr(self, name), known)
        check_boundary(self.boundary)
        check_number("peclet", self.peclet, 0.0)
        check_number("noise", self.noise, 0.0, 1.0)
        check_number("sampling noise", self.sampling_noise, 0.0)
        check_integer("levels", self.levels, 1)
        if (self.sampler == "residual") != (self.target == "step"):
            raise InputError(f"sampler {self.sampler} cannot use target {self.target}: step goes with residual, and with it alone")
        if self.target == "step" and self.blur == "none":
            raise InputError("target step needs a blur: without one all levels are the same image")
        if self.blur == "none" and self.peclet > 0.0:
            raise InputError(f"blur none leaves no time for a flow: peclet must be 0, got {self.peclet:g}")
        if self.target == "noise" and not (self.blur == "none" and self.noise > 0.0):
            raise InputError("target noise needs blur none and noise above 0: only then does the noise tell the clean image")

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Signal s_k and noise sigma_k of levels 0..K, float64 [K + 1] each; level 0 is the clean image."""
        t = np.arange(1, self.levels + 1) / self.levels
        signal = SIGNAL[self.signal](t)
        noise = self.noise * NOISE[self.noise_schedule](t, signal)
        return np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])

    def blur_widths(self, size: int) -> np.ndarray:
        """Blur of levels 0..K at a shorter side of ``size`` [pixels], float64 [K + 1]."""
        if self.blur == "none":
            return np.zeros(self.levels + 1)
        if not self.sigma_max * size >= self.sigma_min:
            widest = f"got {self.sigma_max * size:g} px"
            raise InputError(
                f"sigma_max must be at least sigma_min = {self.sigma_min:g} px, {widest}: {self.sigma_max:g} x {size} px"
            )
        t = np.arange(1, self.levels + 1) / self.levels
        return np.concatenate([[0.0], BLUR[self.blur](t, self.sigma_min, self.sigma_max * size)])

    def operator(self, size: int) -> AdvectionDiffusion | Untransported | None:
        """The corruption operator for images whose shorter side is ``size`` pixels; None where there is no blur."""
        if self.blur == "none":
            return None
        schedule = Schedule(self.blur_widths(size))
        operator = AdvectionDiffusion(
            schedule, self.peclet, TURBULENCE[self.turbulence], boundary=self.boundary, offset=self.offset
        )
        return operator if self.transport else Untransported(operator)

    def mean(self, u0: torch.Tensor, level: int | torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Level k without its noise, m + s_k (A_k(u_0) - m).

        Args:
            u0: clean images, float32 [N, C, S, S].
            level: k, 0 to K, one for all or int64 [N] on the CPU.
            seed: seeds of the images, int64 [N]; the flow belongs to the seed, whatever the level.
        """
        operator = self.operator(min(u0.shape[2:]))
        return self._scaled(u0 if operator is None else operator(u0, level, seeds(seed, "flow")), level)

    def corrupt(self, u0: torch.Tensor, level: int | torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Level k of clean images; arguments as for :meth:`mean`."""
        return self.mean(u0, level, seed) + self._noise_scale(level, u0) * normal(seeds(seed, "noise"), u0.shape, u0.device)

    def trajectory(self, u0: torch.Tensor, seed: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """``(k, u_k)`` for all levels 0 to K in one pass; arguments as for :meth:`mean`."""
        noise = normal(seeds(seed, "noise"), u0.shape, u0.device)
        operator = self.operator(min(u0.shape[2:]))
        levels = range(self.levels + 1)
        means = ((k, u0) for k in levels) if operator is None else operator.trajectory(u0, seeds(seed, "flow"))
        for k, u in means:
            yield k, self._scaled(u, k) + self._noise_scale(k, u0) * noise

    def training_example(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network sees at level k, and what it should say.

        Args:
            u0: clean images, float32 [N, C, S, S].
            level: k, int64 [N] on the CPU, 1 to K.
            seed: seeds of flow and noise, int64 [N].

        Returns:
            ``(u_k, answer)``, float32 [N, C, S, S] each. Added to u_k the answer gives u_{k-1} without its noise (target ``step``)
            or u_0 (``clean``); or it is the noise, of unit variance (``noise``).
        """
        noise = normal(seeds(seed, "noise"), u0.shape, u0.device)
        if self.target == "step":
            before, after = self.operator(u0.shape[-1]).pair(u0, level, seeds(seed, "flow"))
            before, after = self._scaled(before, level - 1), self._scaled(after, level)
        else:
            before, after = u0, self.mean(u0, level, seed)
        corrupted = after + self._noise_scale(level, u0) * noise
        return corrupted, noise if self.target == "noise" else before - corrupted

    def clean_image(self, answer: torch.Tensor, u: torch.Tensor, level: int) -> torch.Tensor:
        """The clean image that the network's answer to ``u`` at level k stands for, where its target is ``clean`` or ``noise``."""
        if self.target == "clean":
            return u + answer
        signal, noise = (float(scale[level]) for scale in self.scales())
        return 0.5 + (u - 0.5 - noise * answer) / signal

    def _scaled(self, u: torch.Tensor, level: int | torch.Tensor) -> torch.Tensor:
        if self.signal == "constant":
            return u
        return 0.5 + _each(self.scales()[0], level, u) * (u - 0.5)

    def _noise_scale(self, level: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor | float:
        return _each(self.scales()[1], level, like)


class Untransported:
    """What a flow does to its background, and to images nothing but the blur: A_0(u_0) + A(c) - c."""

    def __init__(self, flow: AdvectionDiffusion) -> None:
        self.flow = flow
        self.blur = AdvectionDiffusion(flow.schedule, 0.0, boundary=flow.boundary)
        self.solver = flow.solver

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.__call__`."""
        return self.blur(u0, level, seed) + self.flow(torch.zeros_like(u0), level, seed)

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`AdvectionDiffusion.pair`."""
        blurred, printed = self.blur.pair(u0, level, seed), self.flow.pair(torch.zeros_like(u0), level, seed)
        return blurred[0] + printed[0], blurred[1] + printed[1]

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`AdvectionDiffusion.trajectory`."""
        printed = self.flow.trajectory(torch.zeros_like(u0), seed)
        for (level, blurred), (_, noise) in zip(self.blur.trajectory(u0, seed), printed, strict=True):
            yield level, blurred + noise

    def plan(self, height: int, width: int) -> Plan:
        """As :meth:`AdvectionDiffusion.plan`."""
        return self.flow.plan(height, width)


def _each(values: np.ndarray, level: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor | float:
    """The value of a level, or of one for each image of a batch, to multiply images with."""
    if isinstance(level, int):
        return float(values[level])
    return torch.from_numpy(values)[level].to(like.device, like.dtype, non_blocking=True)[:, None, None, None]


PROCESSES = {
    # What the paper's public research code amounts to: a compressible field on a background of 9.5, transport and noise with the
    # flow's own spectrum. At Pe = 0.1 a particle hardly moves.
    "beyond-blur": ForwardProcess(peclet=0.1, turbulence="compressible", offset=9.5),
    # Pure transport; at Pe = 2 it has as much to show.
    "beyond-blur-curl": ForwardProcess(peclet=2.0),
    # Inverse heat dissipation (Rissanen et al. 2023).
    "ihd": ForwardProcess(),
    # Blurring diffusion (Hoogeboom and Salimans 2023); blur of 20 px at 128 px as there, and their floor of 0.001 left out.
    "blurring": ForwardProcess(
        blur="sine",
        sigma_max=0.16,
        signal="cosine",
        noise=0.5,
        noise_schedule="variance-preserving",
        target="clean",
        sampler="resample",
        sampling_noise=1.0,
    ),
    # Soft diffusion (Daras et al. 2023): blur and a little growing noise, momentum sampler. They fit the levels to the data.
    "soft": ForwardProcess(noise=0.1, noise_schedule="geometric", target="clean", sampler="resample", sampling_noise=1.0),
    # Cold diffusion (Bansal et al. 2022), algorithm 2; a blur of 141 px at 128 px.
    "cold": ForwardProcess(blur="exponential", sigma_max=1.1, noise=0.0, target="clean", sampler="resample", sampling_noise=1.0),
    # Denoising diffusion (Ho et al. 2020).
    "ddpm": ForwardProcess(
        blur="none",
        signal="linear-beta",
        noise=0.5,
        noise_schedule="variance-preserving",
        target="noise",
        sampler="ancestral",
        sampling_noise=1.0,
    ),
    # A control for beyond-blur: its noise without its transport.
    "structured-noise": ForwardProcess(peclet=0.1, turbulence="compressible", offset=9.5, transport=False),
}


def named_process(name: str) -> ForwardProcess:
    """A process by its name.

    Raises:
        InputError: if there is none, with the nearest name.
    """
    check_name("process", name, PROCESSES)
    return PROCESSES[name]
