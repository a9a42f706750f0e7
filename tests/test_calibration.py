"""Ranks of pictures among their restorations, for Gaussian pictures whose posterior is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from diffusion.evaluation.calibration import MODES, calibration, ranks_among, summarised
from diffusion.sampling.restoration import Intervals, deviation, half_widths
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


def test_intervals_of_gaussians_are_students() -> None:
    """A value less the mean of M others from one Gaussian is Student's t times s (1 + 1 / M)^(1/2). The share of 40,000 values that
    lie in the interval is known within 4 (0.9 x 0.1 / 40,000)^(1/2) = 0.006."""
    values = 10.0 * torch.randn((40_000, 10, 1, 1, 1), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for count, width in enumerate(half_widths(values[:, 0], values[:, 1:]), start=2):
        student = stats.t(count - 1)
        assert 2 * student.cdf(width / (1.0 + 1.0 / count) ** 0.5) - 1 == pytest.approx(0.9, abs=0.006)


def test_intervals_are_those_of_the_model_as_it_is() -> None:
    """Between measured levels they are interpolated, from those of a Gaussian at level 0 on."""
    pipeline = exact_run("fluid", peclet=0.0)
    of = {"model": pipeline.fingerprint, "sampling_noise": None}
    ranks = [{"level": 2, "half_widths": [8.0, 4.0]}, {"level": 4, "half_widths": [6.0, 2.0]}]
    pipeline.metrics = {"samples": of, "reference": {"data": "stripes"}, "calibration": ranks}
    found = Intervals.of(pipeline)
    assert found is not None and found.data == "stripes"
    with pytest.raises(InputError, match="two or more restorations"):
        found(torch.zeros(1, 1, 2, 2), 2)
    restored = torch.tensor([0.2, 0.4, 0.6, 0.4]).view(4, 1, 1, 1)
    for count, level, expected in (
        (3, 3, 3.0),
        (4, 9, 2.0),
        (2, 2, 8.0),
        (2, 1, 4.0 + 0.5 * 1.645 * 1.5**0.5),
        (3, 0, 1.645 * (4 / 3) ** 0.5),
    ):
        torch.testing.assert_close(found(restored[:count], level), expected * deviation(restored[:count]))
    assert deviation(torch.zeros(2, 1, 1, 1)).item() == pytest.approx(0.5 / 255)
    for other in (
        {},
        {"fid": 3.0},
        {"samples": of},
        {"samples": of | {"model": "another"}, "calibration": ranks},
        {"samples": of | {"sampling_noise": 1.2}, "calibration": ranks},
        {"samples": of, "calibration": ranks, "earlier": {"calibration": {"sampling_noise": 1.2}}},
        {"samples": of, "calibration": [{"level": 2}]},
        {"samples": of, "calibration": [{"level": 2, "half_widths": []}]},
        {"samples": of, "calibration": 7},
        {"samples": of, "reference": {"data": "x"}, "calibration": [{"level": 2, "half_widths": 5.0}]},
        {"samples": of, "reference": {"data": "x"}, "calibration": [{"level": 2, "half_widths": [[3.0]]}]},
        {"samples": of, "reference": {"data": "x"}, "calibration": [{"level": 2, "half_widths": [float("nan"), 2.0]}]},
        {"samples": of, "reference": {"data": "x"}, "calibration": ranks[::-1]},
        {"samples": "folder", "calibration": ranks},
    ):
        pipeline.metrics = other
        assert Intervals.of(pipeline) is None, other


def test_bad_input_is_refused() -> None:
    pipeline, x = exact_run("fluid", peclet=0.0), pictures()
    for level, restorations, message in ((0, 9, "level must be"), (7, 9, "level must be"), (3, 0, "restorations must be at")):
        with pytest.raises(InputError, match=message):
            calibration(pipeline, lambda rows: x[rows].float(), np.arange(4), level, restorations=restorations)
