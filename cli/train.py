"""Train a network to undo a corruption process."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from cli import console, signals
from diffusion.augmentation import Augmentation, GeometricAugmentation
from diffusion.data.dataset import (
    ImageDataset,
    ImageStream,
    find_source,
    grey_or_colour,
    name_of_half,
    open_dataset,
)
from diffusion.data.hub import Stream
from diffusion.data.images import share_at_ends
from diffusion.denoisers import Remainder
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.scoring import frechet_scorer
from diffusion.files import owned
from diffusion.forward.operators import TURBULENCE
from diffusion.learning_rate import WarmUpAndDecay
from diffusion.methods import METHODS, Method, named_method
from diffusion.network import NetworkConfig, NetworkSpec
from diffusion.presets import OWN, PRESETS, REAL, is_known, preset_for, with_blur_of, with_decay
from diffusion.run import RunConfig, TrainingConfig, load_config
from diffusion.sampling.pipeline import Pipeline
from diffusion.size import Size
from diffusion.training.estimate import TimeLeft, Work, accumulation, in_words, memory, predicted_seconds, seconds_per_image
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import EarlyStop, Observer, SampleGrids, TensorBoard
from diffusion.training.ranks import Ranks
from diffusion.training.trial import measured_speed
from diffusion.weighting import WEIGHTINGS, Weighting
from lbm_warp import Turbulence
from lbm_warp.checks import InputError, amount, check_integer

SCORED = 500
PROBES = 256
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


@registry.primitive_rule
def _augmentation(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Augmentation] | None:
    """An augmentation on the command line: its probability, 0 for none."""
    if not isinstance(info.type, type) or not issubclass(info.type, Augmentation):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="P",
        instance_from_str=lambda words: GeometricAugmentation(float(words[0])) if float(words[0]) else Augmentation(),
        is_instance=lambda value: isinstance(value, Augmentation),
        str_from_instance=lambda value: [f"{getattr(value, 'probability', 0.0):g}"],
    )


@registry.primitive_rule
def _weighting(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Weighting] | None:
    """A weighting of levels on the command line: its name in ``WEIGHTINGS``."""
    if not isinstance(info.type, type) or not issubclass(info.type, Weighting):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(WEIGHTINGS)}}}",
        instance_from_str=lambda words: WEIGHTINGS[words[0]],
        is_instance=lambda value: isinstance(value, Weighting),
        str_from_instance=lambda value: [
            next((name for name, known in WEIGHTINGS.items() if known == value), type(value).__name__)
        ],
        choices=tuple(WEIGHTINGS),
    )


@dataclass(frozen=True)
class Choice:
    """The options that choose the defaults of the others."""

    preset: Annotated[str, tyro.conf.arg(help=PRESET)] = ""
    data: str = ""
    """Pictures to learn: digits (built in), a folder or ZIP archive of images, parquet files, hf:owner/name (a set of the Hugging
    Face Hub), or ffhq, afhq, lsun-church, cifar10, mnist, fashion-mnist, emoji (a local copy, else the Hub's if it has one)."""
    size: str = ""
    """Size of the training images in pixels: one number for squares, or height x width such as 96x128. By default 16 for digits, 28
    for mnist and fashion-mnist, 32 for cifar10 and emoji, 128 for ffhq and lsun-church, else 64."""
    process_name: Annotated[str, tyro.conf.arg(name="process", help=PROCESS)] = ""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True)
class PictureOptions:
    """How the pictures are read."""

    data_root: Path | None = None
    """Folder of named data sets; by default the environment variable BEYOND_BLUR_DATA, or ./data."""
    data_cache: Path | None = None
    """Folder of prepared pictures; ~/.cache/beyond-blur/data by default."""
    grey: bool = False
    """Turn colour pictures to grey. By default pictures are grey if all are, of 256 that are looked at."""
    colour: bool = False
    """Keep colour, also of pictures that look grey."""
    stream: bool = False
    """Read a data set of the Hub as a stream, without keeping a copy."""
    split: Literal["all", "even", "odd"] = "all"
    """Pictures to learn: all, or those of even or odd number; cli.evaluate then compares with the others."""
    classes: bool = False
    """Learn the classes of the pictures too, for cli.sample --label: of named sets, folders of folders, dataset.json, the Hub."""


@dataclass(frozen=True)
class Execution(ExecutionConfig):
    """How a training is carried out; the device has been chosen."""

    compile: bool = False
    """Compile the network with torch.compile, by default on CUDA: faster steps after a longer first one. Where that does not work,
    it is said, and the network is trained as it is. On a CPU it needs a C++ compiler."""


@dataclass(frozen=True)
class Train(Choice):
    """Options of ``python -m cli.train``. Their defaults are those of the preset."""

    out: Path | None = None
    """Run folder; runs/<data>-<process> by default. The same command resumes a run that was interrupted."""
    grids: bool = True
    """Draw a grid of samples at every checkpoint."""
    tensorboard: bool = False
    """Write losses, speed and samples to <run folder>/tensorboard as well."""
    dry_run: bool = False
    """Print the run, its number of parameters, its memory, its rough time here and its lattice iterations as JSON, and write
    nothing."""
    measure: bool = False
    """With --dry-run: train on random pictures for some seconds, keep nothing, and say what the training takes at this speed."""
    init: str | None = None
    """Begin from the weights of another run: its folder, owner/name on the Hugging Face Hub, or digits, fashion or emoji."""
    stop_after: int | None = None
    """Stop when the score has become no better in this many scores; goes with --score-every."""
    training: Annotated[TrainingConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingConfig)
    method: Annotated[Method, tyro.conf.OmitArgPrefixes] = field(default_factory=lambda: named_method("fluid"))
    network: NetworkSpec = field(default_factory=NetworkConfig)
    pictures: Annotated[PictureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PictureOptions)
    execution: Annotated[Execution, tyro.conf.OmitArgPrefixes] = field(default_factory=Execution)
    words: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The command line."""

    def suited(self, channels: int, count: int | None, probes: np.ndarray) -> Train:
        """The options of the same command line with the defaults that suit so many pictures, and the run that is there already.

        ``probes`` are some of the pictures, uint8 [N, C, H, W].
        """
        folder = self.out or default_folder(self)
        return parse(self.words, Found(channels, count, share_at_ends(probes), folder, self.execution.hours))

    def resolve(self, data: str, channels: int, classes: tuple[str, ...] = ()) -> RunConfig:
        """The run on pictures of this name and number of channels, with these classes.

        Raises:
            InputError: if a value is out of its range, or values do not fit each other.
        """
        return RunConfig(self.process_name, data, channels, Size.of(self.size), self.method, self.network, self.training, classes)

    def check(self) -> None:
        """Raise InputError if a value is out of its range, or values do not fit each other; no picture is read."""
        self.execution.validate()
        grey_or_colour(self.pictures.grey, self.pictures.colour)
        if self.measure and not self.dry_run:
            raise InputError("--measure goes with --dry-run; a training says its speed by itself")
        if self.stop_after is not None:
            check_integer("--stop-after", self.stop_after, 1)
            if self.execution.score_every is None:
                raise InputError("--stop-after counts scores; say how often to score with --score-every")
        self.resolve(self.data, channels=3)


@dataclass(frozen=True)
class Found:
    """What the defaults depend on beside the choice."""

    channels: int
    count: int | None
    """Number of the pictures, if it is known."""
    at_ends: float
    """Share of their pixels that are black or white."""
    folder: Path
    """The run folder."""
    hours: float | None


def parse(args: Sequence[str], found: Found | None = None, **shown: Any) -> Train:
    """The options of a command line; those that it does not give are the preset's.

    Args:
        args: the command line.
        found: what is known of pictures and run folder, once the pictures are open.
        shown: further arguments of ``tyro.cli``.

    Raises:
        InputError: if it names a preset or a process that does not exist.
    """
    with registry:
        chosen = partial(tyro.cli, Choice, return_unknown_args=True, add_help=False)
        choice, _ = console.parsed(chosen, args=args, **shown)
        usual = replace(defaults(choice, found), words=tuple(args))
        try:
            return console.parsed(partial(tyro.cli, Train, default=usual), args=args, **shown)
        except AssertionError as error:  # tyro's, where a method of another package has a name twice
            raise InputError(
                f"process {usual.process_name}: two of its values, or one and an option, have one name ({error})"
            ) from None


def defaults(choice: Choice, found: Found | None = None) -> Train:
    """The options of the preset that is chosen, or that suits the data; with another process, that process's own."""
    size, device = Size.of(choice.size) if choice.size else None, choice.device
    gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    channels, count, at_ends = (found.channels, found.count, found.at_ends) if found else (3, None, 0.0)
    name, config = preset_for(choice.data, size, choice.preset, gpu=gpu, channels=channels, count=count, at_ends=at_ends)
    if found and name in OWN and not choice.preset:
        config = as_recorded(config, found.folder)
    if found and found.hours is not None:
        config = with_decay(config)
    process_name, method = choice.process_name or config.process_name, config.method
    if process_name != config.process_name:
        method = with_blur_of(named_method(process_name), method)
    every = min(max(config.training.images // 4, 1), MOST_BETWEEN_CHECKPOINTS)
    return Train(
        preset=name,
        data=config.data,
        size=str(config.size),
        process_name=process_name,
        method=method,
        network=config.network,
        training=config.training,
        execution=Execution(checkpoint_every=every, compile=gpu, precision="bf16" if gpu and has_bf16() and name in REAL else None),
    )


def has_bf16() -> bool:
    """Whether the GPU computes in bfloat16 (from Ampere on), rather than by way of float32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def as_recorded(config: RunConfig, folder: Path) -> RunConfig:
    """The run with network, its input, learning rate, length and mirroring of the one in a folder.

    They follow from device and number of pictures, which may have changed since it began.
    """
    try:
        there = load_config(folder)
    except InputError:
        return config
    by_command = isinstance(there.network, NetworkConfig) and isinstance(there.training.schedule, WarmUpAndDecay)
    if (there.size, there.channels) != (config.size, config.channels) or not by_command:
        return config  # another run, which is refused
    kept = {name: getattr(there.training, name) for name in ("schedule", "images", "flip")}
    method = config.method
    if isinstance(denoiser := there.method.denoiser, Remainder):
        method = method.changed(tell_ends=denoiser.tell_ends)
    return replace(config, method=method, network=there.network, training=replace(config.training, **kept))


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
    channels = {config.data: config.channels for name, config in PRESETS.items() if name not in OWN}.get(options.data)
    name, how, count, probes = options.data, options.pictures, None, np.empty(0)
    grey = grey_or_colour(how.grey, how.colour)
    if channels is None:
        found = find_source(name, Size.of(options.size), how.data_root, grey, how.stream)
        name, source, channels, probes = found.name, found.source, found.channels, found.probes(PROBES)
        count = source.count if isinstance(source, Stream) else len(source.names)
    channels = channels if grey is None else 1 if grey else 3
    options = options.suited(channels, count, probes)
    classes = open_pictures(options).classes() if how.classes else ()
    config = options.resolve(name_of_half(name, how.split), channels, classes)
    iterations, shares = config.method.operator.iterations(*config.size), config.method.density.shares(config.forward)
    precision = options.execution.precision or ranks.precision
    execution = replace(options.execution, accumulate=options.execution.accumulate or accumulation(config, ranks, precision))
    parts = ranks.count * (execution.accumulate or 1)
    images, need = -(-config.training.batch // parts), memory(config, ranks.device, precision)
    if options.measure:
        with redirect_stdout(sys.stderr):
            speed = measured_speed(config, ranks, execution)
        here = {"time_here": in_words(config.training.images / speed), "images_per_second": round(speed, 2)}
        here |= Work(config, ranks, precision).at(speed)
    else:
        here = {"very_rough_time_here": in_words(config.training.images * seconds_per_image(config, ranks.device) / ranks.count)}
    predicted = predicted_seconds(config)
    report = {
        "preset": options.preset,
        "config": config.to_json(),
        "parameters": sum(parameter.numel() for parameter in config.build_network(empty=True).parameters()),
        "processes": ranks.count,
        "images_at_a_time": images,
        "memory_bytes": {"total": need.total(images)} | asdict(need),
        **here,
        **({} if predicted is None else {"predicted_time_on_one_h200_in_bf16": in_words(predicted)}),
        "corruption_iterations": {
            "mean_per_image": round(float(iterations[1:] @ shares), 1),
            "whole_trajectory": round(float(iterations[-1]), 1),
        },
    }
    return report if ranks.main else None


def carry_out(options: Train, ranks: Ranks) -> None:
    """Train the run, or resume it."""
    folder = options.out or default_folder(options)
    with ranks.together():
        if ranks.main:
            with owned(folder):  # whether it can be written, and is free: known before pictures are prepared
                pass
        dataset = open_pictures(options, folder)
        options = options.suited(dataset.channels, count_of(dataset), dataset.probes(PROBES))
        classes = dataset.classes() if options.pictures.classes else ()
    config = options.resolve(dataset.name, dataset.channels, classes)
    observers: list[Observer] = [TimeLeft(ranks.device, ranks.count, options.execution.hours, shorter(options, ranks.device))]
    observers += [*([SampleGrids()] if options.grids else []), *([TensorBoard()] if options.tensorboard else [])]
    if ranks.main:
        where = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
        (height, width), method = config.size, config.method
        print(f"{dataset.description}; {height} x {width} pixels, preset {options.preset}")
        print(f"{options.process_name}, Pe = {method.operator.peclet:g}, K = {method.levels} levels, on {where} -> {folder}")
        if (meant := config.training.rate_batch) not in (None, batch := config.training.batch):
            print(f"the learning rate is multiplied by sqrt({batch} / {meant}): it is for batches of {meant} (--rate-batch)")
        if config.training.augment.told:
            print("pictures are mirrored, shifted, turned and stretched, and the network is told so (--augment 0 leaves that out)")
        if isinstance(denoiser := config.method.denoiser, Remainder) and denoiser.tell_ends:
            print("many pixels are black or white: the network is told how far each is from them (--no-tell-ends)")
        if options.preset in OWN and isinstance(network := config.network, NetworkConfig) and network.dropout:
            mirrored = ", and they are mirrored at random (--no-flip if left and right matter, as in letters)"
            print(f"few pictures: dropout {network.dropout:g}{mirrored if config.training.flip else ''}")

    score = None
    if options.execution.score_every:
        with ranks.together():
            score = scorer(options, ranks.device)
    if options.stop_after is not None:
        observers.append(EarlyStop(options.stop_after))
    with signals.noted() as arrived:
        observers.append(Signals(arrived))
        execution, init = options.execution, options.init
        complete = train(config, dataset, folder, ranks.device, execution, init=init, observers=observers, score=score)
    # A launcher sends its signal to one process, or to all.
    signal = 0 if complete else ranks.largest(arrived())
    if ranks.main and complete:
        print(f"trained; sample with: {console.program('sample')} {folder}")
    elif ranks.main and signal:
        print(f"interrupted and saved; the same command goes on with {folder}")
    elif ranks.main:
        scores = amount(options.stop_after or 0, "score")
        print(f"stopped, no better in {scores}; sample with: {console.program('sample')} {folder} --best")
    if signal:
        sys.exit(128 + signal)


def count_of(dataset: ImageDataset | ImageStream) -> int | None:
    """Number of pictures, if it is known without reading them."""
    return dataset.source.count if isinstance(dataset, ImageStream) else len(dataset)


def shorter(options: Train, device: torch.device) -> str:
    """What to do about a training that takes days."""
    other = "small" if device.type == "cpu" else "large"
    hours = "--hours 2 ends in time, with what can be learned by then"
    return hours if options.preset in ("small", other) else f"--preset {other} takes hours; {hours}"


class Signals(Observer):
    """Stops a training when a signal has arrived."""

    def __init__(self, arrived: Callable[[], int]) -> None:
        self.arrived = arrived

    def should_stop(self) -> bool:
        return bool(self.arrived())


def scorer(options: Train, device: torch.device) -> Callable[[Pipeline], float | None]:
    """What gives the Frechet distance to the pictures that are learned, on 500 samples."""
    how = options.pictures
    read = {name: getattr(how, name) for name in ("split", "grey", "colour", "data_root", "data_cache")}
    config = EvaluationConfig(num=SCORED, size=options.size, **read)
    return frechet_scorer(options.data, config, device)


def open_pictures(options: Train, folder: Path | None = None) -> ImageDataset | ImageStream:
    """The data set that the options name, or the half of it that they ask for; if they leave it open, as grey or colourful as the
    run in a folder."""
    how = options.pictures
    grey = grey_or_colour(how.grey, how.colour)
    if grey is None and folder is not None:
        with suppress(InputError):
            grey = load_config(folder).channels == 1
    return open_dataset(
        options.data, options.size, how.data_root, grey=grey, stream=how.stream, split=how.split, cache=how.data_cache
    )


def default_folder(options: Train) -> Path:
    """The run folder by default: runs/<data>-<process>, with the half of the data where it is one."""
    split = options.pictures.split
    # Of one's own pictures there is a single run by default; of a known set also that of its preset.
    sized = [options.preset] if options.preset in OWN and is_known(options.data) else []
    return Path("runs") / "-".join([short_name(options.data), *([] if split == "all" else [split]), options.process_name, *sized])


def short_name(data: str) -> str:
    """What folders are called after pictures: the last name of a path or of a set of the Hub."""
    place = re.split("[@:]", data.removeprefix("hf:"))[0] if data.startswith("hf:") else data
    return Path(os.path.expanduser(place)).resolve().stem


# What --help shows; --help-all shows the rest.
COMMON = (
    "--data --preset --process --size --out --images --hours --peclet --classes --split --grey --init --score-every "
    "--batch --learning-rate --seed --precision --device --dry-run"
).split()
main = partial(console.run, "train", run, parse, common=COMMON)


if __name__ == "__main__":
    main()
