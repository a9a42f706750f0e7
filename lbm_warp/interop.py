"""The bridge between torch and Warp: kernels work in the memory of tensors, on torch's current stream.

No function here copies a tensor or waits for a device. On the CPU, Warp runs a launch on one core and releases the interpreter
lock, so a launch is split among as many threads as torch uses. The result does not depend on the number of threads.

A kernel is compiled when it is first needed, which takes seconds, and cached on disk for later processes; the logger ``lbm_warp``
reports it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import warp as wp

from lbm_warp.kernels.advection_diffusion import Kernels, count_steps_kernel, cpu_kernels, cuda_kernels

# Launches recorded in one graph.
GRAPH_LAUNCHES = 32

log = logging.getLogger("lbm_warp")

_DTYPES = {torch.float32: wp.float32, torch.float64: wp.float64, torch.int32: wp.int32, torch.int64: wp.int64}


def view(tensor: torch.Tensor) -> wp.array:
    """A Warp array in the memory of a contiguous float32, float64, int32 or int64 tensor.

    Raises:
        ValueError: if the tensor is not contiguous or has another dtype.
    """
    if tensor.dtype not in _DTYPES or not tensor.is_contiguous():
        raise ValueError(f"expected a contiguous tensor of {list(_DTYPES)}, got {tensor.dtype}, strides {tensor.stride()}")
    return wp.array(
        ptr=tensor.data_ptr(), shape=tuple(tensor.shape), dtype=_DTYPES[tensor.dtype], device=warp_device(tensor.device)
    )


def warp_device(device: torch.device) -> wp.Device:
    """The Warp device of a torch device."""
    return wp.get_device("cpu" if device.type == "cpu" else f"cuda:{device.index or 0}")


@contextlib.contextmanager
def _on_torch_stream(device: torch.device) -> Iterator[None]:
    """Run Warp on torch's current stream, in order with the torch operations before and after."""
    if device.type == "cpu":
        yield
    else:
        with wp.ScopedStream(wp.stream_from_torch(torch.cuda.current_stream(device)), sync_enter=False):
            yield


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="lbm_warp")


def kernels_for(u: torch.Tensor, adjoint: bool, background: bool, periodic: bool) -> Kernels:
    """The advection-diffusion kernels for images like ``u``, [N, C, H, W] float32 or float64."""
    dtype = _DTYPES[u.dtype]
    if u.device.type == "cpu":
        return cpu_kernels(dtype, adjoint, background, periodic, *u.shape[1:])
    return cuda_kernels(dtype, adjoint, background)


def launch(
    kernel: wp.Kernel,
    dim: Sequence[int],
    *,
    batched: Sequence[torch.Tensor] = (),
    inputs: Sequence[object] = (),
    outputs: Sequence[torch.Tensor] = (),
) -> None:
    """Launch ``kernel(*batched, *inputs, *outputs)`` over ``dim``, whose first axis is the batch.

    Args:
        kernel: a Warp kernel; thread n of its first axis uses only entry n of every batched tensor and output.
        dim: number of threads along each axis; ``dim[0]`` is the batch size N.
        batched: input tensors [N, ...], all on one device.
        inputs: scalars, and tensors shared by the batch.
        outputs: tensors [N, ...] on the same device, written in place.
    """
    device = (*outputs, *batched)[0].device
    shared = [view(value) if isinstance(value, torch.Tensor) else value for value in inputs]
    _load(kernel.module, device)

    def run(start: int, stop: int) -> None:
        wp.launch(
            kernel,
            (stop - start, *dim[1:]),
            inputs=[view(t[start:stop]) for t in batched] + shared,
            outputs=[view(t[start:stop]) for t in outputs],
            device=warp_device(device),
        )

    batch = dim[0]
    workers = min(torch.get_num_threads(), batch) if device.type == "cpu" else 1
    if workers <= 1:
        with _on_torch_stream(device):
            run(0, batch)
        return
    bounds = [batch * i // workers for i in range(workers + 1)]
    for _ in _threads(workers).map(run, bounds[:-1], bounds[1:]):
        pass


def launch_repeatedly(
    kernel: wp.Kernel, dim: Sequence[int], *, tensors: Sequence[torch.Tensor], settings: Sequence[object], steps: int
) -> None:
    """Launch ``kernel(call, *settings, index)`` for steps 0, 1, ..., ``steps`` - 1; for kernels that take microseconds.

    ``GRAPH_LAUNCHES`` launches are recorded once as a graph (on a GPU a CUDA graph), which is replayed as often as needed. The
    arguments of a recorded launch are fixed, so the kernel reads the addresses of its tensors from ``call``, int64 [6]. The last
    entry of ``call`` is the number of steps done by earlier replays; the step of a launch is this number + its ``index`` in the
    graph. There may be up to ``GRAPH_LAUNCHES`` - 1 launches too many, in which the kernel must do nothing.

    Args:
        kernel: a Warp kernel as described.
        dim: number of threads along each axis.
        tensors: five contiguous tensors on one device, for ``call``.
        settings: scalars. Every new combination of kernel, ``dim`` and settings is recorded once.
        steps: number of steps.
    """
    device = tensors[0].device
    stream = None if device.type == "cpu" else wp.stream_from_torch(torch.cuda.current_stream(device))
    # Every stream has its own graph and ``call``: calls on other streams may run at the same time.
    graph, call = _recorded(kernel, tuple(dim), tuple(settings), device, stream and stream.cuda_stream)
    call.copy_(torch.tensor([*(view(tensor).ptr for tensor in tensors), 0]), non_blocking=True)
    for _ in range(-(-steps // GRAPH_LAUNCHES)):
        wp.capture_launch(graph, stream=stream)


@functools.lru_cache(maxsize=256)
def _recorded(
    kernel: wp.Kernel, dim: tuple[int, ...], settings: tuple[object, ...], device: torch.device, stream: int | None
) -> tuple[wp.Graph, torch.Tensor]:
    """A graph of ``GRAPH_LAUNCHES`` launches, and its tensor ``call``: see :func:`launch_repeatedly`."""
    where = warp_device(device)
    for used in (kernel, count_steps_kernel):
        _load(used.module, device)
    call = torch.zeros(6, dtype=torch.int64, device=device)
    # Torch's default stream cannot record. Recording on another stream runs nothing.
    recorder = None if device.type == "cpu" else wp.Stream(where)
    with wp.ScopedCapture(where, stream=recorder) as capture:
        for index in range(GRAPH_LAUNCHES):
            wp.launch(kernel, dim, inputs=[view(call), *settings, index], device=where, stream=recorder)
        wp.launch(count_steps_kernel, 1, inputs=[GRAPH_LAUNCHES, view(call)], device=where, stream=recorder)
    return capture.graph, call


@functools.cache
def _load(module: wp.Module, device: torch.device) -> None:
    """Compile a kernel's module or load it from the cache, before threads and graphs use it."""
    where = warp_device(device)
    block_size = 1 if where.is_cpu else 256  # Warp's defaults, which are part of a module's name in the cache.
    if not (Path(wp.config.kernel_cache_dir) / module.get_module_identifier(block_size)).exists():
        _announce_compilation()
    wp.load_module(module, device=where)


@functools.cache
def _announce_compilation() -> None:
    log.info("compiling kernels; later processes load them from %s", wp.config.kernel_cache_dir)
