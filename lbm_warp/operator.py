"""TEMP"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from lbm_warp.advection_diffusion import Integers


class Operator(Protocol):
    """TEMP"""

    solver: str

    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor: ...
    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]: ...
    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]: ...
    def iterations(self, height: int, width: int) -> np.ndarray: ...
