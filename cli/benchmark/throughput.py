"""Measure how fast whole presets train and sample, and how much memory they take, on random pictures."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.benchmark import timer

from cli import console
from cli.benchmark import measure
from diffusion.denoisers import Reverse
from diffusion.launcher import launch
from diffusion.presets import preset
from diffusion.run import RunConfig
from diffusion.sampling.pipeline import Pipeline, default_batch
from diffusion.sampling.prior import Prior
from diffusion.training.estimate import memory
from diffusion.training.log import StepLog, Stopwatch
from diffusion.training.loop import ExecutionConfig, Trainer
from diffusion.training.ranks import Ranks
from diffusion.training.state import TrainingState
from diffusion.training.trial import random_pictures, random_statistics
from lbm_warp.checks import InputError

PARTS = ("corruption", "network", "host")
# Length of a training that no benchmark reaches [images].
ENDLESS = 10**12
# Compiling wins from this ratio of speeds on: two measurements always differ a little.
WIN = 1.02
# A turn of the work; it returns numbers of a row, and the memory of the tensors that stay between turns (kept_bytes).
Turn = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Throughput(measure.Benchmark):
    """Measures presets in every precision, compiled or not."""

    presets: tuple[str, ...] = ()
    """Names of presets; by default digits, and on CUDA also ffhq-64 and ffhq-128."""
    batch: int | None = None
    """Images at a time; by default the preset's for training, and as many as memory allows for sampling."""
    precision: tuple[Literal["fp32", "bf16"], ...] = ()
    """Arithmetic of the network; by default fp32, and on CUDA also bf16."""
    compile: bool = False
    """Also measure the compiled network, and say whether compiling wins."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def default_batch(self, config: RunConfig, device: torch.device) -> int:
        """Images at a time without --batch; raises InputError if an option does not suit the preset."""
        return config.training.batch

    @abstractmethod
    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, execution: ExecutionConfig) -> Turn:
        """Prepare a turn with the weights of ``state``, which all turns share, and ``config.training.batch`` images at a time."""

    def compare(self, work: str) -> None:
        """Measure all presets; print a table, write the numbers."""
        device = measure.pick_device(self.device)
        on_cuda = device.type == "cuda"
        self.check(batch=1)
        if launch().processes > 1:
            raise InputError("the benchmark measures a single process; leave out torchrun or accelerate launch")
        if self.compile:
            console.check_compiler()
        configs = {}
        for name in self.presets or (("digits", "ffhq-64", "ffhq-128") if on_cuda else ("digits",)):
            config = preset(name)
            batch = self.default_batch(config, device)
            configs[name] = replace(config, training=replace(config.training, batch=self.batch or batch, images=ENDLESS))
        precisions = dict.fromkeys(self.precision or (("fp32", "bf16") if on_cuda else ("fp32",)))
        ways = [ExecutionConfig(precision=p, compile=c) for p, c in product(precisions, (False, True)[: 1 + self.compile])]
        rows = chain.from_iterable(self.rows(name, config, device, ways) for name, config in configs.items())
        self.timed(f"{measure.describe(device)}, torch {torch.__version__}", work, rows)

    def rows(self, name: str, config: RunConfig, device: torch.device, ways: Sequence[ExecutionConfig]) -> Iterator[measure.Row]:
        """A row of numbers for every way to run the preset that fits into memory: those of the turn of median speed."""
        torch.compiler.reset()  # torch keeps only a few compiled versions of a function
        state = TrainingState.initial(config, device)
        turns: dict[ExecutionConfig, tuple[Turn, float]] = {}
        for way in ways:
            try:
                turn = self.turn(config, state, device, way)
                turns[way] = turn, measure.seconds(turn)
            except (InputError, torch.OutOfMemoryError) as error:
                if not isinstance(error.__cause__ or error, torch.OutOfMemoryError):
                    raise
                print(f"{name}, {way.precision}: not enough memory for {config.training.batch} images at a time, see --batch")
        results = self.interleaved([turn for turn, _ in turns.values()])
        plain: dict[str | None, float] = {}
        for (way, (turn, first)), found in zip(turns.items(), results, strict=True):
            numbers = sorted(found, key=itemgetter("images_per_second"))[len(found) // 2]
            if device.type == "cuda":
                peak = measure.peak_memory(turn, device)
            else:
                peak = measure.in_own_process(self.peak_of_second_turn, config, device, way)
            kept = numbers.pop("kept_bytes")
            parts = {part: numbers[f"{part}_ms"] for part in PARTS if f"{part}_ms" in numbers}
            yield {
                "preset": name,
                "precision": way.precision,
                "compiled": way.compile,
                **numbers,
                **{f"{part}_share": spent / sum(parts.values()) for part, spent in parts.items()},
                "memory_bytes": None if peak is None else peak + kept,
                "first_turn_seconds": first,
            }
            speed = numbers["images_per_second"]
            if way.compile and way.precision in plain:
                ratio = speed / plain[way.precision]
                verdict = f"compiling {'wins' if ratio > WIN else 'does not win'}, {ratio:.2f} times the speed"
                print(f"{name}, {way.precision}: {verdict}; the first turn took {first:.0f} s")
            plain.setdefault(way.precision, speed)

    def peak_of_second_turn(self, config: RunConfig, device: torch.device, execution: ExecutionConfig) -> int | None:
        """Largest memory that a turn takes beyond what stays between turns [bytes]."""
        turn = self.turn(config, TrainingState.initial(config, device), device, execution)
        turn()
        return measure.peak_memory(turn, device)


@dataclass(frozen=True)
class Train(Throughput):
    """Training: images/s, share of the corruption, memory."""

    steps: int = 5
    """Training steps in a turn."""

    def run(self) -> None:
        """Train every preset for a few steps, from pictures on the host to new weights and averages."""
        self.check(steps=1)
        self.compare(f"{self.steps} steps a turn")

    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, execution: ExecutionConfig) -> Turn:
        network, ranks, batch = same_weights(state.network), Ranks(device), config.training.batch
        state = TrainingState(network, state.average, state.weighting, state.optimiser)
        trainer = Trainer(config, state, ranks, execution, random_statistics(config, device))
        pictures, estimate = random_pictures(config, batch), memory(config, device, execution.precision or "fp32").total(batch)
        log = StepLog(0, ranks)

        def train() -> dict[str, float]:
            log.restart()
            for _ in range(self.steps):
                trainer.step(pictures, log)
            line = log.line(0.0)
            kept: list[torch.Tensor] = [*state.average.network.parameters()]
            for parameter in network.parameters():
                assert parameter.grad is not None
                kept += [parameter, parameter.grad, *state.optimiser.state[parameter].values()]
            numbers = {"batch": batch, "kept_bytes": sum(tensor.nbytes for tensor in kept), "estimated_bytes": estimate}
            return numbers | {name: line[name] for name in ("images_per_second", "corruption_ms", "network_ms")}

        return train


@dataclass(frozen=True)
class Sample(Throughput):
    """Sampling: images/s, shares of network, operator and host, memory."""

    steps: int | None = None
    """Number of sampling steps, at most the preset's number of levels K; the sampler's own by default."""

    def run(self) -> None:
        """Sample a batch from every preset, from seeds to images on the host. Speed does not depend on the weights."""
        self.compare("a batch a turn")

    def default_batch(self, config: RunConfig, device: torch.device) -> int:
        config.method.sampler.visited(config.forward, steps=self.steps)
        return default_batch(config, device)

    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, execution: ExecutionConfig) -> Turn:
        network = same_weights(state.average.network)
        if execution.compile:
            network.compile()
        prior = Prior(random_pictures(config, 1))
        statistics, batch = random_statistics(config, device), config.training.batch
        how: dict[str, Any] = {"statistics": statistics, "precision": execution.precision or "fp32", "batch": batch}
        pipeline = TimedPipeline(config, network, prior, **how)
        steps = len(config.method.sampler.visited(config.forward, steps=self.steps)) - 1
        weights = sum(parameter.nbytes for parameter in network.parameters())

        def sample() -> dict[str, float]:
            # The pipeline has halved a batch that does not fit into memory. Its first callback comes before the steps.
            times: list[float] = []
            batch, begin = pipeline.batch, timer()
            pipeline.sample(batch, steps=steps, callback=lambda level, u: times.append(begin if times else timer()))
            end = timer()
            spent = pipeline.watch.read()
            return {
                "batch": batch,
                "steps": steps,
                "images_per_second": batch / (end - begin),
                "corruption_ms": spent["corruption"],
                "network_ms": spent["network"],
                "host_ms": 1e3 * (end - begin) - sum(spent.values()),
                "step_ms": 1e3 * (end - times[0]) / steps,
                "kept_bytes": weights,
                "estimated_bytes": weights + batch * config.network.activation_bytes(config.size),
            }

        return sample


class TimedPipeline(Pipeline):
    """A pipeline that times its network and its operator, the start included. The rest is the host's: seeds, noise, filters, and
    whatever it does between launches."""

    def __init__(self, config: RunConfig, network: nn.Module, prior: Prior, **how: Any) -> None:
        super().__init__(config, network, prior, **how)
        self.watch = Stopwatch(self.device)

    def _start(self, *arguments: Any) -> torch.Tensor:
        with self.watch.part("corruption"):
            return super()._start(*arguments)

    def reverse(self, *arguments: Any, **options: Any) -> Reverse:
        reverse = super().reverse(*arguments, **options)
        operator: Any = Timed(reverse.forward.operator, self.watch, "corruption")
        forward = replace(reverse.forward, operator=operator)
        return replace(reverse, forward=forward, network=Timed(reverse.network, self.watch, "network"))


class Timed:
    """An object whose calls, and those of its methods, are timed as a part."""

    def __init__(self, inner: Any, watch: Stopwatch, part: str) -> None:
        self.inner, self.watch, self.part = inner, watch, part

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        with self.watch.part(self.part):
            return self.inner(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return Timed(found, self.watch, self.part) if callable(found) else found


def same_weights(network: nn.Module) -> nn.Module:
    """A copy of the network, not compiled, that shares its parameters."""
    return copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
