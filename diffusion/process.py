"""Forward processes as numbers: how an image is corrupted level by level, and what the network predicts.

All processes are one formula, with the advection-diffusion operator A_k of ``lbm_warp`` up to the blur width of level k, a signal
scale s_k and a noise scale sigma_k (images run from 0 to 1, their middle is m = 1/2):

    u_k = m + s_k (A_k(u_0) - m) + sigma_k eps.

In units where images run from -1 to 1 this is s_k A_k(x_0) + 2 sigma_k eps, because A_k leaves a flat image unchanged. Each
published method is one choice of numbers (``PROCESSES``). ``diffusion.corruption`` builds from the numbers what corrupts images of
a given size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from lbm_warp import CurlNoise, SpectralTurbulence, Turbulence
from lbm_warp.checks import InputError, check_boundary, check_choice, check_integer, check_name, check_number

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
    # Cold diffusion's generation from blur (Bansal et al. 2022): step k of 300 blurs by exp(0.01 k); the variances add up.
    "exponential": lambda t, low, high: high * np.sqrt(np.expm1(6.0 * t) / np.expm1(6.0)),
}


def _linear_beta(t: np.ndarray) -> np.ndarray:
    """sqrt(abar_k) with beta from 1e-4 to 0.02 over 1,000 steps (Ho et al. 2020, section 4); of K steps each counts 1,000 / K."""
    betas = 1.0 - (1.0 - np.linspace(1e-4, 0.02, len(t))) ** (1000.0 / len(t))
    return np.sqrt(np.cumprod(1.0 - betas))


def _cosine(t: np.ndarray) -> np.ndarray:
    """Cosine of an angle that grows linearly, with log-SNR from 10 to -10 (Hoogeboom and Salimans 2023, appendix A)."""
    first, last = np.arctan(np.exp(-5.0)), np.arctan(np.exp(5.0))
    return np.cos(first + t * (last - first))


def _log_snr(t: np.ndarray) -> np.ndarray:
    """Noise over signal from 0.004 to 40, evenly spaced in its logarithm: s = 1 / sqrt(1 + ratio^2)."""
    ratio = 0.004 * 1e4 ** ((t - t[0]) / max(t[-1] - t[0], 1e-300))
    return 1.0 / np.sqrt(1.0 + ratio**2)


# Signal scales s of levels 1..K.
SIGNAL: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "constant": np.ones_like,
    "linear-beta": _linear_beta,
    "cosine": _cosine,
    "log-snr": _log_snr,
}
# Noise scales of levels 1..K in units of the noise, from t and s.
NOISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "constant": lambda t, s: np.ones_like(t),
    "geometric": lambda t, s: 10.0 ** (t - 1.0),
    "variance-preserving": lambda t, s: np.sqrt(1.0 - s**2),
}
TARGETS = ("step", "clean", "noise", "remainder")
DENSITIES = ("uniform", "log-normal")
SPACINGS = ("even", "edm")
SAMPLERS = ("residual", "resample", "ancestral")


@dataclass(frozen=True)
class ForwardProcess:
    """The numbers of a forward process, valid for images of any size. An image side here is the shorter one."""

    peclet: float = 0.0
    """Peclet number Pe = V L / alpha, advection against diffusion, >= 0."""
    turbulence: Literal["curl-noise", "spectral", "compressible", "waves"] = "curl-noise"
    """Generator of the velocity field. waves move and are compressible, as published; the others are frozen."""
    wave_speed: float = 0.0
    """Speed W of the waves as W L / alpha, >= 0; L is the image side. Published: 98.3 at 128 px."""
    offset: float = 0.0
    """Background c that the flow acts on, A(u + c) - c; it matters for compressible flows only."""
    transport: bool = True
    """Whether the flow transports the image. If not, the image is only blurred, and the flow acts on the background alone:
    A_0(u) + A(c) - c, the same structured noise without transport. With waves, c includes the mean of the image."""
    boundary: Literal["wall", "periodic"] = "wall"
    """Boundary condition of the image."""
    blur: Literal["geometric", "sine", "exponential", "none"] = "geometric"
    """How the blur width grows with the level; none: no blur and no flow."""
    sigma_min: float = 0.5
    """Blur width of level 1 [pixels], for the geometric blur."""
    sigma_max: float = 0.5
    """Blur width of level K [image sides]."""
    levels: int = 60
    """Number of levels K; level K is the most corrupted one."""
    signal: Literal["constant", "linear-beta", "cosine", "log-snr"] = "constant"
    """How the signal scale s_k (the contrast) falls with the level."""
    noise: float = 0.01
    """Standard deviation of the Gaussian noise at level K, >= 0; 0.5 is usual where the signal falls to zero."""
    noise_schedule: Literal["constant", "geometric", "variance-preserving"] = "constant"
    """How the noise grows with the level: constant, by a factor of ten in all, or as sqrt(1 - s_k^2)."""
    target: Literal["step", "clean", "noise", "remainder"] = "step"
    """What the network predicts: the step to the level below, the clean image, the noise (for images without blur), or the
    remainder, what a Wiener filter leaves over of the clean image (``diffusion.parametrisation``)."""
    level_density: Literal["uniform", "log-normal"] = "uniform"
    """How the levels of training are drawn: all alike, or with a log-normal noise-to-signal ratio as in EDM."""
    sampler: Literal["residual", "resample", "ancestral"] = "residual"
    """residual adds the predicted step and fresh noise (target step only). The others corrupt the predicted clean image again, up
    to the level below, with the noise of this level (resample) or with part of it drawn anew (ancestral)."""
    fresh: float = 1.0
    """Share of the fresh noise of the ancestral sampler, 0 to 1."""
    order: Literal[1, 2] = 1
    """Order of the steps of the resample and ancestral samplers: 2 extrapolates the clean image from the last two levels."""
    spacing: Literal["even", "edm"] = "even"
    """Levels that a sampler with fewer steps than levels visits: evenly spaced, or by EDM's rule in the noise-to-signal ratio."""
    steps: int | None = None
    """Steps of sampling by default, at most K; None is K."""
    sampling_noise: float = 1.25
    """Standard deviation of the noise added in sampling, in units of the process's own, >= 0: in every step of the residual
    sampler, at the start of the others."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range, or values do not fit each other."""
        choices = {"turbulence": (*TURBULENCE, "waves"), "blur": (*BLUR, "none"), "signal": SIGNAL, "noise_schedule": NOISE}
        choices |= {"target": TARGETS, "sampler": SAMPLERS, "level_density": DENSITIES, "spacing": SPACINGS}
        for name, known in choices.items():
            check_choice(name.replace("_", " "), getattr(self, name), known)
        check_boundary(self.boundary)
        check_number("peclet", self.peclet, 0.0)
        check_number("wave speed", self.wave_speed, 0.0)
        check_number("noise", self.noise, 0.0, 1.0)
        check_number("sampling noise", self.sampling_noise, 0.0)
        check_number("fresh", self.fresh, 0.0, 1.0)
        check_integer("order", self.order, 1, 2)
        check_integer("levels", self.levels, 1)
        if self.steps is not None:
            check_integer("steps", self.steps, min(2, self.levels), self.levels)
        if (self.sampler == "residual") != (self.target == "step"):
            raise InputError(
                f"sampler {self.sampler} cannot use target {self.target}: residual needs step, and step needs residual"
            )
        if self.target == "step" and self.blur == "none":
            raise InputError("target step needs a blur: without one all levels are the same image")
        if self.blur == "none" and self.peclet > 0.0:
            raise InputError(f"blur none leaves no time for a flow: peclet must be 0, got {self.peclet:g}")
        if self.target == "noise" and not (self.blur == "none" and self.noise > 0.0):
            raise InputError("target noise needs blur none and noise above 0: only then does the noise determine the clean image")
        if self.noise == 0.0:
            for name, value in (("target", "remainder"), ("level density", "log-normal"), ("spacing", "edm"), ("order", 2)):
                if getattr(self, name.replace(" ", "_")) == value:
                    raise InputError(f"{name} {value} needs noise above 0")

    def scales(self) -> tuple[np.ndarray, np.ndarray]:
        """Signal s_k and noise sigma_k of levels 0..K, float64 [K + 1] each; level 0 is the clean image."""
        t = np.arange(1, self.levels + 1) / self.levels
        signal = SIGNAL[self.signal](t)
        noise = self.noise * NOISE[self.noise_schedule](t, signal)
        return np.concatenate([[1.0], signal]), np.concatenate([[0.0], noise])

    def blur_widths(self, shorter: int) -> np.ndarray:
        """Blur widths of levels 0..K for images of this shorter side [pixels], float64 [K + 1].

        Raises:
            InputError: if sigma_max is below sigma_min at this size.
        """
        if self.blur == "none":
            return np.zeros(self.levels + 1)
        if not self.sigma_max * shorter >= self.sigma_min:
            got = f"got {self.sigma_max * shorter:g} px = {self.sigma_max:g} x {shorter} px"
            raise InputError(f"sigma_max must be at least sigma_min = {self.sigma_min:g} px, {got}")
        t = np.arange(1, self.levels + 1) / self.levels
        return np.concatenate([[0.0], BLUR[self.blur](t, self.sigma_min, self.sigma_max * shorter)])


# The waves travel 10^-3 L in an iteration of alpha = 1/6 px^2: W L / alpha = 0.006 (L / px)^2, here at 128 px.
_PUBLISHED = ForwardProcess(peclet=0.1, turbulence="waves", wave_speed=0.006 * 128**2, offset=9.5, sigma_max=1.0)
_FROZEN = ForwardProcess(peclet=0.1, turbulence="compressible", offset=9.5)

PROCESSES = {
    # Beyond Blur (Gruszczynski et al. 2025) as in its public research code at 128 px: moving waves on a background of 9.5, that is,
    # structured noise about as strong as the white noise, and transport of a fiftieth of a pixel. Published runs: Pe = 0.02 to 0.12
    # in the paper's table, 0.05 to 1 in the code's grid.
    "beyond-blur": _PUBLISHED,
    # The same numbers with a field that does not move, an earlier reading of that code: 13 times as much structured noise.
    "beyond-blur-frozen": _FROZEN,
    # Transport by a divergence-free flow, without structured noise.
    "beyond-blur-curl": ForwardProcess(peclet=2.0),
    # Inverse heat dissipation (Rissanen et al. 2023).
    "ihd": ForwardProcess(),
    # Blurring diffusion (Hoogeboom and Salimans 2023): blur of 20 px at 128 px as published; their floor of 0.001 is left out.
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
    # Soft diffusion (Daras et al. 2023): blur and a little growing noise, momentum sampler. The paper fits the levels to the data.
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
    # The controls of beyond-blur and beyond-blur-frozen: their structured noise without their transport.
    "structured-noise": replace(_PUBLISHED, transport=False),
    "structured-noise-frozen": replace(_FROZEN, transport=False),
}


def named_process(name: str) -> ForwardProcess:
    """A process by its name.

    Raises:
        InputError: if there is none; the message gives the nearest name.
    """
    check_name("process", name, PROCESSES)
    return PROCESSES[name]
