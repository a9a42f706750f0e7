"""Methods: an operator, scales, a denoiser, a density of training levels and a sampler that fit; the published ones by name.

    method = named_method("fluid").changed(peclet=8.0)
    method = Method(Masking(), ConstantNoise(0.01), CleanImage(), Uniform(), Resample(eta=0.0))

Methods of other packages are found by entry points of the group ``beyond_blur.methods``: each is a :class:`Method`, or a function
without arguments that returns one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from diffusion import specs
from diffusion.augmentation import Augmentation, GeometricAugmentation
from diffusion.denoisers import CleanImage, Denoiser, Noise, Remainder, Step
from diffusion.density import Density, LogitNormal, LogNormal, Uniform
from diffusion.flow_matching import FlowMatching
from diffusion.forward import operators, scales
from diffusion.forward.operators import FlowAndBlur, Geometric, Identity, Operator, Sine, Truncated, Waves
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import ConstantNoise, Cosine, FirstQuarter, LinearBeta, LinearPath, LogSNR, Scales
from diffusion.learning_rate import InverseSquareRoot, WarmUpAndDecay
from diffusion.photographs import BlurOfGrid, DensityOfGrid, LocalUNet, NoiseOfGrid, Photographs
from diffusion.samplers import ODE, MeanColour, Posterior, Resample, Residual, Sampler, Start
from diffusion.weighting import LearnedWeighting, Weighting
from lbm_warp import CurlNoise, SpectralTurbulence
from lbm_warp.checks import InputError, check_integer, check_name
from lbm_warp.schedule import MOST_LEVELS

GROUP = "beyond_blur.methods"


@dataclass(frozen=True)
class Method:
    """Everything that makes a generative model of a network.

    Raises:
        InputError: if the parts do not fit each other.
    """

    operator: Operator
    scales: Scales
    denoiser: Denoiser
    density: Density
    sampler: Sampler

    def __post_init__(self) -> None:
        kinds = {"operator": Operator, "scales": Scales, "denoiser": Denoiser, "density": Density, "sampler": Sampler}
        for name, kind in kinds.items():
            if not isinstance(part := getattr(self, name), kind):
                raise InputError(f"{name} must be a diffusion.{kind.__name__} (subclass it), got {type(part).__name__}")
        check_integer("levels", getattr(self.operator, "levels", 0), 1, MOST_LEVELS)
        forward = self.forward
        self.denoiser.check(forward)
        self.density.check(forward)
        self.sampler.check(forward, self.denoiser)

    @property
    def forward(self) -> ForwardProcess:
        """The forward process."""
        return ForwardProcess(self.operator, self.scales)

    @property
    def levels(self) -> int:
        """K, the number of the most corrupted level."""
        return self.operator.levels

    def changed(self, **changes: Any) -> Method:
        """The method with other numbers, wherever they are, such as ``changed(peclet=2.0, levels=50)``, or with other parts.

        Raises:
            InputError: if no part has such a value, or several have, or the parts do not fit each other any more.
        """
        return specs.changed(self, **changes)


# The waves travel 10^-3 L in an iteration of alpha = 1/6 px^2: W L / alpha = 0.006 (L / px)^2, here at 128 px.
_WAVES = Waves(peclet=0.1, wave_speed=0.006 * 128**2, offset=9.5, blur=Geometric(1.0))
_FROZEN = FlowAndBlur(peclet=0.1, turbulence=SpectralTurbulence(compressible=True), offset=9.5)


def _stepwise(operator: Operator) -> Method:
    """Inverse heat dissipation's way: a little noise, the step to the level below, fresh noise in every step."""
    return Method(operator, ConstantNoise(0.01), Step(), Uniform(), Residual())


METHODS = {
    # This project's own, chosen by measurement (README): gentle transport by a divergence-free flow, blur and noise. The network
    # predicts what a Wiener filter leaves over.
    "fluid": Method(
        FlowAndBlur(peclet=4.0, blur=Sine(0.16), levels=1000),
        LogSNR(),
        Remainder(network_input="estimates"),
        LogNormal(log_deviation=1.6),
        Resample(steps=30, spacing="edm", second_order_above=0.3),
    ),
    # Beyond Blur (Gruszczynski et al. 2025) as in its public research code at 128 px: moving waves on a background of 9.5, that is,
    # structured noise about as strong as the white noise, and transport of a fiftieth of a pixel. Published runs: Pe = 0.02 to 0.12
    # in the paper's table, 0.05 to 1 in the code's grid.
    "beyond-blur": _stepwise(_WAVES),
    # The same numbers with a field that does not move, an earlier reading of that code: 13 times as much structured noise.
    "beyond-blur-frozen": _stepwise(_FROZEN),
    # Transport by a divergence-free flow, without structured noise.
    "beyond-blur-curl": _stepwise(FlowAndBlur(peclet=2.0)),
    # Inverse heat dissipation (Rissanen et al. 2023): K = 200, training noise 0.01, sampling noise 1.25 times that.
    "ihd": _stepwise(FlowAndBlur()),
    # Blurring diffusion (Hoogeboom and Salimans 2023): noise prediction with its unweighted loss, posterior of every mode, blur of
    # 20 px at 128 px with a floor of 0.001. Published with 1,000 steps. After 40,000 images the network misses most of the noise's
    # mean at the last level, and samples may diverge (assets/evidence/fair-rows.md).
    "blurring": Method(FlowAndBlur(blur=Sine(0.16), blur_floor=0.001, levels=60), Cosine(), Noise(), Uniform(), Posterior()),
    # Soft diffusion (Daras et al. 2023): loss after the blur, over the noise's variance; stochastic momentum sampler (mean of the
    # posterior, variance of the forward process). The paper fits the blur of every level to the data; here it is geometric.
    "soft": Method(
        FlowAndBlur(levels=60), FirstQuarter(), CleanImage(error="filtered"), Uniform(), Resample(variance="fixedlarge")
    ),
    # Cold diffusion (Bansal et al. 2022): 300 steps of truncated kernels, absolute error, algorithm 2, start from one colour with a
    # little noise that breaks the symmetry. One Gaussian is fitted to the mean colours.
    "cold": Method(
        FlowAndBlur(blur=Truncated(0.67), levels=300),
        ConstantNoise(0.0),
        CleanImage(error="absolute"),
        Uniform(),
        Resample(eta=0.0, start=MeanColour()),
    ),
    # Denoising diffusion (Ho et al. 2020), in 60 steps with fixedsmall as the variance, and in the published 1,000.
    "ddpm": Method(Identity(60), LinearBeta(), Noise(), Uniform(), Resample(clip_clean=True)),
    "ddpm-1000": Method(Identity(1000), LinearBeta(), Noise(), Uniform(), Resample(clip_clean=True, variance="fixedlarge")),
    # EDM (Karras et al. 2022): its preconditioning, density and spacing of levels, deterministic steps of second order. Published
    # are 18 of Heun's steps, 35 network calls; these are 36 of DPM-Solver++(2M), with noise from 0.004 to 40, not 0.002 to 80.
    "edm": Method(
        Identity(1000),
        LogSNR(),
        Remainder(spectrum="flat"),
        LogNormal(),
        Resample(steps=36, spacing="edm", eta=0.0, second_order_above=0.0),
    ),
    # Heat dissipation flow matching (Ma et al. 2026): the straight path between noise and a blurred image that sharpens on the way,
    # prediction of the image, loss of the velocity. The paper is without flow; peclet above 0 adds one.
    "flow-matching": Method(FlowAndBlur(blur=Sine(0.16), levels=1000), LinearPath(), FlowMatching(), LogitNormal(), ODE()),
    # The controls of beyond-blur and beyond-blur-frozen: their structured noise without their transport.
    "structured-noise": _stepwise(specs.changed(_WAVES, transport=False)),
    "structured-noise-frozen": _stepwise(specs.changed(_FROZEN, transport=False)),
}
# The classes of the library that a run may be made of.
LIBRARY: tuple[type, ...] = (
    *(
        kind
        for room in (operators, scales)
        for kind in vars(room).values()
        if isinstance(kind, type) and kind.__module__ == room.__name__
    ),
    *(Method, Step, CleanImage, Noise, Remainder, FlowMatching, Uniform, LogNormal, LogitNormal),
    *(Residual, Resample, Posterior, ODE, Start, MeanColour),
    *(CurlNoise, SpectralTurbulence, WarmUpAndDecay, InverseSquareRoot),
    *(BlurOfGrid, NoiseOfGrid, DensityOfGrid, Photographs, LocalUNet),
    *(Augmentation, GeometricAugmentation, Weighting, LearnedWeighting),
)


def named_method(name: str) -> Method:
    """A method by its name: one of the library's, or one that an installed package offers.

    Raises:
        InputError: if there is none; the message gives the nearest name.
    """
    if name in METHODS:
        return METHODS[name]
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    check_name("process", name, (*METHODS, *offered))
    return _offered(offered[name])


def known_classes(types: Iterable[type] | type = ()) -> dict[str, type]:
    """Classes that a run may name: the library's, those of the methods that installed packages offer, and these.

    Packages whose methods cannot be loaded are passed over.
    """
    offered: list[type] = []
    types = (types,) if isinstance(types, type) else types
    for entry in entry_points(group=GROUP):
        with suppress(InputError):
            offered += specs.classes(_offered(entry))
    return specs.by_name(dict.fromkeys((*LIBRARY, *offered, *types)))


def _offered(entry: EntryPoint) -> Method:
    try:
        method = entry.load()
        method = method if isinstance(method, Method) else method()
    except Exception as error:
        raise InputError(f"method {entry.name} of {entry.value} cannot be loaded ({type(error).__name__}: {error})") from error
    if not isinstance(method, Method):
        raise InputError(f"method {entry.name} of {entry.value} is a {type(method).__name__}, not a diffusion.Method")
    return method
