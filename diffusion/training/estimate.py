"""The memory and the time that training a run needs, estimated before it starts."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import psutil
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from diffusion.network import MixedPrecision, NetworkConfig, UNet
from diffusion.run import RunConfig
from diffusion.training.observers import Observer
from diffusion.training.ranks import Ranks, one_line
from lbm_warp.checks import InputError, amount

# Share of the free memory that a step may take; the solver and the libraries need the rest.
SHARE = 0.8
# Training keeps at most so many times what sampling is estimated to take.
KEPT = 16
# Of a training: time that is long [s], steps that need no estimate, times after which its speed is said [s].
LONG, FEW_STEPS, MEASURED = 3 * 86_400.0, 20, (10.0, 60.0)
# A step of fewer operations takes a GPU less time than the host takes to launch its kernels one by one: about a thousand launches
# of a few microseconds, at 10^14 operations a second.
SMALL = 5e11
# Largest speed of matrix products of GPUs in bf16 and in TF32, which cuDNN's convolutions take in fp32, dense [FLOP/s]: NVIDIA's
# data sheets of each, and for the GeForce cards the white papers of their architectures (Ampere GA102, Ada).
PEAKS = {
    "NVIDIA B200": (2250e12, 1125e12),
    "NVIDIA GH200 480GB": (989e12, 494e12),
    "NVIDIA H200": (989e12, 494e12),
    "NVIDIA H100 80GB HBM3": (989e12, 494e12),
    "NVIDIA H100 PCIe": (756e12, 378e12),
    "NVIDIA A100": (312e12, 156e12),
    "NVIDIA L40S": (362e12, 183e12),
    "NVIDIA L4": (121e12, 60e12),
    "NVIDIA A10": (125e12, 62e12),
    "NVIDIA GeForce RTX 4090": (165e12, 83e12),
    "NVIDIA GeForce RTX 3090": (71e12, 36e12),
}
# Share of the H200's peak in bf16 that a compiled network is predicted to reach where its steps are not small: 310 images/s of
# ffhq-128, by the bytes and operations of a step (docs/speed.md). Before normalisation kept bf16, 11 % were measured.
PREDICTED_SHARE = 0.3


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on a device, without those of the solver and the libraries."""

    weights: int
    gradients: int
    adam: int
    average: int
    weight_copies: int
    """Copies of the weights in bfloat16, for one pass."""
    activations_per_image: int
    """Kept between the forward and the backward pass, for one image."""

    def total(self, images: int) -> int:
        """The sum, with the activations of this many images at a time."""
        fixed = self.weights + self.gradients + self.adam + self.average + self.weight_copies
        return fixed + images * self.activations_per_image


def memory(config: RunConfig, device: torch.device, precision: str = "fp32") -> Memory:
    """Memory to train a run. Nothing is allocated.

    Args:
        config: the run.
        device: the training device; which tensors the backward pass keeps depends on its kernels.
        precision: of the network, ``fp32`` or ``bf16``; weights, gradients, moments and averages are float32 in both.

    Raises:
        InputError: if the network does not run on tensors without values, as one of a user's own may not.
    """
    network = config.build_network(empty=True)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    model = MixedPrecision(network) if precision == "bf16" else network
    with _without_values("memory", network):
        one, two = (saved_bytes(model, device, *_inputs(config, count)) for count in (1, 2))
    return Memory(weights, weights, 2 * weights, weights, 2 * one - two, two - one)


def operations(config: RunConfig) -> int:
    """Floating-point operations of a forward pass of the network for one image. Nothing is computed.

    Raises:
        InputError: if the network does not run on tensors without values.
    """
    network, cpu = config.build_network(empty=True), torch.device("cpu")
    with _without_values("speed", network), FakeTensorMode(), cpu:
        weights, inputs = _fakes(network, *_inputs(config, 1))
        with FlopCounterMode(display=False) as counter:
            functional_call(network, weights, inputs)
    return counter.get_total_flops()


def compile_options(config: RunConfig, ranks: Ranks, images: int) -> dict[str, int]:
    """Options of torch.compile for a network in training, ``images`` at a time: as a CUDA graph where its steps are small.

    Only where one backward pass makes a step's gradients: those of a graph lie where its next pass puts them.
    """
    graph = False
    with suppress(InputError):
        whole = ranks.count == 1 and images == config.training.batch
        graph = ranks.device.type == "cuda" and whole and 3 * images * operations(config) < SMALL
    # A value is made again where it is used if it takes at most so many tensors. Normalised features take seven (theirs, mean, r,
    # and two each for weight and bias); by default, 4, the backward pass would write them to memory, in float32.
    return {"triton.cudagraphs": graph, "realize_reads_threshold": 8}


def peak(device: torch.device, precision: str) -> float | None:
    """Largest speed of matrix products of a known GPU [FLOP/s]; None for others and for CPUs."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    known = next((known for known in PEAKS if re.match(rf"{known}\b", name)), None)
    return None if known is None else PEAKS[known][precision == "fp32"]


@dataclass
class Work:
    """What a training does beside its images/s: operations a second, and their share of what the devices can do.

    Counted are the network's matrix products and convolutions, for an image three forward passes: the backward pass is two.
    """

    config: RunConfig
    ranks: Ranks
    precision: str

    @cached_property
    def _known(self) -> tuple[int, float | None]:
        """Operations for an image, and the most of all ranks in a second."""
        with suppress(InputError):
            most = peak(self.ranks.device, self.precision)
            return 3 * operations(self.config), most and most * self.ranks.count
        return 0, None

    def at(self, images_per_second: float) -> dict[str, float]:
        """Numbers for the log; none where the operations cannot be counted."""
        each, most = self._known
        done = {"flop_per_second": each * images_per_second} if each else {}
        return done | ({"share_of_peak": round(each * images_per_second / most, 4)} if most else {})


def seconds_per_image(config: RunConfig, device: torch.device) -> float:
    """Rough time of a training for each image, after half a second of measuring how fast a small network is here.

    It counts the network alone, and other networks may be a few times faster or slower.

    Raises:
        InputError: if the network does not run on tensors without values.
    """
    return 3 * operations(config) / _operations_per_second(device)  # the backward pass is two forward passes


def predicted_seconds(config: RunConfig) -> float | None:
    """Predicted, not measured: time of a training on one NVIDIA H200 in bf16; None where its steps are small, or not counted."""
    with suppress(InputError):
        each = 3 * operations(config)
        if each * config.training.batch >= SMALL:
            return config.training.images * each / (PREDICTED_SHARE * PEAKS["NVIDIA H200"][0])
    return None


def accumulation(config: RunConfig, ranks: Ranks, precision: str) -> int:
    """The fewest accumulation steps with which a step fits into the free memory of rank 0's device, the same on all ranks.

    1 where a step is small, or its memory cannot be estimated; one image at a time where even that does not fit.
    """
    images, steps, device = -(-config.training.batch // ranks.count), 1, ranks.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    # The estimate takes a second, which a small run need not wait for.
    if images * KEPT * config.network.activation_bytes(config.size) > SHARE * free / 2:
        with suppress(Exception):  # of a network of one's own, which the training names better
            need = memory(config, device, precision)
            even = (count for count in range(1, images + 1) if images % count == 0)
            steps = next((count for count in even if need.total(images // count) < SHARE * free), images)
    return ranks.broadcast(steps)


def saved_bytes(model: nn.Module, device: torch.device, *inputs: torch.Tensor) -> int:
    """Bytes that autograd keeps for the backward pass of ``model(*inputs)``, without its parameters and buffers.

    Uses FakeTensorMode, so nothing is allocated. Model and inputs may be on the meta device.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode(), device:
        weights, given = _fakes(model, *inputs)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            functional_call(model, weights, given)
        own = {weight.untyped_storage()._cdata for weight in weights.values()}
        return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def _inputs(config: RunConfig, count: int) -> list[torch.Tensor]:
    """What the network is called with for so many images, on the meta device."""
    with torch.device("meta"):
        conditions = [torch.empty(count, dtype=torch.int64) for _ in range(2 if config.classes else 1)]
        return [torch.empty((count, *config.input_shape)), *conditions]


def _fakes(model: nn.Module, *inputs: torch.Tensor) -> tuple[dict[str, torch.Tensor], tuple[torch.Tensor, ...]]:
    """Weights and inputs like these, without values, in FakeTensorMode on the present device."""

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, requires_grad=tensor.requires_grad)

    return {name: fake(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}, tuple(map(fake, inputs))


@contextmanager
def _without_values(what: str, network: nn.Module) -> Iterator[None]:
    """A block that runs a network on tensors without values, which one of a user's own may not do."""
    try:
        yield
    except Exception as error:
        reason = f"it does not run on tensors without values: {one_line(error)[:200]}"
        raise InputError(f"the {what} of {type(network).__name__} cannot be estimated; {reason}") from error


@cache
def _operations_per_second(device: torch.device) -> float:
    """Speed of a device in the training of a network that keeps it busy."""
    cuda = device.type == "cuda"
    width, images = (128, 64) if cuda else (32, 8)
    counter = FlopCounterMode(display=False)
    with torch.random.fork_rng([device] if cuda else []), torch.enable_grad():
        network = UNet(3, NetworkConfig(width), levels=1).to(device)
        inputs = torch.rand((images, 3, 32, 32), device=device), torch.ones(images, dtype=torch.int64, device=device)
        # The first pass also sets up the libraries.
        for block in (counter, nullcontext()):
            start = time.perf_counter()
            with block:
                network(*inputs).square().mean().backward()
            if cuda:
                torch.cuda.synchronize(device)
    return counter.get_total_flops() / (time.perf_counter() - start)


class TimeLeft(Observer):
    """Says how long a training takes here: roughly before its first step, and as measured after ten seconds and after a minute.

    Args:
        device: where it is trained.
        ranks: number of its processes.
        hours: its length by the clock.
        shorter: what to do if it takes more than three days.
    """

    def __init__(self, device: torch.device, ranks: int = 1, hours: float | None = None, shorter: str = "") -> None:
        self.device, self.ranks, self.hours, self.shorter = device, ranks, hours, shorter

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        self.length, self.steps, left = config.training.images, 0, config.training.images - images
        self.times = list(MEASURED)
        if self.hours is None and left >= FEW_STEPS * config.training.batch:
            with suppress(InputError):
                seconds = left * seconds_per_image(config, self.device) / self.ranks
                self._say(f"very roughly {in_words(seconds)} for {amount(left, 'image')} here", seconds)

    def stepped(self, images: int) -> None:
        self.steps += 1
        if self.steps == 2:  # the steps before set up the libraries
            self.start, self.first = time.perf_counter(), images
        if self.steps < 3 or not self.times or (seconds := time.perf_counter() - self.start) < self.times[0]:
            return
        self.times = [time for time in self.times if time > seconds]
        speed = (images - self.first) / seconds
        if self.hours is not None:
            tqdm.write(f"{speed:.3g} images/s; an hour is enough for {float(f'{3600.0 * speed:.2g}'):,.0f} images")
            return
        left = (self.length - images) / speed
        self._say(f"about {in_words(left)} left at {speed:.3g} images/s", left)

    def _say(self, line: str, seconds: float) -> None:
        tqdm.write(f"{line}; {self.shorter}" if self.shorter and seconds > LONG else line)


def in_words(seconds: float) -> str:
    """A time in words, such as 3 h 20 min, rounded."""
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min" if minutes else f"{seconds:.0f} s" if seconds >= 1.0 else "less than a second"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    days = minutes / 1440
    return f"{days:,.0f} days" if days < 700 else f"{days / 365:,.0f} years"
