"""Where torch and Warp meet: kernels work in the tensors' own memory, on torch's current stream.

No call here copies a tensor or waits for a device. On the CPU Warp runs a launch on one core and releases the interpreter lock
meanwhile, so a batch is shared out to as many threads as torch uses; every image is computed by one thread, alone, and comes
out the same whatever the number of threads or images.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import warp as wp

from lbm_warp.kernels.advection_diffusion import Kernels, cpu_kernels, cuda_kernels

# The type of a kernel, for those who know no Warp.
Kernel = wp.Kernel

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
        kernel: a Warp kernel whose thread n of the first axis touches only entry n of every tensor.
        dim: number of threads along each axis; ``dim[0]`` is the batch size N.
        batched: input tensors of shape [N, ...], all on one device.
        inputs: scalars, and tensors shared by the batch.
        outputs: tensors of shape [N, ...] on the same device, written in place.
    """
    device = outputs[0].device

    def run(start: int, stop: int) -> None:
        wp.launch(
            kernel,
            (stop - start, *dim[1:]),
            inputs=[view(t[start:stop]) for t in batched]
            + [view(value) if isinstance(value, torch.Tensor) else value for value in inputs],
            outputs=[view(t[start:stop]) for t in outputs],
            device=warp_device(device),
        )

    batch = dim[0]
    workers = min(torch.get_num_threads(), batch) if device.type == "cpu" else 1
    if workers <= 1:
        with _on_torch_stream(device):
            run(0, batch)
        return
    # The module must be loaded before threads ask for it at once.
    wp.load_module(kernel.module, device=warp_device(device))
    bounds = [batch * i // workers for i in range(workers + 1)]
    for _ in _threads(workers).map(run, bounds[:-1], bounds[1:]):
        pass
