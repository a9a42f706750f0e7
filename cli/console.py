"""What all commands share: parsing, devices, and errors of one line."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from functools import partial
from itertools import dropwhile, takewhile
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

import torch
import tyro
import warp as wp
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from cli import signals, streams
from diffusion.launcher import launch
from lbm_warp.checks import MOST, InputError, amount, check_integer

Options = TypeVar("Options")
# More of these would take days, and nobody could see it.
LARGEST = {"fps": 240, "columns": 100, "frames": 100_000}


def run(
    name: str,
    command: Callable[[Options], object],
    parse: Callable[..., Options],
    arguments: Sequence[str] | None = None,
    package: str = "cli",
    common: Sequence[str] = (),
) -> None:
    """Parse a command line and run the command; bad input ends in one line on standard error and exit code 2, signals as
    :mod:`cli.signals` says.

    Of the processes that a launcher started on a machine, only the first one prints.

    Args:
        name: the command, such as ``train``.
        command: called with the options.
        parse: ``tyro.cli`` with the type of the options bound, or a function that takes the same arguments.
        arguments: the command line; that of this process by default.
        package: where the command is.
        common: options that ``--help`` shows, such as ``--seed``; all by default, and with ``--help-all``.
    """
    with streams.quiet():
        _run(name, command, parse, list(sys.argv[1:] if arguments is None else arguments), package, common)


def _run(
    name: str,
    command: Callable[[Options], object],
    parse: Callable[..., Options],
    words: Sequence[str],
    package: str,
    common: Sequence[str],
) -> None:
    logging.basicConfig(format="%(message)s")
    prog = program(name, package)
    description, speaks = sys.modules[command.__module__].__doc__, True
    try:
        speaks = launch().local_rank == 0
        logging.getLogger("lbm_warp").setLevel(logging.INFO if speaks else logging.WARNING)
        check_words(words)
        no_none = (tyro.conf.DisallowNone,)
        shown = {"prog": prog, "description": description, "console_outputs": speaks, "config": no_none}
        if common and not {"-h", "--help"}.isdisjoint(words):
            short_help(partial(parsed, parse, args=words, **shown), common)
        words = ["--help" if word == "--help-all" else word for word in words]
        options = parsed(parse, args=words, **shown)
        with signals.handled(), logging_redirect_tqdm(), warnings_in_a_line(speaks):
            start_warp()
            command(options)
        return
    except BrokenPipeError:
        raise
    except InputError as error:
        message, code = f"error: {' '.join(str(error).split())}", 2
    except UnicodeEncodeError as error:
        message, code = f"error: {error.object}: a library that this needs takes names in UTF-8 alone; rename it", 2
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for the memory of a CPU
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "can't allocate memory" not in str(error):
            raise
        message, code = "error: not enough memory for this; choose smaller pictures (--size) or fewer at a time (--batch)", 2
    except OSError as error:
        message, code = f"error: {error.filename or 'system'}: {error.strerror or error}", 2
    except KeyboardInterrupt as interrupt:
        message, code = "interrupted", signals.exit_code(interrupt)
    if speaks:
        with suppress(OSError):  # the exit code says it, too
            print(message, file=sys.stderr)
    sys.exit(code)


@contextmanager
def warnings_in_a_line(speaks: bool) -> Iterator[None]:
    """A block in which a warning is one line on standard error, said once; none if this process does not speak."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object) -> None:
        if speaks and str(message) not in said:
            said.add(str(message))
            tqdm.write(f"warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield


def check_words(words: Sequence[str]) -> None:
    """Raise InputError if a word of a command line is empty: as a path it would be the current folder."""
    for before, word in zip(["the command", *words], words, strict=False):
        if not word or re.fullmatch(r"--[\w.-]+=", word):
            raise InputError(f"an empty word {f'after {before}' if not word else f'in {word}'}; is a variable of the shell empty?")


def parsed(parse: Callable[..., Options], **arguments: Any) -> Options:
    """What tyro makes of a command line; its help has the colours of the terminal, unless NO_COLOR is set.

    Args:
        parse: ``tyro.cli`` with a type bound, or a function that takes the same arguments.
        arguments: for it.

    Raises:
        InputError: what tyro says about a wrong command line, which are several lines in a box, in one.
    """
    try:
        with redirect_stderr(io.StringIO()), _environment({"TERM": "dumb"} if os.environ.get("NO_COLOR") else {}):
            return parse(**arguments)
    except SystemExit as end:
        if end.code != 2:
            raise
    # Once more for a box without colours, wide enough for every line.
    with redirect_stderr(io.StringIO()) as box, _environment({"TERM": "dumb", "COLUMNS": "10000"}), suppress(SystemExit):
        parse(**arguments)
    _, *rows = (re.sub(r"^[╰─╯-]+$", "", line.strip("│ ")) for line in [*box.getvalue().splitlines(), ""])
    # What is between the title and the next horizontal line or empty row.
    problem = " ".join(takewhile(bool, dropwhile(lambda row: not row, rows)))
    if of_object := re.match(r"Error parsing \w[\w.]*: ", problem):
        # An object was made of options that do not fit each other, or the object; its own message says all.
        raise InputError(problem[of_object.end() :].rstrip("."))
    near = re.search(r"Perhaps you meant: (\S+)", " ".join(rows))
    advice = f"did you mean {near[1]}?" if near else "--help explains the options"
    raise InputError(f"{problem.rstrip('.')}; {advice}")


def short_help(parse: Callable[[], object], common: Sequence[str]) -> None:
    """Print the help of a command with these options alone, a sentence each, and end; ``parse()`` prints it with all."""
    with redirect_stdout(io.StringIO()) as full, _environment({"TERM": "dumb", "COLUMNS": "120"}), suppress(SystemExit):
        parse()
    # An option begins two columns in, its explanation further on; titles of groups begin one column in.
    head, _, rows = full.getvalue().partition("\n -")
    options = {}
    for row in re.findall(r"(?m)^  (?:--?\w|\[).*(?:\n {3,}\S.*)*", rows):
        usage, about = re.match(r"  (.*?)(?: {2,}|\n)(.*)", row, re.DOTALL).groups()  # type: ignore[union-attr]
        named = re.search(r"--[\w-]+", usage)
        options[named[0] if named else usage] = usage, " ".join(about.split())
    print(*head.split("\n positional")[0].split("\n options")[0].strip().splitlines(), "", sep="\n")
    shown = [name for name in options if not name.startswith("-")] + [name for name in common if name in options]
    for usage, about in (options[name] for name in shown):
        about, _, default = about.partition(" (default: ")
        about = re.split(r"(?<=\.) |; ", about)[0] + (f" ({default}" if default not in ("", "None)", "False)") else "")
        lines = textwrap.wrap(about, max(shutil.get_terminal_size().columns - 27, 40))
        print(f"  {usage:<23} " + ("\n" + " " * 26).join([""] * (len(usage) > 23) + lines).rstrip())
    print("", f"--help-all says more, with {amount(len(options) - len(shown) - 1, 'more option')}.", sep="\n")
    sys.exit(0)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """A block in which environment variables have other values."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def check_at_least(options: object, **lowest: int) -> None:
    """Raise InputError unless these options are integers of at least so much, and at most ``LARGEST`` or ``MOST``, or None."""
    for name, low in lowest.items():
        if (value := getattr(options, name)) is not None:
            check_integer(option := f"--{name.replace('_', '-')}", value, low)
            if value > (most := LARGEST.get(name, MOST)):
                raise InputError(f"{option} must be at most {most:,}, got {value}")


def check_once(option: str, values: Sequence[object]) -> None:
    """Raise InputError if a value is named twice."""
    if twice := [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise InputError(f"{option} names {', '.join(twice)} more than once")


def check_file(out: Path) -> None:
    """Raise InputError unless a file can be written there: known before hours of work, not after them."""
    if out.is_dir():
        raise InputError(f"--out {out}: a folder; expected the name of a file, such as {out / 'results.json'}")
    try:
        with TemporaryFile(dir=next(folder for folder in out.absolute().parents if folder.exists())):
            pass
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another --out") from None


def check_left_out(options: object, why: str, *names: str) -> None:
    """Raise InputError if one of these options has another value than its default, where it would change nothing."""
    for option in fields(options):  # type: ignore[arg-type]
        if option.name in names and getattr(options, option.name) != option.default:
            raise InputError(f"--{option.name.replace('_', '-')} {why}")


def command_line() -> str:
    """The command line of this process, to be typed again."""
    module = f"cli.{Path(sys.argv[0]).stem}"
    return shlex.join([*(["beyond-blur"] if _is_script() else ["python", "-m", module]), *sys.argv[1:]])


def program(name: str, package: str = "cli") -> str:
    """How a command is called here: ``beyond-blur NAME``, or ``python -m cli.NAME``."""
    return f"beyond-blur {name}" if _is_script() else f"python -m {package}.{name}"


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
        raise InputError(f"--device {name}: torch sees {amount(count, 'CUDA device')} here; use --device cpu or auto")
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
