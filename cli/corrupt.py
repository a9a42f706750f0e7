"""Corrupt a picture with turbulence and blur, and show how it happens."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL
import torch
import tyro
import warp
from matplotlib.figure import Figure
from tqdm import tqdm

from cli import console, figures, film, render
from cli.film import FilmOptions
from cli.scene import DEFAULT_SIZE, PHOTOGRAPH, Scene, SceneOptions, by_flow, by_process, frame_widths
from diffusion import specs
from diffusion.data.dataset import evenly_spaced
from diffusion.data.images import fit, read_image
from diffusion.files import write_json
from diffusion.size import Size
from lbm_warp import Schedule, energy_spectrum
from lbm_warp.checks import InputError

VIDEO_SIZE = 512
LEVELS_OF_FILM = 1000
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
SPECTRUM_SEEDS = 32


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
class Corrupt(SceneOptions):
    """Options of ``python -m cli.corrupt``."""

    out: Path | None = None
    """Folder for the results; outputs/<name of the picture> by default."""
    video: Annotated[VideoOptions, tyro.conf.OmitArgPrefixes] = VideoOptions()
    film: Annotated[FilmOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FilmOptions)


def corrupt(options: Corrupt) -> None:
    """Read the picture, corrupt it along one trajectory, write the results."""
    console.check_at_least(options.video, frames=2, fps=1)
    if options.film.to is not None or film.is_film(options.image):
        make_film(options)
        return
    if options.film.png or options.film.course == "hold":
        raise InputError("--png and --course are for films: of a video, a folder of pictures, or with --to")
    path, u0 = options.image, options.read()
    scene = shown(options, u0)
    _, channels, height, width = u0.shape
    print(f"{path.stem}: {height} x {width} px, {scene.about} on {u0.device}")

    out = options.out or Path("outputs") / path.stem
    written = [*draw(scene, path.stem, options, out), out / "corruption.json"]
    image = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "channels": channels, "height": height, "width": width}
    write_json(written[-1], facts(options, out, u0.device) | {"image": image} | scene.record)
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


def shown(options: Corrupt, u0: torch.Tensor) -> Scene:
    """The scene of a picture, with what is shown of it: pictures in a row, frames of the video, and what is written down.

    Raises:
        InputError: if options are out of their ranges, or do not go together.
    """
    if options.process is not None:
        scene, count = by_process(options, u0), options.levels + 1
        captions = {
            k: f"level {k}\n{SIGMA} = {scene.sigma[k]:.3g} px\ns = {scene.signal[k]:.2g}, noise {scene.noise[k]:.2g}"
            for k in evenly_spaced(count, options.columns).tolist()
        }
        frames = set(evenly_spaced(count, options.video.frames).tolist()) if options.video.video else set()
        numbers = {"sigma_px": scene.sigma.tolist(), "signal": scene.signal.tolist(), "noise": scene.noise.tolist()}
        return replace(scene, captions=captions, frames=frames, record={"process": specs.to_json(options.forward())} | numbers)
    height, width = u0.shape[2:]
    length = min(height, width)
    schedule = Schedule.geometric(*options.flow.widths(length), options.levels)
    sigma, fourier = schedule.sigma, schedule.fourier(length)
    # Most levels are near the clean picture; the strip spaces its pictures by visible change.
    strip = sigma[-1] * np.linspace(0.0, 1.0, options.columns) ** 1.5
    columns = np.unique(np.abs(sigma[:, None] - strip).argmin(axis=0))
    frame_sigma = frame_widths(sigma[-1], options.video.frames if options.video.video else 1)
    moments = np.union1d(sigma[columns], frame_sigma)
    operator = options.operator(Schedule(moments), length)
    iterations = round(operator.iterations(height, width)[-1])
    solver = f"{iterations} lattice iterations" if operator.solver == "lattice" else "the exact heat kernel"
    captions = {
        int(np.searchsorted(moments, sigma[k])): f"level {k}\n{SIGMA} = {sigma[k]:.3g} px\nFo = {fourier[k]:.2g}"
        if k
        else "level 0\nclean"
        for k in columns
    }
    record = {"peclet": operator.peclet, "length_px": length, "sigma_px": sigma.tolist(), "fourier": fourier.tolist()}
    record |= {"solver": operator.solver, "lattice_iterations": iterations}
    scene = by_flow(options, u0, moments)
    frames = set(np.searchsorted(moments, frame_sigma).tolist())
    return replace(scene, about=f"{scene.about}, {solver}", captions=captions, frames=frames, record=record)


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
        forward = options.forward()
        return lambda u, part: forward.corrupt(
            u, torch.from_numpy((part * forward.levels).round().astype(np.int64)), torch.full((len(u),), options.seed)
        )
    # A level for each blur width that differs visibly; the blur width grows with the fraction.
    sigma = frame_widths(options.flow.widths(size.shorter)[1], LEVELS_OF_FILM + 1)
    operator = options.operator(Schedule(sigma), size.shorter)
    return lambda u, part: operator(u, torch.from_numpy((part * LEVELS_OF_FILM).round().astype(np.int64)), options.seed)


def draw(scene: Scene, name: str, options: Corrupt, out: Path) -> list[Path]:
    """Corrupt the picture; write the strip, the last picture, the velocity field, and the video if it is asked for."""
    shown: dict[int, np.ndarray] = {}
    written = [out / "strip.png", out / "corrupted.png"]

    def frames() -> Iterator[np.ndarray]:
        for number, u in tqdm(scene.moments, total=len(scene.sigma), desc="corrupting", unit="level"):
            picture = render.to_pixels(u[0])
            if number in scene.captions:
                shown[number] = picture
            if number in scene.frames:
                yield render.enlarged(picture, VIDEO_SIZE)

    if options.video.video:
        written.append(out / "trajectory.mp4")
        if options.film.loop:
            render.save_video(written[-1], film.there_and_back(frames()), options.video.fps)
        else:
            save_video(written[-1], frames(), options.video.fps)
    else:
        deque(frames(), maxlen=0)
    strip = figures.strip(list(shown.values()), [scene.captions[k] for k in shown], f"{name}   {scene.title}")
    figures.save_figure(written[0], strip)
    render.save_image(written[1], shown[max(shown)])
    if scene.flows:
        written.append(out / "velocity.png")
        figures.save_figure(written[-1], draw_velocity(scene, shown[0].shape[:2]))
    return written


def draw_velocity(scene: Scene, size: tuple[int, int]) -> Figure:
    """The velocity field of a scene, and its spectrum beside the mean of several seeds."""
    velocity, *others = (replace(scene, seed=seed).velocity(size) for seed in (scene.seed, *range(SPECTRUM_SEEDS)))
    (k, energy), *found = (energy_spectrum(field, scene.boundary) for field in (velocity, *others))
    mean = sum((other for _, other in found), torch.zeros_like(energy)) / SPECTRUM_SEEDS
    spectrum = k.numpy(), energy.numpy(), mean.numpy()
    return figures.velocity_and_spectrum(velocity[0].numpy(), f"Velocity field   {scene.title}", spectrum, SPECTRUM_SEEDS)


def save_video(path: Path, frames: Iterator[np.ndarray], fps: int) -> None:
    """Write a video in which the first frame stays for half a second more, and the last one for a second."""

    def held() -> Iterator[np.ndarray]:
        last = next(frames)
        yield from [last] * (fps // 2 + 1)
        for last in frames:
            yield last
        yield from [last] * fps

    render.save_video(path, held(), fps)


main = partial(console.run, "corrupt", corrupt, partial(tyro.cli, Corrupt))


if __name__ == "__main__":
    main()
