"""Where images lie: folders and ZIP archives of image files, tables of pixels (MNIST's IDX, CIFAR-10's binary version).

Everything is read in place. No archive is ever unpacked to the disk, so a member called ../../x or /etc/x is a name like any other.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from diffusion.data.images import DataError, check_file_bytes, counted, data_errors, is_hidden, is_image_name
from diffusion.data.labels import as_classes, canonical, common_parts, folder_classes
from lbm_warp.checks import amount

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


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it lies on the disk: image files by name, and their classes."""

    location: str
    """Path or address. Two sources of one location are the same data set."""
    version: object
    """A JSON value that changes when the files may have changed."""
    names: Sequence[str]
    """Names of the image files, in the order of the data set."""
    read: Callable[[str], tuple[str, bytes]]
    """Reads one image file: gives what messages call it, and its content; raises DataError."""
    classes: Mapping[str, Any]
    """Classes of the images, by name, as far as they are known: what :func:`as_classes` takes."""
    class_names: Sequence[str] = ()
    """Names of the classes, where they have names."""
    class_note: str = ""
    """One line about the classes, if there is something to say."""
    ignored: str = ""
    """How many files are not images we read, by their endings; empty if all are."""
    family: Callable[[str], str] | None = None
    """What images that are nearly the same have in common, by name; no half of the data set has a part of a family."""

    def labels(self, names: Sequence[str]) -> tuple[np.ndarray | None, Sequence[str]]:
        """Classes of the images ``names``, int64 [len(names)], None if none of them has one; and the names of the classes.

        Raises:
            DataError: as :func:`as_classes`.
        """
        if self.classes.keys().isdisjoint(names):
            return None, self.class_names
        return as_classes([self.classes.get(name) for name in names], self.class_names, lambda number: names[number])


def open_path(path: Path) -> Source:
    """The source at a path: a .zip archive, a folder, or a folder with the files of MNIST or CIFAR-10 (or one of these files).

    Raises:
        DataError: if it is another file, a damaged one, or a folder in a form we do not read (pickles, LMDB).
    """
    folder = path.parent if path.name in _IDX + _CIFAR else path
    if not folder.is_dir():
        if path.suffix.lower() != ".zip":
            raise DataError(f"{path}: a single file; expected a folder or a .zip archive; put the images into a folder")
        return _archive(str(path))
    for name, problem in _REFUSED.items():
        if os.path.isfile(folder / name):
            raise DataError(f"{folder}: {problem}")
    return _pixels(folder) if _existing(folder, _IDX + _CIFAR) else _folder(str(folder))


def numbered(
    location: str,
    version: object,
    classes: Sequence[Any],
    read: Callable[[int], tuple[str, bytes]],
    class_names: Sequence[str] = (),
) -> Source:
    """A source of images that are called by their numbers, from 0, with their classes where they are known."""
    labels = {str(number): label for number, label in enumerate(classes) if label is not None}
    return Source(location, version, list(map(str, range(len(classes)))), lambda name: read(int(name)), labels, class_names)


def read_file(path: str) -> tuple[str, bytes]:
    """The path of a regular file, and its content.

    Raises:
        DataError: if it is missing, too large, not regular, or cannot be read.
    """
    with data_errors(path):
        status = os.stat(path)
        # Opening a pipe would wait for its writer, and a device may never end.
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a regular file; expected an image")
        check_file_bytes(status.st_size, path)
        return path, Path(path).read_bytes()


def _folder(location: str) -> Source:
    """Everything below a folder. Each real directory counts once, so links cannot loop."""
    files: set[str] = set()
    places, visited = [], set()
    with data_errors(location):
        for directory, folders, names in os.walk(location, onerror=_raise, followlinks=True):
            real = os.path.realpath(directory)
            # Sorted, so that of several links to one directory the same one is always followed.
            folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
            if real not in visited:
                places.append(Path(directory).relative_to(location).as_posix())
                files.update(f"{places[-1]}/{name}".removeprefix("./") for name in names)
            visited.add(real)
    return _image_files(location, files, places, lambda name: read_file(os.path.join(location, name)))


def _archive(location: str) -> Source:
    with data_errors(location):
        archive = zipfile.ZipFile(location)
    if any(member.flag_bits & 1 and is_image_name(canonical(member.filename)) for member in archive.infolist()):
        raise DataError(f"{location}: encrypted; expected an archive without password; unpack it to a folder")
    lock = threading.Lock()

    def read(name: str) -> tuple[str, bytes]:
        label = f"{location}/{name}"
        with data_errors(label):
            member = archive.getinfo(name)
            check_file_bytes(member.file_size, label)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(f"{label}: compressed by a method other than deflate; pack the archive again without")
            with lock, archive.open(member) as file:
                # What comes out may be more than the archive declares. Asked for that many bytes, zipfile unpacks no more, and
                # then finds that the checksum differs.
                return label, file.read(member.file_size)

    names = set(archive.namelist())
    folders = {name for name in names if canonical(name).endswith("/")}
    return _image_files(location, names - folders, folders, read)


def _image_files(
    location: str, files: Collection[str], folders: Collection[str], read: Callable[[str], tuple[str, bytes]]
) -> Source:
    """Those of the files that are images, with classes from a dataset.json, as data sets for StyleGAN and EDM have it, which may
    name families too; else of the names of their folders."""
    form = {name: canonical(name) for name in files}
    names = sorted(name for name in files if is_image_name(form[name]))
    version = _status([location] if os.path.isfile(location) else (os.path.join(location, name) for name in names))
    # A table of labels lies beside the images, or in a folder that all of them have in common.
    common = common_parts(form[name].split("/")[:-1] for name in names)
    tables = {form[name]: name for name in files if PurePosixPath(form[name]).name == _LABELS}
    bases = ["".join(f"{part}/" for part in common[:depth]) for depth in range(len(common) + 1)]
    base = next((base for base in bases if base + _LABELS in tables), None)
    others = [form[name] for name in set(files).difference(names, tables.values()) if not is_hidden(form[name])]
    ignored = counted(PurePosixPath(name).suffix.lower() or "no ending" for name in others) if others else ""
    if base is None:
        classes, note = folder_classes({name: form[name] for name in names})
        if classes and (empty := _empty(map(form.__getitem__, names), map(canonical, folders))):
            note = "; ".join(filter(None, (note, f"no pictures in {', '.join(empty)}")))
        return Source(location, version, names, read, classes, class_note=note, ignored=ignored)

    def key(name: str) -> str:
        return canonical(name).removeprefix(base)

    table, families = _classes_and_families(*read(tables[base + _LABELS]))
    keys = {name: key(name) for name in names}
    classes = {name: table[of] for name, of in keys.items() if of in table}
    spare = len(table.keys() - keys.values())
    note = f"of no picture here: {amount(spare, 'label')} of {_LABELS}" if spare else ""
    family = (lambda name: families.get(key(name), key(name))) if families else None
    return Source(location, version, names, read, classes, family=family, class_note=note, ignored=ignored)


def _empty(names: Iterable[str], folders: Iterable[str]) -> list[str]:
    """The folders, in one form, without an image below them that lie beside or above some."""
    filled = {above for folder in {name.rpartition("/")[0] for name in names} for above in PurePosixPath(folder, "x").parents}
    found = {PurePosixPath(folder) for folder in folders if not is_hidden(folder)}
    return sorted(str(folder) for folder in found - filled if folder.parent in filled)


def _classes_and_families(label: str, text: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """What a dataset.json says: the class and the family of files, by name, each as pairs or as an object."""
    check_file_bytes(len(text), label, _LABELS_BYTES)
    with data_errors(label):
        content = json.loads(text)
        if not isinstance(content, dict) or not content.keys() & {"labels", "families"}:
            content = {"labels": content}
        labels, families = (_by_name(content.get(key) or {}, label) for key in ("labels", "families"))
        return labels, {name: value for name, value in families.items() if isinstance(value, str)}


def _by_name(entries: Any, label: str) -> dict[str, Any]:
    """The values of files, given as an object or as pairs, by the names of the files in one form."""
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise DataError(f'{label}: labels that cannot be read; expected {{"labels": [["picture.png", 0], ...]}}; correct it')
    found: dict[str, Any] = {}
    for name, value in pairs:
        key = canonical(name)
        if key in found and found[key] != value:
            raise DataError(f"{label}: {name} has the values {found[key]!r} and {value!r}; leave one of them")
        found[key] = value
    return found


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], str)


def _pixels(folder: Path) -> Source:
    """The training images of MNIST (IDX) or CIFAR-10 (binary version), each given as a small PGM or PPM file."""
    if images := _existing(folder, _IDX):
        pixels = _read_idx(images[0], 3)[..., None]
        labels = _existing(folder, _IDX_LABELS)
        classes = _read_idx(labels[0], 1).tolist() if labels else [None] * len(pixels)
    else:
        records = np.concatenate([_read_cifar(folder / name) for name in _CIFAR])
        classes, pixels = records[:, 0].tolist(), records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    if len(classes) != count:
        raise DataError(f"{folder}: {amount(count, 'image')} but {amount(len(classes), 'label')}; get new copies of both files")
    header = f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode()

    def read(number: int) -> tuple[str, bytes]:
        return f"{folder}, image {number}", header + pixels[number].tobytes()

    return numbered(str(folder), _status(_existing(folder, _IDX + _IDX_LABELS + _CIFAR)), classes, read)


def _raise(error: OSError) -> None:
    raise error


def _status(paths: Iterable[str | Path]) -> list[tuple[str, int, int]]:
    """Path, size [bytes] and time of change [ns] of those files that exist."""
    found = []
    for path in paths:
        with suppress(OSError):
            status = os.stat(path)
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return found


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if os.path.isfile(folder / name)]


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Read unsigned bytes in the IDX format: two zeros, the type (8), the number of dimensions, the shape, the values."""
    with data_errors(str(path)), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        magic, *shape = struct.unpack(f">{1 + dimensions}I", file.read(4 + 4 * dimensions))
        count = math.prod(shape)
        if magic != 0x0800 + dimensions or not 0 < count <= _TABLE_BYTES:
            raise DataError(f"{path}: not an IDX file of bytes in {dimensions} dimensions; get a new copy")
        # One byte more than the header declares, to find out that there are more. Not all: packed, they may be endless.
        return np.frombuffer(file.read(count + 1), dtype=np.uint8).reshape(shape)


def _read_cifar(path: Path) -> np.ndarray:
    """Read one file of CIFAR-10's binary version: uint8 [N, 1 + 3072], a label and 3 x 32 x 32 values each."""
    label, content = read_file(str(path))
    if not content or len(content) % 3073:
        raise DataError(f"{label}: not whole records of 3073 bytes; get a new copy of cifar-10-binary.tar.gz")
    return np.frombuffer(content, dtype=np.uint8).reshape(-1, 3073)
