from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from diffusion.network import (
    GivenNetwork,
    MixedPrecision,
    NetworkConfig,
    NetworkShape,
    NetworkSpec,
    ScaledGroupNorm,
    SelfAttention,
    UNet,
)
from diffusion.size import Size
from lbm_warp.checks import InputError

SMALL = NetworkConfig(width=8, multipliers=(1, 2), blocks=1, attention=(1,))


def awake(network: nn.Module) -> nn.Module:
    """The network with every weight random: as built, its last layers are zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("config", [SMALL, NetworkConfig(), NetworkConfig(8, (1, 1, 2), 2, (0, 2), 0.1)], ids=str)
def test_shape_is_kept_and_the_first_correction_is_zero(config: NetworkConfig, channels: int) -> None:
    network = UNet(channels, config, levels=10)
    u = torch.rand((3, channels, 16, 24))
    correction = network(u, torch.tensor([1, 5, 10]))
    assert correction.shape == u.shape and torch.equal(correction, torch.zeros_like(u))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [False, True])
def test_the_norm_of_a_gpu_is_that_of_torch_in_dtype_and_layout_of_the_features(dtype: torch.dtype, activation: bool) -> None:
    """Against the definition in float64, value and gradients, where the mean is several standard deviations."""
    generator = torch.Generator().manual_seed(0)
    x = (4.0 + torch.randn((3, 16, 5, 7), generator=generator)).contiguous(memory_format=torch.channels_last)
    weight, bias, gradient = (torch.randn(shape, generator=generator) for shape in ((3, 16), (3, 16), x.shape))
    found, expected = [], []
    for own, kind in ((found, dtype), (expected, torch.float64)):
        given = [tensor.to(kind, copy=True).requires_grad_() for tensor in (x, weight, bias)]
        if own is found:
            y = ScaledGroupNorm.apply(*given, 4, 1e-5, activation)
            assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        else:
            y = given[1][:, :, None, None] * functional.group_norm(given[0], 4) + given[2][:, :, None, None]
            y = functional.silu(y) if activation else y
        y.backward(gradient.to(kind))
        own += [y, *(tensor.grad for tensor in given)]
    assert found[1].is_contiguous(memory_format=torch.channels_last)
    error = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).abs().max() < error * other.abs().max()


def test_gradients_reach_every_parameter() -> None:
    network = awake(UNet(3, SMALL, levels=10))
    network(torch.rand((2, 3, 16, 16)), torch.tensor([2, 9])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_every_level_is_told_apart() -> None:
    network = awake(UNet(1, SMALL, levels=200))
    u = torch.rand((1, 1, 8, 8)).repeat(200, 1, 1, 1)
    out = network(u, torch.arange(1, 201)).flatten(1)
    assert torch.cdist(out, out).fill_diagonal_(1.0).min() > 1e-4


def test_an_image_does_not_see_its_batch() -> None:
    network = awake(UNet(1, SMALL, levels=10)).eval()
    u = torch.rand((4, 1, 16, 16))
    level = torch.tensor([1, 4, 7, 10])
    torch.testing.assert_close(network(u, level)[2:3], network(u[2:3], level[2:3]), rtol=1e-4, atol=1e-4)


def test_attention_is_softmax_attention() -> None:
    """Against the definition, softmax(q k^T / sqrt(d)) v, head by head."""
    layer = awake(SelfAttention(128))
    x = torch.rand((2, 128, 3, 5))
    query, key, value = layer.query_key_value(layer.norm(x)).flatten(2).chunk(3, dim=1)
    heads = []
    for head in range(2):
        q, k, v = (part[:, 64 * head : 64 * head + 64].transpose(1, 2) for part in (query, key, value))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 8.0, dim=-1) @ v)
    expected = x + layer.output(torch.cat(heads, dim=2).transpose(1, 2).reshape(2, 128, 3, 5))
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [40, 72, 136])
def test_any_multiple_of_eight_is_a_width(width: int) -> None:
    network = UNet(3, NetworkConfig(width, (1, 2), 1, (0, 1)), levels=10)
    assert network(torch.rand((1, 3, 4, 4)), torch.tensor([3])).shape == (1, 3, 4, 4)


def test_mixed_precision_rounds_inside_and_nowhere_else() -> None:
    network = awake(UNet(1, SMALL, levels=10))
    mixed = MixedPrecision(network)
    u, level = torch.rand((2, 1, 16, 16)), torch.tensor([1, 10])
    exact, rounded = network(u, level), mixed(u, level)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05 * exact.abs().max().item())
    rounded.sum().backward()
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 12}, "multiple of 8, got 12"),
        ({"multipliers": ()}, "multipliers must name at least one resolution"),
        ({"blocks": 0}, "blocks must be from 1 to 64, got 0"),
        ({"dropout": 1.0}, "dropout must be from 0 to 0.99"),
        ({"attention": (3,)}, "attention .counted in halvings of the resolution, 2 by the multipliers. must be from 0 to 2, got 3"),
    ],
)
def test_bad_sizes_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**values).validate()


def test_image_size_must_be_divisible() -> None:
    with pytest.raises(ValueError, match="needs sides divisible by 4, got size 16x18"):
        NetworkConfig(multipliers=(1, 2, 2)).check_size(Size(16, 18))


# What builds a network


SHAPE = NetworkShape(inputs=2, outputs=1, levels=10, classes=0, size=Size(8, 8))


def test_a_network_without_weights_takes_no_memory_and_draws_nothing() -> None:
    before = torch.random.get_rng_state()
    empty = NetworkConfig().build_empty(SHAPE)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    made = NetworkSpec.build_empty(NetworkConfig(), SHAPE)  # as for one that knows nothing of empty weights
    assert torch.equal(torch.random.get_rng_state(), before)
    assert {name: tensor.shape for name, tensor in made.state_dict().items()} == {n: t.shape for n, t in empty.state_dict().items()}


def test_a_given_module_is_copied_and_known_by_the_name_of_its_class() -> None:
    module = nn.Conv2d(2, 1, 3)
    given = GivenNetwork.of(module)
    built = given.build(SHAPE)
    assert given == GivenNetwork("Conv2d") and built is not module and torch.equal(built.weight, module.weight)
    assert given.filled(nn.Conv2d(1, 1, 1)).build(SHAPE).in_channels == 1
    for make, message in (
        (lambda: GivenNetwork("Conv2d").build(SHAPE), r"trained with a module of one's own, Conv2d: pass one, network=Conv2d\("),
        (lambda: given.filled(nn.Linear(1, 1)), "the run was trained with a module Conv2d, got Linear"),
        (lambda: NetworkConfig().filled(module), r"builds its network itself \(NetworkConfig\): leave out network"),
    ):
        with pytest.raises(InputError, match=message):
            make()


def test_a_specification_says_what_it_lacks_and_which_sizes_it_takes() -> None:
    class Halving(NetworkSpec):
        side_factor = 2

    Halving().check_size(Size(8, 6))
    with pytest.raises(InputError, match="Halving needs sides divisible by 2, got size 8x7"):
        Halving().check_size(Size(8, 7))
    with pytest.raises(NotImplementedError, match=r"Halving needs a method build\(shape\)"):
        Halving().build(SHAPE)
