"""Halves of a data set: one to learn from, the other to be held against."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from diffusion.data.dataset import ImageDataset
from diffusion.data.images import DataError

Split = Literal["all", "even", "odd"]
OTHER_HALF: dict[str, Split] = {"all": "all", "even": "odd", "odd": "even"}


def half(dataset: ImageDataset, split: Split) -> ImageDataset:
    """The images of even or odd number, for a model that is to be held against the others; "all" is the data set itself.

    Raises:
        DataError: There are none, or the set is a stream, whose images have no numbers.
    """
    if split == "all":
        return dataset
    if dataset.stream is not None:
        raise DataError(f"{dataset.name}: a stream has no halves; leave out --stream, or --split")
    numbers = numbers_of(split, len(dataset))
    if not len(numbers):
        raise DataError(f"{dataset.name}: {len(dataset)} image has none of {split} number; at least 2 are needed for two halves")
    return replace(
        dataset,
        name=name_of_half(dataset.name, split),
        description=f"{dataset.description}, of which the {len(numbers)} of {split} number",
        images=_Chosen(dataset.images, numbers),
        labels=None if dataset.labels is None else dataset.labels[numbers],
    )


def numbers_of(split: Split, count: int) -> np.ndarray:
    """Numbers of the images of a half (or all) of `count`, int64."""
    return np.arange(count)[{"all": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}[split]]


def name_of_half(name: str, split: Split) -> str:
    """What half a data set is called, such as "digits[even]"; see `whole_and_half` for the way back."""
    return name if split == "all" else f"{name}[{split}]"


def whole_and_half(name: str) -> tuple[str, Split]:
    """The name of the whole data set, and the half of it that `name` stands for: ("digits", "even") of "digits[even]"."""
    found = re.fullmatch(r"(.+)\[(even|odd)\]", name, re.DOTALL)
    return (found[1], found[2]) if found else (name, "all")


@dataclass(frozen=True, eq=False)
class _Chosen(Sequence[np.ndarray]):
    """Some images of a sequence, in the order of `numbers`."""

    images: Sequence[np.ndarray]
    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[int(self.numbers[index])]
