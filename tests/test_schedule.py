from __future__ import annotations

import numpy as np
import pytest

from lbm_warp import Schedule
from lbm_warp.lattice import OPPOSITES, VELOCITIES, WEIGHTS, March


def test_geometric_levels_run_from_clean_to_sigma_max() -> None:
    schedule = Schedule.geometric(0.5, 20.0, 200)
    assert schedule.levels == 200 and len(schedule.sigma) == 201
    assert schedule.sigma[0] == 0.0 and schedule.sigma[1] == 0.5 and schedule.sigma[200] == 20.0
    ratio = schedule.sigma[2:] / schedule.sigma[1:-1]
    np.testing.assert_allclose(ratio, 40.0 ** (1 / 199), rtol=1e-12)


def test_fourier_number_of_a_known_case() -> None:
    # sigma = 20 px at L = 128: Fo = 400 / (2 x 16384) = 0.0122
    assert Schedule.geometric(0.5, 20.0, 10).fourier(128)[-1] == pytest.approx(400 / 32768)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": 0}, "levels must be at least 1, got 0"),
        ({"sigma_min": 0.0}, "sigma_min must be positive"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max must be at least sigma_min = 3 px, got 2 px"),
        ({"sigma_max": float("nan")}, "sigma_max"),
        ({"sigma_min": 2.0, "sigma_max": 2.0, "levels": 5}, "grow with every level"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.geometric(**values)


def test_a_single_level_is_sigma_max() -> None:
    np.testing.assert_array_equal(Schedule.geometric(0.5, 7.0, 1).sigma, [0.0, 7.0])


@pytest.mark.parametrize(("peclet", "length"), [(0.0, 128), (8.0, 128), (300.0, 64), (0.1, 16)])
def test_march_adds_up_to_the_schedule(peclet: float, length: int) -> None:
    """Full iterations and the partial one give alpha t = sigma^2 / 2 with alpha = theta / 2, and never more than one iteration."""
    schedule = Schedule.geometric(0.5, 0.4 * length, 50)
    plan = March.plan(schedule, peclet, length)
    sharp = np.minimum(plan.anchor, plan.smooth_from)
    time = sharp * plan.theta[0] + (plan.anchor - sharp) * plan.theta[1] + plan.partial_theta
    np.testing.assert_allclose(time, schedule.sigma**2, rtol=1e-9, atol=1e-12)
    step = np.where(plan.anchor < plan.smooth_from, *plan.theta)
    assert (plan.partial_theta >= 0).all() and (plan.partial_theta <= step * (1 + 1e-9)).all()
    assert (np.diff(plan.anchor) >= 0).all()
    # Peaks of six times the rms stay at half a cell an iteration.
    assert 6.0 * plan.velocity_per_theta * max(plan.theta) <= 0.5 + 1e-12


def test_d2q9_moments() -> None:
    """sum w = 1, sum w c = 0, sum w c c = 1/3 I, sum w c c c c as for a Gaussian of variance 1/3 (Qian et al. 1992)."""
    c = VELOCITIES.astype(float)
    assert WEIGHTS.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(WEIGHTS @ c, 0.0, atol=1e-15)
    np.testing.assert_allclose(np.einsum("i,ia,ib->ab", WEIGHTS, c, c), np.eye(2) / 3, atol=1e-15)
    fourth = np.einsum("i,ia,ib,ic,id->abcd", WEIGHTS, c, c, c, c)
    delta = np.eye(2)
    isotropic = (
        np.einsum("ab,cd->abcd", delta, delta) + np.einsum("ac,bd->abcd", delta, delta) + np.einsum("ad,bc->abcd", delta, delta)
    )
    np.testing.assert_allclose(fourth, isotropic / 9, atol=1e-15)
    np.testing.assert_array_equal(VELOCITIES[OPPOSITES], -VELOCITIES)
