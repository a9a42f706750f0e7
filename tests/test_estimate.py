"""Memory and time of a training: before it begins, and as it is measured; a training by the clock."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from diffusion.learning_rate import WarmUpAndDecay
from diffusion.methods import named_method
from diffusion.network import MixedPrecision, NetworkConfig, UNet
from diffusion.presets import PRESETS
from diffusion.training import estimate, loop, trial
from diffusion.training.estimate import (
    Memory,
    TimeLeft,
    Work,
    accumulation,
    compile_options,
    in_words,
    memory,
    operations,
    saved_bytes,
    seconds_per_image,
)
from diffusion.training.log import StepLog
from diffusion.training.loop import ExecutionConfig, Trainer, train
from diffusion.training.observers import Observer
from diffusion.training.ranks import Ranks
from tests.runs import SIZE, stripes, tiny_config

CPU = torch.device("cpu")


def test_what_two_layers_keep_is_what_was_counted_by_hand() -> None:
    """A linear layer keeps its input, SiLU its own: 5 x 3 and 5 x 7 numbers; the second layer the activation, 5 x 7."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 7), nn.SiLU(), nn.Linear(7, 2))
        x = torch.empty((5, 3))
    assert saved_bytes(model, CPU, x) == 4 * 5 * (3 + 7 + 7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_network_keeps_is_what_it_keeps_for_real(precision: str) -> None:
    network = UNet(3, NetworkConfig(32, (1, 2), 2, (1,), 0.3), levels=10)
    model = MixedPrecision(network) if precision == "bf16" else network
    u, level = torch.rand((2, 3, 16, 16)), torch.tensor([1, 5])
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(u, level)
    real = sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)
    # Fresh memory may share an address with what was freed: a few small vectors at most.
    assert saved_bytes(model, CPU, u, level) == pytest.approx(real, rel=2e-3)


def test_memory_of_a_run_adds_up() -> None:
    config = tiny_config()
    weights = 4 * sum(parameter.numel() for parameter in config.build_network().parameters())
    need = memory(config, CPU)
    assert (need.weights, need.gradients, need.adam, need.average) == (weights, weights, 2 * weights, weights)
    assert need.weight_copies == 0
    assert need.total(3) - need.total(2) == need.activations_per_image > 4 * 8 * 8 * 8 * 10
    half = memory(config, CPU, "bf16")
    assert 0.3 * need.activations_per_image < half.activations_per_image < 0.9 * need.activations_per_image
    assert 0 < half.weight_copies < 0.6 * weights


def test_the_papers_schedule_costs_nine_percent_of_its_trajectory_on_average() -> None:
    """1 / (2 ln(sigma_max / sigma_min)) of it: the iterations grow with sigma^2, and sigma is geometric."""
    operator = named_method("beyond-blur-frozen").changed(peclet=0.06, sigma_max=1.0).operator
    cost = replace(operator, offset=100.0).iterations(128, 128)  # too strong a source for a coarser grid
    assert cost[-1] == pytest.approx(128**2 / 0.5, rel=0.01)
    assert cost[1:].mean() / cost[-1] == pytest.approx(1 / (2 * math.log(128 / 0.5)), rel=0.05)
    assert operator.iterations(128, 128)[-1] == pytest.approx(41 + (128**2 - 16) / 16 / 0.5, rel=0.01)


class Judging(nn.Module):
    """Asks for the value of a level, which a tensor without values has not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.norm(u) if level.max() > 3 else u


def test_a_users_network_is_estimated_or_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="the memory of Judging cannot be estimated; it does not run on tensors without values"):
        memory(tiny_config(network=Judging()), CPU)
    need = memory(tiny_config(network=Plain()), CPU)
    # The convolution keeps its input, the norm its own and two numbers for each of two channels of a batch.
    assert (need.weights, need.activations_per_image) == (4 * (2 * 9 + 2 + 2 + 2 + 2 + 1), 4 * (8 * 8) * (1 + 2 + 2))


def test_operations_are_those_of_two_convolutions() -> None:
    """Multiplications and additions: 2 x 9 for each pixel, input and output of a 3 x 3 convolution, 2 of a 1 x 1 one."""
    assert operations(tiny_config(network=Plain())) == SIZE**2 * (2 * 9 * 1 * 2 + 2 * 2 * 1)
    with pytest.raises(ValueError, match="the speed of Judging cannot be estimated"):
        operations(tiny_config(network=Judging()))


class OnGPU:
    """Ranks that have a GPU each."""

    device = torch.device("cuda", 0)

    def __init__(self, count: int = 1) -> None:
        self.count = count


@pytest.mark.parametrize(
    ("name", "precision", "most"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 156e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA H100 NVL", "bf16", None),
    ],
)
def test_the_peak_of_a_known_gpu_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, precision: str, most: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert estimate.peak(OnGPU.device, precision) == most and estimate.peak(CPU, precision) is None


def test_the_log_has_operations_and_their_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three forward passes for an image; two GPUs do twice as much."""
    config = tiny_config(network=Plain())
    assert Work(config, Ranks("cpu"), "fp32").at(10.0) == {"flop_per_second": 30.0 * SIZE**2 * 40}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(estimate, "operations", lambda config: 10**12)
    assert Work(config, OnGPU(2), "bf16").at(100.0) == {"flop_per_second": 3e14, "share_of_peak": round(3e14 / 1978e12, 4)}
    monkeypatch.undo()
    assert Work(tiny_config(network=Judging()), Ranks("cpu"), "fp32").at(10.0) == {}


def test_small_networks_are_compiled_to_a_graph_on_one_gpu() -> None:
    digits, large = PRESETS["digits"], PRESETS["ffhq-64"]
    batch = digits.training.batch
    assert compile_options(digits, OnGPU(), batch)["triton.cudagraphs"]
    others = [(digits, OnGPU(), batch // 2), (digits, OnGPU(2), batch), (digits, Ranks("cpu"), batch), (large, OnGPU(), 128)]
    assert not any(compile_options(*one)["triton.cudagraphs"] for one in others)


def test_a_trial_measures_the_speed_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    monkeypatch.setattr(Trainer, "step", lambda *_: steps.append(1))
    monkeypatch.setattr(StepLog, "line", lambda *_: {})
    clock = itertools.chain([0.0, 9.0, 10.0, 12.0, 20.0, 30.0])
    monkeypatch.setattr(trial, "time", type("Clock", (), {"perf_counter": lambda: next(clock)}))
    # A step takes two seconds: five in ten, of eight images each.
    assert trial.measured_speed(tiny_config(), Ranks("cpu"), ExecutionConfig()) == 5 * 8 / 10.0
    assert len(steps) == 2 + 1 + 5


def test_a_network_of_twice_the_work_takes_twice_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1e6 < estimate._operations_per_second(CPU) < 1e14
    monkeypatch.setattr(estimate, "_operations_per_second", lambda device: 1e9)
    assert seconds_per_image(tiny_config(network=Plain()), CPU) == pytest.approx(3e-9 * SIZE**2 * 40)


def test_a_batch_that_does_not_fit_is_processed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few as are enough for a batch of 8; one image at a time where nothing is; whole where it cannot be estimated."""
    free = iter((230, 220, 160, 100, 100, 10**15))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": next(free)}))
    monkeypatch.setattr(estimate, "memory", lambda *_: Memory(100, 0, 0, 0, 0, activations_per_image=10))
    config, ranks = tiny_config(), Ranks("cpu")
    assert [accumulation(config, ranks, "fp32") for _ in range(4)] == [1, 2, 4, 8]
    monkeypatch.setattr(estimate, "memory", memory)
    assert accumulation(tiny_config(network=Judging()), ranks, "fp32") == 1
    # Nor is the memory estimated where there is plenty.
    monkeypatch.setattr(estimate, "memory", lambda *_: pytest.fail("it is estimated"))
    assert accumulation(config, ranks, "fp32") == 1


def test_parts_are_chosen_and_said_unless_they_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "accumulation", lambda *_: 4)
    assert train(tiny_config(images=8), stripes(), tmp_path / "a", CPU)
    assert "a batch is processed in 4 parts: 8 images at a time would not fit into the memory" in capsys.readouterr().out
    assert train(tiny_config(images=8), stripes(), tmp_path / "b", CPU, ExecutionConfig(accumulate=2))
    assert "parts" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "less than a second"),
        (12.4, "12 s"),
        (100, "2 min"),
        (7_000, "117 min"),
        (12_000, "3 h 20 min"),
        (4e5, "5 days"),
        (1.3e9, "41 years"),
    ],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how long passes from one look at the clock to the next [s]."""
    step, now = [1.0], [0.0]

    def tell() -> float:
        now[0] += step[0]
        return now[0]

    for module in (estimate, loop):
        monkeypatch.setattr(module, "time", type("Clock", (), {"perf_counter": tell, "monotonic": tell}))
    return lambda seconds: step.__setitem__(0, seconds)


def lines_of(observer: TimeLeft, images: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What it says of a run of so many images, in steps of 8."""
    config = tiny_config(images=images)
    observer.started(Path(), config, 0)
    for seen in range(8, 8 * 40, 8):
        observer.stepped(seen)
    return capsys.readouterr().out.splitlines()


def test_the_time_is_said_before_and_once_it_is_measured(
    clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A step a second: 8 images/s, from the second step on."""
    monkeypatch.setattr(estimate, "seconds_per_image", lambda *_: 0.5)
    assert lines_of(TimeLeft(CPU), 80_000, capsys) == [
        "very roughly 11 h 7 min for 80,000 images here",
        "about 2 h 46 min left at 8 images/s",
    ]
    slow = lines_of(TimeLeft(CPU, ranks=2, shorter="--hours 2 ends in time"), 8_000_000, capsys)
    assert slow == [
        "very roughly 23 days for 8,000,000 images here; --hours 2 ends in time",
        "about 12 days left at 8 images/s; --hours 2 ends in time",
    ]
    assert lines_of(TimeLeft(CPU, hours=2.0), 80_000, capsys) == ["8 images/s; an hour is enough for 29,000 images"]
    clock(1e-3)
    assert lines_of(TimeLeft(CPU), 100, capsys) == []


class Steps(Observer):
    """Keeps the lines of the log, and stops after some of them."""

    def __init__(self, last: int = 10**9) -> None:
        self.lines: list[dict[str, float]] = []
        self.last, self.seen = last, 0

    def stepped(self, images: int) -> None:
        self.seen += 1

    def logged(self, line: dict[str, float]) -> None:
        self.lines.append(line)

    def should_stop(self) -> bool:
        return self.seen >= self.last


def test_a_training_by_the_clock_ends_in_time_with_the_rate_decayed(
    tmp_path: Path, clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty seconds, a second a step; stopped after eight steps, it goes on with the twelve that are left."""
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    config = tiny_config(images=10**6, schedule=WarmUpAndDecay(1e-3, 0, decay=0.5))
    hours, first, second = ExecutionConfig(hours=20 / 3600), Steps(last=8), Steps()
    assert not train(config, stripes(), tmp_path, CPU, hours, observers=[first])
    assert train(config, stripes(), tmp_path, CPU, hours, observers=[second])
    images = [line["images"] for line in (*first.lines, *second.lines)]
    assert images == list(range(8, images[-1] + 1, 8)) and 8 * 8 < images[-1] <= 20 * 8
    rates = [line["learning_rate"] for line in (*first.lines, *second.lines)]
    assert rates[0] == 1e-3 and rates[-1] < 2.5e-4 and all(a >= b for a, b in itertools.pairwise(rates))
    assert json.loads((tmp_path / "config.json").read_text())["training"]["images"] == images[-1]
    # There is no time left: nothing is changed.
    before = (tmp_path / "model.safetensors").read_bytes()
    assert train(config, stripes(), tmp_path, CPU, hours) and (tmp_path / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match=r"hours must be from 0\.0001 to 100000, got 0"):
        ExecutionConfig(hours=0).validate()


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.layers(u)
