"""Intervals of scores, against the spread of scores of sets that are drawn anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.evaluation.bootstrap import intervals
from diffusion.evaluation.metrics import Measurement, score


def drawn(seed: int, count: int, shift: float = 0.0) -> Measurement:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn((count, 4), generator=generator) + shift
    return Measurement(features, features[:, :1])


@pytest.mark.slow
def test_the_width_is_that_of_sets_drawn_anew() -> None:
    """The standard deviation over 60 pairs of sets is known to 1 / sqrt(120) = 9 %, the bootstrap's over 100 resamples to 7 %."""
    pairs = [(drawn(2 * i, 400, 0.6), drawn(2 * i + 1, 300)) for i in range(60)]
    scores = [score(*pair) for pair in pairs]
    found = [intervals(scores[i], *pairs[i], 5, 100) for i in range(3)]
    for name, tolerance in (("frechet_distance", 0.3), ("sliced_wasserstein", 0.3), ("precision", 0.5), ("density", 0.5)):
        spread = np.std([getattr(one, name) for one in scores], ddof=1)
        widths = [(high - low) / 2 / 1.96 for low, high in (interval[name] for interval in found)]
        # Neighbourhoods that stay as they are leave out a part of the spread of the lower two.
        assert spread * (1 - tolerance) < np.mean(widths) < spread * (1 + 0.3), name


def test_intervals_hold_the_score_and_are_the_same_again() -> None:
    samples, reference = drawn(0, 60, 0.5), drawn(1, 50)
    scores = score(samples, reference)
    found = intervals(scores, samples, reference, 5, 10)
    assert set(found) == {"frechet_distance", "sliced_wasserstein", "precision", "recall", "density", "coverage"}
    assert all(0.0 <= low <= getattr(scores, name) <= high for name, (low, high) in found.items())
    assert all(found[share][1] <= 1.0 for share in ("precision", "recall", "coverage"))
    assert intervals(scores, samples, reference, 5, 10) == found != intervals(scores, samples, reference, 5, 10, seed=1)
