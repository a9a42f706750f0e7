"""Command lines in processes of their own, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from cli import signals

INTERRUPTED = {code for number in signals.ENDING for code in (-number, 128 + number)}


class Job(NamedTuple):
    """Commands that are carried out one after the other, until one fails."""

    name: str
    commands: Sequence[Sequence[str]]
    """Arguments of Python, such as ``["-m", "cli.train"]``; ``--device`` is added. The commands start with ``console.run``."""
    log: Path
    """File that their output is added to, unless there is only one job at a time; the terminal then shows it."""


def side_by_side(jobs: Sequence[Job], devices: Sequence[str]) -> Iterator[tuple[Job, str]]:
    """Carry out jobs, as many at a time as there are devices, with equal shares of the CPU's threads.

    After SIGINT or SIGTERM no more commands are started. However this process ends, commands that are still running get SIGTERM.

    Args:
        jobs: what to do.
        devices: a device for every job at a time; the same one may occur more than once.

    Yields:
        Every job that has ended, and one line about what went wrong, empty if nothing did; no job that was ended.

    Raises:
        KeyboardInterrupt: with the number of the signal, behind all that, if there was one.
    """
    shown, closed = len(devices) == 1, Event()
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)
    threads = max(1, torch.get_num_threads() // len(devices))
    # A log gets a line of a progress bar every half minute.
    environment = {signals.CHILD: "1", "OMP_NUM_THREADS": str(threads)} | ({} if shown else {"TQDM_MININTERVAL": "30"})

    def work(job: Job) -> str | None:
        device = free.get()
        try:
            return carry_out(job, device, environment, shown, lambda: closed.is_set() or bool(interrupted()))
        finally:
            free.put(device)

    with (
        signals.noted() as interrupted,
        tqdm(total=len(jobs), desc="runs", unit="run", disable=shown) as progress,
        ThreadPoolExecutor(len(devices)) as pool,
    ):
        try:
            results = {pool.submit(work, job): job for job in jobs}
            for result in as_completed(results):
                if (problem := result.result()) is not None:
                    progress.update()
                    yield results[result], problem
        finally:
            closed.set()
        if number := interrupted():
            raise KeyboardInterrupt(number)


def carry_out(job: Job, device: str, environment: dict[str, str], shown: bool, stop: Callable[[], bool]) -> str | None:
    """Carry out a job until ``stop()``; returns one line about what went wrong, empty if nothing did, or None if it was stopped."""
    for command in job.commands:
        if stop():
            return None
        if shown and command is job.commands[0]:
            print(f"\n{job.name}", flush=True)
        job.log.parent.mkdir(parents=True, exist_ok=True)
        words = [sys.executable, *command, "--device", device]
        with open(os.devnull if shown else job.log, "ab") as log:
            output = None if shown else log
            # The end of the block closes the standard input of the process, which ends the process, and waits for it.
            with subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=output, stderr=output, env=os.environ | environment
            ) as process:
                while process.poll() is None and not stop():
                    time.sleep(0.1)
        if process.returncode and stop():
            return None
        if process.returncode in INTERRUPTED:
            return "it was interrupted; the same command goes on"
        if process.returncode < 0:
            return f"its process was killed (signal {-process.returncode}), as happens when memory runs out; try fewer --jobs"
        if process.returncode:
            if shown:
                return "its message is above"
            lines = job.log.read_text(encoding="utf-8", errors="replace").splitlines()
            reason = next((line for line in reversed(lines) if line.strip()), "no message")
            return f"{reason.removeprefix('error: ')}; see {job.log}"
    return ""
