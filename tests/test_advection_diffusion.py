"""The operator against closed forms, conservation laws and a second implementation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Schedule, SpectralTurbulence, interop
from lbm_warp.grids import midpoint_velocity
from lbm_warp.interop import view
from lbm_warp.planner import Scheme
from lbm_warp.textbook import evolve
from tests.test_heat import reference


def test_zero_peclet_on_the_lattice_is_the_heat_kernel_at_every_level(photograph: torch.Tensor, device: torch.device) -> None:
    """Sharp photograph: 0.6/255 from sigma = 1.5 px on, before 8/255: a 3 x 3 stencil cannot resolve half a pixel of blur."""
    schedule = Schedule.geometric(0.5, 20.0, 200)
    operator = AdvectionDiffusion(schedule, peclet=0.0, exact=False)
    for level, u in operator.trajectory(photograph.to(device), seed=0):
        error = np.abs(u.cpu().numpy() - reference(photograph.double().numpy(), schedule.sigma[level], "wall")).max()
        assert error <= (8 / 255 if schedule.sigma[level] < 1.5 else 0.6 / 255), (level, 255 * error)


@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence(), SpectralTurbulence(compressible=True)], ids=str)
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_mass_is_conserved_in_every_flow(photograph: torch.Tensor, turbulence, boundary: str, device: torch.device) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 4), peclet=8.0, turbulence=turbulence, boundary=boundary)
    mass = photograph.double().sum(dim=(2, 3))
    for level in range(1, 5):
        u = operator(photograph.to(device), level, seed=1).cpu()
        assert ((u.double().sum(dim=(2, 3)) - mass).abs() / mass).max() < 1e-5


def test_a_flat_image_stays_flat(device: torch.device) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 20), peclet=8.0)
    flat = torch.full((4, 1, 128, 128), 0.7, device=device)
    for _, u in operator.trajectory(flat, seed=range(4)):
        assert (u - 0.7).abs().max() <= 1 / 255


@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence()], ids=str)
def test_values_stay_inside_the_range_of_the_input(photograph: torch.Tensor, turbulence, device: torch.device) -> None:
    """Also black and white noise, the hardest input: all nine weights are non-negative while |u| <= theta."""
    noise = (torch.rand((2, 1, 128, 128), generator=torch.Generator().manual_seed(0)) > 0.5).float()
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 40), peclet=8.0, turbulence=turbulence)
    for images in (photograph, noise):
        for _, u in operator.trajectory(images.to(device), seed=2):
            assert images.min() - 1e-3 <= u.min() and u.max() <= images.max() + 1e-3


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.6, -0.8), (-0.3, 0.9)])
def test_a_gaussian_hill_in_a_constant_flow(direction: tuple[float, float], device: torch.device) -> None:
    """It moves by V t and its variance along each axis grows by 2 alpha t = sigma^2."""
    length, peclet, width = 128, 20.0, 4.0
    schedule = Schedule(np.array([0.0, 4.0, 9.0]))
    y, x = torch.meshgrid(*[torch.arange(length, dtype=torch.float64)] * 2, indexing="ij")
    hill = torch.exp(-((x - 63.5) ** 2 + (y - 63.5) ** 2) / (2 * width**2)).float()[None, None]
    flow = GivenVelocity(torch.tensor(direction)[None, :, None, None].expand(1, 2, length, length))
    operator = AdvectionDiffusion(schedule, peclet=peclet, turbulence=flow, boundary="periodic")
    for level in (1, 2):
        sigma = schedule.sigma[level]
        u = operator(hill.to(device), level, seed=0)[0, 0].double().cpu()
        mass = u.sum()
        centre = torch.stack([(u * x).sum(), (u * y).sum()]) / mass
        variance = torch.stack([(u * (x - centre[0]) ** 2).sum(), (u * (y - centre[1]) ** 2).sum()]) / mass
        # V t = Pe alpha t / L = Pe sigma^2 / (2 L)
        expected = torch.tensor(direction, dtype=torch.float64) * peclet * sigma**2 / (2 * length)
        distance = expected.norm()
        assert (centre - 63.5 - expected).norm() < 0.01 * distance
        assert ((variance - width**2) / sigma**2 - 1).abs().max() < 0.01


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (3, 1, 17, 40), (1, 2, 2, 5)])
def test_equals_the_textbook_solver_at_relaxation_time_one(shape, boundary: str, device: torch.device) -> None:
    """Random images and velocities, while theta is 1/3: the same numbers up to rounding."""
    generator = torch.Generator().manual_seed(1)
    u0 = torch.rand(shape, generator=generator)
    field = torch.randn((shape[0], 2, *shape[2:]), generator=generator)

    iterations, peclet = 20, 0.5 * min(shape[2:])
    schedule = Schedule(np.array([0.0, np.sqrt(iterations / 3.0)]))
    operator = AdvectionDiffusion(schedule, peclet=peclet, turbulence=GivenVelocity(field), boundary=boundary)
    grid = operator.plan(*shape[2:]).grids[0]
    assert grid.theta[0] == pytest.approx(1 / 3) and grid.smooth_from >= iterations
    used = midpoint_velocity(field, grid.velocity_per_theta * grid.theta[1], boundary == "periodic")
    textbook = evolve(u0, used * grid.velocity_per_theta / 3.0, iterations, boundary=boundary)
    fast = operator(u0.to(device), 1, seed=0).cpu()
    torch.testing.assert_close(fast, textbook, rtol=0, atol=2e-6)
    assert (fast - u0).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "peclet", "rate", "grids"), [(128, 8.0, 0.0, 2), (256, 8.0, 0.0, 3), (128, 40.0, 2.0, 1), (128, 0.0, 0.0, 3)]
)
def test_alone_or_in_a_batch_with_other_levels_bit_for_bit(
    photograph: torch.Tensor, size: int, peclet: float, rate: float, grids: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interop, "LEAST_SHARE", 1)
    u0 = torch.nn.functional.interpolate(photograph, (size, size), mode="bilinear")
    images = torch.cat([u0, u0.flip(3), 1 - u0, u0.roll(20, 2), u0.transpose(2, 3)])
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 24.0, 30), peclet=peclet, turbulence_time=rate)
    level, seed = torch.tensor([30, 1, 3, 21, 29]), torch.tensor([5, 6, 7, 5, 2**40])
    assert set(operator.plan(size, size).level_grid) == set(range(grids))
    together = operator(images, level, seed)
    before, after = operator.pair(images, level, seed)
    torch.testing.assert_close(after, together, rtol=0, atol=1e-6)
    for i in range(5):
        arguments = images[i : i + 1], int(level[i]), int(seed[i])
        assert torch.equal(together[i], operator(*arguments)[0])
        pair = operator.pair(*arguments)
        assert torch.equal(before[i], pair[0][0]) and torch.equal(after[i], pair[1][0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(operator(images, level, seed), together)
    finally:
        torch.set_num_threads(threads)


SCRIPT = """
import hashlib, torch
from lbm_warp import AdvectionDiffusion, Schedule
u0 = torch.rand((2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
u = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 30), peclet=8.0)(u0, [30, 11], [5, 6])
digest = hashlib.sha256(u.numpy().tobytes()).hexdigest()
"""


@pytest.mark.slow
def test_another_process_gets_the_same_result_bit_for_bit() -> None:
    here: dict[str, str] = {}
    exec(SCRIPT, here)
    command = [sys.executable, "-c", SCRIPT + "print(digest)"]
    other = subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True, text=True)
    assert other.stdout.split()[-1] == here["digest"]


@pytest.mark.parametrize(("peclet", "tolerance"), [(8.0, 1e-6), (0.0, 0.0)])
def test_call_pair_and_trajectory_are_one_trajectory(
    photograph: torch.Tensor, peclet: float, tolerance: float, device: torch.device
) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 8.0, 12), peclet=peclet)
    images = photograph.to(device, copy=True)
    levels = dict(operator.trajectory(images, seed=3))
    assert list(levels) == list(range(13)) and torch.equal(levels[0], images)
    for level in range(1, 13):
        previous, current = operator.pair(images, level, seed=3)
        torch.testing.assert_close(previous, levels[level - 1], rtol=0, atol=tolerance)
        torch.testing.assert_close(current, levels[level], rtol=0, atol=tolerance)
        torch.testing.assert_close(operator(images, level, seed=3), current, rtol=0, atol=tolerance)
    assert torch.equal(images.cpu(), photograph)


def test_level_zero_is_the_input_with_a_background_too(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(), peclet=0.1, turbulence=SpectralTurbulence(compressible=True), offset=9.5)
    assert torch.equal(operator(photograph, 0, seed=0), photograph)


def test_the_offset_is_a_background(photograph: torch.Tensor) -> None:
    """A(u + c) - c; in a flow without divergence the background has no effect."""
    schedule = Schedule.geometric(0.5, 10.0, 10)
    compressible = SpectralTurbulence(compressible=True)
    # On one grid: the plan of the operator does not consider a background that is part of the images.
    explicit = AdvectionDiffusion(schedule, peclet=0.5, turbulence=compressible, coarsen=False)(photograph + 9.5, 10, seed=4) - 9.5
    offset = AdvectionDiffusion(schedule, peclet=0.5, turbulence=compressible, offset=9.5)(photograph, 10, seed=4)
    without = AdvectionDiffusion(schedule, peclet=0.5, turbulence=compressible)(photograph, 10, seed=4)
    torch.testing.assert_close(offset, explicit, rtol=0, atol=5e-4)
    assert (offset - without).abs().max() > 0.02
    curl = [AdvectionDiffusion(schedule, peclet=0.5, offset=c)(photograph, 10, seed=4) for c in (0.0, 9.5)]
    assert (curl[0] - curl[1]).abs().max() < 2 / 255


@pytest.mark.slow
def test_a_flow_that_changes_in_time(photograph: torch.Tensor) -> None:
    """The same result whatever other levels there are, and convergence with more updates of the velocity."""

    def corrupted(rate: float, levels: int = 8, **options) -> torch.Tensor:
        schedule = Schedule.geometric(0.5, 16.0, levels)
        return AdvectionDiffusion(schedule, peclet=40.0, turbulence_time=rate, **options)(photograph, levels, seed=1)

    moving = corrupted(2.0)
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 16.0, 8), peclet=40.0, turbulence_time=2.0)
    torch.testing.assert_close(dict(operator.trajectory(photograph, seed=1))[8], moving, rtol=0, atol=1e-6)
    torch.testing.assert_close(corrupted(2.0, levels=1), moving, rtol=0, atol=1e-6)
    change = (moving - corrupted(0.0)).abs().max()
    assert change > 0.05
    assert (corrupted(2.0, scheme=Scheme(updates_per_turnover=256)) - moving).abs().max() < 0.05 * change


def test_linear_in_the_image(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 10.0, 10), peclet=8.0)
    other = photograph.flip(2)
    mixed = operator(0.3 * photograph - 1.7 * other, 10, seed=0)
    torch.testing.assert_close(mixed, 0.3 * operator(photograph, 10, seed=0) - 1.7 * operator(other, 10, seed=0), rtol=0, atol=1e-5)


def test_tensors_are_shared_with_warp_and_the_input_is_not_changed(photograph: torch.Tensor) -> None:
    assert view(photograph).ptr == photograph.data_ptr()
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 4.0, 4))
    before = photograph.clone()
    strided = photograph.permute(0, 1, 3, 2)
    assert not strided.is_contiguous()
    result = operator(strided, 4, seed=0)
    assert torch.equal(photograph, before)
    assert torch.equal(result, operator(strided.contiguous(), 4, seed=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda op, u: op(u[0], 1, 0), r"shape \[N, C, H, W\] with H, W >= 2, got \[3, 128, 128\]"),
        (lambda op, u: op(u[..., :1], 1, 0), r"H, W >= 2, got \[1, 3, 128, 1\]"),
        (lambda op, u: op((255 * u).byte(), 1, 0), "floating-point, got torch.uint8"),
        (lambda op, u: op(u.numpy(), 1, 0), "torch tensor .* got ndarray"),
        (lambda op, u: op(u, 11, 0), "level must be from 0 to 10, got 11"),
        (lambda op, u: op.pair(u, 0, 0), "level must be from 1 to 10, got 0"),
        (lambda op, u: op(u, 1.5, 0), "level must be integer"),
        (lambda op, u: op(u, [1, 2], 0), r"one for each of the 1 images, got shape \[2\]"),
        (lambda op, u: op(u, 1, [0, 1, 2]), "seed must be one integer or one for each"),
        (lambda op, u: AdvectionDiffusion(op.schedule, peclet=-1.0), "peclet must be at least 0, got -1"),
        (lambda op, u: AdvectionDiffusion(op.schedule, peclet="8"), "peclet must be at least 0, got '8'"),
        (lambda op, u: AdvectionDiffusion(op.schedule, peclet=torch.ones(2)), "peclet must be one number, got a tensor of shape"),
        (lambda op, u: AdvectionDiffusion(op.schedule, peclet=float("nan")), "peclet"),
        (lambda op, u: AdvectionDiffusion(op.schedule, turbulence_time=-1.0), "turbulence_time must be at least 0"),
        (lambda op, u: AdvectionDiffusion(op.schedule, boundary="open"), "boundary must be one of"),
    ],
)
def test_bad_arguments_are_refused(photograph: torch.Tensor, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(AdvectionDiffusion(Schedule.geometric(0.5, 4.0, 10)), photograph)


@pytest.mark.cuda
def test_cpu_and_cuda_agree(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 20), peclet=8.0)
    images = photograph.repeat(3, 1, 1, 1)
    level, seed = torch.tensor([1, 10, 20]), torch.tensor([1, 2, 3])
    torch.testing.assert_close(operator(images.cuda(), level, seed).cpu(), operator(images, level, seed), rtol=0, atol=1e-4)
