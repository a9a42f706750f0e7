"""Train a network to undo a corruption process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from cli import console
from diffusion.data.dataset import ImageDataset, ImageStream, find_source, name_of_half, open_dataset, whole_and_half
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.scoring import frechet_scorer
from diffusion.forward.operators import TURBULENCE
from diffusion.methods import METHODS, Method, named_method
from diffusion.network import NetworkConfig, NetworkSpec
from diffusion.presets import PRESETS, preset, preset_for, with_blur_of
from diffusion.run import RunConfig, TrainingConfig
from diffusion.sampling.pipeline import Pipeline
from diffusion.size import Size
from diffusion.training.estimate import memory
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import EarlyStop, Observer, SampleGrids, TensorBoard
from diffusion.training.ranks import Ranks
from lbm_warp import Turbulence
from lbm_warp.checks import InputError, check_integer

SCORED = 500
# A preset's checkpoints: four in a short training, every 320,000 images (10,000 published steps of 32) in a long one.
MOST_BETWEEN_CHECKPOINTS = 320_000
PROCESS = f"A process, which has numbers of its own for the options below: {', '.join(METHODS)}, or one of an installed package."
PRESET = f"Values that belong together, by default --data's: {', '.join(PRESETS)}. They run fluid, but for those as published."
registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _turbulence(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Turbulence] | None:
    """A generator of velocity fields on the command line: its name in ``TURBULENCE``."""
    if not isinstance(info.type, type) or not issubclass(info.type, Turbulence):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(TURBULENCE)}}}",
        instance_from_str=lambda words: TURBULENCE[words[0]],
        is_instance=lambda value: isinstance(value, Turbulence),
        str_from_instance=lambda value: [
            next((name for name, known in TURBULENCE.items() if known == value), type(value).__name__)
        ],
        choices=tuple(TURBULENCE),
    )


@dataclass(frozen=True)
class Choice:
    """The options that choose the defaults of the others."""

    preset: Annotated[str, tyro.conf.arg(help=PRESET)] = ""
    data: str = ""
    """Pictures to learn: digits (built in), a folder of images, a ZIP archive of images, hf:owner/name (a set of the Hugging Face
    Hub), or ffhq, afhq, lsun-church, cifar10, mnist, fashion-mnist, emoji (a local copy, else the Hub's if it has one)."""
    size: str = ""
    """Size of the training images in pixels: one number for squares, or height x width such as 96x128. By default 16 for digits, 28
    for mnist and fashion-mnist, 32 for cifar10 and emoji, 128 for ffhq and lsun-church, else 64."""
    process_name: Annotated[str, tyro.conf.arg(name="process", help=PROCESS)] = ""


@dataclass(frozen=True)
class PictureOptions:
    """How the pictures are read."""

    data_root: Path | None = None
    """Folder of named data sets; by default the environment variable BEYOND_BLUR_DATA, or ./data."""
    data_cache: Path | None = None
    """Folder of prepared pictures; ~/.cache/beyond-blur/data by default."""
    grey: bool = False
    """Turn colour pictures to grey."""
    stream: bool = False
    """Read a data set of the Hub as a stream, without keeping a copy."""
    split: Literal["all", "even", "odd"] = "all"
    """Pictures to learn: all, or those of even or odd number; cli.evaluate then compares with the others."""
    classes: bool = False
    """Learn the classes of the pictures too, for cli.sample --label: of named sets, folders of folders, dataset.json, the Hub."""


@dataclass(frozen=True)
class Train(Choice):
    """Options of ``python -m cli.train``. Their defaults are those of the preset."""

    out: Path | None = None
    """Run folder; runs/<data>-<process> by default. The same command resumes a run that was interrupted."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    tensorboard: bool = False
    """Write losses, speed and samples to <run folder>/tensorboard as well."""
    dry_run: bool = False
    """Print the run, its number of parameters, its memory and its lattice iterations as JSON, and write nothing."""
    init: str | None = None
    """Begin from the weights of another run: its folder, owner/name on the Hugging Face Hub, or digits, fashion or emoji."""
    stop_after: int | None = None
    """Stop when the score has become no better in this many scores; goes with --score-every."""
    training: Annotated[TrainingConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingConfig)
    method: Annotated[Method, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: named_method("fluid"))
    network: NetworkSpec = field(default_factory=NetworkConfig)
    pictures: Annotated[PictureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PictureOptions)
    execution: Annotated[ExecutionConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ExecutionConfig)

    def resolve(self, data: str, channels: int, classes: tuple[str, ...] = ()) -> RunConfig:
        """The run on pictures of this name and number of channels, with these classes.

        Raises:
            InputError: if a value is out of its range, or values do not fit each other.
        """
        return RunConfig(self.process_name, data, channels, Size.of(self.size), self.method, self.network, self.training, classes)

    def check(self) -> None:
        """Raise InputError if a value is out of its range, or values do not fit each other; no picture is read."""
        self.execution.validate()
        if self.stop_after is not None:
            check_integer("--stop-after", self.stop_after, 1)
            if self.execution.score_every is None:
                raise InputError("--stop-after counts scores; say how often to score with --score-every")
        self.resolve(self.data, channels=3)
        if self.execution.compile:
            console.check_compiler()


def parse(args: Sequence[str], **shown: Any) -> Train:
    """The options of a command line; those that it does not give are the preset's.

    Args:
        args: the command line.
        shown: further arguments of ``tyro.cli``.

    Raises:
        InputError: if it names a preset or a process that does not exist.
    """
    with console.parse_errors(), registry:
        choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False, **shown)
        usual = defaults(choice)
        try:
            return tyro.cli(Train, args=args, default=usual, **shown)
        except AssertionError as error:  # tyro's, where a method of another package has a name twice
            raise InputError(
                f"process {usual.process_name}: two of its values, or one and an option, have one name ({error})"
            ) from None


def defaults(choice: Choice) -> Train:
    """The options of the preset that is chosen, or that suits the data; with another process, that process's own."""
    size = Size.of(choice.size) if choice.size else None
    name, config = (choice.preset, preset(choice.preset)) if choice.preset else preset_for(choice.data or "digits", size)
    process_name, method = choice.process_name or config.process_name, config.method
    if process_name != config.process_name:
        method = with_blur_of(named_method(process_name), method)
    every = min(config.training.images // 4, MOST_BETWEEN_CHECKPOINTS)
    return Train(
        preset=name,
        data=config.data,
        size=str(config.size),
        process_name=process_name,
        method=method,
        network=config.network,
        training=config.training,
        execution=ExecutionConfig(checkpoint_every=every),
    )


def run(options: Train) -> None:
    """Train the run that the options describe, or print what it takes."""
    options.check()
    ranks = Ranks(None if options.device == "auto" else console.pick_device(options.device))
    try:
        if not options.dry_run:
            carry_out(options, ranks)
        elif report := plan(options, ranks):
            print(json.dumps(report, indent=2))
    finally:
        ranks.close()


def plan(options: Train, ranks: Ranks) -> dict[str, object] | None:
    """What ``--dry-run`` prints, on rank 0. Pictures are read only where no preset tells how many channels they have."""
    channels = {config.data: config.channels for config in PRESETS.values()}.get(options.data)
    name, how = options.data, options.pictures
    if channels is None:
        name, _, _, channels = find_source(name, Size.of(options.size), how.data_root, how.grey or None, how.stream)
    classes = open_pictures(options).classes() if how.classes else ()
    config = options.resolve(name_of_half(name, how.split), 1 if how.grey else channels, classes)
    iterations, shares = config.method.operator.iterations(*config.size), config.method.density.shares(config.forward)
    images = -(-config.training.batch // (ranks.count * options.execution.accumulate))
    need = memory(config, ranks.device, options.execution.precision or ranks.precision)
    report = {
        "preset": options.preset,
        "config": config.to_json(),
        "parameters": sum(parameter.numel() for parameter in config.build_network(empty=True).parameters()),
        "processes": ranks.count,
        "images_at_a_time": images,
        "memory_bytes": {"total": need.total(images)} | asdict(need),
        "corruption_iterations": {
            "mean_per_image": round(float(iterations[1:] @ shares), 1),
            "whole_trajectory": round(float(iterations[-1]), 1),
        },
    }
    return report if ranks.main else None


def carry_out(options: Train, ranks: Ranks) -> None:
    """Train the run, or resume it."""
    with ranks.together():
        dataset = open_pictures(options)
        classes = dataset.classes() if options.pictures.classes else ()
    config = options.resolve(dataset.name, dataset.channels, classes)
    folder = options.out or default_folder(dataset.name, options.process_name)
    observers: list[Observer] = [SampleGrids(), *([TensorBoard()] if options.tensorboard else [])]
    if ranks.main:
        where = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
        (height, width), method = config.size, config.method
        print(f"{dataset.description}; {height} x {width} pixels, preset {options.preset}")
        print(f"{options.process_name}, Pe = {method.operator.peclet:g}, K = {method.levels} levels, on {where} -> {folder}")

    score = early = None
    if options.execution.score_every:
        with ranks.together():
            score = scorer(options, ranks.device)
    if options.stop_after is not None:
        early = EarlyStop(options.stop_after)
        observers.append(early)
    with console.signals_noted() as arrived:
        observers.append(Signals(arrived))
        execution, init = options.execution, options.init
        complete = train(config, dataset, folder, ranks.device, execution, init=init, observers=observers, score=score)
    if ranks.main and complete:
        print(f"trained; sample with: python -m cli.sample {folder}")
    elif ranks.main and early is not None and early.should_stop():
        print(f"stopped, no better in {options.stop_after} scores; sample with: python -m cli.sample {folder} --best")
    elif ranks.main:
        print(f"interrupted and saved; the same command goes on with {folder}")


class Signals(Observer):
    """Stops a training when a signal has arrived."""

    def __init__(self, arrived: Callable[[], bool]) -> None:
        self.arrived = arrived

    def should_stop(self) -> bool:
        return self.arrived()


def scorer(options: Train, device: torch.device) -> Callable[[Pipeline], float | None]:
    """What gives the Frechet distance to the pictures that are learned, on 500 samples."""
    how = options.pictures
    config = EvaluationConfig(num=SCORED, split=how.split, size=options.size, data_root=how.data_root, data_cache=how.data_cache)
    return frechet_scorer(options.data, config, device)


def open_pictures(options: Train) -> ImageDataset | ImageStream:
    """The data set that the options name, or the half of it that they ask for."""
    how = options.pictures
    return open_dataset(
        options.data, options.size, how.data_root, grey=how.grey or None, stream=how.stream, split=how.split, cache=how.data_cache
    )


def default_folder(data: str, process: str) -> Path:
    """The run folder by default: runs/<data>-<process>, with the half of the data where it is one."""
    whole, split = whole_and_half(data)
    return Path("runs") / "-".join([Path(whole).stem, *([] if split == "all" else [split]), process])


main = partial(console.run, "train", run, parse)


if __name__ == "__main__":
    main()
