"""The stages of a trajectory, read as numbers, against the plan that they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.planner import Plan
from lbm_warp.trajectory import Coarsen, Iterate, ReadOut, stages

PLAN = AdvectionDiffusion(Schedule(np.array([0.0, 0.6, 3.0, 9.0, 12.0, 25.0, 40.0])), peclet=2.0).plan(128, 192)


@pytest.mark.parametrize("outputs", [1, 2])
def test_every_image_gets_the_iterations_of_its_levels(outputs: int) -> None:
    """Counted stage by stage: iterations on every grid before each read-out, and every image read out once for each level."""
    last = torch.tensor([6, 6, 5, 4, 3, 3, 2, 1, 1])
    levels = [last - 1, last][-outputs:]
    assert len(PLAN.grids) == 3
    done, here, read = torch.zeros((len(PLAN.grids), len(last)), dtype=torch.int32), len(last), {}
    for stage in stages(PLAN, levels):
        if isinstance(stage, Iterate):
            assert len(stage.first) == len(stage.stop) == here and torch.equal(done[stage.grid, :here], stage.first)
            assert bool((stage.stop >= stage.first).all())
            done[stage.grid, :here] = stage.stop
        elif isinstance(stage, Coarsen):
            assert stage.images == here and 0 < stage.stay <= here
            here = stage.stay
        else:
            assert stage.images == here
            for place, image in enumerate(range(*stage.rows.indices(here))):
                level = int(levels[stage.output][image])
                assert (image, stage.output) not in read and int(PLAN.level_grid[level]) == stage.grid
                assert int(stage.done[place]) == int(done[stage.grid, image]) == int(PLAN.level_iterations[level])
                assert float(stage.theta[place]) == float(PLAN.level_theta[level])
                read[image, stage.output] = [int(count) for count in done[: stage.grid, image]]
    full = [grid.iterations for grid in PLAN.grids]
    assert len(read) == outputs * len(last)
    assert all(counts == full[: len(counts)] for counts in read.values())


def test_a_whole_trajectory_reads_its_levels_in_order() -> None:
    levels = [torch.full((2,), level) for level in range(7)]
    order = [stage.output for stage in stages(PLAN, levels) if isinstance(stage, ReadOut)]
    assert order == list(range(7)) and isinstance(PLAN, Plan)
