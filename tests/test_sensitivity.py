"""Gradients in the physics, the velocity and the Peclet number, against finite differences in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lbm_warp import AdvectionDiffusion, CurlNoise, FieldRequest, GivenVelocity, Schedule, Turbulence
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


def test_gradients_recover_the_flow_between_two_pictures() -> None:
    size, generator = 24, torch.Generator().manual_seed(0)
    flow = CurlNoise(octaves=1).velocity(3, size, size)
    picture = AdvectionDiffusion(Schedule(np.array([0.0, 1.5])), peclet=0.0)(
        torch.rand((1, 3, size, size), generator=generator), 1, 0
    )
    schedule = Schedule(np.array([0.0, 1.0]))
    carried = AdvectionDiffusion(schedule, peclet=60.0, turbulence=GivenVelocity(flow))(picture, 1, 0)

    field = torch.zeros(1, 2, size, size, requires_grad=True)
    adam = torch.optim.Adam([field], lr=0.1)
    for _ in range(60):
        operator = AdvectionDiffusion(schedule, peclet=60.0, turbulence=GivenVelocity(field, project=True))
        adam.zero_grad()
        (operator(picture, 1, 0) - carried).square().mean().backward()
        adam.step()
    found = GivenVelocity(field.detach(), project=True)
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


class Waves(nn.Module, Turbulence):
    """A flow of one's own with two learnable numbers: the strength of a wave along x, and where one along y begins."""

    def __init__(self, strength: float, phase: float, moving: bool = False) -> None:
        super().__init__()
        self.strength, self.phase = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (strength, phase))
        self.moving, self.asked = moving, 0

    def field(self, ask: FieldRequest) -> torch.Tensor:
        self.asked += 1
        y, x = (2 * torch.pi * (torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (ask.height, ask.width))
        first = 1.0 + (ask.seeds.cpu() % 5)[:, None, None].double() / 5
        v_x = self.strength * torch.sin(first * y[:, None] + ask.time * self.moving) * torch.cos(x)
        v_y = torch.cos(x + self.phase) * first
        return torch.stack(torch.broadcast_tensors(v_x, v_y), dim=1).to(ask.device)


@pytest.mark.parametrize("scheme", [Scheme(), COARSENING], ids=["one grid", "several grids"])
def test_a_flow_of_ones_own_learns(scheme: Scheme, device: torch.device) -> None:
    """Both numbers and the Peclet number against central differences, with images that need no gradient."""
    schedule = Schedule(np.array([0.0, 1.0, 4.0, 9.0]))
    generator = torch.Generator().manual_seed(0)
    u0, weight = (torch.rand((3, 1, 16, 24), generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    numbers = {"strength": 0.7, "phase": 0.4, "peclet": 0.7}

    def loss(strength: float, phase: float, peclet: float) -> tuple[torch.Tensor, Waves, torch.Tensor]:
        flow, number = Waves(strength, phase), torch.tensor(peclet, dtype=torch.float64, requires_grad=True)
        operator = AdvectionDiffusion(schedule, peclet=number, turbulence=flow, scheme=scheme)
        assert len(operator.plan(16, 24).grids) == (3 if scheme is COARSENING else 1)
        return (operator(u0, [3, 0, 2], [4, 1, 2]) * weight).sum(), flow, number

    value, flow, number = loss(**numbers)
    assert flow.asked == 1
    gradients = torch.autograd.grad(value, [flow.strength, flow.phase, number])
    assert flow.asked == 1
    for name, gradient in zip(numbers, gradients, strict=True):
        ahead, behind = (loss(**numbers | {name: numbers[name] + step})[0].item() for step in (1e-6, -1e-6))
        assert float(gradient) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6, abs=1e-8) and abs(float(gradient)) > 1e-3, name


def test_the_field_is_made_once_and_only_where_a_gradient_is_wanted() -> None:
    flow, u0, schedule = Waves(0.5, 0.2), torch.rand((1, 1, 16, 16)), Schedule.geometric(0.5, 3.0, 4)
    operator = AdvectionDiffusion(schedule, peclet=2.0, turbulence=flow)
    with torch.no_grad():
        plain = operator(u0, 4, 0)
    learning = operator(u0, 4, 0)
    assert flow.asked == 2 and torch.equal(plain, learning) and learning.requires_grad and not plain.requires_grad
    # What has no gradient in the flow says so in its documentation, and its results need none.
    assert not operator.adjoint(u0, 4, 0).requires_grad
    assert not any(u.requires_grad for _, u in operator.trajectory(u0, 0))
    # With a fixed flow the gradient is that of the images alone.
    for parameter in flow.parameters():
        parameter.requires_grad_(False)
    assert not operator(u0, 4, 0).requires_grad
    assert operator(u0.clone().requires_grad_(), 4, 0).grad_fn.name().startswith("_Forward")


def test_a_flow_that_changes_before_backward_does_not_change_the_gradient() -> None:
    schedule, u0 = Schedule.geometric(0.5, 3.0, 4), torch.rand((1, 1, 16, 16))

    def gradient(change: bool) -> torch.Tensor:
        flow = Waves(0.5, 0.2)
        loss = AdvectionDiffusion(schedule, peclet=2.0, turbulence=flow)(u0, 4, 0).square().sum()
        if change:
            flow.moving, flow.strength.data = True, torch.tensor(5.0, dtype=torch.float64)
        return torch.autograd.grad(loss, flow.phase)[0]

    assert torch.equal(gradient(True), gradient(False))


def test_a_moving_flow_that_learns_is_refused() -> None:
    u0, schedule = torch.rand((1, 1, 16, 16)), Schedule.geometric(0.5, 3.0, 4)
    operator = AdvectionDiffusion(schedule, peclet=2.0, turbulence=Waves(0.5, 0.2, moving=True), turbulence_time=1.0)
    for call in (operator, operator.pair):
        with pytest.raises(InputError, match="need a steady flow: turbulence_time must be 0"):
            call(u0, 4, 0)
    with torch.no_grad():
        still = operator(u0, 4, 0)
    torch.testing.assert_close(list(operator.trajectory(u0, 0))[-1][1], still)
    for parameter in operator.turbulence.parameters():
        parameter.requires_grad_(False)
    assert torch.equal(operator(u0, 4, 0), still)


def test_a_learnable_peclet_number_is_read_at_every_call() -> None:
    schedule, u0 = Schedule.geometric(0.5, 4.0, 5), torch.rand((1, 1, 16, 16), dtype=torch.float64)
    peclet = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    operator = AdvectionDiffusion(schedule, peclet=peclet)
    target = AdvectionDiffusion(schedule, peclet=3.0)(u0, 5, 1)
    optimiser = torch.optim.SGD([peclet], lr=1.0)
    (operator(u0, 5, 1) - target).square().sum().backward()
    peclet.grad.mul_(1.0 / peclet.grad.abs())
    optimiser.step()
    assert float(peclet.detach()) == operator.peclet == 2.0

    now = AdvectionDiffusion(schedule, peclet=2.0)
    assert torch.equal(operator(u0, 5, 1), now(u0, 5, 1)) and torch.equal(operator.adjoint(u0, 5, 1), now.adjoint(u0, 5, 1))
    assert torch.equal(list(operator.trajectory(u0, 1))[-1][1], list(now.trajectory(u0, 1))[-1][1])
    optimiser.zero_grad()
    operator(u0, 5, 1).square().sum().backward()
    ahead, behind = (AdvectionDiffusion(schedule, peclet=2.0 + step)(u0, 5, 1).square().sum() for step in (1e-4, -1e-4))
    assert float(peclet.grad) == pytest.approx(float(ahead - behind) / 2e-4, rel=1e-5)

    stale = operator(u0, 5, 1).sum()
    with torch.no_grad():
        peclet += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
    with torch.no_grad():
        peclet.fill_(-1.0)
    with pytest.raises(InputError, match="peclet must be at least 0, got -1"):
        operator(u0, 5, 1)


def test_images_get_their_gradient_at_the_peclet_number_of_their_call() -> None:
    """A tensor without a gradient of its own, which changes between forward and backward."""
    u0, peclet = torch.rand((1, 1, 16, 16), dtype=torch.float64, requires_grad=True), torch.tensor(2.0)
    schedule = Schedule.geometric(0.5, 4.0, 5)
    result = AdvectionDiffusion(schedule, peclet=peclet)(u0, 5, 1)
    peclet.fill_(7.0)
    (gradient,) = torch.autograd.grad(result.square().sum(), u0)
    expected = AdvectionDiffusion(schedule, peclet=2.0)(u0, 5, 1)
    assert torch.equal(result, expected) and torch.equal(gradient, torch.autograd.grad(expected.square().sum(), u0)[0])
