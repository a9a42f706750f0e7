"""Films: moving pictures in one flow, and the way from one picture through turbulence into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from cli import console, render
from cli.scene import DEFAULT_SIZE, SceneOptions, frame_widths
from cli.video import Pictures, open_film, read_still, save_video, there_and_back
from diffusion.data.images import fit, resize_shorter
from diffusion.size import Size
from lbm_warp import Schedule
from lbm_warp.checks import InputError

FPS = 30
VIDEO_SIZE = 512
LEVELS_OF_FILM = 1000
BATCH = 8
# One picture changes into another in this middle part of the film.
CHANGE = (0.3, 0.7)
# Corrupts pictures float32 [N, C, H, W] by fractions of the whole way, [N], with one flow and one noise.
CorruptTo = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class VideoOptions:
    """The video."""

    video: bool = False
    """Write trajectory.mp4 as well."""
    frames: int = 240
    """Frames of the video from clean to fully corrupted."""
    fps: int | None = None
    """Frames per second of the video; by default 30, or those of the film that is corrupted."""


@dataclass(frozen=True)
class FilmOptions:
    """Films."""

    to: Path | None = None
    """Go through the turbulence into this other picture, and write film.mp4."""
    course: Literal["rise", "hold"] = "rise"
    """A video, an animated picture or a folder of pictures: corrupted more and more, or every frame by the whole."""
    loop: bool = False
    """Come back to the beginning at the end of the video, so that it can be repeated."""
    png: bool = False
    """Write the frames of the film as PNG files too: frames/00000.png, ..."""


def make(options: SceneOptions, how: FilmOptions, video: VideoOptions, folder: Path) -> list[str]:
    """Corrupt moving pictures frame by frame, or go from a picture into another; write film.mp4 and, if wanted, its frames.

    Returns:
        The names of what was written.

    Raises:
        InputError: if something cannot be read or written, or options do not go together.
    """
    unused = ("columns", *["levels"] * (options.process is None))
    console.check_left_out(options, "is for the strip of a picture; a film has none", *unused)
    if how.to is None:
        console.check_left_out(video, "is for a picture; a film keeps its own", "frames")
        frames, fps = _of_moving(options, how)
    else:
        console.check_left_out(how, "does not go with --to", "course")
        frames, fps = _from_one_to_another(options, how.to, video.frames, how.loop)

    def kept() -> Iterator[np.ndarray]:
        for number, frame in enumerate(render.enlarged(frame, VIDEO_SIZE) for frame in frames):
            if how.png:
                render.save_image(folder / "frames" / f"{number:05d}.png", frame, "frame")
            yield frame

    save_video(folder / "film.mp4", kept(), video.fps or fps)
    return ["film.mp4", *["frames"] * how.png]


def _of_moving(options: SceneOptions, how: FilmOptions) -> tuple[Iterator[np.ndarray], Fraction | int]:
    console.check_at_least(options, size=2, levels=1)
    if how.course == "hold":
        console.check_left_out(how, "does not go with --course hold, in which every frame is alike", "loop")
    pictures, device = open_film(options.image), console.pick_device(options.device)
    for remark in pictures.remarks:
        print(f"{options.image}: {remark}")
    first = next(pictures.read())
    size = Size(*resize_shorter(first, options.size or min(*first.shape[1:], DEFAULT_SIZE)).shape[1:])
    return corrupted(pictures, size, how, corrupter(options, size), device), pictures.fps or FPS


def _from_one_to_another(options: SceneOptions, to: Path, count: int, loop: bool) -> tuple[Iterator[np.ndarray], int]:
    if options.image.is_dir():
        raise InputError(f"--to needs a picture to start from, got {options.image}")
    first = options.read().expand(1, 3, -1, -1)
    size = Size(*first.shape[2:])
    second = torch.from_numpy(fit(read_still(to, "RGB"), size))[None].to(first.device)
    frames = passage(first, second, count, corrupter(options, size))
    return there_and_back(frames) if loop else frames, FPS


def corrupter(options: SceneOptions, size: Size) -> CorruptTo:
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


def fractions(count: int, options: FilmOptions) -> np.ndarray:
    """How far every frame of a film is corrupted, 0 to 1, float64 [count]."""
    if options.course == "hold":
        return np.ones(count)
    t = np.linspace(0.0, 1.0, count)
    return np.sin(np.pi * t) ** 2 if options.loop else t


def corrupted(
    pictures: Pictures, size: Size, options: FilmOptions, corrupt: CorruptTo, device: torch.device
) -> Iterator[np.ndarray]:
    """The frames of a film of this size in one flow, uint8 [H, W, 3]. A frame depends on no other."""
    how_far, frames = fractions(pictures.count, options), (fit(picture, size) for picture in pictures.read())
    with tqdm(total=pictures.count, desc="corrupting", unit="frame") as progress:
        for first in range(0, pictures.count, BATCH):
            batch = list(islice(frames, BATCH))
            u = corrupt(torch.from_numpy(np.stack(batch)).to(device), how_far[first : first + len(batch)])
            yield from (render.to_pixels(image) for image in u)
            progress.update(len(batch))


def passage(first: torch.Tensor, second: torch.Tensor, frames: int, corrupt: CorruptTo) -> Iterator[np.ndarray]:
    """From one picture [1, C, H, W] into another, uint8 [H, W, 3]: through the same turbulence, at whose height they change."""
    t = np.linspace(0.0, 1.0, frames)
    place = np.clip((t - CHANGE[0]) / (CHANGE[1] - CHANGE[0]), 0.0, 1.0)
    weights = place**2 * (3.0 - 2.0 * place)
    with tqdm(total=frames, desc="corrupting", unit="frame") as progress:
        for begin in range(0, frames, BATCH):
            part = slice(begin, begin + BATCH)
            weight = torch.from_numpy(weights[part]).to(first)[:, None, None, None]
            # The operator is linear: to mix the corrupted pictures is to corrupt the mixture.
            u = corrupt(torch.lerp(first, second, weight), np.sin(np.pi * t[part]) ** 2)
            yield from (render.to_pixels(image) for image in u)
            progress.update(len(weight))
