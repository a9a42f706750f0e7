"""Measure speed and memory. Options without a subcommand belong to operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from cli import console
from cli.benchmark.data import Data
from cli.benchmark.operator import Operator
from cli.benchmark.throughput import Sample, Train

Benchmark = Operator | Train | Sample | Data


def benchmark(options: Benchmark) -> None:
    """Run the benchmark that the options belong to."""
    options.run()


def parse(args: Sequence[str], **settings: Any) -> Benchmark:
    """Parse a command line as ``tyro.cli`` does; ``operator`` may be left out."""
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = ["operator", *args]
    return tyro.cli(Benchmark, args=args, **settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m cli.benchmark``."""
    console.run("benchmark", benchmark, parse, arguments)


if __name__ == "__main__":
    main()
