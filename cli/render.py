"""Pictures for people: pixels, sheets, image files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from diffusion.data.products import save_image

INK = "#20242c"
CRISP = 64
"""Pictures with a shorter side below this keep their pixels sharp; in larger ones squares of one colour are no detail [pixels]."""


def quantised(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, C] from a float image [C, H, W], clipped to [0, 1]."""
    return (image.detach().cpu().permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] from a float image [C, H, W], clipped to [0, 1]; grey becomes three equal channels."""
    return quantised(image.expand(3, -1, -1))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    """A picture uint8 [H, W, 3] so many times as large, at least 2 x 2 pixels; small ones keep their pixels sharp."""
    height, width = (max(2, round(side * factor)) for side in pixels.shape[:2])
    method = Image.Resampling.NEAREST if _sharp(pixels, factor) else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))


def enlarged(pixels: np.ndarray, shorter: int, longest: int = 3840) -> np.ndarray:
    """A picture uint8 [H, W, 3] with a shorter side of at least ``shorter`` pixels and none longer than ``longest``."""
    sides = pixels.shape[:2]
    factor = min(max(shorter / min(sides), 1.0), longest / max(sides))
    return resized(pixels, min(math.ceil(factor), longest // max(sides)) if _sharp(pixels, factor) else factor)


def _sharp(pixels: np.ndarray, factor: float) -> bool:
    return factor >= 4.0 and min(pixels.shape[:2]) < CRISP


@cache
def _file_of_font() -> str:
    """The font of the figures."""
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_file_of_font(), size)


def spelled(text: str, font: str | None = None) -> str:
    """A text for pictures: a letter that the font, a file, lacks is its number, such as \\u7167, and not an empty box."""
    from matplotlib.font_manager import get_font

    glyphs = get_font(font or _file_of_font())
    known = {c for c in text if c == "\n" or (c.isprintable() and glyphs.get_char_index(ord(c)))}
    return "".join(c if c in known else c.encode("unicode_escape").decode() for c in text)


def captions(texts: Sequence[str], width: int, height: int = 40) -> list[np.ndarray]:
    """Texts in the middle of white strips, uint8 [height, width, 3], in letters of one size: smaller where they are narrow."""
    wrapped = [textwrap.wrap(spelled(text), 16, break_long_words=False) for text in texts]
    size = 0.45 * height / max(1.0, 0.6 * max(map(len, wrapped)))
    size *= min(1.0, 0.94 * width / max(_font(size).getlength(line) for lines in wrapped for line in lines or [" "]))
    strips = [Image.new("RGB", (width, height), "white") for _ in texts]
    for strip, lines in zip(strips, wrapped, strict=True):
        at, text = (width / 2, height / 2), "\n".join(lines)
        ImageDraw.Draw(strip).multiline_text(at, text, INK, _font(size), "mm", spacing=0.2 * size, align="center")
    return [np.asarray(strip) for strip in strips]


def scale(ends: tuple[str, str], width: int, height: int = 16) -> np.ndarray:
    """A bar from black to white between the numbers at its ends, uint8 [height, width, 3]."""
    strip, font = Image.new("RGB", (width, height), "white"), _font(0.75 * height)
    left, right = (round(font.getlength(end) + 0.4 * height) for end in ends)
    draw = ImageDraw.Draw(strip)
    for (x, anchor), end in zip(((0, "lm"), (width, "rm")), ends, strict=True):
        draw.text((x, height / 2), end, INK, font, anchor)
    bar = Image.linear_gradient("L").rotate(90).resize((max(1, width - left - right), round(0.7 * height)))
    strip.paste(bar, (left, round(0.15 * height)))
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


def sheet(images: torch.Tensor, columns: int | None = None, headings: Sequence[str] = ()) -> Image.Image:
    """Images [N, C, H, W] as one picture, enlarged so that small ones can be seen; a notebook shows it.

    ``headings`` are written above the columns, one for each, and the images are larger.
    """
    panels = [enlarged(to_pixels(image), 96 if headings else 64) for image in images]
    sheet = grid(panels, len(headings) or columns, gap=4)
    if headings:
        # Pictures in the last row may be missing, headings are not.
        above = grid(captions(headings, panels[0].shape[1], 28), len(headings), gap=4)
        sheet = np.concatenate([above[:-4], sheet])
    return Image.fromarray(sheet)


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None, headings: Sequence[str] = ()) -> None:
    """Write images [N, C, H, W] as one sheet."""
    save_image(path, np.asarray(sheet(images, columns, headings)), "grid")
