"""Ranks: the processes that train one run together, a single one or those that torchrun or accelerate launch started.

Training is data-parallel. Every rank holds the network, corrupts its share of every batch and trains on it on its own device; the
gradients are averaged over the ranks. All ranks make the same calls in the same order. Events that only one rank sees, such as a
signal or an unreadable file, are shared through a process group between hosts (gloo), which does not wait for a device: in one
reduction a step (:meth:`Ranks.together`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from diffusion.launcher import launch
from lbm_warp.checks import InputError, as_device

# Ranks wait while rank 0 builds the prior or draws samples, which may take longer than NCCL's default of ten minutes.
PATIENCE = timedelta(hours=6)
_KINDS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}
T = TypeVar("T")


class Ranks:
    """The ranks of a run, seen from one of them.

    Args:
        device: the device of this process; None is CUDA where there is one. Under a launcher only its type matters: every process
            takes the device of its local rank.

    Attributes:
        rank: number of this process. Rank 0 is the main one: only it writes files and prints.
        count: number of ranks.
        device: the device of this process.
        precision: ``fp32``, or the precision that ``accelerate launch --mixed_precision`` sets.

    Raises:
        InputError: if there is no such device, a machine has more processes than devices, or the launcher asks for more than data
            parallelism.
    """

    def __init__(self, device: torch.device | str | None = None) -> None:
        device = None if device is None else as_device(device)
        kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        started, devices = launch(), torch.cuda.device_count()
        launched, processes = started.processes > 1, started.local_processes
        if launched and kind == "cuda" and processes > devices:
            raise InputError(f"{processes} processes on this machine and {devices} CUDA devices; start one process a device")
        self._accelerator = Accelerator(
            # Only the network uses mixed precision (``MixedPrecision``): the solver stays in float32.
            mixed_precision="no",
            cpu=launched and kind == "cpu",
            device_placement=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=PATIENCE),
                # Gradients lie where they are averaged. Not static_graph: a user's network may leave out layers in some steps.
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
        if self._accelerator.distributed_type not in _KINDS:
            raise InputError(f"the launcher asks for {self._accelerator.distributed_type.value}; training is data-parallel only")
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes
        self._held: Exception | None = None
        said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.precision = "fp32" if said == "no" else said
        self.device = self._accelerator.device if launched else torch.device(kind) if device is None else device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes files and prints."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """This rank's indices in a batch of this many images: contiguous shares, in the order of the ranks."""
        return range(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def prepare(self, network: nn.Module, bf16_gradients: bool = False) -> nn.Module:
        """The network with gradients averaged over the ranks in the backward pass, also in bfloat16; unchanged for one rank."""
        prepared = self._accelerator.prepare_model(network, device_placement=False)
        if bf16_gradients and isinstance(prepared, nn.parallel.DistributedDataParallel):
            # By its own name torch refuses it without NCCL, although gloo can sum bfloat16.
            prepared.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
        return prepared

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """A block in which gradients of the prepared network accumulate on this rank without averaging."""
        return self._accelerator.no_sync(network)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over the ranks; every rank gets it."""
        return self._accelerator.reduce(values, "sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; all ranks get the same answer."""
        return bool(self.largest(int(flag)))

    def largest(self, value: int) -> int:
        """The largest value of any rank; all ranks get the same answer."""
        return self._largest([value])[0]

    def agree(self, value: object) -> bool:
        """Whether all ranks have the same value."""
        return not self.any(value != self.broadcast(value))

    def broadcast(self, value: T) -> T:
        """Rank 0's value, a Python object, on every rank."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values, src=0, group=_hosts(distributed.group.WORLD))
        return values[0]

    def scatter(self, parts: list[T] | None) -> T:
        """One of rank 0's ``parts``, Python objects, for each rank; None on the others."""
        mine: list[Any] = [None]
        distributed.scatter_object_list(mine, parts, src=0, group=_hosts(distributed.group.WORLD))
        return mine[0]

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors on the devices of the ranks, of the same shapes on all of them, with the values of rank 0."""
        for tensor in tensors if self.count > 1 else ():
            values = tensor.detach().contiguous()
            distributed.broadcast(values, src=0)
            tensor.detach().copy_(values)

    @contextmanager
    def together(self, numbers: list[int] | None = None) -> Iterator[None]:
        """A block that fails on all ranks if it fails on one, so no rank waits for another that has ended.

        Args:
            numbers: set in the block, at least 0; behind it they are the largest of any rank. The same reduction tells both.

        Raises:
            InputError: with the message of the first rank that failed. A rank with a programming error raises that error itself.
        """
        error, numbers = None, [] if numbers is None else numbers
        try:
            yield
        except Exception as caught:
            error = caught
        error, self._held = self._held or error, None
        if self.count == 1:
            if error is not None:
                raise error
            return
        failed, *numbers[:] = self._largest([int(error is not None), *numbers])
        if failed:
            messages: list[str | None] = [None] * self.count
            distributed.all_gather_object(messages, error and one_line(error), group=_hosts(distributed.group.WORLD))
            if error is not None and not isinstance(error, (InputError, OSError)):
                raise error
            raise InputError(next(message for message in messages if message is not None)) from error

    @contextmanager
    def later(self) -> Iterator[None]:
        """A block whose error is raised behind the next :meth:`together`, where the ranks meet anyway."""
        try:
            yield
        except Exception as error:
            self._held = error

    @contextmanager
    def connected(self) -> Iterator[None]:
        """A block in which the end of another rank, seen as a connection that breaks, is one line.

        Raises:
            InputError: if another rank has ended.
        """
        try:
            yield
        except RuntimeError as error:
            # What gloo raises has no class of its own.
            if self.count == 1 or not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
                raise
            raise InputError("another process of this training has ended; the same command goes on with it") from error

    def _largest(self, values: list[int]) -> list[int]:
        if self.count == 1:
            return values
        votes = torch.tensor(values)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_hosts(distributed.group.WORLD))
        return votes.tolist()

    def close(self) -> None:
        """Leave the process group, at the end of a program."""
        # A group that outlives the others may abort the process at its end.
        _hosts.cache_clear()
        self._accelerator.end_training()


def one_line(error: Exception) -> str:
    """An error's message in one line; for an error of the operating system the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@functools.cache
def _hosts(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """A process group between the hosts, whatever the back end of the devices."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
