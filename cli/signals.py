"""SIGINT (Ctrl-C) and SIGTERM: the first ends a command in good order, a second at once. The exit code is 128 and its number."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

# Environment variable of a command that another one started: it ends when its standard input does.
CHILD = "BEYOND_BLUR_CHILD"
ENDING = (signal.SIGINT, signal.SIGTERM)
PAUSE = 0.3  # seconds in which signals are one: launchers pass on what their processes get from the terminal too


def interrupted_in_a_line() -> None:
    """Ctrl-C while a program still imports its libraries, for seconds, is said in a line and not in a traceback."""
    usual = sys.excepthook

    def said(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
        else:
            usual(kind, error, trace)

    sys.excepthook = said


@contextmanager
def handled() -> Iterator[None]:
    """A block in which SIGTERM is raised as Ctrl-C is, as KeyboardInterrupt, and a second signal ends this process at once.

    That holds in the midst of a long call of torch too, where Python's own handlers wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if CHILD in os.environ:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    threading.Thread(target=_end_at_the_second, args=(ours,), daemon=True).start()
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handler = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(wakeup)
        theirs.close()


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """A block in which SIGINT and SIGTERM are noted instead of raised, so that long work ends between two steps and saves.

    Yields:
        A function that gives the number of the first one that has arrived, 0 if none has.
    """
    arrived: list[int] = []
    previous = {number: signal.signal(number, lambda which, _: arrived.append(which)) for number in ENDING}
    try:
        yield lambda: arrived[0] if arrived else 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(error: KeyboardInterrupt) -> int:
    """What a command ends with after a signal."""
    return 128 + int(error.args[0] if error.args else signal.SIGINT)


def _raise(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _end_at_the_second(ours: socket.socket) -> None:
    """Read the numbers of all signals, which arrive even while Python is not running."""
    first = None
    while numbers := ours.recv(64):
        for number in numbers:
            # A child gets SIGTERM once more when its parent ends.
            if number not in ENDING or (number == signal.SIGTERM and CHILD in os.environ):
                continue
            now = time.monotonic()
            first = now if first is None else first
            if now - first > PAUSE:
                os._exit(128 + number)
    ours.close()


def _stop_with_parent() -> None:
    """Send SIGTERM to this process when its standard input ends, that is when the process at the other end of the pipe is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
