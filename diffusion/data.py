"""Images in: one file as a float array, and the data sets that training reads.

Every image is a float32 array [C, H, W] in [0, 1], with one channel when it is grey and three (RGB) otherwise.
"""

from __future__ import annotations

import difflib
import gzip
import os
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lbm_warp.checks import InputError

Image.init()
# Left out: formats that Pillow recognises but cannot decode, or decodes by starting another program (EPS).
_FORMATS = tuple(name for name in Image.ID if name not in {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_EXTENSIONS = {suffix for suffix, name in Image.registered_extensions().items() if name in _FORMATS}
_GREY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_CHANNELS = {"L": 1, "RGB": 3}
_ACCEPTED = "a folder of images, a .zip archive of images, 'digits' or 'ffhq'"
_CACHE_BYTES = 2**30
OTHER_HALF = {"all": "all", "even": "odd", "odd": "even"}


class DataError(InputError):
    """A problem with the data that the user can fix.

    The message is one line: what was wrong, what was expected, what to do.
    """

    def __init__(self, message: str) -> None:
        # File names and decoder messages may hold line breaks.
        super().__init__(" ".join(message.splitlines()))


def read_image(
    path: str | os.PathLike[str] | BinaryIO, mode: Literal["L", "RGB"] | None = None, name: str | None = None
) -> np.ndarray:
    """Read one image: the first frame, upright (EXIF orientation), over white where it is transparent.

    Args:
        path: An image file, or an open and seekable binary file, which stays open.
        mode: "L" makes the result grey (luma, ITU-R 601), "RGB" colour. Without it an image is grey if its file stores
            grey values; a palette counts as colour.
        name: What error messages call the image; the path unless given.

    Returns:
        Float32 [C, H, W] in [0, 1]. 8-bit values are divided by 255, 16-bit and integer ones by 65535; float values by
        the least of 1, 255 and 65535 that brings them into range.

    Raises:
        DataError: No such file, not an image, damaged, larger than Pillow's pixel limit, smaller than 2 x 2, or values
            that are not finite or lie outside the ranges above.
    """
    is_path = isinstance(path, (str, os.PathLike))
    name = name or (os.fspath(path) if is_path else "image")
    with _as_data_error(name), open(path, "rb") if is_path else nullcontext(path) as file:
        pixels = _pixels(_open_image(file, name), name)
    return pixels if mode is None else _with_channels(pixels, _CHANNELS[mode])


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Crop the central square of `image` [C, H, W] and resize it to [C, size, size]; float32 in [0, 1], both."""
    _, height, width = image.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resample(image[:, top : top + side, left : left + side], size, size)


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Resize `image` [C, H, W] so that its shorter side is `size`, keeping the aspect; float32 in [0, 1], both."""
    _, height, width = image.shape
    scale = size / min(height, width)
    return _resample(image, round(height * scale), round(width * scale))


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Square images of one size, read by index: `dataset[i]` is float32 [channels, size, size] in [0, 1].

    An image that turns out to be damaged when it is read raises a DataError that names it.
    """

    name: str
    """Short name, such as "digits" or the name of the folder."""
    description: str
    """One line: how many images, and where they came from."""
    channels: int
    """1 for grey, 3 for RGB."""
    size: int
    """Side of the images, in pixels."""
    images: Sequence[np.ndarray]
    """Where the images are read from."""
    labels: np.ndarray | None = None
    """Class of each image, int64 [len(dataset)], where it is known."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index]


def open_dataset(data: str, size: int | None, root: Path | None, grey: bool | None = None) -> ImageDataset:
    """Open the images called `data`.

    Args:
        data: "digits" (embedded), "ffhq" (looked for in `root`, in the folder that the environment variable
            BEYOND_BLUR_DATA names, and in ./data), or a folder or .zip archive, read with everything below it in the
            order of the paths. Hidden files are left out; archives are read in place.
        size: Side of the square images in pixels; None means 16 for digits, 128 for ffhq, 64 otherwise.
        root: Where downloaded data sets are kept.
        grey: One channel or three. None means grey for the digits, and for files grey only if each of the first 32
            images is. A transparent or palette image is judged by its file, as in `read_image`.

    Returns:
        The data set. Images from files are rounded to 8 bits per channel once resized, and kept in memory if all of
        them fit in 1 GiB.

    Raises:
        DataError: Nothing of that name, nothing to read in it, a damaged or encrypted archive, or more than 10 % of the
            files (and more than 5) are not images. Fewer are left out with a warning.
    """
    if size is not None and size < 2:
        raise DataError(f"size {size}: at least 2 pixels are needed; choose a larger size")
    if data == "digits":
        return _open_digits(size or 16, channels=3 if grey is False else 1)
    if data == "ffhq":
        size = size or 128
        return _open_files(_find_ffhq(size, root), "ffhq", size, grey)
    location = os.path.expanduser(data)
    if os.path.isdir(location) or (os.path.isfile(location) and location.lower().endswith(".zip")):
        return _open_files(Path(location), Path(location).resolve().name, size or 64, grey)
    if os.path.isfile(location):
        raise DataError(f"{data}: a single file; expected {_ACCEPTED}; put the images into a folder")
    nearest = difflib.get_close_matches(data.lower(), ["digits", "ffhq"], n=1)
    problem = f"did you mean '{nearest[0]}'?" if nearest else "no such folder or archive;"
    raise DataError(f"{data}: {problem} expected {_ACCEPTED}")


def half(dataset: ImageDataset, split: Literal["all", "even", "odd"]) -> ImageDataset:
    """The images of even or odd number, for a model that is to be held against the others; "all" is the data set itself.

    Raises:
        DataError: There are none.
    """
    if split == "all":
        return dataset
    numbers = numbers_of(split, len(dataset))
    if not len(numbers):
        raise DataError(f"{dataset.name}: {len(dataset)} image has none of {split} number; at least 2 are needed for two halves")
    return replace(
        dataset,
        name=name_of_half(dataset.name, split),
        description=f"{dataset.description}, of which the {len(numbers)} of {split} number",
        images=_Chosen(dataset.images, numbers),
        labels=None if dataset.labels is None else dataset.labels[numbers],
    )


def numbers_of(split: Literal["all", "even", "odd"], count: int) -> np.ndarray:
    """Numbers of the images of a half (or all) of `count`, int64."""
    return np.arange(count)[{"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[split]]


def name_of_half(name: str, split: Literal["all", "even", "odd"]) -> str:
    """What half a data set is called, such as "digits[even]"; see `whole_and_half` for the way back."""
    return name if split == "all" else f"{name}[{split}]"


def whole_and_half(name: str) -> tuple[str, Literal["all", "even", "odd"]]:
    """The name of the whole data set, and the half of it that `name` stands for: ("digits", "even") of "digits[even]"."""
    found = re.fullmatch(r"(.+)\[(even|odd)\]", name, re.DOTALL)
    return (found[1], found[2]) if found else (name, "all")


# One image


@contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    """Turn whatever opening and decoding the file `name` raises into a DataError."""
    try:
        with warnings.catch_warnings():
            # Pillow's remarks on odd metadata do not concern the pixels. Its warning above a number of pixels does: it
            # raises only above twice that, when decoding may already have exhausted the memory.
            warnings.filterwarnings("ignore", module="PIL")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise DataError(f"{name}: a folder, where one image file is expected; name a file in it") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not an image; expected PNG, JPEG, TIFF or another format Pillow reads") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"the limit is {Image.MAX_IMAGE_PIXELS:,} pixels"
        raise DataError(f"{name}: too large to decode safely; {limit}; make the image smaller first") from error
    except Exception as error:
        # Damaged files raise OSError, SyntaxError, struct.error, zlib.error and more, depending on the decoder.
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); it may be damaged or cut short: get a new copy") from error


def _open_image(file: BinaryIO, name: str) -> Image.Image:
    """Read the header of an image; its pixels are decoded later."""
    image = Image.open(file, formats=_FORMATS)
    if min(image.size) < 2:
        raise DataError(f"{name}: {image.width} x {image.height} image: at least 2 x 2 pixels are needed")
    return image


def _pixels(image: Image.Image, name: str) -> np.ndarray:
    """Decode `image` to float32 [C, H, W] in [0, 1]."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        return _scaled(np.asarray(image), (1, 255, 65535), name)[None]
    if image.mode.startswith("I"):
        return _scaled(np.asarray(image), (65535,), name)[None]

    colours = "L" if image.mode in _GREY_MODES else "RGB"
    transparent = image.has_transparency_data
    values = np.asarray(image.convert(colours + "A" if transparent else colours), dtype=np.float32) / 255
    pixels = np.ascontiguousarray(np.atleast_3d(values).transpose(2, 0, 1))
    if transparent:
        opacity = pixels[-1:]
        pixels = pixels[:-1] * opacity + (1 - opacity)
    return pixels


def _scaled(values: np.ndarray, maxima: tuple[int, ...], name: str) -> np.ndarray:
    """Divide `values` by the least of `maxima` that brings them into [0, 1]."""
    if not np.isfinite(values).all():
        raise DataError(f"{name}: pixel values that are NaN or infinite; expected finite ones; export the image again")
    low, high = values.min(), values.max()
    for maximum in maxima:
        if 0 <= low and high <= maximum:
            return values.astype(np.float32) / maximum
    raise DataError(f"{name}: pixel values from {low:g} to {high:g}; expected 0 to {maxima[-1]}; rescale the image")


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Turn colour into grey (luma, ITU-R 601) or grey into colour, as `channels`, 1 or 3, demands."""
    if len(image) == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=0)
    red, green, blue = image
    return (0.299 * red + 0.587 * green + 0.114 * blue).clip(0, 1)[None]


def _resample(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize `image` [C, H, W]: Lanczos over the area each new pixel covers when it shrinks, bicubic when it grows."""
    method = Image.Resampling.LANCZOS if height < image.shape[1] else Image.Resampling.BICUBIC
    resized = [Image.fromarray(channel).resize((width, height), method) for channel in image]
    # Both kernels have negative lobes, which overshoot at edges.
    return np.stack(resized).clip(0, 1)


# Data sets


def _open_digits(size: int, channels: int) -> ImageDataset:
    with (files("assets") / "digits.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.int64)
    values = (rows[:, :64].reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    images = _Digits(np.repeat(values, channels, axis=1), size)
    description = f"{len(rows)} handwritten digits of 8 x 8 pixels, embedded (UCI, Alpaydin and Kaynak, CC BY 4.0)"
    return ImageDataset("digits", description, channels, size, images, labels=rows[:, 64])


def _find_ffhq(size: int, root: Path | None) -> Path:
    folders = [Path(folder) for folder in (root, os.environ.get("BEYOND_BLUR_DATA"), "data") if folder]
    names = ("ffhq", "ffhq.zip", f"ffhq-{size}x{size}.zip", "thumbnails128x128", "images1024x1024")
    for path in (folder / name for folder in folders for name in names):
        if path.exists():
            return path
    raise DataError(
        f"ffhq: none of {', '.join(names)} in {', '.join(map(str, folders))}; download thumbnails128x128 (70,000 PNG "
        "images, about 2 GB, CC BY-NC-SA 4.0) as https://github.com/NVlabs/ffhq-dataset describes (python "
        f"download_ffhq.py --thumbs) and move that folder to {folders[0] / 'thumbnails128x128'}, or use other images "
        "with --data FOLDER"
    )


def _open_files(path: Path, name: str, size: int, grey: bool | None) -> ImageDataset:
    """Open a folder or archive, after reading the header of every image in it."""
    store = _Folder(path) if path.is_dir() else _Archive(path)
    found = store.names()
    modes, bad = {}, []
    for file_name in found:
        try:
            with store.reading(file_name) as (file, label):
                modes[file_name] = _open_image(file, label).mode
        except DataError:
            bad.append(file_name)

    if not found:
        raise DataError(f"{path}: no image files; expected PNG, JPEG or others that Pillow reads; check the path")
    if bad:
        examples = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
        problem = f"{path}: {len(bad)} of {len(found)} image files cannot be read: {examples}"
        if not modes or len(bad) > max(5, 0.1 * len(found)):
            raise DataError(f"{problem}; remove or replace them")
        warnings.warn(f"{problem}; they are left out", stacklevel=3)

    if grey is None:
        grey = all(mode in _GREY_MODES for mode in list(modes.values())[:32])
    images = _Files(store, tuple(modes), size, "L" if grey else "RGB")
    description = f"{len(images)} {'grey' if grey else 'colour'} images from {path}"
    return ImageDataset(name, description, images.channels, size, images)


@dataclass(frozen=True, eq=False)
class _Chosen(Sequence[np.ndarray]):
    images: Sequence[np.ndarray]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[int(self.numbers[index])]


@dataclass(frozen=True, eq=False)
class _Digits(Sequence[np.ndarray]):
    values: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> np.ndarray:
        return fit(self.values[index], self.size)


@dataclass(frozen=True, eq=False)
class _Files(Sequence[np.ndarray]):
    """Images decoded when they are first asked for. All values pass through 8 bits, so cached or not makes no odds."""

    store: _Folder | _Archive
    names: tuple[str, ...]
    size: int
    mode: Literal["L", "RGB"]
    cache: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        return _CHANNELS[self.mode]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        levels = self.cache.get(index)
        if levels is None:
            with self.store.reading(self.names[index]) as (file, label):
                image = fit(read_image(file, self.mode, label), self.size)
            levels = np.rint(image * 255).astype(np.uint8)
            if len(self) * levels.nbytes <= _CACHE_BYTES:
                self.cache[index] = levels
        return levels.astype(np.float32) / 255


@dataclass(frozen=True)
class _Folder:
    path: Path

    def names(self) -> list[str]:
        """Paths of the image files, relative and sorted; each real directory counts once, so links cannot loop."""
        found, visited = [], set()
        for directory, folders, file_names in os.walk(self.path, followlinks=True):
            # Sorted, so that of several links to one directory the same one is always followed.
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            real = os.path.realpath(directory)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            below = Path(directory).relative_to(self.path)
            found += [(below / file_name).as_posix() for file_name in file_names]
        return sorted(filter(_is_image_name, found))

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open one file; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        label = str(self.path / name)
        with _as_data_error(label), open(self.path / name, "rb") as file:
            yield file, label


@dataclass(frozen=True)
class _Archive:
    path: Path
    handles: dict[tuple[int, int], zipfile.ZipFile] = field(default_factory=dict, compare=False)

    def names(self) -> list[str]:
        """Names of the image members, sorted."""
        with _as_data_error(str(self.path)):
            members = [member for member in self._handle().infolist() if _is_image_name(member.filename)]
        if any(member.flag_bits & 1 for member in members):
            raise DataError(f"{self.path}: encrypted; expected an archive without password; unpack it to a folder")
        return sorted({member.filename for member in members})

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open one member; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        label = str(self.path / name)
        with _as_data_error(label), self._handle().open(name) as file:
            yield file, label

    def _handle(self) -> zipfile.ZipFile:
        # Handles share a file position with every copy of themselves, so each process and thread needs its own.
        key = os.getpid(), threading.get_ident()
        if key not in self.handles:
            self.handles[key] = zipfile.ZipFile(self.path)
        return self.handles[key]

    def __reduce__(self) -> tuple[type[_Archive], tuple[Path]]:
        return _Archive, (self.path,)


def _is_image_name(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _EXTENSIONS and not any(part.startswith(".") for part in path.parts)
