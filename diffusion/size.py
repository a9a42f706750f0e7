"""The size of images: height and width in pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lbm_warp.checks import InputError

SMALLEST, LARGEST = 2, 16_384


class Size(NamedTuple):
    """Height and width of an image [pixels]. Square sizes are written as one number wherever people read or write them."""

    height: int
    width: int

    @classmethod
    def of(cls, value: int | str | Sequence[int]) -> Size:
        """A size from the forms that people and files use.

        Args:
            value: one number for a square (``16``), height and width (``(96, 128)``), or either of these as text (``"16"``,
                ``"96x128"``).

        Raises:
            InputError: if it is none of these, or a side is not 2 to 16,384 pixels.
        """
        sides: object = value
        if isinstance(value, str):
            found = re.fullmatch(r"(\d{1,6})(?:x(\d{1,6}))?", value, re.ASCII)
            sides = [int(side) for side in found.groups() if side] if found else None
        sides = (sides,) if isinstance(sides, (int, np.integer)) else sides
        if (
            not isinstance(sides, Sequence)
            or len(sides) not in (1, 2)
            or not all(isinstance(side, (int, np.integer)) and SMALLEST <= side <= LARGEST for side in sides)
        ):
            raise InputError(
                f"size must be one number of pixels (64) or height x width (96x128), each {SMALLEST} to {LARGEST}; got {value!r}"
            )
        return cls(int(sides[0]), int(sides[-1]))

    @property
    def shorter(self) -> int:
        """The shorter side [pixels], the length L that blur widths and Peclet numbers refer to."""
        return min(self)

    def __str__(self) -> str:
        return str(self.height) if self.height == self.width else f"{self.height}x{self.width}"

    def to_json(self) -> int | list[int]:
        """The size as config.json holds it: one number for a square, else height and width."""
        return self.height if self.height == self.width else [self.height, self.width]
