"""Draws of what a measurement may have come from, against the Gaussian posterior in closed form, with the exact network."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from diffusion import solve
from diffusion.denoisers import CleanImage
from diffusion.density import Uniform
from diffusion.flow_matching import FlowMatching
from diffusion.forward.operators import FlowAndBlur, Identity, Sine
from diffusion.forward.scales import LinearPath, LogSNR
from diffusion.methods import Method, named_method
from diffusion.samplers import ODE, Resample
from diffusion.sampling.inverse import Measurement, conjugate_gradients
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines, from_modes, to_modes
from tests.runs import tiny_config

SIZE = Size(8, 12)
PIXELS = 96
BASIS = torch.eye(PIXELS, dtype=torch.float64).reshape(PIXELS, 1, *SIZE)
KY, KX = (cosines(side)[0] for side in SIZE)
# Variance of the cosine modes of two kinds of Gaussian pictures about 1/2: pixels without correlation, and a falling spectrum.
WHITE = torch.full(tuple(SIZE), 0.25, dtype=torch.float64)
FALLING = 0.3 / (1.0 + 8.0 * (KY[:, None] + KX).square())
MASK = (torch.rand((1, 1, *SIZE), generator=torch.Generator().manual_seed(1)) < 0.5).float()
FLOW = FlowAndBlur(peclet=8.0, levels=10)


class Wiener(nn.Module):
    """The network that gives the mean of the clean image given u, as its denoiser wants it."""

    def __init__(self, method: Method, variance: torch.Tensor) -> None:
        super().__init__()
        self.method, self.variance = method, variance
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        forward = self.method.forward
        signal, noise = (torch.from_numpy(scale)[level][:, None, None, None] for scale in (forward.signal, forward.noise))
        factor = signal * self.method.operator.transfer(level, SIZE)
        share = factor * self.variance / (factor.square() * self.variance + noise.square())
        clean = 0.5 + from_modes(share * to_modes(u.double() - 0.5))
        return (clean - u if isinstance(self.method.denoiser, CleanImage) else 2.0 * clean - 1.0).to(u)


METHODS = {
    "ancestral": Method(Identity(500), LogSNR(), CleanImage(), Uniform(), Resample(steps=100, spacing="edm")),
    "blur": Method(FlowAndBlur(blur=Sine(0.16), levels=500), LogSNR(), CleanImage(), Uniform(), Resample(steps=100, spacing="edm")),
    "ode": Method(Identity(500), LinearPath(), FlowMatching(), Uniform(), ODE(steps=100)),
}


class Physics:
    """What deepinv calls a linear physics: A and A_adjoint."""

    def A(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(dim=3) / x.shape[3]

    def A_adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return y.flip(3).cumsum(dim=3).flip(3) / y.shape[3]


MEASUREMENTS: dict[str, object] = {
    "inpainting": lambda x: x * MASK,
    "average pooling": lambda x: avg_pool2d(x, 2),
    "flow": Measurement.of(FLOW, level=4, seed=2),
    "physics": Physics(),
}


def pipeline(name: str, variance: torch.Tensor) -> Pipeline:
    method = METHODS[name]
    return Pipeline(tiny_config(method, SIZE), Wiener(method, variance), Prior(torch.full((1, 1, *SIZE), 0.5)), batch=512)


def measured(variance: torch.Tensor, what: str, noise: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A noisy measurement [...] of a random picture, and mean [1, H, W] and covariance [96, 96] of the pictures given it."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + from_modes(torch.randn((1, 1, *SIZE), generator=generator, dtype=torch.float64) * variance.sqrt())
    given = Measurement.of(MEASUREMENTS[what])
    y = given.forward(x.float()).double()
    y = y + noise * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    matrix = given.forward(BASIS.float()).double().flatten(1).T
    prior = from_modes(variance * to_modes(BASIS)).reshape(PIXELS, PIXELS)
    gain = prior @ matrix.T @ torch.linalg.inv(matrix @ prior @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64))
    half = torch.full((PIXELS,), 0.5, dtype=torch.float64)
    mean = half + gain @ (y.flatten() - matrix @ half)
    return y[0].float(), mean.reshape(1, *SIZE), prior - gain @ matrix @ prior


def draws_of(name: str, what: str, variance: torch.Tensor, y: torch.Tensor, noise: float) -> torch.Tensor:
    """Draws of the pictures given a measurement, fewer and in fewer steps where every step goes through a lattice, float64."""
    few: dict[str, int] = {"images": 64, "steps": 40} if what == "flow" else {"images": 256, "steps": 100}
    return solve(pipeline(name, variance), y, MEASUREMENTS[what], noise=noise, seed=1, **few).double()


# Where every step goes through a lattice.
SLOW = pytest.param("ancestral", "flow", marks=pytest.mark.slow), pytest.param("blur", "flow", marks=pytest.mark.slow)
QUICK = ("inpainting", "average pooling", "physics")


@pytest.mark.parametrize(("name", "what"), [*product(("ancestral", "ode"), QUICK), SLOW[0]])
def test_for_pixels_without_correlation_the_draws_are_from_the_posterior(name: str, what: str) -> None:
    """Then the network's error at a level is white and known, r / (2 sqrt(1 + r^2)), so every step is Bayes' rule.

    Tolerance: five standard errors of the draws for every pixel; for the deviation 6 % in all, of first order in 100 steps (12 % in
    40)."""
    y, mean, covariance = measured(WHITE, what, noise=0.1)
    draws = draws_of(name, what, WHITE, y, noise=0.1)
    deviation, error = covariance.diag().sqrt().reshape(1, *SIZE), 5.0 / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - mean).abs() / deviation).max() < error
    ratio, most = draws.std(dim=0) / deviation, 0.06 if len(draws) == 256 else 0.12
    assert abs(ratio.mean() - 1.0) < most and (ratio - 1.0).abs().max() < error / 2.0**0.5 + most


@pytest.mark.parametrize(("name", "what"), [*product(METHODS, QUICK), SLOW[1]])
def test_for_pictures_with_a_spectrum_the_draws_are_near_the_posterior(name: str, what: str) -> None:
    """The network's error is then not white, as every step takes it to be, so the draws are near and not right (Zhu et al. 2023).

    Their mean lies away from that of the posterior by at most 0.3 of the distance to it from the prior's (0.04 to 0.16 with fresh
    noise, 0.1 to 0.28 without), their spread is within a fifth, and what they leave of the measurement is its noise, within a
    fifth."""
    y, mean, covariance = measured(FALLING, what, noise=0.05)
    draws = draws_of(name, what, FALLING, y, noise=0.05)
    off, far = ((other - mean).square().mean().sqrt() for other in (draws.mean(dim=0), torch.full_like(mean, 0.5)))
    assert off < 0.3 * far
    assert draws.var(dim=0).mean().sqrt() == pytest.approx(float(covariance.diag().mean().sqrt()), rel=0.2)
    rest = Measurement.of(MEASUREMENTS[what]).forward(draws.float()) - y
    assert rest.square().mean().sqrt() == pytest.approx(0.05, rel=0.2)


def test_more_trust_in_the_measurement_honours_it_more() -> None:
    y, _, _ = measured(FALLING, "average pooling", noise=0.02)
    run, left = pipeline("ancestral", FALLING), []
    for trust in (0.25, 1.0, 4.0):
        draws = solve(run, y, MEASUREMENTS["average pooling"], noise=0.02, images=16, steps=30, trust=trust)
        left.append((avg_pool2d(draws, 2) - y).square().mean().sqrt().item())
    assert left[0] > 1.5 * left[1] > 3.0 * left[2]


@pytest.mark.parametrize("what", MEASUREMENTS)
def test_the_adjoint_by_differentiation_is_the_given_one(what: str) -> None:
    """<H x, w> = <x, H^T w>, to single precision."""
    given = Measurement.of(MEASUREMENTS[what])
    x = torch.rand((2, 1, *SIZE), generator=torch.Generator().manual_seed(0))
    y = given.forward(x)
    w = torch.rand(y.shape, generator=torch.Generator().manual_seed(1))
    back = Measurement(given.forward).transpose(w, x)
    torch.testing.assert_close(back, given.transpose(w, x), rtol=1e-4, atol=1e-5)
    assert (y * w).sum().item() == pytest.approx((x * back).sum().item(), rel=1e-4)
    with torch.inference_mode():  # as in sampling
        torch.testing.assert_close(Measurement(given.forward).transpose(w.clone(), x.clone()), back)


def test_conjugate_gradients_solve_every_image_by_itself() -> None:
    """Against a direct solution; an image whose right side is zero stays zero."""
    generator = torch.Generator().manual_seed(0)
    root = torch.rand((16, 16), generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(16, dtype=torch.float64)
    right = torch.rand((3, 1, 4, 4), generator=generator, dtype=torch.float64)
    right[1] = 0.0

    def times(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix).reshape(x.shape)

    found = conjugate_gradients(times, right)
    expected = torch.linalg.solve(matrix, right.flatten(1).T).T.reshape(right.shape)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(found[1], torch.zeros_like(found[1]))


def test_a_draw_is_a_function_of_the_seed_and_its_number() -> None:
    y, _, _ = measured(FALLING, "inpainting", noise=0.05)
    run, visited = pipeline("ancestral", FALLING), []
    draws = solve(run, y, MEASUREMENTS["inpainting"], noise=0.05, images=5, seed=4, steps=6)
    run.batch = 2
    again = solve(
        run, y, MEASUREMENTS["inpainting"], noise=0.05, images=5, seed=4, steps=6, callback=lambda k, u: visited.append(len(u))
    )
    torch.testing.assert_close(again, draws, rtol=0, atol=1e-4)
    assert visited == [2] * 14 + [1] * 7 and draws.shape == (5, 1, *SIZE)
    assert (draws - solve(run, y, MEASUREMENTS["inpainting"], noise=0.05, images=5, seed=5, steps=6)).abs().max() > 0.01


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda run, y: solve(run, y[:, :4], lambda x: x, noise=0.1),
            r"images \[1, 8, 12\] has shape \[1, 8, 12\], got \[1, 4, 12\]",
        ),
        (lambda run, y: solve(run, y[None], lambda x: x, noise=0.1), r"has shape \[1, 8, 12\], got \[1, 1, 8, 12\]"),
        (lambda run, y: solve(run, y, lambda x: x, noise=0.0), "noise must be at least 1e-06, got 0"),
        (lambda run, y: solve(run, y, lambda x: x, noise=0.1, trust=0.0), "trust must be at least 1e-06, got 0"),
        (lambda run, y: solve(run, y, lambda x: x, noise=0.1, images=0), "images must be from 1 to 10000000, got 0"),
        (lambda run, y: solve(run, y, lambda x: x, noise=0.1, steps=501), "steps must be from 2 to 500, got 501"),
        (lambda run, y: solve(run, y, "blur", noise=0.1), "a measurement is a linear function of images or has methods A"),
        (
            lambda run, y: solve(run, y, FLOW, noise=0.1),
            r"a linear operator and its level, such as Measurement.of\(operator, level=10\)",
        ),
        (lambda run, y: Measurement.of(FlowAndBlur(peclet=1.0, offset=9.5), level=3), "a measurement needs a linear operator"),
        (lambda run, y: solve(still("ihd"), y, lambda x: x, noise=0.1), "needs a run whose sampler goes by the clean image"),
    ],
)
def test_measurements_that_do_not_fit_are_refused_in_one_line(call: Callable[..., object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call(pipeline("ancestral", WHITE), torch.full((1, *SIZE), 0.5))
    assert "\n" not in str(error.value)


def still(name: str) -> Pipeline:
    """A run whose network is not asked."""
    return Pipeline(tiny_config(named_method(name).changed(levels=6), SIZE), nn.Identity(), Prior(torch.full((1, 1, *SIZE), 0.5)))
