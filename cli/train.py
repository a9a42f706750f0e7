"""Train a network to undo a corruption process."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import numpy as np
import tyro
from torch import nn

from cli import console, render
from cli.sample import generate
from diffusion.batches import default_workers
from diffusion.checkpoint import RunConfig, TrainingConfig
from diffusion.data import open_dataset
from diffusion.network import NetworkConfig
from diffusion.prior import Prior
from diffusion.process import ForwardProcess, named_flow
from diffusion.training import train
from lbm_warp.checks import check_integer

GRID_SAMPLES = 36


@dataclass(frozen=True)
class Train:
    """Options of ``python -m cli.train``."""

    data: str = "digits"
    """Pictures to learn: digits (built in), a folder of images, a ZIP archive of images, hf:owner/name (a set of the Hugging Face
    hub) or ffhq, afhq, lsun-church, cifar10, mnist (a local copy, or else the hub's)."""
    data_root: Path | None = None
    """Where named data sets lie; the environment variable BEYOND_BLUR_DATA or ./data if left out."""
    size: int | None = None
    """Side of the images in pixels; by default 16 for digits, 28 mnist, 32 cifar10, 128 ffhq and lsun-church, 64 for others."""
    grey: bool = False
    """Turn colour pictures to grey."""
    stream: bool = False
    """Read a set of the hub as a stream, without keeping a copy."""
    workers: int | None = None
    """Processes that read images; by default 0 (threads), or for image files as many as there are CPU cores to spare."""
    process: str = "beyond-blur"
    """beyond-blur (compressible flow, as published), beyond-blur-curl (pure transport) or ihd (blur alone)."""
    peclet: float | None = None
    """Peclet number; the process's own (0.1, 2 and 0) by default."""
    sigma_max: float = 0.5
    """Blur of the last level, as a fraction of the image side."""
    levels: int | None = None
    """Number of levels K; 60 up to 32 pixels and 200 above by default."""
    noise: float = 0.01
    """Standard deviation of the noise on what the network sees."""
    boundary: Literal["wall", "periodic"] = "wall"
    """What happens at the border."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")] = field(default_factory=TrainingConfig)
    checkpoint_every: int = 32_000
    """Images between checkpoints (each also writes a grid of samples)."""
    out: Path | None = None
    """Run folder; runs/<data>-<process> if left out. The same command goes on with a run that was interrupted."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def run(options: Train) -> None:
    """Resolve the options into a run, train it, say where it is."""
    device = console.pick_device(options.device)
    check_integer("--checkpoint-every", options.checkpoint_every, 1)
    if options.size is not None:
        check_integer("--size", options.size, 2)
    flow = named_flow(options.process)
    if options.peclet is not None:
        flow = replace(flow, peclet=options.peclet)
    if options.workers is not None:
        check_integer("--workers", options.workers, 0)
    dataset = open_dataset(options.data, options.size, options.data_root, grey=options.grey or None, stream=options.stream)
    levels = options.levels if options.levels is not None else (60 if dataset.size <= 32 else 200)
    process = ForwardProcess(
        **asdict(flow), boundary=options.boundary, sigma_max=options.sigma_max, levels=levels, noise=options.noise
    )
    config = RunConfig(
        process_name=options.process,
        data=dataset.name,
        channels=dataset.channels,
        size=dataset.size,
        process=process,
        network=options.network,
        training=options.training,
    )
    folder = options.out or Path("runs") / f"{Path(dataset.name).stem}-{options.process}"
    print(f"{dataset.description}\n{options.process}, Pe = {process.peclet:g}, K = {levels} levels, on {device} -> {folder}")

    def on_checkpoint(images: int, network: nn.Module, prior: Prior) -> None:
        samples = generate(network, config, prior, np.arange(GRID_SAMPLES), device)
        render.save_grid(folder / "samples" / f"{images:09d}.png", samples)

    with Interruption() as interruption:
        complete = train(
            config,
            dataset,
            folder,
            device,
            checkpoint_every=options.checkpoint_every,
            workers=default_workers(dataset) if options.workers is None else options.workers,
            should_stop=interruption.came,
            on_checkpoint=on_checkpoint,
        )
    if complete:
        print(f"trained; sample with: python -m cli.sample {folder}")
    else:
        print(f"interrupted and saved; the same command goes on with {folder}")


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
    console.run(run, Train, "train")
