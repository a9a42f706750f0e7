"""Long work in processes of its own, several at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import TypeVar

import torch
from tqdm import tqdm

from cli import console
from cli.train import Interruption
from diffusion.training.ranks import one_line

Task = TypeVar("Task")
DIED = "its process was killed, as happens when memory runs out; try fewer --jobs"


def side_by_side(call: Callable[[Task, str], bool], tasks: Sequence[Task], devices: Sequence[str]) -> Iterator[tuple[Task, str]]:
    """Call ``call(task, device)`` for all tasks, as many at a time as there are devices.

    SIGINT and SIGTERM reach the calls as SIGTERM, once, and no more are begun; so does the end of this process, whatever it was.
    What they print is not shown, a bar counts the tasks. The threads of the CPU are shared out.

    Args:
        call: a function of a module; returns False if it was interrupted.
        tasks: what to call it with; sent to another process.
        devices: one for every call at a time; the same one may be there more than once.

    Yields:
        Every task that has ended, and in a line what went wrong, empty if nothing did; none of those that were interrupted.
    """
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(devices))
    waiting, free = deque(tasks), deque(devices)
    working: dict[Connection, tuple[multiprocessing.process.BaseProcess, Task, str]] = {}
    stopping = False
    with tqdm(total=len(tasks), desc="runs", unit="run") as progress, Interruption() as interruption:
        try:
            while working or (waiting and not stopping):
                while waiting and free and not stopping:
                    task, device = waiting.popleft(), free.popleft()
                    here, there = context.Pipe(duplex=False)
                    process = context.Process(target=_work, args=(call, task, device, threads, there))
                    _start(process)
                    there.close()
                    working[here] = (process, task, device)
                for here in wait(working, timeout=0.2):
                    process, task, device = working.pop(here)
                    free.append(device)
                    try:
                        complete, problem = here.recv()
                    except EOFError:
                        complete, problem = False, "" if stopping else DIED
                    process.join()
                    if complete or problem:
                        progress.update()
                        yield task, problem
                if interruption.came() and not stopping:
                    stopping = True
                    for process, _, _ in working.values():
                        process.terminate()
        finally:
            for process, _, _ in working.values():
                process.terminate()
            for process, _, _ in working.values():
                process.join()


def _start(process: multiprocessing.process.BaseProcess) -> None:
    """Start a process that does not hear Ctrl-C, which a terminal sends to all: it is told to stop by this one."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)


def _work(call: Callable[[Task, str], bool], task: Task, device: str, threads: int, result: Connection) -> None:
    """A call in a process of its own: says whether it is complete, and what went wrong."""
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    Thread(target=_stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    console.start_warp()
    try:
        outcome = call(task, device), ""
    except Exception as error:
        outcome = False, one_line(error)
    result.send(outcome)


def _stop_with_parent() -> None:
    """Wait until the process that started this one is gone, then stop this one."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
