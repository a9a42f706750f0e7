"""The reports on the CUDA kernels and on a device."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import tyro

from cli import sample, train
from cli.benchmark import __main__ as benchmark
from lbm_warp.checks import InputError
from tests.runs import exit_code
from tools import device, kernels

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a report in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    return lambda main, *arguments: (exit_code(main, *arguments), *capsys.readouterr())


LISTING = """
.text.old_cuda_kernel_forward:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.text.iterate_1a_cuda_kernel_forward:
        /*0000*/                   LDG.E R2, [R4.64] ;
.L_x_0:
        /*0008*/                   LD.E.64 R6, [R8.64] ;
.L_x_1:
        /*0010*/                   STS [R3], R2 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   STS [R3+0x8], R2 ;
.L_x_2:
        /*0070*/                   LDS R2, [R3+0x4] ;
        /*0080*/                   LDL R9, [R1] ;
        /*0090*/                   FFMA R2, R2, R6, R9 ;
        /*00a0*/               @P1 BRA `(.L_x_1) ;
        /*00a8*/               @P2 BRA `(.L_x_0) ;
        /*00b0*/                   NOP ;
"""


def test_the_path_that_runs_most_often() -> None:
    """The inner one of the loops with the barrier; without a loop the whole kernel."""
    lines = kernels.instructions(LISTING, "iterate_1a_cuda_kernel_forward")
    assert kernels.hot_path(lines) == {"STS": 2, "BAR": 1, "BRA": 2, "LDS": 1, "LDL": 1, "FFMA": 1}
    assert kernels.hot_path(kernels.instructions(LISTING, "old_cuda_kernel_forward")) == {"MOV": 1}
    straight = kernels.operations([line for line in lines if isinstance(line, str)])
    assert straight["FFMA"] == 1 and "NOP" not in straight and kernels.bytes_of(straight) == 4 + 8


def test_kernels_without_the_tools_are_refused(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    code, _, err = call(kernels.main)
    assert code == 2 and "cuobjdump and nvdisasm not found: pip install triton" in err and err.count("\n") == 1
    code, _, err = call(kernels.main, "--arch", "9")
    assert code == 2 and "--arch must be from 75 to 130, got 9" in err


@pytest.mark.slow
def test_the_iterations_on_chip_take_few_instructions(call: Call) -> None:
    try:
        kernels.find_tools()
    except InputError as error:
        pytest.skip(str(error))
    code, out, _ = call(kernels.main, "--out", "kernels.json")
    assert code == 0 and "on chip" in out
    rows = json.loads(Path("kernels.json").read_text())["rows"]
    on_chip = [row for row in rows if row["name"].startswith("on chip")]
    assert len(on_chip) == 3 and all(row["per_update"] <= 30 and row["spills_per_update"] == 0 for row in on_chip)


def test_the_report_of_a_device_is_whole_even_if_steps_fail(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step that succeeds, one that fails, one that takes too long, and one that is interrupted as it should be."""
    patient = "-c 'import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(0)); time.sleep(60)'"
    steps = (
        device.Step("Good", "-c 'print(1 + 1)'", 0.5),
        device.Step("Bad", "-c 'raise SystemExit(3)'", 0.5),
        device.Step("Slow", "-c 'import time; time.sleep(60)'", 0.01),
        device.Step("Interrupted", patient, 0.05, interrupt=True),
    )
    monkeypatch.setattr(device, "STEPS", steps)
    code, _, err = call(device.main, "--device", "cpu", "--minutes", "1", "--out", "report.md")
    assert code == 2 and "2 of 4 steps failed (Bad, Slow); report.md says how" in err
    text = Path("report.md").read_text()
    assert "torch: " in text and "```\n2\n```" in text and "exit code 3 after" in text and "it took too long; exit code" in text
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
