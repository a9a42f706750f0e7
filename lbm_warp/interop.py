"""Where torch and Warp meet: kernels work in the tensors' own memory, on torch's current stream.

No call here copies a tensor or waits for a device. On the CPU Warp runs a launch on one core and releases the interpreter lock
meanwhile, so a launch is shared out to as many threads as torch uses; every cell is computed by the same instructions whichever
thread it falls to, and comes out the same.

Kernels are compiled when they are first needed, which takes seconds, and kept on disk for the next process; the logger ``lbm_warp``
says so.
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

from lbm_warp.kernels.advection_diffusion import Kernels, advance_kernel, cpu_kernels, cuda_kernels

# The type of a kernel, for those who know no Warp.
Kernel = wp.Kernel
# Launches in a graph.
BLOCK = 32

log = logging.getLogger("lbm_warp")

_DTYPES = {torch.float32: wp.float32, torch.float64: wp.float64, torch.int32: wp.int32, torch.int64: wp.int64}


def view(tensor: torch.Tensor) -> wp.array:
    """A Warp array over the memory of a contiguous float32, float64, int32 or int64 tensor; no copy.

    Raises:
        ValueError: if the tensor is not contiguous or of another type.
    """
    if tensor.dtype not in _DTYPES or not tensor.is_contiguous():
        raise ValueError(f"expected a contiguous tensor of {list(_DTYPES)}, got {tensor.dtype}, strides {tensor.stride()}")
    return wp.array(
        ptr=tensor.data_ptr(), shape=tuple(tensor.shape), dtype=_DTYPES[tensor.dtype], device=warp_device(tensor.device)
    )


def warp_device(device: torch.device) -> wp.Device:
    """The Warp device that is the same hardware as a torch device."""
    return wp.get_device("cpu" if device.type == "cpu" else f"cuda:{device.index or 0}")


@contextlib.contextmanager
def _on_torch_stream(device: torch.device) -> Iterator[None]:
    """Queue Warp's work on torch's current stream, so it is ordered with the torch operations around it."""
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
        kernel: a Warp kernel whose thread n of the first axis touches only entry n of every batched tensor and output.
        dim: number of threads along each axis; ``dim[0]`` is the batch size N.
        batched: input tensors of shape [N, ...], all on one device.
        inputs: scalars, and tensors shared by the batch.
        outputs: tensors of shape [N, ...] on the same device, written in place.
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
    """Launch ``kernel(call, *settings, ahead)`` ``steps`` times, and up to ``BLOCK`` - 1 times more; for a kernel of microseconds.

    The launches are recorded once as a graph of ``BLOCK`` (a CUDA graph, where there is CUDA) and replayed. A graph cannot be given
    new arguments, so the kernel finds the tensors by the addresses in ``call``, int64, and the number of steps behind in its last
    entry; the step is that number plus ``ahead``. The kernel must do nothing in a step that no image has left to take.

    Args:
        kernel: a Warp kernel as described.
        dim: number of threads along each axis.
        tensors: five contiguous tensors on one device, which ``call`` points to.
        settings: scalars; every new combination of them, ``dim`` and kernel is recorded anew.
        steps: number of launches wanted.
    """
    device = tensors[0].device
    stream = None if device.type == "cpu" else wp.stream_from_torch(torch.cuda.current_stream(device))
    # A graph belongs to one stream: on another, a second call could change the addresses under the first.
    graph, call = _recorded(kernel, tuple(dim), tuple(settings), device, stream and stream.cuda_stream)
    call.copy_(torch.tensor([*(view(tensor).ptr for tensor in tensors), 0]), non_blocking=True)
    for _ in range(-(-steps // BLOCK)):
        wp.capture_launch(graph, stream=stream)


@functools.lru_cache(maxsize=256)
def _recorded(
    kernel: wp.Kernel, dim: tuple[int, ...], settings: tuple[object, ...], device: torch.device, stream: int | None
) -> tuple[wp.Graph, torch.Tensor]:
    """``BLOCK`` launches of a kernel as a graph, and the tensor that tells it where to work."""
    where = warp_device(device)
    for used in (kernel, advance_kernel):
        _load(used.module, device)
    call = torch.zeros(6, dtype=torch.int64, device=device)
    # Torch's own default stream cannot record; nothing runs while another one does.
    recorder = None if device.type == "cpu" else wp.Stream(where)
    with wp.ScopedCapture(where, stream=recorder) as capture:
        for ahead in range(BLOCK):
            wp.launch(kernel, dim, inputs=[view(call), *settings, ahead], device=where, stream=recorder)
        wp.launch(advance_kernel, 1, inputs=[BLOCK, view(call)], device=where, stream=recorder)
    return capture.graph, call


@functools.cache
def _load(module: wp.Module, device: torch.device) -> None:
    """Compile a kernel's module, or find it in the cache; threads and graphs that use it must find it loaded."""
    where = warp_device(device)
    threads_a_block = 1 if where.is_cpu else 256  # Warp's defaults; the cache keeps one build for each
    if not (Path(wp.config.kernel_cache_dir) / module.get_module_identifier(threads_a_block)).exists():
        _announce_compilation()
    wp.load_module(module, device=where)


@functools.cache
def _announce_compilation() -> None:
    log.info("compiling kernels; next time they are taken from %s", wp.config.kernel_cache_dir)
