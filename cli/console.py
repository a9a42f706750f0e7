"""What all commands share: parsing, devices, signals, and errors of one line."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import TypeVar

import torch
import tyro
import warp as wp
from tqdm.contrib.logging import logging_redirect_tqdm

from lbm_warp.checks import InputError, check_integer

Options = TypeVar("Options")
# Environment variable of a command that another one started: it ends when its standard input does.
CHILD = "BEYOND_BLUR_CHILD"


def run(
    name: str,
    command: Callable[[Options], object],
    parse: Callable[..., Options],
    arguments: Sequence[str] | None = None,
    package: str = "cli",
) -> None:
    """Parse a command line and run the command; bad input ends in one line on standard error and exit code 2.

    Of the processes that a launcher started on a machine, only the first one prints.

    Args:
        name: the command, such as ``train``.
        command: called with the options.
        parse: ``tyro.cli`` with the type of the options bound, or a function that takes the same arguments.
        arguments: the command line; that of this process by default.
        package: where the command is.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lbm_warp").setLevel(logging.INFO if speaks else logging.WARNING)
    prog = f"beyond-blur {name}" if _is_script() else f"python -m {package}.{name}"
    description = sys.modules[command.__module__].__doc__
    words = list(sys.argv[1:] if arguments is None else arguments)
    if CHILD in os.environ:
        threading.Thread(target=stop_with_parent, daemon=True).start()
    try:
        with parse_errors():
            no_none = (tyro.conf.DisallowNone,)
            options = parse(args=words, prog=prog, description=description, console_outputs=speaks, config=no_none)
        start_warp()
        with logging_redirect_tqdm():
            command(options)
        return
    except InputError as error:
        message, code = f"error: {' '.join(str(error).split())}", 2
    except OSError as error:
        message, code = f"error: {error.filename or 'system'}: {error.strerror or error}", 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    if speaks:
        print(message, file=sys.stderr)
    sys.exit(code)


@contextmanager
def parse_errors() -> Iterator[None]:
    """A block in which what tyro says about a wrong command line, several lines in a box, is raised as an InputError of one."""
    box = io.StringIO()
    try:
        with redirect_stderr(box):
            yield
    except SystemExit as end:
        if end.code != 2:
            raise
        _, *rows = (re.sub(r"^[╰─╯-]+$", "", line.strip("│ ")) for line in [*box.getvalue().splitlines(), ""])
        # What is between the title and the next horizontal line or empty row.
        problem = " ".join(takewhile(bool, dropwhile(lambda row: not row, rows)))
        if of_object := re.match(r"Error parsing \w[\w.]*: ", problem):
            # An object was made of options that do not fit each other, or the object; its own message says all.
            raise InputError(problem[of_object.end() :].rstrip(".")) from None
        near = re.search(r"Perhaps you meant: (\S+)", " ".join(rows))
        advice = f"did you mean {near[1]}?" if near else "--help explains the options"
        raise InputError(f"{problem.rstrip('.')}; {advice}") from None


def check_at_least(options: object, **lowest: int) -> None:
    """Raise InputError unless these options are integers of at least so much, or None."""
    for name, low in lowest.items():
        if (value := getattr(options, name)) is not None:
            check_integer(f"--{name.replace('_', '-')}", value, low)


def command_line() -> str:
    """The command line of this process, to be typed again."""
    module = f"cli.{Path(sys.argv[0]).stem}"
    return shlex.join([*(["beyond-blur"] if _is_script() else ["python", "-m", module]), *sys.argv[1:]])


def _is_script() -> bool:
    """Whether this process was started as ``beyond-blur COMMAND``, or as ``python -m cli COMMAND``."""
    return sys.argv[0].endswith(("beyond-blur", os.path.join("cli", "__main__.py")))


def pick_device(name: str) -> torch.device:
    """The torch device called ``name``; ``auto`` is CUDA where there is one.

    Raises:
        InputError: if there is no such device here.
    """
    if not (found := re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", name, re.ASCII)):
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    number, count = int(found[1] or 0), torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if number >= count:
        raise InputError(f"--device {name}: torch sees {count} CUDA devices here; use --device cpu or auto")
    return torch.device("cuda", number)


def check_compiler() -> None:
    """Raise InputError unless there is what torch.compile needs."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        raise InputError("--compile needs a C++ compiler, g++ or clang++; install one or leave it out")


def start_warp() -> None:
    """Start Warp without its banner, and without its native warning about a missing driver, which CPU users do not need."""
    wp.config.log_level = wp.LOG_WARNING
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
        try:
            wp.init()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def stop_with_parent() -> None:
    """Send SIGTERM to this process when its standard input ends, that is when the process at the other end of the pipe is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def signals_noted() -> Iterator[Callable[[], bool]]:
    """A block in which SIGINT and SIGTERM are noted instead of raised, so that long work ends between two steps and saves.

    Yields:
        A function that tells whether one has arrived.
    """
    arrived: list[int] = []
    previous = {number: signal.signal(number, lambda which, _: arrived.append(which)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
