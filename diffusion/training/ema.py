"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """A copy of a network whose weights follow it slowly: w <- d w + (1 - d) w_network.

    The decay d warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so that early averages forget the initialisation.

    Args:
        network: the network to follow.
        decay: limit of d, 0 to 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take one step towards the weights of ``network``."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        average, current = self.network.state_dict(), network.state_dict()
        torch._foreach_lerp_(list(average.values()), [current[name] for name in average], 1.0 - decay)
