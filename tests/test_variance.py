"""Analysis of variance: numbers with known components, and samplers that ignore a factor."""

from __future__ import annotations

import pytest
import torch

from diffusion.evaluation.variance import analysis_of_variance, components
from lbm_warp.checks import InputError
from tests.test_likelihood import exact_run


def test_components_of_numbers_made_of_them() -> None:
    """Estimates of variances of many numbers: with 2,000 numbers of 4 values the error of a share is about
    sqrt(2 / (3 * 2000)) = 2 % of the mean squares that it is made of."""
    generator = torch.Generator().manual_seed(0)
    shapes = {(4, 1, 1): 1.0, (1, 4, 1): 2.0, (1, 1, 4): 0.0, (4, 4, 1): 0.5, (4, 1, 4): 1.5, (1, 4, 4): 0.0, (4, 4, 4): 3.0}
    parts = [variance**0.5 * torch.randn((*shape, 2000), generator=generator) for shape, variance in shapes.items()]
    found = components(sum(part.double() for part in parts))
    names = ("start", "flow", "noise", "start x flow", "start x noise", "flow x noise", "start x flow x noise")
    for name, variance in zip(names, shapes.values(), strict=True):
        assert found[name] == pytest.approx(variance / 8.0, abs=0.03)
    assert sum(found.values()) == pytest.approx(1.0)
    assert set(components(torch.ones(3, 3, 3, 5)).values()) == {0.0}


def test_a_sampler_without_noise_or_flow_depends_on_its_start_alone() -> None:
    run = exact_run("fluid", peclet=0.0, levels=20, steps=20, eta=0.0)
    found = analysis_of_variance(run, values=3)["pixels"]
    assert found["start"] == pytest.approx(1.0, abs=1e-6) and len(found) == 7
    assert max(abs(share) for name, share in found.items() if name != "start") < 1e-6


def test_noise_and_flow_have_their_parts() -> None:
    run = exact_run("fluid", peclet=0.0, levels=20, steps=20)
    still = analysis_of_variance(run, values=3)["pixels"]
    assert still["noise"] > 0.3 and max(abs(still[name]) for name in still if "flow" in name) < 1e-6
    assert still == analysis_of_variance(run, values=3)["pixels"]
    with pytest.raises(InputError, match="values must be at least 2"):
        analysis_of_variance(run, values=1)
