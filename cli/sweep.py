"""Train, sample and score one run for every process, Peclet number and seed, everything else equal; draw a table and plots.

All options of cli.train can be given too, and hold for every run; python -m cli.train --help lists them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from cli import console, signals, summary, train
from cli.jobs import Job, side_by_side
from cli.summary import Point
from diffusion.data.dataset import OTHER_HALF
from diffusion.evaluation.config import EvaluationConfig, ScoringConfig
from diffusion.evaluation.reference import Reference
from diffusion.evaluation.sources import open_pictures
from diffusion.files import owned, read_json
from diffusion.launcher import launch
from diffusion.methods import METHODS, Method, named_method
from diffusion.run import RunConfig, load_config
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError, amount, check_integer, check_number

# The process that the others become without their flow.
STILL = "ihd"


@dataclass(frozen=True)
class Sweep:
    """Options of ``python -m cli.sweep``, beside those of cli.train."""

    process: tuple[str, ...] = ("fluid",)
    """Each at every Peclet number: a process with a flow; at Pe = 0 alone any that cli.train knows."""
    peclet: tuple[float, ...] = ()
    """The values, each >= 0, such as 0 2 4. At 0 processes that differ from ihd in their flow alone are one run, called ihd."""
    network_calls: tuple[int, ...] = ()
    """Numbers of sampling steps to score as well, each at least 2, such as 10 20 40; by default the process's own alone."""
    seeds: int = 1
    """Runs of each, with seeds from --seed on; the results are their mean and standard deviation."""
    seed: int = 0
    """The first seed."""
    split: Literal["all", "even", "odd"] = "even"
    """Pictures to learn: those of even or odd number, scored against the others; or all, scored against all."""
    calibration: bool = False
    """Also rank pictures among their restorations, as in cli.evaluate --calibration, for the first seed of each."""
    jobs: int = 1
    """Runs at a time. They share the threads of the CPU and, with --device auto, the GPUs."""
    dry_run: bool = False
    """Print the runs and what the first of them takes as JSON, and write nothing."""
    out: Path | None = None
    """Folder of the runs and the results; sweeps/<data> by default. The same command goes on with what is missing."""
    scoring: Annotated[ScoringConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ScoringConfig)

    def validate(self) -> None:
        """Raise InputError if a value is out of its range, or does not go with another."""
        console.check_at_least(self, seeds=1, jobs=1)
        self.scoring.validate()
        for name, example in (("peclet", "0 2 4"), ("process", ", ".join(METHODS)), ("network-calls", "")):
            values = getattr(self, name.replace("-", "_"))
            if example and not values:
                raise InputError(f"--{name}: name at least one, such as {example}")
            console.check_once(f"--{name}", values)
        for value in self.peclet:
            check_number("--peclet", value, 0.0)
        for name in self.process:
            if named_method(name).operator.peclet == 0.0 and max(self.peclet) > 0.0:
                flowing = ", ".join(name for name, method in METHODS.items() if method.operator.peclet > 0.0)
                raise InputError(f"{name} has no flow, so it takes --peclet 0 alone; processes with a flow: {flowing}")
        if launch().processes > 1:
            raise InputError("a sweep starts its own processes (--jobs); leave out torchrun or accelerate launch")


class Run(NamedTuple):
    """A training, and the scoring of its samples."""

    folder: Path
    config: RunConfig
    training: list[str]
    """Arguments of cli.train."""
    scoring: list[str]
    """Arguments of cli.evaluate."""
    asked: Mapping[str, Any]
    """What the scores depend on beside the run, as it stands in metrics.json: reference, k, number of samples, seed and sampling
    noise; and whether likelihood and calibration are among them."""
    network_calls: tuple[int, ...]
    """Numbers of sampling steps that it is scored with, beside the process's own."""

    @property
    def job(self) -> Job:
        """The commands that carry it out."""
        commands = [["-m", "cli.train", *self.training]]
        for calls in self.missing():
            steps = ["--steps", str(calls)] if calls else []
            commands.append(["-m", "cli.evaluate", *self.scoring, *steps, "--out", str(self.scores(calls))])
        return Job(self.folder.name, commands, self.folder / "log.txt")

    def scores(self, calls: int | None = None) -> Path:
        """The file with the scores of samples in so many steps, or in the process's own number."""
        return self.folder / (f"metrics-{calls}-calls.json" if calls else "metrics.json")

    def report(self, calls: int | None = None) -> dict[str, Any] | None:
        """What that file holds; None if the run is not finished, or was scored in another way than is asked for."""
        try:
            report = read_json(self.scores(calls))
            made = {name: value for name, value in report["samples"].items() if name not in ("source", "model")}
            scored = {"reference": report["reference"], "k": report["k"], "num": report["scores"]["samples"]} | made
            # What an earlier evaluation was asked for beyond it stays there.
            scored |= {name: asks and name in report for name, asks in self.asked.items() if name in ("likelihood", "calibration")}
            finished = scored == dict(self.asked) | {"steps": calls} and load_config(self.folder) == self.config
            finished = finished and report["scores"].keys() >= summary.SCORES.keys()
        except (InputError, FileNotFoundError, KeyError, TypeError):
            return None
        return report if finished and summary.last_grid(self.folder, self.config.training.images).is_file() else None

    def missing(self) -> list[int | None]:
        """Numbers of sampling steps whose scores are asked for and not there; None is the process's own number."""
        return [calls for calls in (None, *self.network_calls) if self.report(calls) is None]


class Plan(NamedTuple):
    """All runs of a sweep, and where they go."""

    folder: Path
    device: str
    points: dict[tuple[str, float], list[Run]]
    """By process and Peclet number the runs of every seed. At Pe = 0 several processes may have the same runs."""

    def runs(self) -> list[Run]:
        """All runs, each once, the first seed of every point first."""
        return list({run.folder: run for same_seed in zip(*self.points.values(), strict=True) for run in same_seed}.values())

    def write_summary(self) -> list[Path]:
        """Write down what is known by now; returns the files."""
        settings = self.runs()[0].config.to_json()
        del settings["process_name"], settings["method"], settings["training"]["seed"]

        def reports(runs: list[Run], calls: int | None) -> dict[Path, dict[str, Any]]:
            return {run.folder: report for run in runs if (report := run.report(calls))}

        found = []
        for (process, peclet), runs in self.points.items():
            by_calls = {calls: reports(runs, calls) for calls in runs[0].network_calls}
            found.append(Point(process, runs[0].config.process_name, peclet, reports(runs, None), by_calls))
        return summary.write(self.folder, settings, found, len(self.runs()))


def sweep(parsed: tuple[Sweep, list[str]]) -> None:
    """Carry out the runs that are not finished; whenever one is, write down what is known.

    Args:
        parsed: the options of the sweep, and the other arguments, which are those of cli.train.
    """
    options, training = parsed
    options.validate()
    plan = planned(options, training)
    runs = {run.folder.name: run for run in plan.runs()}
    if options.dry_run:
        first = train.parse(next(iter(runs.values())).training)
        takes = train.plan(first, Ranks(console.pick_device(plan.device))) or {}
        print(json.dumps({"runs": list(runs)} | takes, indent=2))
        return
    with owned(plan.folder):
        carry_out(plan, runs, options.jobs)


def carry_out(plan: Plan, runs: Mapping[str, Run], at_a_time: int) -> None:
    """As :func:`sweep`, with the runs by their names, and the number of runs at a time."""
    check_same_sweep(plan)
    todo = [run for run in runs.values() if run.missing()]
    print(f"{amount(len(runs), 'run')}, {len(runs) - len(todo)} finished -> {plan.folder}")
    written = plan.write_summary()
    for run in todo:
        # They may be those of a training that was not complete.
        for calls in run.missing():
            run.scores(calls).unlink(missing_ok=True)
    failed, interrupt = {}, None
    try:
        for job, problem in side_by_side([run.job for run in todo], devices(plan.device, at_a_time)):
            if not problem and runs[job.name].missing():
                problem = "it ended before it was complete"
            if problem:
                failed[job.name] = problem
                tqdm.write(f"{job.name}: {problem}", file=sys.stderr)
            else:
                written = plan.write_summary()
    except KeyboardInterrupt as error:
        interrupt = error
    if len(written) > 1:
        print("\n" + written[1].read_text(encoding="utf-8"))
    print(f"wrote {', '.join(map(str, written))}")
    if interrupt and any(run.missing() for run in todo):
        print(f"interrupted and saved; the same command goes on with {plan.folder}")
        sys.exit(signals.exit_code(interrupt))
    if failed:
        name, problem = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {amount(len(runs), 'run')} failed; {name}: {problem}; the same command tries again")


def planned(options: Sweep, training: Sequence[str]) -> Plan:
    """The runs of a sweep. All that they need is looked at here, before the first of them begins.

    Raises:
        InputError: if options do not fit a process, or pictures or features are missing or too few.
    """

    def arguments(process: str, peclet: float, *more: str) -> list[str]:
        flow = ["--peclet", number(peclet)] if has_peclet(named_method(process)) else []
        return [*training, "--split", options.split, "--process", process, *flow, *more]

    chosen = [train.parse(arguments(process, max(options.peclet))) for process in options.process]
    for choice in chosen:
        choice.check()
        if choice.stop_after is not None:
            raise InputError("--stop-after: the runs of a sweep are equally long; leave it out")
        if choice.execution.hours is not None:
            raise InputError("--hours: the runs of a sweep are equally long; say how long with --images")
        if not choice.grids:
            raise InputError("--no-grids: a sweep shows the last grid of every run; leave it out")
    data, device = chosen[0].data, console.pick_device(chosen[0].device)
    pictures = chosen[0].pictures
    folder = options.out or Path("sweeps") / train.short_name(chosen[0].data)
    if not options.dry_run:
        with owned(folder):  # as a training does, before pictures are prepared
            pass
    dataset = train.open_pictures(chosen[0])

    given = vars(options.scoring) | {"data_root": pictures.data_root, "data_cache": pictures.data_cache, "size": chosen[0].size}
    scoring = EvaluationConfig(**given, split=OTHER_HALF[options.split])
    reference = Reference(open_pictures(data, scoring, dataset.channels), scoring, device)
    reference.check_enough("a set of samples", reference.num)
    asked = {"reference": reference.facts(), "k": scoring.k, "num": reference.num, "seed": scoring.seed}
    asked |= {"sampling_noise": scoring.sampling_noise, "likelihood": scoring.likelihood}

    probes = dataset.probes(train.PROBES)

    def suited(process: str, peclet: float) -> train.Train:
        first = folder / f"{process}-Pe{number(peclet)}-seed{options.seed}"
        words = (*arguments(process, peclet), "--out", str(first))
        return replace(chosen[0], words=words, out=first).suited(dataset.channels, train.count_of(dataset), probes)

    try:
        still = suited(STILL, 0.0)
    except InputError:  # an option that it does not have: no process becomes it
        still = None

    def runs(process: str, peclet: float) -> list[Run]:
        """Those of a point, one for each seed."""
        trained = suited(process, peclet)
        if still is not None and peclet == 0.0 and without_flow(trained.method) == without_flow(still.method):
            process, trained = STILL, still
        config = trained.resolve(dataset.name, dataset.channels)
        for calls in options.network_calls:
            check_integer("--network-calls", calls, 2, config.method.levels)
        made = []
        for seed in range(options.seed, options.seed + options.seeds):
            place = folder / f"{process}-Pe{number(peclet)}-seed{seed}"
            line = arguments(process, peclet, "--seed", str(seed), "--out", str(place))
            seeded = replace(config, training=replace(config.training, seed=seed))
            more = {"calibration": options.calibration and seed == options.seed}
            scored = [str(place), "--data", data, *as_arguments(scoring), *(f"--{name}" for name, asks in more.items() if asks)]
            made.append(Run(place, seeded, line, scored, asked | more, options.network_calls))
        return made

    points = [(process, peclet) for process in options.process for peclet in sorted(options.peclet)]
    return Plan(folder, chosen[0].device, {point: runs(*point) for point in points})


def number(value: float) -> str:
    """A Peclet number in the fewest digits, without an exponent."""
    return np.format_float_positional(value, trim="-")


def has_peclet(method: Method) -> bool:
    """Whether the method has a Peclet number that can be chosen."""
    return "peclet" in getattr(method.operator, "__dataclass_fields__", ())


def without_flow(method: Method) -> Method:
    """The method as it is at Pe = 0, where the numbers of its flow have no effect."""
    return method.changed(operator=method.operator.still())


def as_arguments(options: object) -> list[str]:
    """The command line that gives the values of a dataclass of options."""
    values = {f"--{name.replace('_', '-')}": value for name, value in vars(options).items()}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    return [word for name, value in given.items() for word in ([name] if value is True else [name, str(value)])]


def devices(device: str, jobs: int) -> list[str]:
    """A device for every run at a time: all GPUs in turn if there are several and none is named."""
    count = torch.cuda.device_count()
    return [f"cuda:{job % count}" if device == "auto" and count > 1 else device for job in range(jobs)]


def check_same_sweep(plan: Plan) -> None:
    """Raise InputError if the folder holds a run that differs in more than process, Peclet number and seed."""
    planned = {run.config.process_name: run.config for run in plan.runs()}
    for path in plan.folder.glob("*/config.json"):
        there = load_config(path.parent)
        here = planned.get(there.process_name, next(iter(planned.values())))
        method = there.method
        if here.process_name == there.process_name:
            method = here.method.changed(peclet=method.operator.peclet) if has_peclet(method) else here.method
        training = replace(here.training, seed=there.training.seed)
        here = replace(here, process_name=there.process_name, method=method, training=training)
        if difference := here.difference(there):
            raise InputError(f"{plan.folder} holds another sweep ({difference}); choose another --out")


# What --help shows; --help-all shows the rest.
COMMON = "--process --peclet --seeds --out --jobs --num --network-calls --likelihood --calibration --split --dry-run".split()
main = partial(console.run, "sweep", sweep, partial(tyro.cli, Sweep, return_unknown_args=True), common=COMMON)


if __name__ == "__main__":
    main()
