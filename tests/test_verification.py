"""The operator against mathematics: orders of convergence, exact solutions, an independent spectral solution, symmetries.

Everything runs in float64, so what is left is the scheme's own error. With k the wavenumber and u the velocity in lattice units,
one iteration along one axis multiplies a wave by G = 1 - (theta + u^2) (1 - cos k) - i u sin k. Its logarithm is

    -i u k - theta k^2 / 2 + i (u (1 - 3 theta) - u^3) k^3 / 6 + (theta (1 - 3 theta) - (3 - 6 theta) u^2 + 3 u^4) k^4 / 24 + ...

The first two terms are exact. At fixed Fo, Pe and x / L, k and u fall as 1 / L and the iterations grow as L^2, so a term of order n
in k and u together is an error of order n - 2: fourth at theta = 1/3, second elsewhere, and second in a flow that varies.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

import lbm_warp.lattice as lattice
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule


class GivenFlow:
    """A test double of a turbulence: one field [2, height, width] for all seeds, in units of V, from a function of the size."""

    def __init__(self, field: Callable[[int, int], torch.Tensor]) -> None:
        self.field = field

    def velocity(self, seed, height, width, *, boundary="wall", device="cpu", time=0.0) -> torch.Tensor:
        return self.field(height, width).to(device).expand(len(seed), 2, height, width)


def constant(x: float, y: float) -> GivenFlow:
    return GivenFlow(lambda height, width: torch.tensor([x, y], dtype=torch.float64)[:, None, None].expand(2, height, width))


def curl(psi: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> GivenFlow:
    """Discrete curl of a stream function of (x / L, y / L) on the corners of the cells, with unit rms."""

    def field(height: int, width: int) -> torch.Tensor:
        length = min(height, width)
        y, x = (torch.arange(size + 1, dtype=torch.float64) / length for size in (height, width))
        corners = psi(x[None, :], y[:, None])
        along_y, along_x = corners.diff(dim=0), corners.diff(dim=1)
        v = torch.stack([along_y[:, 1:] + along_y[:, :-1], -along_x[1:] - along_x[:-1]])
        return v / v.square().mean().sqrt()

    return GivenFlow(field)


def middles(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """x / L along a row and y / L along a column of the middles of the cells."""
    middle = (torch.arange(length, dtype=torch.float64) + 0.5) / length
    return middle[None, :], middle[:, None]


def corrupted(u0: torch.Tensor, sigma: float, device: torch.device, **options) -> torch.Tensor:
    """One image [H, W] at blur width ``sigma`` pixels, on one grid."""
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), coarsen=False, exact=False, **options)
    return operator(u0[None, None].to(device), 1, seed=0)[0, 0].cpu()


@pytest.fixture
def one_temperature(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Make the march keep one lattice temperature, in flows whose peak, in units of V, is known."""

    def keep(theta: float, peak: float = 1.0) -> None:
        monkeypatch.setattr(lattice, "THETA_SHARP", theta)
        monkeypatch.setattr(lattice, "THETA_SMOOTH", theta)
        monkeypatch.setattr(lattice, "PEAK_TO_RMS", peak)

    return keep


def orders(errors: list[float]) -> np.ndarray:
    """Observed orders between resolutions that double."""
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


# Orders of convergence


def diffusion_error(length: int, device: torch.device) -> float:
    # cos(3 pi x) cos(2 pi y) between insulating walls decays by exp(-k^2 sigma^2 / 2), k^2 = (9 + 4) pi^2 / L^2.
    x, y = middles(length)
    wave = torch.cos(3 * torch.pi * x) * torch.cos(2 * torch.pi * y)
    # 6, 4 or 3 full iterations at 16 px, so that the read-out iteration has nothing to do.
    variance = 2.0 * (length / 16) ** 2
    exact = np.exp(-13 * np.pi**2 * variance / (2 * length**2)) * wave
    return float((corrupted(wave, variance**0.5, device, peclet=0.0) - exact).abs().max())


@pytest.mark.parametrize(("theta", "order"), [(1 / 3, 4), (1 / 2, 2), (2 / 3, 2)])
def test_order_of_diffusion_between_walls(theta: float, order: int, one_temperature, device: torch.device) -> None:
    """The next term of the error is two orders higher: a share of k^2 of the error, 0.09 at 32 px, so 0.1 off the whole order."""
    one_temperature(theta)
    observed = orders([diffusion_error(length, device) for length in (16, 32, 64)])
    assert np.abs(observed - order).max() < 0.1, observed


def advection_error(length: int, device: torch.device) -> float:
    # cos(2 pi (2 x + y)) in the flow vhat becomes exp(-5 (2 pi)^2 Fo) cos(2 pi (2 (x - Pe Fo vhat_x) + (y - Pe Fo vhat_y))).
    x, y = middles(length)
    peclet, direction, variance = 16.0, (1.2, -0.7), 4.0 * (length / 16) ** 2
    fourier = variance / (2 * length**2)

    def wave(time: float) -> torch.Tensor:
        dx, dy = (peclet * time * v for v in direction)
        return np.exp(-5 * (2 * np.pi) ** 2 * time) * torch.cos(2 * torch.pi * (2 * (x - dx) + (y - dy)))

    u = corrupted(wave(0.0), variance**0.5, device, peclet=peclet, turbulence=constant(*direction), boundary="periodic")
    return float((u - wave(fourier)).abs().max())


@pytest.mark.parametrize(("theta", "order"), [(1 / 3, 4), (1 / 2, 2), (2 / 3, 2)])
def test_order_of_advection_diffusion_in_a_constant_flow(theta: float, order: int, one_temperature, device: torch.device) -> None:
    """Fourth order at theta = 1/3: with the dispersion u (1 - 3 theta) k^3 / 6 gone, u^3 k^3 / 6 and the like are next.

    Again the next term is a share of k^2, here 0.15 at 32 px, of the error, so 0.1 off the whole order.
    """
    one_temperature(theta, peak=1.2)
    observed = orders([advection_error(length, device) for length in (32, 64, 128)])
    assert np.abs(observed - order).max() < 0.1, observed


# psi = sin(pi x) sin(pi y): one eddy that fills the box, vhat = (2 sin(pi x) cos(pi y), -2 cos(pi x) sin(pi y)).
EDDY = curl(lambda x, y: torch.sin(torch.pi * x) * torch.sin(torch.pi * y))
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


def eddy_error(length: int, device: torch.device) -> float:
    x, y = middles(length)
    u0 = 0.5 + 0.3 * torch.cos(torch.pi * x) + 0.2 * torch.cos(2 * torch.pi * x) * torch.cos(torch.pi * y)
    a = eddy_reference()
    waves = np.cos(np.pi * np.outer((np.arange(length) + 0.5) / length, np.arange(len(a))))
    exact = torch.from_numpy(waves @ a.T @ waves.T)
    u = corrupted(u0, length * (2 * EDDY_FOURIER) ** 0.5, device, peclet=EDDY_PECLET, turbulence=EDDY)
    return float((u - exact).abs().max())


def test_the_spectral_reference_has_converged() -> None:
    a, finer = eddy_reference(), eddy_reference(40, 600)
    finer[:32, :32] -= a
    assert np.abs(finer).max() < 1e-9
    # An eddy that did nothing would leave a[1, 0] alone.
    assert abs(a[1, 0]) < 0.9 * 0.3 * np.exp(-(np.pi**2) * EDDY_FOURIER)


@pytest.mark.parametrize("theta", [1 / 3, 1 / 2])
def test_second_order_in_an_eddy_between_walls(theta: float, one_temperature, device: torch.device) -> None:
    """A flow that varies: an iteration misses the half step (u . grad) u / 2 of a path that bends, second order at any theta."""
    one_temperature(theta, peak=2.0)
    errors = [eddy_error(length, device) for length in (32, 64, 128)]
    assert orders(errors).min() > 1.9, orders(errors)


def test_an_eddy_between_walls_as_the_operator_marches(device: torch.device) -> None:
    """The march as it is, with its two temperatures, is within 0.6/255 of the spectral solution at 128 px.

    The missed half step has a divergence, so it acts as a source of Pe^2 Fo theta / (4 L^2) div (vhat . grad) vhat times u, and the
    eddy has 8 pi^2 for the divergence at its middle. With theta = 1/2 that comes to 0.005 of u = 0.5.
    """
    assert eddy_error(128, device) < 0.6 / 255


# Exact solutions


@pytest.mark.parametrize("theta", [1 / 3, 1 / 2, 2 / 3, None])
def test_decay_of_single_cosine_modes(theta: float | None, one_temperature, device: torch.device) -> None:
    """Every mode between walls stays itself and decays at the rate of the heat equation up to the scheme's own error.

    Along an axis the rate is theta k^2 / 2 (1 - (1 - 3 theta) k^2 / 12 + (1 - 15 theta + 30 theta^2) k^4 / 360 + O(k^6)). ``None``
    is the march as it is: theta = 1/3 until sigma = 3 px, 1/2 afterwards, and a partial iteration at the end.
    """
    if theta is not None:
        one_temperature(theta)
    length, sigma = 64, 6.1
    modes = [(0, 1), (1, 0), (3, 0), (2, 5), (7, 7), (0, 12), (12, 5)]
    x, y = middles(length)
    waves = torch.stack([torch.cos(torch.pi * n * x) * torch.cos(torch.pi * m * y) for n, m in modes])[:, None]
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), peclet=0.0, exact=False)
    u = operator(waves.to(device), 1, seed=0).cpu()

    plan = operator.march(length, length)
    (grid,) = plan.grids
    sharp = min(grid.smooth_from, int(plan.anchor[1]))
    shares = [(grid.theta[0], sharp), (grid.theta[1], int(plan.anchor[1]) - sharp), (float(plan.partial_theta[1]), 1)]
    for (n, m), before, after in zip(modes, waves, u, strict=True):
        amplitude = float((after * before).sum() / (before * before).sum())
        torch.testing.assert_close(after, amplitude * before, rtol=0, atol=1e-13)
        k = np.pi * np.array([n, m]) / length
        exact = (k**2).sum() * sigma**2 / 2
        second = -sum(c * t / 2 * (1 - 3 * t) for t, c in shares) * (k**4).sum() / 12
        fourth = sum(c * t / 2 * (1 - 15 * t + 30 * t**2) for t, c in shares) * (k**6).sum() / 360
        # Rounding of an amplitude down to 1e-7 is 1e-9 of it.
        assert abs(-np.log(amplitude) - exact - second) < 1.5 * abs(fourth) + 1e-9, (n, m)


def test_a_hill_in_solid_body_rotation_turns_and_spreads(device: torch.device) -> None:
    """psi ~ r^2: a hill at r0 turns by the angle omega Pe Fo, and its variance along either axis grows by sigma^2.

    In such a flow u is linear in x, so the first two moments of the scheme are known: an iteration turns by omega_lu forward in
    time, which also stretches by 1 + omega_lu^2 / 2. Over the whole angle: angle omega_lu / 2 of the radius, twice that of the
    variance; and the angle falls short by omega_lu^2 / 3 of itself.
    """
    length, width, sigma, r0, edge = 128, 0.03 * 128, 0.04 * 128, 0.15, 0.48
    rotation = curl(lambda x, y: ((x - 0.5) ** 2 + (y - 0.5) ** 2).clamp(max=edge**2))
    v = rotation.field(length, length)
    # u_x = omega y, u_y = -omega x (y down: counter-clockwise on the screen), omega in V / L.
    omega = float(v[0, 65, 64] - v[0, 64, 64]) * length
    angle, fourier = np.pi / 2, (sigma / length) ** 2 / 2
    peclet = angle / (omega * fourier)
    x, y = (length * part for part in middles(length))
    centre = length / 2
    hill = torch.exp(-((x - centre - r0 * length) ** 2 + (y - centre) ** 2) / (2 * width**2))
    operator = AdvectionDiffusion(Schedule(np.array([0.0, sigma])), peclet, rotation)
    u = operator(hill[None, None].to(device), 1, seed=0)[0, 0].cpu()
    omega_lu = angle / int(operator.march(length, length).anchor[1])

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
def test_a_constant_flow_never_overshoots_while_it_is_no_faster_than_theta(
    direction: tuple[float, float], device: torch.device
) -> None:
    """u = Pe theta / (2 L) vhat, so |u| <= theta is Pe |vhat| <= 2 L. Then the weights are means: 0 <= result <= 1, to rounding."""
    length = 64
    for u0 in black_and_white(length).values():
        for sigma in SIGMAS:
            u = corrupted(u0, sigma, device, peclet=2.0 * length, turbulence=constant(*direction), boundary="periodic")
            assert u.min() >= -1e-13 and u.max() <= 1 + 1e-13


def test_weights_turn_negative_in_a_faster_flow(device: torch.device) -> None:
    """Four times as fast: phi_- = (theta + u^2 - u) / 2 < 0, and a step overshoots by ten per cent."""
    length = 64
    step = black_and_white(length)["step"]
    u = corrupted(step, 1.0, device, peclet=8.0 * length, turbulence=constant(1.0, 0.0), boundary="periodic")
    assert u.min() < -0.05 and u.max() > 1.05


def test_turbulence_keeps_black_and_white_between_nothing_and_a_flat_white_image(device: torch.device) -> None:
    """Up to Pe = 2 L / peak no weight is negative, so A(u) is monotonous: 0 <= A(u) <= A(1) for 0 <= u <= 1, to rounding.

    A(1) itself is one only up to the second-order error of a flow that varies: 0.06 here, where Pe = 0.6 L.
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
    with Image.open(str(resources.files("assets") / "chelsea.png")) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float64)[22:278, 80:336, 1] / 255.0
    return averaged(torch.from_numpy(pixels.copy()), length)


def averaged(u: torch.Tensor, length: int) -> torch.Tensor:
    factor = len(u) // length
    return u.reshape(length, factor, length, factor).mean(dim=(1, 3))


@pytest.mark.parametrize("sigma", [0.06, 0.12])
def test_a_picture_of_any_size_is_corrupted_alike(sigma: float, device: torch.device) -> None:
    """One photograph, Fo, Pe and seed at 64, 128 and 256 px, compared at 64 px: 0.2/255 rms, sigma being 4 and 8 px there.

    An error c h^2 leaves differences of (16 - 1) c and (4 - 1) c to the result at 256 px, with h in units of its pixels: a ratio
    of 5, and of 4 at least with what is of higher order.
    """
    results = [averaged(corrupted(cat(n), sigma * n, device, peclet=8.0, turbulence=CurlNoise()), 64) for n in (64, 128, 256)]
    coarse, medium = (255 * (u - results[2]).square().mean().sqrt() for u in results[:2])
    assert coarse < 0.2 and coarse > 4 * medium, (coarse, medium)


# Symmetries


SIZE = 32


def rough() -> tuple[torch.Tensor, torch.Tensor]:
    """A random picture and a random flow, rough down to the pixels: no symmetry of its own, every direction different."""
    generator = torch.Generator().manual_seed(5)
    u0 = torch.rand((SIZE, SIZE), generator=generator, dtype=torch.float64)
    return u0, torch.randn((2, SIZE, SIZE), generator=generator, dtype=torch.float64)


def through(u0: torch.Tensor, v: torch.Tensor, boundary: str, device: torch.device) -> torch.Tensor:
    u = corrupted(u0, 4.3, device, peclet=6.0, turbulence=GivenFlow(lambda height, width: v), boundary=boundary)
    assert (u - u0).abs().max() > 0.1
    return u


# About 50 iterations, each a mean of nine numbers below one: a few times 1e-16, and 1e-13 is generous.
ROUNDING = {"rtol": 0, "atol": 1e-13}
SIGN_X = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None]


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_mirrors_commute_with_the_operator(boundary: str, device: torch.device) -> None:
    u0, v = rough()
    u = through(u0, v, boundary, device)
    torch.testing.assert_close(through(u0.flip(1), SIGN_X * v.flip(2), boundary, device), u.flip(1), **ROUNDING)
    torch.testing.assert_close(through(u0.flip(0), -SIGN_X * v.flip(1), boundary, device), u.flip(0), **ROUNDING)
    # Mirroring the picture alone is something else.
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


# Spectrum


def test_curl_noise_has_a_kolmogorov_spectrum(device: torch.device) -> None:
    """E(k) ~ k^(-5/3) within 0.15, mean of 32 periodic fields, on rings from k = 2 to 16 waves a side.

    The first octave has 2 noise cells a side, the last 32; half of that is where no octave is left to fill in the next scale.
    Ripples of period 2 remain, as an octave is a bump about an octave wide: hence a range of whole octaves.
    """
    size = 256
    v = CurlNoise(octaves=5, cells=2).velocity(range(32), size, size, boundary="periodic", device=device).cpu().double()
    energy = torch.fft.fft2(v).abs().square().sum(dim=1).mean(dim=0).numpy()
    k = np.hypot(*np.meshgrid(*[np.fft.fftfreq(size, 1 / size)] * 2))
    rings = np.arange(2, 17)
    spectrum = [energy[(k >= ring - 0.5) & (k < ring + 0.5)].sum() for ring in rings]
    assert np.polyfit(np.log(rings), np.log(spectrum), 1)[0] == pytest.approx(-5 / 3, abs=0.15)
