"""Train a network to undo a corruption process."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from PIL import Image
from torch import nn

from cli import console, render
from diffusion.config import RunConfig, TrainingConfig
from diffusion.data.dataset import ImageDataset, ImageStream, find_source, name_of_half, open_dataset, whole_and_half
from diffusion.data.loader import default_workers
from diffusion.network import NetworkConfig
from diffusion.presets import PRESETS, preset, preset_for
from diffusion.process import ForwardProcess, named_process
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from diffusion.training.estimate import iterations, memory, meta_network
from diffusion.training.loop import train
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError, check_integer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GRID_SAMPLES = 36
# Checkpoints of a preset: four in a short training, every 320,000 images (10,000 published steps of 32) in a long one.
MOST_BETWEEN_CHECKPOINTS = 320_000


@dataclass(frozen=True)
class Train:
    """Options of ``python -m cli.train``. Their defaults are those of the preset."""

    preset: str = "digits"
    """Values that belong together: digits, cifar10, ffhq-64, ffhq-128, ffhq-256, lsun-church-128, afhq-64; by default --data's."""
    data: str = "digits"
    """Pictures to learn: digits (built in), a folder of images, a ZIP archive of images, hf:owner/name (a set of the Hugging Face
    hub) or ffhq, afhq, lsun-church, cifar10, mnist (a local copy, or else the hub's)."""
    data_root: Path | None = None
    """Where named data sets lie; the environment variable BEYOND_BLUR_DATA or ./data if left out."""
    data_cache: Path | None = None
    """Folder where prepared pictures are kept; ~/.cache/beyond-blur/data if left out."""
    size: int = 16
    """Side of the training images in pixels; by default 16 for digits, 28 mnist, 32 cifar10, 128 ffhq and lsun-church, else 64."""
    grey: bool = False
    """Turn colour pictures to grey."""
    stream: bool = False
    """Read a set of the hub as a stream, without keeping a copy."""
    workers: int | None = None
    """Processes that read images; by default 0 (threads), or for image files as many as there are CPU cores to spare."""
    split: Literal["all", "even", "odd"] = "all"
    """Pictures to learn: all, or those of even or odd number, to hold the others out for cli.evaluate."""
    process: str = "beyond-blur"
    """beyond-blur (compressible flow, as published), beyond-blur-curl (pure transport), ihd, blurring, soft, cold, ddpm, or
    structured-noise (a control); the values below are its own unless given."""
    peclet: float = 0.1
    """Advection against diffusion, >= 0."""
    turbulence: Literal["curl-noise", "spectral", "compressible"] = "compressible"
    """Kind of velocity field."""
    offset: float = 9.5
    """Background the flow acts on (felt by compressible flows only)."""
    transport: bool = True
    """Whether the flow carries the image; if not, it makes its structured noise alone."""
    boundary: Literal["wall", "periodic"] = "wall"
    """What happens at the border."""
    blur: Literal["geometric", "sine", "exponential", "none"] = "geometric"
    """How the blur grows with the level."""
    sigma_min: float = 0.5
    """Blur of level 1 in pixels, where it grows geometrically."""
    sigma_max: float = 0.5
    """Blur of the last level, as a fraction of the image side."""
    levels: int = 60
    """Number of levels K."""
    signal: Literal["constant", "linear-beta", "cosine"] = "constant"
    """How the contrast fades with the level."""
    noise: float = 0.01
    """Standard deviation of the noise of the last level."""
    noise_schedule: Literal["constant", "geometric", "variance-preserving"] = "constant"
    """How the noise grows with the level."""
    target: Literal["step", "clean", "noise"] = "step"
    """What the network finds: the step to the level before, the clean image, or the noise."""
    sampler: Literal["residual", "resample", "ancestral"] = "residual"
    """How samples are drawn; residual goes with target step."""
    sampling_noise: float = 1.25
    """Standard deviation of the noise that sampling adds, in units of --noise."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    checkpoint_every: int = 32_000
    """Images between checkpoints (each also writes a grid of samples)."""
    keep_every: int | None = None
    """Keep a checkpoint every so many images for good; without it the last two."""
    precision: Literal["fp32", "bf16"] | None = None
    """Of the network's arithmetic: what accelerate launch says, fp32 without. The corruption is always computed in fp32."""
    accumulate: int = 1
    """Pieces a batch is trained in, one after the other: less memory, the same result."""
    compile: bool = False
    """Speed the network up with torch.compile; takes minutes at first."""
    tensorboard: bool = False
    """Write losses, speed and samples to <run folder>/tensorboard as well."""
    dry_run: bool = False
    """Print the run, its number of parameters, its memory and its lattice iterations as JSON, and write nothing."""
    out: Path | None = None
    """Run folder; runs/<data>-<process> if left out. The same command goes on with a run that was interrupted."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def defaults(arguments: Sequence[str]) -> Train:
    """The options in force unless given: those of the preset that the command line names, or that suits the data it names.

    Raises:
        InputError: if it names a preset or a process there is not.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("preset", "data", "size", "process"):
        parser.add_argument(f"--{name}", nargs="?")
    given = parser.parse_known_args(arguments)[0]
    if given.preset is not None:
        name, config = given.preset, preset(given.preset)
    else:
        size = int(given.size) if given.size is not None and given.size.isdecimal() else None
        name, config = preset_for(given.data or "digits", size)
    process_name = given.process or config.process_name
    process = config.process
    if process_name != config.process_name:
        # Another process on the preset's levels, and on its blur if that grows alike.
        other = replace(named_process(process_name), levels=process.levels)
        process = replace(other, sigma_min=process.sigma_min, sigma_max=process.sigma_max) if other.blur == process.blur else other
    return Train(
        preset=name,
        data=config.data,
        size=config.size,
        process=process_name,
        **asdict(process),
        network=config.network,
        training=config.training,
        checkpoint_every=min(config.training.images // 4, MOST_BETWEEN_CHECKPOINTS),
    )


def run(options: Train) -> None:
    """Resolve the options into a run, train it, say where it is."""
    check(options)
    device = None if options.device == "auto" else console.pick_device(options.device)
    ranks = Ranks(device)
    try:
        if options.dry_run:
            report = plan(options, ranks)
            if ranks.main:
                print(json.dumps(report, indent=2))
        else:
            carry_out(options, ranks)
    finally:
        ranks.close()


def check(options: Train) -> None:
    """Raise InputError if an option is out of its range, or options do not fit each other; the pictures are not looked at."""
    check_integer("--checkpoint-every", options.checkpoint_every, 1)
    if options.keep_every is not None:
        check_integer("--keep-every", options.keep_every, 1)
    check_integer("--accumulate", options.accumulate, 1)
    check_integer("--size", options.size, 2)
    if options.workers is not None:
        check_integer("--workers", options.workers, 0)
    resolve(options, options.data, channels=3)


def plan(options: Train, ranks: Ranks) -> dict[str, object]:
    """What ``--dry-run`` prints. Pictures are looked at only where no preset knows how many channels they have."""
    if options.data in {config.data for config in PRESETS.values()}:
        channels = 1 if options.grey else next(config.channels for config in PRESETS.values() if config.data == options.data)
        name = name_of_half(options.data, options.split)
    else:
        size = Size.of(options.size)
        whole, _, _, channels = find_source(options.data, size, options.data_root, options.grey or None, options.stream)
        name = name_of_half(whole, options.split)
    config = resolve(options, name, channels)
    operator = config.process.operator(config.size)
    lattice = operator is not None and operator.solver == "lattice"
    cost = iterations(operator.march(config.size, config.size)) if lattice else np.zeros(config.process.levels + 1)
    images = -(-config.training.batch // (ranks.count * options.accumulate))
    need = memory(config, ranks.device, options.precision or ranks.precision)
    return {
        "preset": options.preset,
        "config": asdict(config),
        "parameters": sum(parameter.numel() for parameter in meta_network(config).parameters()),
        "processes": ranks.count,
        "images_at_a_time": images,
        "memory_bytes": {"total": need.total(images)} | asdict(need),
        "corruption_iterations": {
            "mean_per_image": round(float(cost[1:].mean()), 1),
            "whole_trajectory": round(float(cost[-1]), 1),
        },
    }


def carry_out(options: Train, ranks: Ranks) -> bool:
    """Train the run that the options describe, or go on with it; returns whether it is complete, and not interrupted."""
    with ranks.together():
        dataset = open_pictures(options)
    config = resolve(options, dataset.name, dataset.channels)
    folder = options.out or default_folder(dataset.name, options.process)
    board = Board(folder / "tensorboard") if options.tensorboard else None
    if ranks.main:
        where = f"{ranks.count} x {ranks.device.type}" if ranks.count > 1 else str(ranks.device)
        process = config.process
        print(f"{dataset.description}; {config.size} x {config.size} pixels, preset {options.preset}")
        print(f"{options.process}, Pe = {process.peclet:g}, K = {process.levels} levels, on {where} -> {folder}")

    def on_log(line: dict[str, float]) -> None:
        if board:
            board.add_scalars(line)

    def on_checkpoint(images: int, network: nn.Module, prior: Prior) -> None:
        samples = Pipeline(config, network, prior).sample(GRID_SAMPLES)
        grid = folder / "samples" / f"{images:09d}.png"
        render.save_grid(grid, samples)
        if board:
            board.add_grid(grid, images)

    with Interruption() as interruption:
        complete = train(
            config,
            dataset,
            folder,
            ranks.device,
            precision=options.precision,
            accumulate=options.accumulate,
            compile=options.compile,
            workers=default_workers(dataset, ranks.count) if options.workers is None else options.workers,
            checkpoint_every=options.checkpoint_every,
            keep_every=options.keep_every,
            should_stop=interruption.came,
            on_log=on_log,
            on_checkpoint=on_checkpoint,
        )
    if ranks.main and complete:
        print(f"trained; sample with: python -m cli.sample {folder}")
    elif ranks.main:
        print(f"interrupted and saved; the same command goes on with {folder}")
    return complete


def open_pictures(options: Train) -> ImageDataset | ImageStream:
    """The data set that the options name, or the half of it that they ask for."""
    return open_dataset(
        options.data,
        options.size,
        options.data_root,
        grey=options.grey or None,
        stream=options.stream,
        split=options.split,
        cache=options.data_cache,
    )


def default_folder(data: str, process: str) -> Path:
    """Where a run goes unless told: runs/<data>-<process>, with the half of the data where it is one."""
    whole, split = whole_and_half(data)
    return Path("runs") / "-".join([Path(whole).stem, *([] if split == "all" else [split]), process])


def resolve(options: Train, data: str, channels: int) -> RunConfig:
    """The run that the options describe on pictures of this name and number of channels.

    Raises:
        InputError: if a value is out of its range, or values do not fit each other.
    """
    process = ForwardProcess(**{value.name: getattr(options, value.name) for value in fields(ForwardProcess)})
    return RunConfig(options.process, data, channels, options.size, process, options.network, options.training)


class Board:
    """TensorBoard's event files. Lines and grids of a run that went back to a checkpoint replace those after it.

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
        writer = self._opened(line["images"])
        for name, value in line.items():
            if name != "images":
                writer.add_scalar(name, value, line["images"])
        writer.flush()

    def add_grid(self, picture: Path, images: int) -> None:
        """Add a grid of samples that was written as a picture."""
        writer = self._opened(images)
        with Image.open(picture) as grid:
            writer.add_image("samples", np.asarray(grid), images, dataformats="HWC")
        writer.flush()

    def _opened(self, images: int) -> SummaryWriter:
        """The event file, made when there is something to write; of older ones, all from ``images`` on is hidden."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.folder, purge_step=images)
        return self._writer


class Interruption:
    """Turns SIGINT and SIGTERM into a question the training loop asks, so that it ends between two steps, with a checkpoint."""

    def __init__(self) -> None:
        self._came = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def came(self) -> bool:
        """Whether a signal has arrived."""
        return self._came


if __name__ == "__main__":
    console.run(run, Train, "train", defaults)
