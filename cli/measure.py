"""How the benchmarks measure: seconds with all that is left on the device, in turns, and the most memory that is taken."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from cli import console

Result = TypeVar("Result")

# mallopt's names for them, in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def describe(device: torch.device) -> str:
    """The device, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def wait(device: torch.device) -> None:
    """Wait for all that is queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, with all it leaves on the device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def in_turns(runs: Sequence[Callable[[], Result]], repeats: int) -> list[list[Result]]:
    """Results of each, taken in turns so that a change of the machine's mood meets all of them."""
    results: list[list[Result]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, results, strict=True):
            found.append(run())
    return results


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that a call takes on the device, at most, beyond what is there before it; None where that cannot be told.

    On the CPU it is the peak of the resident set, which Linux tells; it means something where freed memory goes back at once
    (:func:`in_own_process`).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back
    except OSError:
        return None
    run()
    return _resident("VmHWM") - before


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """The result of a call in a fresh process, whose allocator keeps nothing that was freed; function and arguments are pickled."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_frugal) as pool:
        return pool.submit(function, *arguments).result()


def _frugal() -> None:
    console.start_warp()
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**16)
        mallopt(M_TRIM_THRESHOLD, 0)


def _resident(name: str) -> int:
    """Bytes of the resident set, now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
