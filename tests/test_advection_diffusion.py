"""The operator against closed forms, conservation laws and a second implementation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.fft import dctn, idctn

from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence
from lbm_warp.grids import curved
from lbm_warp.populations import evolve


class ConstantFlow:
    """A test double of a turbulence: the same velocity everywhere, in units of V."""

    def __init__(self, x: float, y: float) -> None:
        self.direction = torch.tensor([x, y])

    def velocity(self, seed, height, width, *, boundary="wall", device="cpu", time=0.0) -> torch.Tensor:
        return self.direction.to(device)[None, :, None, None].repeat(len(seed), 1, height, width)


def heat(image: np.ndarray, sigma: float) -> np.ndarray:
    """Exact heat flow between insulating walls: each mode of the cosine transform decays by exp(-k^2 sigma^2 / 2)."""
    height, width = image.shape[-2:]
    k2 = (np.pi * np.arange(height) / height)[:, None] ** 2 + (np.pi * np.arange(width) / width)[None] ** 2
    modes = dctn(image.astype(np.float64), axes=(-2, -1), norm="ortho")
    return idctn(modes * np.exp(-0.5 * k2 * sigma**2), axes=(-2, -1), norm="ortho")


def test_zero_peclet_is_the_exact_heat_kernel_at_every_level(photograph: torch.Tensor, device: torch.device) -> None:
    """A sharp photograph: 8/255 anywhere (half a pixel of blur is more than a 3 x 3 stencil can do), 0.6/255 from 1.5 px on."""
    schedule = Schedule.geometric(0.5, 20.0, 200)
    operator = AdvectionDiffusion(schedule, peclet=0.0, exact=False)
    for level, u in operator.trajectory(photograph.to(device), seed=0):
        error = np.abs(u.cpu().numpy() - heat(photograph.numpy(), schedule.sigma[level])).max()
        assert error <= (8 / 255 if schedule.sigma[level] < 1.5 else 0.6 / 255), (level, 255 * error)


@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence(), SpectralTurbulence(compressible=True)], ids=str)
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_mass_is_kept_whatever_the_flow(photograph: torch.Tensor, turbulence, boundary: str, device: torch.device) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 4), 8.0, turbulence, boundary)
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
    """Black and white noise, the hardest input: all nine weights are non-negative while |u| <= theta."""
    noise = (torch.rand((2, 1, 128, 128), generator=torch.Generator().manual_seed(0)) > 0.5).float()
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 20.0, 40), 8.0, turbulence)
    for images in (photograph, noise):
        for _, u in operator.trajectory(images.to(device), seed=2):
            assert images.min() - 1e-3 <= u.min() and u.max() <= images.max() + 1e-3


@pytest.mark.parametrize("direction", [(1.0, 0.0), (0.6, -0.8), (-0.3, 0.9)])
def test_a_constant_flow_carries_and_spreads_a_gaussian_hill(direction: tuple[float, float], device: torch.device) -> None:
    """Advection-diffusion moves a hill by u t = V t direction and adds 2 alpha t = sigma^2 to the variance along each axis."""
    length, peclet, width = 128, 20.0, 4.0
    schedule = Schedule(np.array([0.0, 4.0, 9.0]))
    y, x = torch.meshgrid(*[torch.arange(length, dtype=torch.float64)] * 2, indexing="ij")
    hill = torch.exp(-((x - 63.5) ** 2 + (y - 63.5) ** 2) / (2 * width**2)).float()[None, None]
    operator = AdvectionDiffusion(schedule, peclet, ConstantFlow(*direction), "periodic")
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
    """Stored populations, random image, random velocity: the same numbers to rounding, for as long as theta is 1/3."""
    generator = torch.Generator().manual_seed(1)
    u0 = torch.rand(shape, generator=generator)
    field = torch.randn((shape[0], 2, *shape[2:]), generator=generator)

    class GivenFlow:
        def velocity(self, seed, height, width, *, boundary="wall", device="cpu", time=0.0) -> torch.Tensor:
            return field.to(device)

    iterations, peclet = 20, 0.5 * min(shape[2:])
    schedule = Schedule(np.array([0.0, np.sqrt(iterations / 3.0)]))
    operator = AdvectionDiffusion(schedule, peclet, GivenFlow(), boundary)
    plan = operator.march(*shape[2:]).grids[0]
    assert plan.theta[0] == pytest.approx(1 / 3) and plan.smooth_from >= iterations
    used = curved(field, plan.velocity_per_theta * plan.theta[1], boundary == "periodic")
    textbook = evolve(u0, used * plan.velocity_per_theta / 3.0, iterations, boundary=boundary)
    fast = operator(u0.to(device), 1, seed=0).cpu()
    torch.testing.assert_close(fast, textbook, rtol=0, atol=2e-6)
    assert (fast - u0).abs().max() > 0.1


def test_the_textbook_solver_diffuses_at_the_rate_of_its_relaxation_time() -> None:
    """A cosine between walls decays by exp(-alpha k^2 t) with alpha = (tau - 1/2) / 3, once the equilibrium start is forgotten."""
    length, tau = 32, 0.8
    k = np.pi / length * 2
    wave = torch.from_numpy(0.5 + 0.4 * np.cos(k * (np.arange(length) + 0.5))).float().expand(1, 1, 8, length)
    still = torch.zeros((1, 2, 8, length))
    amplitude = [float((evolve(wave, still, n, relaxation_time=tau) - 0.5).abs().max()) for n in (50, 150)]
    assert np.log(amplitude[0] / amplitude[1]) == pytest.approx(100 * (tau - 0.5) / 3 * k**2, rel=0.01)


def test_alone_or_in_a_batch_with_other_levels_bit_for_bit(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 30), peclet=8.0)
    images = torch.cat([photograph, photograph.flip(3), 1 - photograph, photograph.roll(20, 2), photograph.transpose(2, 3)])
    level, seed = torch.tensor([30, 0, 3, 17, 29]), torch.tensor([5, 6, 7, 5, 2**40])
    together = operator(images, level, seed)
    before, after = operator.pair(images, level.clamp(min=1), seed)
    for i in range(5):
        alone = operator(images[i : i + 1], int(level[i]), int(seed[i]))
        assert torch.equal(together[i], alone[0])
        pair = operator.pair(images[i : i + 1], max(int(level[i]), 1), int(seed[i]))
        assert torch.equal(before[i], pair[0][0]) and torch.equal(after[i], pair[1][0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(operator(images, level, seed), together)
    finally:
        torch.set_num_threads(threads)


def test_a_fresh_process_repeats_the_result_bit_for_bit(photograph: torch.Tensor, tmp_path: Path) -> None:
    script = (
        "import sys, torch; from safetensors.torch import load_file, save_file; from lbm_warp import *\n"
        "operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 30), 8.0)\n"
        "u0 = load_file(sys.argv[1])['u']\n"
        "save_file({'u': operator(u0, [30, 11], [5, 6])}, sys.argv[2])"
    )
    images = torch.cat([photograph, photograph.flip(2)])
    save_file({"u": images}, tmp_path / "in.safetensors")
    command = [sys.executable, "-c", script, tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    subprocess.run(command, cwd=Path(__file__).parent.parent, check=True, capture_output=True)
    here = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 30), peclet=8.0)(images, [30, 11], [5, 6])
    assert torch.equal(load_file(tmp_path / "out.safetensors")["u"], here)


def test_call_pair_and_trajectory_are_one_trajectory(photograph: torch.Tensor, device: torch.device) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 8.0, 12), peclet=8.0)
    images = photograph.to(device)
    levels = dict(operator.trajectory(images, seed=3))
    assert list(levels) == list(range(13)) and torch.equal(levels[0], images)
    for level in range(1, 13):
        previous, current = operator.pair(images, level, seed=3)
        torch.testing.assert_close(previous, levels[level - 1], rtol=0, atol=1e-6)
        torch.testing.assert_close(current, levels[level], rtol=0, atol=1e-6)
        torch.testing.assert_close(operator(images, level, seed=3), current, rtol=0, atol=1e-6)


def test_level_zero_is_the_input_even_over_a_background(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(), 0.1, SpectralTurbulence(compressible=True), offset=9.5)
    assert torch.equal(operator(photograph, 0, seed=0), photograph)


def test_the_offset_is_a_background_the_flow_acts_on(photograph: torch.Tensor) -> None:
    """A(u + c) - c, computed literally; and a curl field, which has no sources, does not feel it."""
    schedule = Schedule.geometric(0.5, 10.0, 10)
    compressible = SpectralTurbulence(compressible=True)
    # On one grid: the operator cannot know that these pictures have a background, and would coarsen them like others.
    literal = AdvectionDiffusion(schedule, 0.5, compressible, coarsen=False)(photograph + 9.5, 10, seed=4) - 9.5
    offset = AdvectionDiffusion(schedule, 0.5, compressible, offset=9.5)(photograph, 10, seed=4)
    without = AdvectionDiffusion(schedule, 0.5, compressible)(photograph, 10, seed=4)
    torch.testing.assert_close(offset, literal, rtol=0, atol=5e-4)
    assert (offset - without).abs().max() > 0.02
    curl = [AdvectionDiffusion(schedule, 0.5, offset=c)(photograph, 10, seed=4) for c in (0.0, 9.5)]
    assert (curl[0] - curl[1]).abs().max() < 2 / 255


def test_a_flow_that_changes_in_time(photograph: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deterministic, the same in any batch and for any levels, and converging as the flow is frozen for shorter times."""
    images = torch.cat([photograph, photograph.flip(3), photograph.flip(2)])
    level, seed = torch.tensor([8, 3, 6]), torch.tensor([1, 2, 3])

    def operator(rate: float, levels: int = 8) -> AdvectionDiffusion:
        return AdvectionDiffusion(Schedule.geometric(0.5, 16.0, levels), 40.0, turbulence_time=rate)

    together = operator(2.0)(images, level, seed)
    for i in range(3):
        assert torch.equal(operator(2.0)(images[i : i + 1], int(level[i]), int(seed[i]))[0], together[i])
    torch.testing.assert_close(dict(operator(2.0).trajectory(images[:1], seed=1))[8][0], together[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(operator(2.0).pair(images, level, seed)[1], together, rtol=0, atol=1e-6)
    torch.testing.assert_close(operator(2.0, levels=1)(images[:1], 1, seed=1)[0], together[0], rtol=0, atol=1e-6)
    assert torch.equal(operator(0.0)(images, level, seed), AdvectionDiffusion(operator(0.0).schedule, 40.0)(images, level, seed))
    frozen = operator(0.0)(images, level, seed)
    change = (together - frozen).abs().max()
    assert change > 0.05
    monkeypatch.setattr("lbm_warp.advection_diffusion.FREEZES_PER_TURNOVER", 256)
    assert (operator(2.0)(images, level, seed) - together).abs().max() < 0.05 * change


def test_linear_in_the_image(photograph: torch.Tensor) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 10.0, 10), peclet=8.0)
    other = photograph.flip(2)
    mixed = operator(0.3 * photograph - 1.7 * other, 10, seed=0)
    torch.testing.assert_close(mixed, 0.3 * operator(photograph, 10, seed=0) - 1.7 * operator(other, 10, seed=0), rtol=0, atol=1e-5)


def test_works_in_the_tensors_own_memory_and_leaves_the_input_alone(photograph: torch.Tensor) -> None:
    from lbm_warp.interop import view

    array = view(photograph)
    assert array.ptr == photograph.data_ptr()
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
