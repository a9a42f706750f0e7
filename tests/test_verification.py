"""Verification: orders of convergence, exact solutions, an independent spectral solution, range, symmetries.

Everything is computed in float64, so the error is that of the scheme. With k the wavenumber and u the velocity in lattice units,
one iteration along one axis multiplies a mode by G = 1 - (theta + u^2) (1 - cos k) - i u sin k. Its logarithm is

    -i u k - theta k^2 / 2 + i (u (1 - 3 theta) - u^3) k^3 / 6 + (theta (1 - 3 theta) - (3 - 6 theta) u^2 + 3 u^4) k^4 / 24 + ...

The first two terms are exact. At fixed Fo, Pe and x / L, k and u fall as 1 / L and the iterations grow as L^2, so a term of order n
in k and u together is an error of order n - 2: fourth at theta = 1/3, otherwise second, and second in a flow that varies in space.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.files import asset
from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Schedule
from lbm_warp.planner import DEFAULT_SCHEME, Scheme


def constant(x: float, y: float, length: int) -> GivenVelocity:
    return GivenVelocity(torch.tensor([x, y], dtype=torch.float64)[None, :, None, None].expand(1, 2, length, length))


def curl(psi: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], length: int) -> GivenVelocity:
    """Discrete curl of a stream function of (x / L, y / L) on the corners of the cells, with unit rms."""
    edge = torch.arange(length + 1, dtype=torch.float64) / length
    corners = psi(edge[None, :], edge[:, None])
    along_y, along_x = corners.diff(dim=0), corners.diff(dim=1)
    v = torch.stack([along_y[:, 1:] + along_y[:, :-1], -along_x[1:] - along_x[:-1]])
    return GivenVelocity((v / v.square().mean().sqrt())[None])


def one_temperature(theta: float, peak: float = 1.0) -> Scheme:
    """A scheme with one lattice temperature, for flows with a known largest component in units of V."""
    return Scheme(theta_sharp=theta, theta_smooth=theta, peak_to_rms=peak)


def centres(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x / L along a row and y / L along a column of the centres of the cells."""
    centre = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return centre[None, :], centre[:, None]


def corrupted(u0: torch.Tensor, sigma: float, device: torch.device, **options) -> torch.Tensor:
    """One image [H, W] at blur width ``sigma`` pixels, on one grid."""
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), coarsen=False, exact=False, **options)
    return operator(u0[None, None].to(device), 1, seed=0)[0, 0].cpu()


def orders(errors: list[float]) -> np.ndarray:
    """Observed orders between resolutions that double."""
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


# Orders of convergence


def diffusion_error(length: int, scheme: Scheme, device: torch.device) -> float:
    # cos(3 pi x) cos(2 pi y) between insulating walls decays by exp(-k^2 sigma^2 / 2), k^2 = (9 + 4) pi^2 / L^2.
    x, y = centres(length)
    mode = torch.cos(3 * torch.pi * x) * torch.cos(2 * torch.pi * y)
    # 6, 4 or 3 full iterations at 16 px and no partial one.
    variance = 2.0 * (length / 16) ** 2
    exact = np.exp(-13 * np.pi**2 * variance / (2 * length**2)) * mode
    return float((corrupted(mode, variance**0.5, device, peclet=0.0, scheme=scheme) - exact).abs().max())


@pytest.mark.parametrize(("theta", "order"), [(1 / 3, 4), (1 / 2, 2), (2 / 3, 2)])
def test_order_of_diffusion_between_walls(theta: float, order: int, device: torch.device) -> None:
    """Within 0.1: the next term of the error is two orders higher, relative to the first of order k^2, 0.09 at 32 px."""
    observed = orders([diffusion_error(length, one_temperature(theta), device) for length in (16, 32, 64)])
    assert np.abs(observed - order).max() < 0.1, observed


def advection_error(length: int, scheme: Scheme, device: torch.device) -> float:
    # cos(2 pi (2 x + y)) in the flow vhat becomes exp(-5 (2 pi)^2 Fo) cos(2 pi (2 (x - Pe Fo vhat_x) + (y - Pe Fo vhat_y))).
    x, y = centres(length)
    peclet, direction, variance = 16.0, (1.2, -0.7), 4.0 * (length / 16) ** 2
    fourier = variance / (2 * length**2)

    def mode(time: float) -> torch.Tensor:
        dx, dy = (peclet * time * v for v in direction)
        return np.exp(-5 * (2 * np.pi) ** 2 * time) * torch.cos(2 * torch.pi * (2 * (x - dx) + (y - dy)))

    options = {"peclet": peclet, "turbulence": constant(*direction, length), "boundary": "periodic", "scheme": scheme}
    return float((corrupted(mode(0.0), variance**0.5, device, **options) - mode(fourier)).abs().max())


@pytest.mark.parametrize(("theta", "order"), [(1 / 3, 4), (1 / 2, 2), (2 / 3, 2)])
def test_order_of_advection_diffusion_in_a_constant_flow(theta: float, order: int, device: torch.device) -> None:
    """Within 0.1. Fourth order at theta = 1/3, where the dispersion u (1 - 3 theta) k^3 / 6 is zero; u^3 k^3 / 6 remains."""
    scheme = one_temperature(theta, peak=1.2)
    observed = orders([advection_error(length, scheme, device) for length in (32, 64, 128)])
    assert np.abs(observed - order).max() < 0.1, observed


# psi = sin(pi x) sin(pi y): one eddy in the box, vhat = (2 sin(pi x) cos(pi y), -2 cos(pi x) sin(pi y)).
EDDY_PECLET, EDDY_FOURIER = 20.0, 0.02


def eddy_reference(modes: int = 32, steps: int = 400) -> np.ndarray:
    """Coefficients a[m, n] of cos(m pi x) cos(n pi y) at EDDY_FOURIER: Galerkin in space, fourth-order Runge-Kutta in time."""
    # du/dFo = lap u - Pe vhat . grad u, with
    #   sin(pi x) d/dx cos(m pi x) = -m pi / 2 (cos((m - 1) pi x) - cos((m + 1) pi x)),
    #   cos(pi x) cos(m pi x) = (cos((m - 1) pi x) + cos((m + 1) pi x)) / 2.
    m = np.arange(modes)
    slope = np.diag(-m[1:] * np.pi / 2, 1) + np.diag(m[:-1] * np.pi / 2, -1)
    cosine = np.diag(np.full(modes - 1, 0.5), 1) + np.diag(np.full(modes - 1, 0.5), -1)
    cosine[1, 0] = 1.0
    decay = np.pi**2 * (m[:, None] ** 2 + m[None, :] ** 2)

    def rate(a: np.ndarray) -> np.ndarray:
        return -decay * a - 2.0 * EDDY_PECLET * (slope @ a @ cosine.T - cosine @ a @ slope.T)

    a = np.zeros((modes, modes))
    a[0, 0], a[1, 0], a[2, 1] = 0.5, 0.3, 0.2
    step = EDDY_FOURIER / steps
    for _ in range(steps):
        k1 = rate(a)
        k2 = rate(a + step / 2 * k1)
        k3 = rate(a + step / 2 * k2)
        k4 = rate(a + step * k3)
        a = a + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return a


def eddy_error(length: int, scheme: Scheme, device: torch.device) -> float:
    x, y = centres(length)
    u0 = 0.5 + 0.3 * torch.cos(torch.pi * x) + 0.2 * torch.cos(2 * torch.pi * x) * torch.cos(torch.pi * y)
    a = eddy_reference()
    modes = np.cos(np.pi * np.outer((np.arange(length) + 0.5) / length, np.arange(len(a))))
    exact = torch.from_numpy(modes @ a.T @ modes.T)
    eddy = curl(lambda x, y: torch.sin(torch.pi * x) * torch.sin(torch.pi * y), length)
    u = corrupted(u0, length * (2 * EDDY_FOURIER) ** 0.5, device, peclet=EDDY_PECLET, turbulence=eddy, scheme=scheme)
    return float((u - exact).abs().max())


def test_the_spectral_reference_has_converged() -> None:
    a, finer = eddy_reference(), eddy_reference(40, 600)
    finer[:32, :32] -= a
    assert np.abs(finer).max() < 1e-9
    # Diffusion alone would only damp a[1, 0].
    assert abs(a[1, 0]) < 0.9 * 0.3 * np.exp(-(np.pi**2) * EDDY_FOURIER)


@pytest.mark.parametrize("theta", [1 / 3, 1 / 2])
def test_second_order_in_an_eddy_between_walls(theta: float, device: torch.device) -> None:
    errors = [eddy_error(length, one_temperature(theta, peak=2.0), device) for length in (32, 64, 128)]
    assert orders(errors).min() > 1.9, orders(errors)


def test_an_eddy_between_walls_by_the_default_scheme(device: torch.device) -> None:
    """Within 0.1/255 of the spectral solution at 128 px.

    Without the correction for curved paths the error is 0.5/255, by a source of Pe^2 Fo theta / (4 L^2) div (vhat . grad) vhat
    times u. This divergence is 8 pi^2 in the middle of the eddy, so the source changes u there by a fraction of 0.005.
    """
    assert eddy_error(128, DEFAULT_SCHEME, device) < 0.1 / 255


# Exact solutions


@pytest.mark.parametrize("theta", [1 / 3, 1 / 2, 2 / 3, None])
def test_decay_of_single_cosine_modes(theta: float | None, device: torch.device) -> None:
    """A mode between walls only decays, at the rate of the heat equation up to the error of the scheme.

    Along an axis the rate is theta k^2 / 2 (1 - (1 - 3 theta) k^2 / 12 + (1 - 15 theta + 30 theta^2) k^4 / 360 + O(k^6)). ``None``
    is the default scheme: theta = 1/3 until sigma = 3 px, then 1/2, and a partial iteration at the end.
    """
    length, sigma = 64, 6.1
    orders_of = [(0, 1), (1, 0), (3, 0), (2, 5), (7, 7), (0, 12), (12, 5)]
    x, y = centres(length)
    modes = torch.stack([torch.cos(torch.pi * n * x) * torch.cos(torch.pi * m * y) for n, m in orders_of])[:, None]
    scheme = DEFAULT_SCHEME if theta is None else one_temperature(theta)
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), peclet=0.0, exact=False, coarsen=False, scheme=scheme)
    u = operator(modes.to(device), 1, seed=0).cpu()

    plan = operator.plan(length, length)
    (grid,) = plan.grids
    full = int(plan.level_iterations[1])
    sharp = min(grid.smooth_from, full)
    counts = [(grid.theta[0], sharp), (grid.theta[1], full - sharp), (float(plan.level_theta[1]), 1)]
    for (n, m), before, after in zip(orders_of, modes, u, strict=True):
        amplitude = float((after * before).sum() / (before * before).sum())
        torch.testing.assert_close(after, amplitude * before, rtol=0, atol=1e-13)
        k = np.pi * np.array([n, m]) / length
        exact = (k**2).sum() * sigma**2 / 2
        second = -sum(c * t / 2 * (1 - 3 * t) for t, c in counts) * (k**4).sum() / 12
        fourth = sum(c * t / 2 * (1 - 15 * t + 30 * t**2) for t, c in counts) * (k**6).sum() / 360
        # The rounding error of an amplitude, which may be 1e-7, is 1e-9 of it.
        assert abs(-np.log(amplitude) - exact - second) < 1.5 * abs(fourth) + 1e-9, (n, m)


def test_a_gaussian_hill_in_solid_body_rotation(device: torch.device) -> None:
    """psi ~ r^2: a hill at r0 turns by the angle omega Pe Fo, and its variance along either axis grows by sigma^2.

    The velocity is linear in x, so the first two moments of the scheme are known. An iteration turns the hill by omega_lu and
    stretches it by 1 + omega_lu^2 / 2. In total the radius is too large by a fraction of angle omega_lu / 2, the variance by twice
    that, and the angle too small by a fraction of omega_lu^2 / 3.
    """
    length, width, sigma, r0, edge = 128, 0.03 * 128, 0.04 * 128, 0.15, 0.48
    rotation = curl(lambda x, y: ((x - 0.5) ** 2 + (y - 0.5) ** 2).clamp(max=edge**2), length)
    (v,) = rotation.given
    # v_x = omega y, v_y = -omega x (y down: counter-clockwise on the screen), omega in V / L.
    omega = float(v[0, 65, 64] - v[0, 64, 64]) * length
    angle, fourier = np.pi / 2, (sigma / length) ** 2 / 2
    peclet = angle / (omega * fourier)
    x, y = (length * part for part in centres(length))
    centre = length / 2
    hill = torch.exp(-((x - centre - r0 * length) ** 2 + (y - centre) ** 2) / (2 * width**2))
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), peclet=peclet, turbulence=rotation)
    u = operator(hill[None, None].to(device), 1, seed=0)[0, 0].cpu()
    omega_lu = angle / int(operator.plan(length, length).level_iterations[1])

    mass = u.sum()
    assert float(mass) == pytest.approx(float(hill.sum()), rel=1e-12)
    cx, cy = float((u * x).sum() / mass), float((u * y).sum() / mass)
    radius, turned = np.hypot(cx - centre, cy - centre), np.arctan2(-(cy - centre), cx - centre)
    stretch = angle * omega_lu / 2
    assert stretch < 0.005
    assert turned == pytest.approx(angle, abs=angle * omega_lu**2)
    assert abs(radius / (r0 * length) - 1) < 1.05 * stretch
    variance = [float((u * (x - cx) ** 2).sum() / mass), float((u * (y - cy) ** 2).sum() / mass)]
    skew = float((u * (x - cx) * (y - cy)).sum() / mass)
    assert variance == pytest.approx([width**2 + sigma**2] * 2, rel=2 * stretch)
    assert abs(skew) < 1e-3 * sigma**2


# Range


def black_and_white(length: int) -> dict[str, torch.Tensor]:
    step = torch.zeros((length, length), dtype=torch.float64)
    step[length // 4 : length // 2, length // 8 : length // 2] = 1.0
    noise = torch.rand((length, length), generator=torch.Generator().manual_seed(0)) > 0.5
    return {"step": step, "noise": noise.double()}


SIGMAS = (0.5, 1.0, 2.0, 5.0)


@pytest.mark.parametrize("direction", [(1.0, 1.0), (-1.0, 0.3), (0.0, -1.0)])
def test_a_constant_flow_does_not_overshoot_up_to_the_velocity_theta(direction: tuple[float, float], device: torch.device) -> None:
    """u = Pe theta / (2 L) vhat, so |u| <= theta is Pe |vhat| <= 2 L. No weight is negative: 0 <= result <= 1 up to rounding."""
    length = 64
    for u0 in black_and_white(length).values():
        for sigma in SIGMAS:
            u = corrupted(u0, sigma, device, peclet=2.0 * length, turbulence=constant(*direction, length), boundary="periodic")
            assert u.min() >= -1e-13 and u.max() <= 1 + 1e-13


def test_a_faster_flow_overshoots(device: torch.device) -> None:
    """Four times as fast: phi_- = (theta + u^2 - u) / 2 < 0, and a step overshoots by 5 % or more."""
    length = 64
    step = black_and_white(length)["step"]
    u = corrupted(step, 1.0, device, peclet=8.0 * length, turbulence=constant(1.0, 0.0, length), boundary="periodic")
    assert u.min() < -0.05 and u.max() > 1.05


def test_turbulence_keeps_images_between_zero_and_a_white_image(device: torch.device) -> None:
    """Up to Pe = 2 L / peak no weight is negative, so A is monotone: 0 <= A(u) <= A(1) for 0 <= u <= 1, up to rounding.

    A(1) is one up to the second-order error in a flow that varies, here 0.06 at Pe = 0.6 L.
    """
    length = 64
    peak = float(CurlNoise().velocity(0, length, length).abs().max())
    options = {"peclet": 2.0 * length / peak, "turbulence": CurlNoise()}
    for sigma in SIGMAS:
        white = corrupted(torch.ones((length, length), dtype=torch.float64), sigma, device, **options)
        assert (white - 1).abs().max() < 0.1
        for u0 in black_and_white(length).values():
            u = corrupted(u0, sigma, device, **options)
            assert u.min() >= -1e-13 and (white - u).min() >= -1e-13


# Resolution


def cat(length: int) -> torch.Tensor:
    """A 256 x 256 piece of the bundled photograph, its green channel, averaged over squares down to ``length`` pixels."""
    with Image.open(asset("chelsea.png")) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)[22:278, 80:336, 1] / 255.0
    return averaged(torch.from_numpy(pixels.copy()), length)


def averaged(u: torch.Tensor, length: int) -> torch.Tensor:
    factor = len(u) // length
    return u.reshape(length, factor, length, factor).mean(dim=(1, 3))


@pytest.mark.parametrize("sigma", [0.06, 0.12])
def test_an_image_of_any_size_is_corrupted_alike(sigma: float, device: torch.device) -> None:
    """One photograph, Fo, Pe and seed at 64, 128 and 256 px, compared at 64 px, where sigma is 4 and 8 px: within 0.2/255 rms.

    With an error c h^2, h in units of the pixels at 256 px, the differences to the result at 256 px are (16 - 1) c and (4 - 1) c.
    Their ratio is 5, and at least 4 with the terms of higher order.
    """
    results = [averaged(corrupted(cat(n), sigma * n, device, peclet=8.0, turbulence=CurlNoise()), 64) for n in (64, 128, 256)]
    coarse, medium = (255 * (u - results[2]).square().mean().sqrt() for u in results[:2])
    assert coarse < 0.2 and coarse > 4 * medium, (coarse, medium)


# Symmetries


SIZE = 32


def rough() -> tuple[torch.Tensor, torch.Tensor]:
    """A white random image and a white random velocity, without symmetries."""
    generator = torch.Generator().manual_seed(5)
    u0 = torch.rand((SIZE, SIZE), generator=generator, dtype=torch.float64)
    return u0, torch.randn((2, SIZE, SIZE), generator=generator, dtype=torch.float64)


def through(u0: torch.Tensor, v: torch.Tensor, boundary: str, device: torch.device) -> torch.Tensor:
    u = corrupted(u0, 4.3, device, peclet=6.0, turbulence=GivenVelocity(v[None]), boundary=boundary)
    assert (u - u0).abs().max() > 0.1
    return u


# About 50 iterations, each a mean of nine numbers below one: the rounding error is a few times 1e-16.
ROUNDING = {"rtol": 0, "atol": 1e-13}
SIGN_X = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_mirrors_commute_with_the_operator(boundary: str, device: torch.device) -> None:
    u0, v = rough()
    u = through(u0, v, boundary, device)
    torch.testing.assert_close(through(u0.flip(1), SIGN_X * v.flip(2), boundary, device), u.flip(1), **ROUNDING)
    torch.testing.assert_close(through(u0.flip(0), -SIGN_X * v.flip(1), boundary, device), u.flip(0), **ROUNDING)
    # Mirroring the image alone is different.
    assert (through(u0.flip(1), v, boundary, device) - u.flip(1)).abs().max() > 0.01


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_transposing_commutes_with_the_operator(boundary: str, device: torch.device) -> None:
    u0, v = rough()
    u = through(u0, v, boundary, device)
    torch.testing.assert_close(through(u0.T, v.flip(0).transpose(1, 2), boundary, device), u.T, **ROUNDING)
    assert (through(u0.T, v.transpose(1, 2), boundary, device) - u.T).abs().max() > 0.01


def test_rolling_commutes_with_the_periodic_operator(device: torch.device) -> None:
    u0, v = rough()
    u = through(u0, v, "periodic", device)
    for shift in ((5, 0), (0, -3), (17, 9)):
        rolled = through(u0.roll(shift, (0, 1)), v.roll(shift, (1, 2)), "periodic", device)
        torch.testing.assert_close(rolled, u.roll(shift, (0, 1)), **ROUNDING)
