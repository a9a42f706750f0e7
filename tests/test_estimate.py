from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from diffusion.methods import named_method
from diffusion.network import MixedPrecision, NetworkConfig, UNet
from diffusion.training.estimate import memory, saved_bytes
from tests.runs import tiny_config

CPU = torch.device("cpu")


def test_what_two_layers_keep_is_what_was_counted_by_hand() -> None:
    """A linear layer keeps its input, SiLU its own: 5 x 3 and 5 x 7 numbers; the second layer the activation, 5 x 7."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 7), nn.SiLU(), nn.Linear(7, 2))
        x = torch.empty((5, 3))
    assert saved_bytes(model, CPU, x) == 4 * 5 * (3 + 7 + 7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_network_keeps_is_what_it_keeps_for_real(precision: str) -> None:
    network = UNet(3, NetworkConfig(32, (1, 2), 2, (1,), 0.3), levels=10)
    model = MixedPrecision(network) if precision == "bf16" else network
    u, level = torch.rand((2, 3, 16, 16)), torch.tensor([1, 5])
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(u, level)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    # Fresh memory may share an address with what was freed: a few small vectors at most.
    assert saved_bytes(model, CPU, u, level) == pytest.approx(real, rel=2e-3)


def test_memory_of_a_run_adds_up() -> None:
    config = tiny_config()
    weights = 4 * sum(parameter.numel() for parameter in config.build_network().parameters())
    need = memory(config, CPU)
    assert (need.weights, need.gradients, need.adam, need.average) == (weights, weights, 2 * weights, weights)
    assert need.weight_copies == 0
    assert need.total(3) - need.total(2) == need.activations_per_image > 4 * 8 * 8 * 8 * 10
    half = memory(config, CPU, "bf16")
    assert 0.3 * need.activations_per_image < half.activations_per_image < 0.9 * need.activations_per_image
    assert 0 < half.weight_copies < 0.6 * weights


def test_the_papers_schedule_costs_nine_percent_of_its_trajectory_on_average() -> None:
    """1 / (2 ln(sigma_max / sigma_min)) of it: the iterations grow with sigma^2, and sigma is geometric."""
    operator = named_method("beyond-blur-frozen").changed(peclet=0.06, sigma_max=1.0).operator
    cost = replace(operator, offset=100.0).iterations(128, 128)  # too strong a source for a coarser grid
    assert cost[-1] == pytest.approx(128**2 / 0.5, rel=0.01)
    assert cost[1:].mean() / cost[-1] == pytest.approx(1 / (2 * math.log(128 / 0.5)), rel=0.05)
    assert operator.iterations(128, 128)[-1] == pytest.approx(137 + (128**2 - 64) / 16 / 0.5, rel=0.01)


class Judging(nn.Module):
    """Asks for the value of a level, which a tensor without values has not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.norm(u) if level.max() > 3 else u


def test_a_users_network_is_estimated_or_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="the memory of Judging cannot be estimated; it does not run on tensors without values"):
        memory(tiny_config(network=Judging()), CPU)
    need = memory(tiny_config(network=Plain()), CPU)
    # The convolution keeps its input, the norm its own and two numbers for each of two channels of a batch.
    assert (need.weights, need.activations_per_image) == (4 * (2 * 9 + 2 + 2 + 2 + 2 + 1), 4 * (8 * 8) * (1 + 2 + 2))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.layers(u)
