from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion.data.images import share_at_ends
from diffusion.forward.operators import Geometric, Waves
from diffusion.learning_rate import WarmUpAndDecay
from diffusion.methods import METHODS
from diffusion.network import NetworkConfig, ResidualBlock, SelfAttention
from diffusion.presets import OWN, PRESETS, preset, preset_for, with_blur_of, with_decay
from diffusion.run import TrainingConfig
from diffusion.samplers import Residual
from diffusion.size import Size

# All but that of photographs (tests/test_photographs.py).
FLUID = [name for name, config in PRESETS.items() if isinstance(config.network, NetworkConfig)]


def parameters(seen: int, channels: int, network: NetworkConfig) -> int:
    """Number of parameters by hand: every layer of the U-Net, counted. It sees as many channels, and predicts as many."""
    width, embedding = network.width, 4 * network.width

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return kernel**2 * inputs * outputs + outputs

    def block(inputs: int, outputs: int, attention: bool) -> int:
        norms = 2 * inputs + 2 * outputs
        modulation = embedding * 2 * outputs + 2 * outputs
        shortcut = 0 if inputs == outputs else conv(inputs, outputs, 1)
        heads = 2 * outputs + conv(outputs, 3 * outputs, 1) + conv(outputs, outputs, 1) if attention else 0
        return norms + conv(inputs, outputs) + conv(outputs, outputs) + modulation + shortcut + heads

    count = (width + 1) * embedding + (embedding + 1) * embedding + conv(seen, width)
    skips, current = [width], width
    for depth, multiplier in enumerate(network.multipliers):
        if depth:
            count += conv(current, current)
            skips.append(current)
        for _ in range(network.blocks):
            count += block(current, multiplier * width, depth in network.attention)
            current = multiplier * width
            skips.append(current)
    bottom = len(network.multipliers) - 1
    count += block(current, current, bottom in network.attention) + block(current, current, False)
    for depth, multiplier in reversed(list(enumerate(network.multipliers))):
        for _ in range(network.blocks + 1):
            count += block(current + skips.pop(), multiplier * width, depth in network.attention)
            current = multiplier * width
        count += conv(current, current) if depth else 0
    return count + 2 * current + conv(current, channels)


@pytest.mark.slow
@pytest.mark.parametrize("name", FLUID)
def test_a_preset_builds_a_network_of_the_size_that_was_counted(name: str) -> None:
    config = preset(name)
    network = config.build_network(empty=True)
    # fluid shows the network two estimates of an image.
    seen = config.channels * (2 if config.process_name == "fluid" else 1)
    # What it is told of an augmentation enters the embedding, which has four times the width, without a bias.
    told = 4 * config.network.width * config.training.augment.told
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters(seen, config.channels, config.network) + told
    u = torch.empty((2, seen, *config.size), device="meta")
    assert network(u, torch.empty(2, dtype=torch.int64, device="meta")).shape == (2, *config.shape)
    sides = sum(isinstance(module, SelfAttention) for module in network.modules())
    assert sides == (2 * config.network.blocks + 1) * len(config.network.attention) + bool(config.network.attention)


def test_the_papers_network_has_218_million_parameters() -> None:
    assert parameters(3, 3, preset("ffhq-128").network) == 218_456_195


@pytest.mark.slow
@pytest.mark.parametrize("name", FLUID)
def test_every_kind_of_block_of_a_preset_computes(name: str) -> None:
    """A forward and a backward pass of one block of each pair of widths, and of each attention, on few pixels."""
    config = preset(name)
    embedding = torch.rand((1, 4 * config.network.width))
    done = set()
    for module in config.build_network(empty=True).modules():
        if not isinstance(module, (ResidualBlock, SelfAttention)):
            continue
        kind = tuple(parameter.shape for parameter in module.parameters())
        if kind in done or len(done) > 6:
            continue
        done.add(kind)
        module = module.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(std=0.02)
        channels = next(module.parameters()).shape[0]
        x = torch.rand((1, channels, 2, 2), requires_grad=True)
        out = module(x, embedding) if isinstance(module, ResidualBlock) else module(x)
        out.square().sum().backward()
        assert out.shape[2:] == x.shape[2:] and torch.isfinite(out).all() and x.grad.abs().max() > 0
    assert done


def test_ffhq_128_published_is_the_published_run() -> None:
    config = preset("ffhq-128-published")
    assert (config.data, config.size, config.channels, config.process_name) == ("ffhq", (128, 128), 3, "beyond-blur")
    assert config.network == NetworkConfig(128, (1, 2, 3, 4, 5), 3, (2, 3, 4), 0.3)
    schedule = WarmUpAndDecay(2e-5, 5_000 * 32)
    assert config.training == TrainingConfig(images=1_300_000 * 32, batch=32, schedule=schedule, ema=0.9999, clip=1.0)
    operator = config.method.operator
    assert isinstance(operator, Waves) and (operator.peclet, operator.offset, operator.levels) == (0.06, 9.5, 200)
    assert operator.wave_speed == pytest.approx(1e-3 * 128**2 * 6)  # 1e-3 L an iteration of alpha = 1/6
    assert set(config.forward.noise[1:]) == {0.01} and config.method.sampler == Residual(sampling_noise=1.25)
    sigma = operator.widths(config.size)
    assert sigma[1] == pytest.approx(0.5) and sigma[200] == pytest.approx(128.0)


@pytest.mark.parametrize(
    ("name", "sigma_max", "levels", "batch"),
    [("cifar10", 24, 200, 128), ("ffhq-256", 128, 200, 32), ("lsun-church-128", 64, 400, 32), ("afhq-64", 32, 200, 128)],
)
def test_the_other_published_runs_are_inverse_heat_dissipation(name: str, sigma_max: float, levels: int, batch: int) -> None:
    config = preset(f"{name}-published")
    assert config.method == METHODS["ihd"].changed(sigma_max=sigma_max / config.size.shorter, levels=levels)
    widths = config.method.operator.widths(config.size)
    assert widths[-1] == pytest.approx(sigma_max) and config.training.batch == batch
    assert config.training.images == 1_300_000 * batch


@pytest.mark.parametrize("name", [name for name in FLUID if not name.endswith("-published")])
def test_a_preset_called_after_its_data_runs_fluid(name: str) -> None:
    config = preset(name)
    lower_noise = {"log_mean": -1.6} if name in ("fashion-mnist", "emoji", *OWN) else {}
    assert (config.process_name, config.method) == ("fluid", METHODS["fluid"].changed(**lower_noise))
    if f"{name}-published" in PRESETS:  # on the same pictures with the same network; trained as tests/test_recipe.py says
        published = preset(f"{name}-published")
        network = replace(config.network, dropout=published.network.dropout)
        assert (config.data, config.size, network) == (published.data, published.size, published.network)


@pytest.mark.parametrize(
    ("data", "size", "name", "side"),
    [
        ("ffhq", (96, 64), "ffhq-64", (96, 64)),
        ("digits", None, "digits", 16),
        ("digits", 32, "digits", 32),
        ("ffhq", None, "ffhq-128", 128),
        ("ffhq", 64, "ffhq-64", 64),
        ("ffhq", 512, "ffhq-256", 512),
        ("afhq", None, "afhq-64", 64),
        ("cifar10", None, "cifar10", 32),
        ("lsun-church", None, "lsun-church-128", 128),
        ("mnist", None, "digits", 28),
    ],
)
def test_data_implies_a_preset(data: str, size: int | tuple[int, int] | None, name: str, side: int | tuple[int, int]) -> None:
    chosen, config = preset_for(data, size and Size.of(size))
    assert (chosen, config.data, config.size) == (name, data, Size.of(side))
    assert config.network == preset(name).network and config.method == preset(name).method


@pytest.mark.parametrize(
    ("size", "gpu", "count", "network", "images", "mirrored"),
    [
        (32, False, 300, (32, (1, 2, 2), 1, (2,), 0.1), 300_000, True),
        (None, False, 300, (32, (1, 2, 2, 2), 1, (3,), 0.1), 75_000, True),
        (16, False, 20, (32, (1, 2), 1, (1,), 0.1), 60_000, True),
        (256, False, 4_999, (32, (1, 2, 2, 2, 2, 2), 1, (5,), 0.1), 20_000, True),
        (32, True, 300, (64, (1, 2, 2), 2, (2,), 0.1), 300_000, True),
        (64, True, 5_000, (64, (1, 2, 2, 2), 2, (3,), 0.0), 3_000_000, False),
        (64, True, None, (64, (1, 2, 2, 2), 2, (3,), 0.0), 3_000_000, False),
        (45, False, None, (32, (1,), 1, (), 0.0), 151_703, False),
        ((112, 100), False, None, (32, (1, 2, 2), 1, (2,), 0.0), 27_428, False),
    ],
)
def test_ones_own_pictures_get_a_run_for_device_size_and_number(
    size: int | tuple[int, int] | None, gpu: bool, count: int | None, network: tuple, images: int, mirrored: bool
) -> None:
    name, config = preset_for("some/folder", size and Size.of(size), gpu=gpu, count=count)
    assert (name, config.data, config.size) == ("large" if gpu else "small", "some/folder", Size.of(size or 64))
    assert config.network == NetworkConfig(*network) and config.process_name == "fluid"
    assert (config.training.images, config.training.flip) == (images, mirrored)
    # Letters and digits are grey more often than photographs.
    assert not preset_for("some/folder", Size.of(32), gpu=gpu, channels=1, count=count)[1].training.flip


def test_a_preset_that_is_named_is_taken_for_any_pictures() -> None:
    assert preset_for("some/folder", None, "cifar10") == ("cifar10", replace(preset("cifar10"), data="some/folder"))
    assert preset_for("", None, "afhq-64-published") == ("afhq-64-published", preset("afhq-64-published"))
    name, config = preset_for("ffhq", None, "small", count=300)
    assert (name, config.data, config.size, config.training.flip) == ("small", "ffhq", (128, 128), False)
    assert preset_for("", None, "small")[1].data == "digits"


def test_a_training_by_the_clock_has_a_learning_rate_that_falls() -> None:
    published = preset("afhq-64-published")
    assert with_decay(published).training.schedule == replace(published.training.schedule, decay=0.5)
    assert with_decay(preset("afhq-64")).training.schedule == WarmUpAndDecay(2e-4, published.training.schedule.warmup, 0.5)
    assert with_decay(preset("emoji")) == preset("emoji")


def test_a_method_with_a_geometric_blur_takes_that_of_a_published_run() -> None:
    """The blur belongs to the data. One whose blur is another kind of schedule, or none, keeps its own."""
    published = preset("lsun-church-128-published").method
    taken = with_blur_of(METHODS["beyond-blur-curl"], published)
    assert taken == METHODS["beyond-blur-curl"].changed(blur=Geometric(0.5), levels=400)
    for name in ("fluid", "cold", "ddpm"):
        assert with_blur_of(METHODS[name], published) is METHODS[name]


def test_unknown_presets_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'ffhq128': expected one of digits, .*; did you mean ffhq-128\?"):
        preset("ffhq128")
    with pytest.raises(ValueError, match="needs sides divisible by 16, got size 112x100"):
        preset_for("ffhq", Size(112, 100))


@pytest.mark.parametrize(("share", "told"), [(0.0, False), (0.03, False), (0.3, True), (1.0, True)])
def test_a_network_is_told_of_black_and_white_where_many_pixels_are(share: float, told: bool) -> None:
    """In pictures of one's own, by a measured share; drawings have a third or more, photographs a few hundredths."""
    images = np.full((4, 1, 10, 10), 128, np.uint8)
    images.reshape(-1)[: round(share * images.size)] = 255
    assert share_at_ends(images) == pytest.approx(share)
    _, config = preset_for("my/folder", Size(16, 16), channels=1, count=40, at_ends=share_at_ends(images))
    assert config.method.denoiser.tell_ends is told
    assert config.input_shape[0] == (4 if told else 2)
