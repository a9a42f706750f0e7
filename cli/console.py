"""What all commands share: parsing, devices, signals, and errors of one line."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
import tyro
import warp as wp
from tqdm.contrib.logging import logging_redirect_tqdm

from lbm_warp.checks import InputError

Options = TypeVar("Options")
# Environment variable of a command that another one started: it ends when its standard input does.
CHILD = "BEYOND_BLUR_CHILD"


def run(
    name: str, command: Callable[[Options], object], parse: Callable[..., Options], arguments: Sequence[str] | None = None
) -> None:
    """Parse a command line and run the command; bad input ends in one line on standard error and exit code 2.

    Of the processes that a launcher started on a machine, only the first one prints.

    Args:
        name: the command, such as ``train``.
        command: called with the options.
        parse: ``tyro.cli`` with the type of the options bound, or a function that takes the same arguments.
        arguments: the command line; that of this process by default.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lbm_warp").setLevel(logging.INFO if speaks else logging.WARNING)
    prog = f"beyond-blur {name}" if _is_script() else f"python -m cli.{name}"
    description = sys.modules[command.__module__].__doc__
    words = list(sys.argv[1:] if arguments is None else arguments)
    if CHILD in os.environ:
        stop_with_parent()
    try:
        options = parse(args=words, prog=prog, description=description, console_outputs=speaks, config=(tyro.conf.DisallowNone,))
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
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        if device.index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices here; use --device cpu or auto")
    return device


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

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


class Interruption:
    """A block in which SIGINT and SIGTERM are noted instead of raised, so that long work ends between two steps and saves."""

    def __init__(self) -> None:
        self._came = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True

    def came(self) -> bool:
        """Whether a signal has arrived."""
        return self._came
