"""Train, sample and score one run for every Peclet number, everything else equal: a table and plots of what the flow does."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from tqdm import tqdm

from cli import console, evaluate, render, summary, train
from cli.evaluate import Evaluate
from cli.jobs import side_by_side
from cli.summary import Point
from cli.train import Train
from diffusion.config import RunConfig, fingerprint
from diffusion.data.dataset import OTHER_HALF, numbers_of, whole_and_half
from diffusion.files import read_json, write_json
from diffusion.process import PROCESSES, ForwardProcess, named_process
from diffusion.sampling.pipeline import Pipeline
from diffusion.training.ranks import Ranks, one_line
from lbm_warp.checks import InputError, check_integer, check_number

SHOWN = 12
# What is left of a process without its flow.
STILL = "ihd"


@dataclass(frozen=True)
class Sweep(Train):
    """Options of ``python -m cli.sweep``: those of cli.train hold for all runs, but for what is varied; then how to score."""

    process: tuple[str, ...] = ()
    """Each at every Peclet number: beyond-blur, beyond-blur-curl, structured-noise; at Pe = 0 alone any that cli.train knows."""
    peclet: tuple[float, ...] = ()
    """The values, each >= 0, such as 0 0.05 0.1. At 0 processes that differ in nothing but their flow are one run, called ihd."""
    seeds: int = 1
    """Trainings of each, with seeds from --seed on: the results are their mean and standard deviation."""
    split: Literal["all", "even", "odd"] = "even"
    """Pictures to learn: those of even or odd number, scored against the others; or all, scored against all."""
    num: int | None = None
    """Samples of a run; as many as there are pictures to score them against, at most 10,000, if left out."""
    features: str | None = None
    """inception, digits, pixels, or a TorchScript file (*.pt: it is run!); digits for the digits, else inception."""
    inception: Path | None = None
    """Where inception-2015-12-05.pt is, if not under BEYOND_BLUR_DATA, ./data or torch's hub cache."""
    k: int = 5
    """Neighbours that set the size of a neighbourhood, for precision, recall, density and coverage."""
    cache: Path | None = None
    """Folder where features of real pictures are kept; ~/.cache/beyond-blur if left out."""
    jobs: int = 1
    """Runs at a time, each in a process of its own. They share the CPU's threads and, with --device auto, the GPUs."""
    dry_run: bool = False
    """Print the runs and what the first of them takes as JSON, and write nothing."""
    out: Path | None = None
    """Folder of the runs and the results; sweeps/<data> if left out. The same command goes on with what is missing."""
    arguments: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The command line, which is read again for every process: one has values of its own unless they are given."""


@dataclass(frozen=True)
class Run:
    """A training, and the scoring of its samples."""

    training: Train
    evaluation: Evaluate
    config: RunConfig
    asked: str
    """Hash of everything that the scores depend on."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.evaluation.run

    def report(self) -> dict[str, Any] | None:
        """What metrics.json holds; None if the run is not finished, or was scored in another way than is asked for."""
        try:
            report = read_json(self.folder / "metrics.json")
        except (InputError, FileNotFoundError):
            return None
        return report if report.get("sweep") == self.asked and (self.folder / summary.STRIP).is_file() else None


class Plan(NamedTuple):
    """All runs of a sweep, and where they go."""

    folder: Path
    curves: dict[str, dict[float, list[Run]]]
    """By process and Peclet number those of every seed. At Pe = 0 a run may be on several curves."""

    def runs(self) -> list[Run]:
        """All runs, each once, the first seed of every value first."""
        points = [runs for curve in self.curves.values() for runs in curve.values()]
        return list({run.folder: run for same_seed in zip(*points, strict=True) for run in same_seed}.values())

    def found(self) -> list[Point]:
        """What is known by now."""
        return [
            Point(name, runs[0].training.process, value, {run.folder: report for run in runs if (report := run.report())})
            for name, curve in self.curves.items()
            for value, runs in curve.items()
        ]

    def settings(self) -> dict[str, Any]:
        """What all runs have in common, and every process but for its Peclet number."""
        runs = self.runs()
        common = {name: value for name, value in asdict(runs[0].config).items() if name not in ("process_name", "process")}
        del common["training"]["seed"]
        processes = {run.training.process: asdict(run.config.process) for run in runs}
        for values in processes.values():
            del values["peclet"]
        return json.loads(json.dumps(common | {"processes": processes}))


def defaults(arguments: Sequence[str]) -> Sweep:
    """The options in force unless given, as for cli.train; of several processes for the first.

    Raises:
        InputError: if the command line names a preset or a process there is not.
    """
    known = vars(train.defaults(arguments))
    varied = {"process": (known["process"],), "peclet": (), "split": Sweep.split}
    return Sweep(**known | varied, arguments=tuple(arguments))


def sweep(options: Sweep) -> None:
    """Carry out the runs that are not finished; whenever one is, write down what is known."""
    check(options)
    plan = planned(options)
    runs = plan.runs()
    if options.dry_run:
        takes = train.plan(runs[0].training, Ranks(console.pick_device(options.device)))
        print(json.dumps({"runs": [run.folder.name for run in runs]} | takes, indent=2))
        return
    check_same_sweep(plan)
    todo = [run for run in runs if run.report() is None]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished -> {plan.folder}")
    written = summary.write(plan.folder, plan.settings(), plan.found(), len(runs))
    failed = {}
    finished = 0
    for run, problem in one_by_one(todo, options.device) if options.jobs == 1 else side_by_side(carry_out, todo, devices(options)):
        if problem:
            failed[run.folder.name] = problem
            tqdm.write(f"{run.folder.name}: {problem}", file=sys.stderr)
        else:
            finished += 1
            written = summary.write(plan.folder, plan.settings(), plan.found(), len(runs))
    if len(written) > 1:
        print("\n" + written[1].read_text(encoding="utf-8"))
    print("wrote " + ", ".join(str(path) for path in written))
    if failed:
        name, problem = next(iter(failed.items()))
        raise InputError(f"{len(failed)} of {len(runs)} runs failed; {name}: {problem}; the same command tries again")
    if finished < len(todo):
        print(f"interrupted and saved; the same command goes on with {plan.folder}")


# Which runs


def check(options: Sweep) -> None:
    """Raise InputError if a value is out of its range, or does not go with another; the pictures are not looked at."""
    for name, lowest in (("seeds", 1), ("jobs", 1), ("k", 1), ("num", 2)):
        if getattr(options, name) is not None:
            check_integer(f"--{name}", getattr(options, name), lowest)
    for name, example in (("peclet", "0 0.05 0.1"), ("process", ", ".join(PROCESSES))):
        values = getattr(options, name)
        if not values:
            raise InputError(f"--{name}: name at least one, such as {example}")
        twice = [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            raise InputError(f"--{name} names {', '.join(twice)} more than once")
    for value in options.peclet:
        check_number("--peclet", value, 0.0)
    for name in options.process:
        if named_process(name).peclet == 0.0 and max(options.peclet) > 0.0:
            flowing = ", ".join(name for name, process in PROCESSES.items() if process.peclet > 0.0)
            raise InputError(f"{name} has no flow, so it takes --peclet 0 alone; processes with a flow: {flowing}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a sweep starts its own processes (--jobs); leave out torchrun or accelerate launch")


def planned(options: Sweep) -> Plan:
    """The runs of a sweep. All they need is looked at here, before the first of them begins.

    Raises:
        InputError: if options do not fit a process, or pictures or features are missing or too few.
    """
    chosen = {name: of_process(options, name) for name in dict.fromkeys((*options.process, STILL))}
    for name in options.process:
        train.check(chosen[name])
    device = console.pick_device(options.device)
    dataset = train.open_pictures(options)
    folder = options.out or Path("sweeps") / Path(whole_and_half(dataset.name)[0]).stem
    split = OTHER_HALF[options.split]
    evaluation = Evaluate(
        run=folder,
        data=options.data,
        data_root=options.data_root,
        data_cache=options.data_cache,
        split=split,
        num=options.num,
        features=options.features,
        inception=options.inception,
        k=options.k,
        device=options.device,
        cache=options.cache,
    )
    reference = evaluate.open_pictures(options.data, options.size, evaluation, dataset.channels)
    if evaluation.num is None:
        evaluation = replace(evaluation, num=min(len(numbers_of(split, reference.count)), evaluate.DEFAULT_NUM))
    evaluate.check_enough(reference, "a set of samples", evaluation.num, options.k)
    pictures = evaluate.fingerprint(reference, evaluate.extractor_for(reference, evaluation, device))

    def run(process: str, peclet: float, number: int) -> Run:
        if peclet == 0.0 and without_flow(chosen[process]) == without_flow(chosen[STILL]):
            process = STILL
        seed = options.training.seed + number
        place = folder / f"{process}-Pe{np.format_float_positional(peclet, trim='-')}-seed{seed}"
        settings = replace(chosen[process], peclet=peclet, training=replace(options.training, seed=seed), out=place)
        config = train.resolve(settings, dataset.name, dataset.channels)
        facts = [fingerprint(config, {}), pictures, split, evaluation.num, options.k, evaluation.seed]
        asked = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return Run(settings, replace(evaluation, run=place), config, asked)

    values = sorted(options.peclet)
    curves = {name: {value: [run(name, value, n) for n in range(options.seeds)] for value in values} for name in options.process}
    return Plan(folder, curves)


def of_process(options: Sweep, process: str) -> Train:
    """The options of cli.train for one of the processes: its own values, unless the command line gives others."""
    arguments = options.arguments
    given = tyro.cli(Sweep, args=arguments, default=defaults([*arguments, "--process", process]))
    return Train(**{option.name: getattr(given, option.name) for option in fields(Train)} | {"process": process, "peclet": 0.0})


def without_flow(options: Train) -> ForwardProcess:
    """What is left of a process at Pe = 0, where its flow does nothing."""
    still = PROCESSES[STILL]
    process = ForwardProcess(**{value.name: getattr(options, value.name) for value in fields(ForwardProcess)})
    return replace(process, peclet=0.0, turbulence=still.turbulence, offset=still.offset, transport=still.transport)


def check_same_sweep(plan: Plan) -> None:
    """Raise InputError if the folder holds a sweep of other settings."""
    path = plan.folder / "sweep.json"
    if not path.exists():
        return
    there, here = flat(read_json(path).get("settings")), flat(plan.settings())
    for name, value in here.items():
        if there.get(name, value) != value:
            raise InputError(f"{plan.folder} holds a sweep with {name} = {there[name]}, not {value}; choose another --out")


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Entries of nested objects under names such as ``network.width``."""
    if not isinstance(value, dict):
        return {name: value}
    return {path: entry for key in value for path, entry in flat(value[key], f"{name}.{key}" if name else key).items()}


# Carrying out


def one_by_one(runs: Sequence[Run], device: str) -> Iterator[tuple[Run, str]]:
    """Carry out runs until one is interrupted: each of the others, and what went wrong, empty if nothing did."""
    for number, run in enumerate(runs, 1):
        print(f"\nrun {number} of {len(runs)}, {run.folder.name}")
        try:
            if not carry_out(run, device):
                return
        except (InputError, OSError) as error:
            yield run, one_line(error)
        else:
            yield run, ""


def devices(options: Sweep) -> list[str]:
    """A device for every job: all GPUs in turn where there are several, and it is left open which."""
    count = torch.cuda.device_count()
    if options.device != "auto" or count < 2:
        return [options.device] * options.jobs
    return [f"cuda:{job % count}" for job in range(options.jobs)]


def carry_out(run: Run, device: str) -> bool:
    """Train a run, or go on with it, keep its first samples, score it; returns whether it is complete, and not interrupted."""
    if not train.carry_out(run.training, Ranks(console.pick_device(device))):
        return False
    # If there is one, it was scored in another way, or is damaged.
    (run.folder / "metrics.json").unlink(missing_ok=True)
    pipeline = Pipeline.from_pretrained(run.folder, device=console.pick_device(device))
    first = [render.to_pixels(image) for image in pipeline.sample(SHOWN, run.evaluation.seed)]
    render.save_image(run.folder / summary.STRIP, render.grid(first, SHOWN, gap=max(1, run.config.size // 32)))
    report = evaluate.assess(replace(run.evaluation, device=device))
    # Last: a run that has it is finished.
    write_json(run.folder / "metrics.json", report | {"sweep": run.asked})
    return True


if __name__ == "__main__":
    console.run(sweep, Sweep, "sweep", defaults)
