"""Networks of one's own: a small one in the style of EDM2 (Karras et al. 2024), or diffusers' UNet2DModel with --diffusers."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import nn
from torch.nn.functional import conv2d, silu

from cli.render import save_grid
from diffusion import NetworkShape, NetworkSpec, Pipeline, TrainingConfig, open_dataset, preset, train


class MPConv(nn.Conv2d):  # weights of unit norm keep the magnitude of what it sees (EDM2, equation 66)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return conv2d(x, weight, None, 1, self.padding, self.dilation)


class EDM2Style(nn.Module):
    def __init__(self, shape: NetworkShape, width: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = shape.levels
        self.enter = MPConv(shape.inputs + 1, width, 3, padding=1)  # a channel of ones takes the place of biases
        self.blocks = nn.ModuleList(MPConv(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.gains = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, len(dilations) * width))
        self.leave = nn.Conv2d(width, shape.outputs, 1)

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        phase = level[:, None] / self.levels * torch.tensor([0.5, 1.0, 2.0, 4.0], device=u.device) * torch.pi
        gains = self.gains(torch.cat([phase.cos(), phase.sin()], dim=1)).chunk(len(self.blocks), dim=1)
        x = self.enter(torch.cat([2.0 * u - 1.0, torch.ones_like(u[:, :1])], dim=1))
        for block, gain in zip(self.blocks, gains, strict=True):
            x = (x + block(silu(x) / 0.596 * (1.0 + gain[:, :, None, None]))) / 2.0**0.5
        prediction: torch.Tensor = self.leave(x)
        return prediction


@dataclass(frozen=True)
class EDM2(NetworkSpec):
    width: int = 48
    dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 4)

    def build(self, shape: NetworkShape) -> nn.Module:
        return EDM2Style(shape, self.width, self.dilations)


def main(out: Path = Path("runs/own-network"), images: int = 40_000, diffusers: bool = False) -> None:
    kind: type[NetworkSpec] = EDM2
    if diffusers:
        from diffusers_unet import Diffusers as kind
    config = replace(preset("digits"), network=kind(), training=TrainingConfig(images))
    train(config, open_dataset("digits"), out)
    save_grid(out / "samples.png", Pipeline.from_pretrained(out, types=[kind]).sample(16))


if __name__ == "__main__":
    tyro.cli(main)
