"""Try everything on a device: tests, throughput, training steps, a training that is interrupted, sampling.

The result is one report in Markdown, whole even if a step fails.
"""

from __future__ import annotations

import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
import warp as wp
from tqdm.auto import tqdm

from cli import console
from diffusion.files import whole_file
from lbm_warp.checks import InputError, check_number
from lbm_warp.interop import warp_device

ABOUT = """# Report of a device

Made by `python -m tools.device` (`make cuda`). Please attach this file to an issue of the repository; it holds nothing but
what is printed below."""
# Lines of a step's output that the report keeps.
LINES = 60


class Step(NamedTuple):
    """A part of the report."""

    title: str
    command: str
    """Arguments of Python; ``{device}`` and ``{folder}`` are filled in."""
    share: float
    """Of the time, at most."""
    interrupt: bool = False
    """Send SIGINT when half of its time is over; the command has to save its work and end."""
    predicted: str = ""
    """What a model of the device says before the measurement, for an H200."""


TRAIN = "-m cli.train --preset cifar10 --data digits --images 400000 --checkpoint-every 20000 --device {device} --out {folder}/run"
STEPS = (
    Step("Tests that need the device", "-m pytest -q -m cuda -p no:cacheprovider", 0.2),
    Step(
        "Time of each kernel of the operator",
        "-m cli.benchmark launches --device {device}",
        0.05,
        predicted="a block on chip takes about 9 us to set up (52.8 us before the velocities were staged)",
    ),
    Step(
        "Registers, stack and local memory of the kernels",
        "-m cli.benchmark kernels",
        0.05,
        predicted="at most 100 bytes of stack and 24 local operations; this is counted, not measured",
    ),
    Step(
        "Throughput against copies",
        "-m cli.benchmark operator --sizes 64 128 256 512 --batches 1 32 --no-slow --device {device}",
        0.12,
        predicted="32 x 128^2: 20,000 images/s; 32 x 512^2: 1,300; 1 x 512^2: 700",
    ),
    Step(
        "Training steps, compiled and not, and the share of the corruption",
        "-m cli.benchmark train --compile --presets digits ffhq-128 --precision bf16 --device {device}",
        0.3,
        predicted="ffhq-128 220 images/s (107 with torch's own group norm), compiled 310; digits 8,000 compiled, as a CUDA graph",
    ),
    Step("A training that is interrupted", TRAIN, 0.08, interrupt=True),
    Step("The same training, resumed, and interrupted again", TRAIN, 0.08, interrupt=True),
    Step("Samples of it", "-m cli.sample {folder}/run --num 256 --device {device} --out {folder}/samples", 0.05),
    Step(
        "Sampling: shares of network, operator and host",
        "-m cli.benchmark sample --device {device}",
        0.07,
        predicted="the digits' network takes a launch a step, so the host has the largest share",
    ),
)


@dataclass(frozen=True)
class Device:
    """Options of ``python -m tools.device``."""

    device: str = "cuda"
    """cuda, cuda:N, or cpu."""
    minutes: float = 25.0
    """Time for all, at least 1; a step that takes more than its share is ended."""
    out: Path = Path("device-report.md")
    """The report; it is written anew after every step."""

    def run(self) -> None:
        """Carry out the steps one after the other."""
        check_number("--minutes", self.minutes, 1.0)
        device = console.pick_device(self.device)
        warp_device(device)  # refuses a driver that is too old for Warp
        parts, failed = [ABOUT, facts(device)], []
        with tempfile.TemporaryDirectory() as folder:
            for step in tqdm(STEPS, desc="steps", unit="step"):
                ended, text = carry_out(
                    step, step.command.format(device=self.device, folder=folder), 60.0 * self.minutes * step.share
                )
                failed += [] if ended.startswith("done") else [step.title]
                predicted = f"Predicted for an H200: {step.predicted}.\n\n" if step.predicted else ""
                parts.append(f"## {step.title}\n\n    python {step.command}\n\n{predicted}{ended}\n\n```\n{text}\n```")
                with whole_file(self.out) as aside:
                    aside.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(f"wrote {self.out}")
        if failed:
            raise InputError(f"{len(failed)} of {len(STEPS)} steps failed ({', '.join(failed)}); {self.out} says how")


def facts(device: torch.device) -> str:
    """Device, driver and versions, as a list."""
    lines: dict[str, object] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "warp": wp.config.version,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines |= {"device": properties.name, "memory": f"{properties.total_memory / 2**30:.0f} GiB"}
        lines |= {"multiprocessors": properties.multi_processor_count, "CUDA of torch": torch.version.cuda}
        versions = {"driver": wp.get_cuda_driver_version(), "CUDA of Warp": wp.get_cuda_toolkit_version()}
        lines |= {name: ".".join(map(str, version or ())) for name, version in versions.items()}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def carry_out(step: Step, command: str, seconds: float) -> tuple[str, str]:
    """How a command ended, in words that begin with ``done`` if it did what it should, and the end of its output."""
    start, environment = time.monotonic(), os.environ | {"TQDM_MININTERVAL": "30"}
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True
    )
    ended, done = "", (0, 128 + signal.SIGINT) if step.interrupt else (0,)
    try:
        text, _ = process.communicate(timeout=seconds / 2 if step.interrupt else seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            text, _ = process.communicate(timeout=max(seconds / 2, 30.0))
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        ended = "" if step.interrupt else "ended, it took too long; "
    taken = f"{time.monotonic() - start:.0f} s"
    ended = f"{ended}done in {taken}" if process.returncode in done else f"{ended}exit code {process.returncode} after {taken}"
    shown = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return ended, "\n".join(shown[-LINES:])


main = partial(console.run, "device", Device.run, partial(tyro.cli, Device), package="tools")


if __name__ == "__main__":
    main()
