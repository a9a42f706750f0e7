"""Weightings: how much the loss of each level counts in a training.

A weighting of one's own is a frozen dataclass of numbers whose :meth:`Weighting.build` gives a module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from lbm_warp.checks import check_integer

# Times the learning rate of the network: the few weights of the uncertainty follow the loss while it falls.
PACE = 10.0


@dataclass(frozen=True)
class Weighting:
    """Base class, and none: the loss of an image is what its denoiser says."""

    def build(self, levels: int, values: int) -> nn.Module:
        """What weights the losses.

        Args:
            levels: K, the number of the most corrupted level.
            values: numbers of an image, over which its loss is summed.

        Returns:
            Called as ``weighting(loss, level)`` with float32 [N] and int64 [N] on its device, 1 to K; gives float32 [N], whose mean
            is minimised. Its parameters are trained with the network's, and kept in checkpoints alone.
        """
        return _Unweighted()

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""


@dataclass(frozen=True)
class LearnedWeighting(Weighting):
    """Every level counts by how well it can be predicted: loss / exp(u) + D u with an uncertainty u of its own, which is trained.

    For D values of an image exp(u) becomes the mean of loss / D at the level, so all levels count alike, whatever the
    parametrisation (EDM2, Karras et al. 2024, arXiv:2312.02696, after Kendall et al. 2018).
    """

    terms: int = 16
    """Cosines of the level whose weighted sum is u."""

    def build(self, levels: int, values: int) -> nn.Module:
        return Uncertainty(levels, values, self.terms)

    def validate(self) -> None:
        check_integer("weighting terms", self.terms, 1, 1024)


WEIGHTINGS = {"plain": Weighting(), "learned": LearnedWeighting()}


class _Unweighted(nn.Module):
    def forward(self, loss: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return loss


class Uncertainty(nn.Module):
    """The uncertainty u of levels, zero at first; arguments as for :meth:`Weighting.build`."""

    def __init__(self, levels: int, values: int, terms: int) -> None:
        super().__init__()
        self.values = values
        position = (torch.arange(levels + 1) - 0.5) / levels
        self.register_buffer("cosines", torch.cos(math.pi * position[:, None] * torch.arange(terms)), persistent=False)
        self.weight = nn.Parameter(torch.zeros(terms))

    def of(self, level: torch.Tensor) -> torch.Tensor:
        """u of levels int64 [N], float32 [N]."""
        return PACE * self.cosines[level] @ self.weight  # type: ignore[index]

    def forward(self, loss: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        u = self.of(level)
        return loss / u.exp() + self.values * u
