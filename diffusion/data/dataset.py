"""The data sets that training reads: images of one size, by number or as a stream."""

from __future__ import annotations

import base64
import difflib
import gzip
import html
import io
import math
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import Image

from diffusion.data import catalog
from diffusion.data.hub import Row, Stream, open_hub, open_parquet
from diffusion.data.identity import Origin
from diffusion.data.images import DARK, DataError, Range, fit, with_channels
from diffusion.data.prepare import PROBES, THREADS, Look, allowed, decode, look, prepare, refusal
from diffusion.data.prepare import evenly_spaced as evenly_spaced
from diffusion.data.products import left_out
from diffusion.data.sources import Source, open_path
from diffusion.files import asset
from diffusion.size import Size
from lbm_warp.checks import InputError, amount

Split = Literal["all", "even", "odd"]
OTHER_HALF: dict[str, Split] = {"all": "all", "even": "odd", "odd": "even"}
_HALVES = {"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
NAMES = ("digits", *catalog.KNOWN)
_SIZE = 64
_CLASSES = 10_000
_SHOWN = 20  # classes that are named with their numbers of images
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
    class_note: str = ""
    """One line about the classes, or about why there are none, if there is something to say."""
    families: np.ndarray | None = None
    """Number of the family of each image of the whole set, int64, where some are nearly the same: halves keep families together."""
    split: Split = "all"
    """Which images of the whole set these are."""
    pixels: np.ndarray
    """All images, [N, channels, height, width]: uint8, or float32 in [0, 1]."""
    origin: Origin | None = None
    """Where they were opened; None for pictures in memory."""

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
            why = self.class_note or "not every image has a class"
            raise DataError(f"{self.name}: {why}; leave out --classes, or use data with labels ({kinds}), no stream")
        if names and self.class_names and set(names) == set(self.class_names) and tuple(names) != tuple(self.class_names):
            raise DataError(f"{self.name}: its classes are {', '.join(self.class_names)}, in this order; got {', '.join(names)}")
        names = names or self.class_names
        count = len(names) or int(self.labels.max(initial=0)) + 1
        if not 2 <= count <= _CLASSES:
            raise DataError(
                f"{self.name}: number of classes {count}; expected 2 to {_CLASSES}; number them from 0, or leave out --classes"
            )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= count))
        if len(wrong):
            raise DataError(f"{self.name}: image {wrong[0]} has label {self.labels[wrong[0]]}; expected 0 to {count - 1}")
        if twice := [name for name, times in Counter(names).items() if times > 1]:
            raise DataError(f"{self.name}: {twice[0]!r} is the name of several classes; give each a name of its own")
        return tuple(names or map(str, range(count)))

    def describe_classes(self, names: Sequence[str]) -> str:
        """One line: how many images each class has."""
        assert self.labels is not None
        counts = np.bincount(self.labels, minlength=len(names))
        found = [f"{name} {count:,}" for name, count in zip(names, counts, strict=True)]
        if len(found) > _SHOWN:
            found[_SHOWN:] = [f"and {len(names) - _SHOWN} more of {counts.min():,} to {counts.max():,}"]
        return f"classes: {', '.join(found)}" + (f" ({self.class_note})" if self.class_note else "")

    def read(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The images of these numbers, or one, as they are kept: uint8, or float32 in [0, 1]."""
        return np.asarray(self.pixels[index])

    def probes(self, most: int) -> np.ndarray:
        """Up to ``most`` images spread over the set, as :meth:`read` gives them."""
        return self.read(evenly_spaced(len(self), most))

    @property
    def total(self) -> int | None:
        """Number of images; None for a stream that does not say."""
        return len(self)

    def __repr__(self) -> str:
        pictures = "pictures" if self.total is None else amount(self.total, "picture")
        return f"{type(self).__name__}({self.name}: {pictures} of {[self.channels, *self.size]})"

    def _repr_html_(self) -> str:
        """What a notebook shows: the line of ``repr``, and ten of the pictures in a row."""
        row = np.concatenate([as_floats(picture) for picture in self.probes(10)], axis=2)
        colours = np.broadcast_to(row[: 3 if self.channels >= 3 else 1], (3, *row.shape[1:]))
        file = io.BytesIO()
        Image.fromarray((255.0 * colours).round().astype(np.uint8).transpose(1, 2, 0)).save(file, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        style = "display: block; height: 64px; max-width: 100%; object-fit: contain; image-rendering: pixelated"
        return f'{html.escape(repr(self))}<img style="{style}" alt="Ten of the pictures" src="{source}">'

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        return as_floats(self.read(number))


@dataclass(eq=False, repr=False)
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
    class_note: str = ""
    origin: Origin | None = None

    def __post_init__(self) -> None:
        _, self.channels, *sides = self.pixels.shape
        self.size = Size(*sides)


@dataclass(eq=False, repr=False)
class ImageStream(Pictures):
    """A set of the hub not kept on the disk; ``stream[i]`` reads its beginning."""

    name: str
    description: str
    channels: int
    size: Size
    source: Stream
    """The encoded images."""
    values: Range | None = None
    """Black and white of float pictures."""
    damaged: set[str] = field(default_factory=set)
    """What was wrong with the damaged images found so far."""
    origin: Origin | None = None

    def decode(self, row: Row) -> np.ndarray:
        """An image of the stream, uint8 [channels, height, width]; a damaged one is replaced by one that depends on it alone.

        Raises:
            DataError: if more than 1,000 images were damaged.
        """
        try:
            return decode(*row, self.size, self.channels, self.values)
        except DataError as error:
            self.damaged.add(str(error))
            if len(self.damaged) > allowed(_HEAD) or not self._spares:
                raise DataError(f"{self.name}: {len(self.damaged)} damaged images, too many to go on; the last: {error}") from None
            warnings.warn(f"{error} (another image takes its place)", stacklevel=2)
            return self._spares[zlib.crc32(row[1]) % len(self._spares)]

    def probes(self, most: int) -> np.ndarray:
        """As :meth:`Pictures.probes`: the first 32 at most."""
        return np.stack([self.decode(row) for row in self.source.names[:most]])

    @property
    def total(self) -> int | None:
        return self.source.count

    @cached_property
    def _spares(self) -> list[np.ndarray]:
        """What takes the place of damaged images: those of the first 32 that can be read."""
        spares = []
        for row in self.source.names:
            with suppress(DataError):
                spares.append(decode(*row, self.size, self.channels, self.values))
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
    samples: bool = False,
) -> ImageDataset | ImageStream:
    """Open the images called ``data``. The first time they are decoded, cropped, resized, rounded to 8 bits, and kept.

    Args:
        data: one of

            - ``digits``, embedded;
            - a folder or .zip archive of images, with everything below it but hidden files, in the order of the paths. Classes are
              taken from a dataset.json as EDM and StyleGAN write it, else from the names of its folders: the first in which the
              paths differ, or those below where folders such as train and test hold the same ones. A folder may also hold the
              files of MNIST (IDX) or CIFAR-10 (binary version), of which the training images are read;
            - a parquet file or a folder of them;
            - ``hf:owner/name``, with ``@config`` and ``:split`` where wanted: a set of the Hugging Face hub, downloaded unless
              ``stream``; ``hf:FOLDER`` is a folder of parquet files;
            - ``ffhq``, ``afhq``, ``lsun-church``, ``cifar10``, ``mnist``, ``fashion-mnist`` or ``emoji``: a local copy if there is
              one in ``root``, in the folder that the environment variable BEYOND_BLUR_DATA names, in ./data or where Debian's
              packages put it; else the hub's, if the ``datasets`` library is installed.
        size: size of the images, as for :meth:`Size.of`; None means 16 for digits, 128 for ffhq and lsun-church, 32 for cifar10 and
            emoji, 28 for mnist and fashion-mnist, 64 otherwise. Images are cropped to this aspect around their centre.
        root: where downloaded data sets are kept.
        grey: one channel or three. None means grey for the digits, and for files grey only if all images are, or all of 256 evenly
            spaced ones (of a stream the first 32); the description says how many were looked at. A transparent or palette image is
            judged by its file, as in :func:`read_image`.
        stream: read a set of the hub as a stream, in the order of its files, shuffled 1000 images at a time.
        split: all images, or those of even or odd number, for a model that is to be compared with the others. Of emoji the families
            of even or odd number: variants of one picture, such as skin tones, are all in one half.
        cache: where prepared images are kept; None is beyond-blur/data in the user's cache folder.
        samples: read samples that this project made like all other pictures, as an evaluation does. Else they are read only where
            nothing else is. Grids and figures of this project are never read; a mark in the files tells them.

    What is not read is counted in a warning. Float pictures have one range, 0 to 1, -1 to 1, 0 to 255 or 0 to 65535: that of most
    of those that are looked at, which is in the description.

    Raises:
        DataError: if nothing has that name, nothing in it can be read, an archive is damaged or encrypted, the disk has no space
            for the prepared images, or more than 10 % of the files (and more than 5) cannot be read. Fewer are left out with a
            warning.
        InputError: if the size is not valid.
    """
    size = None if size is None else Size.of(size)
    class_names: Sequence[str] = ()
    families: np.ndarray | None = None
    class_note = ""
    if stream and split != "all":
        raise DataError(f"{data}: a stream has no halves; leave out --stream, or --split")
    if data == "digits" and not stream:
        name, description, pixels, labels = _digits(size or Size(16, 16), channels=3 if grey is False else 1)
        origin = Origin(name, name)
    else:
        name, source, size, channels, seen = find_source(data, size, root, grey, stream, samples)
        kind, origin = "grey" if channels == 1 else "colour", Origin.of(source, data if data in catalog.KNOWN else None)
        judged = "".join(f" ({note})" for note in notes_of(seen, grey))
        if isinstance(source, Stream):
            description = f"{source.count or ''} {kind} images, streamed from {source.location}{judged}".lstrip()
            return ImageStream(name, description, channels, size, source, seen.values, origin=origin)
        pixels, refused, products, own = prepare(source, size, channels, cache, samples=samples, values=seen.values)
        kept = [file for file in source.names if file not in refused and file not in products]
        families, class_note = families_of(source, kept), source.class_note
        try:
            labels, class_names = source.labels(kept)
        except DataError as error:  # only those who ask for classes need to know
            labels, class_note = None, str(error)
        if name in catalog.KNOWN:
            class_names = class_names or catalog.KNOWN[name].classes
        description = f"{amount(len(pixels), f'{kind} image')} from {source.location}{judged}"
        problems = [f"left out, since they are not images we read: {source.ignored}"] if source.ignored else []
        problems += [f"{refusal(refused, len(source.names))}; they are left out"] if refused else []
        problems += [left_out(products.values())] if products else []
        problems += ["all of its pictures were made by this program"] if own and not samples else []
        brightest = int(pixels[evenly_spaced(len(pixels), PROBES)].max())
        dark = f"its pictures are nearly black, {brightest} of 255 at most; if they should not be (12 bits in 16), rescale them"
        problems += [dark] if brightest <= 255 * DARK + 1 else []
        for problem in problems:
            warnings.warn(f"{source.location}: {problem}", stacklevel=2)
    chosen = _HALVES[split] if families is None else numbers_of(split, families)
    if not len(pixels[chosen]):
        raise DataError(
            f"{name}: {description}, none of {split} number; expected at least 2 for two halves; add images, or leave out --split"
        )
    if split != "all":
        description += f", of which the {len(pixels[chosen])} of {split} number"
    labels = None if labels is None else labels[chosen]
    whole = name_of_half(name, split), description, pixels[chosen], labels
    return ImageDataset(*whole, split, class_names, families, class_note, origin)


class Found(NamedTuple):
    """Images that are not read yet."""

    name: str
    source: Source | Stream
    size: Size
    channels: int
    look: Look
    """What some of the images say."""

    def probes(self, most: int) -> np.ndarray:
        """Up to ``most`` of the images that can be read, spread over the set, uint8 [N, channels, height, width]."""
        images = []
        for number in evenly_spaced(len(self.source.names), most):
            with suppress(DataError):
                content = self.source.read(self.source.names[number])
                images.append(decode(*content, self.size, self.channels, self.look.values))
        return np.stack(images) if images else np.empty((0, self.channels, *self.size), np.uint8)


def grey_or_colour(grey: bool, colour: bool) -> bool | None:
    """Whether pictures are to be grey, as the options say; None if neither is chosen.

    Raises:
        InputError: if both are.
    """
    if grey and colour:
        raise InputError("--grey and --colour do not go together; choose one, or leave both out to go by the pictures")
    return grey if grey or colour else None


def notes_of(seen: Look, grey: bool | None) -> list[str]:
    """What was decided by looking at images, and why."""
    values = [f"float values from {seen.values[0]:g} to {seen.values[1]:g}"] if seen.values else []
    return [*([seen.found] if grey is None else []), *values]


def find_source(data: str, size: Size | None, root: Path | None, grey: bool | None, stream: bool, samples: bool = False) -> Found:
    """Images that are not read yet; arguments and errors as for :func:`open_dataset`."""
    source: Source | Stream
    name, path = data, Path(os.path.expanduser(data))
    if data.startswith("hf:"):
        name, source = open_hub(data.removeprefix("hf:"), stream)
    elif data in catalog.KNOWN:
        size = size or Size.of(catalog.KNOWN[data].size)
        if not stream and (copy := catalog.find(data, size, root)):
            source = _open_local(copy)
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
        source = _open_local(path)
        name = Path(source.location).resolve().name
    else:
        nearest = difflib.get_close_matches(data.lower(), NAMES, n=1)
        hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
        accepted = f"a folder or .zip archive of images, hf:owner/name, or one of {', '.join(NAMES)}"
        raise DataError(f"{data}: no such folder or archive; expected {accepted}{hint}")
    if not source.names:
        others = f" among {source.ignored}" if isinstance(source, Source) and source.ignored else ""
        expected = "expected names that end in .png, .jpg or as others that Pillow reads; check the path, or rename the files"
        raise DataError(f"{source.location}: no image files{others}; {expected}")
    seen = look(source, samples)
    return Found(name, source, size or Size.of(_SIZE), seen.channels if grey is None else 1 if grey else 3, seen)


def _open_local(path: Path) -> Source:
    """The source at a path: parquet files, or what :func:`open_path` opens."""
    if path.suffix.lower() == ".parquet":
        return open_parquet(path)
    source = open_path(path)
    return open_parquet(path) if not source.names and path.is_dir() and any(path.rglob("*.parquet")) else source


def as_floats(pixels: np.ndarray) -> np.ndarray:
    """A copy of the pixels as float32 in [0, 1]; uint8 values are divided by 255."""
    return np.divide(pixels, 255, dtype=np.float32) if pixels.dtype == np.uint8 else np.array(pixels)


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
    with gzip.open(asset("digits.csv.gz"), "rt") as table:
        rows = np.loadtxt(table, delimiter=",", dtype=np.int64)
    images = rows[:, :64].reshape(-1, 1, 8, 8).astype(np.float32) / 16
    pixels = np.stack([fit(with_channels(image, channels), size) for image in images])
    description = f"{len(rows)} handwritten digits of 8 x 8 pixels, embedded (UCI, Alpaydin and Kaynak, CC BY 4.0)"
    return "digits", description, pixels, rows[:, 64]
