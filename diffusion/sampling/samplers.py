"""Samplers: from level K back to level 0.

Fewer steps than levels (residual sampler). The network predicts the step to the level below, u_{k-1} - u_k. A step from level k to
j < k - 1 multiplies that prediction. Under blur alone a cosine mode of wavenumber kappa obeys

    d u / d log(sigma) = -kappa^2 sigma^2 u,

so to first order in log(sigma) the step to level j is the predicted one times

    m = log(sigma_k / sigma_j) / log(sigma_k / sigma_{k-1}).

The exact factor of the mode is exp(x (1 - s)) with x = kappa^2 sigma_k^2 / 2 and s = (sigma_j / sigma_k)^2; this one is 1 + x log(1
/ s). The two agree to second order in 1 - s at x = 1. In pictures, whose power falls as 1 / kappa^2, the modes that change in a
step have the power x exp(-2 x) dx, with mean x = 1. A step linear in sigma^2 would agree to second order only at x = 0.

The prediction also removes sampling noise, in the modes that the blur has erased. All noise is removed in one step; multiplied by m
the step would add m - 1 times the noise. So only the part that undoes blur is multiplied: each cosine mode by the Wiener filter
that takes the prediction p = u_k + residual for the signal and the residual for the noise,

    u_j = p + (m - 1) W residual,    W = p^2 / (p^2 + residual^2).

With as many steps as levels m is 1, and the sampler is the one the network was trained for. Fewer steps add less noise in all. A
delta larger by sqrt(m) adds the same variance in all, and helps where noise is the only difference between samples (pure blur).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from diffusion.corruption import Corruption
from diffusion.network import NetworkConfig
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp.checks import check_integer
from lbm_warp.heat import cosines
from lbm_warp.random import normal

# Memory for a batch: on a CPU, where larger batches are no faster, and as a share of a GPU's free memory.
CPU_BYTES = 2**30
CUDA_SHARE = 0.5

Noise = Callable[[int], torch.Tensor]
Callback = Callable[[int, torch.Tensor], None]


@torch.inference_mode()
def residual_sampler(
    network: nn.Module,
    u: torch.Tensor,
    corruption: Corruption,
    seed: torch.Tensor | Noise,
    callback: Callback | None = None,
    *,
    start: int | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Go down the levels by u_{k-1} = v + network(v, k) with v = u_k + delta eps (Rissanen et al. 2023, algorithm 2).

    The noise lets one corrupted image become many different pictures. No step waits for the device.

    Args:
        network: the reverse network, called as ``network(u, level)``.
        u: images at level ``start``, float32 [N, C, H, W].
        corruption: the forward process the network was trained on; delta is its ``noise * sampling_noise``.
        seed: one integer a sample, int64 [N]; a sample depends on its own seed alone. Or the noise itself, a function of the level
            that returns standard normal numbers in the shape of ``u``.
        callback: called as ``callback(level, u)`` after every step.
        start: the level to start from, 1 to K; K by default.
        levels: number of steps, at most ``start``, which is the default; with fewer, steps skip levels (see above).

    Returns:
        Samples, float32 [N, C, H, W], values around [0, 1].

    Raises:
        InputError: if ``start`` or ``levels`` is out of its range.
    """
    visited = visited_levels(corruption, start, levels)
    noise = seed if callable(seed) else seeded_noise(seed, corruption, u)
    sigma = corruption.sigma
    rows, columns = (cosines(side)[1].to(u) for side in u.shape[2:])
    delta = corruption.process.noise * corruption.process.sampling_noise
    for level, below in pairwise(visited):
        u = u + delta * noise(level)
        residual = network(u, torch.full((len(u),), level, device=u.device))
        u = u + residual
        if below < level - 1:
            factor = np.log(sigma[level] / sigma[below]) / np.log(sigma[level] / sigma[level - 1])
            u = u + (factor - 1.0) * _wiener(residual, u, rows, columns)
        if callback is not None:
            callback(below, u)
    return u


@torch.inference_mode()
def resampling_sampler(
    denoise: Callable[[torch.Tensor, int], torch.Tensor],
    u: torch.Tensor,
    corruption: Corruption,
    seed: torch.Tensor | Noise,
    callback: Callback | None = None,
    *,
    flow: torch.Tensor | None = None,
    start: int | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Go down the levels by way of the clean image: predict it, corrupt it again to a lower level, add noise.

    With x the predicted clean image, M_k = m + s_k (A_k(x) - m) and j < k the level below,

        u_j = M_j + r (u_k - M_k) + sigma_fresh eps,    r^2 sigma_k^2 + sigma_fresh^2 = sigma_j^2.

    Without noise (r = 1) this is cold diffusion's improved sampling (Bansal et al. 2022, algorithm 2). Without fresh noise it is
    DDIM (Song et al. 2021, equation 12). The sampler ``ancestral`` adds the process's share ``fresh`` = c of it,

        sigma_fresh^2 = c^2 (sigma_j / sigma_k)^2 v,    v = sigma_k^2 - (s_k / s_j)^2 sigma_j^2,

    with c = 1 the posterior of DDPM (Ho et al. 2020, equation 7). With ``variance`` fixedlarge r is the same and the noise has the
    variance c^2 v of the forward process (section 3.2 there); under blur this is soft diffusion's momentum sampler (Daras et al.
    2023, section 3.3), which changes the blur by the predicted image and the noise by a step of the reverse diffusion.

    Steps above the noise-to-signal ratio ``second_order_above`` extrapolate the clean image in h = log(s / sigma), from the
    prediction x_i of the level before: x + (h_j - h_k) / (2 (h_k - h_i)) (x - x_i). They have second order: without blur and flow
    this is DPM-Solver++(2M), and with c = 1 its stochastic form (Lu et al. 2022, algorithm 2 and appendix C).

    Args:
        denoise: called as ``denoise(u, level)``; gives the clean images that the network predicts.
        u: images at level ``start`` without their noise, float32 [N, C, H, W].
        corruption: the forward process the network was trained on; its sampler is ``resample`` or ``ancestral``.
        seed, callback, start: as for :func:`residual_sampler`.
        flow: seeds of the flows that corrupted the images, int64 [N]; ``seed`` by default.
        levels: number of steps, at most ``start``; the process's by default. With fewer than ``start``, steps skip levels.

    Returns:
        Samples, float32 [N, C, H, W], values around [0, 1].

    Raises:
        InputError: if ``start`` or ``levels`` is out of its range.
    """
    visited = visited_levels(corruption, start, levels)
    flow = seed if flow is None else flow
    noise = seed if callable(seed) else seeded_noise(seed, corruption, u)
    process, signal, sigma = corruption.process, corruption.signal.tolist(), corruption.noise.tolist()
    second_order = float("inf") if process.second_order_above is None else process.second_order_above
    u = u + process.sampling_noise * sigma[visited[0]] * noise(visited[0])
    previous = None
    for level, below in pairwise(visited):
        predicted = clean = denoise(u, level)
        if previous is not None and below > 0 and 2.0 * sigma[level] / signal[level] > second_order:
            before, last = previous
            here, there, far = (np.log(signal[k] / sigma[k]) for k in (level, below, before))
            clean = predicted + (there - here) / (2.0 * (here - far)) * (predicted - last)
        previous = level, predicted
        kept, _, anew = noise_scales(corruption, level, below)
        u = corruption.mean(clean, below, flow) + kept * (u - corruption.mean(clean, level, flow))
        if anew > 0.0:
            u = u + anew * noise(below)
        if callback is not None:
            callback(below, u)
    return u


@torch.inference_mode()
def posterior_sampler(
    denoise: Callable[[torch.Tensor, int], torch.Tensor],
    u: torch.Tensor,
    corruption: Corruption,
    seed: torch.Tensor | Noise,
    callback: Callback | None = None,
    *,
    start: int | None = None,
    levels: int | None = None,
) -> torch.Tensor:
    """Draw every cosine mode of the level below from its posterior, given the level and the clean image.

    A mode has a_k = s_k d_k of the clean image and white noise, as if it had a noise schedule of its own (Hoogeboom and Salimans
    2023, section 4 and appendix A). With b = a_k / a_j and v = sigma_k^2 - b^2 sigma_j^2, the noise that is added from j to k,

        p(u_j | u_k, x) = N(w (b / v u_k + a_j / sigma_j^2 x), w),    1 / w = b^2 / v + 1 / sigma_j^2.

    Args:
        denoise, u, seed, callback, start, levels: as for :func:`resampling_sampler`.
        corruption: the forward process the network was trained on: walls and no flow.

    Returns:
        Samples, float32 [N, C, H, W], values around [0, 1].

    Raises:
        InputError: if ``start`` or ``levels`` is out of its range.
    """
    visited = visited_levels(corruption, start, levels)
    noise = seed if callable(seed) else seeded_noise(seed, corruption, u)
    rows, columns = (cosines(side)[1].to(u) for side in u.shape[2:])
    u = u + corruption.process.sampling_noise * float(corruption.noise[visited[0]]) * noise(visited[0])
    for level, below in pairwise(visited):
        clean = denoise(u, level)
        if below > 0:
            of_image, of_clean, variance = posterior_scales(corruption, level, below, u)
            image, target = (rows @ (picture - 0.5) @ columns.T for picture in (u, clean))
            # White noise has the same distribution in the modes as in the pixels.
            mean = of_image.to(u) * image + of_clean.to(u) * target
            u = 0.5 + rows.T @ (mean + variance.sqrt().to(u) * noise(below)) @ columns
        else:
            u = clean
        if callback is not None:
            callback(below, u)
    return u


def noise_scales(corruption: Corruption, level: int, below: int) -> tuple[float, float, float]:
    """Noise of a step of :func:`resampling_sampler` from level k to j.

    Returns:
        The factor r of the noise of level k, sigma_fresh, and the standard deviation of the noise that the sampler adds: another
        one with ``variance`` fixedlarge.
    """
    process = corruption.process
    (signal, signal_below), (sigma, sigma_below) = (
        (float(scale[level]), float(scale[below])) for scale in (corruption.signal, corruption.noise)
    )
    ratio = sigma_below / sigma if sigma > 0.0 else 1.0
    share = process.fresh if process.sampler == "ancestral" else 0.0
    added = max(sigma**2 - (signal / signal_below * sigma_below) ** 2, 0.0) ** 0.5
    fresh = share * ratio * added
    kept = ratio if fresh == 0.0 else (sigma_below**2 - fresh**2) ** 0.5 / sigma
    return kept, fresh, share * added if process.variance == "fixedlarge" and fresh > 0.0 else fresh


def posterior_scales(
    corruption: Corruption, level: int | torch.Tensor, below: int | torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posterior of every cosine mode in a step of :func:`posterior_sampler`: the factors of u_k and of x in its mean, and its
    variance w; float64 [N, 1, H, W], or [1, 1, H, W] for one level."""
    (here, there), (noise, variance) = (
        [torch.as_tensor(scale)[torch.as_tensor(k).reshape(-1)][:, None, None, None].to(like.device) for k in (level, below)]
        for scale in (corruption.signal, corruption.noise**2)
    )
    here, there = (scale * corruption.transfer(k, like.double()) for scale, k in ((here, level), (there, below)))
    factor = here / there
    added = noise - factor.square() * variance
    posterior = 1.0 / (factor.square() / added + 1.0 / variance)
    return posterior * factor / added, posterior * there / variance, posterior


def visited_levels(corruption: Corruption, start: int | None = None, steps: int | None = None) -> list[int]:
    """The levels a sampler visits: from ``start`` down to 1, then 0.

    They are evenly spaced, or with ``spacing`` = edm nearest to the noise-to-signal ratios of Karras et al. (2022, equation 5),
    whose roots of order 7 are evenly spaced.

    Args:
        corruption: the forward process.
        start: 1 to K; K by default.
        steps: number of steps, 2 to ``start`` (1 where ``start`` is 1); by default the process's, in proportion to ``start``.

    Raises:
        InputError: if an argument is out of its range.
    """
    last, process = corruption.levels, corruption.process
    start = last if start is None else start
    check_integer("level", start, 1, last)
    least = min(2, start)
    steps = max(least, -(-min(process.steps or last, last) * start // last)) if steps is None else steps
    # The last step always starts from level 1: level 0 has no log(sigma).
    check_integer("levels", steps, least, start)
    if process.spacing == "edm":
        root = (corruption.noise[1:] / corruption.signal[1:]) ** (1.0 / 7.0)
        levels = 1 + np.abs(root[:, None] - np.linspace(root[start - 1], root[0], steps)).argmin(axis=0)
        # Every step goes down, and leaves a level for each of those after it.
        for i in range(1, steps):
            levels[i] = max(min(levels[i], levels[i - 1] - 1), steps - i)
    else:
        levels = np.linspace(start, 1, steps).round().astype(int)
    return [*levels.tolist(), 0]


def seeded_noise(seed: torch.Tensor, corruption: Corruption, like: torch.Tensor) -> Noise:
    """Noise of unit variance in the shape of ``like`` [N, C, H, W] for all levels, from one seed a sample, int64 [N].

    The seeds of all levels go to the device at once.
    """
    table = seeds(seed[None], "noise", np.arange(corruption.levels + 1)[:, None]).to(like.device, non_blocking=True)
    return lambda level: corruption.coloured(normal(table[level], like.shape, like.device))


def noise_of_parts(first: Noise, later: Noise, start: int) -> Noise:
    """Noise that is ``first`` at the level that a sampler starts from, and ``later`` below it."""
    return lambda level: first(level) if level == start else later(level)


def spherical(first: Noise, second: Noise, place: torch.Tensor) -> Noise:
    """Noise between two independent noises of images [N, C, H, W], by :func:`circular`."""
    return lambda level: circular(first(level), second(level), place)


def circular(first: torch.Tensor, second: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Interpolation on a circle between independent noises of one variance: that variance everywhere, the two at the ends.

    Args:
        first, second: noise with mean zero, float [N, C, H, W].
        place: position between the two, 0 to 1, float [N, 1, 1, 1].
    """
    quarter = 0.5 * torch.pi
    return torch.sin(quarter * (1.0 - place)) * first + torch.sin(quarter * place) * second


def default_batch(network: NetworkConfig, size: Size, device: torch.device) -> int:
    """Images at a time: as many as fit into half of a GPU's free memory, or into 1 GiB on a CPU; 1 to 256 (64 on a CPU)."""
    if device.type == "cuda":
        budget, most = CUDA_SHARE * torch.cuda.mem_get_info(device)[0], 256
    else:
        budget, most = CPU_BYTES, 64
    return int(min(max(budget // activation_bytes(network, size), 1), most))


def activation_bytes(network: NetworkConfig, size: Size) -> int:
    """Estimate of the memory that the network needs for one image: the features kept for the way up, and work space."""
    maps = [
        network.width * multiplier * (size.height >> depth) * (size.width >> depth)
        for depth, multiplier in enumerate(network.multipliers)
    ]
    # A block at the start of the way up holds its input joined to the kept features, that normalised, and that activated.
    return 4 * ((network.blocks + 1) * sum(maps) + 12 * max(maps))


def _wiener(residual: torch.Tensor, prediction: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The part of the residual that undoes blur: every cosine mode multiplied by its Wiener filter."""
    signal, rest = (rows @ field @ columns.T for field in (prediction, residual))
    kept = rest * signal.square() / (signal.square() + rest.square()).clamp_min(1e-12)
    return rows.T @ kept @ columns
