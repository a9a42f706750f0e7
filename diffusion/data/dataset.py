"""The data sets that training reads: images of one size, by number or as a stream."""

from __future__ import annotations

import difflib
import gzip
import math
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np

from diffusion.data import catalog
from diffusion.data.hub import Row, Stream, open_hub
from diffusion.data.images import DataError, fit, with_channels
from diffusion.data.prepare import THREADS, allowed, count_channels, decode, prepare, refusal
from diffusion.data.sources import Source, open_path
from diffusion.size import Size

Split = Literal["all", "even", "odd"]
OTHER_HALF: dict[str, Split] = {"all": "all", "even": "odd", "odd": "even"}
_HALVES = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
_NAMES = ("digits", *catalog.KNOWN)
_SIZE = 64
_CLASSES = 10_000
# Images of a stream that can be read by number, and the memory for them [bytes].
_HEAD = 10_000
_HEAD_BYTES = 2**30


class Pictures(Sequence[np.ndarray]):
    """Pictures of one size: ``pictures[i]`` is float32 [channels, height, width] in [0, 1]."""

    name: str
    """Short name, such as ``digits`` or the name of the folder; ``digits[even]`` for half of a set."""
    channels: int
    """1 for grey, 3 for RGB."""
    size: Size
    """Height and width [pixels]."""
    labels: np.ndarray | None = None
    """Class of each image, int64 [N], where it is known."""
    class_names: Sequence[str] = ()
    """Names of the classes, where they have names."""
    families: np.ndarray | None = None
    """Number of the family of each image of the whole set, int64, where some are nearly the same: halves keep families together."""
    split: Split = "all"
    """Which images of the whole set these are."""
    pixels: np.ndarray
    """All images, [N, channels, height, width]: uint8, or float32 in [0, 1]."""

    @property
    def labelled(self) -> bool:
        """Whether the images have labels; none is read for it."""
        return self.labels is not None

    def classes(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of all classes, in the order of their numbers; ``names`` unless they are empty.

        Raises:
            DataError: if not every image has one of these classes.
        """
        if self.labels is None:
            kinds = "digits, mnist, fashion-mnist, cifar10, a folder with a folder for each class, a dataset.json, a ClassLabel"
            raise DataError(
                f"{self.name}: not every image has a class; leave out --classes, or use data with labels ({kinds}), no stream"
            )
        if names and self.class_names and set(names) == set(self.class_names) and tuple(names) != tuple(self.class_names):
            raise DataError(f"{self.name}: its classes are {', '.join(self.class_names)}, in this order; got {', '.join(names)}")
        names = tuple(names or self.class_names or map(str, range(int(self.labels.max()) + 1)))
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(names)))
        if len(wrong):
            raise DataError(f"{self.name}: image {wrong[0]} has label {self.labels[wrong[0]]}; expected 0 to {len(names) - 1}")
        if not 2 <= len(names) <= _CLASSES:
            raise DataError(f"{self.name}: number of classes {len(names)}; expected 2 to {_CLASSES}")
        return names

    def read(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of these numbers, or one, as they are kept: uint8, or float32 in [0, 1]."""
        return np.asarray(self.pixels[index])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        return as_floats(self.read(number))


@dataclass(eq=False)
class ImageDataset(Pictures):
    """Images in memory, or mapped into it."""

    name: str
    description: str
    """One line: how many images, and where they came from."""
    pixels: np.ndarray
    labels: np.ndarray | None = None
    split: Split = "all"
    class_names: Sequence[str] = ()
    families: np.ndarray | None = None

    def __post_init__(self) -> None:
        _, self.channels, *sides = self.pixels.shape
        self.size = Size(*sides)


@dataclass(eq=False)
class ImageStream(Pictures):
    """A set of the hub not kept on the disk; ``stream[i]`` reads its beginning."""

    name: str
    description: str
    channels: int
    size: Size
    source: Stream
    """The encoded images."""
    damaged: set[str] = field(default_factory=set)
    """What was wrong with the damaged images found so far."""

    def decode(self, row: Row) -> np.ndarray:
        """An image of the stream, uint8 [channels, height, width]; a damaged one is replaced by one that depends on it alone.

        Raises:
            DataError: if more than 1,000 images were damaged.
        """
        try:
            return decode(self.source, row, self.size, self.channels)
        except DataError as error:
            self.damaged.add(str(error))
            if len(self.damaged) > allowed(_HEAD) or not self._spares:
                raise DataError(f"{self.name}: {len(self.damaged)} damaged images, too many to go on; the last: {error}") from None
            warnings.warn(f"{error} (another image takes its place)", stacklevel=2)
            return self._spares[zlib.crc32(row[1]) % len(self._spares)]

    @cached_property
    def _spares(self) -> list[np.ndarray]:
        """What takes the place of damaged images: those of the first 32 that can be read."""
        spares = []
        for row in self.source.names:
            with suppress(DataError):
                spares.append(decode(self.source, row, self.size, self.channels))
        return spares

    @cached_property
    def pixels(self) -> np.ndarray:  # type: ignore[override]
        """The beginning of the stream, up to 10,000 images, read when it is first asked for: uint8 [N, channels, height, width]."""
        count = min(_HEAD, _HEAD_BYTES // (self.channels * math.prod(self.size)))
        with ThreadPoolExecutor(THREADS) as pool:
            return np.stack(list(pool.map(self.decode, islice(self.source, count))))


def open_dataset(
    data: str,
    size: int | str | Sequence[int] | None = None,
    root: Path | None = None,
    *,
    grey: bool | None = None,
    stream: bool = False,
    split: Split = "all",
    cache: Path | None = None,
) -> ImageDataset | ImageStream:
    """Open the images called ``data``. The first time they are decoded, cropped, resized, rounded to 8 bits, and kept.

    Args:
        data: one of

            - ``digits``, embedded;
            - a folder or .zip archive of images, with everything below it but hidden files, in the order of the paths. Classes are
              taken from a dataset.json as EDM and StyleGAN write it, else from the names of its folders. A folder may also hold the
              files of MNIST (IDX) or CIFAR-10 (binary version), of which the training images are read;
            - ``hf:owner/name``, with ``@config`` and ``:split`` where wanted: a set of the Hugging Face hub, downloaded unless
              ``stream``; ``hf:FOLDER`` is a folder of parquet files;
            - ``ffhq``, ``afhq``, ``lsun-church``, ``cifar10``, ``mnist``, ``fashion-mnist`` or ``emoji``: a local copy if there is
              one in ``root``, in the folder that the environment variable BEYOND_BLUR_DATA names, in ./data or where Debian's
              packages put it; else the hub's, if the ``datasets`` library is installed.
        size: size of the images, as for :meth:`Size.of`; None means 16 for digits, 128 for ffhq and lsun-church, 32 for cifar10 and
            emoji, 28 for mnist and fashion-mnist, 64 otherwise. Images are cropped to this aspect around their centre.
        root: where downloaded data sets are kept.
        grey: one channel or three. None means grey for the digits, and for files grey only if each of the first 32 images is. A
            transparent or palette image is judged by its file, as in :func:`read_image`.
        stream: read a set of the hub as a stream, in the order of its files, shuffled 1000 images at a time.
        split: all images, or those of even or odd number, for a model that is to be compared with the others. Of emoji the families
            of even or odd number: variants of one picture, such as skin tones, are all in one half.
        cache: where prepared images are kept; None is beyond-blur/data in the user's cache folder.

    Raises:
        DataError: if nothing has that name, nothing in it can be read, an archive is damaged or encrypted, the disk has no space
            for the prepared images, or more than 10 % of the files (and more than 5) cannot be read. Fewer are left out with a
            warning.
        InputError: if the size is not valid.
    """
    size = None if size is None else Size.of(size)
    class_names: Sequence[str] = ()
    families: np.ndarray | None = None
    if stream and split != "all":
        raise DataError(f"{data}: a stream has no halves; leave out --stream, or --split")
    if data == "digits" and not stream:
        name, description, pixels, labels = _digits(size or Size(16, 16), channels=3 if grey is False else 1)
    else:
        name, source, size, channels = find_source(data, size, root, grey, stream)
        kind = "grey" if channels == 1 else "colour"
        if isinstance(source, Stream):
            description = f"{source.count or ''} {kind} images, streamed from {source.location}".lstrip()
            return ImageStream(name, description, channels, size, source)
        pixels, refused = prepare(source, size, channels, cache)
        kept = [file for file in source.names if file not in refused]
        labels, class_names, families = source.labels(kept), source.class_names, families_of(source, kept)
        if name in catalog.KNOWN:
            class_names = class_names or catalog.KNOWN[name].classes
        description = f"{len(pixels)} {kind} images from {source.location}"
        if refused:
            problem = refusal(refused, len(source.names))
            warnings.warn(f"{source.location}: {problem}; they are left out", stacklevel=2)
    chosen = _HALVES[split] if families is None else numbers_of(split, families)
    if not len(pixels[chosen]):
        raise DataError(
            f"{name}: {description}, none of {split} number; expected at least 2 for two halves; add images, or leave out --split"
        )
    if split != "all":
        description += f", of which the {len(pixels[chosen])} of {split} number"
    labels = None if labels is None else labels[chosen]
    return ImageDataset(name_of_half(name, split), description, pixels[chosen], labels, split, class_names, families)


def find_source(
    data: str, size: Size | None, root: Path | None, grey: bool | None, stream: bool
) -> tuple[str, Source | Stream, Size, int]:
    """Name, source, size and number of channels of images not read yet; arguments and errors as for :func:`open_dataset`."""
    source: Source | Stream
    name, path = data, Path(data).expanduser()
    if data.startswith("hf:"):
        name, source = open_hub(data.removeprefix("hf:"), stream)
    elif data in catalog.KNOWN:
        size = size or Size.of(catalog.KNOWN[data].size)
        if not stream and (copy := catalog.find(data, size, root)):
            source = open_path(copy)
        else:
            if not (hub := catalog.KNOWN[data].hub):
                raise DataError(f"{data}: {catalog.advice(data, root)}")
            try:
                source = open_hub(hub, stream)[1]
            except DataError as error:
                raise DataError(f"{data}: {catalog.advice(data, root)}; from the hub: {error}") from None
    elif stream:
        raise DataError(f"{data}: only sets of the hub can be streamed, such as hf:owner/name; leave out --stream")
    elif data and os.path.exists(path):
        source = open_path(path)
        name = Path(source.location).resolve().name
    else:
        nearest = difflib.get_close_matches(data.lower(), _NAMES, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        accepted = f"a folder or .zip archive of images, hf:owner/name, or one of {', '.join(_NAMES)}"
        raise DataError(f"{data}: no such folder or archive; expected {accepted}{hint}")
    if not source.names:
        raise DataError(f"{source.location}: no image files; expected PNG, JPEG or others that Pillow reads; check the path")
    return name, source, size or Size.of(_SIZE), count_channels(source) if grey is None else 1 if grey else 3


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """A copy of the pixels as float32 in [0, 1]; uint8 values are divided by 255."""
    return np.divide(pixels, 255, dtype=np.float32) if pixels.dtype == np.uint8 else np.array(pixels)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Numbers of at most ``most`` of ``count`` images, evenly spaced from the first to the last: int64."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def families_of(source: Source, names: Sequence[str]) -> np.ndarray | None:
    """Numbers of the families of images, from 0 in the order in which they come, int64; None where the source knows none."""
    if source.family is None:
        return None
    keys = [source.family(name) for name in names]
    number = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys])


def numbers_of(split: Split, images: int | np.ndarray) -> np.ndarray:
    """Numbers of the images of a half (or all), int64: of so many images, or of those of these families.

    The even half are the images, or families, of even number.
    """
    if isinstance(images, int):
        return np.arange(images)[_HALVES[split]]
    return np.flatnonzero(np.isin(images, np.arange(images.max() + 1)[_HALVES[split]]))


def name_of_half(name: str, split: Split) -> str:
    """The name of half a data set, such as ``digits[even]``; :func:`whole_and_half` is the inverse."""
    return name if split == "all" else f"{name}[{split}]"


def whole_and_half(name: str) -> tuple[str, Split]:
    """The name of the whole data set, and the half that ``name`` stands for: ``("digits", "even")`` for ``digits[even]``."""
    found = re.fullmatch(r"(.+)\[(even|odd)\]", name, re.DOTALL)
    return (found[1], cast(Split, found[2])) if found else (name, "all")


def _digits(size: Size, channels: int) -> tuple[str, str, np.ndarray, np.ndarray | None]:
    with (files("assets") / "digits.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.int64)
    images = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.float32) / 16
    pixels = np.stack([fit(with_channels(image, channels), size) for image in images])
    description = f"{len(rows)} handwritten digits of 8 x 8 pixels, embedded (UCI, Alpaydin and Kaynak, CC BY 4.0)"
    return "digits", description, pixels, rows[:, 64]
