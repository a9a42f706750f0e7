"""Classes of pictures: from numbers, names or one-hot rows, and from the folders that files lie in."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from diffusion.data.images import DataError

# Folders of these names are parts of one set if the same class folders lie in them.
_SPLIT = re.compile(r"(train|val|valid|validation|test|dev|eval|fold|split|part|training|testing|evaluation)[-_ ]?\d*")


def as_classes(given: Sequence[Any], names: Sequence[str], place: Callable[[int], str]) -> tuple[np.ndarray, Sequence[str]]:
    """Classes as numbers.

    Args:
        given: the label of each picture: an integer (1.0 is one), a name, or a row with a single one; None or NaN if it has none.
        names: names of the classes in their order, where they are known. Else labels that are names are numbered in their order.
        place: what error messages call a picture, by its number.

    Returns:
        The class of each picture, int64 [N], and the names of the classes, which may be unknown.

    Raises:
        DataError: if a label is none of these, some are names and others numbers, or a picture has none.
    """
    labels = [_label(label, place, number) for number, label in enumerate(given)]
    missing = [number for number, label in enumerate(labels) if label is None]
    if missing:
        raise DataError(f"not every image has a class: {len(missing)} of {len(labels)} have none, such as {place(missing[0])}")
    words = {label for label in labels if isinstance(label, str)}
    if words:
        if numbers := [number for number, label in enumerate(labels) if not isinstance(label, str)]:
            first = place(numbers[0])
            raise DataError(f"{first}: label {labels[numbers[0]]!r}, where others are names; make all of them names or numbers")
        names = names or sorted(words)
        number_of = {unicodedata.normalize("NFC", name): number for number, name in enumerate(names)}
        if unknown := sorted(words - number_of.keys()):
            first = place(labels.index(unknown[0]))
            raise DataError(f"{first}: label {unknown[0]!r}; expected one of the classes {', '.join(names)}")
        labels = [number_of[str(label)] for label in labels]
    return np.array(labels, np.int64), names


def _label(label: Any, place: Callable[[int], str], number: int) -> int | str | None:
    """A label as a number or a name; None if there is none."""
    value = label.tolist() if hasattr(label, "tolist") else label
    if isinstance(value, (list, tuple)) and len(value) == 1:
        [value] = value
    if value is None or value != value:  # NaN, as tables write what is missing
        return None
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    if isinstance(value, (list, tuple)) and all(entry in (0, 1) for entry in value) and sum(value) == 1:
        return value.index(1)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and abs(value) < 2**63:
        return value
    raise DataError(f"{place(number)}: label {value!r}; expected an integer, from 0, a name or a one-hot row; number the classes")


def in_order(labels: Mapping[Any, Any], count: int, name: str) -> list[Any]:
    """Labels that are given by the numbers of their pictures, in order.

    Raises:
        DataError: if the keys are no such numbers.
    """
    if not all(isinstance(key, (int, np.integer)) and 0 <= key < count for key in labels):
        first = next(iter(labels))
        raise DataError(f"{name}: labels by {first!r}; expected a list, a label for each image, or a dict by its number")
    return [labels.get(number) for number in range(count)]


def canonical(path: str) -> str:
    """A path in one form, whatever system wrote it: composed Unicode, slashes."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def common_parts(paths: Iterable[Sequence[str]]) -> list[str]:
    """What paths, given by their parts, begin with in common."""
    every = [list(parts) for parts in paths]
    pairs = zip(min(every, default=[]), max(every, default=[]), strict=False)
    return [part for part, other in takewhile(lambda pair: pair[0] == pair[1], pairs)]


def folder_classes(paths: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Classes of files by the names of folders, and what to say about them.

    Folders that all files have in common are none. Neither are folders such as train and test if the same folders lie in each: the
    classes are these.

    Args:
        paths: relative paths, as :func:`canonical` gives them, by the names of the files.

    Returns:
        Class of each file that lies in the folder of a class, by its name, and one line, empty if there is nothing to say.
    """
    folder_of = {name: path.rpartition("/")[0] for name, path in paths.items()}
    folders = _without_common({folder: PurePosixPath(folder).parts for folder in folder_of.values()})
    below: dict[str, set[str]] = defaultdict(set)
    for parts in folders.values():
        if parts:
            below[parts[0]].update(parts[1:2])
    kinds, note = max(below.values(), key=len, default=set()), ""
    if len(below) > 1 and kinds and all(_SPLIT.fullmatch(top.lower()) and found <= kinds for top, found in below.items()):
        note = f"the same folders lie in {', '.join(sorted(below))}, which are read as one set"
        folders = _without_common({folder: parts[1:] for folder, parts in folders.items()})
    return {name: folders[folder][0] for name, folder in folder_of.items() if folders[folder]}, note


def _without_common(folders: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The parts of each folder, from the first in which two folders differ."""
    common = len(common_parts(folders.values()))
    return {folder: parts[common:] for folder, parts in folders.items()}
