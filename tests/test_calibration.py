"""Ranks of pictures among their restorations, for Gaussian pictures whose posterior is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion.evaluation.calibration import MODES, calibration, ranks_among, summarised
from lbm_warp.checks import InputError
from tests.test_likelihood import exact_run, pictures

NUMBERS = 1 + len(MODES)
PICTURES = 128


def ranked(name: str, level: int, **change: object):
    x = pictures()
    return calibration(exact_run(name, **change), lambda index: x[index].float(), np.arange(PICTURES), level)


@pytest.mark.slow
@pytest.mark.parametrize("level", [30, 75])
def test_an_exact_sampler_is_calibrated(level: int) -> None:
    """chi^2 over its M degrees of freedom has mean 1 and variance 2 / M; the mean of nine independent numbers a ninth of it."""
    found = ranked("fluid", level, peclet=0.0, levels=100, steps=100, second_order_above=None)
    assert found.pictures == PICTURES and found.restorations == 9 and len(found.histogram) == len(found.measured) == NUMBERS
    assert all(sum(row) == PICTURES for row in found.histogram)
    assert abs(found.chi_square - 1.0) < 4 * (2 / 9 / NUMBERS) ** 0.5 and found.error < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_a_sampler_with_too_little_noise_is_not(eta: float) -> None:
    found = ranked("fluid", 60, peclet=0.0, levels=100, steps=100, second_order_above=None, eta=eta)
    assert found.chi_square > 2.0 and found.error > 0.4
    # The picture is at the ends too often.
    rows = np.array(found.histogram)
    assert rows[:, [0, -1]].mean() > 1.5 * rows[:, 1:-1].mean()


def test_ranks_and_their_ties() -> None:
    values = torch.tensor([[[2.0], [1.0], [3.0], [1.5]], [[5.0], [1.0], [1.0], [1.0]], [[1.0], [1.0], [1.0], [0.0]]])
    ties = torch.tensor([[0.5, 0.1, 0.1, 0.1], [0.5, 0.1, 0.1, 0.1], [0.5, 0.4, 0.6, 0.1]])
    assert ranks_among(values, ties)[:, 0].tolist() == [2, 3, 2]
    # All equal: in random order, any rank.
    ties = torch.rand((4000, 5), generator=torch.Generator().manual_seed(0))
    assert summarised(ranks_among(torch.zeros(4000, 5, 1), ties), 1, 4, ["none"]).chi_square < 4.0


def test_a_pictures_ranks_are_its_own() -> None:
    pipeline, x = exact_run("fluid", peclet=0.0, levels=20, steps=20), pictures()

    def histogram(index: np.ndarray) -> np.ndarray:
        return np.array(calibration(pipeline, lambda rows: x[rows].float(), index, 12).histogram)

    np.testing.assert_array_equal(histogram(np.arange(40)), histogram(np.arange(24)) + histogram(np.arange(24, 40)))


def test_bad_input_is_refused() -> None:
    pipeline, x = exact_run("fluid", peclet=0.0), pictures()
    for level, restorations, message in ((0, 9, "level must be"), (7, 9, "level must be"), (3, 0, "restorations must be at")):
        with pytest.raises(InputError, match=message):
            calibration(pipeline, lambda rows: x[rows].float(), np.arange(4), level, restorations=restorations)
