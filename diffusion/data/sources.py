"""Where data sets lie on the disk: folders and archives of image files, and tables of pixels (MNIST, CIFAR-10).

Everything is read in place. No archive is ever unpacked to the disk, so a member called ../../x or /etc/x is a name like any other:
nothing is written, and nothing outside the archive is read.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from diffusion.data.images import DataError, check_file_bytes, data_errors, is_image_name

_LABELS = "dataset.json"
_LABELS_BYTES = 2**26
_TABLE_BYTES = 2**30
_MNIST = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz")
_CIFAR = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
# Folders that hold a data set in a form we do not read, by a file in them.
_REFUSED = {
    "data_batch_1": "the Python version of CIFAR-10, whose pickles may run code; expected cifar-10-binary.tar.gz, unpacked",
    "data.mdb": "an LMDB database; expected image files; export it to a folder (LSUN: python data.py export, from "
    "https://github.com/fyu/lsun)",
}


@dataclass(frozen=True)
class Folder:
    """A folder of image files, with everything below it."""

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
        return sorted(filter(is_image_name, found))

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self.path / name).is_file()

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open one file; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        label = str(self.path / name)
        with data_errors(label):
            status = os.stat(label)
            # Opening a pipe would wait for its writer, and a device may never end.
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{label}: not a regular file; expected an image")
            check_file_bytes(status.st_size, label)
            with open(label, "rb") as file:
                yield file, label


@dataclass(frozen=True)
class Archive:
    """A ZIP archive of image files."""

    path: Path
    handles: dict[int, tuple[zipfile.ZipFile, threading.Lock]] = field(default_factory=dict, compare=False)

    def names(self) -> list[str]:
        """Names of the image members, sorted."""
        with data_errors(str(self.path)):
            members = [member for member in self._handle()[0].infolist() if is_image_name(member.filename)]
        if any(member.flag_bits & 1 for member in members):
            raise DataError(f"{self.path}: encrypted; expected an archive without password; unpack it to a folder")
        return sorted({member.filename for member in members})

    def holds(self, name: str) -> bool:
        """Whether there is a member of that name."""
        return name in self._handle()[0].namelist()

    @contextmanager
    def reading(self, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open one member; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        label = f"{self.path}/{name}"
        with data_errors(label):
            handle, lock = self._handle()
            member = handle.getinfo(name)
            check_file_bytes(member.file_size, label)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{label}: compressed by a method other than deflate; pack the archive again without")
            with lock, handle.open(member) as file:
                if member.compress_type == zipfile.ZIP_DEFLATED:
                    # What comes out may be more than the archive declares. Asked for that many bytes, zipfile unpacks no more, and
                    # then finds that the checksum is another's.
                    file = io.BytesIO(file.read(member.file_size))
                yield file, label

    def _handle(self) -> tuple[zipfile.ZipFile, threading.Lock]:
        # A forked process shares the position in its parent's file, so every process opens its own. Threads share one, by a lock:
        # the directory of a large archive takes a second to read and tens of megabytes to keep.
        if os.getpid() not in self.handles:
            self.handles[os.getpid()] = zipfile.ZipFile(self.path), threading.Lock()
        return self.handles[os.getpid()]

    def __reduce__(self) -> tuple[type[Archive], tuple[Path]]:
        return Archive, (self.path,)


def read_labels(store: Folder | Archive, names: list[str]) -> np.ndarray | None:
    """Classes of the images `names` as data sets made for StyleGAN and EDM keep them, in dataset.json.

    Returns:
        int64 [len(names)]; None without such a file, or if it does not give every image one integer.

    Raises:
        DataError: The file is larger than 64 MiB, not JSON, or holds something else than pairs of a name and a label.
    """
    if not store.holds(_LABELS):
        return None
    with store.reading(_LABELS) as (file, label):
        text = file.read(_LABELS_BYTES + 1)
        if len(text) > _LABELS_BYTES:
            raise DataError(f"{label}: more than {_LABELS_BYTES // 2**20} MiB; expected a list of labels; remove the file")
        content = json.loads(text)
        pairs = content.get("labels") if isinstance(content, dict) else None
        classes = {name: value for name, value in pairs or []}
        found = [classes.get(name) for name in names]
        return np.array(found, dtype=np.int64) if all(type(value) is int for value in found) else None


def read_table(folder: Path) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The pixels of a folder with the files of MNIST (IDX) or CIFAR-10 (binary version); their training images.

    Returns:
        Levels, uint8 [N, C, H, W], and classes, int64 [N] or None where there is no file of them; None instead of both for any
        other folder.

    Raises:
        DataError: The files are damaged or incomplete, or the folder holds a form we do not read (pickles, LMDB).
    """
    for name, problem in _REFUSED.items():
        if (folder / name).is_file():
            raise DataError(f"{folder}: {problem}")
    if images := _first_file(folder, _MNIST):
        levels = _read_idx(images, 3)[:, None]
        classes = _first_file(folder, tuple(name.replace("images-idx3", "labels-idx1") for name in _MNIST))
        labels = None if classes is None else _read_idx(classes, 1).astype(np.int64)
        if labels is not None and len(labels) != len(levels):
            raise DataError(f"{folder}: {len(levels)} images but {len(labels)} labels; get new copies of both files")
        return levels, labels
    if _first_file(folder, _CIFAR):
        records = np.concatenate([_read_cifar(folder / name) for name in _CIFAR])
        return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    return None


def is_table_file(path: Path) -> bool:
    """Whether `path` is named as one of the files whose folder `read_table` reads."""
    return path.name in _MNIST + _CIFAR


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


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
    """Read one file of CIFAR-10's binary version: uint8 [N, 1 + 3072], a label and 3 x 32 x 32 levels each."""
    with data_errors(str(path)):
        check_file_bytes(path.stat().st_size, str(path))
        values = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        if not len(values) or len(values) % 3073:
            raise DataError(f"{path}: not whole records of 3073 bytes; get a new copy of cifar-10-binary.tar.gz")
    return values.reshape(-1, 3073)
