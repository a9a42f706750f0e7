"""What a launcher (torchrun, accelerate launch) says in the environment: which of how many processes this one is."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from lbm_warp.checks import InputError

NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Launch(NamedTuple):
    """One of the processes that a launcher started."""

    rank: int = 0
    """Number of this process among all."""
    processes: int = 1
    """How many there are, on all machines."""
    local_rank: int = 0
    """Number of this process among those of this machine."""
    local_processes: int = 1
    """How many there are on this machine."""


def launch() -> Launch:
    """Which process this one is; the only one where no launcher started it.

    Raises:
        InputError: if the environment is that of a launcher in part only, so that processes would wait for each other.
    """
    said = {name: os.environ[name] for name in dict.fromkeys(NUMBERS + NEEDED) if name in os.environ}
    for name in NUMBERS:
        if name in said and not re.fullmatch(r"\d{1,9}", said[name], re.ASCII):
            raise InputError(f"the environment variable {name} is {said[name]!r}, expected a number: unset it or use torchrun")
    rank, processes, local_rank, local_processes, _ = (
        int(said.get(name, usual)) for name, usual in zip(NUMBERS, (0, 1, 0, 1, 0), strict=True)
    )
    # A rank or number of its own that stands for a single process does no harm.
    if "LOCAL_RANK" in said or processes > 1 or rank > 0:
        missing = [name for name in NEEDED if not said.get(name)]
        if missing or rank >= processes:
            problem = f"{', '.join(missing)} is not set" if missing else f"there is no process {rank} of {processes}"
            given = " ".join(f"{name}={value}" for name, value in said.items())
            raise InputError(f"the environment says that a launcher started this process ({given}), but {problem}: use torchrun")
    return Launch(rank, processes, local_rank, local_processes)
