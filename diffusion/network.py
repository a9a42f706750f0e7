"""Networks: what builds one, and this project's own, a U-Net that takes a corrupted image and its level.

Any ``nn.Module`` serves that is called as ``network(u, level)``, or ``network(u, level, label)`` in a run with classes: ``u`` is
float32 [N, inputs, H, W], values around [0, 1], ``level`` int64 [N] from 1 to K, ``label`` int64 [N], the number of classes where
there is none; it gives float32 [N, outputs, H, W]. In a training with an augmentation that tells it something it is also
called with ``told=``, float32 [N, told]; elsewhere without. A run takes the module itself, or what builds one, a
:class:`NetworkSpec`.

The family of networks is that of DDPM (Ho et al. 2020) and ADM (Dhariwal and Nichol 2021): group norm, residual blocks modulated by
the level, self-attention at coarse resolutions.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer, check_number

RESOLUTIONS = 14  # of the largest images
# A call with fewer operations, at most two for each weight and pixel, takes a GPU less time than the launches of its kernels.
SMALL = 1e12


@dataclass(frozen=True)
class NetworkShape:
    """What a network must take and give."""

    inputs: int
    """Channels that it sees: those of the images, or two estimates of them, and what it is told of the flow."""
    outputs: int
    """Channels of the images."""
    levels: int
    """K, the number of the most corrupted level."""
    classes: int
    """Number of classes; with 0 it is called without labels."""
    size: Size
    """Height and width of the images [pixels]."""
    told: int = 0
    """Numbers that it is told of the augmentation of an image in training; with 0 it is called without."""


class NetworkSpec:
    """Base class of what builds a network: subclass it as a frozen dataclass of numbers and write :meth:`build`."""

    side_factor: int = 1
    """What both sides of the images must be multiples of."""

    def build(self, shape: NetworkShape) -> nn.Module:
        """A network with fresh weights, drawn by torch's global generator."""
        raise NotImplementedError(f"{type(self).__name__} needs a method build(shape)")

    def build_empty(self, shape: NetworkShape) -> nn.Module:
        """A network whose weights will be replaced; torch's global generator is left as it is."""
        with torch.random.fork_rng(devices=[]):
            return self.build(shape)

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""

    def check_size(self, size: Size) -> None:
        """Raise InputError unless it can take images of this size."""
        if any(side % self.side_factor for side in size):
            raise InputError(f"{type(self).__name__} needs sides divisible by {self.side_factor}, got size {size}")

    def activation_bytes(self, size: Size) -> int:
        """Estimate of the memory for one image [bytes], which sets how many are sampled at a time."""
        return 4 * 512 * size.height * size.width

    def filled(self, module: nn.Module) -> NetworkSpec:
        """The specification of a run that was trained with a module, with such a module again."""
        raise InputError(f"the run builds its network itself ({type(self).__name__}): leave out network")


@dataclass(frozen=True)
class GivenNetwork(NetworkSpec):
    """A module that its user makes; a run's file knows the name of its class alone. Training copies it."""

    name: str
    """Name of the module's class."""
    module: nn.Module | None = field(default=None, init=False, compare=False, repr=False)
    """The module."""

    @classmethod
    def of(cls, module: nn.Module) -> GivenNetwork:
        """This module."""
        made = cls(type(module).__qualname__)
        object.__setattr__(made, "module", module)
        return made

    def build(self, shape: NetworkShape) -> nn.Module:
        """A copy of the module, with its weights."""
        if self.module is None:
            raise InputError(f"the run was trained with a module of one's own, {self.name}: pass one, network={self.name}(...)")
        return copy.deepcopy(self.module)

    def filled(self, module: nn.Module) -> GivenNetwork:
        if type(module).__qualname__ != self.name:
            raise InputError(f"the run was trained with a module {self.name}, got {type(module).__qualname__}")
        return self.of(module)


@dataclass(frozen=True)
class NetworkConfig(NetworkSpec):
    """This project's U-Net."""

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
        check_integer("network width", self.width, 8, 4096)
        if self.width % 8:
            raise InputError(f"network width must be a multiple of 8, got {self.width}")
        if not 1 <= len(self.multipliers) <= RESOLUTIONS:
            raise InputError(f"network multipliers must name at least one resolution, at most {RESOLUTIONS}")
        for multiplier in self.multipliers:
            check_integer("network multipliers", multiplier, 1, 64)
        check_integer("network blocks", self.blocks, 1, 64)
        check_number("network dropout", self.dropout, 0.0, 0.99)
        for depth in self.attention:
            most = len(self.multipliers) - 1
            check_integer(f"network attention (counted in halvings of the resolution, {most} by the multipliers)", depth, 0, most)

    @property
    def side_factor(self) -> int:  # type: ignore[override]
        """What both sides must be multiples of: they are halved at each further resolution."""
        return 2 ** (len(self.multipliers) - 1)

    def check_size(self, size: Size) -> None:
        if any(side % self.side_factor for side in size):
            many = len(self.multipliers)
            raise InputError(f"a network of {many} resolutions needs sides divisible by {self.side_factor}, got size {size}")

    def build(self, shape: NetworkShape) -> UNet:
        """As :meth:`NetworkSpec.build`.

        Raises:
            InputError: if the weights are larger than the memory of this machine.
        """
        size, memory = (sum(weight.nbytes for weight in self.build_empty(shape).parameters()), psutil.virtual_memory().total)
        if size > memory:
            raise InputError(f"a network of {size / 2**30:,.0f} GiB; this machine has {memory / 2**30:,.0f}; make it narrower")
        return UNet(shape.outputs, self, shape.levels, shape.classes, shape.inputs, shape.told)

    def build_empty(self, shape: NetworkShape) -> UNet:
        """As :meth:`NetworkSpec.build_empty`: without memory for the weights."""
        with torch.device("meta"):
            return UNet(shape.outputs, self, shape.levels, shape.classes, shape.inputs, shape.told)

    def activation_bytes(self, size: Size) -> int:
        """As :meth:`NetworkSpec.activation_bytes`: the features kept for the way up, and work space."""
        maps = [
            self.width * multiplier * (size.height >> depth) * (size.width >> depth)
            for depth, multiplier in enumerate(self.multipliers)
        ]
        # A block at the start of the way up holds its input joined to the kept features, that normalised, and that activated.
        return 4 * ((self.blocks + 1) * sum(maps) + 12 * max(maps))


class UNet(nn.Module):
    """Correction to a corrupted image, zero at initialisation.

    Args:
        image_channels: channels C of the images.
        config: size of the network.
        levels: K, the number of the most corrupted level.
        classes: number of classes; with 0 the network knows none.
        input_channels: channels that it sees; those of the images by default.
        told: numbers that it is told of an image's augmentation.
    """

    def __init__(
        self,
        image_channels: int,
        config: NetworkConfig,
        levels: int,
        classes: int = 0,
        input_channels: int | None = None,
        told: int = 0,
    ) -> None:
        super().__init__()
        self.levels = levels
        self.level_width, self.embedding_width = config.width, 4 * config.width
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

        self.leave = nn.Sequential(_norm(current), nn.Identity(), _zero(nn.Conv2d(current, image_channels, 3, padding=1)))
        if classes:
            # One row more stands for no label (Ho and Salimans 2022).
            self.label = nn.Embedding(classes + 1, self.embedding_width)
        if told:
            # Without a bias: zeros are told by leaving it out.
            self.augmentation = nn.Linear(told, self.embedding_width, bias=False)
        # Convolutions are faster with channels last, on CPUs and on tensor cores.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, u: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None = None, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predicted correction.

        Args:
            u: corrupted images and what else it sees, float [N, input_channels, H, W], values around [0, 1].
            level: their levels, int64 [N], 1 to K.
            label: their classes, int64 [N], the number of classes where there is none; for a network that knows classes.
            told: how they were augmented, float32 [N, told]; by default zeros.

        Returns:
            float [N, C, H, W].
        """
        embedding = self.embed(_fourier_features(level / self.levels, self.level_width))
        if label is not None:
            embedding = embedding + self.label(label)
        if told is not None:
            embedding = embedding + self.augmentation(told)
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

    def forward(self, u: torch.Tensor, *conditions: torch.Tensor, **told: torch.Tensor) -> torch.Tensor:
        with torch.autocast(u.device.type, torch.bfloat16):
            return self.network(u, *conditions, **told).float()


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018), for each image scaled and shifted, and SiLU: silu((1 + scale) norm(x) + shift).

    Args:
        groups: number of groups.
        channels: number of channels.
        activation: whether SiLU follows.
    """

    def __init__(self, groups: int, channels: int, activation: bool = True) -> None:
        super().__init__(groups, channels)
        self.activation = activation

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None) -> torch.Tensor:
        """Of features float [N, C, H, W], with scale and shift [N, C]; the result has their dtype and layout."""
        if not _keeps_layout(x):
            weight, bias = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
            if scale is not None and shift is not None:
                weight, bias = weight * (1.0 + scale), bias * (1.0 + scale) + shift
            return ScaledGroupNorm.apply(x, weight, bias, self.num_groups, self.eps, self.activation)
        x = super().forward(x)
        if scale is not None and shift is not None:
            x = x * (1.0 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(x) if self.activation else x


def _keeps_layout(x: torch.Tensor) -> bool:
    """Whether torch's own group norm leaves features in their layout: on a GPU it makes channels-last ones contiguous."""
    return x.is_cpu or x.is_contiguous()


class ScaledGroupNorm(torch.autograd.Function):
    """Group norm with a weight w and a bias for each image and channel, and SiLU, in dtype and layout of the features x.

    With mean m and 1 / standard deviation r of a group, in float32 at least, z = a x + b with a = w r and b = bias - a m. For the
    gradient g of z and its sums over pixels S = sum g and P = sum g x, the bias gets S, the weight T = r (P - m S), and with M
    values in a group and sums over its channels

        dx = a g - (r / M) (sum of w S + r (x - m) sum of w T).
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, activation: bool
    ) -> torch.Tensor:
        """Features [N, C, H, W], weight and bias [N, C]."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        # [N, H, W, G, C / G], a view. Pixels before channels, as they lie in memory: torch.compile asks for a contiguous out=.
        x = x.permute(0, 2, 3, 1).unflatten(3, (groups, -1))
        weight, bias = (tensor.to(dtype).unflatten(1, (groups, -1))[:, None, None] for tensor in (weight, bias))
        count, over = math.prod(x.shape[1:]) // groups, (1, 2, 4)
        mean = x.mean(over, keepdim=True, dtype=dtype)
        square = torch.linalg.vector_norm(x, dim=over, keepdim=True, dtype=dtype).square() / count
        r = (square - mean.square()).clamp_min(0.0).add(eps).rsqrt()
        z = _affine(x, weight * r, bias - weight * r * mean)
        ctx.save_for_backward(x, z, weight, mean, r)
        ctx.activation, ctx.count = activation, count
        return (F.silu(z) if activation else z).flatten(3).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, z, weight, mean, r = ctx.saved_tensors
        g = gradient.permute(0, 2, 3, 1).unflatten(3, x.shape[3:])
        g = torch.ops.aten.silu_backward(g, z) if ctx.activation else g
        of_bias, products = (tensor.sum((1, 2), keepdim=True, dtype=mean.dtype) for tensor in (g, g * x))
        of_weight = r * (products - mean * of_bias)
        one, other = (-r / ctx.count * (weight * t).sum(4, keepdim=True) for t in (of_bias, of_weight))
        dx = _affine(x, r * other, one - r * other * mean)
        dx = torch.addcmul(dx, g, weight * r, out=dx)
        return dx.flatten(3).permute(0, 3, 1, 2), of_weight.flatten(1), of_bias.flatten(1), None, None, None


def _affine(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a x + b for a and b [N, 1, 1, G, C / G] in their precision, in dtype and layout of x."""
    return torch.addcmul(b, x, a, out=torch.empty_like(x))


def for_sampling(network: nn.Module, precision: str, pixels: int) -> Callable[..., torch.Tensor]:
    """A network as sampling calls it: many times, with the weights that it has now. Inputs and outputs are float32.

    In bf16 its weights are rounded once. A small U-Net on a GPU, for so many pixels at a time, is played back as a CUDA graph. A
    network that is compiled is called as it is.

    Args:
        network: called as ``network(u, level)``.
        precision: ``fp32``, or ``bf16`` for autocast.
        pixels: of all images at a time.
    """
    compiled = network._compiled_call_impl is not None
    called = MixedPrecision(network if compiled else _rounded(network)) if precision == "bf16" else network
    weights = list(network.parameters())
    small = isinstance(network, UNet) and 2.0 * pixels * sum(weight.numel() for weight in weights) < SMALL
    return Replayed(called) if small and not compiled and weights[0].is_cuda else called


def _rounded(network: nn.Module) -> nn.Module:
    """A copy whose convolutions and linear layers have weights in bfloat16, as autocast rounds them; it shares the others."""
    copied = copy.deepcopy(network, {id(weight): weight for weight in (*network.parameters(), *network.buffers())})
    for layer in copied.modules():
        if type(layer) in (nn.Conv2d, nn.Linear):
            for name, weight in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False))
    return copied


class Replayed:
    """A network on a GPU that is called with inputs of few shapes: from the third call with one on as a CUDA graph, a launch in
    place of hundreds. A call that needs gradients goes to the network.

    Args:
        network: whose calls launch the same kernels every time.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._calls = Counter[tuple[torch.Size, ...]]()
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]] = {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        shapes = tuple(tensor.shape for tensor in inputs)
        self._calls[shapes] += 1
        # The first calls set up the libraries, which a graph must not hold.
        if torch.is_grad_enabled() or self._calls[shapes] < 3:
            return self.network(*inputs)
        if shapes not in self._graphs:
            self._graphs[shapes] = self._record(inputs)
        graph, given, result = self._graphs[shapes]
        for own, tensor in zip(given, inputs, strict=True):
            own.copy_(tensor)
        graph.replay()
        return result.clone()

    def _record(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], torch.Tensor]:
        """A graph, what it reads and what it writes."""
        with torch.inference_mode(False):
            given = [torch.empty_like(tensor) for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = self.network(*given)
        return graph, given, result


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
        # Identity stands where SiLU, now a part of the norm, stood: the names of the weights stay.
        self.first = nn.Sequential(_norm(inputs), nn.Identity(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(embedding_width, 2 * outputs))
        self.norm = _norm(outputs)
        self.second = nn.Sequential(nn.Identity(), nn.Dropout(dropout), _zero(nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(x), *self.modulation(embedding).chunk(2, dim=1))
        return self.shortcut(x) + self.second(hidden)


class SelfAttention(nn.Module):
    """Every pixel attends to every other, in heads of up to 64 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.norm = _norm(channels, activation=False)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.output = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        # Pixels before channels, as they lie in memory: the gradients stay channels-last too.
        pixels = self.query_key_value(self.norm(x)).permute(0, 2, 3, 1)
        parts = pixels.reshape(batch, height * width, 3, self.heads, channels // self.heads).unbind(dim=2)
        attended = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return x + self.output(attended.transpose(1, 2).reshape(batch, height, width, channels).permute(0, 3, 1, 2))


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


def _norm(channels: int, activation: bool = True) -> GroupNorm:
    """Up to 32 groups of at least four channels, as many as divide them evenly."""
    groups = next(count for count in range(min(32, channels // 4), 0, -1) if channels % count == 0)
    return GroupNorm(groups, channels, activation)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with zero weights: at initialisation its branch adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
