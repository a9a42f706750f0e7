"""The mark in every picture that this project writes: it says what the picture shows, and tells it from data.

PNG files carry it as the text chunk Software, archives and films as their comment. No file is recognised by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffusion.data.images import counted
from diffusion.files import whole_file

# Kinds of products that show one picture each. The others are sheets, such as grids and figures: never data.
SINGLE = frozenset({"sample", "corrupted", "frame"})
HEAD = 1024  # bytes of a file in which the mark is


def mark(kind: str) -> str:
    """The text that marks a product of this kind: sample, corrupted, frame, grid, figure, film, archive."""
    return f"beyond-blur: {kind}"


def kind_of(content: bytes) -> str | None:
    """What a picture shows that this project wrote; None of any other. The first 1024 bytes of its file are enough."""
    found = re.search(rb"beyond-blur: ([a-z]+)", content[:HEAD])
    return found[1].decode() if found else None


def kind_of_file(path: Path) -> str | None:
    """As :func:`kind_of`, of a file."""
    with open(path, "rb") as file:
        return kind_of(file.read(HEAD))


def data_among(kinds: Sequence[str | None]) -> list[bool]:
    """Which pictures, by their kinds, are data: those that we did not write; if there are none, samples and frames are."""
    return [kind is None for kind in kinds] if None in kinds else [kind in SINGLE for kind in kinds]


def left_out(kinds: Iterable[str]) -> str:
    """What to say of products that are not read as data."""
    return f"left out, since this program made them: {counted(kinds)}"


def marked(kind: str) -> PngInfo:
    """The mark as Pillow writes it into a PNG file (``pnginfo``)."""
    info = PngInfo()
    info.add_text("Software", mark(kind))
    return info


def save_image(path: Path, pixels: np.ndarray, kind: str) -> None:
    """Write a product, uint8 [H, W, 3], or [H, W, 1] as a grey one, as an image file with its mark."""
    with whole_file(path) as aside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(aside, pnginfo=marked(kind), comment=mark(kind))
