"""One image in: a file as a float array, cropped and resized.

Every image is a float32 array [C, H, W] in [0, 1], with one channel when it is grey and three (RGB) otherwise.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

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
# The byte order that is not this machine's.
SWAPPED = "B" if sys.byteorder == "little" else "L"
# Values of black and of white.
Range = tuple[float, float]
RANGES: tuple[Range, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))
WORDS = RANGES[-1]
OVERSHOOT = 0.05  # of white, by which resized or filtered pictures leave their range
DARK = 1 / 16  # of white: a set whose pictures are all darker than this has another range
STRIP = 2**20  # pixels that become floats at a time: a large picture is read in little memory
BITS, PLANES = 258, 284  # tags of TIFF: bits of a sample, and whether every channel has a plane of its own
# Of colours of 16 bits Pillow decodes the high bytes alone; if it is told that the bytes stand in the other order, the low ones. By
# its name of an order: that of the other one, and the channels that then hold the low bytes.
LOW_BYTES = {
    order: (other, [0, 1, 2, 3][: len(mode)])
    for mode in ("RGB", "RGBA")
    for order, other in ((f"{mode};16B", f"{mode};16L"), (f"{mode};16L", f"{mode};16B"), (f"{mode};16N", f"{mode};16{SWAPPED}"))
} | {"LA;16B": ("RGBA", [1, 3])}


class DataError(InputError):
    """A problem with the data that the user can fix. Its message is one line: what was wrong, what was expected, what to do."""

    def __init__(self, message: str) -> None:
        # File names and decoder messages may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


class Cut(NamedTuple):
    """The middle of a picture, and the size that it is resized to."""

    middle: Size
    size: Size


def read_image(
    path: str | os.PathLike[str] | BinaryIO,
    mode: Literal["L", "RGB"] | None = None,
    name: str | None = None,
    values: Range | None = None,
    cut: Callable[[Size], Cut] | None = None,
) -> np.ndarray:
    """Read one image: the first frame, upright (EXIF orientation), over white where it is transparent.

    Args:
        path: an image file, or an open and seekable binary file, which stays open.
        mode: ``L`` makes the result grey (luma, ITU-R 601), ``RGB`` colour. Without it an image is grey if its file stores grey
            values; a palette counts as colour.
        name: what error messages call the image; the path unless given.
        values: black and white of float pictures, which those of one set have in common; by default that of this picture alone, as
            :func:`value_range` finds it.
        cut: what of a picture of a given size is wanted, and how large, such as ``partial(shorter_to, length=512)``: the same as
            :func:`fit` and :func:`resize_shorter` make of all of it, in less memory.

    Returns:
        float32 [C, H, W] in [0, 1]. 8-bit values are divided by 255, 16-bit and integer ones by 65535. Colours of 16 bits in other
        formats than PNG and TIFF are read with 8.

    Raises:
        DataError: if there is no such file, it is not an image, damaged, larger than Pillow's pixel limit or smaller than 2 x 2, or
            its values are not finite or lie outside the ranges above.
    """
    if isinstance(path, (str, os.PathLike)):
        name = name or os.fspath(path)
        with data_errors(name), open(path, "rb") as file:
            return read_image(file, mode, name, values, cut)
    name = name or "image"
    with data_errors(name):
        image = open_image(path, name)
        if cut is None:
            pixels = decoded(image, name, values)
            return pixels if mode is None else with_channels(pixels, len(mode))
        (middle, size), _, strips = _strips(image, name, values, cut)
        return _resample(strips if mode is None else (with_channels(strip, len(mode)) for strip in strips), middle, size)


def fit(image: np.ndarray, size: int | Size) -> np.ndarray:
    """Crop the central rectangle of an image that has the aspect of ``size``, and resize it to ``size``.

    Args:
        image: float32 [C, H, W] in [0, 1].
        size: as for :meth:`Size.of`. A side of the rectangle that is not a whole number is rounded to the nearest pixel.

    Returns:
        float32 [C, height, width] in [0, 1].
    """
    own = Size(*image.shape[1:])
    middle, target = fitting(own, Size.of(size))
    left, top, right, bottom = _box(own, middle)
    return _resample([image[:, top:bottom, left:right]], middle, target)


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image, float32 [C, H, W] in [0, 1], so that its shorter side is ``size`` and the aspect stays."""
    return _resample([image], *shorter_to(Size(*image.shape[1:]), size))


def fitting(own: Size, size: Size) -> Cut:
    """Of a picture of a size the middle that has the aspect of another one."""
    rows = min(own.height, max(1, round(own.width * size.height / size.width)))
    columns = min(own.width, max(1, round(own.height * size.width / size.height)))
    return Cut(Size(rows, columns), size)


def shorter_to(own: Size, length: int) -> Cut:
    """All of a picture of a size, with a shorter side of this length."""
    scale = length / min(own)
    return Cut(own, Size(round(own.height * scale), round(own.width * scale)))


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


def decoded(image: Image.Image, name: str, values: Range | None = None, over_white: bool = True) -> np.ndarray:
    """An open image as float32 [C, H, W] in [0, 1]; it is turned upright in place. ``values`` as for :func:`read_image`.

    If it is not to be shown over white, the opacity of an image with transparency is the last channel.
    """
    (own, _), channels, strips = _strips(image, name, values, lambda own: Cut(own, own), over_white)
    pixels, top = np.empty((channels, *own), np.float32), 0
    for strip in strips:
        bottom = top + strip.shape[1]
        pixels[:, top:bottom], top = strip, bottom
    return pixels


def _strips(
    image: Image.Image, name: str, values: Range | None, cut: Callable[[Size], Cut], over_white: bool = True
) -> tuple[Cut, int, Iterator[np.ndarray]]:
    """What is cut out of an open image, the number C of its channels, and its rows, float32 [C, rows, W] in [0, 1] from the top."""
    colours, low = "L" if is_grey(image) else "RGB", _low_bytes(image, name)  # which decoding forgets
    ImageOps.exif_transpose(image, in_place=True)
    own = Size(image.height, image.width)
    middle, size = cut(own)
    left, top, right, bottom = _box(own, middle)
    black_white, transparent = WORDS, image.has_transparency_data and not image.mode.startswith(("F", "I"))
    if image.mode == "F":
        black_white = values or value_range([(np.min(image), np.max(image))], name)  # type: ignore[call-overload]

    def floats(above: int, below: int) -> np.ndarray:
        strip = image.crop((left, above, right, below))
        if strip.mode == "F" or strip.mode.startswith("I"):
            return scaled(np.asarray(strip), black_white, name, OVERSHOOT if strip.mode == "F" else 0.0)[None]
        levels = np.atleast_3d(np.asarray(strip.convert(colours + "A" if transparent else colours))).transpose(2, 0, 1)
        levels = levels if low is None else np.uint16(256) * levels + low[:, above:below, left:right]
        pixels = np.divide(levels, np.float32(255 if low is None else 65535), out=np.empty(levels.shape, np.float32))
        if transparent and over_white:
            opacity = pixels[-1:]
            pixels = pixels[:-1] * opacity + (1 - opacity)
        return pixels

    rows = max(1, STRIP // middle.width)
    strips = (floats(row, min(row + rows, bottom)) for row in range(top, bottom, rows))
    return Cut(middle, size), len(colours) + (transparent and not over_white), strips


def _low_bytes(image: Image.Image, name: str) -> np.ndarray | None:
    """The low bytes of an image of 16-bit colours that is not decoded yet, upright, uint8 [C, H, W]; None of any other."""
    tags, tiles = getattr(image, "tag_v2", {}), getattr(image, "tile", ())
    if tags.get(PLANES) == 2 and 16 in tags.get(BITS, ()):
        raise DataError(f"{name}: 16 bits in a plane for each channel cannot be decoded; write it with the channels together")
    args = tiles[0].args if tiles else ""
    order = args if isinstance(args, str) else args[0] if args else ""
    if order not in LOW_BYTES or "transparency" in image.info:
        return None
    (other, channels), file = LOW_BYTES[order], image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    again: Any = Image.open(file, formats=[str(image.format)])
    again.tile = [tile._replace(args=other if isinstance(args, str) else (other, *args[1:])) for tile in tiles]
    ImageOps.exif_transpose(again, in_place=True)
    low = np.asarray(again)[..., channels]
    file.seek(place)
    return low.transpose(2, 0, 1)


def value_range(
    extremes: Sequence[tuple[float, float]], name: str, overshoot: float = OVERSHOOT, names: Sequence[str] = ()
) -> Range:
    """Black and white of a set of float pictures: 0 to 1, -1 to 1, 0 to 255 or 0 to 65535.

    Args:
        extremes: the least and the greatest value of each picture that is looked at. One of them alone tells little: a dark picture
            of bytes fits into 0 to 1, and a bright one in 0 to 1 may reach 1.02.
        name: what error messages call the set.
        overshoot: by how much of white pictures may leave the range.
        names: what error messages call the pictures.

    Returns:
        The first range that more than half of the pictures fill, those that are all black aside.

    Raises:
        DataError: if there is none.
    """
    told = [(low, high) for low, high in extremes if np.isfinite([low, high]).all() and (low or high)]
    for black, white in RANGES:
        slack = overshoot * white
        dark = DARK * white if white > 1.0 else black  # the first two ranges are taken however dark the pictures are
        fits = 2 * sum(black - slack <= low and dark <= high <= white + slack for low, high in told) > len(told)
        # A little below 0 is noise about black, not grey.
        if not told or (fits and (black == 0.0 or min(low for low, _ in told) <= 0.5 * black)):
            return black, white
    low, high = min(low for low, _ in told), max(high for _, high in told)
    ends = [next((f" ({one})" for one, pair in zip(names, extremes, strict=False) if end in pair), "") for end in (low, high)]
    expected = "expected 0 to 1, -1 to 1 or 0 to 255" + " in all of these pictures" * (len(names) > 1)
    raise DataError(f"{name}: values from {low:g}{ends[0]} to {high:g}{ends[1]}; {expected}; rescale or clip them")


def check_values(values: np.ndarray, black_white: Range, name: str, overshoot: float = 0.0) -> None:
    """Raise DataError if values are not finite, or leave the range by more than ``overshoot``, in units of white."""
    (black, white), low, high = black_white, values.min(), values.max()
    expected = f"expected {black:g} to {white:g}"
    if not np.isfinite([low, high]).all():
        raise DataError(f"{name}: values that are NaN or infinite; {expected}; repair the picture, or leave it out")
    if low < black - overshoot * white or high > white + overshoot * white:
        raise DataError(f"{name}: values from {low:g} to {high:g}; {expected}; rescale or clip them")


def check_picture(pixels: np.ndarray, name: str, channels: Container[int] = range(1, 2**31), overshoot: float = 1e-6) -> None:
    """Raise DataError unless a picture is floating-point [C, H, W] in [0, 1], with a right number C of channels."""
    right = isinstance(pixels, np.ndarray) and pixels.ndim == 3 and pixels.size and pixels.dtype.kind == "f"
    if not right or pixels.shape[0] not in channels:
        kinds = " or ".join(map(str, channels)) if isinstance(channels, tuple) else "any"
        got = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {list(np.shape(pixels))}"
        raise DataError(f"{name}: expected floating-point [C, H, W] in [0, 1], C = {kinds}, of numpy; got {got}")
    check_values(pixels, (0.0, 1.0), name, overshoot)


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


def _box(own: Size, middle: Size) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the middle of a picture."""
    top, left = (own.height - middle.height) // 2, (own.width - middle.width) // 2
    return left, top, left + middle.width, top + middle.height


def _resample(strips: Iterable[np.ndarray], own: Size, size: Size) -> np.ndarray:
    """Resize an image, given by strips [C, rows, W]: Lanczos over the area each new pixel covers when it shrinks, bicubic when it
    grows."""
    method = Image.Resampling.LANCZOS if size.height < own.height else Image.Resampling.BICUBIC

    def stretched(image: np.ndarray, height: int) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(channel).resize((size.width, height), method)) for channel in image])

    if own.height * own.width > STRIP:  # along the rows first, so that strips can be resized one by one
        strips = [np.concatenate([stretched(strip, strip.shape[1]) for strip in strips], axis=1)]
    (image,) = strips
    # Both kernels have negative lobes, which overshoot at edges.
    return stretched(image, size.height).clip(0, 1)
