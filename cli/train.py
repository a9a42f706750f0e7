"""Train a network to undo a corruption process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import imageio.v3 as iio
import torch
import tyro

from cli import console, render
from diffusion.config import RunConfig, TrainingConfig
from diffusion.data.dataset import ImageDataset, ImageStream, find_source, name_of_half, open_dataset, whole_and_half
from diffusion.evaluation.scoring import EvaluationConfig, frechet_scorer
from diffusion.network import NetworkConfig
from diffusion.presets import PRESETS, preset, preset_for
from diffusion.process import ForwardProcess, named_process
from diffusion.sampling import Pipeline
from diffusion.size import Size
from diffusion.training.estimate import memory, meta_network
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GRID_SAMPLES = 36
SCORED = 500
# A preset's checkpoints: four in a short training, every 320,000 images (10,000 published steps of 32) in a long one.
MOST_BETWEEN_CHECKPOINTS = 320_000


@dataclass(frozen=True)
class Choice:
    """The options that choose the defaults of the others."""

    preset: str | None = None
    """Values that belong together: digits, fashion-mnist, emoji, cifar10, ffhq-64, ffhq-128, ffhq-256, lsun-church-128 or afhq-64,
    which run fluid; or a published run: cifar10-, ffhq-128-, ffhq-256-, lsun-church-128- or afhq-64-published. By default
    --data's."""
    data: str | None = None
    """Pictures to learn: digits (built in), a folder of images, a ZIP archive of images, hf:owner/name (a set of the Hugging Face
    Hub), or ffhq, afhq, lsun-church, cifar10, mnist, fashion-mnist, emoji (a local copy, else the Hub's if it has one)."""
    size: str | None = None
    """Size of the training images in pixels: one number for squares, or height x width such as 96x128. By default 16 for digits, 28
    for mnist and fashion-mnist, 32 for cifar10 and emoji, 128 for ffhq and lsun-church, else 64."""
    process_name: Annotated[str | None, tyro.conf.arg(name="process")] = None
    """fluid (our own), beyond-blur (as published: moving, compressible waves), beyond-blur-frozen (waves that stand still),
    beyond-blur-curl (transport without structured noise), ihd, blurring, soft, cold, ddpm, ddpm-1000, edm, or the controls
    structured-noise and structured-noise-frozen. The process options below have its values unless given."""


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
    training: Annotated[TrainingConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainingConfig)
    process: Annotated[ForwardProcess, tyro.conf.OmitArgPrefixes] = field(default_factory=ForwardProcess)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    pictures: Annotated[PictureOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=PictureOptions)
    execution: Annotated[ExecutionConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=ExecutionConfig)

    def resolve(self, data: str, channels: int, classes: tuple[str, ...] = ()) -> RunConfig:
        """The run on pictures of this name and number of channels, with these classes.

        Raises:
            InputError: if a value is out of its range, or values do not fit each other.
        """
        return RunConfig(self.process_name, data, channels, self.size, self.process, self.network, self.training, classes)

    def check(self) -> None:
        """Raise InputError if a value is out of its range, or values do not fit each other; no picture is read."""
        self.execution.validate()
        self.resolve(self.data, channels=3)
        if self.execution.compile:
            console.check_compiler()


def parse(args: Sequence[str], **shown: object) -> Train:
    """The options of a command line; those that it does not give are the preset's.

    Args:
        args: the command line.
        shown: further arguments of ``tyro.cli``.

    Raises:
        InputError: if it names a preset or a process that does not exist.
    """
    with console.parse_errors():
        choice, _ = tyro.cli(Choice, args=args, return_unknown_args=True, add_help=False, **shown)
        return tyro.cli(Train, args=args, default=defaults(choice), **shown)


def defaults(choice: Choice) -> Train:
    """The options of the preset that is chosen, or that suits the data; with another process, that process's own."""
    size = None if choice.size is None else Size.of(choice.size)
    name, config = (choice.preset, preset(choice.preset)) if choice.preset else preset_for(choice.data or "digits", size)
    process_name, process = choice.process_name or config.process_name, config.process
    if process_name != config.process_name:
        # A published schedule of blur belongs to the data, and holds for every process that blurs by such a one.
        schedule = {name: getattr(process, name) for name in ("sigma_min", "sigma_max", "levels")}
        other = named_process(process_name)
        process = replace(other, **schedule) if other.blur == process.blur == "geometric" else other
    every = min(config.training.images // 4, MOST_BETWEEN_CHECKPOINTS)
    return Train(
        preset=name,
        data=config.data,
        size=str(config.size),
        process_name=process_name,
        process=process,
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
    corruption = config.corruption()
    iterations = corruption.iterations()
    images = -(-config.training.batch // (ranks.count * options.execution.accumulate))
    need = memory(config, ranks.device, options.execution.precision or ranks.precision)
    report = {
        "preset": options.preset,
        "config": config.to_json(),
        "parameters": sum(parameter.numel() for parameter in meta_network(config).parameters()),
        "processes": ranks.count,
        "images_at_a_time": images,
        "memory_bytes": {"total": need.total(images)} | asdict(need),
        "corruption_iterations": {
            "mean_per_image": round(float(iterations[1:] @ corruption.level_shares()), 1),
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
    board = Board(folder / "tensorboard") if options.tensorboard else None
    if ranks.main:
        where = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
        height, width = config.size
        print(f"{dataset.description}; {height} x {width} pixels, preset {options.preset}")
        print(f"{options.process_name}, Pe = {config.process.peclet:g}, K = {config.process.levels} levels, on {where} -> {folder}")

    def on_log(line: dict[str, float]) -> None:
        if board:
            board.add_scalars(line)

    def grid_of(images: int) -> Path:
        return folder / "samples" / f"{images:09d}.png"

    def on_checkpoint(images: int, pipeline: Pipeline) -> None:
        render.save_grid(grid_of(images), pipeline.sample(GRID_SAMPLES))
        if board:
            board.add_grid(grid_of(images), images)

    def on_resume(images: int, pipeline: Pipeline) -> None:
        if not grid_of(images).is_file():
            on_checkpoint(images, pipeline)

    callbacks = {"on_log": on_log, "on_checkpoint": on_checkpoint, "on_resume": on_resume}
    if options.execution.score_every:
        with ranks.together():
            callbacks["score"] = scorer(options, ranks.device)
    with console.signals_noted() as stop:
        complete = train(config, dataset, folder, ranks.device, options.execution, should_stop=stop, **callbacks)
    if ranks.main and complete:
        print(f"trained; sample with: python -m cli.sample {folder}")
    elif ranks.main:
        print(f"interrupted and saved; the same command goes on with {folder}")


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


class Board:
    """TensorBoard's event files. After a run went back to a checkpoint, its new lines and grids replace the later ones.

    Raises:
        InputError: if TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise InputError("--tensorboard: TensorBoard is not installed; pip install tensorboard, or leave the option out")
        self.folder = folder
        self._writer: SummaryWriter | None = None

    def add_scalars(self, line: dict[str, float]) -> None:
        """Add a line of metrics.jsonl."""
        writer = self._at(line["images"])
        for name, value in line.items():
            if name != "images":
                writer.add_scalar(name, value, line["images"])
        writer.flush()

    def add_grid(self, picture: Path, images: int) -> None:
        """Add a grid of samples from its PNG file."""
        writer = self._at(images)
        writer.add_image("samples", iio.imread(picture), images, dataformats="HWC")
        writer.flush()

    def _at(self, images: int) -> SummaryWriter:
        """The writer, made at first use; entries of older files from ``images`` on are hidden."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder, purge_step=images)
        return self._writer


main = partial(console.run, "train", run, parse)


if __name__ == "__main__":
    main()
