"""Likelihood of pictures under a run: the variational bound of its stochastic sampler, in bits a dimension.

With the levels K = k_T > ... > k_1 > k_0 = 0 that the sampler visits, q the distribution of the corrupted pictures u_k of a picture
x, and p that of the sampler, all given the flow's seed (Ho et al. 2020, equation 5),

    -log p(x) <= KL(q(u_K | x) | p(u_K)) + sum over t >= 2 of E KL(q(u_j | u_k, x) | p(u_j | u_k)) - E log p(x | u_{k_1}).

p(u_K) is a mixture of Gaussians, p(x | u) a Gaussian rounded to 8 bits; all others are Gaussian. The steps are the samplers':

- ``ancestral``: the means are M_j + r (u_k - M_k), of x and of the predicted picture, the variances those of ``noise_scales``.
- ``posterior``: the same, mode by mode (Hoogeboom and Salimans 2023).
- ``residual``: q(u_j | u_k, x) = q(u_j | x) = N(M_j(x), sigma^2), p = N(what the network gives, delta^2) (Rissanen et al. 2023,
  equation 11). All K levels are visited, as it was trained.

Steps have first order, as only these have a density. The standard deviation of p(x | u) is the root mean square error of the
predicted picture on pictures that the run learned; delta for ``residual``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from diffusion.rng import seeds, uniform
from diffusion.sampling.samplers import noise_scales, posterior_scales, seeded_noise, visited_levels
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

STEPS_DRAWN = 16
BATCH = 64
TENTHS = 10
HALF_BIN = 0.5 / 255.0


@dataclass(frozen=True)
class Likelihood:
    """A bound of -log2 p(x) a dimension, the mean over pictures, and its parts."""

    pictures: int
    steps: int
    """Number of steps of the sampler."""
    bits_per_dimension: float
    standard_error: float
    """Of the mean, from the spread over pictures."""
    start: float
    """Part of the first level, KL(q(u_K | x) | p(u_K))."""
    end: float
    """Part of the last step, -log p(x | u)."""
    by_tenth: tuple[float, ...]
    """Parts of the steps between, from the tenth of the steps next to the picture to that next to noise."""


def likelihood(
    pipeline: Pipeline,
    read: Callable[[np.ndarray], torch.Tensor],
    index: np.ndarray,
    learned: np.ndarray,
    seed: int = 0,
    levels: int | None = None,
) -> Likelihood:
    """The bound for pictures. Of the steps between the ends each picture gets 16, spread over all by its own seed.

    Args:
        pipeline: a run.
        read: called as ``read(index)``: pictures of these numbers, float32 [n, C, H, W] in [0, 1], multiples of 1/255.
        index: numbers of the pictures, int64.
        learned: numbers of some pictures that the run learned, int64.
        seed: of flows, noise, and choice of steps.
        levels: number of steps; K by default.

    Raises:
        InputError: if the process has no density, because its sampler has steps without fresh noise.
    """
    corruption, process = pipeline.corruption, pipeline.corruption.process
    check_density(pipeline)
    if process.sampler == "residual" and levels not in (None, corruption.levels):
        raise InputError(f"the likelihood of sampler residual needs all its {corruption.levels} levels, got {levels}")
    steps = list(pairwise(visited_levels(corruption, None, levels or corruption.levels)))
    bound = Bound(pipeline, steps)
    bound.deviation = bound.end_deviation(read, learned, seed)
    parts = []
    for first in tqdm(range(0, len(index), BATCH), desc="likelihood", unit="batch", leave=False):
        numbers = index[first : first + BATCH]
        parts.append(bound.terms(read(numbers).to(pipeline.device), seeds(seed, "likelihood", numbers)))
    bits = math.log(2.0) * math.prod(pipeline.config.shape)
    start, between, end = (torch.cat(part).double().cpu() / bits for part in zip(*parts, strict=True))
    total = start + between.sum(dim=1) + end
    return Likelihood(
        pictures=len(total),
        steps=len(steps),
        bits_per_dimension=total.mean().item(),
        standard_error=(total.std() / len(total) ** 0.5).item(),
        start=start.mean().item(),
        end=end.mean().item(),
        by_tenth=tuple(between.mean(dim=0).tolist()),
    )


def check_density(pipeline: Pipeline) -> None:
    """Raise InputError unless the sampler of a run adds noise at the start and in every step above the last."""
    corruption, process = pipeline.corruption, pipeline.corruption.process
    adds = process.sampler != "resample" and process.noise * process.sampling_noise > 0.0
    if process.sampler == "ancestral":
        adds &= all(noise_scales(corruption, level, level - 1)[2] > 0.0 for level in range(2, corruption.levels + 1))
    if not adds:
        name = pipeline.config.process_name
        raise InputError(
            f"{name} has no likelihood with sampling noise {process.sampling_noise:g}: its sampler has steps "
            "without fresh noise; runs of fluid, ddpm, blurring, ihd and the beyond-blur family have one, with noise above 0"
        )


class Bound:
    """The terms of the bound for one picture and one draw of flow and noise each, in nats."""

    def __init__(self, pipeline: Pipeline, steps: list[tuple[int, int]]) -> None:
        self.pipeline, self.corruption = pipeline, pipeline.corruption
        self.process = pipeline.corruption.process
        self.steps = steps
        self.predict = pipeline.predictor(None, 1.0)
        self.delta = self.process.noise * self.process.sampling_noise
        self.deviation = self.delta

    def terms(self, x: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start [N], steps between by tenth [N, 10], and end [N] of pictures float32 [N, C, H, W], with seeds int64 [N]."""
        between = x.new_zeros((len(x), TENTHS), dtype=torch.float64)
        count = len(self.steps) - 1
        draws = min(STEPS_DRAWN, count)
        place = uniform(seed, "step")
        for draw in range(draws):
            # Counted from the picture: step 0 is the last, whose term is the end.
            number = 1 + ((draw + place) / draws * count).long().clamp(max=count - 1)
            level, below = (torch.tensor([self.steps[-1 - i][end] for i in number.tolist()]) for end in (0, 1))
            term = self.step(x, level, below, seeds(seed, "draw", draw))
            tenth = (number - 1) * TENTHS // count
            between[torch.arange(len(x)), tenth] += term * (count / draws)
        return self.start(x, seed), between, self.end(x, seed)

    def step(self, x: torch.Tensor, level: torch.Tensor, below: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """KL(q(u_j | u_k, x) | p(u_j | u_k)) at one draw of u_k, float64 [N]."""
        u, flow = self.corrupted(x, level, seed), seed
        if self.process.sampler == "residual":
            error = self.corruption.mean(x, below, flow) - self.below(u, level)
            scale, own = self.delta, float(self.process.noise)
            return self._gaussian(error, torch.full((len(x),), own), torch.full((len(x),), scale))
        clean = self.pipeline.denoise(u, level, flow, self.predict)
        if self.process.sampler == "posterior":
            _, factor, variance = posterior_scales(self.corruption, level, below, u)
            rows, columns = (cosines(side)[1].to(x) for side in x.shape[2:])
            modes = (rows @ (x - clean) @ columns.T).double()
            return 0.5 * (factor.square() / variance * modes.square()).flatten(1).sum(dim=1)
        pairs = zip(level.tolist(), below.tolist(), strict=True)
        kept, fresh, added = torch.tensor([noise_scales(self.corruption, *pair) for pair in pairs]).T
        error = self.corruption.mean(x, below, flow) - self.corruption.mean(clean, below, flow)
        still = self.corruption.mean(x, level, flow) - self.corruption.mean(clean, level, flow)
        return self._gaussian(error - kept.to(x)[:, None, None, None] * still, fresh, added)

    def start(self, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """log q(u_K | x) - log p(u_K) at one draw of u_K, float64 [N]; p is a mixture over the pictures of the prior."""
        last = self.corruption.levels
        own, scale = self._start_scales()
        noise = seeded_noise(seed, self.corruption, x)(last)
        u = self.corruption.mean(x, last, seed) + own * noise
        logs = [
            -self._energy(u - self.corruption.mean(picture.expand_as(u), last, seed)) / (2.0 * scale**2)
            for picture in self.pipeline.prior.pictures(self.corruption.size).to(x).split(1)
        ]
        mixture = torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs))
        return -0.5 * self._energy(noise) - mixture + x[0].numel() * math.log(scale / own)

    def end(self, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """-log p(x | u) at one draw of u, float64 [N]."""
        level = torch.full((len(x),), self.steps[-1][0])
        predicted = self._last(x, level, seeds(seed, "end"))
        return -rounded_gaussian(x, predicted, self.deviation).flatten(1).sum(dim=1)

    def end_deviation(self, read: Callable[[np.ndarray], torch.Tensor], learned: np.ndarray, seed: int) -> float:
        """Standard deviation of p(x | u): the rms error of the last step on these pictures, at least that of rounding to 8 bits."""
        if self.process.sampler == "residual":
            return self.delta
        squares = []
        for first in range(0, len(learned), BATCH):
            numbers = learned[first : first + BATCH]
            x = read(numbers).to(self.pipeline.device)
            predicted = self._last(x, torch.full((len(x),), self.steps[-1][0]), seeds(seed, "deviation", numbers))
            squares.append((predicted - x).double().square().flatten())
        return max(torch.cat(squares).mean().item(), (2.0 * HALF_BIN) ** 2 / 12.0) ** 0.5

    def corrupted(self, x: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """A draw of q(u_k | x)."""
        return self.corruption.corrupt(x, level, seed)

    def below(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """What the network of the residual sampler gives for the level below."""
        return u + self.predict(u, level.to(u.device))

    def _last(self, x: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """The picture that the last step gives, from a draw of its level."""
        u = self.corrupted(x, level, seed)
        return self.below(u, level) if self.process.sampler == "residual" else self.pipeline.denoise(u, level, seed, self.predict)

    def _start_scales(self) -> tuple[float, float]:
        """Standard deviation of u_K in q, and in p."""
        own = float(self.corruption.noise[-1])
        return own, self.delta if self.process.sampler == "residual" else self.process.sampling_noise * own

    def _gaussian(self, difference: torch.Tensor, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """KL of Gaussians whose means have a difference [N, C, H, W], with standard deviations [N] of the first and the second."""
        ratio = (own / other).double().to(difference.device).square()
        spread = 0.5 * difference[0].numel() * (ratio - 1.0 - ratio.log())
        return spread + self._energy(difference) / (2.0 * other.double().to(difference.device).square())

    def _energy(self, field: torch.Tensor) -> torch.Tensor:
        """Sum of squares, every mode in units of the noise's variance there, float64 [N]."""
        if self.corruption.noise_power is not None:
            rows, columns = (cosines(side)[1].to(field) for side in field.shape[2:])
            field = rows @ field @ columns.T / self.corruption.noise_power.sqrt().to(field)
        return field.double().square().flatten(1).sum(dim=1)


def rounded_gaussian(x: torch.Tensor, mean: torch.Tensor, deviation: float) -> torch.Tensor:
    """Logarithm of the probability of 8-bit values x in [0, 1] under a Gaussian rounded to them, with its tails at 0 and 1.

    Args:
        x, mean: floating-point, of one shape.
        deviation: standard deviation of the Gaussian.

    Returns:
        float64 in that shape.
    """
    lower, upper = ((x.double() + side * HALF_BIN - mean.double()) / deviation for side in (-1, 1))
    lower = torch.where(x < HALF_BIN, -math.inf, lower)
    upper = torch.where(x > 1.0 - HALF_BIN, math.inf, upper)
    # log(Phi(upper) - Phi(lower)), on the side where both are small.
    flip = lower > 0.0
    small, big = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_small, log_big = torch.special.log_ndtr(small), torch.special.log_ndtr(big)
    return log_big + torch.log1p(-torch.exp(log_small - log_big))
