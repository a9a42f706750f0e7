"""Measure how fast whole presets train and sample, and how much memory they take, on random pictures."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.utils.benchmark import timer

from cli import console
from cli.benchmark import measure
from cli.benchmark.measure import Column, shown
from diffusion.config import RunConfig
from diffusion.files import write_json
from diffusion.presets import preset
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.sampling.samplers import activation_bytes, default_batch, visited_levels
from diffusion.training.estimate import memory
from diffusion.training.log import MetricsLog
from diffusion.training.loop import ExecutionConfig, Trainer
from diffusion.training.ranks import Ranks
from diffusion.training.state import TrainingState
from lbm_warp.checks import InputError, check_integer

# Length of a training that no benchmark reaches [images].
ENDLESS = 2**62
# Compiling wins from this ratio of speeds on: two measurements always differ a little.
WIN = 1.02
COLUMNS = (
    Column("preset", "preset", 15),
    Column("precision", "precision"),
    Column("compiled", "compiled"),
    Column("batch", "batch"),
    Column("levels", "levels"),
    Column("images_per_second", "images/s"),
    Column("corruption_ms", "corruption ms"),
    Column("network_ms", "network ms"),
    Column("level_ms", "ms a level"),
    Column("corruption_share", "corruption", form="{:.1%}".format),
    Column("memory_bytes", "MiB", form=lambda value: shown(value / 2**20)),
    Column("estimated_bytes", "estimated", form=lambda value: shown(value / 2**20)),
)


# A turn of the work. It returns images/s and milliseconds as floats, and facts about the work as integers.
Turn = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Throughput(ABC):
    """Measures presets in every precision, compiled or not."""

    presets: tuple[str, ...] = ()
    """Names of presets; by default digits, and on CUDA also ffhq-64 and ffhq-128."""
    batch: int | None = None
    """Images at a time; by default the preset's for training, and as many as memory allows for sampling."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ()
    """Arithmetic of the network; by default fp32, and on CUDA also bf16."""
    compile: bool = False
    """Also measure the compiled network, and say whether compiling wins."""
    repeats: int = 3
    """Turns of each, after a first one that is not counted; medians are reported."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Write the numbers to this JSON file."""

    @abstractmethod
    def default_batch(self, config: RunConfig, device: torch.device) -> int:
        """Images at a time without --batch; raises InputError if an option does not suit the preset."""

    @abstractmethod
    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, precision: str, compiled: bool) -> Turn:
        """Prepare a turn with the weights of ``state``, which all turns share, and ``config.training.batch`` images at a time."""

    def compare(self, work: str) -> None:
        """Measure all presets; print a table, write the numbers."""
        device = measure.pick_device(self.device)
        check_integer("--repeats", self.repeats, 1)
        if self.batch is not None:
            check_integer("--batch", self.batch, 1)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("the benchmark measures a single process; leave out torchrun or accelerate launch")
        if self.compile:
            console.check_compiler()
        usual = ("digits", "ffhq-64", "ffhq-128") if device.type == "cuda" else ("digits",)
        configs = {}
        for name in self.presets or usual:
            config = preset(name)
            batch = self.default_batch(config, device)
            configs[name] = replace(config, training=replace(config.training, batch=self.batch or batch, images=ENDLESS))
        described = f"{measure.describe(device)}, torch {torch.__version__}"
        print(f"{described}; {work}, medians of {self.repeats}")
        rows: list[dict[str, object]] = []
        for name, config in configs.items():
            found = self.measure(name, config, device)
            measure.print_table(COLUMNS, found, heads=not rows)
            print_verdicts(found)
            rows += found
        if self.out is not None:
            write_json(self.out, {"device": described, "work": work, "repeats": self.repeats, "rows": rows})

    def measure(self, name: str, config: RunConfig, device: torch.device) -> list[dict[str, object]]:
        """A row of numbers for every precision, compiled or not, that fits into memory."""
        torch.compiler.reset()  # torch keeps only a few compiled versions of a function
        state = TrainingState.initial(config, device)
        turns: dict[tuple[str, bool], tuple[Turn, float]] = {}
        precisions = self.precision or (("fp32", "bf16") if device.type == "cuda" else ("fp32",))
        for precision, compiled in product(dict.fromkeys(precisions), (False, True)[: 1 + self.compile]):
            try:
                turn = self.turn(config, state, device, precision, compiled)
                turns[precision, compiled] = turn, measure.seconds(turn)
            except (InputError, torch.OutOfMemoryError) as error:
                if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                    raise
                print(f"{name}, {precision}: not enough memory for {config.training.batch} images at a time, see --batch")
        results = measure.interleaved([turn for turn, _ in turns.values()], self.repeats)
        rows = []
        for ((precision, compiled), (turn, first)), found in zip(turns.items(), results, strict=True):
            numbers = {
                key: statistics.median(result[key] for result in found) if isinstance(value, float) else value
                for key, value in found[0].items()
            }
            if device.type == "cuda":
                peak = measure.peak_memory(turn, device)
            else:
                peak = measure.in_own_process(peak_of_second_turn, self, config, device, precision, compiled)
            kept = numbers.pop("kept_bytes")
            rows.append(
                {
                    "preset": name,
                    "precision": precision,
                    "compiled": compiled,
                    **numbers,
                    "corruption_share": numbers["corruption_ms"] / (numbers["corruption_ms"] + numbers["network_ms"]),
                    "memory_bytes": None if peak is None else peak + kept,
                    "first_turn_seconds": first,
                }
            )
        return rows


@dataclass(frozen=True)
class Train(Throughput):
    """Training: images/s, share of the corruption, memory."""

    steps: int = 5
    """Training steps in a turn."""

    def run(self) -> None:
        """Train every preset for a few steps, from pictures on the host to new weights and averages."""
        check_integer("--steps", self.steps, 1)
        self.compare(f"{self.steps} steps a turn")

    def default_batch(self, config: RunConfig, device: torch.device) -> int:
        return config.training.batch

    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, precision: str, compiled: bool) -> Turn:
        network, ranks, batch = same_weights(state.network), Ranks(device), config.training.batch
        own = TrainingState(network, state.average, state.optimiser)
        trainer = Trainer(config, own, ranks, ExecutionConfig(precision=precision, compile=compiled))
        pictures = random_pictures(config, batch)
        estimate = memory(config, device, precision).total(batch)
        with tempfile.TemporaryDirectory() as folder:
            log = MetricsLog(Path(folder) / "metrics.jsonl", 0, ranks)

        def train() -> dict[str, float]:
            log.restart()
            for _ in range(self.steps):
                trainer.step(pictures, log)
            line = log.line(0.0)
            kept = [*state.average.network.parameters()]
            for parameter in network.parameters():
                kept += [parameter, parameter.grad, *state.optimiser.state[parameter].values()]
            numbers = {"batch": batch, "kept_bytes": total_bytes(kept), "estimated_bytes": estimate}
            return numbers | {name: line[name] for name in ("images_per_second", "corruption_ms", "network_ms")}

        return train


@dataclass(frozen=True)
class Sample(Throughput):
    """Sampling: images/s, share of the corruption, memory."""

    levels: int | None = None
    """Number of sampling steps, at most the preset's number of levels K, the default."""

    def run(self) -> None:
        """Sample a batch from every preset, from seeds to images on the host. Speed does not depend on the weights."""
        self.compare("a batch a turn")

    def default_batch(self, config: RunConfig, device: torch.device) -> int:
        visited_levels(config.process.levels, steps=self.levels)
        return default_batch(config.network, config.size, device)

    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, precision: str, compiled: bool) -> Turn:
        network = same_weights(state.average.network)
        if compiled:
            network.compile()
        prior = Prior(random_pictures(config, 1))
        pipeline = Pipeline(config, network, prior, precision=precision, batch=config.training.batch)
        levels, weights = self.levels or config.process.levels, total_bytes(network.parameters())

        def sample() -> dict[str, float]:
            batch, times = pipeline.batch, [timer()]  # the pipeline halves a batch that does not fit into memory

            def on_level(level: int, u: torch.Tensor) -> None:
                if level == config.process.levels:
                    times.append(timer())

            pipeline.sample(batch, levels=levels, callback=on_level)
            begin, start, end = times[0], times[1], timer()
            return {
                "batch": batch,
                "levels": levels,
                "images_per_second": batch / (end - begin),
                "corruption_ms": 1e3 * (start - begin),
                "network_ms": 1e3 * (end - start),
                "level_ms": 1e3 * (end - start) / levels,
                "kept_bytes": weights,
                "estimated_bytes": weights + batch * activation_bytes(config.network, config.size),
            }

        return sample


def peak_of_second_turn(options: Throughput, config: RunConfig, device: torch.device, precision: str, compiled: bool) -> int | None:
    """Largest memory that a turn takes beyond what stays between turns [bytes]."""
    turn = options.turn(config, TrainingState.initial(config, device), device, precision, compiled)
    turn()
    return measure.peak_memory(turn, device)


def print_verdicts(rows: Sequence[dict[str, object]]) -> None:
    """Say whether compiling wins, for every precision that was measured both ways."""
    for plain, fast in pairwise(rows):
        if fast["compiled"] and fast["precision"] == plain["precision"]:
            ratio = fast["images_per_second"] / plain["images_per_second"]
            verdict = f"compiling {'wins' if ratio > WIN else 'does not win'}, {ratio:.2f} times the speed"
            print(f"{fast['preset']}, {fast['precision']}: {verdict}; the first turn took {fast['first_turn_seconds']:.0f} s")


def same_weights(network: nn.Module) -> nn.Module:
    """A copy of the network, not compiled, that shares its parameters."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Memory of tensors."""
    return sum(tensor.nbytes for tensor in tensors)


def random_pictures(config: RunConfig, count: int) -> torch.Tensor:
    """Noise in the shape of a run's pictures, float32 [count, C, H, W] in [0, 1]."""
    return torch.rand((count, *config.shape), generator=torch.Generator().manual_seed(0))
