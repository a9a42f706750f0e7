"""Pictures for people: pixels, sheets, image files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from diffusion.data.products import save_image


def quantised(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, C] from a float image [C, H, W], clipped to [0, 1]."""
    return (image.detach().cpu().permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] from a float image [C, H, W], clipped to [0, 1]; grey becomes three equal channels."""
    return quantised(image.expand(3, -1, -1))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    """A picture uint8 [H, W, 3] so many times as large, at least 2 x 2 pixels; large factors keep the pixels sharp."""
    height, width = (max(2, round(side * factor)) for side in pixels.shape[:2])
    method = Image.Resampling.NEAREST if factor >= 4.0 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def enlarged(pixels: np.ndarray, shorter: int, longest: int = 3840) -> np.ndarray:
    """A picture uint8 [H, W, 3] with a shorter side of at least ``shorter`` pixels and none longer than ``longest``."""
    sides = pixels.shape[:2]
    factor = min(max(shorter / min(sides), 1.0), longest / max(sides))
    return resized(pixels, min(math.ceil(factor), longest // max(sides)) if factor >= 4.0 else factor)


def caption(text: str, width: int, height: int = 40) -> np.ndarray:
    """A line of text in the middle of a white strip, uint8 [height, width, 3]; smaller letters where it is narrow."""
    strip = Image.new("RGB", (width, height), "white")
    size = 0.5 * height
    size *= min(1.0, 0.96 * width / ImageFont.load_default(size).getlength(text))
    ImageDraw.Draw(strip).text((width / 2, height / 2), text, "#20242c", ImageFont.load_default(size), anchor="mm")
    return np.asarray(strip)


def grid(pictures: Sequence[np.ndarray], columns: int | None = None, gap: int = 2) -> np.ndarray:
    """Pictures uint8 [H, W, 3] of one size as one sheet on white, about as wide as high if the columns are left out."""
    height, width = pictures[0].shape[:2]
    columns = columns or min(max(round((len(pictures) * height / width) ** 0.5), 1), len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for index, pixels in enumerate(pictures):
        top, left = (gap + (height + gap) * (index // columns)), (gap + (width + gap) * (index % columns))
        sheet[top : top + height, left : left + width] = pixels
    return sheet


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images [N, C, H, W] as one sheet, enlarged so that small ones can be seen."""
    save_image(path, grid([enlarged(to_pixels(image), 64) for image in images], columns, gap=4), "grid")
