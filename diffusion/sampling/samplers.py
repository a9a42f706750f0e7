"""Sampling: from level K back to level 0.

Walking in fewer steps. The network predicts one level down, u_{k-1} - u_k. A step from level k to j < k has to stretch that.
Under blur alone a cosine mode of wavenumber kappa obeys

    d u / d log(sigma) = -kappa^2 sigma^2 u,

so to first order in log(sigma) the way to level j is the network's times

    m = log(sigma_k / sigma_j) / log(sigma_k / sigma_{k-1}).

The exact factor of the mode is exp(x (1 - s)) with x = kappa^2 sigma_k^2 / 2 and s = (sigma_j / sigma_k)^2, this one is
1 + x log(1 / s): the same to second order in 1 - s where x = 1, and pictures (whose power falls as 1 / kappa^2) have the power
x exp(-2 x) dx in a step, whose mean is x = 1. A step linear in sigma^2 would be the same to second order only at x = 0.

But a residual is more than unblurring: where blur has left nothing of a mode, it removes the sampling noise, all of it in one
step, and m times that would be noise again, m - 1 times as much. So only the part that unblurs is stretched: each cosine mode
by the Wiener filter that takes the prediction p = u_k + residual for the signal and the residual for the noise,

    u_j = p + (m - 1) W residual,    W = p^2 / (p^2 + residual^2).

With as many steps as levels m is 1, and the walk is the one the network was trained for. Fewer steps add less noise in all; a
delta larger by sqrt(m) adds as much variance as before, and helps where noise is all that makes samples differ (pure blur).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from diffusion.network import NetworkConfig
from diffusion.process import ForwardProcess
from diffusion.rng import seeds
from lbm_warp.checks import check_integer
from lbm_warp.heat import cosines
from lbm_warp.random import normal

# Memory that a batch may take: on a CPU, whose caches gain nothing from more, and as a share of what is free on a GPU.
CPU_BYTES = 2**30
CUDA_SHARE = 0.5

Noise = Callable[[int], torch.Tensor]


@torch.inference_mode()
def residual_sampler(
    network: nn.Module,
    u: torch.Tensor,
    process: ForwardProcess,
    seed: torch.Tensor | Noise,
    callback: Callable[[int, torch.Tensor], None] | None = None,
    *,
    start: int | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Walk down the levels: u_{k-1} = v + network(v, k) with v = u_k + delta eps (Rissanen et al. 2023).

    The noise is as important as the step: it is what lets one corrupted image become many pictures. No step waits
    for the device.

    Args:
        network: the reverse network, called as ``network(u, level)``.
        u: images at level ``start``, float32 [N, C, S, S].
        process: the forward process the network was trained on; delta is its ``noise * sampling_noise``.
        seed: one integer a sample, int64 [N], and a sample depends on its own seed alone; or the noise itself, a function of the
            level that returns standard normal numbers like ``u``.
        callback: called as ``callback(level, u)`` after every step.
        start: the level to start from, 1 to K; K if left out.
        levels: number of steps, at most ``start``, which is the default; fewer make a coarser walk (see above).

    Returns:
        Samples, float32 [N, C, S, S], values around [0, 1].

    Raises:
        InputError: if ``start`` or ``levels`` is out of its range.
    """
    visited = walk(process, start, levels)
    noise = seed if callable(seed) else seeded_noise(seed, process, u)
    sigma = process.blur_widths(u.shape[-1])
    modes = cosines(u.shape[-1])[1].to(u)
    delta = process.noise * process.sampling_noise
    for level, below in pairwise(visited):
        u = u + delta * noise(level)
        residual = network(u, torch.full((len(u),), level, device=u.device))
        u = u + residual
        if below < level - 1:
            stretch = np.log(sigma[level] / sigma[below]) / np.log(sigma[level] / sigma[level - 1])
            u = u + (stretch - 1.0) * _unblurring(residual, u, modes)
        if callback is not None:
            callback(below, u)
    return u


@torch.inference_mode()
def resampling_sampler(
    network: nn.Module,
    u: torch.Tensor,
    process: ForwardProcess,
    seed: torch.Tensor | Noise,
    callback: Callable[[int, torch.Tensor], None] | None = None,
    *,
    flow: torch.Tensor | None = None,
    fresh: float = 0.0,
    start: int | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Walk down the levels by way of the clean image: find it, corrupt it again to a lower level, add the noise that is there.

    With u0 the clean image that the network's answer stands for, M_k = m + s_k (A_k(u0) - m) and j < k the level below,

        u_j = M_j + r (u_k - M_k) + sigma_fresh eps,    r^2 sigma_k^2 + sigma_fresh^2 = sigma_j^2.

    Without noise (r = 1) this is cold diffusion's improved sampling (Bansal et al. 2022, algorithm 2); with ``fresh`` = 0 DDIM
    (Song et al. 2021, equation 12) and, under blur and growing noise, soft diffusion's momentum sampler (Daras et al. 2023); with
    ``fresh`` = 1 the ancestral sampler of DDPM (Ho et al. 2020), whose share of fresh noise is

        sigma_fresh^2 = (sigma_j / sigma_k)^2 (sigma_k^2 - (s_k / s_j)^2 sigma_j^2).

    Args:
        network, seed, callback, start: as for :func:`residual_sampler`.
        u: images at level ``start`` without its noise, float32 [N, C, S, S].
        process: the forward process the network was trained on, whose target is ``clean`` or ``noise``.
        flow: seeds of the flows that brought the images to that level, int64 [N]; ``seed`` if left out.
        fresh: share of the fresh noise, 0 to 1.
        levels: number of steps, at most ``start``, which is the default; a step may skip levels.

    Returns:
        Samples, float32 [N, C, S, S], values around [0, 1].

    Raises:
        InputError: if ``start`` or ``levels`` is out of its range.
    """
    visited = walk(process, start, levels)
    flow = seed if flow is None else flow
    noise = seed if callable(seed) else seeded_noise(seed, process, u)
    signal, sigma = (scale.tolist() for scale in process.scales())
    u = u + process.sampling_noise * sigma[visited[0]] * noise(visited[0])
    for level, below in pairwise(visited):
        answer = network(u, torch.full((len(u),), level, device=u.device))
        clean = process.clean_image(answer, u, level)
        ratio = sigma[below] / sigma[level] if sigma[level] > 0.0 else 1.0
        added = sigma[level] ** 2 - (signal[level] / signal[below] * sigma[below]) ** 2
        anew = fresh * ratio * max(added, 0.0) ** 0.5
        kept = ratio if anew == 0.0 else (sigma[below] ** 2 - anew**2) ** 0.5 / sigma[level]
        u = process.mean(clean, below, flow) + kept * (u - process.mean(clean, level, flow))
        if anew > 0.0:
            u = u + anew * noise(below)
        if callback is not None:
            callback(below, u)
    return u


def walk(process: ForwardProcess, start: int | None = None, levels: int | None = None) -> list[int]:
    """The levels visited from ``start`` down to 1 in ``levels`` evenly spaced steps, and 0; arguments as for the sampler.

    Raises:
        InputError: if an argument is out of its range.
    """
    start = process.levels if start is None else start
    check_integer("level", start, 1, process.levels)
    levels = start if levels is None else levels
    # The last step starts from level 1, whatever the number: level 0 has no log(sigma).
    check_integer("levels", levels, min(2, start), start)
    return [*np.linspace(start, 1, levels).round().astype(int).tolist(), 0]


def seeded_noise(seed: torch.Tensor, process: ForwardProcess, like: torch.Tensor) -> Noise:
    """Standard normal noise for images like ``like`` [N, C, S, S], from one seed a sample, int64 [N].

    The seeds of all levels go to the device at once.
    """
    table = seeds(seed[None], "noise", np.arange(process.levels + 1)[:, None]).to(like.device, non_blocking=True)
    return lambda level: normal(table[level], like.shape, like.device)


def spherical(first: Noise, second: Noise, place: torch.Tensor) -> Noise:
    """Noise on the way from one noise to an independent one: standard normal everywhere, exactly the two at its ends.

    Args:
        first, second: noise for images [N, C, S, S].
        place: how far along, 0 to 1, float [N, 1, 1, 1].
    """
    quarter = 0.5 * torch.pi
    return lambda level: torch.sin(quarter * (1.0 - place)) * first(level) + torch.sin(quarter * place) * second(level)


def default_batch(network: NetworkConfig, size: int, device: torch.device) -> int:
    """Images at a time: what fits into half of a GPU's free memory, or into 1 GiB on a CPU, 1 to 256 (64 on a CPU)."""
    if device.type == "cuda":
        budget, most = CUDA_SHARE * torch.cuda.mem_get_info(device)[0], 256
    else:
        budget, most = CPU_BYTES, 64
    return int(min(max(budget // activation_bytes(network, size), 1), most))


def activation_bytes(network: NetworkConfig, size: int) -> int:
    """About what the network holds of one image of ``size`` x ``size`` pixels: features kept for the way up, and work space."""
    maps = [network.width * multiplier * (size >> depth) ** 2 for depth, multiplier in enumerate(network.multipliers)]
    # Entering the way up, a block holds its input joined to the kept features, that normalised, and that activated.
    return 4 * ((network.blocks + 1) * sum(maps) + 12 * max(maps))


def _unblurring(residual: torch.Tensor, prediction: torch.Tensor, modes: torch.Tensor) -> torch.Tensor:
    """The part of the residual that is no removal of noise: every cosine mode by its Wiener filter."""
    signal, rest = (modes @ field @ modes.T for field in (prediction, residual))
    kept = rest * signal.square() / (signal.square() + rest.square()).clamp_min(1e-12)
    return modes.T @ kept @ modes
