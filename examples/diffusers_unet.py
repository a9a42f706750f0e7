"""diffusers' UNet2DModel as a network: `python examples/own_network.py --diffusers` (pip install 'beyond-blur[networks]')."""

from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch import nn

from diffusion import NetworkShape, NetworkSpec


class Called(UNet2DModel):
    """Called as ``network(u, level)``; gives a tensor."""

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return super().forward(2.0 * u - 1.0, level).sample


@dataclass(frozen=True)
class Diffusers(NetworkSpec):
    width: int = 32
    side_factor = 4

    def build(self, shape: NetworkShape) -> nn.Module:
        blocks = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
        widths = (self.width, 2 * self.width, 2 * self.width)
        channels = {"in_channels": shape.inputs, "out_channels": shape.outputs, "block_out_channels": widths}
        return Called(sample_size=tuple(shape.size), layers_per_block=1, norm_num_groups=8, **channels, **blocks)
