"""Pairs of clean and degraded pictures, or bursts of several degraded ones, from any pictures and by anything that degrades.

Pair n is a function of n, the seed, the pictures and what degrades them; not of the workers, nor of what was there before.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion.data.dataset import find_source, open_dataset
from diffusion.data.images import DataError, check_picture, data_errors, decoded, fit, natural_key, open_image, with_channels
from diffusion.data.pair_files import FORMATS, Loose, Shards
from diffusion.data.prepare import THREADS, look
from diffusion.data.products import SINGLE, kind_of
from diffusion.data.sources import Source, read_file
from diffusion.files import owned, read_json, write_json
from diffusion.rng import below, seeds
from diffusion.size import Size
from lbm_warp.checks import MOST, InputError, amount, check_integer, check_name, check_number

SETTINGS = "dataset.json"
PARTS = ("train", "test")
ARCHIVES = (".zip", ".parquet")
Files = dict[str, bytes]
# What a seed draws: what is to be known of it, as JSON, and a function that gives of a clean picture [C, H, W] the degraded frames,
# float32 [M, C, H, W], and the flow of each, float32 [M, 2, H, W] or None.
Draw = Callable[[int], tuple[dict[str, Any], Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]]]


class Gallery(NamedTuple):
    """Clean pictures of any sizes, to be read once."""

    names: Sequence[str]
    """What records and messages call them."""
    readers: Iterable[Callable[[], tuple[np.ndarray, bool]]]
    """Functions that read them, in any thread: float32 [C, H, W] in [0, 1], and whether they have transparent parts, which are
    shown over white. They may raise DataError."""
    version: object
    """A JSON value that changes when the pictures may have changed."""
    families: Sequence[object] = ()
    """What pictures that are nearly the same have in common; their names by default."""
    film: bool = False
    """Whether neighbours are nearly the same."""

    @classmethod
    def of(cls, pictures: Sequence[np.ndarray], name: str = "pictures") -> Gallery:
        """Pictures in memory, float32 [C, H, W] in [0, 1], such as those of :func:`diffusion.as_dataset`."""
        numbers = range(len(pictures))
        readers = [partial(lambda number: (pictures[number], False), number) for number in numbers]
        return cls([f"{name}, picture {number}" for number in numbers], readers, name)


def open_gallery(data: str, size: int | str | None = None) -> Gallery:
    """The pictures called ``data``, in their own sizes, or one picture; arguments and errors as for :func:`diffusion.open_dataset`.

    All are grey if those are that are looked at. Pictures that this project made are left out where there are others.
    """
    if data == "digits":
        return Gallery.of(open_dataset(data, size or None), data)
    path = Path(data).expanduser()
    if path.is_file() and path.suffix.lower() not in ARCHIVES:
        source = Source(str(path), [path.stat().st_size, path.stat().st_mtime_ns], [str(path)], read_file, {})
        seen = look(source)
    else:
        found = find_source(data, Size.of(size) if size else None, None, None, False)
        source, seen = cast(Source, found.source), found.look
    names = sorted(source.names, key=natural_key)

    def read(name: str) -> tuple[np.ndarray, bool]:
        label, content = source.read(name)
        if (kind := kind_of(content)) and not (seen.own and kind in SINGLE):
            raise DataError(f"{label}: made by this program ({kind})")
        with data_errors(label):
            image = open_image(io.BytesIO(content), label)
            return with_channels(decoded(image, label, seen.values), seen.channels), image.has_transparency_data

    families = list(map(source.family, names)) if source.family else ()
    return Gallery(names, (partial(read, name) for name in names), [source.version, seen.values], families)


@dataclass(frozen=True)
class PairOptions:
    """Which pairs are written, and how."""

    pairs: int | None = None
    """Number of pairs; by default one of each picture. More are made of all pictures alike, fewer of some of them."""
    size: str = ""
    """Size in pixels, one number for squares or height x width, by default that of each picture. They are cropped to this shape and
    resized."""
    crop: bool = False
    """Cut a piece of --size out of the picture, at a random place, instead of resizing it."""
    held_out: float = 0.0
    """Share of the pictures whose pairs go into the part test: of a film its last ones, else random ones."""
    format: Literal["png", "png16", "tiff", "npz"] = "png"
    """Files: PNG of 8 or 16 bits, TIFF of 16, or NPZ with float32 arrays that are not clipped."""
    shards: int | None = None
    """Put so many pairs into a tar file, for WebDataset, instead of loose files."""
    seed: int = 0
    """Seed of everything random."""

    def __post_init__(self) -> None:
        for name in ("pairs", "shards"):
            if (value := getattr(self, name)) is not None:
                check_integer(f"--{name}", value, 1, MOST)
        if self.size:
            Size.of(self.size)
        elif self.crop:
            raise InputError("--crop cuts out pieces of one size: give it with --size")
        check_number("--held-out", self.held_out, 0.0, 0.9)
        check_name("--format", self.format, FORMATS)
        check_integer("--seed", self.seed, 0, 2**63 - 1)


class Made(NamedTuple):
    """What :func:`write_pairs` did."""

    new: int
    """Pairs that were made."""
    resumed: bool
    """Whether some were there before."""
    left_out: dict[str, str]
    """By name why pictures could not be used."""
    over_white: int
    """New pairs of pictures with transparent parts."""


def write_pairs(
    gallery: Gallery,
    folder: Path | str,
    draw: Draw,
    options: PairOptions | None = None,
    *,
    workers: int = THREADS,
    about: Mapping[str, Any] | None = None,
) -> Made:
    """Make pairs of clean and degraded pictures; of a folder that has some of them already, the others.

    Args:
        gallery: the pictures (:func:`open_gallery`).
        folder: where they go. A file is there whole or not at all; a call that was killed is finished by the same call.
        draw: what degrades them, such as :class:`diffusion.Degrade`.
        options: which pairs, in which form.
        workers: threads that work at a time.
        about: more for dataset.json, with which a later call must agree.

    Raises:
        InputError: if the folder holds something else, or pairs of other pictures or options, or no picture can be used.
    """
    folder, options = Path(folder), options or PairOptions()
    check_integer("--workers", workers, 1, 1024)
    if not gallery.names:
        raise InputError("there are no pictures to make pairs of")
    numbers = np.arange(options.pairs or len(gallery.names))
    of_pair = seeds(options.seed, "pair", numbers).tolist()
    # Pairs of one picture follow each other: it is decoded once, and a film is read in its order.
    picture = numbers * len(gallery.names) // len(numbers)
    part_of = _held_out(gallery, options)[picture].tolist()
    settings = asdict(options) | {"pairs": len(numbers), **(about or {})}
    settings |= {"pictures": _digest([list(gallery.names), gallery.version]), "example": draw(of_pair[0])[0]}
    form = FORMATS[options.format]

    def make(number: int, name: str, read: Callable[[], tuple[np.ndarray, bool]]) -> tuple[dict[str, Any], Files]:
        """The record of a pair, and its files."""
        (pixels, over_white), seed = read(), of_pair[number]
        check_picture(pixels, name, form.channels)
        pixels, place = _piece(pixels, name, options, seed)
        clean, (record, degrade) = form.kept(pixels), draw(seed)
        degraded, flow = degrade(form.floats(clean))
        shown = name.encode(errors="backslashreplace").decode()  # names that are not UTF-8 are no JSON to others
        about = {"picture": shown, "size": clean.shape[1:], **place, "over_white": over_white}
        return about | record, form.files(clean, form.kept(degraded), flow)

    def tasks() -> Iterator[tuple[int, str, Callable[[], tuple[dict[str, Any], Files]]]]:
        firsts = np.searchsorted(picture, np.arange(len(gallery.names) + 1)).tolist()
        readers = chain(gallery.readers, repeat(None))
        for name, read, (first, end) in zip(gallery.names, readers, pairwise(firsts), strict=False):
            if read is None:
                raise InputError("the pictures of this gallery have been read, which can be done once; open them again")
            once = lru_cache(1)(read)
            yield from ((number, name, partial(make, number, name, once)) for number in range(first, end) if not there[number])

    left_out: dict[str, str] = {}
    over_white = 0
    with owned(folder), ExitStack() as stack:
        _agree(folder, json.loads(json.dumps(settings)))
        kind = Loose if options.shards is None else partial(Shards, size=options.shards)
        parts = [stack.enter_context(kind(folder / part, numbers[np.equal(part_of, n)].tolist())) for n, part in enumerate(PARTS)]
        there = [parts[part].has(number) for number, part in enumerate(part_of)]
        before = sum(there)
        pool = stack.enter_context(ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)))
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        bar = stack.enter_context(tqdm(total=len(there), initial=before, desc="degrading", unit="pair", delay=1, leave=False))
        for number, name, made in _ahead(pool, tasks(), 2 * workers):
            record: dict[str, Any] = {}
            files: Files = {}
            try:
                record, files = made.result()
                there[number], over_white = True, over_white + record["over_white"]
            except InputError as error:
                left_out[name] = str(error)
            parts[part_of[number]].add(number, record, files)
            bar.update()
        if not any(there):
            (folder / SETTINGS).unlink()
            raise DataError(f"no pair was made: {unusable(left_out, len(gallery.names))}")
    return Made(sum(there) - before, before > 0, left_out, over_white)


def unusable(left_out: Mapping[str, str], count: int) -> str:
    """Which of ``count`` pictures could not be used, the first few by name, and why the first could not."""
    some = ", ".join([*list(left_out)[:5], *["..."] * (len(left_out) > 5)])
    return f"{len(left_out)} of {amount(count, 'picture')}, {some}; the first since {next(iter(left_out.values()))}"


def _ahead(
    pool: ThreadPoolExecutor, tasks: Iterator[tuple[int, str, Callable[[], Any]]], most: int
) -> Iterator[tuple[int, str, Future[Any]]]:
    """Tasks in their order, while up to ``most`` of the next ones are at work; the first is alone, as it compiles the kernels."""
    waiting: deque[tuple[int, str, Future[Any]]] = deque()
    first = True
    for number, name, task in tasks:
        waiting.append((number, name, pool.submit(task)))
        if first or len(waiting) > most:
            yield waiting.popleft()
            first = False
    yield from waiting


def _piece(pixels: np.ndarray, name: str, options: PairOptions, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """What a pair shows of a picture [C, H, W], and the row and column where it begins if it was cut out."""
    if not options.crop:
        return (fit(pixels, Size.of(options.size)) if options.size else pixels), {}
    size = Size.of(options.size)
    room = [side - wanted for side, wanted in zip(pixels.shape[1:], size, strict=True)]
    if min(room) < 0:
        raise DataError(
            f"{name}: {pixels.shape[1]} x {pixels.shape[2]} pixels, too small for a piece of {size.height} x {size.width}"
        )
    top, left = (int(below(most + 1, seed, "piece", axis)) for axis, most in enumerate(room))
    return np.ascontiguousarray(pixels[:, top : top + size.height, left : left + size.width]), {"piece": [top, left]}


def _held_out(gallery: Gallery, options: PairOptions) -> np.ndarray:
    """Which pictures are held out, 0 or 1 for each: whole families, and at least one of them if any share is."""
    families = gallery.families or gallery.names
    kinds = list(dict.fromkeys(families))
    if not options.held_out:
        return np.zeros(len(families), int)
    if len(kinds) < 2:
        raise InputError("--held-out keeps whole pictures apart, and there is only one; leave it out")
    count = min(max(round(options.held_out * len(kinds)), 1), len(kinds) - 1)
    order = range(len(kinds)) if gallery.film else np.argsort(seeds(options.seed, "held out", np.arange(len(kinds))).numpy())
    chosen = {kinds[number] for number in order[-count:]}
    return np.array([int(family in chosen) for family in families])


def _agree(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a folder, or raise InputError if it has others."""
    others = [part for part in PARTS if any((folder / part).rglob("*.*"))]
    if not (folder / SETTINGS).exists() and others:
        raise InputError(f"{folder / others[0]}: not made by this command; move it, or choose another folder (--out)")
    if not others:
        write_json(folder / SETTINGS, settings)
    earlier = read_json(folder / SETTINGS)
    for name, value in settings.items():
        if earlier.get(name) != value:
            other = {"pictures": "of other pictures", "example": "that are degraded otherwise"}.get(name)
            made = other or f"made with {name} {json.dumps(earlier.get(name))}, not {json.dumps(value)}"
            raise InputError(f"{folder}: holds pairs {made}; choose another folder (--out), or delete this one")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
