"""A diffusivity that varies, walls inside, sources: against exact steady states, spectral and finite-volume solutions, and laws.

Lengths are in sides of the image and time is Fo, so du/dFo = div(a grad u) - Pe div(v u) + q.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.linalg import eigh, expm
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import expm_multiply
from torch.autograd import forward_ad

from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, InputError, Medium, Schedule, SpectralTurbulence
from lbm_warp.turbulence import curl, stream_function
from tests.test_verification import centres, corrupted, one_temperature, orders

TWO_PI = 2.0 * np.pi
SCHEDULE = Schedule.geometric(0.5, 5.0, 6)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blur_of(fourier: float, length: int) -> float:
    """sigma [pixels], from Fo = sigma^2 / (2 L^2)."""
    return length * (2.0 * fourier) ** 0.5


def box(height: int, width: int) -> torch.Tensor:
    """Walls of a closed box with its inside."""
    walls = torch.zeros(height, width, dtype=torch.bool)
    walls[3:-3, 4:-4] = True
    walls[4:-4, 5:-5] = False
    return walls


def derivative(points: int) -> np.ndarray:
    """The spectral derivative on so many points of a period of one."""
    k = 2j * np.pi * np.fft.fftfreq(points, 1.0 / points)
    k[points // 2] = 0.0
    return np.fft.ifft(k[:, None] * np.fft.fft(np.eye(points), axis=0), axis=0).real


@pytest.mark.parametrize("theta", [1 / 3, 1 / 2])
@pytest.mark.parametrize("peclet", [0.0, 5.0])
def test_a_smooth_diffusivity_and_a_flow_converge_to_a_spectral_solution_with_order_two(peclet: float, theta: float) -> None:
    """Isotropic or not, the error falls fourfold when the cells are halved; the reference is exact to 2e-4."""
    fourier, points = 0.02, 24
    along = np.arange(points) / points
    x, y = np.meshgrid(along, along)

    def alpha(x, y):
        return (1.0 + 0.6 * np.cos(TWO_PI * x) * np.cos(TWO_PI * y) + 0.2 * np.sin(TWO_PI * x)) / 1.8

    def start(x, y):
        return np.sin(TWO_PI * x) + np.cos(TWO_PI * (x + y))

    d_x, d_y = np.kron(np.eye(points), derivative(points)), np.kron(derivative(points), np.eye(points))
    v_x = np.diag((2.0 * np.sin(TWO_PI * x) * np.cos(TWO_PI * y)).ravel())
    v_y = np.diag((-2.0 * np.cos(TWO_PI * x) * np.sin(TWO_PI * y)).ravel())
    a = np.diag(alpha(x, y).ravel())
    generator = d_x @ a @ d_x + d_y @ a @ d_y - peclet * (d_x @ v_x + d_y @ v_y)
    modes = np.fft.fft2((expm(fourier * generator) @ start(x, y).ravel()).reshape(points, points)) / points**2
    errors = []
    for length in (16, 32, 64):
        (x, y), edge = (c.numpy() for c in centres(length)), np.arange(length + 1) / length
        psi = -np.outer(np.sin(TWO_PI * edge), np.sin(TWO_PI * edge)) * length / np.pi
        waves = np.exp(1j * TWO_PI * np.outer(x[0], np.fft.fftfreq(points, 1.0 / points)))
        flow = GivenVelocity(curl(-torch.from_numpy(psi)[None]))
        how = {"peclet": peclet, "turbulence": flow, "boundary": "periodic", "scheme": one_temperature(theta, 2.0)}
        u = corrupted(
            torch.from_numpy(start(x, y)),
            blur_of(fourier, length),
            torch.device("cpu"),
            medium=Medium(alpha=torch.from_numpy(alpha(x, y))),
            **how,
        )
        errors.append(np.abs(u.numpy() - (waves @ modes @ waves.T).real).max())
    assert errors[-1] < 5e-3 and (orders(errors) > 1.7).all(), errors


def test_the_slowest_mode_of_a_diffusivity_decays_at_the_rate_of_a_fine_grid() -> None:
    """alpha = 1 + cos(2 pi x) / 2 over its largest value: rates from scipy's eigenvalues; order two."""
    points, fourier, errors = 64, 0.02, []
    d, x = derivative(points), np.arange(points) / points
    rates, modes = eigh(-d @ np.diag((1.0 + 0.5 * np.cos(TWO_PI * x)) / 1.5) @ d)
    slowest = next(i for i, rate in enumerate(rates) if rate > 1e-6)
    for length in (16, 32, 64):
        x, _ = centres(length)
        waves = np.exp(1j * TWO_PI * np.outer(x[0], np.fft.fftfreq(points, 1.0 / points)))
        mode = torch.from_numpy((waves @ np.fft.fft(modes[:, slowest])).real / points).expand(length, length)
        medium = Medium(alpha=((1.0 + 0.5 * torch.cos(TWO_PI * x)) / 1.5).expand(length, length))
        u = corrupted(mode, blur_of(fourier, length), torch.device("cpu"), peclet=0.0, boundary="periodic", medium=medium)
        errors.append(abs(-np.log(((u * mode).sum() / mode.square().sum()).item()) / fourier / rates[slowest] - 1.0))
    assert errors[-1] < 2e-3 and (orders(errors) > 1.8).all(), errors


@pytest.mark.parametrize("across", [False, True])
def test_two_layers_conduct_heat_like_resistances_in_series(across: bool) -> None:
    """Heat goes in at the left and out at the right. Where layers meet, half a cell of each resists: the harmonic mean, exactly."""
    length, flux = 12, 3.0
    alpha = torch.full((length, length), 0.2, dtype=torch.float64)
    alpha[:, :5] = 1.0
    source = torch.zeros_like(alpha)
    source[:, 0], source[:, -1] = flux * length, -flux * length  # a cell is 1 / length wide
    resistance = (1.0 / alpha[:, 1:] + 1.0 / alpha[:, :-1]) / (2.0 * length)
    steady = torch.cat([torch.zeros(length, 1), -(flux * resistance).cumsum(dim=1)], dim=1)
    fields = {"alpha": alpha, "source": source}
    if across:
        steady, fields = steady.T.contiguous(), {name: field.T for name, field in fields.items()}
    u = corrupted(steady, 7.0, torch.device("cpu"), peclet=0.0, medium=Medium(**fields))
    torch.testing.assert_close(u, steady, rtol=0, atol=1e-12)


def test_layers_conduct_along_themselves_side_by_side() -> None:
    """A gradient along them gives each layer the flux of its own diffusivity: what goes in at one end leaves at the other."""
    length = 12
    alpha = torch.full((length, length), 0.2, dtype=torch.float64)
    alpha[:, :5] = 1.0
    steady = torch.arange(length, dtype=torch.float64)[:, None].expand(length, length) / length
    source = torch.zeros_like(alpha)
    source[0], source[-1] = -alpha[0] * length, alpha[-1] * length
    u = corrupted(steady, 7.0, torch.device("cpu"), peclet=0.0, medium=Medium(alpha=alpha, source=source))
    torch.testing.assert_close(u, steady, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_a_constant_diffusivity_is_less_blur(share: float) -> None:
    """By sigma sqrt(alpha); exactly the scheme at theta alpha, with the schedule's iterations."""
    u0, sigma = random(20, 24), 6.0
    medium = Medium(alpha=torch.full((20, 24), share, dtype=torch.float64))
    slow = corrupted(u0, sigma, torch.device("cpu"), peclet=0.0, scheme=one_temperature(1 / 3), medium=medium)
    same = corrupted(u0, sigma * share**0.5, torch.device("cpu"), peclet=0.0, scheme=one_temperature(share / 3))
    torch.testing.assert_close(slow, same, rtol=0, atol=1e-12)


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_nothing_leaks_out_of_a_box_or_into_its_walls(boundary: str) -> None:
    """Not one bit, also in a flow: other contents of the box change nothing outside, and the walls keep their values."""
    walls, size = box(24, 40), (24, 40)
    inside = torch.zeros(size, dtype=torch.bool)
    inside[4:-4, 5:-5] = True
    operator = AdvectionDiffusion(SCHEDULE, peclet=20.0, boundary=boundary, medium=Medium(walls=walls))
    u0 = random(1, 2, *size, dtype=torch.float32)
    other = torch.where(inside, random(1, 2, *size, seed=1, dtype=torch.float32), u0)
    u, changed = (operator(images, 6, seed=3) for images in (u0, other))
    assert torch.equal(u[..., ~inside], changed[..., ~inside]) and not torch.equal(u[..., inside], changed[..., inside])
    assert torch.equal(u[..., walls], u0[..., walls]) and not torch.equal(u[..., ~walls], u0[..., ~walls])
    torch.testing.assert_close(u[..., inside].sum(-1), u0[..., inside].sum(-1), rtol=1e-5, atol=0)


def test_a_wall_inside_is_a_wall_of_a_smaller_image() -> None:
    walls = torch.zeros(20, 30, dtype=torch.bool)
    walls[:, 16:] = walls[14:] = True
    u0 = random(20, 30)
    u = corrupted(u0, 4.0, torch.device("cpu"), peclet=0.0, medium=Medium(walls=walls))
    small = corrupted(u0[:14, :16].contiguous(), 4.0, torch.device("cpu"), peclet=0.0)
    torch.testing.assert_close(u[:14, :16], small, rtol=0, atol=1e-13)


def test_a_diagonal_wall_of_one_cell_blocks() -> None:
    walls = torch.eye(16, dtype=torch.bool)
    below, u0 = torch.ones(16, 16).tril(-1), random(1, 1, 16, 16)
    u = AdvectionDiffusion(SCHEDULE, peclet=0.0, medium=Medium(walls=walls))(u0, 6, 0)
    torch.testing.assert_close((u * below).sum(), (u0 * below).sum())


def finite_volumes(a: np.ndarray, peclet: float, psi: np.ndarray) -> csr_matrix:
    """du/dFo of square images as a matrix: fluxes through the sides of the cells, with scipy; psi [cells] on their corners."""
    length, number = len(a), np.arange(a.size).reshape(a.shape)
    v_x, v_y = np.diff(psi[:, 1:-1], axis=0), -np.diff(psi[1:-1], axis=1)
    rows, columns, values = [], [], []
    for low, high, v in ((number[:, :-1], number[:, 1:], v_x), (number[:-1], number[1:], v_y)):
        low, high = low.ravel(), high.ravel()
        with np.errstate(divide="ignore"):
            mean = 2.0 / (1.0 / a.ravel()[low] + 1.0 / a.ravel()[high])
        forth, back = (length**2 * mean + sign * peclet * length * v.ravel() / 2.0 for sign in (1.0, -1.0))
        rows += [low, high, low, high]
        columns += [low, low, high, high]
        values += [-forth, forth, back, -back]
    return csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))


def test_an_obstacle_in_a_flow_with_layers_agrees_with_finite_volumes() -> None:
    """The same equation by another scheme; the difference falls with the cells. Without walls it is a hundred times as large."""
    fourier, peclet, differences = 0.02, 10.0, []
    for length in (32, 64):
        x, y = centres(length)
        walls = (abs(x - 0.5) < 0.25) & (abs(y - 0.5) < 0.125)
        alpha = torch.where(y < 0.5, 0.3, 1.0).double().expand(length, length)
        u0 = torch.exp(-((x - 0.25).square() + (y - 0.75).square()) / 0.02)
        operator = AdvectionDiffusion(
            Schedule([0.0, blur_of(fourier, length)]), peclet=peclet, medium=Medium(alpha=alpha, walls=walls)
        )
        psi = stream_function(operator.velocity(3, length, length), "wall")[0].numpy()
        matrix = finite_volumes(np.where(walls, 0.0, alpha), peclet, psi)
        expected = expm_multiply(fourier * matrix, u0.numpy().ravel()).reshape(u0.shape)
        differences.append(np.abs(operator(u0[None, None], 1, 3)[0, 0].numpy() - expected).max())
    assert differences[0] < 0.006 and differences[1] < 0.6 * differences[0], differences


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_a_source_makes_as_much_as_it_says(boundary: str) -> None:
    """At every level, in a flow and in a medium: mass grows by the source times Fo; blocked cells keep what is made in them."""
    size, u0 = (16, 20), random(3, 2, 16, 20)
    source, walls = 10.0 * random(3, 1, *size, seed=1) - 4.0, random(3, 1, *size, seed=2) < 0.1
    medium = Medium(alpha=random(*size, seed=3), walls=walls, source=source)
    operator = AdvectionDiffusion(SCHEDULE, peclet=3.0, boundary=boundary, medium=medium)
    level = torch.tensor([6, 0, 3])
    made = torch.from_numpy(SCHEDULE.fourier(16))[level][:, None] * source.sum(dim=(2, 3))
    u = operator(u0, level, range(3))
    torch.testing.assert_close((u - u0).sum(dim=(2, 3)), made.expand(3, 2), rtol=0, atol=1e-11)
    grown = u - u0 - torch.from_numpy(SCHEDULE.fourier(16))[level][:, None, None, None] * source
    assert grown.abs().masked_select(walls.expand_as(u)).max() < 1e-14


def test_a_source_heats_towards_the_solution_of_poissons_equation_with_order_two() -> None:
    """q = cos(pi x) cos(2 pi y): u = q (1 - exp(-k^2 Fo)) / k^2 with k^2 = 5 pi^2."""
    fourier, k2, errors = 0.03, 5.0 * np.pi**2, []
    for length in (16, 32, 64):
        x, y = centres(length)
        source = torch.cos(np.pi * x) * torch.cos(TWO_PI * y)
        medium = Medium(source=source)
        u = corrupted(torch.zeros_like(source), blur_of(fourier, length), torch.device("cpu"), peclet=0.0, medium=medium)
        errors.append((u - source * (1.0 - np.exp(-k2 * fourier)) / k2).abs().max().item() * k2)
    assert errors[-1] < 2e-3 and (orders(errors) > 1.8).all(), errors


FIELDS: dict[str, Callable[[int, int, int], dict[str, torch.Tensor]]] = {
    "alpha": lambda n, h, w: {"alpha": random(n, 1, h, w, seed=5)},
    "walls": lambda n, h, w: {"walls": random(n, 1, h, w, seed=6) < 0.02},
    "all": lambda n, h, w: {
        "alpha": random(n, 1, h, w, seed=5),
        "walls": random(n, 1, h, w, seed=6) < 0.02,
        "source": random(n, 1, h, w, seed=7),
    },
}


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("name", FIELDS)
def test_the_adjoint_is_the_transpose_of_the_linear_part(name: str, boundary: str) -> None:
    """<w, A u> = <A^T w, u> in float64, in a flow; a medium, a level and a seed for each image. Backward is the adjoint."""
    medium = Medium(**FIELDS[name](3, 20, 28))
    operator = AdvectionDiffusion(SCHEDULE, peclet=6.0, boundary=boundary, medium=medium)
    u, w, level = random(3, 2, 20, 28, seed=1).requires_grad_(), random(3, 2, 20, 28, seed=2), torch.tensor([6, 2, 4])
    image = operator(u, level, range(3))
    linear = image - operator(torch.zeros_like(u), level, range(3))
    adjoint = operator.adjoint(w, level, range(3))
    torch.testing.assert_close((linear * w).sum(dim=(1, 2, 3)), (adjoint * u).sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)
    assert torch.equal(torch.autograd.grad((image * w).sum(), u)[0], adjoint)
    assert operator.linear == (name != "all") and not operator.diagonal


def test_gradients_in_the_flow_are_those_of_finite_differences() -> None:
    """In the Peclet number, and in a velocity that is led around walls."""
    medium, u0 = Medium(**FIELDS["all"](1, 16, 16)), random(1, 1, 16, 16)
    field = (random(1, 2, 16, 16, seed=1) - 0.5).requires_grad_()
    peclet = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    def loss(field: torch.Tensor, peclet: torch.Tensor) -> torch.Tensor:
        return AdvectionDiffusion(SCHEDULE, peclet=peclet, turbulence=GivenVelocity(field), medium=medium)(u0, 4, 0).square().sum()

    gradients = torch.autograd.grad(loss(field, peclet), (field, peclet))
    direction, step = random(1, 2, 16, 16, seed=2) - 0.5, 1e-4
    with torch.no_grad():
        for moved, expected in (
            ([loss(field + sign * step * direction, peclet) for sign in (1, -1)], (gradients[0] * direction).sum()),
            ([loss(field, peclet + sign * step) for sign in (1, -1)], gradients[1]),
        ):
            torch.testing.assert_close((moved[0] - moved[1]) / (2 * step), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize(
    ("turbulence", "rate"), [(CurlNoise(), 0.0), (CurlNoise(), 1.0), (SpectralTurbulence(compressible=True), 0.0)]
)
def test_a_flat_image_stays_flat_and_a_flow_goes_around_walls(turbulence, rate: float, boundary: str) -> None:
    """At a Peclet number that this grid does not resolve. The flow has no divergence, and is at rest in walls and beside them."""
    walls = torch.zeros(40, 48, dtype=torch.bool)
    walls[12:20, 20:26] = walls[30:, 5] = walls[0, 40] = True
    medium = Medium(walls=walls, alpha=random(40, 48).clamp(min=0.1))
    options = {"turbulence": turbulence, "turbulence_time": rate, "boundary": boundary, "medium": medium}
    operator = AdvectionDiffusion(SCHEDULE, peclet=300.0, **options)
    flat = torch.full((2, 1, 40, 48), 0.7)
    iterations = operator.iterations(40, 48)[-1]
    for _, u in operator.trajectory(flat, seed=range(2)):
        assert (u - 0.7).abs().max() <= 2**-24 * (100 + iterations)
    velocity = operator.velocity(range(2), 40, 48)
    beside = torch.nn.functional.max_pool2d(walls[None, None].float(), 5, stride=1, padding=2)[0, 0] > 0.0
    assert (velocity[..., beside] == 0.0).all() and 0.2 < velocity.square().mean().sqrt() < 2.0
    assert velocity.abs().max() <= 6.0
    torch.testing.assert_close(curl(stream_function(velocity, boundary)).float(), velocity, rtol=0, atol=2e-6)


def test_values_stay_in_their_range() -> None:
    """All weights of a fluid at rest are shares, whatever the medium: at both temperatures, in any mixture of layers."""
    alpha = torch.where(random(24, 24) < 0.5, random(24, 24, seed=1), 1e-6 * random(24, 24, seed=2))
    operator = AdvectionDiffusion(SCHEDULE, peclet=0.0, medium=Medium(alpha=alpha, walls=random(24, 24, seed=3) < 0.1))
    noise = (random(2, 1, 24, 24) > 0.5).double()
    for _, u in operator.trajectory(noise, seed=0):
        assert u.min() >= 0.0 and u.max() <= 1.0 + 1e-14


def test_a_smooth_medium_is_coarsened_and_a_wall_is_not(photograph: torch.Tensor) -> None:
    """Within 0.3/255 of the pixel grid; the adjoint and the growth by a source are exact on coarser grids, too."""
    x, y = (c.float() for c in centres(128))
    alpha = (1.0 + 0.6 * torch.cos(TWO_PI * x) * torch.cos(TWO_PI * y)) / 1.6
    medium = Medium(alpha=alpha, source=2.0 * torch.cos(np.pi * x) * y)
    schedule = Schedule.geometric(2.0, 16.0, 3)
    fast, slow = (AdvectionDiffusion(schedule, peclet=1.0, medium=medium, coarsen=coarsen) for coarsen in (True, False))
    assert [grid.factor for grid in fast.plan(128, 128).grids] == [1, 2]
    for (_, u), (_, expected) in zip(*(operator.trajectory(photograph, 0) for operator in (fast, slow)), strict=True):
        assert (u - expected).abs().max() < 0.3 / 255
    u, w = random(1, 1, 128, 128), random(1, 1, 128, 128, seed=1)
    linear = fast(u, 3, 0) - fast(torch.zeros_like(u), 3, 0)
    torch.testing.assert_close((linear * w).sum(), (fast.adjoint(w, 3, 0) * u).sum(), rtol=1e-12, atol=0)
    made = (fast(u, 3, 0) - u).mean() / schedule.fourier(128)[3]
    torch.testing.assert_close(made, medium.source.double().mean(), rtol=1e-9, atol=1e-12)
    point = torch.zeros(128, 128)
    point[60, 60] = 1.0
    for fields in ({"walls": point > 0}, {"alpha": 1.0 - 0.5 * point}, {"source": point}):
        assert len(AdvectionDiffusion(schedule, peclet=1.0, medium=Medium(**fields)).plan(128, 128).grids) == 1


def test_each_image_has_its_medium_whatever_the_batch() -> None:
    """Bit for bit, with levels that change the order, and with one medium for all."""
    fields, u0, level = FIELDS["all"](4, 12, 16), random(4, 3, 12, 16, dtype=torch.float32), torch.tensor([2, 6, 0, 4])
    together = AdvectionDiffusion(SCHEDULE, peclet=5.0, medium=Medium(**fields))(u0, level, range(4))
    first = {name: field[0, 0] for name, field in fields.items()}
    shared = AdvectionDiffusion(SCHEDULE, peclet=5.0, medium=Medium(**first))(u0, level, range(4))
    for n in range(4):
        alone = Medium(**{name: field[n : n + 1] for name, field in fields.items()})
        for medium, batch in ((alone, together), (Medium(**first), shared)):
            one = AdvectionDiffusion(SCHEDULE, peclet=5.0, medium=medium)(u0[n : n + 1], int(level[n]), n)
            assert torch.equal(one, batch[n : n + 1])


def test_a_source_alone_changes_no_weight_and_a_background_stays() -> None:
    """A source of zero is no source, bit for bit, in a compressible flow on a background."""
    options = {"peclet": 1.0, "turbulence": SpectralTurbulence(compressible=True), "offset": 9.5}
    u0, nothing = random(2, 1, 16, 16, dtype=torch.float32), Medium(source=torch.zeros(16, 16))
    plain, with_source = (AdvectionDiffusion(SCHEDULE, medium=medium, **options) for medium in (None, nothing))
    assert torch.equal(plain(u0, 6, [1, 2]), with_source(u0, 6, [1, 2]))


ONES = torch.ones(8, 8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a medium needs alpha, walls or source"),
        ({"alpha": 2.0 * ONES}, r"alpha must be finite and from 0 to 1 \(relative to .* divide by the largest\), got 2 to 2"),
        ({"alpha": -ONES}, "alpha must be finite and from 0 to 1"),
        ({"alpha": ONES * torch.nan}, "alpha must be finite"),
        ({"alpha": ONES > 0}, "alpha must be floating-point, as alpha.float.., got torch.bool"),
        ({"alpha": "granite"}, "alpha must be an array or tensor of numbers, got str"),
        ({"alpha": ONES[0]}, r"alpha must have shape \[N, 1, H, W\]"),
        ({"alpha": torch.ones(1, 3, 8, 8)}, r"alpha must have shape \[N, 1, H, W\]"),
        ({"alpha": ONES.clone().requires_grad_()}, "no gradient in alpha of a medium"),
        ({"walls": ONES}, "walls must be bool, as mask > 0.5, got torch.float32"),
        ({"source": ONES * torch.inf}, "source must be finite"),
        ({"source": ONES.long()}, "source must be floating-point, got torch.int64"),
        ({"alpha": ONES, "walls": torch.ones(8, 9) > 0}, r"walls of the medium must be \[1, 1, 8, 8\] here, got \[1, 1, 8, 9\]"),
        (
            {"alpha": torch.ones(2, 1, 8, 8), "source": torch.ones(3, 1, 8, 8)},
            r"alpha of the medium must be \[1, 1, 8, 8\] or \[3, 1, 8, 8\] here, got \[2, 1, 8, 8\]",
        ),
    ],
)
def test_a_bad_medium_is_refused_in_one_line(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Medium(**fields)


def test_derivatives_that_would_be_lost_are_refused() -> None:
    velocity, peclet = torch.zeros(1, 2, 8, 8), torch.tensor(1.0)
    with forward_ad.dual_level():
        with pytest.raises(InputError, match="no derivative in alpha of a medium in forward mode"):
            Medium(alpha=forward_ad.make_dual(ONES, ONES))
        for dual, name in ((velocity, "velocity"), (peclet, "Peclet number")):
            v, number = (forward_ad.make_dual(one, one) if one is dual else one for one in (velocity, peclet))
            operator = AdvectionDiffusion(SCHEDULE, peclet=number, turbulence=GivenVelocity(v))
            with pytest.raises(InputError, match=f"no derivative in the {name} in forward mode"):
                operator(torch.ones(1, 1, 8, 8), 3, 0)
    with pytest.raises(InputError, match=r"torch.func \(grad, vmap, jvp, ...\) cannot transform"):
        torch.func.vmap(lambda alpha: Medium(alpha=alpha).alpha)(ONES[None])


def test_a_medium_of_another_size_or_number_is_refused() -> None:
    operator = AdvectionDiffusion(SCHEDULE, medium=Medium(walls=torch.zeros(2, 1, 8, 8) > 0))
    for u0 in (torch.ones(2, 1, 8, 9), torch.ones(3, 1, 8, 8)):
        for call in (operator, operator.adjoint, lambda u, level, seed: next(operator.trajectory(u, seed))):
            with pytest.raises(InputError, match=r"walls of the medium must be \[1, 1, 8, \d\] .*, got \[2, 1, 8, 8\]"):
                call(u0, 3, 0)
    with pytest.raises(InputError, match=r"medium must be a lbm_warp\.Medium, got Tensor"):
        AdvectionDiffusion(SCHEDULE, medium=ONES)
