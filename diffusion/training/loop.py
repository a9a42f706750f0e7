"""Training: in every step each image is corrupted anew, on the training device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from diffusion.config import RunConfig, check_same_run, save_config
from diffusion.data.loader import batches, default_workers, labels_of
from diffusion.files import save_tensors
from diffusion.network import MixedPrecision
from diffusion.parametrisation import parametrisation, prediction_loss
from diffusion.rng import seeds, uniform
from diffusion.sampling.prior import Prior, load_prior
from diffusion.statistics import Statistics, load_statistics
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.log import MetricsLog, Stopwatch
from diffusion.training.ranks import Ranks, one_line
from diffusion.training.state import TrainingState
from lbm_warp.checks import InputError, check_integer

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

LOG_STEPS = 25
# Share of the labels that are dropped.
DROPPED = 0.1


@dataclass(frozen=True)
class ExecutionConfig:
    """How a training is carried out. The run is the same whatever these are, and they may change when it is resumed."""

    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of the network; by default what accelerate launch says, or fp32. Corruption, loss and weights are fp32 always."""
    accumulate: int = 1
    """Gradient accumulation steps: a batch is processed in this many parts, with less memory and the same result."""
    compile: bool = False
    """Compile the network with torch.compile: faster steps after minutes of compilation. Needs a C++ compiler."""
    workers: int | None = None
    """Processes that read the pictures; 0 reads in the training process. By default a number that suits the machine."""
    checkpoint_every: int = 32_000
    """Images between checkpoints."""
    keep_every: int | None = None
    """Keep one checkpoint in this many images for good; by default only the last two are kept."""
    score_every: int | None = None
    """Images between scores: the Frechet distance of 500 samples goes to the log, and the best weights so far are kept."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        if self.precision not in (None, "fp32", "bf16"):
            raise InputError(f"precision must be fp32 or bf16, got {self.precision!r}")
        check_integer("accumulate", self.accumulate, 1)
        check_integer("checkpoint_every", self.checkpoint_every, 1)
        if self.workers is not None:
            check_integer("workers", self.workers, 0)
        for name in ("keep_every", "score_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)


def train(
    config: RunConfig,
    dataset: Sequence[np.ndarray],
    folder: Path | str,
    device: torch.device | str | None = None,
    execution: ExecutionConfig | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_log: Callable[[dict[str, float]], None] = lambda line: None,
    on_checkpoint: Callable[[int, Pipeline], None] = lambda images, pipeline: None,
    on_resume: Callable[[int, Pipeline], None] = lambda images, pipeline: None,
    score: Callable[[Pipeline], float | None] = lambda pipeline: None,
) -> bool:
    """Train a run, or resume it from its last checkpoint.

    Call it in one process, or in each process that torchrun or accelerate launch started: they share every batch, and the result
    is the same up to rounding (except for dropout, whose masks differ).

    Args:
        config: the run. A folder that holds another run is refused; only the length of the training may differ.
        dataset: pictures, float32 [C, H, W] in [0, 1]; an ImageDataset with labels where ``config.classes`` names classes.
        folder: run folder, made if missing; on several machines one that all of them see.
        device: where to corrupt and to train; None is CUDA where there is one. Launched processes take a device each.
        execution: how the training is carried out.
        should_stop: asked after every step, on every rank; on True the run is checkpointed and left.
        on_log: called with every line of metrics.jsonl, on rank 0.
        on_checkpoint: called as ``on_checkpoint(images_seen, pipeline)`` after every checkpoint, on rank 0; the pipeline has the
            averaged weights.
        on_resume: called in the same way when a run goes on from a checkpoint. It may have been killed before ``on_checkpoint``.
        score: called as ``score(pipeline)`` after every ``execution.score_every`` images, on all ranks; returns on rank 0 the
            Frechet distance of samples. The averaged weights with the smallest one are kept as best.safetensors.

    Returns:
        Whether the training is complete.

    Raises:
        InputError: if an option is out of its range, the batch cannot be shared out evenly, the folder holds another run or no
            readable checkpoint, a picture cannot be read, a file cannot be written, or the loss is no longer finite. All ranks
            raise it, with the same message.
    """
    # Imported here: it brings the Hub's library, which a Trainer alone does not need.
    from diffusion.sampling.pipeline import Pipeline

    execution = execution or ExecutionConfig()
    execution.validate()
    folder, ranks, training = Path(folder), Ranks(None if device is None else torch.device(device)), config.training
    _parts(config, ranks, execution)  # before anything is written
    state = TrainingState.initial(config, ranks.device)
    checkpoints = Checkpoints(folder, execution.keep_every)
    _start(config, dataset, folder, state, checkpoints, ranks)
    with ranks.together():
        statistics, prior = load_statistics(folder, config), load_prior(folder, config)
        log = MetricsLog(folder / "metrics.jsonl", state.images, ranks)
    labels = partial(labels_of, dataset, training.seed) if config.classes else None
    trainer = Trainer(config, state, ranks, execution, statistics, labels)
    pipeline = Pipeline(config, state.average.network, prior, statistics=statistics, precision=trainer.precision)

    def write_log() -> None:
        line = log.line(state.optimiser.param_groups[0]["lr"])
        progress.set_postfix(loss=f"{line['loss']:.4g}")
        with ranks.together():
            if ranks.main:
                log.write(line)
                on_log(line)

    def checkpoint() -> None:
        with ranks.together():
            if ranks.main:
                state.save(checkpoints)
        checkpoints.good = checkpoints.path(state.images)
        with ranks.together():
            if ranks.main:
                _save_weights(folder, state)
                on_checkpoint(state.images, pipeline)
        log.restart()

    def write_score() -> None:
        distance = score(pipeline)
        with ranks.together():
            if ranks.main and distance is not None:
                line = {"images": state.images, "frechet_distance": distance}
                log.write(line)
                on_log(line)
                checkpoints.keep_best(line, state.average.network.state_dict())
        log.restart()

    reading = batches(
        dataset,
        training.seed,
        state.images,
        training.images,
        training.batch,
        part=(ranks.rank, ranks.count),
        workers=default_workers(dataset, ranks.count) if execution.workers is None else execution.workers,
        flip=training.flip,
    )
    progress = tqdm(
        total=training.images, initial=state.images, desc="training", unit="img", smoothing=0.05, disable=not ranks.main
    )
    try:
        with ranks.together():
            if ranks.main and checkpoints.good is not None:
                on_resume(state.images, pipeline)
        log.restart()
        with progress, reading as queue:
            while state.images < training.images:
                with ranks.together():
                    u0 = next(queue)
                before = state.images
                trainer.step(u0, log)
                progress.update(state.images - before)
                stop = ranks.any(should_stop())
                every = execution.checkpoint_every
                due = stop or state.images >= training.images or state.images // every > before // every
                scored = execution.score_every or training.images + 1
                score_due = state.images // scored > before // scored
                # Before a checkpoint the loss is checked: no checkpoint holds weights that are not finite.
                if due or score_due or len(log.steps) == LOG_STEPS:
                    write_log()
                # Before the checkpoint: a run that is killed here scores again.
                if score_due:
                    write_score()
                if due:
                    checkpoint()
                if stop:
                    break
    except (InputError, OSError) as error:
        raise InputError(f"{one_line(error)}; {checkpoints.last()}") from error
    return state.images >= training.images


def _start(
    config: RunConfig,
    dataset: Sequence[np.ndarray],
    folder: Path,
    state: TrainingState,
    checkpoints: Checkpoints,
    ranks: Ranks,
) -> None:
    """Begin a run, or bring ``state`` to its last good checkpoint."""
    with ranks.together():
        if (folder / "config.json").exists():
            check_same_run(folder, config)
        problems = checkpoints.resume(state.load)
    if not ranks.agree(state.images):
        raise InputError(f"{folder}: the processes see different checkpoints; put it where all machines see the same files")
    with ranks.together():
        if ranks.main:
            checkpoints.tidy()
            if checkpoints.good is None:
                prior = Prior.build(dataset, config.corruption(), ranks.device)
                save_tensors(folder / "prior.safetensors", {"thumbnails": prior.thumbnails})
                if config.process.target == "remainder":
                    Statistics.measure(dataset, config.corruption(), ranks.device).save(folder)
            else:
                for problem in problems:
                    print(f"{problem}; going on from {checkpoints.good}")
                _save_weights(folder, state)
            save_config(folder, config)


def _save_weights(folder: Path, state: TrainingState) -> None:
    """Write the weights, and the averaged ones that sampling reads."""
    save_tensors(folder / "model.safetensors", state.network.state_dict())
    save_tensors(folder / "ema.safetensors", state.average.network.state_dict())


class Trainer:
    """Steps of Adam on batches of clean images; every rank trains on its share of a batch.

    Everything random is a function of the run's seed and the image's number in the run: level, flow and noise of an image are the
    same whatever the number of ranks or accumulation steps. Dropout is seeded by the number of the first image of a part.

    Args:
        config: the run.
        state: the state that steps change, the same on all ranks: equal gradients give equal weights.
        ranks: the processes of the run.
        execution: how steps are carried out (precision, accumulate, compile).
        statistics: moments of the training pictures, for the target ``remainder``.
        labels: called with numbers of images in the run, int64 [n]; gives their classes, int64 [n], where the run has classes.

    Raises:
        InputError: if the batch does not divide into equal parts.
    """

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        ranks: Ranks,
        execution: ExecutionConfig,
        statistics: Statistics | None = None,
        labels: Callable[[np.ndarray], torch.Tensor] | None = None,
    ) -> None:
        self.config = config
        self.corruption = config.corruption()
        self.parametrisation = parametrisation(self.corruption, statistics)
        self.labels = labels
        self.state = state
        self.ranks = ranks
        self.part, self.precision = _parts(config, ranks, execution)
        if execution.compile:
            # In place, so the names in the state dict stay the same.
            state.network.compile()
        self.model = ranks.prepare(MixedPrecision(state.network) if self.precision == "bf16" else state.network)

    def step(self, u0: torch.Tensor, log: MetricsLog) -> None:
        """One step on this rank's share of a batch, float32 [n, C, H, W] on the CPU; n may be 0 in the last batch of a run."""
        state, training = self.state, self.config.training
        batch = min(training.batch, training.images - state.images)
        first = state.images + self.ranks.share(batch).start
        state.network.train()
        state.optimiser.zero_grad(set_to_none=True)
        if len(u0):
            parts = [(len(part) / batch, part) for part in u0.split(self.part)]
        else:
            # A rank without images still takes part in the averaging of gradients, with one image of weight zero.
            parts = [(0.0, u0.new_zeros((1, *u0.shape[1:])))]
        losses = []
        for number, (weight, part) in enumerate(parts):
            with nullcontext() if number == len(parts) - 1 else self.ranks.no_sync(self.model):
                losses.append(self._accumulate(part, first + number * self.part, weight, log.watch))
        with log.watch.part("network"):
            norm = nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
            for group in state.optimiser.param_groups:
                group["lr"] = training.learning_rate_at(state.images, batch)
            state.images += batch
            state.optimiser.step()
            state.average.update()
        log.add(state.average.updates, state.images, sum(losses), norm.detach())

    def _accumulate(self, part: torch.Tensor, first: int, weight: float, watch: Stopwatch) -> torch.Tensor:
        """Corrupt a part of a batch that starts at the run's image number ``first``, and add its gradients; returns its loss.

        ``weight`` is the part's fraction of the batch: the sum over parts and ranks is the gradient of the mean over the batch.
        """
        seed = self.config.training.seed
        sample = seeds(seed, "image", np.arange(first, first + len(part)))
        level = self.corruption.draw_levels(sample)
        device = self.ranks.device
        try:
            with watch.part("corruption"):
                inputs, target = self.parametrisation.example(_to(device, part), level, sample)
                inputs = self.corruption.tell(inputs, level, sample)
            torch.manual_seed(int(seeds(seed, "dropout", first)))
            with watch.part("network"):
                conditions = (level, self._label(first, sample)) if self.labels else (level,)
                prediction = self.model(inputs, *(_to(device, condition) for condition in conditions))
                loss = weight * prediction_loss(self.corruption, prediction, target, level, sample)
                # The backward pass averages gradients over the ranks; their sum is wanted.
                (self.ranks.count * loss).backward()
        # Named here, where torch loads it on demand: to import it above takes as long as to import torch.
        except torch._dynamo.exc.TorchDynamoException as error:
            raise InputError(f"torch.compile does not work here ({one_line(error)[:200]}); leave --compile out") from error
        except torch.OutOfMemoryError as error:
            if self.ranks.count > 1:
                # The other ranks wait in this step and cannot be told. The launcher ends them and shows this traceback.
                raise
            advice = "use more accumulation steps (--accumulate), or --precision bf16"
            raise InputError(f"{device} has not enough memory for {len(part)} images at a time: {advice}") from error
        return loss.detach()

    def _label(self, first: int, sample: torch.Tensor) -> torch.Tensor:
        """Classes of the images from number ``first`` on; a tenth of them dropped, for guidance (Ho and Salimans 2022)."""
        label = self.labels(np.arange(first, first + len(sample)))
        return torch.where(uniform(sample, "label") < DROPPED, len(self.config.classes), label)


def _parts(config: RunConfig, ranks: Ranks, execution: ExecutionConfig) -> tuple[int, str]:
    """Images that a rank processes at a time, and the precision.

    Raises:
        InputError: if the batch does not divide into equal parts, the launcher asks for another precision, or the network is to be
            compiled for a CPU in bf16.
    """
    parts, batch = ranks.count * execution.accumulate, config.training.batch
    if batch % parts:
        raise InputError(
            f"a batch of {batch} images does not divide into {ranks.count} processes x {execution.accumulate} "
            f"accumulation steps; --batch must be a multiple of {parts}"
        )
    precision = execution.precision or ranks.precision
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision must be fp32 or bf16, got {precision!r}")
    if execution.compile and precision == "bf16" and ranks.device.type == "cpu":
        # Seen with torch 2.13: the gradients of the last blocks are zero. Either alone is right.
        raise InputError("--compile with bf16 gives wrong gradients on a CPU (torch 2.13); leave one of the two out")
    return batch // parts, precision


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device, queued without waiting."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
