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
from tqdm.auto import tqdm

from cli import console, figures, film, render
from cli.film import FPS, VIDEO_SIZE, FilmOptions, VideoOptions
from cli.scene import PHOTOGRAPH, SPECTRUM_SEEDS, SceneOptions, shown, written
from cli.video import held, is_film, save_video, there_and_back
from diffusion import specs
from diffusion.data.dataset import evenly_spaced
from diffusion.files import owned, products, write_json
from diffusion.size import Size
from lbm_warp import OpticalTurbulence

RECORD = "corruption.json"
PRODUCTS = ("strip.png", "corrupted.png", "velocity.png", "trajectory.mp4", "film.mp4", "frames/*.png")


@dataclass(frozen=True)
class AirOptions:
    """Turbulent air instead of a flow."""

    air: float | None = None
    """See the picture through turbulent air of this D / r0: 1 is hardly seen, 3 is heat haze, 6 is strong. A video goes on in
    time."""
    view: float = OpticalTurbulence.view
    """Angle of the shorter side of the picture [rad]."""
    wind: float = 1.0
    """How fast the air goes to the right [m/s]."""


@dataclass(frozen=True)
class Corrupt(SceneOptions):
    """Options of ``python -m cli.corrupt``."""

    out: Path | None = None
    """Folder for the results, outputs/<name of the picture> by default. They replace what this command made there before."""
    video: Annotated[VideoOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=VideoOptions)
    film: Annotated[FilmOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FilmOptions)
    air: Annotated[AirOptions, tyro.conf.OmitArgPrefixes] = AirOptions()


def corrupt(options: Corrupt) -> None:
    """Corrupt a picture along one trajectory, or the frames of a film, and write the results."""
    console.check_at_least(options.video, frames=2, fps=1)
    if options.air.air is None:
        console.check_left_out(options.air, "is for turbulent air; add --air", "view", "wind")
    out = options.out or Path("outputs") / options.image.resolve().stem
    levels: dict[str, Any]
    with owned(out), products(out, RECORD, *PRODUCTS) as folder:
        if options.air.air is not None:
            made, levels = draw_through_air(options, options.air.air, folder)
        elif options.film.to is not None or is_film(options.image):
            made, levels = film.make(options, options.film, options.video, folder), {}
        else:
            made, levels = draw(options, folder)
        write_json(folder / RECORD, facts(options, out) | levels)
    print(f"wrote {', '.join(str(out / name) for name in (*made, RECORD))}")


def draw(options: Corrupt, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Corrupt a picture; write the strip, the last picture, the velocity field, and the video if it is asked for.

    Returns:
        The names of what was written, and what corruption.json says of it.
    """
    u0, video = read(options), options.video
    size = Size(*u0.shape[2:])
    scene = shown(options, u0, video.frames if video.video else 1)
    print(f"{options.image.stem}: {size.height} x {size.width} px, {scene.about} on {u0.device}")
    row: dict[int, np.ndarray] = {}

    def frames() -> Iterator[np.ndarray]:
        for number, u in tqdm(scene.moments, total=len(scene.sigma), desc="corrupting", unit="level"):
            picture = render.to_pixels(u[0])
            if number in scene.captions:
                row[number] = picture
            if number in scene.frames:
                yield render.enlarged(picture, VIDEO_SIZE)

    if video.video:
        fps = video.fps or FPS
        save_video(folder / "trajectory.mp4", there_and_back(frames()) if options.film.loop else held(frames(), fps), fps)
    else:
        deque(frames(), maxlen=0)
    save_row(options, folder, list(row.values()), [scene.captions[number] for number in row], scene.title)
    if scene.flows:
        velocity, spectra = scene.velocity(size)[0].numpy(), scene.spectra(size)
        drawn = figures.velocity_and_spectrum(velocity, f"Velocity field   {scene.title}", spectra, SPECTRUM_SEEDS)
        figures.save_figure(folder / "velocity.png", drawn)
    made = ["strip.png", "corrupted.png", *["trajectory.mp4"] * video.video, *["velocity.png"] * scene.flows]
    return made, about_image(options, u0) | scene.record


def draw_through_air(options: Corrupt, strength: float, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """As :func:`draw`, as a camera sees the picture through air of this D / r0; in the video the wind moves the air."""
    for part, names in ((options, ("peclet", "process")), (options.flow, vars(options.flow)), (options.film, ("to",))):
        console.check_left_out(part, "does not go with --air; leave it out", *names)
    u0, video = read(options), options.video
    size, fps = Size(*u0.shape[2:]), video.fps or FPS
    air = OpticalTurbulence(strength, view=options.air.view, wind=options.air.wind, levels=options.levels)
    rms = air.tilt_rms / air.view * size.shorter
    about = f"D / r0 = {strength:g}, shifts of {written(rms)} px (rms)"
    print(f"{options.image.stem}: {size.height} x {size.width} px, {about} on {u0.device}")
    levels = evenly_spaced(air.levels + 1, options.columns)
    strengths = strength * (levels / air.levels) ** 0.6
    row = [render.to_pixels(air(u0, level, options.seed)[0]) for level in levels]
    captions = [f"level {level}\nD / r0 = {written(one)}" for level, one in zip(levels, strengths, strict=True)]
    save_row(options, folder, row, captions, f"{about}, seed {options.seed}")
    if video.video:
        moments = (replace(air, time=number / fps) for number in tqdm(range(video.frames), desc="film", unit="frame"))
        frames = (render.enlarged(render.to_pixels(one(u0, one.levels, options.seed)[0]), VIDEO_SIZE) for one in moments)
        save_video(folder / "trajectory.mp4", there_and_back(frames) if options.film.loop else frames, fps)
    made = ["strip.png", "corrupted.png", *["trajectory.mp4"] * video.video]
    return made, about_image(options, u0) | {"operator": specs.to_json(air), "tilt_rms_px": rms}


def read(options: Corrupt) -> torch.Tensor:
    """The picture that is drawn; options for films alone are refused."""
    console.check_left_out(options.film, "is for films: of a video, a folder of pictures, or with --to", "png", "course")
    if not options.video.video:
        for part in (options.video, options.film):
            console.check_left_out(part, "is for a video; add --video", "frames", "fps", "loop")
    return options.read()


def save_row(options: Corrupt, folder: Path, row: list[np.ndarray], captions: list[str], title: str) -> None:
    """Write the strip and its last picture."""
    figures.save_figure(folder / "strip.png", figures.strip(row, captions, f"{options.image.stem}   {title}"))
    render.save_image(folder / "corrupted.png", row[-1], "corrupted")


def about_image(options: Corrupt, u0: torch.Tensor) -> dict[str, Any]:
    """What corruption.json says of the picture."""
    digest = hashlib.sha256(options.image.read_bytes()).hexdigest()
    return {"image": {"sha256": digest} | dict(zip(("channels", "height", "width"), u0.shape[1:], strict=True))}


def facts(options: Corrupt, out: Path) -> dict[str, Any]:
    """What corruption.json says of any result."""
    names = {"image": options.image.name if options.image == PHOTOGRAPH else str(options.image), "out": str(out)}
    chosen = asdict(options)
    chosen["film"]["to"] = None if options.film.to is None else str(options.film.to)
    return {
        "command": console.command_line(),
        "options": chosen | names,
        "device": str(console.pick_device(options.device)),
        "versions": {module.__name__: module.__version__ for module in (warp, torch, np, PIL)},
    }


# What --help shows; --help-all shows the rest.
COMMON = (
    "--out --video --png --peclet --sigma-max --seed --size --process --turbulence --octaves --turbulence-time --air --to "
    "--loop --course --device"
).split()
main = partial(console.run, "corrupt", corrupt, partial(tyro.cli, Corrupt), common=COMMON)


if __name__ == "__main__":
    main()
