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


@pytest.mark.parametrize("coarsen", [False, True])
@pytest.mark.parametrize(
    ("peclet", "length"), [(0.0, 128), (8.0, 1024), (8.0, 510), (300.0, 64), (0.1, 16), (20.0, 512), (60.0, 512)]
)
def test_march_adds_up_to_the_schedule(peclet: float, length: int, coarsen: bool) -> None:
    """Full iterations and the partial one give alpha t = sigma^2 / 2 with alpha = theta / 2, and never more than one iteration."""
    schedule = Schedule.geometric(0.5, 0.4 * length, 50)
    plan = March.plan(schedule, peclet, length, length + length // 2, coarsen=coarsen)
    start = 0.0
    starts = []
    for grid in plan.grids:
        starts.append(start)
        sharp = min(grid.iterations, grid.smooth_from)
        start += grid.factor**2 * (sharp * grid.theta[0] + (grid.iterations - sharp) * grid.theta[1])
        # Peaks of six times the rms stay at half a cell an iteration.
        assert 6.0 * grid.velocity_per_theta * max(grid.theta) <= 0.5 + 1e-12
    for level, sigma in enumerate(schedule.sigma):
        grid = plan.grids[plan.grid[level]]
        sharp = min(plan.anchor[level], grid.smooth_from)
        time = sharp * grid.theta[0] + (plan.anchor[level] - sharp) * grid.theta[1] + plan.partial_theta[level]
        assert starts[plan.grid[level]] + grid.factor**2 * time == pytest.approx(sigma**2, rel=1e-9, abs=1e-12)
        step = grid.theta[int(plan.anchor[level] >= grid.smooth_from)]
        assert 0 <= plan.partial_theta[level] <= step * (1 + 1e-9)
        assert plan.anchor[level] <= grid.iterations
    assert (np.diff(plan.grid) >= 0).all() and plan.anchor[-1] == plan.grids[-1].iterations
    factors = [grid.factor for grid in plan.grids]
    coarse = {(128, 0.0): [1, 2, 4], (1024, 8.0): [1, 2, 4, 8, 16], (512, 20.0): [1, 2, 4]}
    expected = coarse.get((length, peclet), [1]) if coarsen else [1]
    assert factors == expected


def test_what_a_compressible_flow_acts_on_asks_for_more_cells() -> None:
    """The error of its noise is Pe x source / cells^2: a hundred times the source, ten times the cells."""
    coarsest = [
        1024 // March.plan(Schedule.geometric(0.5, 500.0, 5), 0.06, 1024, 1024, source=source).grids[-1].factor
        for source in (0.0, 10.5, 1050.0)
    ]
    assert coarsest == [32, 64, 512]


def test_coarsening_makes_the_work_grow_with_the_area() -> None:
    """At fixed sigma / L the pixel grid's iterations grow as L^2; with coarsening they stay nearly the same."""
    work = {
        coarsen: [
            March.plan(Schedule.geometric(0.5, 0.16 * length, 50), 8.0, length, length, coarsen=coarsen).work
            for length in (512, 2048)
        ]
        for coarsen in (False, True)
    }
    assert work[False][1] / work[False][0] == pytest.approx(16.0, rel=0.05)
    assert work[True][1] / work[True][0] < 1.1
    assert work[False][0] / work[True][0] > 10


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
