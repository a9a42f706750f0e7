"""Reading and writing files: JSON and safetensors, written whole or not at all; folders that one process works in."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from lbm_warp.checks import InputError

LOCK = ".lock"
CHECKSUM = "checksum"
# Names of temporary files: that of the file, the process, its machine, the suffix of the file.
MACHINE = f"{zlib.crc32(platform.node().encode()):08x}"
PART = re.compile(r"\.(.+)\.(\d{1,9})-(\w+)\.part(\.\w+)?")
AGAIN = "get a new copy; in the folder where a run was trained, its command makes it again"


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """A block in which this process alone works in a folder, which is made if it is missing.

    The lock is one of the operating system: it ends with the process, however that ends. If nothing was written, the folder is left
    as it was found.

    Raises:
        InputError: at once, if another process works in the folder, or the folder cannot be written.
    """
    folder = folder.absolute()
    new, lock = [place for place in (folder, *folder.parents) if not place.exists()], FileLock(folder / LOCK, timeout=0)
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            advice = "wait until it has ended, or choose another folder (--out)"
            raise InputError(f"{folder}: another process works in this folder; {advice}") from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise InputError(f"{folder}: cannot be written ({error.strerror}); choose another folder (--out)") from None
            print(f"{folder}: its file system has no locks; let no other process work there", file=sys.stderr)
        yield
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / LOCK).unlink()
            lock.release()
        for place in new:
            with contextlib.suppress(OSError):
                place.rmdir()


def asset(name: str) -> Path:
    """The path of one of the files that come with this project: inside this package where it is installed, else beside it."""
    installed = Path(__file__).parent / "assets"
    return (installed if installed.is_dir() else installed.parents[1] / "assets") / name


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to ``path`` when the block succeeds, and removed when it fails.

    The file is written in the same folder, flushed to the disk and renamed, so a reader finds the old file or the new one, never a
    part of it, even if the process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path.parent.absolute())
    # The suffix stays at the end: writers choose the format by it.
    aside = path.with_name(f".{path.stem}.{os.getpid()}-{MACHINE}.part{path.suffix}")
    try:
        yield aside
        with open(aside, "r+b") as written:  # Windows flushes no file that is open for reading alone
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(aside)):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        aside.unlink(missing_ok=True)


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove, once in a process, the temporary files that killed processes of this machine left in a folder."""
    with contextlib.suppress(OSError):
        for part in folder.glob(".*.part*"):
            found = PART.fullmatch(part.name)
            if found and found[3] == MACHINE and not psutil.pid_exists(int(found[2])):
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def products(folder: Path, record: str, *names: str) -> Iterator[Path]:
    """A block that writes the products of a command aside. When it succeeds they take the place of all earlier ones, else nothing
    changes.

    What the command did not make stays: of the earlier files only those are removed that their record lists. The caller owns the
    folder (:func:`owned`).

    Args:
        folder: where the products will be.
        record: the name of a JSON object that the block writes with them; the list "files" of all others is added to it.
        names: what the command may write beside it; patterns.

    Yields:
        The folder to write into.

    Raises:
        InputError: if a file of such a name is there that the command did not make.
    """
    there = {file.relative_to(folder).as_posix() for name in names for file in folder.glob(name)}
    earlier = there.intersection(read_json(folder / record).get("files", there) if (folder / record).exists() else ())
    if others := sorted(there - earlier):
        raise InputError(f"{folder / others[0]}: not made by this command; move it, or choose another folder (--out)")
    aside = folder / f".{record}.part"
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    try:
        aside.mkdir()
        yield aside
        made = sorted(file.relative_to(aside).as_posix() for file in aside.rglob("*") if file.is_file() and file.name != record)
        write_json(aside / record, read_json(aside / record) | {"files": made})
        for name in earlier.difference(made):
            (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # others may have put files there
                (folder / name).parent.rmdir()
        for name in (record, *made):  # the record first: what it lists and is not there does no harm
            (folder / name).parent.mkdir(exist_ok=True)
            os.replace(aside / name, folder / name)
    except OSError as error:
        error.filename = error.filename and str(error.filename).replace(str(aside), str(folder))
        raise
    except InputError as error:
        raise InputError(str(error).replace(str(aside), str(folder))) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON."""
    with whole_file(path) as aside:
        aside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: if the file holds none.
    """
    try:
        value = json.loads(path.read_bytes())  # in the encoding that an editor has left
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); it may be damaged or cut short: get a new copy") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors with a checksum, whole or not at all.

    Raises:
        InputError: if the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The format knows no tensors that share memory, as the weights that a network ties.
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    tensors = {name: t.clone() if users[t.untyped_storage().data_ptr()] > 1 else t for name, t in tensors.items()}
    try:
        with whole_file(path) as aside:
            texts = {key: text.encode("utf-8", "backslashreplace").decode() for key, text in (metadata or {}).items()}
            _write(aside, tensors, texts | {CHECKSUM: _checksum(tensors)})
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def _write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write safetensors: the length of a header, the header in JSON, the values (huggingface.co/docs/safetensors).

    The library's save makes two copies of everything, and no other thread runs meanwhile. Its save_file writes to a temporary file
    of its own, which a killed process leaves behind, for its owner alone.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so every tensor is aligned
    ends = list(accumulate((tensors[name].nbytes for name in names), initial=0))
    header = {"__metadata__": metadata} | {
        name: {"dtype": _dtype(tensors[name].dtype), "shape": list(tensors[name].shape), "data_offsets": place}
        for name, place in zip(names, pairwise(ends), strict=True)
    }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(tensors[name]))


@cache
def _dtype(dtype: torch.dtype) -> str:
    """The format's name of a dtype, by the library's own header."""
    content = save({"": torch.empty(0, dtype=dtype)})
    return str(json.loads(content[8:])[""]["dtype"])


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; a checksum is checked where there is one.

    Raises:
        InputError: if it is missing or damaged.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """As :func:`load_tensors`, with the metadata of the file."""
    if not path.is_file():
        raise InputError(f"{path}: missing; {AGAIN}")
    try:
        # The library takes names in UTF-8 alone; a file of another name is opened for it.
        with open(path, "rb") as opened, safe_open(path if _in_utf8(path) else f"/dev/fd/{opened.fileno()}", "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); {AGAIN}") from None
    if metadata.get(CHECKSUM, checksum := _checksum(tensors)) != checksum:
        raise InputError(f"{path}: not as it was written (the checksum differs); {AGAIN}")
    return tensors, metadata


def _in_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace") == str(path)


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of the tensors' values, in the order of their names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(_bytes(tensors[name]), value)
    return f"{value:08x}"


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor on the host."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
