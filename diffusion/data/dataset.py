"""The data sets that training reads: square images of one size, by index or as a stream."""

from __future__ import annotations

import difflib
import gzip
import io
import math
import mmap
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion.data import catalog, hub
from diffusion.data.images import CHANNELS, GREY_MODES, DataError, fit, open_image, read_square, with_channels
from diffusion.data.sources import Archive, Folder, is_table_file, read_labels, read_table

_NAMES = ("digits", *catalog.KNOWN)
_ACCEPTED = f"a folder or .zip archive of images, hf:owner/name, or one of {', '.join(_NAMES)}"
# Memory for decoded images of a data set, in bytes.
_CACHE_BYTES = 2**30
# Images from which a data set is judged grey or colour.
_PROBES = 32
# Images of a stream that can be read by index.
_HEAD = 10_000


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Square images of one size, read by index: `dataset[i]` is float32 [channels, size, size] in [0, 1].

    An image that turns out to be damaged when it is read is replaced by the next one that is not. A warning names it, once; when
    they are more than 10 % of the images (and more than 5) a DataError is raised.
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
    """Where the images are read from; one that is damaged raises a DataError. Of a stream its beginning, up to 10,000 images."""
    labels: np.ndarray | None = None
    """Class of each image, int64 [len(dataset)], where it is known."""
    stream: ImageStream | None = None
    """Where training reads a set from that is too large for the disk."""
    encoded: bool = False
    """Whether to read an image is to decode a file, which worker processes speed up."""
    damaged: dict[str, None] = field(default_factory=dict)
    """What was wrong with the damaged images found so far."""

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        image, problems = self.read(index)
        self.report(problems)
        return image

    def read(self, index: int) -> tuple[np.ndarray, list[str]]:
        """The image at `index`, or the next one that is not damaged, and what is wrong with those before it, unreported."""
        places = range(len(self))
        place = places[index]
        tries = (places[(place + step) % len(self)] for step in range(min(len(self), _allowed(len(self)) + 1)))
        return _first_readable(partial(self.images.__getitem__, one) for one in tries)

    def report(self, problems: Iterable[str]) -> None:
        """Note damaged images: warn of the new ones.

        Raises:
            DataError: There are too many.
        """
        total = _HEAD if self.stream else len(self)
        for problem in problems:
            if problem not in self.damaged:
                self.damaged[problem] = None
                if len(self.damaged) > _allowed(total):
                    raise DataError(f"{self.name}: {len(self.damaged)} damaged images, too many to go on; the last: {problem}")
                warnings.warn(f"{problem} (damaged image {len(self.damaged)}; another takes its place)", stacklevel=3)


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Square images of one size, in an order that is a function of a seed."""

    source: hub.Stream
    """Where the encoded images come from."""
    size: int
    """Side of the images, in pixels."""
    mode: Literal["L", "RGB"]
    """Grey or colour."""
    spares: tuple[hub.Row, ...]
    """Images that take the places of damaged ones."""

    def rows(self, seed: int, first: int) -> Iterator[hub.Row]:
        """The encoded images of a run, from number `first` on, without end."""
        return self.source.shuffled(seed, first)

    def read(self, row: hub.Row) -> tuple[np.ndarray, list[str]]:
        """Decode `row`; if it is damaged, a spare image that depends on it alone. Returns as `ImageDataset.read`."""
        start = zlib.crc32(row.content or b"") % len(self.spares)
        levels, problems = _first_readable(partial(self.levels, one) for one in (row, *self.spares[start:], *self.spares[:start]))
        return levels.astype(np.float32) / 255, problems

    def levels(self, row: hub.Row) -> np.ndarray:
        """Decode `row` to 8-bit levels, uint8 [C, size, size]; raise a DataError if it is damaged."""
        return _decoded(self.source, row, self.size, self.mode)


def open_dataset(
    data: str, size: int | None = None, root: Path | None = None, grey: bool | None = None, stream: bool = False
) -> ImageDataset:
    """Open the images called `data`.

    Args:
        data: One of

            - "digits", embedded;
            - a folder or .zip archive of images, read in place with everything below it, in the order of the paths. Hidden files
              are left out. Classes are taken from a dataset.json as EDM and StyleGAN write it. A folder may also hold the files
              of MNIST (IDX) or CIFAR-10 (binary version), of which the training images are read;
            - "hf:owner/name", with "@config" and ":split" where wanted: a set of the Hugging Face hub, downloaded unless `stream`;
              "hf:FOLDER" is a folder of parquet files;
            - "ffhq", "afhq", "lsun-church", "cifar10" or "mnist": a local copy if there is one in `root`, in the folder that the
              environment variable BEYOND_BLUR_DATA names, or in ./data; else the hub's, if the `datasets` library is installed.
        size: Side of the square images in pixels; None means 16 for digits, 128 for ffhq and lsun-church, 32 for cifar10, 28 for
            mnist, 64 otherwise.
        root: Where downloaded data sets are kept.
        grey: One channel or three. None means grey for the digits, and for files grey only if each of the first 32 images is. A
            transparent or palette image is judged by its file, as in `read_image`.
        stream: Read a set of the hub as a stream, in the order of its files, shuffled 1000 images at a time.

    Returns:
        The data set. Images from files are rounded to 8 bits per channel once resized, and kept in memory if all of them fit in
        1 GiB.

    Raises:
        DataError: Nothing of that name, nothing to read in it, a damaged or encrypted archive, or more than 10 % of the files (and
            more than 5) are not images. Fewer are left out with a warning.
    """
    if size is not None and size < 2:
        raise DataError(f"size {size}: at least 2 pixels are needed; choose a larger size")
    if data.startswith("hf:"):
        return _open_hub(data.removeprefix("hf:"), size or 64, grey, stream)
    if data in catalog.KNOWN:
        return _open_known(data, size or catalog.KNOWN[data].size, root, grey, stream)
    if stream:
        raise DataError(f"{data}: only sets of the hub can be streamed, such as hf:owner/name; leave out --stream")
    if data == "digits":
        return _open_digits(size or 16, channels=3 if grey is False else 1)
    path = Path(data).expanduser()
    if data and path.exists():
        return _open_path(path, size or 64, grey)
    nearest = difflib.get_close_matches(data.lower(), _NAMES, n=1)
    problem = f"did you mean '{nearest[0]}'?" if nearest else "no such folder or archive;"
    raise DataError(f"{data}: {problem} expected {_ACCEPTED}")


def spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` of ``count`` places, evenly spread: int64."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def _open_digits(size: int, channels: int) -> ImageDataset:
    with (files("assets") / "digits.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.int64)
    images = _Table(rows[:, :64].reshape(-1, 1, 8, 8), 16, channels, size)
    description = f"{len(rows)} handwritten digits of 8 x 8 pixels, embedded (UCI, Alpaydin and Kaynak, CC BY 4.0)"
    return ImageDataset("digits", description, channels, size, images, labels=rows[:, 64])


def _open_known(name: str, size: int, root: Path | None, grey: bool | None, stream: bool) -> ImageDataset:
    """Open the local copy of a set of the catalogue, or else the hub's."""
    if not stream and (path := catalog.find(name, size, root)):
        return replace(_open_path(path, size, grey), name=name)
    try:
        return replace(_open_hub(catalog.KNOWN[name].hub, size, grey, stream), name=name)
    except DataError as error:
        raise DataError(f"{name}: {catalog.advice(name, root)}; from the hub: {error}") from None


def _open_path(path: Path, size: int, grey: bool | None) -> ImageDataset:
    """Open a folder or archive."""
    if is_table_file(path):
        path = path.parent
    name = path.resolve().name
    if not path.is_dir():
        if path.suffix.lower() != ".zip":
            raise DataError(f"{path}: a single file; expected {_ACCEPTED}; put the images into a folder")
        return _open_files(Archive(path), name, size, grey)
    if (table := read_table(path)) is None:
        return _open_files(Folder(path), name, size, grey)
    levels, labels = table
    channels = levels.shape[1] if grey is None else 1 if grey else 3
    description = f"{len(levels)} {_kind(channels)} images of {levels.shape[3]} x {levels.shape[2]} pixels from {path}"
    return ImageDataset(name, description, channels, size, _Table(levels, 255, channels, size), labels)


def _open_files(store: Folder | Archive, name: str, size: int, grey: bool | None) -> ImageDataset:
    """Open a store of image files, after reading the header of every one."""
    found = store.names()
    modes, bad = _modes(store, found)
    if not found:
        raise DataError(f"{store.path}: no image files; expected PNG, JPEG or others that Pillow reads; check the path")
    if bad:
        examples = ", ".join(list(bad)[:5]) + (", ..." if len(bad) > 5 else "")
        problem = f"{store.path}: {len(bad)} of {len(found)} image files cannot be read: {examples}"
        first = next(iter(bad.values()))
        if not modes or len(bad) > _allowed(len(found)):
            raise DataError(f"{problem}; remove or replace them; of the first: {first}")
        warnings.warn(f"{problem}; they are left out; of the first: {first}", stacklevel=4)

    mode = _mode(list(modes.values()), grey)
    names = list(modes)
    description = f"{len(names)} {_kind(CHANNELS[mode])} images from {store.path}"
    images, labels = _Files(store, names, size, mode), read_labels(store, names)
    return ImageDataset(name, description, CHANNELS[mode], size, images, labels, encoded=True)


def _open_hub(data: str, size: int, grey: bool | None, stream: bool) -> ImageDataset:
    """Open a set of the hub; of so many files only the first few headers are read."""
    source = hub.open_hub(data, stream)
    probes = list(islice(source, _PROBES)) if stream else source.names()[:_PROBES]
    modes, bad = _modes(source, probes)
    if not modes:
        raise DataError(f"{source.name}: no image among the first {len(probes)}; {next(iter(bad.values()), 'it is empty')}")
    mode = _mode(list(modes.values()), grey)
    place = re.split("[@:]", data)[0]
    folder = Path(place).expanduser()
    name = folder.resolve().name if folder.is_dir() else place
    if stream:
        images = ImageStream(source, size, mode, tuple(probes))
        count = f"{source.count} " if source.count else ""
        description = f"{count}{_kind(CHANNELS[mode])} images, streamed from {source.name}"
        return ImageDataset(name, description, CHANNELS[mode], size, _Head(images), stream=images, encoded=True)
    images = _Files(source, source.names(), size, mode)
    description = f"{len(images)} {_kind(CHANNELS[mode])} images from {source.name}"
    return ImageDataset(name, description, CHANNELS[mode], size, images, source.labels, encoded=True)


def _modes(store: Any, names: Iterable[Any]) -> tuple[dict[Any, str], dict[Any, DataError]]:
    """Pillow's modes of the images of a store, from their headers, and what is wrong with those that have none."""
    modes, bad = {}, {}
    for name in names:
        try:
            with store.reading(name) as (file, label):
                modes[name] = open_image(file, label).mode
        except DataError as error:
            bad[name] = error
    return modes, bad


def _mode(modes: list[str], grey: bool | None) -> Literal["L", "RGB"]:
    """The mode to read images in, from the one asked for and their own."""
    if grey is None:
        grey = all(mode in GREY_MODES for mode in modes[:_PROBES])
    return "L" if grey else "RGB"


def _kind(channels: int) -> str:
    return "grey" if channels == 1 else "colour"


def _allowed(count: int) -> int:
    """How many of `count` images may be damaged."""
    return max(5, count // 10)


def _first_readable(attempts: Iterable[Callable[[], np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """What the first attempt gives that raises no DataError, and the messages of those before it."""
    problems = []
    for attempt in attempts:
        try:
            return attempt(), problems
        except DataError as error:
            problems.append(str(error))
    raise DataError(f"{len(problems)} damaged images one after the other, too many to go on; the last: {problems[-1]}")


def _decoded(store: Any, name: Any, size: int, mode: Literal["L", "RGB"]) -> np.ndarray:
    """Read and decode one image of a store to 8-bit levels [C, size, size]."""
    with store.reading(name) as (file, label):
        content = file.read()
    # Decoded when the file is closed again: threads take turns to read an archive.
    return read_square(io.BytesIO(content), size, mode, label)


@dataclass(frozen=True, eq=False)
class _Table(Sequence[np.ndarray]):
    """Images that are in memory, integers [N, C, H, W] from 0 to `maximum`."""

    values: np.ndarray
    maximum: int
    channels: int
    size: int

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> np.ndarray:
        return fit(with_channels(self.values[index].astype(np.float32) / self.maximum, self.channels), self.size)


class _Files(Sequence[np.ndarray]):
    """Images decoded when they are first asked for. All values pass through 8 bits, so cached or not makes no odds."""

    def __init__(self, store: Any, names: Sequence[Any], size: int, mode: Literal["L", "RGB"]) -> None:
        self.store, self.names, self.size, self.mode = store, names, size, mode
        shape = (len(names), CHANNELS[mode], size, size)
        self.cache = _Cache(shape) if math.prod(shape) <= _CACHE_BYTES else None

    def __getstate__(self) -> dict[str, Any]:
        # A process that is not forked cannot share the cache, and must not have one of its own.
        return vars(self) | {"cache": None}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        levels = self.cache.get(index) if self.cache else None
        if levels is None:
            levels = _decoded(self.store, self.names[index], self.size, self.mode)
            if self.cache:
                self.cache.put(index, levels)
        return levels.astype(np.float32) / 255


class _Cache:
    """8-bit images in memory that forked processes share: workers fill it together, and there is one however many they are.

    Beside each image lies its checksum: a process that comes upon one that another is just writing takes it for missing.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        # Anonymous shared memory: the system finds a page when it is first written to.
        self.levels = np.frombuffer(mmap.mmap(-1, math.prod(shape)), dtype=np.uint8).reshape(shape)
        self.sums = np.frombuffer(mmap.mmap(-1, 4 * shape[0]), dtype=np.uint32)

    def get(self, index: int) -> np.ndarray | None:
        """Image number `index`, if it is there."""
        levels = self.levels[index]
        return levels if zlib.crc32(levels) == self.sums[index] else None

    def put(self, index: int, levels: np.ndarray) -> None:
        """Keep image number `index`."""
        self.levels[index] = levels
        self.sums[index] = zlib.crc32(levels)


@dataclass(frozen=True, eq=False)
class _Head(Sequence[np.ndarray]):
    """The beginning of a stream, read when it is first asked for and kept in memory."""

    stream: ImageStream

    @cached_property
    def images(self) -> list[np.ndarray | DataError]:
        stream = self.stream
        count = min(_HEAD, _CACHE_BYTES // (CHANNELS[stream.mode] * stream.size**2))
        images: list[np.ndarray | DataError] = []
        for row in islice(stream.source, count):
            try:
                images.append(stream.levels(row))
            except DataError as error:
                images.append(error)
        return images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.images[index]
        if isinstance(image, DataError):
            raise image
        return image.astype(np.float32) / 255
