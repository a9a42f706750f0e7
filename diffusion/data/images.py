"""One image in: a file as a float array, cropped and resized.

Every image is a float32 array [C, H, W] in [0, 1], with one channel when it is grey and three (RGB) otherwise.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion.size import Size
from lbm_warp.checks import InputError

Image.init()
# Left out: formats that Pillow recognises but cannot decode, or decodes by starting another program (EPS).
_FORMATS = tuple(name for name in Image.ID if name not in {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_EXTENSIONS = {suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS}
# No image of a data set is larger than this, in bytes of its file; what is, is a mistake or an attack.
MAX_FILE_BYTES = 2**28
# Values of black and of white.
Range = tuple[float, float]
RANGES: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
WORDS = RANGES[-1]
OVERSHOOT = 0.05  # of white, by which resized or filtered pictures leave their range
DARK = 1 / 16  # of white: a set whose pictures are all darker than this has another range


class DataError(InputError):
    """A problem with the data that the user can fix. Its message is one line: what was wrong, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        # File names and decoder messages may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


def read_image(
    path: str | os.PathLike[str] | BinaryIO,
    mode: Literal["L", "RGB"] | None = None,
    name: str | None = None,
    values: Range | None = None,
) -> np.ndarray:
    """Read one image: the first frame, upright (EXIF orientation), over white where it is transparent.

    Args:
        path: an image file, or an open and seekable binary file, which stays open.
        mode: ``L`` makes the result grey (luma, ITU-R 601), ``RGB`` colour. Without it an image is grey if its file stores grey
            values; a palette counts as colour.
        name: what error messages call the image; the path unless given.
        values: black and white of float pictures, which those of one set have in common; by default that of this picture alone, as
            :func:`value_range` finds it.

    Returns:
        float32 [C, H, W] in [0, 1]. 8-bit values are divided by 255, 16-bit and integer ones by 65535.

    Raises:
        DataError: if there is no such file, it is not an image, damaged, larger than Pillow's pixel limit or smaller than 2 x 2, or
            its values are not finite or lie outside the ranges above.
    """
    if isinstance(path, (str, os.PathLike)):
        name = name or os.fspath(path)
        with data_errors(name), open(path, "rb") as file:
            return read_image(file, mode, name, values)
    name = name or "image"
    with data_errors(name):
        pixels = decoded(open_image(path, name), name, values)
    return pixels if mode is None else with_channels(pixels, len(mode))


def fit(image: np.ndarray, size: int | Size) -> np.ndarray:
    """Crop the central rectangle of an image that has the aspect of ``size``, and resize it to ``size``.

    Args:
        image: float32 [C, H, W] in [0, 1].
        size: as for :meth:`Size.of`. A side of the rectangle that is not a whole number is rounded to the nearest pixel.

    Returns:
        float32 [C, height, width] in [0, 1].
    """
    target = Size.of(size)
    _, height, width = image.shape
    rows = min(height, max(1, round(width * target.height / target.width)))
    columns = min(width, max(1, round(height * target.width / target.height)))
    top, left = (height - rows) // 2, (width - columns) // 2
    return _resample(image[:, top : top + rows, left : left + columns], *target)


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, float32 [C, H, W] in [0, 1], so that its shorter side is ``size`` and the aspect stays."""
    _, height, width = image.shape
    scale = size / min(height, width)
    return _resample(image, round(height * scale), round(width * scale))


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image with 1 or 3 channels: colour is turned into grey (luma, ITU-R 601), grey is repeated."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    red, green, blue = image
    return (0.299 * red + 0.587 * green + 0.114 * blue).clip(0, 1)[None]


def is_image_name(name: str) -> bool:
    """Whether a relative path has the extension of an image, and no part of it is hidden."""
    return PurePosixPath(name).suffix.lower() in _EXTENSIONS and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a part of a relative path is hidden, or what macOS adds to archives."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)


def counted(kinds: Iterable[str]) -> str:
    """How many things there are, and how many of each kind: 12 (.heic 10, no ending 2)."""
    counts = sorted(Counter(kinds).items(), key=lambda pair: (-pair[1], pair[0]))
    return f"{sum(count for _, count in counts)} ({', '.join(f'{kind} {count}' for kind, count in counts)})"


def share_at_ends(images: np.ndarray) -> float:
    """Share of the values of images, uint8, that are exactly black or white: 0 to 1; 0 for no images."""
    return float(np.isin(images, (0, 255)).mean()) if images.size else 0.0


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts names as a person counts: frame2 before frame10."""
    # Text and digits alternate, so that a number is compared with a number.
    return [int(part) if number % 2 else part for number, part in enumerate(re.split(r"([0-9]+)", name))], name


def check_file_bytes(count: int, name: str, most: int | None = None) -> None:
    """Raise DataError if a file of that many bytes is larger than ``most``, by default than any image of a data set may be."""
    if count > (most := most or MAX_FILE_BYTES):
        raise DataError(f"{name}: {count / 2**20:.1f} MiB unpacked; expected at most {most // 2**20} MiB; make it smaller first")


def open_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the header of an image; its pixels are decoded later."""
    image = Image.open(file, formats=_FORMATS)
    # Pillow itself only warns up to twice its limit, when decoding may already exhaust the memory.
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    if min(image.size) < 2:
        raise DataError(f"{name}: {image.width} x {image.height} image: at least 2 x 2 pixels are needed")
    return image


def is_grey(image: Image.Image) -> bool:
    """Whether an image, not decoded yet, stores grey values; a palette counts as colour."""
    # Pillow has no mode for grey of 16 bits with transparency, and decodes it as colour.
    return Image.getmodebase(image.mode) == "L" or any(str(tile[3]).startswith("LA;16") for tile in getattr(image, "tile", ()))


def decoded(image: Image.Image, name: str, values: Range | None = None) -> np.ndarray:
    """An open image as float32 [C, H, W] in [0, 1]; it is turned upright in place. ``values`` as for :func:`read_image`."""
    colours = "L" if is_grey(image) else "RGB"
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode != "F":
            return scaled(pixels, WORDS, name, overshoot=0.0)[None]
        return scaled(pixels, values or value_range([(pixels.min(), pixels.max())], name), name)[None]

    transparent = image.has_transparency_data
    levels = np.atleast_3d(np.asarray(image.convert(colours + "A" if transparent else colours))).transpose(2, 0, 1)
    pixels = np.divide(levels, np.float32(255), out=np.empty(levels.shape, np.float32))
    if transparent:
        opacity = pixels[-1:]
        pixels = pixels[:-1] * opacity + (1 - opacity)
    return pixels


def value_range(extremes: Sequence[tuple[float, float]], name: str, overshoot: float = OVERSHOOT) -> Range:
    """Black and white of a set of float pictures: 0 to 1, -1 to 1, 0 to 255 or 0 to 65535.

    Args:
        extremes: the least and the greatest value of each picture that is looked at. One of them alone tells little: a dark picture
            of bytes fits into 0 to 1, and a bright one in 0 to 1 may reach 1.02.
        name: what error messages call the set.
        overshoot: by how much of white pictures may leave the range.

    Returns:
        The first range that more than half of the pictures fill, those that are all black aside.

    Raises:
        DataError: if there is none.
    """
    told = [(low, high) for low, high in extremes if np.isfinite([low, high]).all() and (low or high)]
    for black, white in RANGES:
        slack = overshoot * white
        dark = DARK * white if white > 1.0 else black  # the first two ranges are taken however dark the pictures are
        if 2 * sum(black - slack <= low and dark <= high <= white + slack for low, high in told) > len(told) or not told:
            return black, white
    low, high = min(low for low, _ in told), max(high for _, high in told)
    raise DataError(f"{name}: values from {low:g} to {high:g}; expected 0 to 1, -1 to 1 or 0 to 255; rescale or clip them")


def check_values(values: np.ndarray, black_white: Range, name: str, overshoot: float = 0.0) -> None:
    """Raise DataError if values are not finite, or leave the range by more than ``overshoot``, in units of white."""
    (black, white), low, high = black_white, values.min(), values.max()
    expected = f"expected {black:g} to {white:g}"
    if not np.isfinite([low, high]).all():
        raise DataError(f"{name}: values that are NaN or infinite; {expected}; repair the picture, or leave it out")
    if low < black - overshoot * white or high > white + overshoot * white:
        raise DataError(f"{name}: values from {low:g} to {high:g}; {expected}; rescale or clip them")


def scaled(values: np.ndarray, black_white: Range, name: str, overshoot: float = OVERSHOOT) -> np.ndarray:
    """Values as float32 in [0, 1], from 0 for black to 1 for white, clipped; errors as for :func:`check_values`."""
    black, white = black_white
    check_values(values, black_white, name, overshoot)
    shifted = np.array(values, np.float32, order="C") - np.float32(black)
    return (shifted / np.float32(white - black)).clip(0.0, 1.0)


@contextmanager
def data_errors(name: str) -> Iterator[None]:
    """Turn whatever opening and decoding the file ``name`` raises into a DataError."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder; expected an image file; name a file in it") from error
    except PermissionError as error:
        raise DataError(f"{error.filename or name}: no permission to read it; change its permissions, or leave it out") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image; expected PNG, JPEG, TIFF or another format that Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise DataError(f"{name}: too large to decode safely; {limit}; make the image smaller first") from error
    except Exception as error:
        # Damaged files raise OSError, SyntaxError, struct.error, zlib.error and more, depending on the decoder.
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); it may be damaged or cut short: get a new copy") from error


def _resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image [C, H, W]: Lanczos over the area each new pixel covers when it shrinks, bicubic when it grows."""
    method = Image.Resampling.LANCZOS if height < image.shape[1] else Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(channel).resize((width, height), method)) for channel in image]
    # Both kernels have negative lobes, which overshoot at edges.
    return np.stack(resized).clip(0, 1)
