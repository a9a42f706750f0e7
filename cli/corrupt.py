"""Corrupt a picture with turbulence and blur, and show how it happens."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import PIL
import torch
import tyro
import warp
from tqdm import tqdm

from cli import console, figures, render
from diffusion.data.images import read_image, resize_shorter
from diffusion.files import write_json
from diffusion.process import TURBULENCE, named_process
from diffusion.rng import seeds
from lbm_warp import AdvectionDiffusion, Schedule, energy_spectrum
from lbm_warp.checks import InputError, check_integer

# A larger picture is brought to this shorter side unless --size says otherwise: the work grows with its fourth power.
DEFAULT_SIZE = 384
DEFAULT_PECLET = 300.0
VIDEO_SIZE = 512
SPECTRUM_SEEDS = 32


@dataclass(frozen=True)
class Corrupt:
    """Options of ``python -m cli.corrupt``."""

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """The picture, anything Pillow reads; the bundled photograph of a cat if left out."""
    process: str | None = None
    """Corrupt as a forward process does, with its flow, blur, contrast and noise: beyond-blur, beyond-blur-curl, ihd, blurring,
    soft, cold, ddpm or structured-noise. Only --peclet and --levels change it; the levels are shown evenly spaced."""
    peclet: float | None = None
    """Advection against diffusion, V L / alpha; 0 is pure blur. By default 300, or the shorter side in pixels where that is less:
    a stronger flow draws finer detail than the picture can carry, which shows as ripples."""
    sigma_min: str = "0.5"
    """Blur of level 1: pixels, or a fraction of the shorter side such as 0.002L."""
    sigma_max: str = "0.08L"
    """Blur of the last level: pixels, or a fraction of the shorter side such as 0.08L."""
    levels: int = 200
    """Number of levels K; sigma grows geometrically from level 1 to level K."""
    seed: int = 0
    """Seed of the velocity field."""
    turbulence: Literal["curl-noise", "spectral", "compressible"] = "curl-noise"
    """Kind of velocity field. The first two have no divergence; the third is that of the published research code."""
    turbulence_time: float = 0.0
    """How fast the flow itself changes: 0 freezes it, at 1 its largest eddies turn over in their own time."""
    offset: float = 0.0
    """Background the flow acts on; felt by a compressible flow only (9.5 in the published research code)."""
    boundary: Literal["wall", "periodic"] = "wall"
    """What happens at the border."""
    video: bool = False
    """Write trajectory.mp4 as well."""
    frames: int = 240
    """Frames of the video from clean to fully corrupted."""
    fps: int = 30
    """Frames per second of the video."""
    columns: int = 8
    """Pictures in the strip."""
    size: int | None = None
    """Shorter side in pixels the picture is brought to; by default its own, but at most 384."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the picture> if left out."""


def corrupt(options: Corrupt) -> None:
    """Read the picture, march it along one trajectory, write the results."""
    device = console.pick_device(options.device)
    for name, lowest in (("columns", 2), ("frames", 2), ("fps", 1), ("levels", 1)):
        check_integer(f"--{name}", getattr(options, name), lowest)
    if options.size is not None:
        check_integer("--size", options.size, 2)
    check_integer("--seed", options.seed, -(2**63), 2**63 - 1)

    path = options.image or Path(str(resources.files("assets") / "chelsea.png"))
    image = read_image(path)
    length = options.size or min(*image.shape[1:], DEFAULT_SIZE)
    if length != min(image.shape[1:]):
        image = resize_shorter(image, length)
    u0 = torch.from_numpy(image)[None].to(device)
    out = options.out or Path("outputs") / path.stem
    written, record = by_flow(options, path.stem, u0, out) if options.process is None else by_process(options, path.stem, u0, out)
    written.append(out / "corruption.json")
    facts = {
        "command": shlex.join(["python", "-m", "cli.corrupt", *sys.argv[1:]]),
        "options": asdict(options) | {"image": str(options.image or path.name), "out": str(out)},
        "image": {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "channels": u0.shape[1],
            "height": u0.shape[2],
            "width": u0.shape[3],
        },
        "device": str(device),
        "versions": {module.__name__: module.__version__ for module in (warp, torch, np, PIL)},
    }
    write_json(written[-1], facts | record)
    print("wrote " + ", ".join(str(file) for file in written))


def by_flow(options: Corrupt, name: str, u0: torch.Tensor, out: Path) -> tuple[list[Path], dict[str, object]]:
    """Corrupt by a flow and a blur of the options' own; returns the files written and what it takes to make them again."""
    height, width = u0.shape[2:]
    length = min(height, width)
    schedule = Schedule.geometric(pixels(options.sigma_min, length), pixels(options.sigma_max, length), options.levels)
    # Levels are crowded where a picture still looks clean; the strip spaces its pictures by what the eye sees.
    strip_sigma = schedule.sigma[-1] * np.linspace(0.0, 1.0, options.columns) ** 1.5
    columns = np.unique(np.abs(schedule.sigma[:, None] - strip_sigma).argmin(axis=0))
    # The video's clock runs by blur width, a little slower at first, when there is most to see.
    frame_sigma = schedule.sigma[-1] * np.linspace(0.0, 1.0, options.frames if options.video else 1) ** 1.15
    moments = Schedule(np.union1d(schedule.sigma[columns], frame_sigma))
    peclet = float(min(DEFAULT_PECLET, length)) if options.peclet is None else options.peclet
    operator = AdvectionDiffusion(
        moments,
        peclet,
        TURBULENCE[options.turbulence],
        boundary=options.boundary,
        offset=options.offset,
        turbulence_time=options.turbulence_time,
    )
    grids = operator.plan(height, width).grids if operator.solver == "lattice" else ()
    iterations = {f"{grid.factor} px": grid.iterations for grid in grids}
    solver = f"{sum(iterations.values())} lattice iterations" if operator.solver == "lattice" else "the exact heat kernel"
    print(f"{name}: {width} x {height} px, Pe = {peclet:g}, {solver} on {u0.device}")

    shown: dict[float, np.ndarray] = {}

    def film() -> Iterator[np.ndarray]:
        """March once; keep the strip's pictures, yield the video's."""
        moment = tqdm(operator.trajectory(u0, options.seed), total=moments.levels + 1, desc="corrupting", unit="level")
        for number, u in moment:
            picture, sigma = render.to_pixels(u[0]), moments.sigma[number]
            if sigma in schedule.sigma[columns]:
                shown[float(sigma)] = picture
            if sigma in frame_sigma:
                yield render.enlarged(picture, VIDEO_SIZE)

    written = [out / "strip.png", out / "corrupted.png", *run_film(film(), options, out)]
    fourier = schedule.fourier(length)
    captions = [
        f"level {k}\n$\\sigma$ = {schedule.sigma[k]:.3g} px\nFo = {fourier[k]:.2g}" if k else "level 0\nclean" for k in columns
    ]
    flow = f"Pe = {peclet:g}, {options.turbulence}, seed {options.seed}"
    figures.save_figure(written[0], figures.strip([shown[s] for s in schedule.sigma[columns]], captions, f"{name}   {flow}"))
    render.save_image(written[1], shown[schedule.sigma[-1]])
    if peclet > 0:
        written.append(draw_velocity(operator, options.seed, height, width, flow, out))
    record = {
        "peclet": peclet,
        "length_px": length,
        "sigma_px": schedule.sigma.tolist(),
        "fourier": fourier.tolist(),
        "solver": operator.solver,
        "lattice_iterations": iterations,
    }
    return written, record


def by_process(options: Corrupt, name: str, u0: torch.Tensor, out: Path) -> tuple[list[Path], dict[str, object]]:
    """Corrupt as a forward process does; returns the files written and what it takes to make them again.

    Raises:
        InputError: if there is no such process, or an option is given that it has a value of its own for.
    """
    for option in ("sigma_min", "sigma_max", "turbulence", "turbulence_time", "offset", "boundary"):
        if getattr(options, option) != getattr(Corrupt, option):
            raise InputError(f"--{option.replace('_', '-')} does not go with --process, which has its own")
    check_integer("--seed", options.seed, 0, 2**63 - 1)
    process = replace(named_process(options.process), levels=options.levels)
    process = process if options.peclet is None else replace(process, peclet=options.peclet)
    height, width = u0.shape[2:]
    columns = evenly(options.levels, options.columns)
    framed = set(evenly(options.levels, options.frames if options.video else 1))
    print(f"{name}: {width} x {height} px, {options.process}, Pe = {process.peclet:g}, on {u0.device}")
    shown: dict[int, np.ndarray] = {}

    def film() -> Iterator[np.ndarray]:
        levels = process.trajectory(u0, torch.tensor([options.seed]))
        for level, u in tqdm(levels, total=options.levels + 1, desc="corrupting", unit="level"):
            picture = render.to_pixels(u[0])
            if level in columns:
                shown[level] = picture
            if level in framed:
                yield render.enlarged(picture, VIDEO_SIZE)

    written = [out / "strip.png", out / "corrupted.png", *run_film(film(), options, out)]
    sigma, (signal, noise) = process.blur_widths(min(height, width)), process.scales()
    captions = [f"level {k}\n$\\sigma$ = {sigma[k]:.3g} px\ns = {signal[k]:.2g}, noise {noise[k]:.2g}" for k in columns]
    title = f"{options.process}, Pe = {process.peclet:g}, seed {options.seed}"
    figures.save_figure(written[0], figures.strip([shown[k] for k in columns], captions, f"{name}   {title}"))
    render.save_image(written[1], shown[options.levels])
    if process.peclet > 0.0:
        operator = replace(process, transport=True).operator(min(height, width))
        written.append(draw_velocity(operator, seeds(options.seed, "flow"), height, width, title, out))
    scales = {"sigma_px": sigma.tolist(), "signal": signal.tolist(), "noise": noise.tolist()}
    return written, {"process": asdict(process)} | scales


def evenly(levels: int, count: int) -> list[int]:
    """At most ``count`` of the levels 0 to ``levels``, evenly spaced."""
    return np.unique(np.linspace(0, levels, count).round().astype(int)).tolist()


def run_film(film: Iterator[np.ndarray], options: Corrupt, out: Path) -> list[Path]:
    """Let the picture be corrupted; the video of it, if it was asked for."""
    if not options.video:
        deque(film, maxlen=0)
        return []
    render.save_video(out / "trajectory.mp4", held(film, options.fps // 2, options.fps), options.fps)
    return [out / "trajectory.mp4"]


def draw_velocity(operator: AdvectionDiffusion, seed: int | torch.Tensor, height: int, width: int, title: str, out: Path) -> Path:
    """Draw the velocity field of a seed, and its spectrum beside the mean of several."""
    velocity = operator.velocity(seed, height, width)
    others = [energy_spectrum(operator.velocity(other, height, width), operator.boundary)[1] for other in range(SPECTRUM_SEEDS)]
    k, energy = energy_spectrum(velocity, operator.boundary)
    spectrum = k.numpy(), energy.numpy(), (sum(others) / SPECTRUM_SEEDS).numpy()
    figure = figures.velocity_figure(velocity[0].numpy(), f"Velocity field   {title}", spectrum, SPECTRUM_SEEDS)
    figures.save_figure(out / "velocity.png", figure)
    return out / "velocity.png"


def held(frames: Iterator[np.ndarray], before: int, after: int) -> Iterator[np.ndarray]:
    """The frames, with the first one shown ``before`` times more and the last one ``after`` times more."""
    last = next(frames)
    yield from [last] * (before + 1)
    for last in frames:
        yield last
    yield from [last] * after


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


if __name__ == "__main__":
    console.run(corrupt, Corrupt, "corrupt")
