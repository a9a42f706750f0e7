"""The memory that training a run needs, estimated before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from diffusion.network import MixedPrecision
from diffusion.run import RunConfig
from diffusion.training.ranks import one_line
from lbm_warp.checks import InputError


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

    Raises:
        InputError: if the network does not run on tensors without values, as one of a user's own may not.
    """
    network = config.build_network(empty=True)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    model = MixedPrecision(network) if precision == "bf16" else network
    conditions, meta = 2 if config.classes else 1, partial(torch.empty, device="meta")
    try:
        one, two = (
            saved_bytes(model, device, meta((n, *config.input_shape)), *[meta(n, dtype=torch.int64)] * conditions) for n in (1, 2)
        )
    except Exception as error:
        reason = f"it does not run on tensors without values: {one_line(error)[:200]}"
        raise InputError(f"the memory of {type(network).__name__} cannot be estimated; {reason}") from error
    return Memory(weights, weights, 2 * weights, weights, 2 * one - two, two - one)


def saved_bytes(model: nn.Module, device: torch.device, *inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of ``model(*inputs)``, without its parameters and buffers.

    Uses FakeTensorMode, so nothing is allocated. Model and inputs may be on the meta device.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, requires_grad=tensor.requires_grad)

    with FakeTensorMode(), device:
        weights = {name: fake(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
        given = tuple(map(fake, inputs))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(model, weights, given)
        own = {weight.untyped_storage()._cdata for weight in weights.values()}
        return sum(storage.nbytes() for key, storage in kept.items() if key not in own)
