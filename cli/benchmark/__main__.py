"""Measure speed and memory. Options without a subcommand belong to operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from cli import console
from cli.benchmark.data import Data
from cli.benchmark.kernels import Kernels
from cli.benchmark.launches import Launches
from cli.benchmark.measure import Report
from cli.benchmark.operator import Operator
from cli.benchmark.throughput import Sample, Train


def benchmark(options: Report) -> None:
    """Run the benchmark that the options belong to."""
    options.run()


def parse(args: Sequence[str], **shown: Any) -> Report:
    """Parse a command line as ``tyro.cli`` does; ``operator`` may be left out."""
    if not args or (args[0].startswith("-") and args[0] not in ("-h", "--help")):
        args = ["operator", *args]
    return tyro.cli(Operator | Train | Sample | Data | Kernels | Launches, args=args, **shown)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m cli.benchmark``."""
    console.run("benchmark", benchmark, parse, arguments)


if __name__ == "__main__":
    main()
