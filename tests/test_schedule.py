from __future__ import annotations

import numpy as np
import pytest
import torch

from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import InputError
from lbm_warp.planner import Plan


def test_geometric_levels_run_from_clean_to_sigma_max() -> None:
    schedule = Schedule.geometric(0.5, 20.0, 200)
    assert schedule.levels == 200 and len(schedule.sigma) == 201
    assert schedule.sigma[0] == 0.0 and schedule.sigma[1] == 0.5 and schedule.sigma[200] == 20.0
    ratio = schedule.sigma[2:] / schedule.sigma[1:-1]
    np.testing.assert_allclose(ratio, 40.0 ** (1 / 199), rtol=1e-12)


def test_fourier_number() -> None:
    # sigma = 20 px at L = 128: Fo = 400 / (2 x 16384) = 0.0122
    assert Schedule.geometric(0.5, 20.0, 10).fourier(128)[-1] == pytest.approx(400 / 32768)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"levels": 0}, "levels must be from 1 to 100000, got 0"),
        ({"sigma_min": 0.0}, "sigma_min must be positive"),
        ({"sigma_min": 3.0, "sigma_max": 2.0}, "sigma_max must be at least sigma_min = 3 px, got 2 px"),
        ({"sigma_max": float("nan")}, "sigma_max"),
        ({"sigma_max": "20"}, "sigma_max must be at least 0, got '20'"),
        ({"sigma_min": 2.0, "sigma_max": 2.0, "levels": 5}, "grow with every level"),
    ],
)
def test_bad_values_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.geometric(**values)


def test_what_is_no_list_of_numbers_is_refused() -> None:
    for sigma, kind in (("wide", "str"), ([0.0, [1.0]], "list"), (torch.ones(2, device="meta"), "Tensor")):
        with pytest.raises(InputError, match=f"sigma must be numbers, those of levels 0, 1, ..., got {kind}"):
            Schedule(sigma)


def test_a_single_level_is_sigma_max() -> None:
    np.testing.assert_array_equal(Schedule.geometric(0.5, 7.0, 1).sigma, [0.0, 7.0])


@pytest.mark.parametrize("coarsen", [False, True])
@pytest.mark.parametrize(
    ("peclet", "length"), [(0.0, 128), (8.0, 1024), (8.0, 510), (300.0, 64), (0.1, 16), (20.0, 512), (60.0, 512)]
)
def test_a_plan_reaches_the_levels_of_the_schedule(peclet: float, length: int, coarsen: bool) -> None:
    """Full and partial iterations add up to alpha t = sigma^2 / 2 with alpha = theta / 2; a partial one is at most a full one."""
    schedule = Schedule.geometric(0.5, 0.4 * length, 50)
    plan = Plan.build(schedule, peclet, length, length + length // 2, coarsen=coarsen)
    start = 0.0
    starts = []
    for grid in plan.grids:
        starts.append(start)
        sharp = min(grid.iterations, grid.smooth_from)
        start += grid.factor**2 * (sharp * grid.theta[0] + (grid.iterations - sharp) * grid.theta[1])
        # Six times the rms moves at most half a cell per iteration.
        assert 6.0 * grid.velocity_per_theta * max(grid.theta) <= 0.5 + 1e-12
    for index, full, partial, sigma in zip(plan.level_grid, plan.level_iterations, plan.level_theta, schedule.sigma, strict=True):
        grid = plan.grids[index]
        sharp = min(full, grid.smooth_from)
        time = sharp * grid.theta[0] + (full - sharp) * grid.theta[1] + partial
        assert starts[index] + grid.factor**2 * time == pytest.approx(sigma**2, rel=1e-9, abs=1e-12)
        assert 0 <= partial <= grid.theta[int(full >= grid.smooth_from)] * (1 + 1e-9)
        assert full <= grid.iterations
    assert (np.diff(plan.level_grid) >= 0).all() and plan.level_iterations[-1] == plan.grids[-1].iterations
    coarse = {(128, 0.0): [1, 2, 4], (1024, 8.0): [1, 2, 4, 8, 16], (512, 20.0): [1, 2, 4]}
    expected = coarse.get((length, peclet), [1]) if coarsen else [1]
    assert [grid.factor for grid in plan.grids] == expected


def test_iterations_count_by_their_cells() -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 40.0, 30), peclet=2.0)
    plan, iterations = operator.plan(256, 384), operator.iterations(256, 384)
    assert len(plan.grids) == 4 and iterations.dtype == np.float64
    for level in range(31):
        last = plan.level_grid[level]
        expected = sum(grid.iterations / grid.factor**2 for grid in plan.grids[:last])
        expected += (plan.level_iterations[level] + (plan.level_theta[level] > 0)) / plan.grids[last].factor ** 2
        assert iterations[level] == pytest.approx(expected)
    assert iterations[0] == 0.0 and (np.diff(iterations[1:]) > -1.0).all()
    heat = AdvectionDiffusion(operator.schedule, peclet=0.0)
    np.testing.assert_array_equal(heat.iterations(256, 384), np.zeros(31))


def test_the_source_of_a_compressible_flow_needs_more_cells() -> None:
    """The error of its noise is Pe x source / cells^2: a hundred times the source, ten times the cells."""
    schedule = Schedule.geometric(0.5, 500.0, 5)
    cells = [1024 // Plan.build(schedule, 0.06, 1024, 1024, source=source).grids[-1].factor for source in (0.0, 10.5, 1050.0)]
    assert cells == [32, 64, 512]


def test_coarsening_makes_the_work_grow_with_the_area() -> None:
    """At fixed sigma / L the iterations on the pixel grid grow as L^2; with coarsening their number hardly changes."""
    (fine_small, small), (fine_large, large) = (
        [Plan.build(Schedule.geometric(0.5, 0.16 * n, 50), 8.0, n, n, coarsen=coarsen).iterations[-1] for coarsen in (False, True)]
        for n in (512, 2048)
    )
    assert fine_large / fine_small == pytest.approx(16.0, rel=0.05)
    assert large / small < 1.1
    assert fine_small / small > 10
