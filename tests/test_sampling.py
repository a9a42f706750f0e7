from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.prior import Prior, _faded, _resized
from diffusion.process import FLOWS
from diffusion.sampling import residual_sampler
from tests.runs import SIZE, stripes, tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", FLOWS)
def test_with_a_network_that_knows_the_truth_sampling_walks_back_to_the_picture(name: str) -> None:
    """The oracle answers u_{k-1} - u_k of the true trajectory; without noise the walk ends at u_0, to rounding."""
    process = replace(tiny_config(name).process, sampling_noise=0.0)
    u0 = torch.from_numpy(np.stack(stripes(3)))
    levels = dict(process.operator(SIZE).trajectory(u0, seed=[1, 2, 3]))

    def oracle(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return levels[int(level[0]) - 1] - levels[int(level[0])]

    visited = []
    u = residual_sampler(oracle, levels[process.levels], process, torch.arange(3), lambda level, _: visited.append(level))
    torch.testing.assert_close(u, u0, rtol=0, atol=1e-5)
    assert visited == list(range(process.levels - 1, -1, -1))


def test_each_step_but_the_last_adds_the_sampling_noise() -> None:
    """With a network that does nothing K - 1 noises add up: standard deviation sqrt(K - 1) delta."""
    process = tiny_config().process
    start = torch.zeros((4, 1, 64, 64))
    u = residual_sampler(lambda u, level: torch.zeros_like(u), start, process, torch.arange(4))
    delta = process.noise * process.sampling_noise
    # 16,384 numbers: five standard errors of a standard deviation are 2.8 %.
    assert u.std().item() == pytest.approx((process.levels - 1) ** 0.5 * delta, rel=0.03)


def test_samples_do_not_depend_on_the_batch() -> None:
    config = tiny_config()
    torch.manual_seed(0)
    network = config.build_network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    prior = Prior.build(stripes(), config.process, CPU)

    def draw(seed: list[int]) -> torch.Tensor:
        seed = torch.tensor(seed)
        return residual_sampler(network, prior.draw(seed, SIZE, config.process, CPU), config.process, seed)

    together = draw([10, 11, 12, 13])
    torch.testing.assert_close(together[2:3], draw([12]), rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", FLOWS)
def test_thumbnails_are_just_large_enough(name: str) -> None:
    """||A_K(picture) - A_K(thumbnail)|| is below the noise at the chosen size, and not below it one size down."""
    process = tiny_config(name).process
    pictures = torch.from_numpy(np.stack(stripes()))
    side = Prior.build(stripes(), process, CPU).thumbnails.shape[-1]
    assert 1 < side < SIZE

    def seen(at: int) -> float:
        return _faded(pictures - _resized(_resized(pictures, at), SIZE), process).max().item()

    assert seen(side) < process.noise <= seen(side - 1)


def test_resizing_keeps_brightness_and_the_modes_that_fit() -> None:
    x = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    picture = (0.5 + 0.3 * torch.cos(2 * torch.pi * x)).expand(1, 1, 16, 16)
    small = _resized(picture, 5)
    assert small.shape == (1, 1, 5, 5)
    y = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
    torch.testing.assert_close(small[0, 0, 0], 0.5 + 0.3 * torch.cos(2 * torch.pi * y))
    torch.testing.assert_close(_resized(small, 16), picture)


def test_the_prior_draws_level_k_of_the_pictures_with_a_flow_of_its_own() -> None:
    """For one picture only: every draw is near its level K, none like another, and the seed decides."""
    process = replace(tiny_config().process, sampling_noise=0.0)
    picture = stripes(1)
    prior = Prior.build(picture, process, CPU)
    draws = prior.draw(torch.tensor([1, 2, 1]), SIZE, process, CPU)
    assert torch.equal(draws[0], draws[2]) and (draws[0] - draws[1]).abs().max() > 0.01
    # Walls keep the mean of the picture, whatever the flow.
    torch.testing.assert_close(draws.mean(dim=(1, 2, 3)), torch.full((3,), float(picture[0].mean())), rtol=0, atol=1e-4)
