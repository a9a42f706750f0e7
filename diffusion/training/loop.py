"""Training: fresh corruption of every image in every step, on the training device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from tqdm import tqdm

from diffusion.config import RunConfig, load_config, save_config
from diffusion.data.loader import batches
from diffusion.files import save_tensors
from diffusion.network import MixedPrecision
from diffusion.rng import below, seeds
from diffusion.sampling.prior import Prior, load_prior
from diffusion.training.checkpoint import Checkpoints, load_checkpoint
from diffusion.training.ema import EMA
from diffusion.training.log import MetricsLog, Stopwatch
from diffusion.training.ranks import Ranks, one_line
from lbm_warp.checks import InputError, check_integer

LOG_STEPS = 25

Precision = Literal["fp32", "bf16"]


def train(
    config: RunConfig,
    dataset: Sequence[np.ndarray],
    folder: Path | str,
    device: torch.device | str | None = None,
    *,
    precision: Precision | None = None,
    accumulate: int = 1,
    compile: bool = False,
    workers: int = 0,
    checkpoint_every: int = 32_000,
    keep_every: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_log: Callable[[dict[str, float]], None] = lambda line: None,
    on_checkpoint: Callable[[int, nn.Module, Prior], None] = lambda images, network, prior: None,
) -> bool:
    """Train a run, or go on with it where its last checkpoint left it.

    Call it in one process, or in each of those that torchrun or accelerate launch started: they share every batch, and the result
    is the same to float tolerance (but for dropout, whose masks differ). Only ``config`` says what the run is; the rest says how it
    is carried out, and may be another when it is resumed.

    Args:
        config: the run. A folder that holds another run is refused; only the length of the training may differ.
        dataset: pictures, float32 [C, S, S] in [0, 1].
        folder: run folder, made if missing; on several machines one that all of them see.
        device: where to corrupt and to train; None is CUDA where there is one. Launched processes take a device of their own each.
        precision: ``fp32``, or ``bf16`` for the network under autocast (the corruption, the loss and the weights stay float32);
            None is what accelerate launch was told, fp32 without.
        accumulate: pieces that a process's share of a batch is trained in, one after the other, to save memory.
        compile: hand the network to torch.compile.
        workers: processes that read pictures ahead; 0 reads in this one.
        checkpoint_every: images between checkpoints.
        keep_every: images between checkpoints that are kept for good; None keeps the last two.
        should_stop: asked after every step, in every process; on True the run is checkpointed and left.
        on_log: called with every line of metrics.jsonl, in the main process alone.
        on_checkpoint: called as ``on_checkpoint(images_seen, averaged_network, prior)`` after every checkpoint, in the main process
            alone.

    Returns:
        Whether the training is complete.

    Raises:
        InputError: if an option is out of its range, the batch cannot be shared out evenly, the folder holds another run or no
            readable checkpoint, a picture cannot be read, a file cannot be written, or the loss is no longer finite. All processes
            raise it, with one message.
    """
    folder, ranks = Path(folder), Ranks(None if device is None else torch.device(device))
    check_integer("checkpoint_every", checkpoint_every, 1)
    if keep_every is not None:
        check_integer("keep_every", keep_every, 1)
    training = config.training
    state = TrainingState.initial(config, ranks.device)
    trainer = Trainer(config, state, ranks, precision=precision, accumulate=accumulate, compile=compile)
    sampler = MixedPrecision(state.average.network) if trainer.precision == "bf16" else state.average.network
    checkpoints = Checkpoints(folder, keep_every)

    def save_for_sampling() -> None:
        save_tensors(folder / "model.safetensors", state.network.state_dict())
        save_tensors(folder / "ema.safetensors", state.average.network.state_dict())

    with ranks.together():
        if (folder / "config.json").exists():
            _check_same_run(folder, config)
        problems = checkpoints.resume(state.load)
    if not ranks.agree(state.images):
        raise InputError(f"{folder}: the processes see different checkpoints; put it where all machines see the same files")
    prior = None
    with ranks.together():
        if ranks.main:
            checkpoints.tidy()
            if checkpoints.good is None:
                prior = Prior.build(dataset, config.process, ranks.device)
                save_tensors(folder / "prior.safetensors", {"thumbnails": prior.thumbnails})
            else:
                for problem in problems:
                    print(f"{problem}; going on from {checkpoints.good}")
                prior = load_prior(folder, config)
                save_for_sampling()
            save_config(folder, config)
        log = MetricsLog(folder / "metrics.jsonl", state.images, ranks)

    def checkpoint() -> None:
        with ranks.together():
            if ranks.main:
                state.save(checkpoints)
        checkpoints.good = checkpoints.path(state.images)
        with ranks.together():
            if ranks.main:
                save_for_sampling()
                on_checkpoint(state.images, sampler, prior)
        log.restart()

    progress = tqdm(
        total=training.images, initial=state.images, desc="training", unit="img", smoothing=0.05, disable=not ranks.main
    )
    reading = batches(
        dataset,
        training.seed,
        state.images,
        training.images,
        training.batch,
        part=(ranks.rank, ranks.count),
        workers=workers,
        flip=training.flip,
    )
    try:
        with progress, reading as queue:
            while state.images < training.images:
                with ranks.together():
                    u0 = next(queue)
                before = state.images
                trainer.step(u0, log)
                progress.update(state.images - before)
                stop = ranks.any(should_stop())
                due = stop or state.images >= training.images or state.images // checkpoint_every > before // checkpoint_every
                if due or len(log.steps) == LOG_STEPS:
                    # The loss is looked at before a checkpoint, so that none ever holds weights that are not finite.
                    line = log.line(state.optimiser.param_groups[0]["lr"])
                    progress.set_postfix(loss=f"{line['loss']:.4g}")
                    with ranks.together():
                        if ranks.main:
                            log.write(line)
                            on_log(line)
                if due:
                    checkpoint()
                if stop:
                    break
    except (InputError, OSError) as error:
        raise InputError(f"{one_line(error)}; {checkpoints.last()}") from error
    return state.images >= training.images


class TrainingState:
    """What a step changes: weights, their average, the optimiser's moments, and the number of images seen."""

    def __init__(self, network: nn.Module, average: EMA, optimiser: torch.optim.Adam) -> None:
        self.network = network
        self.average = average
        self.optimiser = optimiser
        self.images = 0

    @classmethod
    def initial(cls, config: RunConfig, device: torch.device) -> TrainingState:
        """Before the first step: weights from the run's seed, on a device."""
        torch.manual_seed(int(seeds(config.training.seed, "weights")))
        network = config.build_network().to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=config.training.learning_rate)
        return cls(network, EMA(network, config.training.ema), optimiser)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write everything as one file, so a run that is killed never mixes two moments.

        Raises:
            InputError: if it cannot be written.
        """
        moments = {
            f"adam.{name}.{key}": self.optimiser.state[parameter][key]
            for name, parameter in self.network.named_parameters()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
        weights = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        averages = {f"average.{name}": tensor for name, tensor in self.average.network.state_dict().items()}
        checkpoints.save(self.images, moments | weights | averages, {"updates": str(self.average.updates)})

    def load(self, path: Path) -> None:
        """Take over what :meth:`save` wrote.

        Raises:
            InputError: if the file is damaged or belongs to another network.
        """
        tensors, metadata = load_checkpoint(path)
        try:
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


class Trainer:
    """Steps of Adam on batches of clean images, of which every rank trains its share.

    Everything random is a function of the run's seed and the images' places in the run, so a sample's level, flow and noise are the
    same whatever the number of ranks or pieces. Dropout follows the piece: seeded by the place of its first image.

    Args:
        config: the run.
        state: what the steps change. Every rank changes it alike, the average included: equal gradients, equal weights.
        ranks: the processes of the run.
        precision, accumulate, compile: as for :func:`train`.

    Raises:
        InputError: if the batch does not divide into equal pieces, or the precision is unknown.
    """

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        ranks: Ranks,
        *,
        precision: Precision | None = None,
        accumulate: int = 1,
        compile: bool = False,
    ) -> None:
        check_integer("accumulate", accumulate, 1)
        pieces, batch = ranks.count * accumulate, config.training.batch
        if batch % pieces:
            raise InputError(
                f"a batch of {batch} images does not divide into {ranks.count} processes x {accumulate} pieces; "
                f"--batch must be a multiple of {pieces}"
            )
        self.config = config
        self.state = state
        self.ranks = ranks
        self.piece = batch // pieces
        self.precision = ranks.precision if precision is None else precision
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if compile:
            # In place: the names in the state dict stay what they are.
            state.network.compile()
        self.model = ranks.prepare(MixedPrecision(state.network) if self.precision == "bf16" else state.network)

    def step(self, u0: torch.Tensor, log: MetricsLog) -> None:
        """One step on this rank's share of a batch, float32 [n, C, S, S] on the CPU; n may be 0 in the last batch of a run."""
        state, training = self.state, self.config.training
        batch = min(training.batch, training.images - state.images)
        first = state.images + self.ranks.share(batch).start
        state.network.train()
        state.optimiser.zero_grad(set_to_none=True)
        if len(u0):
            pieces = [(len(piece) / batch, piece) for piece in u0.split(self.piece)]
        else:
            # A rank without an image still takes part in the averaging, with one that counts nothing.
            pieces = [(0.0, u0.new_zeros((1, *u0.shape[1:])))]
        losses = []
        for number, (weight, piece) in enumerate(pieces):
            with nullcontext() if number == len(pieces) - 1 else self.ranks.no_sync(self.model):
                losses.append(self._accumulate(piece, first + number * self.piece, weight, log.watch))
        with log.watch.part("network"):
            norm = nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
            state.images += batch
            for group in state.optimiser.param_groups:
                group["lr"] = training.learning_rate * min(1.0, state.images / max(training.warmup, 1))
            state.optimiser.step()
            state.average.update(state.network)
        log.add(state.average.updates, state.images, sum(losses), norm.detach())

    def _accumulate(self, piece: torch.Tensor, first: int, weight: float, watch: Stopwatch) -> torch.Tensor:
        """Corrupt a piece that starts at the run's image number ``first`` and add up its gradients; returns its part of the loss.

        ``weight`` is the piece's fraction of the batch: the sum over pieces and ranks is the gradient of the mean over the batch.
        """
        seed = self.config.training.seed
        sample = seeds(seed, "image", np.arange(first, first + len(piece)))
        level = 1 + below(self.config.process.levels, sample, "level")
        device = self.ranks.device
        try:
            with watch.part("corruption"):
                corrupted, answer = self.config.process.training_example(_sent(piece, device), level, sample)
            torch.manual_seed(int(seeds(seed, "dropout", first)))
            with watch.part("network"):
                loss = weight * reconstruction_loss(self.model, corrupted, answer, _sent(level, device))
                # The ranks' gradients are averaged.
                (self.ranks.count * loss).backward()
        except TorchDynamoException as error:
            raise InputError(f"torch.compile does not work here ({one_line(error)[:200]}); leave --compile out") from error
        except torch.OutOfMemoryError as error:
            if self.ranks.count > 1:
                # The others cannot hear of it in the middle of a step; the launcher ends them, and shows where this one was.
                raise
            advice = "train in more pieces (--accumulate), or with --precision bf16"
            raise InputError(f"{device} has not enough memory for {len(piece)} images at a time: {advice}") from error
        return loss.detach()


def reconstruction_loss(network: nn.Module, corrupted: torch.Tensor, answer: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Squared error of the network's answer, summed over pixels, mean over the batch.

    For the step to the level before this is the squared error of the less corrupted image (Rissanen et al. 2023, section 3.3), for
    the noise the simple loss of Ho et al. (2020).

    Args:
        network: called as ``network(corrupted, level)``.
        corrupted, answer: what ``ForwardProcess.training_example`` makes, float32 [N, C, S, S].
        level: int64 [N], 1 to K, on the same device.
    """
    return (network(corrupted, level) - answer).square().flatten(1).sum(dim=1).mean()


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on its way to the device, without waiting for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


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
