"""Films: a video or a folder of pictures in one flow, and the way from one picture through turbulence into another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import imageio.v2 as imageio
import numpy as np
import torch
from tqdm import tqdm

from cli import render
from diffusion.data.images import fit, is_image_name, read_image, resize_shorter
from diffusion.size import Size
from lbm_warp.checks import InputError

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
BATCH = 8
# One picture changes into another in this middle part of the film.
CHANGE = (0.3, 0.7)
# Corrupts pictures float32 [N, C, H, W] by fractions of the whole way, [N], with one flow and one noise.
CorruptTo = Callable[[torch.Tensor, np.ndarray], torch.Tensor]


@dataclass(frozen=True)
class FilmOptions:
    """Films."""

    to: Path | None = None
    """Go through the turbulence into this other picture, and write film.mp4."""
    course: Literal["rise", "hold"] = "rise"
    """A video or a folder of pictures: corrupted more and more, or every frame by the whole."""
    loop: bool = False
    """Come back to the beginning at the end of the video, so that it can be repeated."""
    png: bool = False
    """Write the frames of the film as PNG files too: frames/00000.png, ..."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, read one after the other.

    Attributes:
        count: how many, at least 1.
        size: of all of them.
        fps: frames per second of a video; None for a folder.
        read: makes an iterator of them, float32 [C, H, W] in [0, 1].
    """

    count: int
    size: Size
    fps: float | None
    read: Callable[[], Iterator[np.ndarray]]


def is_film(path: Path) -> bool:
    """Whether a path is a video or a folder, not a picture."""
    return path.is_dir() or path.suffix.lower() in VIDEOS


def open_film(path: Path, shorter: Callable[[int], int]) -> Pictures:
    """The frames of a video, or the pictures of a folder in the order of their names; they get the size of the first.

    Args:
        path: the video or the folder.
        shorter: gives the shorter side [pixels] that frames of this one are resized to.

    Raises:
        InputError: if it cannot be read or holds no picture.
    """
    frames: Callable[[], Iterator[np.ndarray]]
    fps: float | None = None
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if is_image_name(file.name))
        if not files:
            raise InputError(f"{path}: no pictures in this folder")
        count, frames = len(files), lambda: (read_image(file, "RGB") for file in files)
    else:
        try:
            with _reader(path) as reader:
                count, fps = reader.count_frames(), float(reader.get_meta_data()["fps"])
        except (OSError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise InputError(f"{path}: not a video that ffmpeg can read ({str(error).strip().splitlines()[0][:100]})") from error
        if count < 1:
            raise InputError(f"{path}: no frames in this video")
        frames = lambda: _decoded(path)  # noqa: E731
    first = next(frames())
    size = Size(*resize_shorter(first, shorter(min(first.shape[1:]))).shape[1:])
    return Pictures(count, size, fps, lambda: (fit(frame, size) for frame in frames()))


def _reader(path: Path) -> Any:
    return imageio.get_reader(path)


def _decoded(path: Path) -> Iterator[np.ndarray]:
    with _reader(path) as reader:
        for frame in reader:
            yield np.ascontiguousarray(frame.transpose(2, 0, 1), dtype=np.float32) / 255.0


def fractions(count: int, options: FilmOptions) -> np.ndarray:
    """How far every frame of a film is corrupted, 0 to 1, float64 [count]."""
    if options.course == "hold":
        return np.ones(count)
    t = np.linspace(0.0, 1.0, count)
    return np.sin(np.pi * t) ** 2 if options.loop else t


def corrupted(pictures: Pictures, options: FilmOptions, corrupt: CorruptTo, device: torch.device) -> Iterator[np.ndarray]:
    """The frames of a film in one flow, uint8 [H, W, 3]. A frame depends on no other."""
    how_far, frames = fractions(pictures.count, options), pictures.read()
    with tqdm(total=pictures.count, desc="corrupting", unit="frame") as progress:
        for first in range(0, pictures.count, BATCH):
            batch = list(islice(frames, min(BATCH, pictures.count - first)))
            if not batch:
                return  # A video may hold fewer frames than it says.
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


def there_and_back(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames, and all but the last and the first of them in reverse: a film that can be repeated."""
    way = []
    for frame in frames:
        way.append(frame)
        yield frame
    yield from way[-2:0:-1]


def save(frames: Iterator[np.ndarray], out: Path, fps: int, png: bool) -> list[Path]:
    """Write film.mp4 and, if they are wanted, the frames as PNG files; returns what was written."""

    def kept() -> Iterator[np.ndarray]:
        for number, frame in enumerate(frames):
            if png:
                render.save_image(out / "frames" / f"{number:05d}.png", frame)
            yield frame

    render.save_video(out / "film.mp4", kept(), fps)
    return [out / "film.mp4", *([out / "frames"] if png else [])]
