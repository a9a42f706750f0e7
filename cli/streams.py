"""The standard streams of a command: closed ones, readers that leave, and letters that cannot be written."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Exit code of a command whose reader has left: 128 and the number of SIGPIPE.
LEFT = 141


def open_closed() -> None:
    """Open the standard streams that are closed: they read nothing, and what is written to them goes nowhere.

    Without that, the next file that is opened is standard output or standard error to whatever writes there.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))


@contextmanager
def quiet() -> Iterator[None]:
    """A block that can write every name, and that ends the process quietly once the reader of its output has left."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        left = isinstance(error, BrokenPipeError)
        if not left:
            print(f"error: standard output: {error.strerror or error}", file=sys.stderr)
        # At its end Python writes what is left, and would say that it cannot.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        sys.exit(LEFT if left else 2)
