"""Measure how fast whole presets train and sample, and how much memory they take, on random pictures."""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from cli import console
from cli.measure import describe, in_own_process, in_turns, peak_memory, seconds, wait
from diffusion.config import RunConfig
from diffusion.files import write_json
from diffusion.presets import preset
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.sampling.samplers import activation_bytes, default_batch, walk
from diffusion.training.estimate import memory
from diffusion.training.log import MetricsLog
from diffusion.training.loop import Trainer, TrainingState
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError, check_integer

# Images of a training whose end no benchmark comes to.
ENDLESS = 2**62
# What compiling has to gain to win: no two measurements are quite alike.
WIN = 1.02


@dataclass(frozen=True)
class Throughput:
    """Options of both benchmarks."""

    presets: tuple[str, ...] = ()
    """Which presets; digits, and on CUDA ffhq-64 and ffhq-128 as well, if left out."""
    batch: int | None = None
    """Images at a time; for training the preset's, for sampling what memory allows, if left out."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ()
    """Arithmetic of the network; fp32, and on CUDA bf16 as well, if left out."""
    compile: bool = False
    """Measure the compiled network beside the plain one, and say whether compiling wins."""
    repeats: int = 3
    """Turns of each, after a first one that does not count; medians are reported."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Write the numbers to this JSON file."""


@dataclass(frozen=True)
class TrainBenchmark(Throughput):
    """Options of ``python -m cli.benchmark train``."""

    steps: int = 5
    """Steps a turn."""


@dataclass(frozen=True)
class SampleBenchmark(Throughput):
    """Options of ``python -m cli.benchmark sample``."""

    levels: int | None = None
    """Steps of the walk, at most K, the preset's number of levels, which is the default."""


@dataclass(frozen=True)
class Case:
    """A way to run a preset."""

    preset: str
    config: RunConfig
    batch: int
    precision: str
    compiled: bool
    device: torch.device
    options: Throughput


class Turn(ABC):
    """The work that is measured.

    Args:
        case: what to run.
        other: another turn of the preset, to share the weights of: together they take the memory of one.
    """

    @abstractmethod
    def __init__(self, case: Case, other: Turn | None = None) -> None:
        self.case = case

    @staticmethod
    @abstractmethod
    def batch(config: RunConfig, device: torch.device) -> int:
        """Images at a time, if the options do not say."""

    @abstractmethod
    def __call__(self) -> dict[str, float]:
        """Do the work; images a second, and where the milliseconds of a batch went."""

    @abstractmethod
    def size(self) -> dict[str, int]:
        """How much work it is: images at a time, and for samples the levels they go through."""

    @abstractmethod
    def kept(self) -> Iterator[torch.Tensor]:
        """The tensors that stay from turn to turn."""

    @abstractmethod
    def estimate(self) -> int:
        """Bytes that it should take by the project's own estimate."""

    def memory(self) -> int | None:
        """Bytes that it takes at most; None where that cannot be told."""
        work = peak_memory(self, self.case.device)
        return None if work is None else work + sum(tensor.nbytes for tensor in self.kept())


class TrainingTurn(Turn):
    """Steps of the trainer, from pictures on the host to new weights and averages."""

    def __init__(self, case: Case, other: TrainingTurn | None = None) -> None:
        super().__init__(case, other)
        config = replace(case.config, training=replace(case.config.training, batch=case.batch, images=ENDLESS))
        if other is None:
            self.state = TrainingState.initial(config, case.device)
        else:
            network = on_the_same_weights(other.state.network)
            self.state = TrainingState(network, other.state.average, other.state.optimiser)
        ranks = Ranks(case.device)
        self.trainer = Trainer(config, self.state, ranks, precision=case.precision, compile=case.compiled)
        self.pictures = random_pictures(config, case.batch)
        with tempfile.TemporaryDirectory() as folder:
            self.log = MetricsLog(Path(folder) / "metrics.jsonl", 0, ranks)

    @staticmethod
    def batch(config: RunConfig, device: torch.device) -> int:
        return config.training.batch

    def __call__(self) -> dict[str, float]:
        self.log.restart()
        for _ in range(self.case.options.steps):
            self.trainer.step(self.pictures, self.log)
        line = self.log.line(0.0)
        return {name: line[name] for name in ("images_per_second", "corruption_ms", "network_ms")}

    def size(self) -> dict[str, int]:
        return {"batch": self.case.batch}

    def kept(self) -> Iterator[torch.Tensor]:
        for parameter in self.state.network.parameters():
            yield from (parameter, parameter.grad, *self.state.optimiser.state[parameter].values())
        yield from self.state.average.network.parameters()

    def estimate(self) -> int:
        return memory(self.case.config, self.case.device, self.case.precision).total(self.case.batch)


class SamplingTurn(Turn):
    """A batch of the pipeline, from seeds to images on the host. The weights are random, the speed does not depend on them."""

    def __init__(self, case: Case, other: SamplingTurn | None = None) -> None:
        super().__init__(case, other)
        if other is None:
            network = case.config.build_network().requires_grad_(False).to(case.device)
        else:
            network = on_the_same_weights(other.pipeline.network)
        if case.compiled:
            network.compile()
        prior = Prior(random_pictures(case.config, 1))
        self.pipeline = Pipeline(case.config, network, prior, precision=case.precision, batch=case.batch)

    @staticmethod
    def batch(config: RunConfig, device: torch.device) -> int:
        return default_batch(config.network, config.size, device)

    def __call__(self) -> dict[str, float]:
        images, levels = self.size().values()
        start = None

        def on_level(level: int, u: torch.Tensor) -> None:
            nonlocal start
            if start is None:
                wait(self.case.device)
                start = time.perf_counter()

        begin = time.perf_counter()
        self.pipeline.sample(images, levels=levels, callback=on_level)
        end = time.perf_counter()
        return {
            "images_per_second": images / (end - begin),
            "corruption_ms": 1e3 * (start - begin),
            "network_ms": 1e3 * (end - start),
            "level_ms": 1e3 * (end - start) / levels,
        }

    def size(self) -> dict[str, int]:
        visited = walk(self.case.config.process, levels=self.case.options.levels)
        # The pipeline halves its batch where it does not fit into memory.
        return {"batch": self.pipeline.batch, "levels": len(visited) - 1}

    def kept(self) -> Iterator[torch.Tensor]:
        return self.pipeline.network.parameters()

    def estimate(self) -> int:
        weights = sum(parameter.nbytes for parameter in self.kept())
        return weights + self.pipeline.batch * activation_bytes(self.case.config.network, self.case.config.size)


def benchmark_training(options: TrainBenchmark) -> None:
    """Train every preset for a few steps, in every way."""
    check_integer("--steps", options.steps, 1)
    measure(options, TrainingTurn, f"{options.steps} steps a turn")


def benchmark_sampling(options: SampleBenchmark) -> None:
    """Sample a batch from every preset, in every way."""
    for config in chosen_presets(options).values():
        walk(config.process, levels=options.levels)
    measure(options, SamplingTurn, "a batch a turn")


def measure(options: Throughput, kind: type[Turn], work: str) -> None:
    """Take the measurements; print a table, write the numbers."""
    device = console.pick_device(options.device)
    check_integer("--repeats", options.repeats, 1)
    if options.batch is not None:
        check_integer("--batch", options.batch, 1)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("the benchmark measures a single process; leave out torchrun or accelerate launch")
    if options.compile:
        console.check_compiler()
    presets = chosen_presets(options)
    precisions = dict.fromkeys(options.precision or (("fp32", "bf16") if device.type == "cuda" else ("fp32",)))
    ways = [(precision, compiled) for precision in precisions for compiled in (False, True)[: 1 + options.compile]]
    described = f"{describe(device)}, torch {torch.__version__}"
    print(f"{described}; {work}, medians of {options.repeats}")
    rows: list[dict[str, object]] = []
    turns = len(presets) * len(ways) * (1 + options.repeats)
    with tqdm(total=turns, desc="measuring", unit="turn", leave=False) as progress:
        for name, config in presets.items():
            batch = options.batch or kind.batch(config, device)
            found = measure_preset(kind, [Case(name, config, batch, *way, device, options) for way in ways], progress)
            lines = table(found, heading=not rows) + verdicts(found)
            progress.write("\n".join(lines))
            rows += found
    if options.out is not None:
        write_json(options.out, {"device": described, "work": work, "repeats": options.repeats, "rows": rows})


def chosen_presets(options: Throughput) -> dict[str, RunConfig]:
    """The presets to measure, by name."""
    usual = ("digits", "ffhq-64", "ffhq-128") if console.pick_device(options.device).type == "cuda" else ("digits",)
    return {name: preset(name) for name in options.presets or usual}


def measure_preset(kind: type[Turn], cases: list[Case], progress: tqdm) -> list[dict[str, object]]:
    """A row of numbers for every case that fits into memory."""
    # Of one function torch keeps but a few compiled versions.
    torch.compiler.reset()
    turns: list[Turn] = []
    firsts: list[float] = []
    last = None
    for case in cases:
        try:
            last = kind(case, last)
            firsts.append(seconds(last, case.device))
            turns.append(last)
        except (InputError, torch.OutOfMemoryError) as error:
            if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                raise
            progress.write(f"{case.preset}, {case.precision}: not enough memory for {case.batch} images at a time, see --batch")
        progress.update()

    def counted(turn: Turn) -> dict[str, float]:
        progress.update()
        return turn()

    results = in_turns([partial(counted, turn) for turn in turns], cases[0].options.repeats)
    return [row(turn, first, found) for turn, first, found in zip(turns, firsts, results, strict=True)]


def row(turn: Turn, first: float, results: list[dict[str, float]]) -> dict[str, object]:
    """What is said about a case: medians of its turns, and its memory."""
    case = turn.case
    numbers = {name: statistics.median(result[name] for result in results) for name in results[0]}
    on_cpu = case.device.type == "cpu"
    return {
        "preset": case.preset,
        "precision": case.precision,
        "compiled": case.compiled,
        **turn.size(),
        **numbers,
        "corruption_share": numbers["corruption_ms"] / (numbers["corruption_ms"] + numbers["network_ms"]),
        "memory_bytes": in_own_process(memory_of, type(turn), case) if on_cpu else turn.memory(),
        "estimated_bytes": turn.estimate(),
        "first_turn_seconds": first,
    }


def memory_of(kind: type[Turn], case: Case) -> int | None:
    """Bytes that a case takes at most, run on its own."""
    turn = kind(case)
    turn()
    return turn.memory()


class Column(NamedTuple):
    """A column of the table: the number's name in a row, and how it is shown."""

    name: str
    head: str
    width: int
    form: Callable[[Any], str]


def _plain(value: object) -> str:
    return str(value)


def _number(value: float) -> str:
    """Three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else _number(value / 2**20)


COLUMNS = (
    Column("preset", "preset", 15, _plain),
    Column("precision", "precision", 11, _plain),
    Column("compiled", "compiled", 10, lambda value: "yes" if value else "no"),
    Column("batch", "batch", 7, _plain),
    Column("levels", "levels", 8, _plain),
    Column("images_per_second", "images/s", 10, _number),
    Column("corruption_ms", "corruption ms", 15, _number),
    Column("network_ms", "network ms", 12, _number),
    Column("level_ms", "ms a level", 12, _number),
    Column("corruption_share", "corruption", 12, lambda value: f"{value:.1%}"),
    Column("memory_bytes", "MiB", 9, _mebibytes),
    Column("estimated_bytes", "estimated", 11, _mebibytes),
)


def table(rows: list[dict[str, object]], heading: bool) -> list[str]:
    """The rows for a terminal."""
    shown = [column for column in COLUMNS if rows and column.name in rows[0]]
    lines = ["".join(f"{column.head:>{column.width}}" for column in shown)] if heading and shown else []
    return lines + ["".join(f"{column.form(row[column.name]):>{column.width}}" for column in shown) for row in rows]


def verdicts(rows: list[dict[str, object]]) -> list[str]:
    """Whether compiling wins, for every precision in which both were measured."""
    speed = {(row["precision"], row["compiled"]): row["images_per_second"] for row in rows}
    lines = []
    for row in rows:
        if row["compiled"] and (row["precision"], False) in speed:
            times = row["images_per_second"] / speed[row["precision"], False]
            verdict = "wins" if times > WIN else "does not win"
            took = f"the first turn took {row['first_turn_seconds']:.0f} s"
            lines.append(f"{row['preset']}, {row['precision']}: compiling {verdict}, {times:.2f} times the speed; {took}")
    return lines


def on_the_same_weights(network: nn.Module) -> nn.Module:
    """The network once more, uncompiled, on the very same parameters."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})


def random_pictures(config: RunConfig, count: int) -> torch.Tensor:
    """Noise in the shape of a run's pictures, float32 [count, C, S, S] in [0, 1]."""
    return torch.rand((count, config.channels, config.size, config.size), generator=torch.Generator().manual_seed(0))
