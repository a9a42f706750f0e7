"""The memory that training a run needs, estimated before it starts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from diffusion.config import RunConfig
from diffusion.network import MixedPrecision


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on a device, without those of the solver and the libraries."""

    weights: int
    gradients: int
    adam: int
    average: int
    weight_copies: int
    """Copies of the weights in bfloat16, for one pass."""
    activations_per_image: int
    """Kept between the forward and the backward pass, for one image."""

    def total(self, images: int) -> int:
        """The sum, with the activations of this many images at a time."""
        fixed = self.weights + self.gradients + self.adam + self.average + self.weight_copies
        return fixed + images * self.activations_per_image


def memory(config: RunConfig, device: torch.device, precision: str = "fp32") -> Memory:
    """Memory to train a run. Nothing is allocated.

    Args:
        config: the run.
        device: the training device; which tensors the backward pass keeps depends on its kernels.
        precision: of the network, ``fp32`` or ``bf16``; weights, gradients, moments and averages are float32 in both.
    """
    network = meta_network(config)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    model = MixedPrecision(network) if precision == "bf16" else network
    batches = ((torch.empty((n, *config.input_shape)), torch.empty(n, dtype=torch.int64)) for n in (1, 2))
    one, two = (saved_bytes(model, device, *(tensor.to("meta") for tensor in batch)) for batch in batches)
    return Memory(weights, weights, 2 * weights, weights, 2 * one - two, two - one)


def meta_network(config: RunConfig) -> nn.Module:
    """The network of a run on the meta device: shapes without values."""
    with torch.device("meta"):
        return config.build_network()


def saved_bytes(model: nn.Module, device: torch.device, *inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of ``model(*inputs)``, without its parameters.

    Uses FakeTensorMode, so nothing is allocated. Model and inputs may be on the meta device.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), device:
        weights, inputs = (
            {name: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, requires_grad=t.requires_grad) for name, t in tensors}
            for tensors in (model.named_parameters(), enumerate(inputs))
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(model, weights, tuple(inputs.values()))
        own = {weight.untyped_storage()._cdata for weight in weights.values()}
        return sum(storage.nbytes() for key, storage in kept.items() if key not in own)
