"""The processes that train one run together: one alone, or as many as torchrun or accelerate launch started (its ranks).

Every rank holds the network, corrupts and trains its share of every batch on a device of its own, and the gradients are averaged
between them (data parallelism). Ranks go through the same calls in the same order; what only one of them can know, such as a
signal or a file that cannot be read, they agree on through a group of their own between hosts, which waits for no device.
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

from lbm_warp.checks import InputError

# Ranks wait while the main one builds the prior or draws samples: longer than the ten minutes after which NCCL gives up.
PATIENCE = timedelta(hours=6)
_KINDS = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


class Ranks:
    """All processes of a run, seen from one of them.

    Args:
        device: where this process computes; None is CUDA where there is one. Started by a launcher, only its type counts: every
            process takes the device of its local rank.

    Attributes:
        rank: number of this process, 0 for the main one, which alone writes files and speaks.
        count: how many there are.
        device: where this process computes.
        precision: what ``accelerate launch --mixed_precision`` says, in this project's words; ``fp32`` without.

    Raises:
        InputError: if there are more processes on a machine than devices, or the launcher asks for more than data parallelism.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "cpu"
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        processes, devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        if launched and kind == "cuda" and processes > devices:
            raise InputError(f"{processes} processes on this machine and {devices} CUDA devices; start one process a device")
        self._accelerator = Accelerator(
            # Mixed precision is the network's own affair (``MixedPrecision``): the solver stays in float32.
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
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """This rank's places in a batch of so many images: every rank has a contiguous share, in the order of the ranks."""
        return range(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network with gradients that are averaged over the ranks in the backward pass; itself where there is one rank."""
        return self._accelerator.prepare_model(network, device_placement=False)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[None]:
        """A block in which gradients of the prepared network stay this rank's own and add up."""
        return self._accelerator.no_sync(network)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks of a tensor on their devices; every rank gets it."""
        return self._accelerator.reduce(values, "sum")

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; all get the same answer."""
        if self.count == 1:
            return flag
        votes = torch.tensor([int(flag)])
        distributed.all_reduce(votes, distributed.ReduceOp.MAX, group=_hosts(distributed.group.WORLD))
        return bool(votes)

    def agree(self, value: int) -> bool:
        """Whether all ranks have the same number."""
        return not self.any(value != self.broadcast(value))

    def broadcast(self, value: int) -> int:
        """The main rank's number."""
        if self.count == 1:
            return value
        number = torch.tensor([value])
        distributed.broadcast(number, src=0, group=_hosts(distributed.group.WORLD))
        return int(number)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends alike on every rank: if it fails on one of them, all raise, and none is left waiting for it.

        Raises:
            InputError: with the message of the first rank that failed. A rank whose error is a programming error raises that.
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
        """Leave the group of processes; for the end of a program."""
        self._accelerator.end_training()


def one_line(error: Exception) -> str:
    """What went wrong, in one line: of an operating system's error the file and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


@functools.cache
def _hosts(world: distributed.ProcessGroup) -> distributed.ProcessGroup:
    """A group between the hosts, whatever their devices talk through."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
