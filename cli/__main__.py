"""One command line for all commands: ``beyond-blur corrupt``, ``beyond-blur train``, ..."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module, resources
from importlib.metadata import PackageNotFoundError, version

from cli import streams

COMMANDS = ("corrupt", "compare", "explore", "train", "sample", "restore", "evaluate", "features", "dataset", "sweep", "benchmark")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command with the rest of the command line; without one, list them."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with streams.quiet():
        if name in COMMANDS:
            module = import_module(f"cli.{name}")
            (module if hasattr(module, "main") else import_module(f"cli.{name}.__main__")).main(rest)
        elif name == "--version":
            print(f"beyond-blur {installed_version()}")
        elif name in ("-h", "--help"):
            lines = (f"  {command:<11}{about(command)}" for command in COMMANDS)
            print("usage: beyond-blur COMMAND [OPTIONS]", "       beyond-blur --version", "", *lines, "", sep="\n")
            print("beyond-blur COMMAND --help lists its options.")
        else:
            print(f"error: unknown command {name!r}: expected one of {', '.join(COMMANDS)}", file=sys.stderr)
            sys.exit(2)


def installed_version() -> str:
    """The version of this program, as it was installed."""
    try:
        return version("beyond-blur")
    except PackageNotFoundError:
        return "of a checkout that is not installed"


def about(command: str) -> str:
    """What a command does: its docstring, read without importing it."""
    place = resources.files("cli") / f"{command}.py"
    place = place if place.is_file() else resources.files("cli") / command / "__init__.py"
    return (ast.get_docstring(ast.parse(place.read_text(encoding="utf-8"))) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
