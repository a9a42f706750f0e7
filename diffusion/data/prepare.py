"""Images are decoded, checked, cropped and resized once, into a file that every later run maps into its memory.

For each source, size and number of channels the cache folder holds

    NAME.uint8   the images one after the other, as plain bytes [N, C, H, W]
    NAME.json    how many files of the source were read so far, and which of them were refused and why
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
from typing import Any, Protocol

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from diffusion.data.images import DataError, data_errors, fit, is_grey, open_image, read_image
from diffusion.data.sources import Source
from diffusion.files import read_json, write_json
from diffusion.size import Size

VERSION = 1  # a new one makes images that an earlier one prepared out of date
PROBES = 32  # images by which a source is judged grey or colour
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
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beyond-blur" / "data"


def prepare(source: Source, size: Size, channels: int, cache: Path | None = None) -> tuple[np.ndarray, dict[str, str]]:
    """The images of a source at one size, from the cache folder; made first if they are not there, or the source has changed.

    Args:
        source: where the images are.
        size: size to crop and resize them to, as :func:`fit` does.
        channels: 1 for grey, 3 for RGB.
        cache: the cache folder; None is :func:`default_cache`.

    Returns:
        The images that could be read, in their order, memory-mapped uint8 [N, channels, height, width]; and by name why the other
        files were refused.

    Raises:
        DataError: if more than 10 % of the files (and more than 5), or all of them, cannot be read; the folder cannot be written;
            or its disk has too little space.
    """
    cache = cache or default_cache()
    place = os.path.realpath(source.location) if os.path.exists(source.location) else source.location
    name = re.sub(r"[^\w.]+", "-", Path(place).name)[:40]
    path = cache / f"{name}-{size}-{_digest([place, size, channels])[:12]}.uint8"
    version, shape = _digest([VERSION, source.version]), (channels, *size)
    try:
        done, refused = _progress(path, version, shape)
        if done < len(source.names):
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(".lock"), source.location):
                refused = _make(source, shape, path, version)
        return np.memmap(path, np.uint8, "r", shape=(len(source.names) - len(refused), *shape)), refused
    except OSError as error:
        problem = f"prepared images cannot be kept there ({error.strerror or error})"
        raise DataError(f"{cache}: {problem}; choose another folder with --data-cache") from error


def count_channels(source: Readable) -> int:
    """1 if those of the first 32 images that can be read are all grey, else 3; DataError if none can be read."""
    grey: list[bool] = []
    problem: DataError | None = None
    for name in (probes := source.names[:PROBES]):
        try:
            label, content = source.read(name)
            with data_errors(label):
                grey.append(is_grey(open_image(io.BytesIO(content), label)))
        except DataError as error:
            problem = error
    if not grey:
        raise DataError(f"{source.location}: no image among the first {len(probes)}; the last: {problem}")
    return 1 if all(grey) else 3


def decode(source: Readable, name: Any, size: Size, channels: int) -> np.ndarray:
    """One image as training takes it, rounded to 8 bits: uint8 [channels, height, width]; DataError if it cannot be read."""
    label, content = source.read(name)
    image = read_image(io.BytesIO(content), "L" if channels == 1 else "RGB", label)
    return np.rint(fit(image, size) * 255).astype(np.uint8)


def allowed(count: int) -> int:
    """How many of ``count`` images may be damaged."""
    return max(5, count // 10)


def refusal(refused: dict[str, str], count: int) -> str:
    """Which of ``count`` files were refused, the first few by name, and why the first was."""
    examples = ", ".join(list(refused)[:5]) + (", ..." if len(refused) > 5 else "")
    return f"{len(refused)} of {count} image files cannot be read: {examples}; of the first: {next(iter(refused.values()))}"


def _make(source: Source, shape: tuple[int, int, int], path: Path, version: str) -> dict[str, str]:
    """Write the array, or what is missing of it, and say which files were refused and why."""
    names, index, each = source.names, path.with_suffix(".json"), math.prod(shape)
    done, refused = _progress(path, version, shape)
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

    bar = tqdm(total=len(names), initial=done, desc="preparing", unit="img", delay=1, leave=False)
    with bar, open(path, "ab") as file, ThreadPoolExecutor(THREADS) as pool:
        # Cuts off what came after the last note of the progress.
        file.truncate((done - len(refused)) * each)
        while done < len(names):
            chunk = names[done : done + CHUNK]
            for name, image in [(name, pool.submit(decode, source, name, size, shape[0])) for name in chunk]:
                try:
                    file.write(image.result().tobytes())
                except DataError as error:
                    refused[name] = str(error)
            file.flush()
            os.fsync(file.fileno())
            done += len(chunk)
            if len(refused) > allowed(len(names)) or len(refused) == len(names):
                path.unlink()
                raise DataError(f"{source.location}: {refusal(refused, done)}; remove or replace them")
            write_json(index, {"source": source.location, "version": version, "done": done, "refused": refused})
            bar.update(len(chunk))
    return refused


def _progress(path: Path, version: str, shape: tuple[int, int, int]) -> tuple[int, dict[str, str]]:
    """How many files of this version of the source were read so far, and which of them were refused and why."""
    try:
        index = read_json(path.with_suffix(".json"))
        done, refused = index["done"], index["refused"]
        fits = index["version"] == version and path.stat().st_size >= (done - len(refused)) * math.prod(shape)
    except (OSError, ValueError, KeyError):
        fits = False
    return (done, refused) if fits else (0, {})


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
