"""Training: fresh corruption of every image in every step, on the training device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from diffusion.batches import batches
from diffusion.checkpoint import RunConfig, load_config, load_metadata, load_prior, load_tensors, save_config, save_tensors
from diffusion.ema import EMA
from diffusion.files import whole_file
from diffusion.prior import Prior
from diffusion.process import ForwardProcess
from diffusion.rng import below, seeds
from lbm_warp.checks import InputError

LOG_STEPS = 25


def train(
    config: RunConfig,
    dataset: Sequence[np.ndarray],
    folder: Path,
    device: torch.device,
    *,
    checkpoint_every: int = 32_000,
    workers: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[int, nn.Module, Prior], None] = lambda images, network, prior: None,
) -> bool:
    """Train a run, or go on with it where its last checkpoint left it.

    Args:
        config: the run. A folder that holds another run is refused; only the length of the training may differ.
        dataset: pictures, float32 [C, S, S] in [0, 1].
        folder: run folder, made if missing.
        device: where to corrupt and to train.
        checkpoint_every: images between checkpoints.
        workers: processes that read images.
        should_stop: asked after every step; on True the run is checkpointed and left.
        on_checkpoint: called as ``on_checkpoint(images_seen, averaged_network, prior)`` after every checkpoint.

    Returns:
        Whether the training is complete.

    Raises:
        InputError: if the folder holds another run or damaged files, or if the loss is no longer finite.
    """
    training, process = config.training, config.process
    torch.manual_seed(int(seeds(training.seed, "weights")))
    network = config.build_network().to(device)
    average = EMA(network, training.ema)
    optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    state = TrainingState(network, average, optimiser)
    if (folder / "config.json").exists():
        _check_same_run(folder, config)
    resume_file = folder / "training.safetensors"
    if resume_file.exists():
        state.load(resume_file)
        prior = load_prior(folder, config)
    else:
        prior = Prior.build(dataset, process, device)
        save_tensors(folder / "prior.safetensors", {"thumbnails": prior.thumbnails})
    save_config(folder, config)
    log = MetricsLog(folder / "metrics.jsonl", state.images)

    def checkpoint() -> None:
        state.save(resume_file)
        save_tensors(folder / "model.safetensors", network.state_dict())
        save_tensors(folder / "ema.safetensors", average.network.state_dict())
        on_checkpoint(state.images, average.network, prior)

    network.train()
    progress = tqdm(total=training.images, initial=state.images, desc="training", unit="img", smoothing=0.05)
    run = batches(dataset, training.seed, state.images, training.images, training.batch, workers=workers)
    with progress, run as queue:
        for images in queue:
            before = state.images
            loss = training_step(state, torch.from_numpy(images).to(device), config)
            progress.update(len(images))
            log.add(loss)
            stop = should_stop()
            due = stop or state.images >= training.images or state.images // checkpoint_every > before // checkpoint_every
            if due or log.steps == LOG_STEPS:
                progress.set_postfix(loss=f"{log.write(state.images):.4g}")
            if due:
                checkpoint()
            if stop:
                break
    return state.images >= training.images


class TrainingState:
    """What a step changes: weights, their average, the optimiser's moments, and the number of images seen."""

    def __init__(self, network: nn.Module, average: EMA, optimiser: torch.optim.Adam) -> None:
        self.network = network
        self.average = average
        self.optimiser = optimiser
        self.images = 0

    def save(self, path: Path) -> None:
        """Write everything as one file, so a run that is killed never mixes two moments."""
        moments = {
            f"adam.{name}.{key}": self.optimiser.state[parameter][key]
            for name, parameter in self.network.named_parameters()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        weights = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        averages = {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
        metadata = {"images": str(self.images), "updates": str(self.average.updates)}
        save_tensors(path, moments | weights | averages, metadata)

    def load(self, path: Path) -> None:
        """Take over what :meth:`save` wrote.

        Raises:
            InputError: if the file is damaged or belongs to another network.
        """
        tensors = load_tensors(path)
        try:
            metadata = load_metadata(path)
            self.images, self.average.updates = int(metadata["images"]), int(metadata["updates"])
            for module, prefix in ((self.network, "network."), (self.average.network, "average.")):
                module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            for name, parameter in self.network.named_parameters():
                self.optimiser.state[parameter] = {
                    key: tensors[f"adam.{name}.{key}"].to("cpu" if key == "step" else parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a checkpoint of this network ({' '.join(str(error).split())[:200]})") from None


def training_step(state: TrainingState, u0: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """One step of Adam on a batch of clean images; returns the mean loss, still on its device.

    Everything random is a function of the run's seed and the images' places in the run.
    """
    training = config.training
    sample = seeds(training.seed, "image", np.arange(state.images, state.images + len(u0)))
    level = 1 + below(config.process.levels, sample, "level")
    torch.manual_seed(int(seeds(training.seed, "dropout", state.images)))
    loss = reconstruction_loss(state.network, u0, level, sample, config.process)

    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
    state.images += len(u0)
    for group in state.optimiser.param_groups:
        group["lr"] = training.learning_rate * min(1.0, state.images / max(training.warmup, 1))
    state.optimiser.step()
    state.average.update(state.network)
    return loss.detach()


def reconstruction_loss(
    network: nn.Module, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor, process: ForwardProcess
) -> torch.Tensor:
    """Squared error of the less corrupted image, summed over pixels, mean over the batch (Rissanen et al. 2023).

    Args:
        network: predicts the correction; called as ``network(u, level)``.
        u0: clean images, float32 [N, C, S, S].
        level: int64 [N] on the CPU, 1 to K.
        seed: one integer an image, int64 [N].
        process: the forward process.
    """
    corrupted, target = process.training_pair(u0, level, seed)
    prediction = corrupted + network(corrupted, level.to(u0.device))
    return (prediction - target).square().flatten(1).sum(dim=1).mean()


class MetricsLog:
    """metrics.jsonl: one line every few steps. Lines after the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, images: int) -> None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["images"] <= images]
        with whole_file(path) as aside:
            aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.path = path
        self.images = images
        self.start = time.perf_counter()
        self.losses: list[torch.Tensor] = []

    @property
    def steps(self) -> int:
        """Steps since the last line."""
        return len(self.losses)

    def add(self, loss: torch.Tensor) -> None:
        """Remember a step's loss; nothing waits for the device before the next line."""
        self.losses.append(loss)

    def write(self, images: int) -> float:
        """Write a line and return the mean loss since the last one.

        Raises:
            InputError: if a loss is not finite.
        """
        loss = torch.stack(self.losses).double().mean().item()
        if not np.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at image {images}; the last checkpoint in {self.path.parent} is from before: "
                "try a smaller --learning-rate"
            )
        elapsed = time.perf_counter() - self.start
        line = {"images": images, "loss": loss, "images_per_second": round((images - self.images) / elapsed, 2)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.losses, self.images, self.start = [], images, time.perf_counter()
        return loss


def _check_same_run(folder: Path, config: RunConfig) -> None:
    """Raise InputError unless the folder's run is this one, but for the length of its training."""
    there = load_config(folder)
    here = replace(config, training=replace(config.training, images=there.training.images))
    if there != here:
        raise InputError(f"{folder} holds another run ({_first_difference(there, here)}); choose another --out")


def _first_difference(there: RunConfig, here: RunConfig) -> str:
    for part in ("process", "network", "training"):
        for name, value in vars(getattr(there, part)).items():
            if value != getattr(getattr(here, part), name):
                return f"its {part} has {name} = {value}, this one {getattr(getattr(here, part), name)}"
    for name, value in vars(there).items():
        if value != getattr(here, name):
            return f"its {name} is {value}, this one's {getattr(here, name)}"
    return "its configuration differs"
