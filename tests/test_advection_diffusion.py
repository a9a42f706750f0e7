"""The operator against closed forms, conservation laws and a second implementation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Schedule, SpectralTurbulence, interop
from lbm_warp.interop import view
from lbm_warp.planner import Scheme
from lbm_warp.textbook import evolve, midpoint_velocity
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


@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence()], ids=str)
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize(("size", "peclet"), [(128, 8.0), (32, 8.0), (48, 100.0), (32, 1000.0)])
def test_a_flat_image_stays_flat(size: int, peclet: float, turbulence, boundary: str, device: torch.device) -> None:
    """In every flow without divergence, resolved or not; up to half a unit in the last place of 0.7 in every iteration."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 0.16 * size, 20), peclet=peclet, turbulence=turbulence, boundary=boundary)
    flat = torch.full((2, 1, size, size), 0.7, device=device)
    for _, u in operator.trajectory(flat, seed=range(2)):
        assert (u - 0.7).abs().max() <= 2**-25 * (100 + operator.iterations(size, size)[-1])


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


def iterated(u: torch.Tensor, v: torch.Tensor, theta: float, periodic: bool) -> torch.Tensor:
    """One iteration by the formulas of ``lbm_warp.kernels.rules``, in whole arrays; ``v`` in cells per iteration."""
    height, width = u.shape[2:]
    if not periodic:  # An image and its mirror images are periodic; the normal velocity is negated.
        sign = v.new_tensor([-1.0, 1.0])[:, None, None]
        u, v = torch.cat([u, u.flip(3)], 3), torch.cat([v, sign * v.flip(3)], 3)
        u, v = torch.cat([u, u.flip(2)], 2), torch.cat([v, -sign * v.flip(2)], 2)
    x, y = v[:, :1], v[:, 1:]

    def slope(a: torch.Tensor, axis: int) -> torch.Tensor:
        return (a.roll(-1, axis) - a.roll(1, axis)) / 2

    def mean(a: torch.Tensor, axis: int) -> torch.Tensor:
        return (a.roll(-1, axis) + 2 * a + a.roll(1, axis)) / 4

    def drift(c: int, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (second + c * first) / 2 if c else -second

    div = mean(slope(x, 3), 2) + mean(slope(y, 2), 3)
    curved_x = slope(x * x, 3) + slope(x * y, 2) - x * div
    curved_y = slope(x * y, 3) + slope(y * y, 2) - y * div
    square_x, square_y, product = mean(x * x, 3), mean(y * y, 2), (mean(x * y, 3) + mean(x * y, 2)) / 2
    rest, across = {-1: theta / 2, 0: 1 - theta, 1: theta / 2}, {-1: 0.5, 0: 1.0, 1: 0.5}
    result = torch.zeros_like(u)
    for c_y in (-1, 0, 1):
        for c_x in (-1, 0, 1):
            f = rest[c_x] * rest[c_y] + c_x * c_y * product / 4
            f = f + theta * (across[c_y] * drift(c_x, x, square_x) + across[c_x] * drift(c_y, y, square_y))
            if c_y == 0:
                f = f + (1 - 2 * theta) * drift(c_x, mean(x, 2), mean(square_x, 2))
            if c_x == 0:
                f = f + (1 - 2 * theta) * drift(c_y, mean(y, 3), mean(square_y, 3))
            f = f + (across[c_y] * c_x * curved_x + across[c_x] * c_y * curved_y) / 8
            result += (f * u).roll((c_y, c_x), (2, 3))
    return result[..., :height, :width]


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (3, 1, 17, 40), (1, 2, 2, 5), (1, 1, 9, 70)])
def test_an_iteration_is_the_formula(shape, boundary: str, device: torch.device) -> None:
    """Random images and velocities with divergence, at both temperatures and with a partial iteration, in float64."""
    generator = torch.Generator().manual_seed(1)
    u0 = torch.rand(shape, generator=generator, dtype=torch.float64)
    field = torch.randn((shape[0], 2, *shape[2:]), generator=generator, dtype=torch.float64)
    schedule = Schedule(np.array([0.0, 4.1]))
    operator = AdvectionDiffusion(schedule, peclet=0.3 * min(shape[2:]), turbulence=GivenVelocity(field), boundary=boundary)
    plan = operator.plan(*shape[2:])
    (grid,) = plan.grids
    thetas = [grid.theta[i >= grid.smooth_from] for i in range(plan.level_iterations[1])] + [float(plan.level_theta[1])]
    assert len(set(thetas)) == 3
    expected = u0
    for theta in thetas:
        expected = iterated(expected, grid.velocity_per_theta * theta * field, theta, boundary == "periodic")
    torch.testing.assert_close(operator(u0.to(device), 1, seed=0).cpu(), expected, rtol=0, atol=1e-13)
    assert (expected - u0).abs().max() > 0.1


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_agrees_with_the_textbook_solver_to_second_order(boundary: str, device: torch.device) -> None:
    """One blurred picture and one flow at 32, 64 and 128 px: the difference falls with the square of the pixel.

    While theta is 1/3; at rest the two are one scheme.
    """
    differences = []
    for length in (32, 64, 128):
        x = (torch.arange(length) + 0.5) / length
        u0 = (0.5 + 0.3 * torch.cos(4 * torch.pi * x)[:, None] * torch.cos(2 * torch.pi * x))[None, None]
        sigma, peclet = 0.05 * length, 16.0
        turbulence, scheme = CurlNoise(octaves=1), Scheme(theta_smooth=1 / 3)
        options = {"peclet": peclet, "turbulence": turbulence, "boundary": boundary, "scheme": scheme, "coarsen": False}
        iterations = round(3 * sigma**2)
        operator = AdvectionDiffusion(Schedule(np.array([0.0, np.sqrt(iterations / 3)])), **options)
        per_iteration = operator.plan(length, length).grids[0].velocity_per_theta / 3
        velocity = midpoint_velocity(per_iteration * operator.velocity(1, length, length), boundary == "periodic")
        fast, textbook = operator(u0.to(device), 1, seed=1).cpu(), evolve(u0, velocity, iterations, boundary=boundary)
        differences.append(float((fast - textbook).abs().max()))
    orders = np.log2(np.array(differences[:-1]) / np.array(differences[1:]))
    assert orders.min() > 1.8 and differences[-1] < 0.3 / 255, (differences, orders)


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
