"""Ctrl-C in a training: it never breaks off what must be done as a whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block that SIGINT does not break off; it is handled behind it, as it would have been."""
    handler = signal.getsignal(signal.SIGINT)
    # Python raises KeyboardInterrupt in the main thread alone.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if arrived:
        handler(arrived[0], None)
