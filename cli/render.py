"""Pictures and videos for people: pixels, grids, H.264."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from diffusion.files import whole_file


def quantised(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, C] from a float image [C, H, W], clipped to [0, 1]."""
    return (image.detach().cpu().permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] from a float image [C, H, W], clipped to [0, 1]; grey becomes three equal channels."""
    return quantised(image.expand(3, -1, -1))


def enlarged(pixels: np.ndarray, shorter: int, longest: int = 3840) -> np.ndarray:
    """The picture with a shorter side of at least ``shorter`` pixels: tiny ones by whole pixels, others smoothly.

    No side becomes longer than ``longest``; a picture that has a longer one is reduced.
    """
    height, width = pixels.shape[:2]
    factor = min(max(shorter / min(height, width), 1.0), longest / max(height, width))
    if factor == 1.0:
        return pixels
    if factor >= 4.0:
        times = min(math.ceil(factor), longest // max(height, width))
        return pixels.repeat(times, axis=0).repeat(times, axis=1)
    size = (max(round(width * factor), 2), max(round(height * factor), 2))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3], or [H, W, 1] as a grey one, as an image file."""
    with whole_file(path) as aside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(aside)


def save_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 frames [H, W, 3] as H.264 that browsers play; odd sizes gain a repeated row or column."""
    import imageio.v2 as imageio

    options = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    # CRF 18 is visually lossless; faststart lets a browser begin before it has the whole file.
    with (
        whole_file(path) as aside,
        imageio.get_writer(
            aside, fps=fps, quality=None, output_params=["-crf", "18", "-preset", "medium", "-movflags", "+faststart"], **options
        ) as writer,
    ):
        for frame in frames:
            padding = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
            writer.append_data(np.pad(frame, padding, mode="edge"))


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Pictures of one size side by side, uint8 [H, W, 3], on white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for index, pixels in enumerate(images):
        top, left = (gap + (height + gap) * (index // columns)), (gap + (width + gap) * (index % columns))
        sheet[top : top + height, left : left + width] = pixels
    return sheet


def grid_columns(count: int) -> int:
    """Columns of a grid that is about as wide as high."""
    return max(1, round(count**0.5))


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images [N, C, H, W] as one sheet, about as wide as high unless told, enlarged so that small ones can be seen."""
    pictures = [enlarged(to_pixels(image), 64) for image in images]
    save_image(path, grid(pictures, columns or grid_columns(len(pictures)), gap=4))


def resized(pixels: np.ndarray, width: int) -> np.ndarray:
    """The picture at another width, the height in proportion."""
    height = max(2, round(pixels.shape[0] * width / pixels.shape[1]))
    method = Image.Resampling.NEAREST if width >= 4 * pixels.shape[1] else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))
