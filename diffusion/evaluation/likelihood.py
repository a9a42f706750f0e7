"""Likelihood of pictures under a run: the variational bound of its stochastic sampler, in bits a dimension.

With the levels K = k_T > ... > k_1 > k_0 = 0 that the sampler visits, q the distribution of the corrupted pictures u_k of a picture
x, and p that of the sampler, all given the flow's seed (Ho et al. 2020, equation 5),

    -log p(x) <= KL(q(u_K | x) | p(u_K)) + sum over t >= 2 of E KL(q(u_j | u_k, x) | p(u_j | u_k)) - E log p(x | u_{k_1}).

p(u_K) is a mixture of Gaussians, p(x | u) a Gaussian rounded to 8 bits; all others are Gaussian. The terms of the steps are those
of the samplers (``Sampler.divergence``). Steps have first order, as only these have a density. The standard deviation of p(x | u)
is the sampler's, or the root mean square error of the predicted picture on pictures that the run learned.

An ODE has a density too, by the change of variables (``diffusion.samplers.ode``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion.rng import seeds, uniform
from diffusion.samplers.base import energy
from lbm_warp.checks import InputError
from lbm_warp.random import normal

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
    steps: int | None = None,
) -> Likelihood:
    """The bound for pictures. Of the steps between the ends each picture gets 16, spread over all by its own seed.

    Args:
        pipeline: a run.
        read: called as ``read(index)``: pictures of these numbers, float32 [n, C, H, W] in [0, 1], multiples of 1/255.
        index: numbers of the pictures, int64.
        learned: numbers of some pictures that the run learned, int64.
        seed: of flows, noise, and choice of steps.
        steps: number of steps; K by default.

    Raises:
        InputError: if the process has no density, because its sampler has steps without fresh noise.
    """
    forward, sampler = pipeline.forward, pipeline.method.sampler
    check_density(pipeline)
    if sampler.needs_step and steps not in (None, forward.levels):
        raise InputError(f"the likelihood of sampler {type(sampler).__name__} needs all its {forward.levels} levels, got {steps}")
    visited = sampler.visited(forward, None, steps or forward.levels)
    measured: Flow | Bound = (
        Flow(pipeline, visited) if sampler.integrates else Bound(pipeline, list(pairwise(visited)), read, learned, seed)
    )
    parts = []
    for first in tqdm(range(0, len(index), BATCH), desc="likelihood", unit="batch", leave=False):
        numbers = index[first : first + BATCH]
        parts.append(measured.terms(read(numbers).to(pipeline.device), seeds(seed, "likelihood", numbers)))
    bits = math.log(2.0) * math.prod(pipeline.config.shape)
    start, between, end = (torch.cat(part).double().cpu() / bits for part in zip(*parts, strict=True))
    total = start + between.sum(dim=1) + end
    return Likelihood(
        pictures=len(total),
        steps=len(visited) - 1,
        bits_per_dimension=total.mean().item(),
        standard_error=(total.std() / len(total) ** 0.5).item(),
        start=start.mean().item(),
        end=end.mean().item(),
        by_tenth=tuple(between.mean(dim=0).tolist()),
    )


def check_density(pipeline: Pipeline) -> None:
    """Raise InputError unless the sampler of a run adds noise at the start and in every step above the last."""
    try:
        pipeline.method.sampler.check_density(pipeline.forward)
    except InputError as error:
        raise InputError(f"{pipeline.config.process_name} has {error}") from None


class Bound:
    """The terms of the bound for one picture and one draw of flow and noise each, in nats."""

    def __init__(
        self,
        pipeline: Pipeline,
        steps: list[tuple[int, int]],
        read: Callable[[np.ndarray], torch.Tensor],
        learned: np.ndarray,
        seed: int,
    ) -> None:
        self.pipeline, self.forward, self.sampler = pipeline, pipeline.forward, pipeline.method.sampler
        self.steps = steps
        self.deviation = self.end_deviation(read, learned, seed)

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
        return self.sampler.divergence(self.pipeline.reverse(seed), x, self.corrupted(x, level, seed), level, below)

    def start(self, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """log q(u_K | x) - log p(u_K) at one draw of u_K, float64 [N]; p is a mixture over the pictures of the prior."""
        forward, last = self.forward, self.forward.levels
        own, scale = float(forward.noise[-1]), self.sampler.start_scale(forward)
        noise = forward.seeded_noise(seed, x)(last)
        u = forward.mean(x, last, seed) + own * noise
        log_start = log_density_of_start(self.pipeline, u, seed, scale)
        # Both without the constant of a Gaussian of unit variance.
        return -0.5 * energy(forward, noise) - log_start - x[0].numel() * math.log(own)

    def end(self, x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """-log p(x | u) at one draw of u, float64 [N]."""
        level = torch.full((len(x),), self.steps[-1][0])
        predicted = self._last(x, level, seeds(seed, "end"))
        return -rounded_gaussian(x, predicted, self.deviation).flatten(1).sum(dim=1)

    def end_deviation(self, read: Callable[[np.ndarray], torch.Tensor], learned: np.ndarray, seed: int) -> float:
        """Standard deviation of p(x | u): the rms error of the last step on these pictures, at least that of rounding to 8 bits."""
        if (known := self.sampler.end_deviation(self.forward)) is not None:
            return known
        squares = []
        for first in range(0, len(learned), BATCH):
            numbers = learned[first : first + BATCH]
            x = read(numbers).to(self.pipeline.device)
            predicted = self._last(x, torch.full((len(x),), self.steps[-1][0]), seeds(seed, "deviation", numbers))
            squares.append((predicted - x).double().square().flatten())
        return max(torch.cat(squares).mean().item(), (2.0 * HALF_BIN) ** 2 / 12.0) ** 0.5

    def corrupted(self, x: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """A draw of q(u_k | x)."""
        return self.forward.corrupt(x, level, seed)

    def _last(self, x: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """The picture that the last step gives, from a draw of its level."""
        return self.sampler.last_image(self.pipeline.reverse(seed), self.corrupted(x, level, seed), level)


class Flow:
    """The terms of the exact density of an ODE (``ODE.log_density``), in nats: pictures are taken for level 1.

    Eight-bit values are points in bins; a picture is drawn evenly from its bins, and the density there bounds the probability of
    the bin (uniform dequantization, Theis et al. 2016).
    """

    def __init__(self, pipeline: Pipeline, visited: list[int]) -> None:
        self.pipeline, self.sampler, self.visited = pipeline, pipeline.method.sampler, visited[:-1]

    def terms(self, x: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Start [N], the change of variables [N, 1], and the volume of the bins [N] of pictures float32 [N, C, H, W]."""
        spread = torch.special.ndtr(normal(seeds(seed, "dequantization"), x.shape, x.device)) - 0.5
        u, change = self.sampler.log_density(self.pipeline.reverse(seed), x + spread / 255.0, self.visited, seed)
        scale = self.sampler.start_scale(self.pipeline.forward)
        start = log_density_of_start(self.pipeline, u, seed, scale) - 0.5 * math.log(2.0 * math.pi) * x[0].numel()
        return -start, -change[:, None], torch.full_like(change, math.log(255.0) * x[0].numel())


def log_density_of_start(pipeline: Pipeline, u: torch.Tensor, seed: torch.Tensor, scale: float) -> torch.Tensor:
    """Logarithm of the density of images [N, C, H, W] among the starts of sampling, but for (2 pi)^(-D/2), float64 [N].

    It is a mixture of Gaussians of standard deviation ``scale`` about level K of the pictures of the prior.
    """
    forward, last = pipeline.forward, pipeline.forward.levels
    logs = [
        -energy(forward, u - forward.mean(picture.expand_as(u), last, seed)) / (2.0 * scale**2)
        for picture in pipeline.prior.pictures(pipeline.config.size).to(u).split(1)
    ]
    return torch.logsumexp(torch.stack(logs), dim=0) - math.log(len(logs)) - u[0].numel() * math.log(scale)


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
