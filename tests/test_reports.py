"""The report on a device."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from cli import sample, train
from cli.benchmark import __main__ as benchmark
from tests.runs import exit_code
from tools import device

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a report in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    return lambda main, *arguments: (exit_code(main, *arguments), *capsys.readouterr())


def test_the_report_of_a_device_is_whole_even_if_steps_fail(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step that succeeds, one that fails, one that takes too long, and one that is interrupted as it should be."""
    patient = "-c 'import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); time.sleep(60)'"
    steps = (
        device.Step("Good", "-c 'print(1 + 1)'", 0.5, predicted="two"),
        device.Step("Bad", "-c 'raise SystemExit(3)'", 0.5),
        device.Step("Slow", "-c 'import time; time.sleep(60)'", 0.01),
        device.Step("Interrupted", patient, 0.05, interrupt=True),
    )
    monkeypatch.setattr(device, "STEPS", steps)
    code, _, err = call(device.main, "--device", "cpu", "--minutes", "1", "--out", "report.md")
    assert code == 2 and "2 of 4 steps failed (Bad, Slow); report.md says how" in err
    text = Path("report.md").read_text()
    assert "torch: " in text and "```\n2\n```" in text and "exit code 3 after" in text and "it took too long; exit code" in text
    assert text.count("Predicted") == 1 and "Predicted for an H200: two." in text
    assert text.rindex("done in") > text.index("## Interrupted")


def test_every_step_for_a_device_is_a_command_that_exists() -> None:
    """The options that are there parse; the tests are those marked ``cuda``."""
    assert sum(step.share for step in device.STEPS) == pytest.approx(1.0)
    parsers = {
        "cli.benchmark": benchmark.parse,
        "cli.train": train.parse,
        "cli.sample": lambda args: tyro.cli(sample.Sample, args=args),
    }
    for step in device.STEPS:
        _, module, *arguments = shlex.split(step.command.format(device="cpu", folder="runs"))
        if module != "pytest":
            parsers[module](args=arguments)


def test_a_device_that_is_not_there_is_named_in_one_line(call: Call) -> None:
    code, _, err = call(device.main, "--device", "cuda:99", "--out", "report.md")
    assert code == 2 and err.count("\n") == 1 and not Path("report.md").exists()
