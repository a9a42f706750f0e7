"""One image in: a file as a float array, cropped and resized.

Every image is a float32 array [C, H, W] in [0, 1], with one channel when it is grey and three (RGB) otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
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


class DataError(InputError):
    """A problem with the data that the user can fix. Its message is one line: what was wrong, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        # File names and decoder messages may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


def read_image(
    path: str | os.PathLike[str] | BinaryIO, mode: Literal["L", "RGB"] | None = None, name: str | None = None
) -> np.ndarray:
    """Read one image: the first frame, upright (EXIF orientation), over white where it is transparent.

    Args:
        path: an image file, or an open and seekable binary file, which stays open.
        mode: ``L`` makes the result grey (luma, ITU-R 601), ``RGB`` colour. Without it an image is grey if its file stores grey
            values; a palette counts as colour.
        name: what error messages call the image; the path unless given.

    Returns:
        float32 [C, H, W] in [0, 1]. 8-bit values are divided by 255, 16-bit and integer ones by 65535; float values by the least of
        1, 255 and 65535 that brings them into range.

    Raises:
        DataError: if there is no such file, it is not an image, damaged, larger than Pillow's pixel limit or smaller than 2 x 2, or
            its values are not finite or lie outside the ranges above.
    """
    if isinstance(path, (str, os.PathLike)):
        name = name or os.fspath(path)
        with data_errors(name), open(path, "rb") as file:
            return read_image(file, mode, name)
    name = name or "image"
    with data_errors(name):
        pixels = decoded(open_image(path, name), name)
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
    path = PurePosixPath(name)
    return path.suffix.lower() in _EXTENSIONS and not any(part.startswith(".") for part in path.parts)


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
    """Whether an image stores grey values; a palette counts as colour."""
    return Image.getmodebase(image.mode) == "L"


def decoded(image: Image.Image, name: str) -> np.ndarray:
    """An open image as float32 [C, H, W] in [0, 1]; it is turned upright in place."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        return _scaled(np.asarray(image), (1, 255, 65535), name)[None]
    if image.mode.startswith("I"):
        return _scaled(np.asarray(image), (65535,), name)[None]

    colours = "L" if is_grey(image) else "RGB"
    transparent = image.has_transparency_data
    values = np.asarray(image.convert(colours + "A" if transparent else colours), dtype=np.float32) / 255
    pixels = np.ascontiguousarray(np.atleast_3d(values).transpose(2, 0, 1))
    if transparent:
        opacity = pixels[-1:]
        pixels = pixels[:-1] * opacity + (1 - opacity)
    return pixels


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


def _scaled(values: np.ndarray, maxima: tuple[int, ...], name: str) -> np.ndarray:
    """Divide values by the least of ``maxima`` that brings them into [0, 1]."""
    if not np.isfinite(values).all():
        raise DataError(f"{name}: pixel values that are NaN or infinite; expected finite ones; export the image again")
    low, high = values.min(), values.max()
    for maximum in maxima:
        if 0 <= low and high <= maximum:
            return values.astype(np.float32) / maximum
    raise DataError(f"{name}: pixel values from {low:g} to {high:g}; expected 0 to {maxima[-1]}; rescale the image")


def _resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize an image [C, H, W]: Lanczos over the area each new pixel covers when it shrinks, bicubic when it grows."""
    method = Image.Resampling.LANCZOS if height < image.shape[1] else Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(channel).resize((width, height), method)) for channel in image]
    # Both kernels have negative lobes, which overshoot at edges.
    return np.stack(resized).clip(0, 1)
