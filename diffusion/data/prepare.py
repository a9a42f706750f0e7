"""Images are decoded, checked, cropped and resized once, into a file that every later run maps into its memory.

For each source, size and number of channels the cache folder holds

    NAME.uint8   the images one after the other, as plain bytes [N, C, H, W]
    NAME.json    how many files of the source were read so far, which of them were refused and why, and which this project made
    NAME.lock    locked by the process that prepares them; if it is killed, the next one goes on after the last whole chunk
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm.auto import tqdm

from diffusion.data.images import DataError, Range, data_errors, fit, is_grey, open_image, read_image, value_range
from diffusion.data.products import SINGLE, data_among, kind_of, left_out
from diffusion.data.sources import Source
from diffusion.files import read_json, write_json
from diffusion.size import Size
from lbm_warp.caches import cache_folder

VERSION = 1  # a new one makes images that an earlier one prepared out of date
PROBES = 256  # images by which a source is judged
CHUNK = 256  # images between two notes of the progress
ANNOUNCED = 2**24  # bytes that are announced first
PATIENCE = 10  # seconds to wait for another process before saying so
# Decoding lets other threads work. Many large images at once would fill the memory.
THREADS = min(8, os.cpu_count() or 1)


class Readable(Protocol):
    """A source or a stream, of encoded images."""

    @property
    def location(self) -> str: ...
    @property
    def names(self) -> Sequence[Any]: ...
    @property
    def read(self) -> Callable[[Any], tuple[str, bytes]]: ...


def default_cache() -> Path:
    """Folder of prepared images unless another is asked for: beyond-blur/data in the user's cache."""
    return cache_folder("beyond-blur", "data")


class Prepared(NamedTuple):
    """Images of a source at one size."""

    pixels: np.ndarray
    """Those that are read, in their order, memory-mapped uint8 [N, channels, height, width]."""
    refused: dict[str, str]
    """By name why other files cannot be read."""
    products: dict[str, str]
    """By name what the pictures show that this project made and that are left out."""
    samples: bool
    """Whether samples of this project, and frames of its films, are among the images."""


def prepare(
    source: Source, size: Size, channels: int, cache: Path | None = None, *, samples: bool = False, values: Range | None = None
) -> Prepared:
    """The images of a source at one size, from the cache folder; made first if they are not there, or the source has changed.

    Args:
        source: where the images are.
        size: size to crop and resize them to, as :func:`fit` does.
        channels: 1 for grey, 3 for RGB.
        cache: the cache folder; None is :func:`default_cache`.
        samples: read samples that this project made like all other pictures. Else they are read only where nothing else is. Grids
            and figures of this project are never read.
        values: black and white of float pictures, as for :func:`read_image`.

    Raises:
        DataError: if more than 10 % of the files (and more than 5), or all of them, cannot be read; there are only grids and
            figures; the folder cannot be written; or its disk has too little space.
    """
    cache = cache or default_cache()
    place = os.path.realpath(source.location) if os.path.exists(source.location) else source.location
    name = re.sub(r"[^\w.]+", "-", Path(place).name)[:40]
    how = [place, size, channels, *(["samples"] if samples else []), *([values] if values else [])]
    path = cache / f"{name}-{size}-{_digest(how)[:12]}.uint8"
    version, shape = _digest([VERSION, source.version]), (channels, *size)
    try:
        done, refused, products = _progress(path, version, shape)
        if done < len(source.names):
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock"), source.location):
                refused, products = _make(source, shape, path, version, samples, values)
        if count := len(source.names) - len(refused) - len(products):
            pixels = np.memmap(path, np.uint8, "r", shape=(count, *shape))
            return Prepared(pixels, refused, products, samples)
    except OSError as error:
        problem = f"prepared images cannot be kept there ({error.strerror or error})"
        raise DataError(f"{cache}: {problem}; choose another folder with --data-cache") from error
    if SINGLE.isdisjoint(products.values()):
        raise DataError(f"{source.location}: no pictures to read: {left_out(products.values())}")
    return prepare(source, size, channels, cache, samples=True, values=values)


class Look(NamedTuple):
    """What some images of a source say about all of them."""

    channels: int
    """1 if all that were looked at are grey, else 3."""
    found: str
    """How many were looked at, and how many of them are in colour."""
    values: Range | None
    """Black and white of the float pictures among them; None if there are none."""
    own: bool
    """Whether this project made all that were looked at."""


def look(source: Readable, samples: bool = False) -> Look:
    """Look at up to 256 images of a source, evenly spaced; DataError if none can be read. ``samples`` as for :func:`prepare`."""

    def one(name: Any) -> tuple[str, str | None, bool, tuple[float, float] | None] | DataError:
        """What messages call an image, what it shows if we made it, whether it is grey, and its extremes if it is of floats."""
        try:
            label, content = source.read(name)
            with data_errors(label):
                image = open_image(io.BytesIO(content), label)
                floats = np.asarray(image) if image.mode == "F" else None
                return label, kind_of(content), is_grey(image), None if floats is None else (floats.min(), floats.max())
        except DataError as error:
            return error

    probes = [source.names[number] for number in evenly_spaced(len(source.names), PROBES)]
    with ThreadPoolExecutor(THREADS) as pool:
        seen = list(pool.map(one, probes))
    readable = [result for result in seen if not isinstance(result, DataError)]
    kinds = [None if samples and kind in SINGLE else kind for _, kind, _, _ in readable]
    data = [result for result, is_data in zip(readable, data_among(kinds), strict=True) if is_data] or readable
    if not data:
        raise DataError(f"{source.location}: no image among the {len(probes)} that were looked at; the last: {seen[-1]}")
    colour = sum(not grey for _, _, grey, _ in data)
    found = f"colour: {colour} of {len(data)} looked at" if colour else f"grey: all {len(data)} looked at"
    floats = {label: extremes for label, _, _, extremes in data if extremes}
    values = value_range(list(floats.values()), source.location, names=list(floats)) if floats else None
    return Look(3 if colour else 1, found, values, None not in kinds)


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """Numbers of at most ``most`` of ``count`` images, evenly spaced from the first to the last: int64."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)


def decode(label: str, content: bytes, size: Size, channels: int, values: Range | None = None) -> np.ndarray:
    """One image as training takes it, rounded to 8 bits: uint8 [channels, height, width].

    Args:
        label, content: what messages call the image, and its file.
        size, channels, values: as for :func:`prepare`.

    Raises:
        DataError: if it cannot be read.
    """
    image = read_image(io.BytesIO(content), "L" if channels == 1 else "RGB", label, values)
    return np.rint(fit(image, size) * 255).astype(np.uint8)


def allowed(count: int) -> int:
    """How many of ``count`` images may be damaged."""
    return max(5, count // 10)


def refusal(refused: dict[str, str], count: int) -> str:
    """Which of ``count`` files were refused, the first few by name, and why the first was."""
    examples = ", ".join(list(refused)[:5]) + (", ..." if len(refused) > 5 else "")
    return f"{len(refused)} of {count} image files cannot be read: {examples}; of the first: {next(iter(refused.values()))}"


def _make(
    source: Source, shape: tuple[int, int, int], path: Path, version: str, samples: bool, values: Range | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the array, or what is missing of it, and say which files were refused and why, and which are products and of what."""
    names, index, each = source.names, path.with_suffix(".json"), math.prod(shape)
    done, refused, products = _progress(path, version, shape)
    size = Size(*shape[1:])
    space, free = (len(names) - done) * each, shutil.disk_usage(path.parent).free
    task = f"{len(names) - done:,} images of {source.location} at {size} pixels: {space / 2**20:,.1f} MiB in {path.parent}"
    if space > free:
        raise DataError(f"{task}, which has {free / 2**20:,.1f} MiB free; make room, or choose another folder with --data-cache")
    if space >= ANNOUNCED:
        print(f"preparing {task}", file=sys.stderr)
    if not done:
        # A run that still maps an older version keeps its pages.
        path.unlink(missing_ok=True)

    def read(name: str) -> np.ndarray | str:
        """An image, or the kind of a product that is not read."""
        label, content = source.read(name)
        kind = kind_of(content)
        return decode(label, content, size, shape[0], values) if kind is None or (samples and kind in SINGLE) else kind

    bar = tqdm(total=len(names), initial=done, desc="preparing", unit="img", delay=1, leave=False)
    with bar, open(path, "ab") as file, ThreadPoolExecutor(THREADS) as pool:
        # Cuts off what came after the last note of the progress.
        file.truncate((done - len(refused) - len(products)) * each)
        while done < len(names):
            chunk = names[done : done + CHUNK]
            for name, image in [(name, pool.submit(read, name)) for name in chunk]:
                try:
                    if isinstance(result := image.result(), str):
                        products[name] = result
                    else:
                        file.write(result.tobytes())
                except DataError as error:
                    refused[name] = str(error)
            file.flush()
            os.fsync(file.fileno())
            done += len(chunk)
            if len(refused) > allowed(len(names)) or len(refused) == len(names):
                path.unlink()
                raise DataError(f"{source.location}: {refusal(refused, done)}; remove or replace them")
            progress = {"source": source.location, "version": version, "done": done, "refused": refused, "products": products}
            write_json(index, progress)
            bar.update(len(chunk))
    return refused, products


def _progress(path: Path, version: str, shape: tuple[int, int, int]) -> tuple[int, dict[str, str], dict[str, str]]:
    """How many files of this version of the source were read so far, which were refused and why, and which are products."""
    try:
        index = read_json(path.with_suffix(".json"))
        # Before there were marks, no picture had one.
        done, refused, products = index["done"], index["refused"], index.get("products", {})
        written = done - len(refused) - len(products)
        fits = index["version"] == version and path.stat().st_size >= written * math.prod(shape)
    except (OSError, ValueError, KeyError):
        fits = False
    return (done, refused, products) if fits else (0, {}, {})


def _locked(path: Path, location: str) -> AcquireReturnProxy:
    """Wait until no other process holds the lock, and hold it until the end of the ``with`` block."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"waiting for another process that prepares {location}", file=sys.stderr)
        return lock.acquire()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
