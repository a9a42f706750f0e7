"""The interface of corruption operators, from clean images to the levels of a schedule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from lbm_warp.checks import Integers


class Operator(Protocol):
    """Maps clean images, floating-point [N, C, H, W], to levels 0 (clean) to K of their trajectories.

    A trajectory is a function of the image and its seed. ``level`` and ``seed`` are one integer for all images or one per image.
    Results have the shape, dtype and device of the images. :class:`lbm_warp.AdvectionDiffusion` is an example.

    Attributes:
        solver: the method, for reports, for example ``lattice`` or ``heat kernel``.
    """

    solver: str

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """Images at a level."""

    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Images at ``level`` - 1 and at ``level``, which is 1 to K."""

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """``(level, images)`` for levels 0 to K."""

    def iterations(self, height: int, width: int) -> np.ndarray:
        """Lattice iterations to levels 0..K at this size [pixels], in units of one on the pixel grid, float64 [K + 1]."""
