"""Reading and writing files: JSON and safetensors, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from lbm_warp.checks import InputError


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path to write to. It is renamed to ``path`` when the block succeeds, and removed when it fails.

    The file is written in the same folder, flushed to the disk and renamed, so a reader finds the old file or the new one, never a
    part of it, even if the process is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end: writers choose the format by it.
    aside = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield aside
        with open(aside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    except OSError as error:
        if error.filename == str(aside):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        aside.unlink(missing_ok=True)


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
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all.

    Raises:
        InputError: if the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # The format knows no tensors that share memory, as the weights that a network ties.
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    tensors = {name: t.clone() if users[t.untyped_storage().data_ptr()] > 1 else t for name, t in tensors.items()}
    try:
        with whole_file(path) as aside:
            # Not save_file: it writes to a temporary file of its own, which a killed process leaves behind, for its owner alone.
            aside.write_bytes(save(tensors, metadata))
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: if it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; the run folder is not complete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None
