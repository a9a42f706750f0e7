"""Sampling: from the prior at level K back to level 0."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from diffusion.process import ForwardProcess
from diffusion.rng import seeds
from lbm_warp.random import normal


@torch.inference_mode()
def residual_sampler(
    network: nn.Module,
    u: torch.Tensor,
    process: ForwardProcess,
    seed: torch.Tensor,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Walk down the levels: u_{k-1} = u_k + network(u_k, k) + delta eps (Rissanen et al. 2023).

    The noise is as important as the step: it is what lets one corrupted image become many pictures. The last step adds none.

    Args:
        network: the reverse network, called as ``network(u, level)``.
        u: images at level K under noise, float32 [N, C, S, S].
        process: the forward process the network was trained on.
        seed: one integer a sample, int64 [N]; a sample depends on its own seed alone.
        callback: called as ``callback(level, u)`` after every step.

    Returns:
        Samples, float32 [N, C, S, S], values around [0, 1].
    """
    delta = process.noise * process.sampling_noise
    for level in range(process.levels, 0, -1):
        u = u + network(u, torch.full((len(u),), level, device=u.device))
        if level > 1:
            u = u + delta * normal(seeds(seed, "noise", level - 1), u.shape, u.device)
        if callback is not None:
            callback(level - 1, u)
    return u
