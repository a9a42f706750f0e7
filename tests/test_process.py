from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from diffusion.process import FLOWS, ForwardProcess, named_flow
from diffusion.rng import below, seeds


@pytest.mark.parametrize("name", FLOWS)
def test_the_network_sees_level_k_under_noise_and_learns_the_level_before(name: str, device: torch.device) -> None:
    process = ForwardProcess(**asdict(named_flow(name)), levels=12)
    u0 = torch.rand((6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(device)
    level = torch.tensor([1, 2, 5, 9, 11, 12])
    seed = torch.arange(6)
    corrupted, target = process.training_pair(u0, level, seed)
    before, after = process.operator(16).pair(u0, level, seeds(seed, "flow"))
    torch.testing.assert_close(target, before)
    noise = corrupted - after
    # 4,608 numbers of standard deviation 0.01: their own scatters by 1 / sqrt(2 n), about 1 %; five of these.
    assert noise.std().item() == pytest.approx(process.noise, rel=0.05)
    assert noise.mean().abs() < 5 * process.noise / noise.numel() ** 0.5
    if name == "ihd":
        assert process.peclet == 0.0


def test_flow_and_noise_of_an_image_come_from_its_seed_alone() -> None:
    process = ForwardProcess(**asdict(named_flow("beyond-blur")), levels=12)
    u0 = torch.rand((1, 1, 16, 16)).repeat(3, 1, 1, 1)
    corrupted, target = process.training_pair(u0, torch.tensor([12, 12, 12]), torch.tensor([1, 2, 1]))
    assert torch.equal(corrupted[0], corrupted[2]) and torch.equal(target[0], target[2])
    assert (target[0] - target[1]).abs().max() > 0.01


def test_the_published_process_makes_structured_noise_and_transport_does_not() -> None:
    flat = torch.full((8, 1, 32, 32), 0.5)
    level, seed = torch.full((8,), 20), torch.arange(8)
    spread = {
        name: ForwardProcess(**asdict(named_flow(name)), levels=20).training_pair(flat, level, seed)[1].std() for name in FLOWS
    }
    assert spread["beyond-blur"] > 0.02
    assert spread["beyond-blur-curl"] < 0.004 and spread["ihd"] < 1e-5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named_flow("beyond-blurr"), "unknown process 'beyond-blurr'.*did you mean beyond-blur?"),
        (lambda: ForwardProcess(1.0, "smoke", 0.0), "turbulence must be one of"),
        (lambda: ForwardProcess(-1.0, "curl-noise", 0.0), "peclet must be at least 0, got -1"),
        (lambda: ForwardProcess(1.0, "curl-noise", 0.0, noise=0.0), "noise must be from"),
        (lambda: ForwardProcess(1.0, "curl-noise", 0.0, sampling_noise=-1.0), "sampling noise must be at least 0"),
        (lambda: ForwardProcess(1.0, "curl-noise", 0.0, levels=0), "levels must be at least 1, got 0"),
        (lambda: ForwardProcess(1.0, "curl-noise", 0.0, sigma_max=0.01).operator(16), "sigma_max must be at least"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_seeds_are_functions_of_seed_stream_and_index() -> None:
    import numpy as np

    grid = seeds(np.arange(50)[:, None], "flow", np.arange(60)[None])
    assert grid.shape == (50, 60) and grid.min() >= 0 and len(grid.unique()) == 3000
    assert int(grid[7, 9]) == int(seeds(7, "flow", 9))
    assert int(seeds(7, "noise", 9)) != int(seeds(7, "flow", 9))
    # 3000 draws below 10: each count is binomial, standard deviation 16.4.
    counts = below(10, torch.arange(3000), "level").bincount(minlength=10)
    assert counts.sum() == 3000 and (counts - 300).abs().max() < 5 * 16.5
