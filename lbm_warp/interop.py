"""The bridge between torch and Warp: kernels work in the memory of tensors, on torch's current stream.

No function here copies a tensor or waits for a device. On the CPU, Warp runs a launch on one core and releases the interpreter
lock, so a launch is split among as many threads as torch uses. The result does not depend on the number of threads.

A kernel is compiled when it is first needed, which takes seconds, and cached on disk for later processes; the logger ``lbm_warp``
reports it.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import warp as wp

from lbm_warp.caches import send_libraries
from lbm_warp.checks import InputError

Function = TypeVar("Function", bound=Callable[..., Any])

log = logging.getLogger("lbm_warp")
send_libraries()

# A thread computes this many elements in about 0.4 ms; to wake it for fewer takes longer than they do.
LEAST_SHARE = 2**15

NO_TRANSFORM = (
    "a flow is computed by kernels, which torch.func (grad, vmap, jvp, ...) cannot transform; take gradients with torch.autograd, "
    "one at a time, and a batch of images in place of vmap"
)

WARP_DTYPES = {torch.float32: wp.float32, torch.float64: wp.float64, torch.int32: wp.int32, torch.int64: wp.int64}


def view(tensor: torch.Tensor) -> wp.array:
    """A Warp array in the memory of a contiguous float32, float64, int32 or int64 tensor.

    Raises:
        ValueError: if the tensor is not contiguous or has another dtype.
        InputError: if it has no memory, as inside ``torch.autograd.grad(..., is_grads_batched=True)``.
    """
    dtype, device = WARP_DTYPES.get(tensor.dtype), warp_device(tensor.device)
    return wp.array(ptr=_pointer(tensor), shape=tuple(tensor.shape), dtype=dtype, device=device)


def _pointer(tensor: torch.Tensor) -> int:
    """Address of a contiguous tensor's memory."""
    if tensor.dtype not in WARP_DTYPES or not tensor.is_contiguous():
        raise ValueError(f"expected a contiguous tensor of {list(WARP_DTYPES)}, got {tensor.dtype}, strides {tensor.stride()}")
    try:
        return tensor.data_ptr()
    except RuntimeError:
        raise InputError(NO_TRANSFORM) from None


def warp_device(device: torch.device) -> wp.Device:
    """The Warp device of a torch device.

    Raises:
        InputError: if Warp cannot use it: its toolkit may need a newer driver than torch's.
    """
    if device.type == "cpu":
        return wp.get_device("cpu")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= wp.get_cuda_device_count():
        toolkit = ".".join(map(str, wp.get_cuda_toolkit_version() or ()))
        raise InputError(
            f"Warp {wp.config.version} (CUDA {toolkit}) cannot use cuda:{index}: the driver is too old, or this Warp was built "
            "without CUDA; update the driver or use the CPU"
        )
    return wp.get_device(f"cuda:{index}")


def has_blocks(device: torch.device) -> bool:
    """Whether threads of a block can work together: on a GPU, and on a CPU if ``wp.config.enable_cpu_blocks`` is set (slow)."""
    return device.type != "cpu" or wp.config.enable_cpu_blocks


def lanes(device: torch.device) -> int:
    """Threads that work in step: those of a warp on a GPU, one on a CPU."""
    return 1 if device.type == "cpu" else 32


def warp_stream(device: torch.device) -> wp.Stream | None:
    """Torch's current stream on a GPU, for launches in order with the torch operations before and after; None for a CPU."""
    return None if device.type == "cpu" else wp.stream_from_torch(torch.cuda.current_stream(device))


def not_traced(function: Function) -> Function:
    """Make torch.compile call a function that launches kernels as it is, between compiled parts."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        # The compiler takes a second or more to import; a program that has not done so does not compile.
        return (torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function)(*args, **options)

    return cast(Function, call)


def check_no_transform() -> None:
    """Raise InputError inside a transform of torch.func: kernels write to the memory of tensors, and there these have none."""
    if torch._C._are_functorch_transforms_active():
        raise InputError(NO_TRANSFORM)


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="lbm_warp")


def launch(
    kernel: wp.Kernel,
    dim: Sequence[int],
    *,
    batched: Sequence[torch.Tensor] = (),
    inputs: Sequence[object] = (),
    outputs: Sequence[torch.Tensor] = (),
    block: int | None = None,
    work: int | None = None,
) -> None:
    """Launch ``kernel(*batched, *inputs, *outputs)`` over ``dim``, whose first axis is the batch.

    Args:
        kernel: a Warp kernel; thread n of its first axis uses only entry n of every batched tensor and output.
        dim: number of threads along each axis; ``dim[0]`` is the batch size N.
        batched: input tensors [N, ...], all on one device.
        inputs: scalars, and tensors shared by the batch.
        outputs: tensors [N, ...] on the same device, written in place.
        block: threads of a block, for a kernel whose threads work together; the launch is then not split. Every thread may use
            all of the outputs.
        work: elements to compute, by which a launch is split among cores; by default those of the largest batched tensor or output.

    Raises:
        InputError: if Warp cannot use the device, or inside a transform of torch.func.
    """
    check_no_transform()
    device = (*outputs, *batched)[0].device
    size = block or (1 if device.type == "cpu" else 256)
    load(kernel.module, device, size)

    def run(start: int, stop: int) -> None:
        here = [*(tensor[start:stop] for tensor in batched), *inputs, *(tensor[start:stop] for tensor in outputs)]
        replay(kernel, (stop - start, *dim[1:]), here, device, size)

    batch, threads = dim[0], torch.get_num_threads()
    worth = (max(tensor.numel() for tensor in (*outputs, *batched)) if work is None else work) // LEAST_SHARE
    workers = min(threads, batch, worth) if device.type == "cpu" and block is None else 1
    if workers <= 1:
        run(0, batch)
        return
    bounds = [batch * i // workers for i in range(workers + 1)]
    others = [_threads(threads).submit(run, *part) for part in pairwise(bounds[1:])]
    try:
        run(*bounds[:2])
    finally:
        for other in others:
            other.result()


def launch_backward(
    kernel: wp.Kernel,
    dim: Sequence[int],
    value: torch.Tensor,
    inputs: Sequence[object],
    gradient: torch.Tensor,
    # outputs
    result: torch.Tensor,
) -> None:
    """Add to ``result``, a tensor like ``value``, its gradient through ``kernel(value, *inputs, output)``, from that of output."""
    device = value.device
    load(kernel.module, device, size := 1 if device.type == "cpu" else 256)
    start, end = view(value), view(torch.empty_like(gradient))
    start.grad, end.grad = view(result), view(gradient)
    wp.launch(
        kernel,
        dim,
        inputs=[start, *inputs],
        outputs=[end],
        adj_inputs=[start.grad, *[None] * len(inputs)],
        adj_outputs=[end.grad],
        adjoint=True,
        device=warp_device(device),
        stream=warp_stream(device),
        block_dim=size,
    )


class _Commands(threading.local):
    """Recorded launches of a thread, by kernel, device and threads of a block, and Warp's structure that describes an array."""

    def __init__(self) -> None:
        self.recorded: dict[tuple[wp.Kernel, torch.device, int], tuple[Any, Any]] = {}


_commands = _Commands()


def replay(kernel: wp.Kernel, dim: Sequence[int], args: Sequence[object], device: torch.device, block: int) -> None:
    """Launch a kernel by a command that this thread has recorded, which takes a fraction of the host's time."""
    commands = _commands.recorded
    if (kernel, device, block) not in commands:
        values = [view(arg) if isinstance(arg, torch.Tensor) else arg for arg in args]
        command = wp.launch(kernel, dim, inputs=values, device=warp_device(device), block_dim=block, record_cmd=True)
        commands[kernel, device, block] = command, type(wp.array(dtype=float, device="cpu").__ctype__())
    command, array = commands[kernel, device, block]
    command.set_dim(dim)
    for index, arg in enumerate(args):
        if isinstance(arg, torch.Tensor):
            strides = [arg.element_size() * stride for stride in arg.stride()]
            command.set_param_at_index_from_ctype(index, array(_pointer(arg), 0, arg.ndim, arg.shape, strides))
        else:
            command.set_param_at_index(index, arg)
    command.launch(warp_stream(device))


@functools.cache
def load(module: wp.Module, device: torch.device, block: int) -> None:
    """Compile a kernel's module or load it from the cache, before threads use it.

    Raises:
        InputError: if Warp cannot use the device.
    """
    where = warp_device(device)
    if not (Path(str(wp.config.kernel_cache_dir)) / module.get_module_identifier(block)).exists():
        _announce_compilation()
    wp.load_module(module, device=where, block_dim=block)


@functools.cache
def _announce_compilation() -> None:
    log.info("compiling kernels; they are kept in %s", wp.config.kernel_cache_dir)
