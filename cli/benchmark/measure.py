"""What the benchmarks share: time, memory, and tables."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.benchmark import timer
from tqdm import trange

from cli import console

Result = TypeVar("Result")

# Head of a column of a table, and the unit of its numbers. Other keys are their own heads.
COLUMNS = {
    "name": (" " * 18, 1),
    "preset": (f"{'preset':>13}", 1),
    "median_seconds": ("median s", 1),
    "images_per_second": ("images/s", 1),
    "cell_updates_per_second": ("MLUPS", 1e6),
    "share_of_copy_bandwidth": ("of copy", 1),
    "times_the_operator": ("times", 1),
    "corruption_ms": ("corruption ms", 1),
    "network_ms": ("network ms", 1),
    "level_ms": ("ms a level", 1),
    "corruption_share": ("corruption %", 0.01),
    "memory_bytes": ("MiB", 2**20),
    "estimated_bytes": ("estimated", 2**20),
}
# Names of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def pick_device(name: str) -> torch.device:
    """The device called ``name``, made the current one: torch's timer waits for the current device."""
    device = console.pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def describe(device: torch.device) -> str:
    """The device, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def seconds(run: Callable[[], object]) -> float:
    """Time of a call, with the work that it leaves on the device.

    ``Timer.timeit`` makes at least two more calls to warm up, and the slowest calls take minutes.
    """
    start = timer()
    run()
    return timer() - start


def interleaved(runs: Sequence[Callable[[], Result]], repeats: int) -> list[tuple[Result, ...]]:
    """Results of each run. Repeats are interleaved, so load drift affects all contenders equally."""
    rounds = [[run() for run in runs] for _ in trange(repeats, desc="measuring", unit="round", leave=False)]
    return list(zip(*rounds, strict=True))


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Largest memory that a call takes beyond what is in use before it [bytes]; None if it cannot be measured.

    On the CPU it is the peak of the resident set, as Linux counts it, in a process that returns freed memory at once
    (:func:`in_own_process`).
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return None
    run()
    return _resident("VmHWM") - before


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """The result of a call in a fresh process, which returns freed memory at once; function and arguments are pickled."""
    with ProcessPoolExecutor(1, get_context("spawn"), _start) as pool:
        return pool.submit(function, *arguments).result()


def _start() -> None:
    console.start_warp()
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 2**16)
        mallopt(M_TRIM_THRESHOLD, 0)


def _resident(name: str) -> int:
    """Resident set of this process [bytes]: now (VmRSS) or its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def print_table(keys: Sequence[str], rows: Sequence[Mapping[str, object]], heads: bool) -> None:
    """Print the values of these keys that the rows have, with or without a line of heads; ``-`` stands for None."""
    columns = [(key, *COLUMNS.get(key, (key, 1))) for key in keys if rows and key in rows[0]]
    lines = [[head for _, head, _ in columns]] if heads else []
    lines += [[_shown(row[key], unit) for key, _, unit in columns] for row in rows]
    for line in lines:
        print("".join(f"{cell:>{max(len(head) + 2, 9)}}" for cell, (_, head, _) in zip(line, columns, strict=True)))


def _shown(value: object, unit: float) -> str:
    if value is None or isinstance(value, (bool, str)):
        return {None: "-", True: "yes", False: "no"}.get(value, value)
    number = value / unit
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"
