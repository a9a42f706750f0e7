"""Analysis of variance of samples: how much is due to the start, to the flow and to the noise, alone and together.

Samples are made for every combination of some starts, flows and noises. With equally many values a of each factor, all of them
random, the expected mean squares of the classical analysis (Scheffe 1959) give unbiased estimates of the components of variance:

    three factors     s_abc = MS_abc
    two               s_ab  = (MS_ab - MS_abc) / a
    one               s_a   = (MS_a - MS_ab - MS_ac + MS_abc) / a^2

They add up to the variance of a sample whose start, flow and noise are all its own.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch

from diffusion.evaluation.features import FeatureExtractor, to_uint8
from diffusion.rng import seeds
from lbm_warp.checks import check_integer

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

FACTORS = ("start", "flow", "noise")
VALUES = 6


def analysis_of_variance(
    pipeline: Pipeline, extractor: FeatureExtractor | None = None, *, values: int = VALUES, seed: int = 0, steps: int | None = None
) -> dict[str, dict[str, float]]:
    """Components of the variance of a run's samples, as shares of their sum.

    The start is the picture of the prior and the noise of level K; the flow is one seed for all levels; the noise is what the
    sampler adds below level K.

    Args:
        pipeline: a run.
        extractor: features to look at beside the pixels.
        values: values of each factor, at least 2; values^3 samples are made.
        seed: of all of them.
        steps: number of steps of the sampler.

    Returns:
        For ``pixels``, and the features by their name: share by factor (``start``, ``start x flow``, ...). An estimate of a small
        share may be below 0.
    """
    check_integer("values", values, 2)
    number = torch.arange(values)
    columns = torch.cartesian_prod(number, number, number).T
    start, flow, noise = (seeds(seed, f"variance {name}", column.numpy()) for name, column in zip(FACTORS, columns, strict=True))
    pictures = pipeline.from_seeds(start, flow, noise, steps=steps)
    measured = {"pixels": pictures.flatten(1)}
    if extractor is not None and extractor.name != "pixels":
        measured[extractor.name] = extractor(to_uint8(pictures).to(pipeline.device)).cpu()
    return {name: components(seen.double().unflatten(0, (values,) * 3)) for name, seen in measured.items()}


def components(measured: torch.Tensor) -> dict[str, float]:
    """Components of variance of numbers [a, a, a, D] by their three factors, summed over D.

    Returns:
        Their shares of their sum, all 0 if that is 0.
    """
    values, axes = len(measured), range(len(FACTORS))
    subsets = [subset for size in (1, 2, 3) for subset in combinations(axes, size)]
    effects: dict[tuple[int, ...], torch.Tensor] = {(): measured.mean(dim=(0, 1, 2), keepdim=True)}
    squares = {}
    for subset in subsets:
        others = [axis for axis in axes if axis not in subset]
        mean = measured.mean(dim=others, keepdim=True) if others else measured
        effects[subset] = mean - sum(effect for inside, effect in effects.items() if set(inside) < set(subset))
        squares[subset] = effects[subset].square().sum().item() * values ** len(others) / (values - 1) ** len(subset)
    found = {}
    for subset in subsets:
        # By inclusion and exclusion over the sets of factors that hold this one.
        larger = [other for other in subsets if set(subset) <= set(other)]
        signed = sum((-1) ** (len(other) - len(subset)) * squares[other] for other in larger)
        found[" x ".join(FACTORS[axis] for axis in subset)] = signed / values ** (len(FACTORS) - len(subset))
    total = sum(found.values())
    return {name: share / total if total > 0.0 else 0.0 for name, share in found.items()}
