"""Where images lie: folders and ZIP archives of image files, and tables of pixels (MNIST's IDX, CIFAR-10's binary version).

Everything is read in place. No archive is ever unpacked to the disk, so a member called ../../x or /etc/x is a name like any other.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from diffusion.data.images import DataError, check_file_bytes, data_errors, is_image_name

_LABELS = "dataset.json"
_LABELS_BYTES = 2**26
_TABLE_BYTES = 2**30
_IDX = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")
_IDX_LABELS = ("train-labels-idx1-ubyte", "train-labels-idx1-ubyte.gz")
_CIFAR = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
# Folders that hold a data set in a form we do not read, by a file in them.
_REFUSED = {
    "data_batch_1": "the Python version of CIFAR-10, whose pickles may run code; expected cifar-10-binary.tar.gz, unpacked",
    "data.mdb": "an LMDB database; expected image files; export it to a folder (LSUN: python data.py export, from "
    "https://github.com/fyu/lsun)",
}


class Source(Protocol):
    """A data set as it lies on the disk: image files by name, and their classes."""

    location: str
    """Path or address. Two sources of one location are the same data set."""
    names: Sequence[str]
    """Names of the image files, in the order of the data set."""

    def version(self) -> object:
        """A JSON value that changes when the files may have changed."""

    def open(self, name: str) -> AbstractContextManager[tuple[BinaryIO, str]]:
        """Open one file. Gives the file and what messages call it; whatever goes wrong meanwhile is a DataError."""

    def labels(self, names: Sequence[str]) -> np.ndarray | None:
        """Classes of the images `names`, int64 [len(names)]; None unless every one of them has a class."""


def open_path(path: Path) -> Source:
    """The source at a path: a .zip archive, a folder, or a folder with the files of MNIST or CIFAR-10 (or one of these files).

    Raises:
        DataError: Any other file, or a folder with a form we do not read (pickles, LMDB).
    """
    folder = path.parent if path.name in _IDX + _CIFAR else path
    if not folder.is_dir():
        if path.suffix.lower() != ".zip":
            raise DataError(f"{path}: a single file; expected a folder or a .zip archive; put the images into a folder")
        return Archive(str(path))
    for name, problem in _REFUSED.items():
        if (folder / name).is_file():
            raise DataError(f"{folder}: {problem}")
    return Table(folder) if _existing(folder, _IDX + _CIFAR) else Folder(str(folder))


class _Files(Source):
    """Image files with paths below one place, and their classes in a dataset.json, as data sets for StyleGAN and EDM have it."""

    files: Sequence[str]

    @cached_property
    def names(self) -> list[str]:
        return sorted(filter(is_image_name, self.files))

    def labels(self, names: Sequence[str]) -> np.ndarray | None:
        """As in `Source`; DataError if the file is larger than 64 MiB, or something else than pairs of a name and a class."""
        if _LABELS not in self.files:
            return None
        with self.open(_LABELS) as (file, label):
            text = file.read(_LABELS_BYTES + 1)
            if len(text) > _LABELS_BYTES:
                raise DataError(f"{label}: more than {_LABELS_BYTES // 2**20} MiB; expected a list of labels; remove the file")
            content = json.loads(text)
            pairs = content.get("labels") if isinstance(content, dict) else None
            classes = {name: value for name, value in pairs or []}
            found = [classes.get(name) for name in names]
            return np.array(found, dtype=np.int64) if all(type(value) is int for value in found) else None


@dataclass(eq=False)
class Folder(_Files):
    """A folder of image files, with everything below it."""

    location: str

    @cached_property
    def files(self) -> list[str]:
        """Relative paths; each real directory counts once, so links cannot loop."""
        found, visited = [], set()
        for directory, folders, names in os.walk(self.location, followlinks=True):
            # Sorted, so that of several links to one directory the same one is always followed.
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            real = os.path.realpath(directory)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            below = Path(directory).relative_to(self.location)
            found += [(below / name).as_posix() for name in names]
        return found

    def version(self) -> object:
        return _status(Path(self.location, name) for name in (*self.names, _LABELS))

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        label = os.path.join(self.location, name)
        with data_errors(label):
            status = os.stat(label)
            # Opening a pipe would wait for its writer, and a device may never end.
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{label}: not a regular file; expected an image")
            check_file_bytes(status.st_size, label)
            with open(label, "rb") as file:
                yield file, label


@dataclass(eq=False)
class Archive(_Files):
    """A ZIP archive of image files; DataError if it is none, or encrypted."""

    location: str
    lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def file(self) -> zipfile.ZipFile:
        with data_errors(self.location):
            return zipfile.ZipFile(self.location)

    @cached_property
    def files(self) -> set[str]:
        members = self.file.infolist()
        if any(member.flag_bits & 1 and is_image_name(member.filename) for member in members):
            raise DataError(f"{self.location}: encrypted; expected an archive without password; unpack it to a folder")
        return {member.filename for member in members}

    def version(self) -> object:
        return _status([Path(self.location)])

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        label = f"{self.location}/{name}"
        with data_errors(label):
            member = self.file.getinfo(name)
            check_file_bytes(member.file_size, label)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{label}: compressed by a method other than deflate; pack the archive again without")
            with self.lock, self.file.open(member) as file:
                # What comes out may be more than the archive declares. Asked for that many bytes, zipfile unpacks no more, and
                # then finds that the checksum differs.
                content = file.read(member.file_size)
            yield io.BytesIO(content), label


class Table(Source):
    """The training images of MNIST (IDX) or CIFAR-10 (binary version), each given as a small PGM or PPM file.

    Raises:
        DataError: The files are damaged or incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self.files = _existing(folder, _IDX + _IDX_LABELS + _CIFAR)
        self.classes: np.ndarray | None = None
        if images := _existing(folder, _IDX):
            self.pixels = _read_idx(images[0], 3)[..., None]
            if classes := _existing(folder, _IDX_LABELS):
                self.classes = _read_idx(classes[0], 1)
        else:
            records = np.concatenate([_read_cifar(folder / name) for name in _CIFAR])
            self.classes, self.pixels = records[:, 0], records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        if self.classes is not None and len(self.classes) != len(self.pixels):
            problem = f"{len(self.pixels)} images but {len(self.classes)} labels"
            raise DataError(f"{folder}: {problem}; get new copies of both files")
        self.names = list(map(str, range(len(self.pixels))))

    def version(self) -> object:
        return _status(self.files)

    @contextmanager
    def open(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        height, width, channels = (pixels := self.pixels[int(name)]).shape
        header = f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode()
        yield io.BytesIO(header + pixels.tobytes()), f"{self.location}, image {name}"

    def labels(self, names: Sequence[str]) -> np.ndarray | None:
        return None if self.classes is None else self.classes[[int(name) for name in names]].astype(np.int64)


def _status(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size [bytes] and time of change [ns] of those files that exist."""
    found = []
    for path in paths:
        with suppress(OSError):
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read unsigned bytes in the IDX format: two zeros, the type (8), the number of dimensions, the shape, the values."""
    with data_errors(str(path)), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
        count = math.prod(shape)
        if magic != 0x0800 + dimensions or not 0 < count <= _TABLE_BYTES:
            raise DataError(f"{path}: not an IDX file of bytes in {dimensions} dimensions; get a new copy")
        # One byte more than the header declares, to find out that there are more. Not all: packed, they may be endless.
        values = np.frombuffer(file.read(count + 1), dtype=np.uint8)
        if len(values) != count:
            raise DataError(f"{path}: its size is not the {count} values that its header declares; get a new copy")
    return values.reshape(shape)


def _read_cifar(path: Path) -> np.ndarray:
    """Read one file of CIFAR-10's binary version: uint8 [N, 1 + 3072], a label and 3 x 32 x 32 values each."""
    with data_errors(str(path)):
        check_file_bytes(path.stat().st_size, str(path))
        values = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if not len(values) or len(values) % 3073:
            raise DataError(f"{path}: not whole records of 3073 bytes; get a new copy of cifar-10-binary.tar.gz")
    return values.reshape(-1, 3073)
