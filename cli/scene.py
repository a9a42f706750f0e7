"""A picture on its way through the levels of a flow or of a process, and the options that say which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from cli import console
from cli.video import read_still
from diffusion import specs
from diffusion.data.dataset import evenly_spaced
from diffusion.data.images import resize_shorter
from diffusion.files import asset
from diffusion.forward.operators import TURBULENCE, Blur, Operator
from diffusion.forward.process import ForwardProcess
from diffusion.methods import METHODS, named_method
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, StrokeFlow, Turbulence, energy_spectrum
from lbm_warp.checks import InputError, check_integer, check_number
from lbm_warp.planner import DEFAULT_SCHEME

PHOTOGRAPH = asset("chelsea.png")
# The work grows with the fourth power of the shorter side, so --size is at most this by default.
DEFAULT_SIZE = 384
# A picture is not enlarged beyond this [pixels].
LONGEST = 4096
DEFAULT_PECLET = 300.0
MOST_PECLET = 10**6  # as in training; the iterations grow with it
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SPECTRUM_SEEDS = 32
TIMES = "\N{MULTIPLICATION SIGN}"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# An update of a velocity that changes takes about as long as this many iterations.
UPDATE = 40.0
PROCESS = f"Corrupt by a forward process: {', '.join(METHODS)}, or one of an installed package."


@dataclass(frozen=True)
class FlowOptions:
    """The flow and the blur; not with --process, which has its own."""

    sigma_min: str = "0.5"
    """Blur width of level 1: pixels, or a fraction of the shorter side such as 0.002L."""
    sigma_max: str | None = None
    """Blur width of the last level: pixels, or a fraction of the shorter side; by default 0.08L, and at least twice --sigma-min."""
    turbulence: Literal["curl-noise", "spectral", "compressible"] = "curl-noise"
    """Generator of the velocity field. The first two are divergence-free; the third is the published one, frozen."""
    octaves: int = CurlNoise.octaves
    """Octaves of the curl noise: more add smaller eddies."""
    strokes: str | None = None
    """A painted flow: a word for each stroke of the brush, x and y of its points in thousandths of the sides,
    such as '100,500,900,500'. cli.explore paints them."""
    brush: float = StrokeFlow.brush
    """Width of the brush of the strokes, in shorter sides (standard deviation)."""
    strokes_on: Literal["rest", "turbulence"] = "rest"
    """Paint on a fluid at rest, or add the strokes to the turbulence."""
    turbulence_time: float = 0.0
    """How fast the flow itself changes: 0 freezes it; at 1 its largest eddies turn over in their own time."""
    offset: float = 0.0
    """Background the flow acts on; it matters for compressible flows only (9.5 in the published research code)."""
    boundary: Literal["wall", "periodic"] = "wall"
    """Boundary condition of the picture."""

    def widths(self, length: int) -> tuple[float, float]:
        """Blur widths of level 1 and of the last one for pictures of this shorter side [pixels]."""
        first = pixels(self.sigma_min, length)
        return first, max(0.08 * length, 2.0 * first) if self.sigma_max is None else pixels(self.sigma_max, length)

    @property
    def painted(self) -> bool:
        """Whether strokes are all the flow there is."""
        return self.strokes is not None and self.strokes_on == "rest"

    def generator(self) -> Turbulence:
        """The generator of the velocity field."""
        if self.strokes is None:
            console.check_left_out(self, "is for painted strokes; add --strokes", "brush", "strokes_on")
        if self.painted:
            of_turbulence = ("octaves", "turbulence", "turbulence_time")
            console.check_left_out(self, "is for turbulence; add --strokes-on turbulence", *of_turbulence)
        if self.turbulence != "curl-noise" and self.octaves != CurlNoise.octaves:
            raise InputError(f"--octaves is for curl-noise; --turbulence {self.turbulence} has none")
        turbulence = CurlNoise(octaves=self.octaves) if self.turbulence == "curl-noise" else TURBULENCE[self.turbulence]
        if self.strokes is None:
            return turbulence
        return StrokeFlow.parse(self.strokes, self.brush, None if self.painted else turbulence)


@dataclass(frozen=True)
class PictureOptions:
    """The picture, and how it is corrupted and shown."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[PICTURE]", help_behavior_hint="")] = PHOTOGRAPH
    """The picture, anything Pillow reads; the bundled photograph of a cat by default. cli.corrupt takes a video, an animation or
    a folder of pictures, too, and makes a film of it in one flow."""
    size: int | None = None
    """Shorter side in pixels that the picture is resized to; by default its own, but at most 384."""
    levels: int = 200
    """Number of levels K."""
    columns: int = 5
    """Pictures in a row."""
    seed: int = 0
    """Seed of the velocity field and of the noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def read(self) -> torch.Tensor:
        """The picture in its size on the device, float32 [1, C, H, W].

        Raises:
            InputError: if it cannot be read, or an option is out of its range.
        """
        device = console.pick_device(self.device)
        console.check_at_least(self, size=2, levels=1, columns=2)
        check_integer("--seed", self.seed, 0, 2**63 - 1)
        image = read_still(self.image)
        (height, width), (shorter, longer) = image.shape[1:], sorted(image.shape[1:])
        length = self.size or min(shorter, DEFAULT_SIZE)
        if length > (most := max(shorter, LONGEST * shorter // longer)):
            length = most
            print(f"{self.image}: {height} x {width} px; the shorter side becomes {most}, not {self.size}")
        image = image if length == min(image.shape[1:]) else resize_shorter(image, length)
        return torch.from_numpy(image)[None].to(device)


@dataclass(frozen=True)
class SceneOptions(PictureOptions):
    """The picture, and what corrupts it."""

    peclet: float | None = None
    """Peclet number V L / alpha; 0 is pure blur. By default 300, or the shorter side in pixels where that is less."""
    process: Annotated[str | None, tyro.conf.arg(help=PROCESS)] = None
    flow: Annotated[FlowOptions, tyro.conf.OmitArgPrefixes] = FlowOptions()

    def operator(self, schedule: Schedule, length: int) -> AdvectionDiffusion:
        """The advection-diffusion of pictures of this shorter side [pixels] that the options describe."""
        flow, peclet = self.flow, float(min(DEFAULT_PECLET, length)) if self.peclet is None else self.peclet
        check_number("peclet", peclet, 0, MOST_PECLET)
        how: dict[str, Any] = {name: getattr(flow, name) for name in ("boundary", "offset", "turbulence_time")}
        return AdvectionDiffusion(schedule, peclet=peclet, turbulence=flow.generator(), **how)

    def forward(self) -> ForwardProcess:
        """The process that the options name.

        Raises:
            InputError: if there is none, or an option is given that the process has its own value for.
        """
        for option, value in asdict(self.flow).items():
            if value != getattr(FlowOptions, option):
                raise InputError(f"--{option.replace('_', '-')} does not go with --process, which has its own")
        forward = named_method(str(self.process)).forward
        if self.peclet is None:
            return specs.changed(forward, levels=self.levels)
        if "peclet" not in getattr(forward.operator, "__dataclass_fields__", ()):
            raise InputError(f"--peclet does not go with --process {self.process}, which has no flow; leave it out")
        return specs.changed(forward, levels=self.levels, peclet=self.peclet)


@dataclass(frozen=True)
class Scene:
    """A picture on its way through the levels, at some moments of it, and what to show of them."""

    about: str
    """One line for people."""
    title: str
    """Title of the figures."""
    operator: AdvectionDiffusion | Operator
    seed: int | torch.Tensor
    """Seed of the velocity field."""
    boundary: str
    """Boundary of that field."""
    moving: bool
    """Whether that field changes in time."""
    moments: Iterator[tuple[int | None, torch.Tensor]]
    """The number of each moment, and the picture then, float32 [1, C, H, W]; None between two moments, where a piece ends."""
    sigma: np.ndarray
    """Blur widths of all moments [pixels]."""
    signal: np.ndarray
    noise: np.ndarray
    effort: np.ndarray
    """Iterations up to all moments, in units of one on the pixel grid; those of an update of the velocity are counted with them."""
    captions: dict[int, str] = field(default_factory=dict)
    """The moments of a strip, with their captions."""
    frames: set[int] = field(default_factory=set)
    """The moments of a video."""
    record: dict[str, Any] = field(default_factory=dict)
    """What corruption.json says about the levels."""

    @property
    def flows(self) -> bool:
        """Whether there is a velocity field."""
        return self.operator.peclet > 0.0

    def velocity(self, size: tuple[int, int], sigma: float = 0.0) -> torch.Tensor:
        """The velocity in units of V on a grid of this size, float32 [1, 2, h, w], when the blur is ``sigma`` cells."""
        return self.operator.velocity(self.seed, *size, sigma=sigma)

    def spectra(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wavenumbers, the energy of the velocity on a grid of this size at each, and its mean over several seeds."""
        fields = (replace(self, seed=seed).velocity(size) for seed in (self.seed, *range(SPECTRUM_SEEDS)))
        (k, energy), *others = (energy_spectrum(field, self.boundary) for field in fields)
        return k.numpy(), energy.numpy(), np.mean([other.numpy() for _, other in others], axis=0)


def shown(options: SceneOptions, u0: torch.Tensor, frames: int = 1, piece: float = np.inf) -> Scene:
    """The scene of a picture, with what is shown of it: pictures in a row, frames of a video, and what is written down.

    Raises:
        InputError: if options are out of their ranges, or do not go together.
    """
    return (_by_widths if options.process is None else _by_levels)(options, u0, frames, piece)


def _by_levels(options: SceneOptions, u0: torch.Tensor, frames: int, piece: float) -> Scene:
    scene, count = by_process(options, u0, piece), options.levels + 1
    captions = {
        k: f"level {k}\n{SIGMA} = {written(scene.sigma[k])} px\ns = {written(scene.signal[k])}, noise {written(scene.noise[k])}"
        for k in evenly_spaced(count, options.columns).tolist()
    }
    record = {"process": specs.to_json(options.forward())}
    record |= {"sigma_px": scene.sigma.tolist(), "signal": scene.signal.tolist(), "noise": scene.noise.tolist()}
    return replace(scene, captions=captions, frames=set(evenly_spaced(count, frames).tolist()), record=record)


def _by_widths(options: SceneOptions, u0: torch.Tensor, frames: int, piece: float) -> Scene:
    height, width = u0.shape[2:]
    length = min(height, width)
    schedule = Schedule.geometric(*options.flow.widths(length), options.levels)
    sigma, fourier = schedule.sigma, schedule.fourier(length)
    # Most levels are near the clean picture; the strip spaces its pictures by visible change.
    strip = sigma[-1] * np.linspace(0.0, 1.0, options.columns) ** 1.5
    columns = np.unique(np.abs(sigma[:, None] - strip).argmin(axis=0))
    frame_sigma = frame_widths(sigma[-1], frames)
    moments = np.union1d(sigma[columns], frame_sigma)
    operator = options.operator(Schedule(moments), length)
    iterations = round(operator.iterations(height, width)[-1])
    solver = f"{iterations} lattice iterations" if operator.solver == "lattice" else "the exact heat kernel"
    numbers = np.searchsorted(moments, sigma[columns]).tolist()
    captions = {
        n: f"level {k}\n{SIGMA} = {written(sigma[k])} px\nFo = {written(fourier[k])}" for n, k in zip(numbers, columns, strict=True)
    }
    captions[0] = "level 0\nclean"
    record = {"peclet": operator.peclet, "length_px": length, "sigma_px": sigma.tolist(), "fourier": fourier.tolist()}
    record |= {"solver": operator.solver, "lattice_iterations": iterations}
    scene = by_flow(options, u0, moments, piece)
    frame_numbers = set(np.searchsorted(moments, frame_sigma).tolist())
    return replace(scene, about=f"{scene.about}, {solver}", captions=captions, frames=frame_numbers, record=record)


def by_flow(options: SceneOptions, u0: torch.Tensor, sigma: np.ndarray, piece: float = np.inf) -> Scene:
    """A picture in the flow and the blur that the options describe, at these blur widths [pixels], from 0 on.

    It is made in pieces of at most so much effort.
    """
    size, seed, flow = Size(*u0.shape[2:]), options.seed, options.flow
    operator = options.operator(Schedule(sigma), size.shorter)
    about, moving = f"Pe = {operator.peclet:g}", operator.moving and not flow.painted
    under = f"{'strokes on ' if flow.strokes else ''}{flow.turbulence}, seed {seed}"
    title = f"{about}, " + ("painted flow" if flow.painted else under)
    effort = _effort(operator, sigma, size)
    finer, numbers = in_pieces(sigma, effort, piece)
    pictures = options.operator(Schedule(finer), size.shorter).trajectory(u0, seed)
    moments = ((number, u) for number, (_, u) in zip(numbers, pictures, strict=True))
    scales = np.ones_like(sigma), np.zeros_like(sigma)
    return Scene(about, title, operator, seed, flow.boundary, moving, moments, sigma, *scales, effort)


def by_process(options: SceneOptions, u0: torch.Tensor, piece: float = np.inf) -> Scene:
    """A picture at all levels of the process that the options name, made in pieces of at most so much effort.

    Raises:
        InputError: as :meth:`SceneOptions.forward`.
    """
    forward, size = options.forward(), Size(*u0.shape[2:])
    operator, seed, own = forward.operator, seeds(options.seed, "flow"), torch.tensor([options.seed])
    about, of_field = f"{options.process}, Pe = {operator.peclet:g}", (operator.field_boundary, operator.moving)
    sigma = operator.widths(size)
    effort = _effort(operator, sigma, size)
    moments: Iterator[tuple[int | None, torch.Tensor]] = forward.trajectory(u0, own)
    if np.diff(effort).max() > piece and "blur" in getattr(operator, "__dataclass_fields__", ()):
        finer, numbers = in_pieces(sigma, effort, piece)
        pieces = replace(operator, levels=len(finer) - 1, blur=GivenWidths(widths_px=tuple(finer)))  # type: ignore[type-var]
        moments = _of_pieces(forward, pieces.trajectory(u0, seed), numbers, forward.unit_noise(own, u0))
    numbers_of = sigma, forward.signal, forward.noise, effort
    return Scene(about, f"{about}, seed {options.seed}", operator, seed, *of_field, moments, *numbers_of)


def _of_pieces(
    forward: ForwardProcess, pictures: Iterator[tuple[int, torch.Tensor]], numbers: list[int | None], noise: torch.Tensor
) -> Iterator[tuple[int | None, torch.Tensor]]:
    """The levels of a process from a trajectory that has others between them."""
    for level, (_, u) in zip(numbers, pictures, strict=True):
        yield level, u if level is None else forward.scaled(u, level) + float(forward.noise[level]) * noise


@dataclass(frozen=True)
class GivenWidths(Blur):
    """Blur widths of levels 0..K as they are given."""

    widths_px: tuple[float, ...] = (0.0,)

    def of_levels(self, levels: int, shorter: int) -> np.ndarray:
        return np.array(self.widths_px)


def in_pieces(sigma: np.ndarray, effort: np.ndarray, most: float) -> tuple[np.ndarray, list[int | None]]:
    """Blur widths with others between them, so that from each to the next the effort is at most ``most``.

    Returns:
        All widths, and the number of each among the given ones; None for the others.
    """
    parts = np.maximum(np.ceil(np.diff(effort) / most), 1.0).astype(int)
    places = np.concatenate([[0], parts.cumsum()])
    # The time, and with it the iterations, is proportional to sigma^2.
    finer = np.sqrt(np.interp(np.arange(places[-1] + 1), places, sigma**2))
    finer[places] = sigma
    numbers: list[int | None] = [None] * len(finer)
    for number, place in enumerate(places.tolist()):
        numbers[place] = number
    return finer, numbers


def _effort(operator: AdvectionDiffusion | Operator, sigma: np.ndarray, size: Size) -> np.ndarray:
    """Iterations up to blur widths [pixels], with those that the updates of a changing velocity are worth."""
    iterations = operator.iterations(*size)
    turnovers = getattr(operator, "turbulence_time", 0.0) * operator.peclet * sigma**2 / (2.0 * size.shorter**2)
    return iterations + UPDATE * np.minimum(turnovers * DEFAULT_SCHEME.updates_per_turnover, iterations)


def frame_widths(last: float, count: int) -> np.ndarray:
    """Blur widths of the frames of a video, from 0 to ``last``: its time, a little slower at first, when most is visible."""
    return last * np.linspace(0.0, 1.0, count) ** 1.15


def written(number: float) -> str:
    """A number with two digits, as people write it: 12, 0.05, 9.3 times 10 to the minus 6."""
    rounded = float(f"{number:.2g}")
    if rounded == 0.0 or 0.001 <= abs(rounded) < 10_000.0:
        return np.format_float_positional(rounded, trim="-")
    mantissa, exponent = f"{rounded:e}".split("e")
    return f"{float(mantissa):g} {TIMES} 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def pixels(text: str, length: int) -> float:
    """A blur width in pixels from ``20``, ``20px`` or ``0.16L`` (a fraction of the shorter side).

    Raises:
        InputError: if it is none of these.
    """
    unit = length if text.endswith("L") else 1.0
    try:
        return float(text.removesuffix("L").removesuffix("px")) * unit
    except ValueError:
        raise InputError(f"a blur width is a number of pixels (20) or of shorter sides (0.16L), got {text!r}") from None
