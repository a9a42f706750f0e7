"""The reverse network: a U-Net that takes a corrupted image and its level, and predicts a correction.

The family of networks is that of DDPM (Ho et al. 2020) and ADM (Dhariwal and Nichol 2021): group norm, residual blocks modulated by
the level, self-attention at coarse resolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer, check_number


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the U-Net."""

    width: int = 24
    """Channels at full resolution, a multiple of 8."""
    multipliers: tuple[int, ...] = (1, 2, 2)
    """Channels at each resolution as multiples of the width; every further entry halves the resolution."""
    blocks: int = 1
    """Residual blocks at each resolution on the way down; one more on the way up."""
    attention: tuple[int, ...] = ()
    """Resolutions with self-attention, counted in halvings (0 is the full one)."""
    dropout: float = 0.0
    """Dropout inside the residual blocks, 0 to 1."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("network width", self.width, 8)
        if self.width % 8:
            raise InputError(f"network width must be a multiple of 8, got {self.width}")
        if not self.multipliers:
            raise InputError("network multipliers must name at least one resolution")
        for multiplier in self.multipliers:
            check_integer("network multipliers", multiplier, 1)
        check_integer("network blocks", self.blocks, 1)
        check_number("network dropout", self.dropout, 0.0, 0.99)
        for depth in self.attention:
            check_integer("network attention", depth, 0, len(self.multipliers) - 1)

    def check_size(self, size: Size) -> None:
        """Raise InputError unless both sides of the images can be halved as often as the network halves them."""
        factor = 2 ** (len(self.multipliers) - 1)
        if any(side % factor for side in size):
            raise InputError(f"a network of {len(self.multipliers)} resolutions needs sides divisible by {factor}, got size {size}")


class UNet(nn.Module):
    """Correction to a corrupted image, zero at initialisation.

    Args:
        image_channels: channels C of the images.
        config: size of the network.
        levels: K, the number of the most corrupted level.
        classes: number of classes; with 0 the network knows none.
        input_channels: channels that it sees; those of the images by default.
    """

    def __init__(
        self, image_channels: int, config: NetworkConfig, levels: int, classes: int = 0, input_channels: int | None = None
    ) -> None:
        super().__init__()
        self.levels = levels
        self.embedding_width = 4 * config.width
        self.embed = nn.Sequential(
            nn.Linear(config.width, self.embedding_width), nn.SiLU(), nn.Linear(self.embedding_width, self.embedding_width)
        )
        widths = [config.width * m for m in config.multipliers]
        self.enter = nn.Conv2d(input_channels or image_channels, config.width, 3, padding=1)

        def block(inputs: int, outputs: int, depth: int) -> LevelSequence:
            layers: list[nn.Module] = [ResidualBlock(inputs, outputs, self.embedding_width, config.dropout)]
            if depth in config.attention:
                layers.append(SelfAttention(outputs))
            return LevelSequence(layers)

        self.down = nn.ModuleList()
        skips = [config.width]
        current = config.width
        for depth, width in enumerate(widths):
            if depth > 0:
                self.down.append(LevelSequence([nn.Conv2d(current, current, 3, stride=2, padding=1)]))
                skips.append(current)
            for _ in range(config.blocks):
                self.down.append(block(current, width, depth))
                current = width
                skips.append(current)

        bottom = len(widths) - 1
        self.middle = nn.ModuleList([block(current, current, bottom), block(current, current, -1)])

        self.up = nn.ModuleList()
        for depth, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(block(current + skips.pop(), width, depth))
                current = width
            if depth > 0:
                self.up.append(Upsample(current))

        self.leave = nn.Sequential(_norm(current), nn.SiLU(), _zero(nn.Conv2d(current, image_channels, 3, padding=1)))
        if classes:
            # One row more stands for no label (Ho and Salimans 2022).
            self.label = nn.Embedding(classes + 1, self.embedding_width)
        # Convolutions are faster with channels last, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)

    def forward(self, u: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted correction.

        Args:
            u: corrupted images and what else it sees, float [N, input_channels, H, W], values around [0, 1].
            level: their levels, int64 [N], 1 to K.
            label: their classes, int64 [N], the number of classes where there is none; for a network that knows classes.

        Returns:
            float [N, C, H, W].
        """
        embedding = self.embed(_fourier_features(level / self.levels, self.embed[0].in_features))
        if label is not None:
            embedding = embedding + self.label(label)
        x = self.enter((2.0 * u - 1.0).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(x) if isinstance(layer, Upsample) else layer(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.leave(x)


class MixedPrecision(nn.Module):
    """A network under bfloat16 autocast. Its inputs, outputs and weights are float32.

    Args:
        network: called as ``network(u, level)``; its weights stay float32.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, u: torch.Tensor, *conditions: torch.Tensor) -> torch.Tensor:
        with torch.autocast(u.device.type, torch.bfloat16):
            return self.network(u, *conditions).float()


class LevelSequence(nn.ModuleList):
    """Layers applied one after the other; residual blocks also get the embedding of the level."""

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; the level scales and shifts the features between them."""

    def __init__(self, inputs: int, outputs: int, embedding_width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 2 * outputs))
        self.norm = _norm(outputs)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), _zero(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm(self.first(x)) * (1.0 + scale) + shift
        return self.shortcut(x) + self.second(hidden)


class SelfAttention(nn.Module):
    """Every pixel attends to every other, in heads of up to 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.norm = _norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.output = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        parts = self.query_key_value(self.norm(x)).view(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = parts.transpose(-1, -2).unbind(dim=1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(attended.transpose(-1, -2).reshape(batch, channels, height, width))


class Upsample(nn.Module):
    """Twice the resolution: repeated pixels, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _fourier_features(position: torch.Tensor, width: int) -> torch.Tensor:
    """Sines and cosines of a position in [0, 1], with wavelengths from ten times the range down to a thousandth of it."""
    frequency = torch.exp(torch.linspace(math.log(0.1), math.log(1000.0), width // 2, device=position.device))
    phase = 2.0 * math.pi * position[:, None] * frequency
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups of at least four channels, as many as divide them evenly."""
    groups = next(count for count in range(min(32, channels // 4), 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with zero weights: at initialisation its branch adds nothing."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
