"""Corrupt a picture with turbulence and blur, and show how it happens."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import PIL
import torch
import tyro
import warp
from matplotlib.figure import Figure
from tqdm import tqdm

from cli import console, figures, film, render
from cli.film import FilmOptions
from diffusion.corruption import Corruption, flow_operator
from diffusion.data.dataset import evenly_spaced
from diffusion.data.images import fit, read_image, resize_shorter
from diffusion.files import write_json
from diffusion.process import TURBULENCE, named_process
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, StrokeFlow, Turbulence, WaveAdvectionDiffusion, energy_spectrum
from lbm_warp.checks import InputError, check_integer

PHOTOGRAPH = Path(str(resources.files("assets") / "chelsea.png"))
# The work grows with the fourth power of the shorter side, so --size is at most this by default.
DEFAULT_SIZE = 384
DEFAULT_PECLET = 300.0
VIDEO_SIZE = 512
LEVELS_OF_FILM = 1000
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SPECTRUM_SEEDS = 32


@dataclass(frozen=True)
class FlowOptions:
    """The flow and the blur; not with --process, which has its own."""

    sigma_min: str = "0.5"
    """Blur width of level 1: pixels, or a fraction of the shorter side such as 0.002L."""
    sigma_max: str = "0.08L"
    """Blur width of the last level: pixels, or a fraction of the shorter side such as 0.08L."""
    turbulence: Literal["curl-noise", "spectral", "compressible"] = "curl-noise"
    """Generator of the velocity field. The first two are divergence-free; the third is the published one, frozen."""
    octaves: int = CurlNoise.octaves
    """Octaves of the curl noise: more add smaller eddies."""
    strokes: str | None = None
    """A painted flow instead of turbulence: a word for each stroke of the brush, x and y of its points in thousandths of the sides,
    such as '100,500,900,500'. cli.explore paints them."""
    turbulence_time: float = 0.0
    """How fast the flow itself changes: 0 freezes it; at 1 its largest eddies turn over in their own time."""
    offset: float = 0.0
    """Background the flow acts on; it matters for compressible flows only (9.5 in the published research code)."""
    boundary: Literal["wall", "periodic"] = "wall"
    """Boundary condition of the picture."""


@dataclass(frozen=True)
class VideoOptions:
    """The video."""

    video: bool = False
    """Write trajectory.mp4 as well."""
    frames: int = 240
    """Frames of the video from clean to fully corrupted."""
    fps: int = 30
    """Frames per second of the video."""


@dataclass(frozen=True)
class PictureOptions:
    """The picture, and how it is corrupted and shown."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[PICTURE]", help_behavior_hint="")] = PHOTOGRAPH
    """The picture, anything Pillow reads; the bundled photograph of a cat by default. cli.corrupt takes a video or a folder of
    pictures, too, and makes a film of it in one flow."""
    size: int | None = None
    """Shorter side in pixels that the picture is resized to; by default its own, but at most 384."""
    levels: int = 200
    """Number of levels K."""
    columns: int = 8
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
        image = read_image(self.image)
        length = self.size or min(*image.shape[1:], DEFAULT_SIZE)
        image = image if length == min(image.shape[1:]) else resize_shorter(image, length)
        return torch.from_numpy(image)[None].to(device)


@dataclass(frozen=True)
class Corrupt(PictureOptions):
    """Options of ``python -m cli.corrupt``."""

    out: Path | None = None
    """Folder for the results; outputs/<name of the picture> by default."""
    peclet: float | None = None
    """Peclet number V L / alpha; 0 is pure blur. By default 300, or the shorter side in pixels where that is less."""
    process: str | None = None
    """Corrupt by a forward process: fluid, beyond-blur, beyond-blur-frozen, beyond-blur-curl, ihd, blurring, soft, cold, ddpm,
    structured-noise or structured-noise-frozen."""
    flow: Annotated[FlowOptions, tyro.conf.OmitArgPrefixes] = FlowOptions()
    video: Annotated[VideoOptions, tyro.conf.OmitArgPrefixes] = VideoOptions()
    film: Annotated[FilmOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FilmOptions)


class Trajectory(NamedTuple):
    """A picture on its way through the levels, and what to show of it."""

    about: str
    """One line for the terminal."""
    title: str
    """Title of the figures."""
    count: int
    """Number of moments."""
    moments: Iterator[tuple[int, torch.Tensor]]
    """The number of each moment, and the picture then, float32 [1, C, H, W]."""
    captions: dict[int, str]
    """The moments of the strip, with their captions."""
    frames: set[int]
    """The moments of the video."""
    flow: tuple[AdvectionDiffusion | WaveAdvectionDiffusion, int | torch.Tensor] | None
    """What has the velocity field, and its seed; None without a flow."""
    record: dict[str, Any]
    """What corruption.json says about the levels."""


def corrupt(options: Corrupt) -> None:
    """Read the picture, corrupt it along one trajectory, write the results."""
    console.check_at_least(options.video, frames=2, fps=1)
    if options.film.to is not None or film.is_film(options.image):
        make_film(options)
        return
    if options.film.png or options.film.course == "hold":
        raise InputError("--png and --course are for films: of a video, a folder of pictures, or with --to")
    path, u0 = options.image, options.read()
    trajectory = by_flow(options, u0) if options.process is None else by_process(options, u0)
    _, channels, height, width = u0.shape
    print(f"{path.stem}: {height} x {width} px, {trajectory.about} on {u0.device}")

    out = options.out or Path("outputs") / path.stem
    written = [*draw(trajectory, path.stem, options, out), out / "corruption.json"]
    image = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "channels": channels, "height": height, "width": width}
    write_json(written[-1], facts(options, out, u0.device) | {"image": image} | trajectory.record)
    print(f"wrote {', '.join(map(str, written))}")


def facts(options: Corrupt, out: Path, device: torch.device) -> dict[str, Any]:
    """What corruption.json says of any result."""
    names = {"image": options.image.name if options.image == PHOTOGRAPH else str(options.image), "out": str(out)}
    chosen = asdict(options)
    chosen["film"]["to"] = None if options.film.to is None else str(options.film.to)
    return {
        "command": console.command_line(),
        "options": chosen | names,
        "device": str(device),
        "versions": {module.__name__: module.__version__ for module in (warp, torch, np, PIL)},
    }


def by_flow(options: Corrupt, u0: torch.Tensor) -> Trajectory:
    """The trajectory of a picture in the flow and blur that the options describe."""
    height, width = u0.shape[2:]
    length, flow = min(height, width), options.flow
    schedule = Schedule.geometric(pixels(flow.sigma_min, length), pixels(flow.sigma_max, length), options.levels)
    # Most levels are near the clean picture; the strip spaces its pictures by visible change.
    strip_sigma = schedule.sigma[-1] * np.linspace(0.0, 1.0, options.columns) ** 1.5
    columns = np.unique(np.abs(schedule.sigma[:, None] - strip_sigma).argmin(axis=0))
    frame_sigma = frame_widths(schedule.sigma[-1], options.video.frames if options.video.video else 1)
    moments = Schedule(np.union1d(schedule.sigma[columns], frame_sigma))
    peclet = peclet_of(options, length)
    operator = operator_of(flow, moments, peclet)
    fourier = schedule.fourier(length)
    captions = {
        k: f"level {k}\n{SIGMA} = {schedule.sigma[k]:.3g} px\nFo = {fourier[k]:.2g}" if k else "level 0\nclean" for k in columns
    }
    iterations = round(operator.iterations(height, width)[-1])
    solver = f"{iterations} lattice iterations" if operator.solver == "lattice" else "the exact heat kernel"
    return Trajectory(
        about=f"Pe = {peclet:g}, {solver}",
        title=f"Pe = {peclet:g}, " + ("painted flow" if flow.strokes else f"{flow.turbulence}, seed {options.seed}"),
        count=moments.levels + 1,
        moments=operator.trajectory(u0, options.seed),
        captions={int(np.searchsorted(moments.sigma, schedule.sigma[k])): caption for k, caption in captions.items()},
        frames=set(np.searchsorted(moments.sigma, frame_sigma).tolist()),
        flow=(operator, options.seed) if peclet > 0.0 else None,
        record={
            "peclet": peclet,
            "length_px": length,
            "sigma_px": schedule.sigma.tolist(),
            "fourier": fourier.tolist(),
            "solver": operator.solver,
            "lattice_iterations": iterations,
        },
    )


def frame_widths(last: float, count: int) -> np.ndarray:
    """Blur widths of the frames of a video, from 0 to ``last``: its time, a little slower at first, when most is visible."""
    return last * np.linspace(0.0, 1.0, count) ** 1.15


def peclet_of(options: Corrupt, length: int) -> float:
    """The Peclet number for pictures of this shorter side [pixels]."""
    return float(min(DEFAULT_PECLET, length)) if options.peclet is None else options.peclet


def operator_of(flow: FlowOptions, schedule: Schedule, peclet: float) -> AdvectionDiffusion:
    """The advection-diffusion that the options describe."""
    return AdvectionDiffusion(
        schedule,
        peclet=peclet,
        turbulence=turbulence_of(flow),
        boundary=flow.boundary,
        offset=flow.offset,
        turbulence_time=flow.turbulence_time,
    )


def turbulence_of(flow: FlowOptions) -> Turbulence:
    """The generator of the velocity field that the options describe."""
    if flow.turbulence != "curl-noise" and flow.octaves != CurlNoise.octaves:
        raise InputError(f"--octaves is for curl-noise; --turbulence {flow.turbulence} has none")
    if flow.strokes is not None:
        return StrokeFlow.parse(flow.strokes)
    return CurlNoise(octaves=flow.octaves) if flow.turbulence == "curl-noise" else TURBULENCE[flow.turbulence]


def process_of(options: Corrupt, size: Size) -> Corruption:
    """The forward process that the options name.

    Raises:
        InputError: if there is none, or an option is given that the process has its own value for.
    """
    for option, value in asdict(options.flow).items():
        if value != getattr(FlowOptions, option):
            raise InputError(f"--{option.replace('_', '-')} does not go with --process, which has its own")
    process = replace(named_process(options.process), levels=options.levels)
    process = process if options.peclet is None else replace(process, peclet=options.peclet)
    return Corruption(process, size)


def by_process(options: Corrupt, u0: torch.Tensor) -> Trajectory:
    """The trajectory of a picture in a forward process, its levels evenly spaced.

    Raises:
        InputError: as :func:`process_of`.
    """
    corruption = process_of(options, Size(*u0.shape[2:]))
    process = corruption.process
    sigma, signal, noise = corruption.sigma, corruption.signal, corruption.noise
    title = f"{options.process}, Pe = {process.peclet:g}"
    return Trajectory(
        about=title,
        title=f"{title}, seed {options.seed}",
        count=options.levels + 1,
        moments=corruption.trajectory(u0, torch.tensor([options.seed])),
        captions={
            k: f"level {k}\n{SIGMA} = {sigma[k]:.3g} px\ns = {signal[k]:.2g}, noise {noise[k]:.2g}"
            for k in evenly_spaced(options.levels + 1, options.columns).tolist()
        },
        frames=set(evenly_spaced(options.levels + 1, options.video.frames).tolist()) if options.video.video else set(),
        flow=(flow_operator(process, sigma), seeds(options.seed, "flow")) if process.peclet > 0.0 else None,
        record={"process": asdict(process), "sigma_px": sigma.tolist(), "signal": signal.tolist(), "noise": noise.tolist()},
    )


def make_film(options: Corrupt) -> None:
    """Corrupt a video or a folder of pictures frame by frame, or go from a picture into another; write the film."""
    path, out, device = options.image, options.out or Path("outputs") / options.image.stem, console.pick_device(options.device)
    fps = options.video.fps
    if options.film.to is None:
        console.check_at_least(options, size=2, levels=1)
        pictures = film.open_film(path, lambda side: options.size or min(side, DEFAULT_SIZE))
        fps = round(pictures.fps or fps) if fps == VideoOptions.fps else fps
        frames = film.corrupted(pictures, options.film, corrupter(options, pictures.size), device)
    else:
        if film.is_film(path):
            raise InputError(f"--to needs a picture to start from, got {path}")
        first = options.read().expand(1, 3, -1, -1)
        size = Size(*first.shape[2:])
        second = torch.from_numpy(fit(read_image(options.film.to, "RGB"), size))[None].to(device)
        frames = film.passage(first, second, options.video.frames, corrupter(options, size))
        frames = film.there_and_back(frames) if options.film.loop else frames
    written = film.save((render.enlarged(frame, VIDEO_SIZE) for frame in frames), out, fps, options.film.png)
    write_json(out / "corruption.json", facts(options, out, device))
    print(f"wrote {', '.join(map(str, written))}, {out / 'corruption.json'}")


def corrupter(options: Corrupt, size: Size) -> film.CorruptTo:
    """What corrupts pictures of this size by fractions of the whole way, with the flow of the options' seed."""
    if options.process is not None:
        corruption = process_of(options, size)
        return lambda u, part: corruption.corrupt(
            u, torch.from_numpy((part * corruption.levels).round().astype(np.int64)), torch.full((len(u),), options.seed)
        )
    flow, peclet = options.flow, peclet_of(options, size.shorter)
    # A level for each blur width that differs visibly; the blur width grows with the fraction.
    sigma = frame_widths(pixels(flow.sigma_max, size.shorter), LEVELS_OF_FILM + 1)
    operator = operator_of(flow, Schedule(sigma), peclet)
    return lambda u, part: operator(u, torch.from_numpy((part * LEVELS_OF_FILM).round().astype(np.int64)), options.seed)


def draw(trajectory: Trajectory, name: str, options: Corrupt, out: Path) -> list[Path]:
    """Corrupt the picture; write the strip, the last picture, the velocity field, and the video if it is asked for."""
    shown: dict[int, np.ndarray] = {}
    written = [out / "strip.png", out / "corrupted.png"]

    def frames() -> Iterator[np.ndarray]:
        for number, u in tqdm(trajectory.moments, total=trajectory.count, desc="corrupting", unit="level"):
            picture = render.to_pixels(u[0])
            if number in trajectory.captions:
                shown[number] = picture
            if number in trajectory.frames:
                yield render.enlarged(picture, VIDEO_SIZE)

    if options.video.video:
        written.append(out / "trajectory.mp4")
        if options.film.loop:
            render.save_video(written[-1], film.there_and_back(frames()), options.video.fps)
        else:
            save_video(written[-1], frames(), options.video.fps)
    else:
        deque(frames(), maxlen=0)
    strip = figures.strip(list(shown.values()), [trajectory.captions[k] for k in shown], f"{name}   {trajectory.title}")
    figures.save_figure(written[0], strip)
    render.save_image(written[1], shown[max(shown)])
    if trajectory.flow is not None:
        written.append(out / "velocity.png")
        figures.save_figure(written[-1], draw_velocity(*trajectory.flow, shown[0].shape[:2], trajectory.title))
    return written


def draw_velocity(
    flow: AdvectionDiffusion | WaveAdvectionDiffusion, seed: int | torch.Tensor, size: tuple[int, int], title: str
) -> Figure:
    """The velocity field of a seed, and its spectrum beside the mean of several seeds."""
    velocity = flow.velocity(seed, *size)
    others = [energy_spectrum(flow.velocity(other, *size), flow.boundary)[1] for other in range(SPECTRUM_SEEDS)]
    k, energy = energy_spectrum(velocity, flow.boundary)
    spectrum = k.numpy(), energy.numpy(), (sum(others) / SPECTRUM_SEEDS).numpy()
    return figures.velocity_and_spectrum(velocity[0].numpy(), f"Velocity field   {title}", spectrum, SPECTRUM_SEEDS)


def save_video(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Write a video in which the first frame stays for half a second more, and the last one for a second."""

    def held() -> Iterator[np.ndarray]:
        last = next(frames)
        yield from [last] * (fps // 2 + 1)
        for last in frames:
            yield last
        yield from [last] * fps

    render.save_video(path, held(), fps)


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


main = partial(console.run, "corrupt", corrupt, partial(tyro.cli, Corrupt))


if __name__ == "__main__":
    main()
