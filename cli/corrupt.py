"""Corrupt a picture with turbulence and blur, and show how it happens."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
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
from cli.scene import PHOTOGRAPH, SPECTRUM_SEEDS, SceneOptions, shown
from cli.video import held, is_film, save_video, there_and_back
from diffusion.files import owned, products, write_json

RECORD = "corruption.json"
PRODUCTS = ("strip.png", "corrupted.png", "velocity.png", "trajectory.mp4", "film.mp4", "frames/*.png")


@dataclass(frozen=True)
class Corrupt(SceneOptions):
    """Options of ``python -m cli.corrupt``."""

    out: Path | None = None
    """Folder for the results, outputs/<name of the picture> by default. They replace what this command made there before."""
    video: Annotated[VideoOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=VideoOptions)
    film: Annotated[FilmOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=FilmOptions)


def corrupt(options: Corrupt) -> None:
    """Corrupt a picture along one trajectory, or the frames of a film, and write the results."""
    console.check_at_least(options.video, frames=2, fps=1)
    out = options.out or Path("outputs") / options.image.resolve().stem
    levels: dict[str, Any]
    with owned(out), products(out, RECORD, *PRODUCTS) as folder:
        if options.film.to is not None or is_film(options.image):
            written, levels = film.make(options, options.film, options.video, folder), {}
        else:
            written, levels = draw(options, folder)
        write_json(folder / RECORD, facts(options, out) | levels)
    print(f"wrote {', '.join(str(out / name) for name in (*written, RECORD))}")


def draw(options: Corrupt, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Corrupt a picture; write the strip, the last picture, the velocity field, and the video if it is asked for.

    Returns:
        The names of what was written, and what corruption.json says of it.
    """
    console.check_left_out(options.film, "is for films: of a video, a folder of pictures, or with --to", "png", "course")
    if not (video := options.video).video:
        for part in (video, options.film):
            console.check_left_out(part, "is for a video; add --video", "frames", "fps", "loop")
    u0 = options.read()
    _, channels, height, width = u0.shape
    scene = shown(options, u0, video.frames if video.video else 1)
    print(f"{options.image.stem}: {height} x {width} px, {scene.about} on {u0.device}")
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
    strip = figures.strip(list(row.values()), [scene.captions[k] for k in row], f"{options.image.stem}   {scene.title}")
    figures.save_figure(folder / "strip.png", strip)
    render.save_image(folder / "corrupted.png", row[max(row)], "corrupted")
    if scene.flows:
        velocity, spectra = scene.velocity((height, width))[0].numpy(), scene.spectra((height, width))
        drawn = figures.velocity_and_spectrum(velocity, f"Velocity field   {scene.title}", spectra, SPECTRUM_SEEDS)
        figures.save_figure(folder / "velocity.png", drawn)
    digest = hashlib.sha256(options.image.read_bytes()).hexdigest()
    image = {"sha256": digest, "channels": channels, "height": height, "width": width}
    written = ["strip.png", "corrupted.png", *["trajectory.mp4"] * video.video, *["velocity.png"] * scene.flows]
    return written, {"image": image} | scene.record


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
    "--out --video --png --peclet --sigma-max --seed --size --process --turbulence --octaves --turbulence-time --to "
    "--loop --course --device"
).split()
main = partial(console.run, "corrupt", corrupt, partial(tyro.cli, Corrupt), common=COMMON)


if __name__ == "__main__":
    main()
