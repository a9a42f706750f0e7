"""Flow matching and its ODE against closed forms: heat equation, Gaussian pictures with the exact network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.denoisers import Reverse
from diffusion.density import LogitNormal, Uniform
from diffusion.evaluation.likelihood import likelihood
from diffusion.flow_matching import FlowMatching
from diffusion.forward.operators import FlowAndBlur, Identity, Operator, Sine, Waves
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import Cosine, LinearPath
from diffusion.methods import Method, named_method
from diffusion.rng import seeds
from diffusion.samplers import ODE, Resample
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import blur, cosines, from_modes, to_modes
from lbm_warp.random import normal
from tests.runs import tiny_config

SIZE = Size(8, 12)
KY, KX = (cosines(side)[0] for side in SIZE)
SQUARE = KY.square()[:, None] + KX.square()
# Variance of the cosine modes of Gaussian pictures about 0.4.
VARIANCE = 0.02 / (1.0 + 8.0 * SQUARE).sqrt()
MEAN = 0.4
SHARP, FLOORED = Identity(120), FlowAndBlur(blur=Sine(0.16), blur_floor=0.01, levels=120)
QUANTITIES = ("clean", "noise", "velocity")
PAIRS = list(product(QUANTITIES, QUANTITIES))


def flow_matching(operator: Operator, prediction: str = "clean", loss_in: str = "velocity", **sampler: object) -> Method:
    return Method(operator, LinearPath(), FlowMatching(prediction=prediction, loss_in=loss_in), LogitNormal(), ODE(**sampler))


def pictures(count: int) -> torch.Tensor:
    """Gaussian pictures, float64 [count, 1, H, W]."""
    amplitudes = torch.randn((count, 1, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MEAN + from_modes(amplitudes * VARIANCE.sqrt())


# What is predicted, and what is compared


@pytest.mark.parametrize("operator", [SHARP, FLOORED], ids=["sharp", "blur"])
@pytest.mark.parametrize(("prediction", "loss_in"), PAIRS)
def test_of_all_nine_pairs_the_true_prediction_has_no_loss(operator: Operator, prediction: str, loss_in: str) -> None:
    """In double precision; at level K image and noise follow from each other through a factor of 1e-5, signal times floor."""
    denoiser, forward = FlowMatching(prediction=prediction, loss_in=loss_in), ForwardProcess(operator, LinearPath())
    flow_matching(operator, prediction, loss_in)
    u0, seed = pictures(6), torch.arange(6)
    level = torch.tensor([1, 2, 40, 90, 119, 120])
    u, target = denoiser.example(forward, u0, level, seed)
    eps = forward.unit_noise(seed, u0).double()
    velocity = forward.velocity(u0, u, level, seed)
    true = {"clean": 2.0 * u0 - 1.0, "noise": eps, "velocity": 2.0 * velocity}
    assert (denoiser.loss(forward, true[prediction], target, level, seed) < 1e-12).all()
    assert denoiser.loss(forward, true[prediction] + 0.1, target, level, seed).mean() > 1e-3
    torch.testing.assert_close(denoiser.clean(forward, true[prediction], u, level, seed), u0, rtol=0, atol=1e-8)
    torch.testing.assert_close(denoiser.velocity(forward, true[prediction], u, level, seed), velocity, rtol=0, atol=1e-8)
    torch.testing.assert_close(target[1].double(), true[loss_in], rtol=0, atol=1e-12)
    # One level for all gives what one each gives.
    one = denoiser.clean(forward, true[prediction][2:3], u[2:3], 40, seed[2:3])
    torch.testing.assert_close(one, u0[2:3], rtol=0, atol=1e-8)


def test_without_blur_the_velocity_is_image_minus_noise() -> None:
    """Lipman et al. (2023, section 4.1), between -1 and 1; with the least signal s the image counts 1 - s."""
    method, u0, seed, level = flow_matching(SHARP), pictures(4), torch.arange(4), torch.tensor([1, 30, 77, 120])
    _, (_, velocity) = method.denoiser.example(method.forward, u0, level, seed)
    expected = (1.0 - 1e-3) * (2.0 * u0 - 1.0) - method.forward.unit_noise(seed, u0)
    torch.testing.assert_close(velocity, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "operator", [FlowAndBlur(peclet=2.0, blur_floor=0.1), FlowAndBlur(), Waves(), FlowAndBlur(boundary="periodic")]
)
def test_a_flow_or_a_lost_mode_leaves_the_pairs_that_need_no_inverse(operator: Operator) -> None:
    for prediction, loss_in in PAIRS:
        if prediction == "clean" or prediction == loss_in == "velocity":
            flow_matching(operator, prediction, loss_in)
            continue
        with pytest.raises(InputError, match=f"prediction {prediction} with loss in {loss_in} needs an operator that") as error:
            flow_matching(operator, prediction, loss_in)
        assert "\n" not in str(error.value)


def test_a_velocity_alone_is_sampled_by_the_ode_alone() -> None:
    method = flow_matching(FlowAndBlur(peclet=2.0), "velocity")
    with pytest.raises(InputError, match=r"Resample needs the clean image, which denoiser FlowMatching .*: take ODE"):
        method.changed(sampler=Resample())
    assert flow_matching(SHARP, "velocity").changed(sampler=Resample()).sampler == Resample()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named_method("flow-matching").changed(noise=0.0), "flow matching needs noise above 0"),
        (lambda: named_method("flow-matching").changed(levels=2), "flow matching needs at least 3 levels, got 2"),
        (lambda: named_method("flow-matching").changed(offset=1.0, peclet=1.0), "sampler ODE needs a linear operator"),
    ],
)
def test_processes_that_have_no_velocity_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_other_scales_serve_as_well() -> None:
    """Any path that keeps some signal: here that of a cosine, whose rates are known."""
    method = Method(Identity(400), Cosine(), FlowMatching(), Uniform(), ODE())
    signal, noise = method.forward.rates
    first, last = math.atan(math.exp(-5.0)), math.atan(math.exp(5.0))
    angle = first + np.arange(1, 401) / 400 * (last - first)
    # Second order: the third derivative of the sine is at most (last - first)^3 < 4, over 6 and 400^2; at the ends over 3.
    np.testing.assert_allclose(signal[1:], (last - first) * np.sin(angle), rtol=0, atol=4.0 / 3.0 / 400**2)
    np.testing.assert_allclose(noise[1:], -0.5 * (last - first) * np.cos(angle), rtol=0, atol=2.0 / 3.0 / 400**2)


# The derivative of the operator


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_the_derivative_is_that_of_the_heat_equation(share: float) -> None:
    """d/dt exp(-kappa^2 sigma^2 / 2) with sigma = b sin^2(pi (1 - t) / 2): an error that falls as 1 / K^2, at level 1 and K too."""
    x, errors = pictures(2), []
    for levels in (40, 80, 160):
        operator, level = FlowAndBlur(blur=Sine(0.16), levels=levels), max(1, int(share * levels))
        place = level / levels
        sigma, slope = 1.28 * math.sin(0.5 * math.pi * place) ** 2, 1.28 * 0.5 * math.pi * math.sin(math.pi * place)
        factor = torch.exp(-0.5 * SQUARE * sigma**2)
        value, rate = operator.rate(x, level, torch.arange(2))
        torch.testing.assert_close(value, from_modes(factor * to_modes(x)), rtol=0, atol=1e-12)
        expected = SQUARE * sigma * slope * factor
        errors.append((rate - from_modes(expected * to_modes(x))).abs().max().item())
        found, derivative = operator.transfer_rate(torch.tensor([level, 1]), SIZE)
        torch.testing.assert_close(found[0, 0], factor, rtol=0, atol=1e-12)
        torch.testing.assert_close(from_modes(derivative[0] * to_modes(x)), rate, rtol=0, atol=1e-10)
    assert errors[0] < 0.02 and all(coarse / fine > 3.6 for coarse, fine in pairwise(errors))


def test_the_derivative_under_a_flow_is_a_fine_difference_of_levels() -> None:
    """Of a trajectory of 2,000 levels over a hundredth of the time. Tolerance: 3 %, for the lattice, whose error jumps where the
    number of its iterations changes; with many levels the difference is always taken over the same time."""
    x = blur(torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0)), torch.tensor([2.0, 2.0]).double(), False)
    x, seed = (x - x.mean()) / x.std(), torch.tensor([3, 4])

    def operator(levels: int) -> FlowAndBlur:
        return FlowAndBlur(peclet=4.0, blur=Sine(0.16), levels=levels)

    for share in (0.4, 0.5, 0.6, 0.7):
        place = int(2000 * share)
        before, after = operator(2000).at(x, (torch.full((2,), place - 10), torch.full((2,), place + 10)), seed)
        expected = (before - after) * 100.0
        for levels, error in ((50, 0.03), (400, 1e-3), (1000, 1e-3)):
            value, rate = operator(levels).rate(x, int(levels * share), seed)
            assert (rate - expected).norm() < error * expected.norm()
            torch.testing.assert_close(value, operator(levels)(x, int(levels * share), seed), rtol=0, atol=1e-5)


def test_derivatives_of_a_batch_are_its_images_own() -> None:
    x, seed, level = torch.rand(6, 1, 8, 8), torch.arange(6), torch.tensor([1, 2, 20, 9, 400, 398])
    operator = FlowAndBlur(peclet=4.0, levels=400)
    together = operator.rate(x, level, seed)
    for n in range(6):
        alone = operator.rate(x[n : n + 1], int(level[n]), seed[n : n + 1])
        for one, of_all in zip(alone, together, strict=True):
            torch.testing.assert_close(one[0], of_all[n], rtol=1e-4, atol=1e-3)


# The ODE


class Wiener(nn.Module):
    """The exact network for Gaussian pictures: twice the mean of the clean image given u, minus one; for diagonal operators."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.operator, self.forward_process = method.operator, method.forward
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        level = level.cpu()
        signal, noise = (
            torch.from_numpy(s)[level][:, None, None, None] for s in (self.forward_process.signal, self.forward_process.noise)
        )
        factor = signal * self.operator.transfer(level, SIZE)
        blurred = 0.5 + signal * (MEAN - 0.5)
        modes = factor * VARIANCE / (factor.square() * VARIANCE + noise.square()) * to_modes(u.double() - blurred)
        return 2.0 * (MEAN + from_modes(modes)).to(u) - 1.0


def growth(method: Method, steps: int) -> torch.Tensor:
    """Factor of every mode's deviation from the mean from the start of sampling to its end; the map is linear and diagonal."""
    reverse = Reverse(method.forward, method.denoiser, Wiener(method), torch.zeros(1, dtype=torch.int64))
    mean = torch.full((1, 1, *SIZE), MEAN, dtype=torch.float64)
    noise = from_modes(torch.ones((1, 1, *SIZE), dtype=torch.float64))
    start = method.forward.mean(mean, method.levels, reverse.seed)
    still, moved = (method.sampler(reverse, start, lambda k, c=c: c * noise, steps=steps) for c in (0.0, 1.0))
    torch.testing.assert_close(still, mean, rtol=0, atol=2e-3)
    return to_modes(moved - still)[0, 0] / float(method.forward.noise[-1])


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Identity(961), FlowAndBlur(blur=Sine(0.16), levels=961)], ids=["sharp", "blur"])
@pytest.mark.parametrize("order", [1, 2])
def test_the_ode_of_the_exact_network_ends_in_the_pictures_distribution(operator: Operator, order: int) -> None:
    """The start has the noise's variance in every mode, the end that of the pictures. In fewer steps the error of Euler's is of
    first, that of Heun's of second order; Heun's 240 are within 1 %."""
    method = flow_matching(operator, order=order)
    limit = growth(method.changed(order=2), 961)
    variance = (limit * 0.5).square()
    torch.testing.assert_close(variance, VARIANCE, rtol=0.01, atol=0)
    errors = [(growth(method, steps) - limit).abs().max().item() for steps in (61, 121, 241)]
    for coarse, fine in pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.35)
    torch.testing.assert_close((growth(method.changed(order=2), 241) * 0.5).square(), VARIANCE, rtol=0.02, atol=0)


def test_the_ode_serves_other_methods_of_the_clean_image() -> None:
    """The probability flow ODE (Song et al. 2021) of a process of another kind: cosine scales, a network for the clean image."""
    method = Method(Identity(961), Cosine(), FlowMatching(loss_in="clean"), Uniform(), ODE())
    torch.testing.assert_close((growth(method, 481) * 0.5).square(), VARIANCE, rtol=0.02, atol=0)


@dataclass
class OfOneFlow:
    """The exact network for Gaussian pictures in one flow: every level of the operator is a matrix, made of basis images."""

    method: Method
    seed: torch.Tensor
    side: int

    def __post_init__(self) -> None:
        count = self.side**2
        basis = torch.eye(count, dtype=torch.float64).reshape(count, 1, self.side, self.side)
        trajectory = self.method.operator.trajectory(basis, seeds(self.seed, "flow").expand(count))
        self.matrices = [u.reshape(count, count).T for _, u in trajectory]
        k = cosines(self.side)[0]
        power = 0.02 / (1.0 + 8.0 * (k.square()[:, None] + k.square())).sqrt()
        self.covariance = from_modes(power * to_modes(basis)).reshape(count, count)

    def __call__(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        k = int(level[0])
        signal, noise = float(self.method.forward.signal[k]), float(self.method.forward.noise[k])
        matrix = signal * self.matrices[k]
        seen = matrix @ self.covariance @ matrix.T + noise**2 * torch.eye(self.side**2, dtype=torch.float64)
        mean = torch.full((self.side**2,), MEAN, dtype=torch.float64)
        excess = u.double().flatten(1) - (0.5 + signal * (self.matrices[k] @ mean - 0.5))
        clean = mean + excess @ torch.linalg.solve(seen, matrix @ self.covariance)
        return (2.0 * clean - 1.0).reshape(u.shape)


@pytest.mark.slow
def test_with_a_flow_the_ode_has_mean_and_covariance_of_the_pictures() -> None:
    """In one frozen flow the operator is a matrix at every level, and the map of the ODE is linear: that of the noise's basis gives
    the covariance of the samples. Tolerance: twice what is seen in 100 steps, 0.4 %; it falls with their number."""
    side, seed = 8, torch.tensor([5])
    method = flow_matching(FlowAndBlur(peclet=40.0, blur=Sine(0.16), levels=100), steps=100)
    network = OfOneFlow(method, seed, side)
    count = side**2
    basis = torch.eye(count, dtype=torch.float64).reshape(count, 1, side, side)
    reverse = Reverse(method.forward, method.denoiser, network, seed.expand(count))
    start = method.forward.mean(torch.full_like(basis, MEAN), 100, reverse.seed)
    still, moved = (method.sampler(reverse, start, lambda k, c=c: c * basis) for c in (0.0, 1.0))
    torch.testing.assert_close(still, torch.full_like(still, MEAN), rtol=0, atol=1e-5)
    columns = (moved - still).flatten(1)
    assert (columns.T @ columns - network.covariance).norm() < 0.008 * network.covariance.norm()
    # The flow matters: in another one the same network ends elsewhere.
    other = Reverse(method.forward, method.denoiser, network, torch.tensor([6]).expand(count))
    assert (method.sampler(other, start, lambda k: basis) - moved).abs().max() > 1e-3


# The likelihood


def density_of_level_one(method: Method, u: torch.Tensor) -> torch.Tensor:
    """Logarithm of the density of images among level 1 of Gaussian pictures, [N], for diagonal operators."""
    signal, noise = float(method.forward.signal[1]), float(method.forward.noise[1])
    factor = signal * method.operator.transfer(1, SIZE)[0, 0]
    variance = factor.square() * VARIANCE + noise**2
    modes = to_modes(u.double() - 0.5 - signal * (MEAN - 0.5))
    return -0.5 * (modes.square() / variance + (2.0 * math.pi * variance).log()).flatten(1).sum(dim=1)


def log_density(method: Method, u: torch.Tensor, steps: int, probes: int) -> torch.Tensor:
    """The same by the change of variables, [N], with ``probes`` random signs for each image."""
    seed = torch.arange(len(u))
    reverse = Reverse(method.forward, method.denoiser, Wiener(method), seed)
    visited = method.sampler.visited(method.forward, steps=steps)[:-1]
    end, change = method.sampler.log_density(reverse, u, visited, seed, probes)
    scale = method.sampler.start_scale(method.forward)
    rest = end - method.forward.mean(torch.full_like(u, MEAN), method.levels, seed)
    return -0.5 * (rest.square() / scale**2 + math.log(2.0 * math.pi * scale**2)).flatten(1).sum(dim=1) + change


def test_the_density_of_the_ode_is_exact_where_the_trace_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes of one variance: the Jacobian is a multiple of one, and any sign gives its trace. Heun's error falls as steps^-2 (the
    start lacks s_K^2 P = 2e-8 of a variance of 0.25)."""
    monkeypatch.setitem(globals(), "VARIANCE", torch.full(tuple(SIZE), 0.02, dtype=torch.float64))
    method, u = flow_matching(Identity(961)), pictures(3)
    errors = [(log_density(method, u, steps, 1) - density_of_level_one(method, u)).abs().max().item() for steps in (121, 241, 481)]
    assert errors[2] < 0.02 and all(coarse / fine > 3.5 for coarse, fine in pairwise(errors))


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Identity(241), FlowAndBlur(blur=Sine(0.16), levels=241)], ids=["sharp", "blur"])
def test_the_density_of_the_ode_is_that_of_the_pictures(operator: Operator) -> None:
    """Hutchinson's estimate has no bias. Tolerance: five standard errors of 128 images, and 0.1 of about 134 nats for 120 steps."""
    method, u = flow_matching(operator), pictures(128)
    wrong = log_density(method, u, 121, 8) - density_of_level_one(method, u)
    assert abs(wrong.mean()) < 5 * wrong.std() / 128**0.5 + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("operator", [Identity(241), FlowAndBlur(blur=Sine(0.16), levels=241)], ids=["sharp", "blur"])
def test_the_likelihood_of_a_run_is_that_of_the_pictures(operator: Operator) -> None:
    """-log2 of the density of level 1 at the dequantized pictures and of the volume of a bin, a dimension."""
    method = flow_matching(operator)
    prior = Prior(torch.full((1, 1, *SIZE), MEAN))
    pipeline = Pipeline(tiny_config(method, SIZE), Wiener(method), prior)
    x = (pictures(128) * 255).round() / 255
    found = likelihood(pipeline, lambda index: x[index].float(), np.arange(128), np.arange(4), seed=3, steps=121)
    seed = seeds(3, "likelihood", np.arange(128))
    spread = torch.special.ndtr(normal(seeds(seed, "dequantization"), x.shape, x.device)) - 0.5
    nats = density_of_level_one(method, x + spread / 255.0) - SIZE.height * SIZE.width * math.log(255.0)
    expected = -nats / (SIZE.height * SIZE.width * math.log(2.0))
    # One sign for each image: 0.004 bits are the standard error of 128, five of these.
    assert found.bits_per_dimension == pytest.approx(expected.mean().item(), abs=0.02) and found.steps == 121
    assert found.bits_per_dimension == pytest.approx(found.start + sum(found.by_tenth) + found.end)
    assert found.end == pytest.approx(math.log2(255.0))
