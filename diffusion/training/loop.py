"""Training: in every step each image is corrupted anew, on the training device."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import numpy as np
import torch
from torch import nn

from diffusion.data.adapters import OwnPictures, as_dataset
from diffusion.data.dataset import whole_and_half
from diffusion.data.identity import Identity, check_pictures, load_identity
from diffusion.data.loader import Mirrored, batches, default_workers, labels_of
from diffusion.files import owned, read_json, write_json
from diffusion.forward.statistics import Statistics, load_statistics
from diffusion.network import MixedPrecision
from diffusion.rng import seeds, uniform
from diffusion.run import RunConfig, check_same_run, save_config
from diffusion.sampling.prior import Prior, load_prior
from diffusion.specs import classes
from diffusion.training.checkpoint import Checkpoints
from diffusion.training.dry_step import check_step
from diffusion.training.estimate import Work, accumulation, compile_options
from diffusion.training.interrupts import uninterrupted
from diffusion.training.log import StepLog, Stopwatch
from diffusion.training.observers import SCORE, MetricsFile, Observer, Progress
from diffusion.training.ranks import Ranks, one_line
from diffusion.training.state import TrainingState
from lbm_warp.checks import InputError, amount, check_integer, check_number, check_object

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

LOG_STEPS = 25
# Share of the labels that are dropped.
DROPPED = 0.1
INIT = "init.json"
# More images than any training by the clock reaches.
ENDLESS = 2**62


@dataclass(frozen=True)
class ExecutionConfig:
    """How a training is carried out. The run is the same whatever these are, and they may change when it is resumed."""

    precision: Literal["fp32", "bf16"] | None = None
    """Arithmetic of the network; by default what accelerate launch says, or fp32. Corruption, loss and weights are fp32 always."""
    accumulate: int | None = None
    """Gradient accumulation steps: a batch is processed in this many parts, with less memory and the same result (but for the masks
    of dropout). By default as few as fit into the free memory, by an estimate."""
    bf16_gradients: bool = False
    """Average the gradients over several GPUs in bfloat16: half the traffic between them, at eight bits of accuracy."""
    compile: bool | None = None
    """Compile the network with torch.compile, by default on CUDA: faster steps after a longer first one. Where that does not work,
    it is said, and the network is trained as it is. On a CPU it needs a C++ compiler."""
    workers: int | None = None
    """Processes that read the pictures; 0 reads in the training process. By default a number that suits the machine."""
    checkpoint_every: int = 32_000
    """Images between checkpoints."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints, in place of --checkpoint-every."""
    hours: float | None = None
    """Length of the training by the clock, in place of its number of images: the learning rate falls with the time, and a run that
    was killed goes on with what is left of it. The result depends on the speed of the machine."""
    keep_every: int | None = None
    """Keep one checkpoint in this many images for good; by default only the last two are kept."""
    score_every: int | None = None
    """Images between scores: the Frechet distance of 500 samples goes to the log, and the best weights so far are kept."""
    allow_new_pictures: bool = False
    """Go on with a run although pictures were added, removed or changed; statistics and prior stay those that it began with."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        if self.precision not in (None, "fp32", "bf16"):
            raise InputError(f"precision must be fp32 or bf16, got {self.precision!r}")
        if self.hours is not None:
            check_number("hours", self.hours, 1e-4, 1e5)
        if self.checkpoint_minutes is not None:
            check_number("checkpoint_minutes", self.checkpoint_minutes, 0.0, 1e5)
        check_integer("checkpoint_every", self.checkpoint_every, 1)
        if self.workers is not None:
            check_integer("workers", self.workers, 0, 1024)
        for name in ("accumulate", "keep_every", "score_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)


def train(
    config: RunConfig,
    dataset: Any,
    folder: Path | str,
    device: torch.device | str | None = None,
    execution: ExecutionConfig | None = None,
    *,
    init: str | Path | Pipeline | None = None,
    observers: Sequence[Observer] = (),
    score: Callable[[Pipeline], SupportsFloat | None] | None = None,
) -> bool:
    """Train a run, or resume it from its last checkpoint.

    Call it in one process, or in each process that torchrun or accelerate launch started: they share every batch, and the result
    is the same up to the rounding of sums (except for dropout, whose masks differ), whatever their number. They need not share it
    evenly. Checkpoints are read by rank 0 alone, and written by it beside the training.

    Before anything is written a new run makes one step, which is not kept, on two pictures: parts that do not fit are named. A
    network that is given as a module is copied, and the module is left as it is. torch's global generator is seeded anew, from the
    run's seed, for the first weights and in every step, and is left like that.

    A KeyboardInterrupt (Ctrl-C) is raised again after the last whole step was saved as a checkpoint.

    Args:
        config: the run. A folder that holds another run is refused; only the length of the training, and the name of the same
            pictures, may differ.
        dataset: pictures of the run's size, as :func:`diffusion.data.as_dataset` takes them: with labels where ``config.classes``
            names classes. A run goes on with the pictures that it began with, wherever they are now: data.json tells them.
        folder: run folder, made if missing; on several machines one that all of them see.
        device: where to corrupt and to train; None is CUDA where there is one. Launched processes take a device each.
        execution: how the training is carried out.
        init: averaged weights that a new run begins from: a run folder, the name of a model, or a pipeline. Weights of another
            name or shape begin anew, and are named in a line. A run that is resumed goes on from its checkpoint instead.
        observers: told what happens, after the progress bar and metrics.jsonl; see :class:`Observer`.
        score: called as ``score(pipeline)`` after every ``execution.score_every`` images, on all ranks; returns on rank 0 a number,
            such as the Frechet distance of samples. The averaged weights with the smallest one are kept as best.safetensors; NaN
            is never the smallest. It needs ``score_every``, which needs it.

    Returns:
        Whether the training is complete.

    Raises:
        InputError: if an option is out of its range, network or labels do not fit the run, the folder holds another run, a run on
            other pictures or no readable checkpoint, another process works in it, a picture cannot be read, a file cannot be
            written, the loss is no longer finite, or another rank has ended. All ranks raise it, with the same message, to which
            rank 0 adds the last good checkpoint.
    """
    execution = execution or ExecutionConfig()
    check_object("config", config, RunConfig)
    check_object("execution", execution, ExecutionConfig)
    execution.validate()
    if (score is None) != (execution.score_every is None):
        raise InputError("score and ExecutionConfig(score_every=...) go together: pass both or neither")
    unfit = [one for one in observers if not isinstance(one, Observer)] if isinstance(observers, Sequence) else [observers]
    if unfit:
        raise InputError(f"observers must be a list of objects that subclass diffusion.training.Observer, got {unfit[0]!r}")
    ranks, folder = Ranks(device), Path(folder)
    with ExitStack() as stack, ranks.connected():
        with ranks.together():
            if ranks.main:
                stack.enter_context(owned(folder))
        execution = _with_accumulation(config, ranks, execution)
        observers = [Progress(by_clock=execution.hours is not None), MetricsFile(), *observers]
        run = _Run(config, dataset, folder, ranks, execution, observers, init)
        return _carry_out(run, score)


def _carry_out(run: _Run, score: Callable[[Pipeline], SupportsFloat | None] | None) -> bool:
    """The steps of a training, from where it is; returns whether it is complete."""
    config, execution, state, log, complete = run.config, run.execution, run.state, run.log, False
    every = None if execution.checkpoint_minutes is not None else execution.checkpoint_every
    try:
        with run.ranks.connected(), run.reading() as queue:
            run.tell(lambda observer: observer.started(run.folder, config, state.images))
            if state.images:
                run.tell(lambda observer: observer.resumed(state.images, run.pipeline))
            log.restart()
            u0, stop = run.meet(queue)
            while state.images < (length := run.length()) and not stop:
                before = state.images
                run.trainer.step(u0, log, length)
                run.stepped()
                due = run.late or _passed(every, before, state.images)
                score_due = score is not None and _passed(execution.score_every, before, state.images)
                if due or score_due or len(log.steps) == LOG_STEPS:
                    run.write_log()
                # Before the checkpoint: a run that is killed here scores again.
                if score is not None and score_due:
                    run.write_score(score(run.pipeline))
                if due:
                    run.write_checkpoint()
                u0, stop = run.meet(queue)
            complete = state.images >= length
            if state.images > run.saved:
                run.write_log()  # checks the loss: no checkpoint holds weights that are not finite
                run.write_checkpoint()
            run.finish(complete)
    except (InputError, OSError) as error:
        raise InputError(f"{one_line(error)}{run.last_checkpoint()}") from error
    except KeyboardInterrupt:
        run.rescue()
        raise
    finally:
        run.end(complete)
    return complete


def _passed(every: int | None, before: int, images: int) -> bool:
    """Whether a multiple of ``every`` images lies in a step."""
    return every is not None and images // every > before // every


class _Run:
    """A training in its run folder: what is read, written and told, on rank 0 while the other ranks wait.

    Nothing is written before it is known that the parts fit.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Any,
        folder: Path,
        ranks: Ranks,
        execution: ExecutionConfig,
        observers: Sequence[Observer],
        init: str | Path | Pipeline | None,
    ) -> None:
        # Imported here: it brings the Hub's library, which a Trainer alone does not need.
        from diffusion.sampling.pipeline import Pipeline

        self.config, self.folder, self.ranks, self.execution, self.observers = config, folder, ranks, execution, observers
        _parts(config, ranks, execution)
        if not ranks.agree(json.dumps(config.to_json())):
            raise InputError(
                f"{folder}: the processes have different options; start all by one command, where they see this folder"
            )
        with ranks.together():
            self.dataset = as_dataset(dataset, channels=config.channels, size=config.size)
            if config.classes:
                self.dataset.classes(config.classes)
            self.state = TrainingState.initial(config, ranks.device)
        self.checkpoints = Checkpoints(folder, execution.keep_every)
        self._begin_or_resume(init)
        measured: Any = None
        with ranks.together():
            if ranks.main:
                needed = config.method.denoiser.needs_statistics
                measured = load_prior(folder, config.shape), load_statistics(folder, config.shape) if needed else None
        prior, statistics = ranks.broadcast(measured)
        labels = partial(labels_of, self.dataset, config.training.seed) if config.classes else None
        self.trainer = Trainer(config, self.state, ranks, execution, statistics, labels)
        self.log = StepLog(self.state.images, ranks, Work(config, ranks, self.trainer.precision))
        if self.trainer.compiled and ranks.main:
            print("torch.compile compiles the network: the first step takes longer (--no-compile leaves that out)")
        average, precision = self.state.average.network, self.trainer.precision
        self.pipeline = Pipeline(config, average, prior, statistics=statistics, precision=precision)
        # Images at the last checkpoint, its time, and whether another one is due by the clock.
        self.saved, self.saved_at, self.late = self.state.images, time.monotonic(), False
        self.start = time.monotonic() - self.state.seconds

    def _begin_or_resume(self, init: str | Path | Pipeline | None) -> None:
        """Begin the run, or bring the state to its last good checkpoint."""
        config, folder, ranks, note = self.config, self.folder, self.ranks, None
        with ranks.together():
            if ranks.main:
                pictures, said = self._identify()
                problems = self.checkpoints.resume(self.state.load)
                if self.checkpoints.good is None:
                    if (folder / "ema.safetensors").exists():
                        raise InputError(f"{folder} holds a model, and no checkpoints to go on from; choose another folder (--out)")
                    check_step(config, self.state.network, self.dataset, ranks.device)
                    note = None if init is None else _begin_from(init, config, self.state)
        self.state.share(ranks)
        with ranks.together():
            if ranks.main:
                self.checkpoints.tidy()
                pictures.save(folder)
                if self.checkpoints.good is None:
                    self._begin(note)
                else:
                    if said:
                        print(f"{folder}: {said}")
                    for problem in problems:
                        print(f"{problem}; going on from {self.checkpoints.good}")
                    before = read_json(folder / INIT)["init"] if (folder / INIT).is_file() else "random weights"
                    if init is not None and _name(init) != before:
                        print(f"{folder} began from {before} and goes on; {_name(init)} is left aside")
                    self._measure_lost(pictures.original)
                    self.checkpoints.save_weights(self.state.tensors())
                save_config(folder, config)

    def _identify(self) -> tuple[Identity, str | None]:
        """What tells the pictures, and what is to be said of them; raise InputError if the folder holds another run."""
        config, folder, pictures = self.config, self.folder, Identity.of(self.dataset, self.config.data)
        if not (folder / "config.json").exists():
            return pictures, None
        before = load_identity(folder)
        # The same pictures may have another name now.
        same_half = before is not None and whole_and_half(before.name)[1] == whole_and_half(config.data)[1]
        check_same_run(folder, replace(config, data=before.name) if before is not None and same_half else config)
        return check_pictures(folder, self.dataset, pictures, self.execution.allow_new_pictures)

    def _measured(self) -> Iterator[tuple[Callable[..., object], Callable[[], Prior | Statistics]]]:
        """What sampling needs beside the weights: how it is loaded, and how it is measured on the pictures."""
        dataset, method, device = self.dataset, self.config.method, self.ranks.device
        yield load_prior, partial(Prior.build, dataset, method, device)
        if method.denoiser.needs_statistics:
            # Of what the network is trained on: with those of the pictures alone, an augmented one could have any loss.
            pictures = self.config.training.augment.of_all(Mirrored(dataset) if self.config.training.flip else dataset)
            yield load_statistics, partial(method.denoiser.measure, pictures, method.forward, device)

    def _measure_lost(self, original: bool) -> None:
        """Measure again what is missing or damaged: the same numbers, if these are the pictures that the run began with."""
        for load, measure in self._measured():
            try:
                load(self.folder, self.config.shape)
            except InputError as error:
                problem = str(error).partition(";")[0]
                if not original:
                    why = "it was measured on pictures that have changed since"
                    raise InputError(f"{problem}; {why}: get a copy of it, or begin anew in another folder (--out)") from None
                measure().save(self.folder)
                print(f"{problem}; made again from the pictures")

    def _begin(self, note: dict[str, Any] | None) -> None:
        """Write what sampling needs beside the weights, and what the weights are from."""
        dataset, folder = self.dataset, self.folder
        for _, measure in self._measured():
            measure().save(folder)
        if self.config.classes:
            print(dataset.describe_classes(self.config.classes))
        if isinstance(dataset, OwnPictures) and dataset.labelled and not self.config.classes:
            print(f"{dataset.name}: the labels are not learned; name their classes in RunConfig(classes=...) to learn them")
        (folder / INIT).unlink(missing_ok=True)
        if note is not None:
            write_json(folder / INIT, note)
            new = [*note["new"][:4], *([f"{len(note['new']) - 4} more"] if len(note["new"]) > 4 else [])]
            count = len(self.state.network.state_dict())
            fitting = count - len(note["new"])
            most = f"{fitting} of {count} tensors are taken from" if 2 * fitting < count else "the weights are those of"
            print(f"{most} {note['init']}" + (f", except {', '.join(new)}" if new else ""))

    def reading(self) -> AbstractContextManager[Iterator[torch.Tensor]]:
        """This rank's share of every batch from here on, as :func:`batches` gives it."""
        training, workers = self.config.training, self.execution.workers
        return batches(
            self.dataset,
            training.seed,
            self.state.images,
            training.images if self.execution.hours is None else ENDLESS,
            training.batch,
            part=(self.ranks.rank, self.ranks.count),
            scatter=self.ranks.scatter if self.ranks.count > 1 else None,
            workers=default_workers(self.dataset, self.ranks.count) if workers is None else workers,
            flip=training.flip,
            device=self.ranks.device,
        )

    def meet(self, queue: Iterator[torch.Tensor]) -> tuple[torch.Tensor, bool]:
        """This rank's pictures of the next step, and whether an observer on any rank asks to stop.

        The ranks meet here once a step: what went wrong on any of them, and what the clock of rank 0 says, is in one reduction.
        """
        with self.ranks.together(said := [0, 0, 0]):
            u0 = next(queue, torch.empty(0))
            said[0] = any([observer.should_stop() for observer in self.observers])
            if self.ranks.main:
                self.checkpoints.check()
                now = time.monotonic()
                said[1:] = now - self.saved_at > self._patience(), round(1e3 * (now - self.start))
        stop, late, milliseconds = said
        self.late = bool(late)
        if self.execution.hours is not None:
            self.state.seconds = milliseconds / 1e3
        return u0, bool(stop)

    def _patience(self) -> float:
        """Seconds between checkpoints by the clock; an eighth of a training by the clock, at most."""
        minutes, hours = self.execution.checkpoint_minutes, self.execution.hours
        return min(ENDLESS if minutes is None else 60.0 * minutes, ENDLESS if hours is None else 3600.0 * hours / 8.0)

    def length(self) -> int:
        """Images of the whole training; by the clock as many as it reaches in its time if it goes on as until now."""
        seen, hours = self.state.images, self.execution.hours
        if hours is None:
            return self.config.training.images
        share = self.state.seconds / (3600.0 * hours)
        return seen if share >= 1.0 else max(seen + self.config.training.batch, round(seen / max(share, 1e-9)))

    def tell(self, what: Callable[[Observer], None]) -> None:
        """Tell every observer, on rank 0."""
        with self.ranks.together():
            for observer in self.observers if self.ranks.main else ():
                what(observer)

    def stepped(self) -> None:
        """Tell every observer of a step, on rank 0, which the other ranks do not wait for."""
        with self.ranks.later():
            for observer in self.observers if self.ranks.main else ():
                observer.stepped(self.state.images)

    def finish(self, complete: bool) -> None:
        """Wait for the last checkpoint. Of a training by the clock, write into config.json what its length has become."""
        training = replace(self.config.training, images=self.state.images)
        with self.ranks.together():
            if self.ranks.main:
                self.checkpoints.finish()
                if complete and self.execution.hours is not None:
                    save_config(self.folder, replace(self.config, training=training))

    def end(self, complete: bool) -> None:
        """Tell every observer that the training ends; after an error of one rank the others cannot be waited for."""
        with suppress(Exception):  # nothing is written any more when the folder is left, and an error was raised before
            self.checkpoints.finish()
        for observer in self.observers if self.ranks.main else ():
            observer.ended(complete)

    def write_log(self) -> None:
        """A line for the steps since the last one, if there are any."""
        if self.log.steps:
            line = self.log.line(self.state.optimiser.param_groups[0]["lr"])
            if self.execution.hours is not None:
                line["length"] = self.length()
            self.tell(lambda observer: observer.logged(line))

    def write_score(self, score: SupportsFloat | None) -> None:
        """The score of the averaged weights, which are kept if it is the best; None on ranks other than 0."""
        with self.ranks.together():
            if self.ranks.main:
                try:
                    number = float(score)  # type: ignore[arg-type]
                except (TypeError, ValueError, RuntimeError):
                    raise InputError(f"score gives {type(score).__name__}; expected a number") from None
                self.checkpoints.keep_best({"images": self.state.images, SCORE: number}, self.state.average.network.state_dict())
                for observer in self.observers:
                    observer.scored(self.state.images, number)
        self.log.restart()

    def write_checkpoint(self) -> None:
        """Begin to write a checkpoint, and the weights for sampling."""
        with self.ranks.together():
            if self.ranks.main:
                self.state.save(self.checkpoints)
        self.saved, self.saved_at = self.state.images, time.monotonic()
        self.tell(lambda observer: observer.checkpointed(self.state.images, self.pipeline))
        self.log.restart()

    def last_checkpoint(self) -> str:
        """The last good checkpoint, in words behind an error, on rank 0."""
        with suppress(Exception):
            self.checkpoints.finish()
        return f"; {self.checkpoints.last()}" if self.ranks.main else ""

    def rescue(self) -> None:
        """Save the last whole step after Ctrl-C, on rank 0 alone: no rank waits for another any more."""
        if not self.ranks.main or not self.state.images:
            return
        self.checkpoints.finish()
        path = self.checkpoints.path(self.state.images)
        if path != self.checkpoints.good and self.log.finite():
            self.state.save(self.checkpoints)
            self.checkpoints.finish()
            print(f"interrupted; saved as {path}")


def _begin_from(init: str | Path | Pipeline, config: RunConfig, state: TrainingState) -> dict[str, Any]:
    """Take over the averaged weights of a run; returns what init.json records."""
    from diffusion.sampling.pipeline import Pipeline

    known = classes(config)
    try:
        source = init if isinstance(init, Pipeline) else Pipeline.from_pretrained(init, types=known)
    except InputError as error:
        advice = f"; or load it first, init=Pipeline.from_pretrained({str(init)!r}, types=[...])"
        raise InputError(f"{error}{advice if (Path(str(init)) / 'config.json').is_file() else ''}") from None
    try:
        return {"init": _name(init), "new": state.begin_from(source.network.state_dict())}
    except InputError as error:
        raise InputError(f"{_name(init)}: {error}") from None


def _name(init: str | Path | Pipeline) -> str:
    """What weights begin from, in words."""
    return str(init) if isinstance(init, (str, Path)) else f"a pipeline of {init.config.process_name} on {init.config.data}"


class Trainer:
    """Steps of Adam on batches of clean images; every rank trains on its share of a batch.

    Everything random is a function of the run's seed and the image's number in the run: level, flow and noise of an image are the
    same whatever the number of ranks or accumulation steps. Dropout is seeded by the number of the first image of a part.

    Args:
        config: the run.
        state: the state that steps change, the same on all ranks: equal gradients give equal weights.
        ranks: the processes of the run.
        execution: how steps are carried out (precision, accumulate, compile).
        statistics: moments of the training pictures, for a denoiser that needs them.
        labels: called with numbers of images in the run, int64 [n]; gives their classes, int64 [n], where the run has classes.

    Raises:
        InputError: if the launcher asks for another precision, or the network is to be compiled for a CPU in bf16.
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
        self.forward = config.method.forward.measured(statistics)
        self.labels = labels
        self.state = state
        self.ranks = ranks
        self.part, self.precision = _parts(config, ranks, execution)
        on_cuda = ranks.device.type == "cuda"
        torch.backends.cudnn.benchmark |= on_cuda  # sizes stay the same, so it pays to try its algorithms
        self.compiled = on_cuda if execution.compile is None else execution.compile
        # Whether it is not known yet if compiling works: before the first gradients.
        self.unproven = self.compiled
        if self.compiled:
            # In place, so the names in the state dict stay the same.
            state.network.compile(options=compile_options(config, ranks, self.part))
        model = MixedPrecision(state.network) if self.precision == "bf16" else state.network
        self.model = ranks.prepare(model, execution.bf16_gradients)

    def step(self, u0: torch.Tensor, log: StepLog, images: int | None = None) -> None:
        """One step on this rank's share of a batch, float32 [n, C, H, W]; n may be 0 in the last batch of a run.

        ``images`` is the length of the training, by default that of the configuration.
        """
        state, training = self.state, self.config.training
        images = training.images if images is None else images
        batch = min(training.batch, images - state.images)
        first = state.images + self.ranks.share(batch).start
        state.network.train()
        state.optimiser.zero_grad(set_to_none=True)
        if len(u0):
            parts = [(len(part) / batch, part) for part in u0.split(self.part)]
        else:
            # A rank without images still takes part in the averaging of gradients, with one image of weight zero.
            parts = [(0.0, u0.new_zeros((1, *u0.shape[1:])))]
        losses = []
        # The last batch, if it is smaller, is not worth compiling for.
        eager = self.compiled and batch < training.batch
        with torch.compiler.set_stance("force_eager") if eager else nullcontext():
            for number, (weight, part) in enumerate(parts):
                with nullcontext() if number == len(parts) - 1 else self.ranks.no_sync(self.model):
                    losses.append(self._accumulate(part, first + number * self.part, weight, log.watch))
        for parameter in state.weighting.parameters():
            if parameter.grad is not None:
                parameter.grad = self.ranks.sum(parameter.grad) / self.ranks.count
        with log.watch.part("network"):
            norm = nn.utils.clip_grad_norm_(state.network.parameters(), training.clip)
            rate = training.rate(state.images, state.images + batch, images)
            with uninterrupted():
                for group in state.optimiser.param_groups:
                    group["lr"] = rate
                state.images += batch
                state.optimiser.step()
                state.average.update(training.ema_decay(state.images - batch, state.images))
                log.add(state.average.updates, state.images, sum(losses[1:], losses[0]), norm.detach())

    def _accumulate(self, part: torch.Tensor, first: int, weight: float, watch: Stopwatch) -> torch.Tensor:
        """Corrupt a part of a batch that starts at the run's image number ``first``, and add its gradients; returns its loss.

        ``weight`` is the part's fraction of the batch: the sum over parts and ranks is the gradient of the mean over the batch. The
        loss that it returns is not weighted by level.
        """
        seed, augment = self.config.training.seed, self.config.training.augment
        sample = seeds(seed, "image", np.arange(first, first + len(part)))
        forward, denoiser, device = self.forward, self.config.method.denoiser, self.ranks.device
        level = self.config.method.density.draw(forward, sample)
        try:
            with watch.part("corruption"):
                u0, told = augment(_to(device, part), sample)
                inputs, target = denoiser.example(forward, u0, level, sample)
            torch.manual_seed(int(seeds(seed, "dropout", first)))
            with watch.part("network"):
                labels = [_to(device, self._label(first, sample))] if self.labels else []
                there = _to(device, level)
                prediction = self.model(inputs, there, *labels, **({"told": told} if augment.told else {}))
                losses = denoiser.loss(forward, prediction, target, level, sample)
                loss = weight * losses.mean()
                # The backward pass averages gradients over the ranks; their sum is wanted.
                (self.ranks.count * (weight * self.state.weighting(losses, there).mean())).backward()
        except torch.OutOfMemoryError as error:
            if self.ranks.count > 1:
                # The other ranks wait in this step and cannot be told. The launcher ends them and shows this traceback.
                raise
            advice = "use more accumulation steps (--accumulate), or --precision bf16"
            raise InputError(f"{device} has not enough memory for {amount(len(part), 'image')} at a time: {advice}") from error
        except Exception as error:
            if isinstance(error, InputError) or not self.unproven:
                raise
            self._leave_compiling(error)
            return self._accumulate(part, first, weight, watch)
        self.unproven = False
        return loss.detach()

    def _leave_compiling(self, error: Exception) -> None:
        """Train the network as it is: torch.compile failed."""
        if self.ranks.main:
            print(f"torch.compile does not work here ({one_line(error)[:200]}); the network is trained without it")
        self.compiled = self.unproven = False
        self.state.network._compiled_call_impl = None
        self.state.optimiser.zero_grad(set_to_none=True)

    def _label(self, first: int, sample: torch.Tensor) -> torch.Tensor:
        """Classes of the images from number ``first`` on; a tenth of them dropped, for guidance (Ho and Salimans 2022)."""
        assert self.labels is not None
        label = self.labels(np.arange(first, first + len(sample)))
        return torch.where(uniform(sample, "label") < DROPPED, len(self.config.classes), label)


def _with_accumulation(config: RunConfig, ranks: Ranks, execution: ExecutionConfig) -> ExecutionConfig:
    """The execution with a number of accumulation steps: its own, or as many as the memory needs, which is said."""
    if execution.accumulate is not None:
        return execution
    steps = accumulation(config, ranks, execution.precision or ranks.precision)
    if steps > 1 and ranks.main:
        images = -(-config.training.batch // ranks.count)
        why = f"{amount(images, 'image')} at a time would not fit into the memory"
        print(f"a batch is processed in {steps} parts: {why} (--accumulate)")
    return replace(execution, accumulate=steps)


def _parts(config: RunConfig, ranks: Ranks, execution: ExecutionConfig) -> tuple[int, Literal["fp32", "bf16"]]:
    """Images that a rank processes at a time, at most, and the precision.

    Raises:
        InputError: as :class:`Trainer`.
    """
    parts = ranks.count * (execution.accumulate or 1)
    precision = execution.precision or ranks.precision
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision must be fp32 or bf16, got {precision!r}")
    if execution.compile and precision == "bf16" and ranks.device.type == "cpu":
        # Seen with torch 2.13: the gradients of the last blocks are zero. Either alone is right.
        raise InputError("--compile with bf16 gives wrong gradients on a CPU (torch 2.13); leave one of the two out")
    return -(-config.training.batch // parts), "bf16" if precision == "bf16" else "fp32"


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device, queued without waiting."""
    return (tensor.pin_memory() if device.type == "cuda" and tensor.is_cpu else tensor).to(device, non_blocking=True)
