"""What the commands share towards the person in front of them: arguments, devices, errors of one line."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import tyro
import warp as wp
from tqdm.contrib.logging import logging_redirect_tqdm

from lbm_warp.checks import InputError

Config = TypeVar("Config")


def run(
    command: Callable[[Config], None],
    config: type[Config],
    module: str,
    default: Callable[[Sequence[str]], Config] | None = None,
    subcommand: str | None = None,
) -> None:
    """Parse the command line into ``config`` and run ``command`` on it; bad input ends in one line and exit code 2.

    ``default`` makes the options that are in force unless given, where they depend on the command line itself; ``subcommand`` is
    the one that options without a subcommand before them belong to. Of the processes that a launcher started on a machine, the
    first speaks.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    description = sys.modules[command.__module__].__doc__
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lbm_warp").setLevel(logging.INFO if speaks else logging.WARNING)
    words = sys.argv[1:]
    if subcommand is not None and (not words or (words[0].startswith("-") and words[0] not in ("-h", "--help"))):
        words.insert(0, subcommand)
    try:
        start = {} if default is None else {"default": default(words)}
        prog = f"python -m cli.{module}"
        options = tyro.cli(config, prog=prog, description=description, args=words, console_outputs=speaks, **start)
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
    """Start Warp without its banner, and without its native warning about a missing driver, which no CPU user needs."""
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
