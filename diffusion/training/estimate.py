"""What a run will take, before it starts: parameters, memory, lattice iterations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from diffusion.config import RunConfig
from diffusion.network import MixedPrecision
from lbm_warp.planner import Plan


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on a device; what the solver and the libraries take comes on top."""

    weights: int
    gradients: int
    adam: int
    average: int
    weight_copies: int
    """Of the weights in bfloat16, for one pass."""
    activations_per_image: int
    """Kept between the forward and the backward pass, for one image."""

    def total(self, images: int) -> int:
        """All of it, with the activations of so many images at a time."""
        fixed = self.weights + self.gradients + self.adam + self.average + self.weight_copies
        return fixed + images * self.activations_per_image


def memory(config: RunConfig, device: torch.device, precision: str = "fp32") -> Memory:
    """Memory to train a run; nothing is allocated to find out.

    Args:
        config: the run.
        device: what it is trained on; what is kept depends on the kernels that are there.
        precision: of the network, ``fp32`` or ``bf16``; weights and all that belongs to them are float32 in either.
    """
    network = meta_network(config)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    model = MixedPrecision(network) if precision == "bf16" else network
    shape = (config.channels, config.size, config.size)
    one, two = (
        saved_bytes(model, device, torch.empty((n, *shape), device="meta"), torch.empty(n, dtype=torch.int64, device="meta"))
        for n in (1, 2)
    )
    return Memory(weights, weights, 2 * weights, weights, 2 * one - two, two - one)


def meta_network(config: RunConfig) -> nn.Module:
    """The network of a run with shapes and no numbers."""
    with torch.device("meta"):
        return config.build_network()


def saved_bytes(model: nn.Module, device: torch.device, *inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of ``model(*inputs)``, without its parameters.

    It runs on tensors that have a device and a shape and no numbers. Of model and inputs, too, only the shapes matter: they may be
    on the meta device.
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


def iterations(plan: Plan) -> np.ndarray:
    """Lattice iterations from the clean image to levels 0..K, in units of one on the pixel grid, float64 [K + 1].

    Iterations on coarser grids count by their cells; the partial one that reads a level counts as one.
    """
    return plan.iterations
