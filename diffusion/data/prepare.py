"""Images are decoded, checked, cropped and resized once, into a file that every later run maps into its memory.

For each source, size and number of channels the cache folder holds

    NAME.npy     the images, uint8 [N, C, H, W], as numpy writes them
    NAME.json    where they came from, their names and classes, which files were refused and why
    NAME.part, NAME.progress    the same while they are made: the next process goes on where one was killed
    NAME.lock    locked by the process that makes them
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from diffusion.data.images import GREY_MODES, DataError, fit, open_image, read_image
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


def default_cache() -> Path:
    """Folder of prepared images unless another is asked for: beyond-blur/data in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beyond-blur" / "data"


def prepare(source: Source, size: Size, channels: int, cache: Path | None = None) -> tuple[np.ndarray, dict[str, Any]]:
    """The images of a source at one size, from the cache folder; made first if they are not there, or their files have changed.

    Args:
        source: Where the images are.
        size: Size to crop and resize them to, as `fit` does.
        channels: 1 for grey, 3 for RGB.
        cache: The cache folder; None is `default_cache`.

    Returns:
        The images, memory-mapped uint8 [N, channels, height, width], and what NAME.json holds: their `names`, their `labels`
        (integers, or None), and in `refused` why other files are left out, by name.

    Raises:
        DataError: More than 10 % of the files (and more than 5), or all of them, cannot be read; the folder cannot be written, or
            its disk has too little space.
    """
    cache = cache or default_cache()
    place = os.path.realpath(source.location) if os.path.exists(source.location) else source.location
    name = re.sub(r"[^\w.]+", "-", Path(place).name)[:40]
    path = cache / f"{name}-{size}-{_digest([place, size, channels])[:12]}.npy"
    version = _digest([VERSION, source.version()])
    try:
        if prepared := _load(path, version):
            return prepared
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock"), source):
            return _load(path, version) or _make(source, size, channels, path, version)
    except OSError as error:
        problem = f"prepared images cannot be kept there ({error.strerror or error})"
        raise DataError(f"{cache}: {problem}; choose another folder with --data-cache") from error


def count_channels(source: Source) -> int:
    """1 if those of the first 32 images that can be read are all grey, else 3; raise DataError if there are none."""
    modes, problem = set(), None
    for name in (probes := source.names[:PROBES]):
        try:
            with source.open(name) as (file, label):
                modes.add(open_image(file, label).mode)
        except DataError as error:
            problem = error
    if not modes:
        raise DataError(f"{source.location}: no image among the first {len(probes)}; the last: {problem}")
    return 1 if modes <= GREY_MODES else 3


def decode(source: Source, name: str, size: Size, channels: int) -> np.ndarray:
    """One image as training takes it, rounded to 8 bits: uint8 [channels, height, width]; raise DataError if it cannot be read."""
    with source.open(name) as (file, label):
        image = read_image(file, "L" if channels == 1 else "RGB", label)
    return np.rint(fit(image, size) * 255).astype(np.uint8)


def allowed(count: int) -> int:
    """How many of `count` images may be damaged."""
    return max(5, count // 10)


def refusal(refused: dict[str, str], count: int) -> str:
    """Which of `count` files were refused, the first few by name, and why the first was."""
    examples = ", ".join(list(refused)[:5]) + (", ..." if len(refused) > 5 else "")
    return f"{len(refused)} of {count} image files cannot be read: {examples}; of the first: {next(iter(refused.values()))}"


def _make(source: Source, size: Size, channels: int, path: Path, version: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Write the array and its index, or finish what another process began."""
    part, progress, index = (path.with_suffix(suffix) for suffix in (".part", ".progress", ".json"))
    names, shape = source.names, (channels, *size)
    header, each = len(_header(0, shape)), math.prod(shape)
    try:
        begun = read_json(progress)
        done, refused = begun["done"], begun["refused"]
        fits = begun["version"] == version and part.stat().st_size >= header + (done - len(refused)) * each
    except (OSError, ValueError, KeyError):
        fits = False
    if not fits:
        done, refused = 0, {}
    space, free = (len(names) - done) * each, shutil.disk_usage(path.parent).free
    task = f"{len(names) - done:,} images of {source.location} at {size} pixels: {space / 2**20:,.1f} MiB in {path.parent}"
    if space > free:
        raise DataError(f"{task}, which has {free / 2**20:,.1f} MiB free; make room, or choose another folder with --data-cache")
    if space >= ANNOUNCED:
        print(f"preparing {task}", file=sys.stderr)

    bar = tqdm(total=len(names), initial=done, desc="preparing", unit="img", delay=1, leave=False)
    with bar, open(part, "ab") as file, ThreadPoolExecutor(THREADS) as pool:
        # Cuts off what came after the last note of the progress; a new file gets room for the header.
        file.truncate(header + (done - len(refused)) * each)
        while done < len(names):
            chunk = names[done : done + CHUNK]
            for name, image in [(name, pool.submit(decode, source, name, size, channels)) for name in chunk]:
                try:
                    file.write(image.result().tobytes())
                except DataError as error:
                    refused[name] = str(error)
            file.flush()
            os.fsync(file.fileno())
            done += len(chunk)
            write_json(progress, {"version": version, "done": done, "refused": refused})
            bar.update(len(chunk))
            if len(refused) > allowed(len(names)) or len(refused) == len(names):
                progress.unlink()
                part.unlink()
                raise DataError(f"{source.location}: {refusal(refused, done)}; remove or replace them")

    kept = [name for name in names if name not in refused]
    labels = source.labels(kept)
    content = {"source": source.location, "size": size.to_json(), "channels": channels, "version": version}
    content |= {"names": kept, "labels": None if labels is None else labels.tolist(), "refused": refused}
    with open(part, "r+b") as file:
        file.write(_header(len(kept), shape))
        os.fsync(file.fileno())
    index.unlink(missing_ok=True)
    os.replace(part, path)
    write_json(index, content)
    progress.unlink()
    return np.load(path, mmap_mode="r"), content


def _load(path: Path, version: str) -> tuple[np.ndarray, dict[str, Any]] | None:
    """Prepared images and their index, if both are there, whole, and made of this version of the source."""
    try:
        index, pixels = read_json(path.with_suffix(".json")), np.load(path, mmap_mode="r")
        return (pixels, index) if index["version"] == version and len(pixels) == len(index["names"]) else None
    except (OSError, ValueError, KeyError):
        return None


def _locked(path: Path, source: Source) -> AcquireReturnProxy:
    """Wait until no other process holds the lock, and hold it until the end of the `with` block."""
    lock = FileLock(path)
    try:
        return lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"waiting for another process that prepares {source.location}", file=sys.stderr)
        return lock.acquire()


def _header(count: int, shape: tuple[int, ...]) -> bytes:
    """How an .npy file of uint8 [count, *shape] begins; numpy makes it equally long for every count."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)})
    return file.getvalue()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
