"""What the benchmarks share: options, time, memory, and tables."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch.utils.benchmark import timer
from tqdm.auto import trange

from cli import console
from diffusion.files import write_json
from lbm_warp.checks import amount, check_integer

Result = TypeVar("Result")
Row = dict[str, Any]

# Columns of the tables: head, width, and unit of the numbers.
COLUMNS: dict[str, tuple[str, int, float]] = {
    "size": ("size", 6, 1),
    "preset": ("preset", 15, 1),
    "precision": ("precision", 11, 1),
    "compiled": ("compiled", 10, 1),
    "batch": ("batch", 7, 1),
    "workers": ("workers", 9, 1),
    "name": ("name", 22, 1),
    "iterations": ("iterations", 12, 1),
    "steps": ("steps", 7, 1),
    "median_seconds": ("median s", 10, 1),
    "images_per_second": ("images/s", 10, 1),
    "cell_updates_per_second": ("MLUPS", 8, 1e6),
    "share_of_copy_bandwidth": ("of copy", 9, 1),
    "times_the_operator": ("times", 8, 1),
    "corruption_ms": ("corruption ms", 15, 1),
    "network_ms": ("network ms", 12, 1),
    "step_ms": ("ms a step", 11, 1),
    "corruption_share": ("corruption %", 14, 0.01),
    "network_share": ("network %", 11, 0.01),
    "host_share": ("host %", 8, 0.01),
    "memory_bytes": ("MiB", 9, 2**20),
    "estimated_bytes": ("estimated", 11, 2**20),
}


@dataclass(frozen=True)
class Report(ABC):
    """What all benchmarks have: a table, and its numbers in a file."""

    columns: ClassVar[Mapping[str, tuple[str, int, float]]] = COLUMNS
    out: Path | None = None
    """Write the numbers to this JSON file."""

    @abstractmethod
    def run(self) -> None:
        """Measure, print a table, write the numbers."""

    def report(self, title: str, measured: Iterable[Row], **facts: object) -> list[Row]:
        """As :meth:`table`, and write the rows. The facts are written beside them."""
        rows = self.table(title, measured)
        if self.out is not None:
            write_json(self.out, {**facts, "rows": rows})
        return rows

    def table(self, title: str, measured: Iterable[Row]) -> list[Row]:
        """Print each row as soon as it is measured; return all rows."""
        print(title)
        rows: list[Row] = []
        for row in measured:
            columns = [(row[key], *column) for key, column in self.columns.items() if key in row]
            if not rows:
                print("".join(f"{head:>{width}}" for _, head, width, _ in columns))
            print("".join(f"{_shown(value, unit):>{width}}" for value, _, width, unit in columns))
            rows.append(row)
        return rows


@dataclass(frozen=True)
class Benchmark(Report):
    """Options of the benchmarks that measure time."""

    repeats: int = 3
    """Repeats of each measurement, interleaved with those of the others; medians are reported."""

    def check(self, **lowest: int) -> None:
        """Raise InputError if an option, or one of its values, is below the lowest one."""
        for name, limit in {"repeats": 1, **lowest}.items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else () if value is None else (value,):
                check_integer(f"--{name}", number, limit)

    def interleaved(self, runs: Sequence[Callable[[], Result]]) -> list[tuple[Result, ...]]:
        """Results of each run. Repeats are interleaved, so load drift affects all contenders equally."""
        rounds = [[run() for run in runs] for _ in trange(self.repeats, desc="measuring", unit="round", leave=False)]
        return list(zip(*rounds, strict=True))

    def timed(self, device: str, work: str, measured: Iterable[Row], **facts: object) -> list[Row]:
        """As :meth:`report`, with the device and the work in the title and among the facts."""
        facts = {"device": device, "work": work, "repeats": self.repeats, **facts}
        return self.report(f"{device}; {work}, medians of {self.repeats}", measured, **facts)


def _shown(value: Any, unit: float) -> str:
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    number = value / unit
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def pick_device(name: str) -> torch.device:
    """The device called ``name``, made the current one: torch's timer waits for the current device."""
    device = console.pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def describe(device: torch.device) -> str:
    """The device, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {amount(torch.get_num_threads(), 'thread')}"


def seconds(run: Callable[[], object]) -> float:
    """Time of a call, with the work that it leaves on the device."""
    start = timer()  # Timer.timeit makes at least two more calls to warm up, and the slowest calls take minutes
    run()
    return timer() - start


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Largest memory that a call takes beyond what is in use before it [bytes]; None if it cannot be measured.

    On the CPU it is the peak of the resident set, as Linux counts it; call it :func:`in_own_process`.
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
        mallopt(-3, 2**16)  # M_MMAP_THRESHOLD in glibc's malloc.h
        mallopt(-1, 0)  # M_TRIM_THRESHOLD


def _resident(name: str) -> int:
    """Resident set of this process [bytes]: now (VmRSS) or its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
