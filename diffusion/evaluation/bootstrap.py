"""Intervals of scores by the bootstrap: how much they would change with other samples and other pictures (Efron 1979)."""

from __future__ import annotations

import math

import torch
from tqdm.auto import trange

from diffusion.data.dataset import evenly_spaced
from diffusion.evaluation.metrics import (
    Measurement,
    Scores,
    fit_gaussian,
    frechet_distance,
    neighbourhoods,
    sliced_wasserstein,
)

NORMAL = 1.96  # 95 % of a Gaussian lie within so many standard deviations of its mean
DIRECTIONS = 32
SHARES = ("precision", "recall", "coverage")


def intervals(
    scores: Scores, samples: Measurement, reference: Measurement, k: int, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % intervals of scores: score +- 1.96 standard deviations of the bootstrap.

    The images of both sets are drawn again with replacement. The interval is centred on the score, not on the mean of the
    resamples: repeated images make a Frechet distance larger. For precision, recall, density and coverage the neighbourhoods stay
    those of the whole sets, where no image is its own neighbour.

    Args:
        scores: those of the sets.
        samples, reference: measurements, as for :func:`diffusion.evaluation.score`.
        k: neighbours that set the size of a neighbourhood, >= 1.
        resamples: how many, at least 2.
        seed: of the resamples.

    Returns:
        Lower and upper end by the name of the score; no end is below 0, and none of a share above 1.
    """
    generator = torch.Generator().manual_seed(seed)
    equal = min(len(samples), len(reference))
    pictures, made = (measured[evenly_spaced(len(measured), equal)].features for measured in (reference, samples))
    balls, recalled, covered = neighbourhoods(pictures, made, k)

    def again(values: torch.Tensor) -> torch.Tensor:
        return values[torch.randint(len(values), (len(values),), generator=generator).to(values.device)]

    found = []
    for _ in trange(resamples, desc="bootstrap", leave=False):
        first, second = (again(measured.features) for measured in (samples, reference))
        drawn = again(balls)
        found.append(
            {
                "frechet_distance": frechet_distance(fit_gaussian(first), fit_gaussian(second)),
                "sliced_wasserstein": sliced_wasserstein(first, second, DIRECTIONS),
                "precision": (drawn > 0).double().mean().item(),
                "recall": again(recalled).double().mean().item(),
                "density": drawn.double().mean().item() / k,
                "coverage": again(covered).double().mean().item(),
            }
        )
    reach = {name: NORMAL * torch.tensor([values[name] for values in found]).std().item() for name in found[0]}
    middle = {name: getattr(scores, name) for name in reach}
    most = {name: 1.0 if name in SHARES else math.inf for name in reach}
    return {name: (max(middle[name] - reach[name], 0.0), min(middle[name] + reach[name], most[name])) for name in reach}
