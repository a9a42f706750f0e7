"""The textbook solver: its collisions, its diffusivity from the first iteration on, its walls."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lbm_warp.checks import InputError
from lbm_warp.interop import launch
from lbm_warp.kernels.populations import collide_kernel
from lbm_warp.textbook import COLLISIONS, evolve

# D2Q9 velocities (c_x, c_y) in the order of the kernels; the opposite of i is 8 - i.
VELOCITIES = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])
every_collision = pytest.mark.parametrize("collision", COLLISIONS)
every_boundary = pytest.mark.parametrize("boundary", ["wall", "periodic"])


def random_case(height: int, width: int, device: torch.device, speed: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """White noise in [0, 1], [2, 2, height, width], and a white Gaussian velocity of rms ``speed``, without symmetries."""
    generator = torch.Generator().manual_seed(0)
    u0 = torch.rand((2, 2, height, width), generator=generator)
    velocity = speed * torch.randn((2, 2, height, width), generator=generator)
    return u0.to(device), velocity.to(device)


def longest_mode(height: int, width: int) -> tuple[torch.Tensor, float]:
    """The cosine mode of half a period along both sides, float64 [height, width], and its k^2."""
    ky, kx = np.pi / height, np.pi / width
    along_y, along_x = np.cos(ky * (np.arange(height) + 0.5)), np.cos(kx * (np.arange(width) + 0.5))
    return torch.from_numpy(along_y[:, None] * along_x), ky**2 + kx**2


def measured_diffusivity(shape: tuple[int, int], start: int, stop: int, device: torch.device, **options) -> float:
    """alpha from the decay exp(-alpha k^2 t) of the longest mode at rest, between two iterations."""
    mode, k2 = longest_mode(*shape)
    u0 = mode.float()[None, None].to(device)
    still = torch.zeros((1, 2, *shape), device=device)
    amplitude = [float((evolve(u0, still, n, **options)[0, 0].double().cpu() * mode).sum()) for n in (start, stop)]
    return float(np.log(amplitude[0] / amplitude[1]) / (k2 * (stop - start)))


# Collisions alone


def collide(collision: str, f: torch.Tensor, velocity: torch.Tensor, even: float, odd: float, device: torch.device) -> np.ndarray:
    """One collision of float32 [cells, 9] in velocities [cells, 2]; ``even`` and ``odd`` are the relaxation times."""
    after = torch.empty_like(f, device=device)
    inputs = [COLLISIONS[collision], 1.0 - 1.0 / even, 1.0 - 1.0 / odd]
    launch(collide_kernel, (len(f),), batched=[f.to(device), velocity.to(device)], inputs=inputs, outputs=[after])
    return after.double().cpu().numpy()


def random_cells(count: int = 500) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Random populations, float32 [count, 9], velocities up to 0.3, float32 [count, 2], and the equilibrium, float64."""
    generator = torch.Generator().manual_seed(1)
    f = torch.rand((count, 9), generator=generator)
    velocity = 0.6 * torch.rand((count, 2), generator=generator) - 0.3
    u = velocity.double().numpy()[:, None, :]
    phi = np.where(VELOCITIES == 0, 2.0 / 3.0 - u**2, 0.5 * (1.0 / 3.0 + u**2 + VELOCITIES * u))
    return f, velocity, f.double().numpy().sum(axis=1, keepdims=True) * phi.prod(axis=2)


def test_the_weights_at_rest_have_the_moments_of_a_gaussian(device: torch.device) -> None:
    """sum w = 1, sum w c = 0, sum w c c = 1/3 I, sum w c c c c as for a Gaussian of variance 1/3 (Qian et al. 1992)."""
    rest = torch.zeros((1, 9))
    rest[0, 4] = 1.0
    (w,) = collide("bgk", rest, torch.zeros((1, 2)), 1.0, 1.0, device)
    c, delta = VELOCITIES, np.eye(2)
    assert w.sum() == 1.0
    np.testing.assert_allclose(w @ c, 0.0, atol=1e-7)
    np.testing.assert_allclose(np.einsum("i,ia,ib->ab", w, c, c), delta / 3, atol=1e-7)
    isotropic = sum(np.einsum(f"{pairs}->abcd", delta, delta) for pairs in ("ab,cd", "ac,bd", "ad,bc"))
    np.testing.assert_allclose(np.einsum("i,ia,ib,ic,id->abcd", w, c, c, c, c), isotropic / 9, atol=1e-7)


@every_collision
def test_a_collision_keeps_the_density_and_does_not_change_equilibrium(collision: str, device: torch.device) -> None:
    f, velocity, equilibrium = random_cells()
    after = collide(collision, f, velocity, 0.7, 0.6, device)
    np.testing.assert_allclose(after.sum(axis=1), f.double().numpy().sum(axis=1), rtol=1e-6)
    assert np.abs(after - f.numpy()).max() > 0.1
    unchanged = collide(collision, torch.from_numpy(equilibrium).float(), velocity, 0.7, 0.6, device)
    np.testing.assert_allclose(unchanged, equilibrium, rtol=0, atol=2e-6)


@every_collision
def test_a_collision_at_relaxation_time_one_gives_equilibrium(collision: str, device: torch.device) -> None:
    f, velocity, equilibrium = random_cells()
    np.testing.assert_allclose(collide(collision, f, velocity, 1.0, 1.0, device), equilibrium, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("collision", "even", "odd"), [("bgk", 0.7, 0.7), ("trt", 0.6, 3.0), ("trt", 3.0, 0.6), ("trt", 1.0, 0.8)])
def test_bgk_and_trt_relax_even_and_odd_parts(collision: str, even: float, odd: float, device: torch.device) -> None:
    f, velocity, equilibrium = random_cells()
    before = f.numpy() - equilibrium
    after = collide(collision, f, velocity, even, odd, device) - equilibrium
    for sign, time in ((1, even), (-1, odd)):
        expected = (1 - 1 / time) * (before + sign * before[:, ::-1])
        np.testing.assert_allclose(after + sign * after[:, ::-1], expected, rtol=0, atol=6e-6)


def test_central_moments_relax_the_first_and_reset_the_others(device: torch.device) -> None:
    """Against the definition: k_ab = sum (c_x - u_x)^a (c_y - u_y)^b f; at equilibrium rho kappa_a kappa_b, kappa = (1, 0, 1/3)."""
    f, velocity, _ = random_cells()
    after = collide("central-moments", f, velocity, 5.0, 0.7, device)  # the even relaxation time has no effect
    relative = VELOCITIES[None] - velocity.double().numpy()[:, None, :]
    kappa = (1.0, 0.0, 1.0 / 3.0)
    for a in range(3):
        for b in range(3):
            powers = relative[..., 0] ** a * relative[..., 1] ** b
            before = (powers * f.numpy()).sum(axis=1)
            expected = (1 - 1 / 0.7) * before if a + b == 1 else f.double().numpy().sum(axis=1) * kappa[a] * kappa[b]
            np.testing.assert_allclose((powers * after).sum(axis=1), expected, rtol=0, atol=1e-5, err_msg=f"k_{a}{b}")


# The solver


@every_boundary
def test_at_relaxation_time_one_all_collisions_and_starts_are_one_scheme(boundary: str, device: torch.device) -> None:
    u0, velocity = random_case(13, 18, device)
    reference = evolve(u0, velocity, 25, boundary=boundary)
    assert (reference - u0).abs().max() > 0.1
    for collision in COLLISIONS:
        for initial in ("equilibrium", "non-equilibrium"):
            assert torch.equal(evolve(u0, velocity, 25, collision=collision, boundary=boundary, initial=initial), reference)


@pytest.mark.slow
@every_collision
@pytest.mark.parametrize("tau", [0.51, 0.55, 0.6, 0.8, 1.0, 1.3, 2.0])
def test_the_diffusivity_is_a_third_of_tau_minus_one_half(collision: str, tau: float, device: torch.device) -> None:
    """Within 0.5 %: the error is of order k^2, here 0.0022. It is 0.7 k^2 at tau = 2; for central moments near tau = 1/2 it is
    0.02 k^2 / (tau - 1/2), because their second moments are always set to equilibrium."""
    alpha = measured_diffusivity((80, 120), 100, 400, device, collision=collision, relaxation_time=tau)
    assert alpha == pytest.approx((tau - 0.5) / 3, rel=0.005)


@every_collision
def test_the_error_of_the_diffusivity_is_of_second_order(collision: str, device: torch.device) -> None:
    """Twice the wavelength, a quarter of the error, at tau = 2, where the error is largest."""
    short, long = (
        abs(measured_diffusivity(shape, 30, 130, device, collision=collision, relaxation_time=2.0) / 0.5 - 1)
        for shape in ((24, 36), (48, 72))
    )
    assert short > 0.01 and short / long == pytest.approx(4, rel=0.1)


@every_collision
@pytest.mark.parametrize("tau", [0.55, 0.6, 0.8, 1.3, 2.0])
def test_the_first_iteration_has_the_right_diffusivity(collision: str, tau: float, device: torch.device) -> None:
    """Within 1 %: (1 - tau) / (tau - 1/2) times the error of central differences, of order k^2. From equilibrium it is 1/6."""
    options = {"collision": collision, "relaxation_time": tau}
    assert measured_diffusivity((80, 120), 0, 1, device, **options) == pytest.approx((tau - 0.5) / 3, rel=0.01)
    assert measured_diffusivity((80, 120), 0, 1, device, **options, initial="equilibrium") == pytest.approx(1 / 6, rel=0.01)


@every_collision
@pytest.mark.parametrize("tau", [0.55, 0.7, 1.5])
def test_a_gaussian_hill_in_a_constant_flow(collision: str, tau: float, device: torch.device) -> None:
    """It moves by u t, and its variances grow by 2 alpha t without an error of order u^2: the equilibrium has all terms in u^2.

    c^3 = c on this lattice, so there is a Galilean error in the third moment, of order u^3 for BGK and central moments and of order
    u for TRT with tau != 1. It does not affect centre and variance.
    """
    length, width, iterations = 96, 6.0, 60
    flow = torch.tensor([0.1, -0.05])
    y, x = torch.meshgrid(*[torch.arange(length, dtype=torch.float64)] * 2, indexing="ij")
    hill = torch.exp(-((x - 47.5) ** 2 + (y - 47.5) ** 2) / (2 * width**2)).float()[None, None]
    velocity = flow[None, :, None, None].repeat(1, 1, length, length)
    options = {"collision": collision, "relaxation_time": tau, "boundary": "periodic"}
    u = evolve(hill.to(device), velocity.to(device), iterations, **options)[0, 0].double().cpu()
    mass = u.sum()
    centre = torch.stack([(u * x).sum(), (u * y).sum()]) / mass
    variance = torch.stack([(u * (x - centre[0]) ** 2).sum(), (u * (y - centre[1]) ** 2).sum()]) / mass
    expected = flow.double() * iterations
    assert (centre - 47.5 - expected).norm() < 1e-3 * expected.norm()
    assert ((variance - width**2) / (2 * (tau - 0.5) / 3 * iterations) - 1).abs().max() < 0.01


@pytest.mark.slow
@every_collision
@every_boundary
def test_mass_is_conserved_in_every_flow(collision: str, boundary: str, device: torch.device) -> None:
    u0, velocity = random_case(31, 22, device)
    mass = u0.double().sum(dim=(2, 3))
    for tau in (0.8, 1.0, 1.5):
        u = evolve(u0, velocity, 500, collision=collision, relaxation_time=tau, boundary=boundary)
        assert ((u.double().sum(dim=(2, 3)) - mass).abs() / mass).max() < 3e-6


@every_collision
def test_a_flat_image_at_rest_does_not_change(collision: str, device: torch.device) -> None:
    """The weights at rest have the sum 1 exactly; with the float32 nearest to 1/3 the image would lose 1e-4."""
    flat, still = torch.full((1, 1, 6, 7), 0.7, device=device), torch.zeros((1, 2, 6, 7), device=device)
    assert (evolve(flat, still, 2000, collision=collision, relaxation_time=0.8) - 0.7).abs().max() < 5e-6


@every_collision
def test_a_wall_is_a_mirror(collision: str, device: torch.device) -> None:
    """A wall equals the mirror image beyond it, in a flow into the wall too."""
    u0, velocity = random_case(9, 14, device)
    flow_x, flow_y = velocity[:, :1], velocity[:, 1:]
    for axis in (2, 3):
        flow_x = torch.cat([flow_x, flow_x.flip(axis) * (-1 if axis == 3 else 1)], axis)
        flow_y = torch.cat([flow_y, flow_y.flip(axis) * (-1 if axis == 2 else 1)], axis)
    mirrored = torch.cat([u0, u0.flip(2)], 2)
    mirrored = torch.cat([mirrored, mirrored.flip(3)], 3)
    options = {"collision": collision, "relaxation_time": 0.7}
    walls = evolve(u0, velocity, 30, **options)
    images = evolve(mirrored, torch.cat([flow_x, flow_y], 1), 30, **options, boundary="periodic")
    torch.testing.assert_close(walls, images[:, :, :9, :14], rtol=0, atol=2e-6)
    assert (walls - evolve(u0, velocity, 30, **options, boundary="periodic")).abs().max() > 0.05


@every_collision
def test_a_flow_along_the_walls_moves_nothing_to_other_rows(collision: str, device: torch.device) -> None:
    """Equal rows stay equal, at the walls too, so every row keeps its mass."""
    u0, velocity = (t[:, :, :1].repeat(1, 1, 12, 1) for t in random_case(12, 20, device))
    velocity[:, 1] = 0.0
    u = evolve(u0, velocity, 50, collision=collision, relaxation_time=0.8)
    torch.testing.assert_close(u, u[:, :, :1].expand_as(u), rtol=0, atol=2e-6)
    torch.testing.assert_close(u.sum(dim=3), u0.sum(dim=3), rtol=1e-5, atol=0)


@every_collision
def test_rolling_commutes_with_the_periodic_solver(collision: str, device: torch.device) -> None:
    u0, velocity = random_case(11, 16, device)
    options = {"collision": collision, "relaxation_time": 0.7, "boundary": "periodic"}
    rolled = evolve(u0.roll((3, -5), (2, 3)), velocity.roll((3, -5), (2, 3)), 20, **options)
    assert torch.equal(rolled, evolve(u0, velocity, 20, **options).roll((3, -5), (2, 3)))


@every_collision
@every_boundary
def test_transposing_commutes_with_the_solver(collision: str, boundary: str, device: torch.device) -> None:
    u0, velocity = random_case(11, 16, device)
    options = {"collision": collision, "relaxation_time": 0.7, "boundary": boundary}
    transposed = evolve(u0.transpose(2, 3), velocity.flip(1).transpose(2, 3), 20, **options)
    torch.testing.assert_close(transposed, evolve(u0, velocity, 20, **options).transpose(2, 3), rtol=0, atol=2e-6)


def test_zero_iterations_and_unchanged_arguments(device: torch.device) -> None:
    u0, velocity = random_case(5, 6, device)
    before = u0.clone(), velocity.clone()
    same = evolve(u0, velocity, 0, relaxation_time=0.7)
    torch.testing.assert_close(same, u0, rtol=0, atol=5e-7)
    assert same.data_ptr() != u0.data_ptr()
    evolve(u0, velocity, 3, relaxation_time=0.7)
    assert torch.equal(u0, before[0]) and torch.equal(velocity, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collision": "mrt"}, "collision must be one of bgk, trt, central-moments, got 'mrt'"),
        ({"initial": "rest"}, "initial must be one of equilibrium, non-equilibrium, got 'rest'"),
        ({"boundary": "open"}, "boundary must be one of wall, periodic, got 'open'"),
        ({"relaxation_time": 0.5}, "relaxation_time must be at least 0.500001, got 0.5"),
        ({"relaxation_time": float("nan")}, "relaxation_time must be at least 0.500001, got nan"),
        ({"iterations": -1}, "iterations must be at least 0, got -1"),
        ({"iterations": 1.5}, "iterations must be an integer, got 1.5"),
        ({"u0": torch.zeros((2, 1, 4, 5), dtype=torch.float64)}, "images must be float32, got torch.float64"),
        ({"velocity": torch.zeros((2, 2, 5, 4))}, r"velocity must be float32 \[2, 2, 4, 5\], got torch.float32 \[2, 2, 5, 4\]"),
        ({"velocity": np.zeros((2, 2, 4, 5))}, r"velocity must be a torch tensor \[N, 2, H, W\], got ndarray"),
        ({"velocity": torch.zeros((2, 2, 4, 5), device="meta")}, "velocity must be on the device of the images, cpu, got meta"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(change: dict, message: str) -> None:
    arguments = {"u0": torch.zeros((2, 1, 4, 5)), "velocity": torch.zeros((2, 2, 4, 5)), "iterations": 1} | change
    with pytest.raises(InputError, match=f"^{message}$"):
        evolve(**arguments)
