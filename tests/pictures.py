"""Making pictures and checking them, for the tests of data."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data.images import DataError


def chw(levels: np.ndarray) -> np.ndarray:
    """8-bit [H, W] or [H, W, C] as the float32 [C, H, W] that reading it must give."""
    return np.atleast_3d(levels).transpose(2, 0, 1).astype(np.float32) / 255


def check(image: np.ndarray, expected: np.ndarray, tolerance: float = 0) -> None:
    assert image.dtype == np.float32
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    np.testing.assert_allclose(image, expected, rtol=0, atol=tolerance)


@contextmanager
def fails(*words: object) -> Iterator[None]:
    """Expect a DataError of one line that holds all the words."""
    with pytest.raises(DataError) as caught:
        yield
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert str(word) in message


def save(path: Path, level: int | tuple[int, ...], mode: str = "RGB", side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side), level).save(path)


def constants(folder: Path, count: int) -> Path:
    """A folder of constant grey pictures, 00.png of level 0 and so on."""
    for level in range(count):
        save(folder / f"{level:02}.png", level, "L", side=24)
    return folder


def first_levels(images: Iterable[np.ndarray]) -> list[int]:
    """First value of each image, in 8-bit levels: the constant images of these tests are told apart by it."""
    return [round(float(image[0, 0, 0]) * 255) for image in images]


def zipped(folder: Path, archive: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Pack everything in a folder, last names first."""
    with zipfile.ZipFile(archive, "w", compression) as file:
        for path in sorted(folder.rglob("*"), reverse=True):
            file.write(path, path.relative_to(folder))
    return archive


def damage(path: Path) -> None:
    """Cut the end off an image file: its header can be read, its pixels cannot."""
    path.write_bytes(path.read_bytes()[:-30])


def encoded(level: int, mode: str = "L", side: int = 8) -> bytes:
    """A constant image as a PNG file."""
    file = io.BytesIO()
    Image.new(mode, (side, side), level).save(file, "PNG")
    return file.getvalue()
