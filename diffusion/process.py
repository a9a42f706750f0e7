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


def _share(t: np.ndarray) -> np.ndarray:
    """0 at level 1 to 1 at level K; a single level is the last one."""
    return (t - t[0]) / (t[-1] - t[0]) if len(t) > 1 else np.ones(1)


def _truncated(t: np.ndarray, low: float, high: float) -> np.ndarray:
    """Widths of blurs one after another, as in cold diffusion's generation (Bansal et al. 2022; public code, 128 px): step k of
    300 has a kernel of 27 pixels and standard deviation exp(0.01 k), so the kernel is cut off. The variances add up."""
    pixel, step = np.arange(-13, 14), np.exp(0.01 * np.arange(300))[:, None]
    kernel = np.exp(-0.5 * (pixel / step) ** 2)
    variance = np.cumsum((kernel * pixel**2).sum(axis=1) / kernel.sum(axis=1))
    return high * np.sqrt(np.interp(300.0 * t, np.arange(301), [0.0, *variance / variance[-1]]))


# Blur widths of levels 1..K at t = k / K, from the narrowest to the widest.
BLUR: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    # Inverse heat dissipation (Rissanen et al. 2023, section 3.1): logarithmically spaced.
    "geometric": lambda t, low, high: low * (high / low) ** _share(t),
    # Blurring diffusion (Hoogeboom and Salimans 2023, appendix A).
    "sine": lambda t, low, high: high * np.sin(0.5 * np.pi * t) ** 2,
    "truncated": _truncated,
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
    ratio = 0.004 * 1e4 ** _share(t)
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
    # Soft diffusion (Daras et al. 2023, section 5): the noise grows in the first quarter, and stays.
    "first-quarter": lambda t, s: 10.0 ** (np.minimum(4.0 * t, 1.0) - 1.0),
    "variance-preserving": lambda t, s: np.sqrt(1.0 - s**2),
}
TARGETS = ("step", "clean", "noise", "remainder")
DENSITIES = ("uniform", "log-normal")
SPACINGS = ("even", "edm")
SAMPLERS = ("residual", "resample", "ancestral", "posterior")
VARIANCES = ("fixedsmall", "fixedlarge")
LOSSES = ("squared", "absolute", "filtered")
STARTS = ("pictures", "mean-colour")
SPECTRA = ("measured", "flat")
INPUTS = ("image", "estimates")


@dataclass(frozen=True)
class ForwardProcess:
    """The numbers of a forward process, valid for images of any size. An image side here is the shorter one."""

    peclet: float = 0.0
    """Peclet number Pe = V L / alpha, advection against diffusion, >= 0."""
    turbulence: Literal["curl-noise", "spectral", "compressible", "waves"] = "curl-noise"
    """Generator of the velocity field. waves move and are compressible, as published; the others move with turbulence_time."""
    turbulence_time: float = 0.0
    """Rate of change of the flow, >= 0: 0 is a frozen flow; at 1 an eddy as large as the image turns over in its own time."""
    wave_speed: float = 0.0
    """Speed W of the waves as W L / alpha, >= 0; L is the image side. Published: 98.3 at 128 px."""
    offset: float = 0.0
    """Background c that the flow acts on, A(u + c) - c; it matters for compressible flows only."""
    transport: bool = True
    """Whether the flow transports the image. If not, the image is only blurred, and the flow acts on the background alone:
    A_0(u) + A(c) - c, the same structured noise without transport. With waves, c includes the mean of the image."""
    tell_flow: bool = False
    """Whether the network sees the flow beside the image, as two more channels: how far it has carried the image, in pixels."""
    boundary: Literal["wall", "periodic"] = "wall"
    """Boundary condition of the image."""
    by_channel: bool = False
    """Whether every channel has a flow of its own, and so structured noise of its own; otherwise the channels share one."""
    blur: Literal["geometric", "sine", "truncated", "none"] = "geometric"
    """How the blur width grows with the level; none: no blur and no flow."""
    sigma_min: float = 0.5
    """Blur width of level 1 [pixels], for the geometric blur."""
    sigma_max: float = 0.5
    """Blur width of level K [image sides]."""
    blur_floor: float = 0.0
    """Floor d of the blur, 0 to 1: (1 - d) A_k + d, so no mode of the image is lost."""
    levels: int = 200
    """Number of levels K; level K is the most corrupted one."""
    signal: Literal["constant", "linear-beta", "cosine", "log-snr"] = "constant"
    """How the signal scale s_k (the contrast) falls with the level."""
    noise: float = 0.01
    """Standard deviation of the Gaussian noise at level K, >= 0; 0.5 is usual where the signal falls to zero."""
    noise_schedule: Literal["constant", "first-quarter", "variance-preserving"] = "constant"
    """How the noise grows with the level: constant, by a factor of ten over the first quarter, or as sqrt(1 - s_k^2)."""
    noise_exponent: float = 0.0
    """Exponent p of the noise's spectrum: the amplitude of the cosine mode with k half waves a side is ~ (1 + k)^-p. 0 is white
    noise, negative is blue, 1 about as the spectrum of photographs, 5/3 that of the waves of beyond-blur."""
    target: Literal["step", "clean", "noise", "remainder"] = "step"
    """What the network predicts: the step to the level below, the clean image, the noise (for images without flow), or the
    remainder, what a Wiener filter leaves over of the clean image (``diffusion.parametrisation``)."""
    spectrum: Literal["measured", "flat"] = "measured"
    """Spectrum of the images for the target remainder: that of the training pictures, or one number for all modes (EDM)."""
    network_input: Literal["image", "estimates"] = "image"
    """What the network sees with the target remainder: the image, or what the Wiener filter makes of it, estimates of the clean
    image and of the noise."""
    loss: Literal["squared", "absolute", "filtered"] = "squared"
    """Loss of the prediction: squared, absolute, or squared after the corruption A_k and divided by sigma_k^2."""
    level_density: Literal["uniform", "log-normal"] = "uniform"
    """How the levels of training are drawn: all alike, or with a log-normal noise-to-signal ratio as in EDM."""
    log_mean: float = -1.2
    """Mean of the natural logarithm of that ratio, of images from -1 to 1; by default EDM's (Karras et al. 2022, table 1)."""
    log_deviation: float = 1.2
    """Standard deviation of that logarithm, > 0."""
    sampler: Literal["residual", "resample", "ancestral", "posterior"] = "residual"
    """residual adds the predicted step and fresh noise (target step only). The others go by the predicted clean image. They corrupt
    it again, up to the level below, with the noise of this level (resample) or with part of it drawn anew (ancestral), or draw
    every cosine mode from its posterior (posterior; without flow)."""
    fresh: float = 1.0
    """Share of the fresh noise of the ancestral sampler, 0 to 1."""
    variance: Literal["fixedsmall", "fixedlarge"] = "fixedsmall"
    """Variance of the ancestral sampler's fresh noise: the posterior's, or the forward process's (Ho et al. 2020, section 3.2)."""
    clip_clean: bool = False
    """Clip the predicted clean image to [0, 1] in every step."""
    second_order_above: float | None = None
    """Noise-to-signal ratio (of images from -1 to 1) above which the samplers resample and ancestral take steps of second order,
    >= 0: they extrapolate the clean image from the last two levels. None: all steps have first order."""
    start: Literal["pictures", "mean-colour"] = "pictures"
    """What sampling starts from: level K of thumbnails of training pictures, or flat images with a mean colour drawn from a
    Gaussian that is fitted to theirs."""
    start_noise: float = 0.0
    """Standard deviation of white noise added to the start, >= 0, for a process without noise of its own."""
    spacing: Literal["even", "edm"] = "even"
    """Levels that a sampler with fewer steps than levels visits: evenly spaced, or by EDM's rule in the noise-to-signal ratio."""
    steps: int | None = None
    """Steps of sampling by default, at least 2; K if there are fewer levels, or if it is None."""
    sampling_noise: float = 1.25
    """Standard deviation of the noise added in sampling, in units of the process's own, >= 0: in every step of the residual
    sampler, at the start of the others."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range, or values do not fit each other."""
        choices = {"turbulence": (*TURBULENCE, "waves"), "blur": (*BLUR, "none"), "signal": SIGNAL, "noise_schedule": NOISE}
        choices |= {"target": TARGETS, "sampler": SAMPLERS, "level_density": DENSITIES, "spacing": SPACINGS}
        choices |= {"variance": VARIANCES, "loss": LOSSES, "start": STARTS, "spectrum": SPECTRA, "network_input": INPUTS}
        for name, known in choices.items():
            check_choice(name.replace("_", " "), getattr(self, name), known)
        check_boundary(self.boundary)
        check_number("peclet", self.peclet, 0.0)
        check_number("turbulence time", self.turbulence_time, 0.0)
        check_number("wave speed", self.wave_speed, 0.0)
        check_number("noise", self.noise, 0.0, 1.0)
        check_number("noise exponent", self.noise_exponent, -4.0, 4.0)
        check_number("sampling noise", self.sampling_noise, 0.0)
        check_number("fresh", self.fresh, 0.0, 1.0)
        if self.second_order_above is not None:
            check_number("second order above", self.second_order_above, 0.0)
        check_number("blur floor", self.blur_floor, 0.0, 1.0)
        check_number("log mean", self.log_mean, -20.0, 20.0)
        check_number("log deviation", self.log_deviation, 0.01, 100.0)
        check_number("start noise", self.start_noise, 0.0)
        check_integer("levels", self.levels, 1)
        if self.steps is not None:
            check_integer("steps", self.steps, 2)
        if (self.sampler == "residual") != (self.target == "step"):
            raise InputError(
                f"sampler {self.sampler} cannot use target {self.target}: residual needs step, and step needs residual"
            )
        if self.target == "step" and self.blur == "none":
            raise InputError("target step needs a blur: without one all levels are the same image")
        if self.blur == "none" and self.peclet > 0.0:
            raise InputError(f"blur none leaves no time for a flow: peclet must be 0, got {self.peclet:g}")
        if self.target == "noise" and self.blur != "none" and (self.blur_floor == 0.0 or not self.is_diagonal):
            raise InputError("target noise needs blur none; or a blur floor above 0, walls and peclet 0, which keep every mode")
        if self.turbulence_time > 0.0 and self.turbulence == "waves":
            raise InputError("waves move by their wave speed: turbulence time must be 0")
        moving = self.turbulence == "waves" or self.turbulence_time > 0.0
        if self.tell_flow and (self.blur == "none" or moving or self.by_channel or self.target == "step"):
            raise InputError("tell flow needs a blur, a frozen flow that the channels share, and target clean or remainder")
        if self.sampler == "posterior" and not self.is_diagonal:
            raise InputError("sampler posterior needs walls and no flow: peclet 0 and boundary wall")
        if self.noise_exponent and (self.sampler == "posterior" or self.loss == "filtered"):
            raise InputError("sampler posterior and loss filtered need white noise: noise exponent 0")
        if self.spectrum == "flat" and (self.target != "remainder" or self.blur != "none"):
            raise InputError("spectrum flat needs target remainder and blur none")
        if self.network_input == "estimates" and (self.target != "remainder" or self.spectrum == "flat"):
            raise InputError("network input estimates needs target remainder and spectrum measured")
        if self.loss == "filtered" and (self.target != "clean" or self.offset > 0.0):
            raise InputError("loss filtered needs target clean and offset 0")
        if self.noise == 0.0:
            noisy = {"target": ("noise", "remainder"), "level_density": ("log-normal",), "sampler": ("posterior",)}
            noisy |= {"loss": ("filtered",), "spacing": ("edm",)}
            for name, values in noisy.items():
                if getattr(self, name) in values:
                    raise InputError(f"{name.replace('_', ' ')} {getattr(self, name)} needs noise above 0")
            if self.second_order_above is not None:
                raise InputError("second order needs noise above 0")

    @property
    def is_diagonal(self) -> bool:
        """Whether the corruption multiplies every cosine mode by a factor: there is no flow, and the boundary is a wall."""
        return self.peclet == 0.0 and self.boundary == "wall"

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

_DDPM = ForwardProcess(
    blur="none",
    levels=60,
    signal="linear-beta",
    noise=0.5,
    noise_schedule="variance-preserving",
    target="noise",
    sampler="ancestral",
    clip_clean=True,
    sampling_noise=1.0,
)

PROCESSES = {
    # This project's own, chosen by measurement (README): gentle transport by a divergence-free flow, blur and noise. The network
    # predicts what a Wiener filter leaves over.
    "fluid": ForwardProcess(
        peclet=4.0,
        blur="sine",
        sigma_max=0.16,
        levels=1000,
        signal="log-snr",
        noise=0.5,
        noise_schedule="variance-preserving",
        target="remainder",
        network_input="estimates",
        level_density="log-normal",
        log_deviation=1.6,
        sampler="ancestral",
        second_order_above=0.3,
        spacing="edm",
        steps=30,
        sampling_noise=1.0,
    ),
    # Beyond Blur (Gruszczynski et al. 2025) as in its public research code at 128 px: moving waves on a background of 9.5, that is,
    # structured noise about as strong as the white noise, and transport of a fiftieth of a pixel. Published runs: Pe = 0.02 to 0.12
    # in the paper's table, 0.05 to 1 in the code's grid.
    "beyond-blur": _PUBLISHED,
    # The same numbers with a field that does not move, an earlier reading of that code: 13 times as much structured noise.
    "beyond-blur-frozen": _FROZEN,
    # Transport by a divergence-free flow, without structured noise.
    "beyond-blur-curl": ForwardProcess(peclet=2.0),
    # Inverse heat dissipation (Rissanen et al. 2023): K = 200, training noise 0.01, sampling noise 1.25 times that.
    "ihd": ForwardProcess(),
    # Blurring diffusion (Hoogeboom and Salimans 2023): noise prediction with its unweighted loss, posterior of every mode, blur of
    # 20 px at 128 px with a floor of 0.001. Published with 1,000 steps.
    "blurring": ForwardProcess(
        blur="sine",
        sigma_max=0.16,
        blur_floor=0.001,
        levels=60,
        signal="cosine",
        noise=0.5,
        noise_schedule="variance-preserving",
        target="noise",
        sampler="posterior",
        sampling_noise=1.0,
    ),
    # Soft diffusion (Daras et al. 2023): loss after the blur, over the noise's variance; stochastic momentum sampler (mean of the
    # posterior, variance of the forward process). The paper fits the blur of every level to the data; here it is geometric.
    "soft": ForwardProcess(
        levels=60,
        noise=0.1,
        noise_schedule="first-quarter",
        target="clean",
        loss="filtered",
        sampler="ancestral",
        variance="fixedlarge",
        sampling_noise=1.0,
    ),
    # Cold diffusion (Bansal et al. 2022): 300 steps of truncated kernels, absolute error, algorithm 2, start from one colour with a
    # little noise that breaks the symmetry. One Gaussian is fitted to the mean colours.
    "cold": ForwardProcess(
        blur="truncated",
        sigma_max=0.67,
        levels=300,
        noise=0.0,
        target="clean",
        loss="absolute",
        sampler="resample",
        start="mean-colour",
        start_noise=0.001,
        sampling_noise=1.0,
    ),
    # Denoising diffusion (Ho et al. 2020), in 60 steps with fixedsmall as the variance, and in the published 1,000.
    "ddpm": _DDPM,
    "ddpm-1000": replace(_DDPM, levels=1000, variance="fixedlarge"),
    # EDM (Karras et al. 2022): its preconditioning, density and spacing of levels, deterministic steps of second order. Published
    # are 18 of Heun's steps, 35 network calls; these are 36 of DPM-Solver++(2M), with noise from 0.004 to 40, not 0.002 to 80.
    "edm": ForwardProcess(
        blur="none",
        levels=1000,
        signal="log-snr",
        noise=0.5,
        noise_schedule="variance-preserving",
        target="remainder",
        spectrum="flat",
        level_density="log-normal",
        sampler="resample",
        second_order_above=0.0,
        spacing="edm",
        steps=36,
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
