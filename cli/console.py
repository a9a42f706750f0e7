"""What the commands share towards the person in front of them: arguments, devices, errors of one line."""

from __future__ import annotations

import logging
import os
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
) -> None:
    """Parse the command line into ``config`` and run ``command`` on it; bad input ends in one line and exit code 2.

    ``default`` makes the options that are in force unless given, where they depend on the command line itself. Of the processes
    that a launcher started on a machine, the first speaks.
    """
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    description = sys.modules[command.__module__].__doc__
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lbm_warp").setLevel(logging.INFO if speaks else logging.WARNING)
    try:
        start = {} if default is None else {"default": default(sys.argv[1:])}
        arguments = tyro.cli(config, prog=f"python -m cli.{module}", description=description, console_outputs=speaks, **start)
        start_warp()
        with logging_redirect_tqdm():
            command(arguments)
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
