"""What a step moves through a GPU's memory and to the GPU, and what it launches, counted without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import warp as wp
from torch import nn
from torch._inductor import ir
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion import network as networks
from diffusion.data.dataset import ImageDataset
from diffusion.data.loader import batches
from diffusion.forward.statistics import Statistics
from diffusion.network import MixedPrecision, NetworkConfig, Replayed, UNet, for_sampling
from diffusion.presets import PRESETS
from diffusion.rng import seeds
from diffusion.run import RunConfig
from diffusion.training.estimate import compile_options
from diffusion.training.ranks import Ranks
from lbm_warp import checks, interop

META = torch.device("meta")


class Counting(TorchDispatchMode):
    """Bytes that operations read and write, and those that go from the host to the device meta; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.core = self.others = self.mixed = 0.0
        self.sent: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        read = {key: value for key, value in (kwargs or {}).items() if key != "out"}
        given = [value for value in tree_leaves((args, read)) if isinstance(value, torch.Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        if any(value.is_meta for value in made):
            self.sent += [value.nbytes for value in given if not value.is_meta and value.ndim]
        name = function._schema.name
        if function.is_view or name.startswith(("prim::", "aten::empty", "aten::detach", "aten::_unsafe_view")):
            return result
        size = sum(value.nbytes for value in (*given, *made))
        if any(part in name for part in ("conv", "addmm", "::mm", "::bmm", "attention")):
            self.core += size
        else:
            self.others += size
        formats = {layout(value) for value in (*given, *made)} - {""}
        self.mixed += size if len(formats) > 1 else 0
        return result


def layout(features: torch.Tensor) -> str:
    """Layout of a tensor [N, C, H, W]; none where it is both."""
    if features.ndim != 4:
        return ""
    found = [features.is_contiguous(), features.is_contiguous(memory_format=torch.channels_last)]
    return {(True, False): "contiguous", (False, True): "channels last"}.get(tuple(found), "")


@pytest.mark.slow
def test_a_step_of_ffhq_128_stays_in_bf16_and_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own group norm on CUDA it moves 268 GB outside convolutions, 114 in operations that mix two layouts."""
    monkeypatch.setattr(networks, "_keeps_layout", lambda x: False)  # as on a GPU
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, x: torch.native_dropout(x, self.p, True)[0])
    config = PRESETS["ffhq-128"]
    network = MixedPrecision(config.build_network(empty=True)).train()
    with FakeTensorMode():
        weights = {
            name: torch.empty_strided(weight.shape, weight.stride(), requires_grad=True)
            for name, weight in network.named_parameters()
        }
        inputs = torch.empty(32, *config.input_shape), torch.zeros(32, dtype=torch.int64)
        with Counting() as count:
            functional_call(network, weights, inputs).square().sum().backward()
    assert count.others < 126e9 and count.mixed < 0.1e9, (count.core, count.others, count.mixed)


@pytest.mark.slow
def test_a_compiled_step_moves_half_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Inductor's own count of what its kernels read and write, fused as for a GPU; the first resolution of ffhq-128."""
    config = PRESETS["ffhq-128"]
    config = replace(config, network=replace(config.network, multipliers=(1,), blocks=1, attention=()))
    network, others = config.build_network(empty=True).train(), []

    def count(graph: GraphLowering) -> mock.Mock:
        graph.init_wrapper_code()
        graph._update_scheduler()
        others.append(sum(node.get_read_write_buffers_sizes() for node in graph.scheduler.nodes if not node.is_extern()))
        return mock.Mock(call=mock.Mock(side_effect=InterruptedError), runner=None)

    monkeypatch.setattr(networks, "_keeps_layout", lambda x: False)
    monkeypatch.setattr(GraphLowering, "compile_to_module", count)
    monkeypatch.setattr(ir, "is_cpu", lambda x: False)
    torch.compiler.reset()
    network.compile(options=compile_options(config, Ranks("cpu"), 32) | {"cpu_backend": "triton", "fx_graph_cache": False})
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
        pytest.raises(InterruptedError),
    ):
        inputs = torch.empty(32, *config.input_shape), torch.zeros(32, dtype=torch.int64)
        MixedPrecision(network.to_empty(device="cpu"))(*inputs)
    forward, backward = others
    assert forward + backward < 22e9, others  # 43 uncompiled, 31 with the default options


def structures() -> Iterator[tuple[str, RunConfig]]:
    """The presets' networks, each kind of layers once: a U-Net with two resolutions of one block, with attention or without."""
    found = {}
    for name, config in reversed(PRESETS.items()):
        network = config.network
        if isinstance(network, NetworkConfig):
            attention, dropout = (1,) if network.attention else (), 0.1 if network.dropout else 0.0
            network = NetworkConfig(8, (1, 2), 1, attention, dropout)
        found[network, bool(config.classes)] = name, replace(config, network=network)
    yield from found.values()


@pytest.mark.slow
@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in structures()])
def test_a_network_is_one_graph(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fake tensors: on the device meta convolutions give another layout than on a GPU."""
    monkeypatch.setattr(networks, "_keeps_layout", lambda x: False)
    empty = config.build_network(empty=True).train()
    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16):
        inputs = torch.empty(2, *config.input_shape), torch.zeros(2, dtype=torch.int64)
        found = torch._dynamo.explain(empty.to_empty(device="cpu"))(*inputs)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_a_training_step_sends_numbers_alone() -> None:
    """No table goes to the device twice: an image's level, seeds, scales and iterations, 4 or 8 bytes each."""
    config = PRESETS["ffhq-128"]
    (channels, height, width), knots, batch = config.shape, 33, 32
    few, many = torch.ones((channels, height, width)), torch.ones((knots, channels, height, width))
    forward, denoiser = config.method.forward.measured(Statistics(few, few, many, many, many)), config.method.denoiser
    stand_ins = {name: mock.Mock() for name in ("view", "load", "warp_device", "warp_stream")}
    with (
        mock.patch.object(checks, "DEVICES", (*checks.DEVICES, "meta")),
        mock.patch.multiple(interop, **stand_ins),
        mock.patch.object(wp, "launch"),
    ):
        for first in (0, batch):  # the first step sends the tables
            sample = seeds(0, "image", np.arange(first, first + batch))
            level = config.method.density.draw(forward, sample)
            with Counting() as count:
                inputs, target = denoiser.example(forward, torch.empty((batch, *config.shape), device=META), level, sample)
                denoiser.loss(forward, torch.empty_like(target), target, level, sample)
    assert inputs.is_meta and 0 < max(count.sent) <= 1024 and sum(count.sent) <= 8192


def test_pictures_go_to_the_device_as_they_are_stored() -> None:
    pixels = np.arange(5 * 3 * 4 * 4, dtype=np.uint8).reshape(5, 3, 4, 4)
    with batches(ImageDataset("some", "", pixels), 0, 0, 5, 5, device=META) as queue, Counting() as count:
        (images,) = queue
    assert (images.dtype, images.device, images.shape) == (torch.float32, META, (5, 3, 4, 4))
    assert [size for size in count.sent if size > 8] == [pixels.nbytes]


class Recording(TorchDispatchMode):
    """A stand-in for a CUDA graph: what is done under it can be done again, in the same memory."""

    def __init__(self, capture_error_mode: str = "") -> None:
        super().__init__()
        self.done: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for function, args, kwargs, result in self.done:
            if not function.is_view:
                fresh = tree_leaves(function(*args, **kwargs))
                for old, new in zip(tree_leaves(result), fresh, strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


def test_a_graph_gives_what_the_network_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **_: graph)
    calls = Counter[int]()
    network = UNet(1, NetworkConfig(8, (1, 2), 1, (1,)), levels=10).eval()
    network.register_forward_hook(lambda module, inputs, output: calls.update([len(output)]))
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    replayed = Replayed(network)
    inputs = [(torch.rand(count, 1, 8, 8), torch.full((count,), 1 + place)) for place, count in enumerate((2, 2, 2, 3, 2, 2, 3))]
    with torch.inference_mode():
        found = [replayed(*given) for given in inputs]
        assert calls == {2: 3, 3: 2}  # the third call of a size is recorded
        expected = [network(*given) for given in inputs]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_weights_that_are_rounded_once_give_what_autocast_gives() -> None:
    network = UNet(1, NetworkConfig(8, (1, 2), 1, (1,)), levels=10, classes=3).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    rounded = for_sampling(network, "bf16", pixels=64)
    inputs = torch.rand(2, 1, 8, 8), torch.tensor([1, 7]), torch.tensor([0, 3])
    with torch.inference_mode():
        assert torch.equal(rounded(*inputs), MixedPrecision(network)(*inputs))
        assert for_sampling(network, "fp32", pixels=64) is network
    # The network itself stays as it is, and shares what is not rounded.
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert rounded.network.label.weight is network.label.weight
