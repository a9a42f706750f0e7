"""The variational bound for pictures with independent Gaussian cosine modes and the exact denoiser: closed forms of all terms."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.denoisers import Remainder, Step
from diffusion.evaluation.likelihood import Likelihood, likelihood, rounded_gaussian
from diffusion.forward.operators import Identity
from diffusion.forward.statistics import Statistics
from diffusion.methods import Method, named_method
from diffusion.samplers import Posterior, Residual
from diffusion.samplers.resample import posterior_scales
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines, from_modes, to_modes
from tests.runs import tiny_config

SIZE = Size(8, 12)
COUNT = 256
KY, KX = (cosines(side)[0] for side in SIZE)
# Of the modes; the smallest standard deviation is nine steps of 8 bits, the largest picture stays inside [0, 1].
VARIANCE = 0.02 / (1.0 + 8.0 * (KY[:, None] + KX).square()).sqrt()
STILL = {"peclet": 0.0}


def pictures() -> torch.Tensor:
    """Gaussian pictures rounded to 8 bits, float64 [COUNT, 1, H, W]."""
    amplitudes = torch.randn((COUNT, 1, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * VARIANCE.sqrt()
    return ((0.5 + from_modes(amplitudes)) * 255).round() / 255


def true_bits(x: torch.Tensor) -> torch.Tensor:
    """-log2 of the density, times the volume of a bin, a dimension: [COUNT]."""
    modes = to_modes(x - 0.5)
    nats = 0.5 * (modes.square() / VARIANCE + (2.0 * math.pi * VARIANCE).log())
    return nats.flatten(1).mean(dim=1) / math.log(2.0) + math.log2(255.0)


class Exact(nn.Module):
    """The network that gives the expectation of what it should predict."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        denoiser, operator, level = self.method.denoiser, self.method.operator, level.long()
        if isinstance(denoiser, Remainder):
            return torch.zeros_like(u[:, :1])  # of one channel, whatever it sees
        signal, noise = (
            torch.from_numpy(scale)[level][:, None, None, None] for scale in (self.method.forward.signal, self.method.forward.noise)
        )
        transfer = operator.transfer(level, SIZE)
        modes = to_modes(u.double() - 0.5)
        x = signal * transfer * VARIANCE / ((signal * transfer).square() * VARIANCE + noise.square()) * modes
        if isinstance(denoiser, Step):
            answer = operator.transfer(level - 1, SIZE) * x - modes
        else:
            answer = (modes - signal * transfer * x) / noise
        return from_modes(answer).to(u)


def exact_run(name: str, **change: object) -> Pipeline:
    """A run of a method, of six levels unless others are given, whose network is exact."""
    method = named_method(name).changed(**change if "operator" in change else {"levels": 6} | change)
    mean = torch.full((1, *SIZE), 0.5)
    power, transfer = VARIANCE[None].expand_as(mean), method.operator.transfer(torch.arange(method.levels + 1), SIZE)
    moments = (mean, power, mean.expand(len(transfer), -1, -1, -1), transfer**2 * power, transfer * power)
    statistics = Statistics(*(moment.float() for moment in moments))
    config = replace(tiny_config(method, SIZE), process_name=name)
    return Pipeline(config, Exact(method), Prior(mean[None]), statistics=statistics)


def bound(pipeline: Pipeline, x: torch.Tensor, **options: object) -> Likelihood:
    return likelihood(pipeline, lambda index: x[index].float(), np.arange(len(x)), np.arange(64), **options)


def expected_steps(pipeline: Pipeline) -> float:
    """Mean over pictures of all terms between the ends [bits a dimension].

    x minus its expectation given u_k has the variance v = P sigma^2 / (a^2 P + sigma^2) in a mode of factor a = s_k d_k.
    """
    forward, sampler, total = pipeline.forward, pipeline.method.sampler, 0.0
    like = torch.zeros((1, 1, *SIZE), dtype=torch.float64)
    power = forward.scales.noise_power(SIZE)
    power = torch.ones(tuple(SIZE), dtype=torch.float64) if power is None else power
    for level, below in list(pairwise(sampler.visited(forward, None, forward.levels)))[:-1]:
        a, b = (float(forward.signal[k]) * forward.operator.transfer(k, SIZE)[0, 0] for k in (level, below))
        noise = float(forward.noise[level]) ** 2 * power
        variance = VARIANCE * noise / (a**2 * VARIANCE + noise)
        if isinstance(sampler, Residual):
            own, delta = forward.noise[below], forward.noise[below] * sampler.sampling_noise
            spread, square, scale = (own / delta) ** 2, b**2 * variance, delta**2
        elif isinstance(sampler, Posterior):
            _, factor, width = (part[0, 0] for part in posterior_scales(forward, level, below, like))
            spread, square, scale = 1.0, factor**2 * variance, width
        else:
            kept, fresh, added = sampler.noise_scales(forward, level, below)
            spread, square, scale = (fresh / added) ** 2, (b - kept * a) ** 2 * variance, added**2 * power
        total += float((0.5 * (spread - 1.0 - math.log(spread)) + 0.5 * square / scale).mean()) / math.log(2.0)
    return total


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("fluid", STILL | {"levels": 200}),
        ("fluid", STILL | {"levels": 200, "noise_exponent": 0.5}),
        ("fluid", {"operator": Identity(200), "eta": 0.5, "variance": "fixedlarge"}),
        ("ddpm", {}),
        ("ddpm", {"variance": "fixedlarge", "clip_clean": False, "levels": 60}),
        ("blurring", {"levels": 60}),
        ("ihd", {"sigma_max": 0.3, "levels": 30}),
    ],
)
def test_the_terms_are_those_of_the_closed_form(name: str, change: dict[str, object]) -> None:
    """Tolerance: four standard errors of 16 steps each of 256 pictures, taken from the spread over pictures."""
    pipeline, x = exact_run(name, **change), pictures()
    found = bound(pipeline, x)
    assert sum(found.by_tenth) == pytest.approx(expected_steps(pipeline), abs=4 * found.standard_error + 1e-3)
    assert found.bits_per_dimension == pytest.approx(found.start + sum(found.by_tenth) + found.end)
    # It is a bound, for every sampler and number of steps.
    assert found.bits_per_dimension > true_bits(x).mean() - 4 * found.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("blurred", [True, False])
def test_with_many_steps_the_bound_is_the_likelihood(blurred: bool) -> None:
    """The gap falls with the number of steps T as 1 / T: 0.05 bits at 1,000 levels, a quarter at 4,000."""
    x = pictures()
    gaps = []

    def run(levels: int) -> Pipeline:
        return exact_run("fluid", **STILL, levels=levels) if blurred else exact_run("fluid", operator=Identity(levels))

    for levels in (1000, 4000):
        found = bound(run(levels), x)
        gaps.append(found.bits_per_dimension - float(true_bits(x).mean()))
        assert -4 * found.standard_error < gaps[-1] < 0.1 * 1000 / levels + 4 * found.standard_error
    steps = [expected_steps(run(levels)) for levels in (1000, 2000, 4000)]
    assert (steps[0] - steps[1]) / (steps[1] - steps[2]) == pytest.approx(2.0, rel=0.2)


def test_a_pictures_terms_are_its_own() -> None:
    pipeline, x = exact_run("ddpm"), pictures()
    whole = bound(pipeline, x[:70])
    parts = [likelihood(pipeline, lambda index: x[index].float(), np.arange(*ends), np.arange(64)) for ends in ((0, 40), (40, 70))]
    assert whole.bits_per_dimension == pytest.approx((40 * parts[0].bits_per_dimension + 30 * parts[1].bits_per_dimension) / 70)


def test_the_end_counts_all_of_a_pixels_values() -> None:
    """The probabilities of the 256 values have the sum one; those far away are small and not zero."""
    values = torch.arange(256, dtype=torch.float64)[:, None] / 255
    for mean, deviation in ((0.5, 0.01), (0.0, 0.2), (1.02, 0.003)):
        logs = rounded_gaussian(values, torch.full_like(values, mean), deviation)
        assert logs.exp().sum().item() == pytest.approx(1.0, rel=1e-9) and torch.isfinite(logs).all()


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("edm", None, "edm has no likelihood with sampling noise 1: Resample has steps without fresh noise"),
        ("cold", None, "cold has no likelihood"),
        ("soft", None, "soft has no likelihood"),  # its noise is the same from a quarter of the levels on
        ("ihd", 3, "the likelihood of sampler Residual needs all its 6 levels, got 3"),
    ],
)
def test_methods_without_a_density_are_refused_in_one_line(name: str, steps: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bound(exact_run(name), pictures(), steps=steps)


@pytest.mark.parametrize(("name", "change"), [("ihd", {"sampling_noise": 0.0}), ("cold", {"eta": 1.0, "levels": 1})])
def test_samplers_without_noise_are_refused_even_if_they_could_add_some(name: str, change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{name} has no likelihood"):
        bound(exact_run(name, **change), pictures())
