"""Ranks: the processes that train one run together, a single one or those that torchrun or accelerate launch started.

Training is data-parallel. Every rank holds the network, corrupts its share of every batch and trains on it on its own device; the
gradients are averaged over the ranks. All ranks make the same calls in the same order. Events that only one rank sees, such as a
signal or an unreadable file, are shared through a process group between hosts (gloo), which does not wait for a device.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from torch import distributed, nn

from diffusion.launcher import launch
from lbm_warp.checks import InputError, as_device

# Ranks wait while rank 0 builds the prior or draws samples, which may take longer than NCCL's default of ten minutes.
PATIENCE = timedelta(hours=6)
_KINDS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


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
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        if self._accelerator.distributed_type not in _KINDS:
            raise InputError(f"the launcher asks for {self._accelerator.distributed_type.value}; training is data-parallel only")
        self.rank = self._accelerator.process_index
        self.count = self._accelerator.num_processes
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

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network with gradients averaged over the ranks in the backward pass; unchanged where there is one rank."""
        return self._accelerator.prepare_model(network, device_placement=False)

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
        if self.count == 1:
            return value
        votes = torch.tensor([value])
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_hosts(distributed.group.WORLD))
        return int(votes)

    def agree(self, value: int) -> bool:
        """Whether all ranks have the same value."""
        return not self.any(value != self.broadcast(value))

    def broadcast(self, value: int) -> int:
        """Rank 0's value, on every rank."""
        if self.count == 1:
            return value
        number = torch.tensor([value])
        distributed.broadcast(number, src=0, group=_hosts(distributed.group.WORLD))
        return int(number)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that fails on all ranks if it fails on one, so no rank waits for another that has ended.

        Raises:
            InputError: with the message of the first rank that failed. A rank with a programming error raises that error itself.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        if self.count == 1:
            if error is not None:
                raise error
        elif self.any(error is not None):
            messages: list[str | None] = [None] * self.count
            distributed.all_gather_object(messages, error and one_line(error), group=_hosts(distributed.group.WORLD))
            if error is not None and not isinstance(error, (InputError, OSError)):
                raise error
            raise InputError(next(message for message in messages if message is not None)) from error

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
