"""Augmentation: training pictures that are moved, and what the network is told of it.

A network that is told how its picture was moved learns from moved ones, and can still be asked for pictures that were not: zeros
tell it so, in sampling, likelihood and restoration (EDM, Karras et al. 2022, arXiv:2206.00364, section 5 and appendix F.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from diffusion.rng import seeds, uniform
from lbm_warp.checks import check_number

# Moments of augmented pictures are measured on so many draws of each.
DRAWS = 16


@dataclass(frozen=True)
class Augmentation:
    """Base class, and none: pictures stay as they are. Subclass it as a frozen dataclass of numbers and write :meth:`__call__`."""

    told: ClassVar[int] = 0
    """Numbers that the network is told of each picture, all zero for one that was not moved; 0 tells it nothing."""

    def __call__(self, u0: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Augment pictures, each by its own seed alone.

        Args:
            u0: clean pictures, float32 [N, C, H, W] in [0, 1].
            seed: int64 [N] on the CPU.

        Returns:
            Pictures of the same shape, and what the network is told, float32 [N, ``told``] on their device.
        """
        return u0, u0.new_zeros((len(u0), self.told))

    def of_all(self, pictures: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """What a training sees of these pictures, float32 [C, H, W]: moments are measured on it."""
        return Augmented(pictures, self) if self.told else pictures

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""


@dataclass(frozen=True)
class GeometricAugmentation(Augmentation):
    """EDM's: half of the pictures are mirrored left to right, and each of five other moves is drawn with a probability.

    They are: upside down (for half of those drawn), a translation by whole pixels (an eighth of the side in the rms), a rotation by
    any angle, a scale and a stretch (by 2^(n / 5), n normal). Beyond its edges a picture is mirrored, as between walls. Mirroring
    and translation keep every pixel's value; the others interpolate.
    """

    probability: float = 0.12
    """Of each move, 0 to 1; EDM takes 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ, and none where pictures are many."""
    told: ClassVar[int] = 9

    def validate(self) -> None:
        check_number("augment", self.probability, 0.0, 1.0)

    def __call__(self, u0: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        told, matrix = self._drawn(seed, *u0.shape[2:])
        warped = (matrix != torch.eye(2)).any(dim=(1, 2)).nonzero()[:, 0]
        told, matrix, warped = (t.to(u0.device, non_blocking=True) for t in (told, matrix[warped], warped))
        u = u0
        for axis, mirrored, shift in ((3, told[:, 0], told[:, 2]), (2, told[:, 1], told[:, 3])):
            u = _moved(u, axis, mirrored, shift)
        if len(warped):
            u = u.index_copy(0, warped, _warped(u[warped], matrix))
        return u, told

    def _drawn(self, seed: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is told, float32 [N, 9], and where each pixel comes from as seen from the centre, float32 [N, 2, 2].

        A stretch by 2^(n / 5) along the direction r / 2 is exp2(n Q / 5) with Q = [[cos r, sin r], [sin r, -cos r]]: n cos r and
        n sin r tell it. As Q^2 = 1, exp(a Q) = cosh a + Q sinh a.
        """
        draws = uniform(seed[:, None], "augmentation", np.arange(13))
        chosen, value = (draws[:, :5] < self.probability).double(), draws[:, 5:]
        normal = torch.special.ndtri(value + 2.0**-54)  # never of 0
        left_right, upside_down = value[:, 0] < 0.5, chosen[:, 0] * (value[:, 1] < 0.5)
        side = torch.tensor([width, height]) / 8.0
        shift = (chosen[:, 1:2] * normal[:, 2:4] * side).round() / side
        angle = chosen[:, 2] * math.pi * (2.0 * value[:, 4] - 1.0)
        scale, stretch = chosen[:, 3] * normal[:, 5], chosen[:, 4] * normal[:, 6]
        c, s = (f(2.0 * math.pi * value[:, 7]) for f in (torch.cos, torch.sin))
        told = [left_right, upside_down, *shift.T, angle.cos() - 1.0, angle.sin(), scale, stretch * c, stretch * s]
        # The inverse, as pixels of the result are looked up in the picture.
        cosh, sinh = (f(0.2 * math.log(2.0) * stretch) for f in (torch.cosh, torch.sinh))
        rows = (angle.cos(), angle.sin()), (-angle.sin(), angle.cos())
        unstretch = (cosh - c * sinh, -s * sinh), (-s * sinh, cosh + c * sinh)
        columns = tuple(zip(*unstretch, strict=True))
        matrix = [torch.exp2(-0.2 * scale) * (row[0] * column[0] + row[1] * column[1]) for row in rows for column in columns]
        return torch.stack(told, dim=1).float(), torch.stack(matrix, dim=1).unflatten(1, (2, 2)).float()


@dataclass(frozen=True, eq=False)
class Augmented(Sequence[np.ndarray]):
    """Pictures, each augmented in several ways."""

    pictures: Sequence[np.ndarray]
    augmentation: Augmentation

    def __len__(self) -> int:
        return DRAWS * len(self.pictures)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        picture = torch.from_numpy(np.asarray(self.pictures[number // DRAWS], dtype=np.float32))
        return self.augmentation(picture[None], seeds(number, "statistics"))[0][0].numpy()


def _moved(u: torch.Tensor, axis: int, mirrored: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Pictures mirrored along an axis where ``mirrored`` [N] is one, and shifted by ``shift`` [N] eighths of their side."""
    side = u.shape[axis]
    place = torch.arange(side, device=u.device) - (shift * side / 8.0).round().long()[:, None]
    place = place % (2 * side)  # mirrored beyond the edges: the period is twice the side
    place = torch.where(place < side, place, 2 * side - 1 - place)
    place = torch.where(mirrored[:, None] > 0.0, side - 1 - place, place)
    return u.take_along_dim(place[:, None, None, :] if axis == 3 else place[:, None, :, None], axis)


def _warped(u: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Pictures looked up at ``matrix`` [N, 2, 2] times the place of each pixel, as seen from the centre.

    Four points of each pixel are interpolated, bicubic, and averaged: a picture that becomes half as large has no aliases.
    """
    y, x = ((torch.arange(2 * side, device=u.device) + 0.5) / 2.0 - side / 2.0 for side in u.shape[2:])
    y, x, m = y[:, None], x, matrix[:, :, :, None, None]
    height, width = u.shape[2:]
    places = [(m[:, row, 0] * x + m[:, row, 1] * y) * (2.0 / side) for row, side in enumerate((width, height))]
    fine = F.grid_sample(u, torch.stack(places, dim=-1), mode="bicubic", padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(fine, 2).clamp(0.0, 1.0)
