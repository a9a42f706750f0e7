"""A prior of photographs: blurred and noisy ones of any size, restored in one pass of a network.

The posterior mean has the smallest expected squared error, and one pass of a network that is trained with that error gives it, so
no process is sampled. The levels are a grid of pairs of a Gaussian blur and a white noise; what is seen of a picture x is

    z = A x + r eps,    A = exp(-kappa^2 sigma^2 / 2) in every cosine mode,

cut to [0, 1] and rounded to eight bits as files hold it. Photographs have a spectrum P(kappa) = a (kappa^2 + b^2)^(-p/2), so a
Wiener filter has the estimates of the picture and, with V = r^2 / (P A^2 + r^2), of the noise

    base = m + P A / (P A^2 + r^2) (z - m)    and    V (z - m),    m = 1/2.

The network sees both and the two numbers, and predicts for every value what the filter leaves over, in units of its root mean
square, and the logarithm of the variance that is left then. It has no norm and no attention: what it makes of a pixel depends on
those near it alone, so a large picture can be restored in tiles. The numbers need not be those of the grid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.denoisers import Denoiser, summed
from diffusion.density import Density
from diffusion.forward.operators import Operator
from diffusion.forward.process import ForwardProcess, Level
from diffusion.forward.scales import Scales
from diffusion.network import NetworkShape, NetworkSpec
from diffusion.rng import below, uniform
from diffusion.size import Size
from lbm_warp.checks import InputError, Integers, check_integer, check_number
from lbm_warp.heat import blur, cosines, from_modes, to_modes
from lbm_warp.schedule import MOST_LEVELS

# Shares of grey training pictures, and of those with an edge in either direction, beyond which they are mirrored: so are pictures
# that are restored, but what lay there was not mirrored when they became blurred.
GREY, EDGE = 0.125, 0.5


@dataclass(frozen=True)
class BlurOfGrid(Operator):
    """Gaussian blur between walls. The levels are pairs: level 1 + i + j blurs has the blur number i and the noise number j."""

    blurs: int = 33
    """Number of blur widths, evenly spaced from 0 up."""
    widest: float = 4.0
    """The largest blur width [pixels]."""
    levels: int = 33 * 24
    """K, the number of pairs."""
    linear = diagonal = True
    solver = "cosines"

    def __post_init__(self) -> None:
        check_integer("blurs", self.blurs, 2, MOST_LEVELS)
        check_number("widest", self.widest, 0.0, 1e3)
        if self.levels % self.blurs:
            raise InputError(f"levels must be a multiple of the number of blurs, {self.blurs}, got {self.levels}")

    def widths(self, size: Size) -> np.ndarray:
        """Blur widths of levels 0..K [pixels]: those of a grid do not rise."""
        return np.concatenate([[0.0], np.tile(np.linspace(0.0, self.widest, self.blurs), self.levels // self.blurs)])

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Blurred images."""
        return blur(u0, torch.from_numpy(self.widths(Size(*u0.shape[2:])))[level], periodic=False)

    def transfer(self, level: Integers, size: Size) -> torch.Tensor:
        """As :meth:`Operator.transfer`."""
        return _transfer(torch.from_numpy(self.widths(size))[torch.as_tensor(level).reshape(-1)], size)

    def describe(self) -> str:
        return f"no flow\nblur to {self.widest:g} px"


@dataclass(frozen=True)
class NoiseOfGrid(Scales):
    """White noise of the pairs of :class:`BlurOfGrid`, evenly spaced in the logarithm."""

    noises: int = 24
    """Number of noises."""
    least: float = 0.002
    """Standard deviation of the weakest noise; rounding to eight bits is 0.0011."""
    most: float = 0.25
    """Standard deviation of the strongest noise."""

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return np.repeat(np.geomspace(self.least, self.most, self.noises), -(-len(t) // self.noises))[: len(t)]


@dataclass(frozen=True)
class DensityOfGrid(Density):
    """All noises alike, and all blur widths but none, which has a share of its own."""

    sharp: float = 0.25
    """Share of the levels without blur, 0 to 1."""

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        sharp = forward.operator.widths(Size(1, 1))[1:] == 0.0
        return np.where(sharp, self.sharp / sharp.mean(), (1.0 - self.sharp) / (1.0 - sharp.mean()))


@dataclass(frozen=True)
class Photographs(Denoiser):
    """The network predicts what a Wiener filter for photographs leaves over, and how much of it stays unknown."""

    power: float = 0.0113
    """a of the spectrum of photographs, the variance of a cosine mode: a (kappa^2 + b^2)^(-p / 2)."""
    bend: float = 0.059
    """b [1 / pixel]."""
    exponent: float = 2.65
    """p."""
    likelihood: float = 0.1
    """Weight of the likelihood of the variance in the loss, beside the squared error."""

    def channels(self, channels: int, forward: ForwardProcess) -> int:
        """Two estimates, blur and noise."""
        return 2 * channels + 2

    def outputs(self, channels: int) -> int:
        """What is left over, and the logarithm of its variance."""
        return 2 * channels

    def inputs(self, forward: ForwardProcess, u: torch.Tensor, level: Level) -> torch.Tensor:
        return self.estimate(u, *_numbers(forward, u, level))[0]

    def example(
        self, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Denoiser.example`, of pictures as files hold them, some grey, some with an edge."""
        grey = (uniform(seed, "grey") < GREY)[:, None, None, None].to(u0.device)
        u0 = torch.where(grey, u0.mean(dim=1, keepdim=True), u0)
        noise = forward.unit_noise(seed, u0)
        noise = torch.where(grey, noise[:, :1], noise)
        z = as_stored(forward.mean(u0, level, seed) + forward.at(forward.noise, level, u0) * noise)
        u0, z = _with_edges(u0, seed), _with_edges(z, seed)
        inputs, base, gain = self.estimate(z, *_numbers(forward, z, level))
        return inputs, (u0 - base) / gain

    def loss(
        self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, level: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        """The squared error, and the Gaussian likelihood of the variance given that error, which leaves the mean as it is."""
        mean, log_variance = prediction.chunk(2, dim=1)
        error = (mean - target).square()
        return summed(error + self.likelihood * (error.detach() * torch.exp(-log_variance) + log_variance))

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor
    ) -> torch.Tensor:
        _, base, gain = self.estimate(u, *_numbers(forward, u, level))
        return base + gain * prediction.chunk(2, dim=1)[0]

    def estimate(
        self, z: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the network [N, 2 C + 2, H, W], the Wiener filter's estimate [N, C, H, W] and its expected root mean square
        error [N, 1, 1, 1].

        Args:
            z: degraded pictures, float32 [N, C, H, W].
            sigma, noise: their blur widths [pixels] and noises, float64 [N] on the CPU.
        """
        power, transfer, seen = self._moments(sigma, noise, Size(*z.shape[2:]))
        modes = to_modes(z - 0.5)
        base = 0.5 + from_modes((power * transfer / seen).to(z) * modes)
        rest = from_modes((noise.square()[:, None, None, None] / seen).to(z) * modes)
        # Root mean squares are those of pieces of one size, whatever that of the picture.
        power, transfer, seen = self._moments(sigma, noise, Size(64, 64))
        gain = (power * (1.0 - power * transfer.square() / seen)).mean(dim=(1, 2, 3), keepdim=True).sqrt().to(z)
        scale = (noise.square()[:, None, None, None].square() / seen).mean(dim=(1, 2, 3), keepdim=True).sqrt().to(z)
        told = torch.stack([sigma / 4.0, (noise.log() + 6.0) / 5.0], dim=1).to(z)[:, :, None, None]
        return torch.cat([base, 0.5 + 0.25 * rest / scale, told.expand(-1, -1, *z.shape[2:])], dim=1), base, gain

    def _moments(self, sigma: torch.Tensor, noise: torch.Tensor, size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Variance of the modes of photographs, factors of the blur, variance of what is seen, float64 [N or 1, 1, H, W]."""
        power, transfer = self.spectrum(size), _transfer(sigma, size)
        return power, transfer, power * transfer.square() + noise.square()[:, None, None, None]

    def spectrum(self, size: Size) -> torch.Tensor:
        """Variance of the cosine modes of photographs, float64 [1, 1, H, W]."""
        return self.power * (_squares(size) + self.bend**2) ** (-0.5 * self.exponent)


@dataclass(frozen=True)
class LocalUNet(NetworkSpec):
    """A U-Net without norm and attention at half the resolution and below, modulated by the last two of its input channels.

    Two by two pixels become channels first (FFDNet, Zhang et al. 2018), residual blocks have no norm (DRUNet, Zhang et al. 2021).
    """

    widths: tuple[int, ...] = (48, 96, 144)
    """Channels at half the resolution, and at each further halving."""
    blocks: int = 2
    """Residual blocks at each resolution, on either way."""
    embedding: int = 64
    """Numbers that blur and noise become."""

    @property
    def side_factor(self) -> int:  # type: ignore[override]
        """What both sides must be multiples of."""
        return 2 ** len(self.widths)

    @property
    def reach(self) -> int:
        """How far away a pixel may be that one pixel of the result depends on [pixels], at most."""
        convolutions = [2 * self.blocks * (2 if depth < len(self.widths) - 1 else 1) for depth in range(len(self.widths))]
        return 4 + sum(count * 2 ** (depth + 1) for depth, count in enumerate(convolutions)) + self.side_factor

    def validate(self) -> None:
        for width in self.widths:
            check_integer("network widths", width, 1, 4096)
        check_integer("network blocks", self.blocks, 1, 64)
        check_integer("network embedding", self.embedding, 1, 4096)

    def build(self, shape: NetworkShape) -> nn.Module:
        return _LocalUNet(self, shape.inputs, shape.outputs)

    def activation_bytes(self, size: Size) -> int:
        return 4 * 4 * self.blocks * sum(w * size.height * size.width >> 2 * (d + 1) for d, w in enumerate(self.widths))


class _Block(nn.Module):
    """Two convolutions around a shortcut; blur and noise scale and shift the features between them."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.modulation = nn.Linear(embedding, 2 * width)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        return x + self.second(F.relu(self.first(x) * (1.0 + scale) + shift))


class _LocalUNet(nn.Module):
    def __init__(self, config: LocalUNet, inputs: int, outputs: int) -> None:
        super().__init__()
        widths, embedding = config.widths, config.embedding
        self.embed = nn.Sequential(nn.Linear(2, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU())
        self.enter = nn.Conv2d(4 * inputs, widths[0], 3, padding=1)

        def blocks(width: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, embedding) for _ in range(config.blocks))

        self.down = nn.ModuleList(blocks(width) for width in widths)
        self.up = nn.ModuleList(blocks(width) for width in widths[:-1])
        self.halvings = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(widths[0], 4 * outputs, 3, padding=1)
        for parameter in self.leave.parameters():
            nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Predictions [N, outputs, H, W] for inputs [N, inputs, H, W]; the level is in the last two channels."""
        embedding = self.embed(u[:, -2:, 0, 0])
        x = self.enter(F.pixel_unshuffle(2.0 * u - 1.0, 2).contiguous(memory_format=torch.channels_last))
        skips = []
        for depth, blocks in enumerate(self.down):
            if depth:
                skips.append(x)
                x = self.halvings[depth - 1](x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, embedding)
        for depth in reversed(range(len(self.up))):
            x = self.doublings[depth](x) + skips.pop()
            for block in self.up[depth]:  # type: ignore[attr-defined]
                x = block(x, embedding)
        return F.pixel_shuffle(self.leave(x), 2)


def as_stored(z: torch.Tensor) -> torch.Tensor:
    """Pictures as a file holds them: cut to [0, 1], rounded to eight bits."""
    return (255.0 * z.clamp(0.0, 1.0)).round() / 255.0


def _numbers(forward: ForwardProcess, u: torch.Tensor, level: Level) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur widths and noises of levels, float64 [N]."""
    level = torch.as_tensor(level).reshape(-1).expand(len(u))
    widths = forward.operator.widths(Size(*u.shape[2:]))
    return torch.from_numpy(widths)[level], torch.from_numpy(forward.noise)[level]


# A large picture has tiles of four sizes, and pieces of one; 4 MB each.
@functools.lru_cache(maxsize=5)
def _squares(size: Size) -> torch.Tensor:
    """Squares of the wavenumbers of the cosine modes [1 / pixel^2], float64 [1, 1, H, W]."""
    ky, kx = (cosines(side)[0].square() for side in size)
    return (ky[:, None] + kx)[None, None]


def _transfer(sigma: torch.Tensor, size: Size) -> torch.Tensor:
    """Factors of the cosine modes under a blur, float64 [N, 1, H, W]."""
    return torch.exp(-0.5 * sigma.square()[:, None, None, None] * _squares(size))


def _with_edges(images: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """Images [N, C, H, W], some mirrored at a row or column in their first quarter, as are pictures that end there."""
    for axis, name in ((2, "row"), (3, "column")):
        side = images.shape[axis]
        edge = torch.where(uniform(seed, f"{name} edge") < EDGE, below(side // 4, seed, name), 0)[:, None]
        place = torch.arange(side)
        place = torch.where(place < edge, 2 * edge - 1 - place, place).to(images.device)
        index = place[:, None, :, None] if axis == 2 else place[:, None, None, :]
        images = torch.gather(images, axis, index.expand_as(images))
    return images
