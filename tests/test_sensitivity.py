"""Gradients in the physics, the velocity and the Peclet number, against finite differences in float64."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Schedule
from lbm_warp.checks import InputError
from lbm_warp.planner import Scheme

# Four grids on 32 x 32 pixels.
COARSENING = Scheme(min_cells=4, min_cells_per_peclet=0.0, min_cells_per_root_source=0.0, coarsen_from_sigma_lu=2.0)
CASES = {
    "walls": ((6, 7), 3.0, {}, False),
    "periodic": ((6, 8), 3.0, {"boundary": "periodic"}, False),
    "a background, and without divergence": ((6, 7), 3.0, {"offset": 4.0}, True),
    "several grids": ((32, 32), 12.0, {"scheme": COARSENING}, False),
    "several grids, periodic, with a background": (
        (32, 32),
        12.0,
        {"scheme": COARSENING, "boundary": "periodic", "offset": 2.0},
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_finite_differences(case: str, device: torch.device) -> None:
    """Along a random direction of each argument, by central differences: the error is 1e-6 squared, and rounding 1e-16 / 1e-6."""
    size, sigma, options, project = CASES[case]
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(device)  # noqa: E731
    schedule = Schedule(np.array([0.0, 1.0, sigma / 2.0, sigma]))
    arguments = {
        "velocity": draw(2, 2, *size).clamp(-2, 2),
        "u0": draw(2, 2, *size),
        "peclet": torch.tensor(0.5, dtype=torch.float64),
    }
    level, seed, weight = torch.tensor([2, 3]), torch.tensor([0, 1]), draw(2, 2, 2, *size)
    assert len(AdvectionDiffusion(schedule, peclet=0.5, **options).plan(*size).grids) == (4 if "grids" in case else 1)

    def loss(velocity: torch.Tensor, u0: torch.Tensor, peclet: torch.Tensor) -> torch.Tensor:
        operator = AdvectionDiffusion(schedule, peclet=peclet, turbulence=GivenVelocity(velocity, project=project), **options)
        return (torch.stack(operator.pair(u0, level, seed)) * weight).sum()

    leaves = {name: value.clone().requires_grad_() for name, value in arguments.items()}
    gradients = torch.autograd.grad(loss(**leaves), list(leaves.values()))
    for (name, value), gradient in zip(arguments.items(), gradients, strict=True):
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)
        ahead, behind = (loss(**arguments | {name: value + step * direction}) for step in (1e-6, -1e-6))
        expected = float(ahead - behind) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def test_the_peclet_number_of_turbulence_has_a_gradient_and_images_are_the_same(photograph: torch.Tensor) -> None:
    u0, schedule = photograph[:, :, ::2, ::2].contiguous(), Schedule.geometric(0.5, 4.0, 5)
    peclet = torch.tensor(3.0, requires_grad=True)
    result = AdvectionDiffusion(schedule, peclet=peclet)(u0, 5, 1)
    assert torch.equal(result, AdvectionDiffusion(schedule, peclet=3.0)(u0, 5, 1))
    (gradient,) = torch.autograd.grad(result.square().sum(), peclet)
    ahead, behind = (AdvectionDiffusion(schedule, peclet=p)(u0.double(), 5, 1).square().sum() for p in (3.01, 2.99))
    assert float(gradient) == pytest.approx(float(ahead - behind) / 0.02, rel=1e-3)


def test_the_lines_in_the_readme_recover_the_flow_between_two_pictures() -> None:
    size, generator = 24, torch.Generator().manual_seed(0)
    flow = CurlNoise(octaves=1).velocity(3, size, size)
    picture = AdvectionDiffusion(Schedule(np.array([0.0, 1.5])), peclet=0.0)(
        torch.rand((1, 3, size, size), generator=generator), 1, 0
    )
    schedule = Schedule(np.array([0.0, 1.0]))
    carried = AdvectionDiffusion(schedule, peclet=60.0, turbulence=GivenVelocity(flow))(picture, 1, 0)

    blocks = re.findall(r"```python\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {"before": picture, "after": carried} | {
        name: globals()[name] for name in ("torch", "np", "AdvectionDiffusion", "Schedule")
    }
    exec(next(block for block in blocks if "GivenVelocity" in block), names)
    found = GivenVelocity(names["field"].detach(), project=True)
    error = (AdvectionDiffusion(schedule, peclet=60.0, turbulence=found)(picture, 1, 0) - carried).square().mean()
    still = (AdvectionDiffusion(schedule, peclet=0.0)(picture, 1, 0) - carried).square().mean()
    assert error < 0.01 * still
    assert torch.corrcoef(torch.stack([found.velocity(0, size, size).flatten(), flow.flatten()]))[0, 1] > 0.95


def test_a_flow_that_changes_in_time_has_no_such_gradient() -> None:
    operator = AdvectionDiffusion(
        Schedule.geometric(0.5, 2.0, 3), peclet=torch.tensor(2.0, requires_grad=True), turbulence_time=1.0
    )
    with pytest.raises(InputError, match="need a steady flow: turbulence_time must be 0"):
        operator(torch.rand((1, 1, 8, 8)), 3, 0)
