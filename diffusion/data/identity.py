"""Which pictures a run learns: where they are, and what tells them from others.

A run is known by what its pictures show, not by the name of their folder. It keeps their number, the names and the bytes of their
files, and of up to 64 pictures, spread over the set, the mean brightness of 4 x 4 cells. Another library may decode or resize a
picture a little differently; its cells stay the same.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from diffusion.data.labels import canonical
from diffusion.files import read_json, write_json
from lbm_warp.checks import InputError, amount

if TYPE_CHECKING:
    from diffusion.data.hub import Stream
    from diffusion.data.sources import Source

FILE = "data.json"
PROBES = 64
CELLS = 4
SLACK = 1  # by which a cell of the same picture may differ [1/255]
CHUNK = 1024


@dataclass(frozen=True)
class Origin:
    """Where pictures were opened, and their files."""

    data: str
    """What opens them again: a name, an absolute path or an address."""
    location: str
    """Absolute path or address."""
    names: str | None = None
    """SHA-256 of the names of the files."""
    bytes: int | None = None
    """Bytes of all files."""

    @classmethod
    def of(cls, source: Source | Stream, name: str | None = None) -> Origin:
        """Of pictures that are known by a name, or by their place."""
        place = source.location
        location = os.path.abspath(place) if os.path.exists(place) else place
        version = getattr(source, "version", None)
        if not isinstance(version, list):  # not files
            return cls(name or location, location)
        names = hashlib.sha256("\0".join(map(canonical, map(str, source.names))).encode("utf-8", "surrogateescape")).hexdigest()
        return cls(name or location, location, names, sum(size for _, size, _ in version))


class Pictures(Protocol):
    """What is asked of a data set: see :class:`diffusion.data.Pictures`."""

    @property
    def origin(self) -> Origin | None: ...
    @property
    def total(self) -> int | None: ...
    def probes(self, most: int) -> np.ndarray: ...
    def read(self, index: np.ndarray) -> np.ndarray: ...
    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Identity:
    """What a run keeps of its pictures."""

    name: str
    """Name of the data set, for people."""
    count: int | None
    """Number of pictures; None for a stream that does not say."""
    data: str | None = None
    location: str | None = None
    names: str | None = None
    bytes: int | None = None
    """As in :class:`Origin`; None for pictures in memory."""
    cells: tuple[str, ...] = ()
    """Of pictures spread over the set, bytes in hexadecimal digits; none where a picture is another each time it is read."""
    original: bool = True
    """Whether the run began with these pictures, on which its prior and its statistics were measured."""

    @classmethod
    def of(cls, pictures: Pictures, name: str) -> Identity:
        """Of a data set; up to 64 pictures are read, or twice that, if they are in memory."""
        origin, cells = vars(pictures.origin) if pictures.origin else {}, _cells(pictures.probes(PROBES))
        if not origin and not np.array_equal(cells, _cells(pictures.probes(PROBES))):
            cells = cells[:0]
        return cls(name, pictures.total, cells=_hexadecimal(cells), **origin)

    def save(self, folder: Path) -> None:
        """Write data.json."""
        write_json(folder / FILE, vars(self))

    def where(self) -> str:
        """How many pictures there are, and where, in words."""
        number = "pictures" if self.count is None else amount(self.count, "picture")
        return f"{number} {f'of {self.location}' if self.location else 'in memory'}"

    def changes(self, now: Identity) -> list[str]:
        """What has become different, in words; nothing if these are the same pictures."""
        found = []
        if self.count != now.count:
            both = self.count and now.count
            found.append(f"{amount(self.count or 0, 'picture')} before, now {now.count:,}" if both else "their number")
        if None not in (self.names, now.names) and self.names != now.names:
            found.append("the names of the files")
        if None not in (self.bytes, now.bytes) and self.bytes != now.bytes:
            found.append(f"{self.bytes:,} bytes of files have become {now.bytes:,}")
        if self.count == now.count and bool(self.cells) == bool(now.cells):
            different = int((~_alike(_numbers(self.cells), _numbers(now.cells))).sum())
            found += [f"{different} of {len(self.cells)} that were looked at show something else"] if different else []
        elif self.count == now.count:
            found.append("what they show")
        return found

    def kept_in(self, pictures: Pictures, now: Identity) -> int:
        """How many of the pictures that were looked at are among these: all, if their files were changed in their place."""
        same_files = self.location is not None and (self.location, self.names) == (now.location, now.names)
        if same_files and self.bytes != now.bytes:
            return len(self.cells)
        if not self.cells or not now.cells:
            return len(self.cells)  # nobody can tell
        old, found = _numbers(self.cells), np.zeros(len(self.cells), bool)
        for new in [_numbers(now.cells)] if self.count is None or now.count is None else _all_cells(pictures):
            found |= _alike(old[:, None], new).any(axis=1)
        return int(found.sum())


def load_identity(folder: Path) -> Identity | None:
    """Read data.json of a run; None if it has none.

    Raises:
        InputError: if it is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    values: dict[str, Any] = read_json(path)
    try:
        identity = Identity(**values | {"cells": tuple(values["cells"])})
        _numbers(identity.cells)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not a record of pictures; remove it to go on with the pictures on trust") from None
    return identity


def check_pictures(folder: Path, pictures: Pictures, now: Identity, allow_new: bool) -> tuple[Identity, str | None]:
    """Compare pictures with those that a run began with.

    Args:
        folder: the run.
        pictures: what it is to learn now.
        now: their identity.
        allow_new: whether pictures may have been added, removed or changed.

    Returns:
        What the run is to keep of them; and what is to be said, in one line, None if they are the same in the same place.

    Raises:
        InputError: if they are others, or have changed although that is not allowed.
    """
    before = load_identity(folder)
    if before is None:
        return now, None
    changes = before.changes(now)
    if not changes:
        moved = before.location != now.location and now.location is not None
        return replace(now, original=before.original), f"the same pictures as before, now of {now.location}" if moved else None
    what = ", ".join(changes)
    kept, looked = before.kept_in(pictures, now), len(before.cells)
    if 2 * kept < looked:
        rule = f"{kept} of {looked} that were looked at are still there; even --allow-new-pictures asks for half of them"
        advice = "choose another folder (--out), and to begin from its weights --init"
        raise InputError(f"{folder} is a run on other pictures: {before.where()}, not {now.where()} ({what}): {rule}; {advice}")
    if not allow_new:
        advice = "go on with them by --allow-new-pictures, or choose another folder (--out)"
        raise InputError(f"{folder}: the pictures are no longer those that it began with ({what}); {advice}")
    note = f"going on with other pictures ({what}); statistics and prior stay those that the run began with"
    return replace(now, original=False), note


def _cells(pictures: np.ndarray) -> np.ndarray:
    """Mean brightness of 4 x 4 cells of pictures [n, C, H, W], uint8 [n, 16]."""
    values = torch.from_numpy(np.array(pictures)).float() * (255.0 if pictures.dtype != np.uint8 else 1.0)
    return functional.adaptive_avg_pool2d(values.mean(dim=1), CELLS).flatten(1).round().to(torch.uint8).numpy()


def _all_cells(pictures: Pictures) -> Iterator[np.ndarray]:
    with tqdm(total=len(pictures), desc="comparing pictures", unit="img", delay=1, leave=False) as progress:
        for first in range(0, len(pictures), CHUNK):
            numbers = np.arange(first, min(first + CHUNK, len(pictures)))
            yield _cells(pictures.read(numbers))
            progress.update(len(numbers))


def _alike(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(one.astype(int) - other.astype(int)).max(axis=-1, initial=0) <= SLACK


def _hexadecimal(cells: np.ndarray) -> tuple[str, ...]:
    return tuple(row.tobytes().hex() for row in cells)


def _numbers(cells: tuple[str, ...]) -> np.ndarray:
    return np.array([list(bytes.fromhex(row)) for row in cells], np.uint8).reshape(len(cells), CELLS**2)
