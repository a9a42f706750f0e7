from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import imageio.v3 as iio
import pytest
import torch
from torch import nn

from cli import benchmark, console, measure, throughput
from diffusion.presets import PRESETS
from diffusion.training.estimate import memory
from lbm_warp.checks import InputError
from tests.runs import tiny_config

CPU = torch.device("cpu")
LINUX = Path("/proc/self/clear_refs").exists()
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", tiny_config())

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cli.benchmark", *map(str, arguments)])
        try:
            console.run(benchmark.benchmark, benchmark.Benchmark, "benchmark", subcommand="operator")
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [["operator"], []])
def test_the_operator_prints_a_table_and_writes_it(call: Call, tmp_path: Path, name: list[str]) -> None:
    options = ["--sizes", "16", "24", "--batches", "1", "2", "--repeats", "1", "--out", "report.json", "--plot", "cost.png"]
    code, out, _ = call(*name, *options)
    assert code == 0 and "stored populations" in out and "MLUPS" in out
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 4 * 5 and {(row["size"], row["batch"]) for row in rows} == {(16, 1), (16, 2), (24, 1), (24, 2)}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median_seconds"])
        assert row["name"] != "operator" or row["times_the_operator"] == 1.0
    assert iio.imread(tmp_path / "cost.png").std() > 1


def test_the_operator_is_compared_with_equal_corruptions() -> None:
    """The plain kernel and torch compute the same numbers; the operator is near them, and SciPy's shortcut not far."""
    options = benchmark.OperatorBenchmark(sigma_max=0.1)
    results = {c.name: torch.as_tensor(c.run()) for c in benchmark._contenders(options, 48, 2, CPU)}
    plain = results["stored populations"]
    torch.testing.assert_close(results["torch"], plain, rtol=0, atol=1e-5)
    assert (results["operator"] - plain).abs().max() < 2 / 255
    assert (results["SciPy"] - plain).square().mean().sqrt() < 5 / 255


@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_preset_is_measured_in_every_way(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: torch.device, command: str
) -> None:
    monkeypatch.setattr(throughput, "in_own_process", lambda function, *arguments: function(*arguments))  # seconds less
    options = {"train": ["--steps", 2], "sample": ["--levels", 3]}[command]
    ways = ["--precision", "fp32", "bf16", "fp32", "--batch", 4, "--repeats", 1]
    code, out, _ = call(command, "--presets", "tiny", *ways, *options, "--device", device, "--out", "report.json")
    assert code == 0
    header, heads, *lines = out.splitlines()
    assert "medians of 1" in header and {"precision", "images/s", "corruption", "MiB"} <= set(heads.split())
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(lines) == len(rows) == 2 and [row["precision"] for row in rows] == ["fp32", "bf16"]
    for row, line in zip(rows, lines, strict=True):
        assert line.split()[:4] == ["tiny", row["precision"], "no", "4"]
        assert (row["preset"], row["compiled"], row["batch"]) == ("tiny", False, 4)
        parts = row["corruption_ms"] + row["network_ms"]
        # The rest of a batch's time is bookkeeping.
        assert 0.0 < parts <= 1.001 * 1e3 * 4 / row["images_per_second"]
        assert row["corruption_share"] == pytest.approx(row["corruption_ms"] / parts)
        assert (row["memory_bytes"] is not None) == (LINUX or device.type == "cuda")
        if command == "sample":
            assert row["levels"] == 3 and row["level_ms"] == pytest.approx(row["network_ms"] / 3)
        else:
            assert row["estimated_bytes"] == memory(tiny_config(), device, row["precision"]).total(4)


def test_where_nothing_is_named_a_cpu_trains_the_digits(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(throughput, "measure_preset", lambda kind, cases, progress: seen.extend(cases) or [])
    assert call("train", "--device", "cpu")[0] == call("sample", "--device", "cpu", "--compile")[0] == 0
    assert [(case.preset, case.batch, case.precision, case.compiled) for case in seen] == [
        ("digits", 64, "fp32", False),
        ("digits", 64, "fp32", False),
        ("digits", 64, "fp32", True),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--presets", "digit"], "unknown preset 'digit': expected one of digits"),
        (["train", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["train", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["train", "--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["sample", "--levels", "61"], "levels must be from 2 to 60, got 61"),
        (["sample", "--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["operator", "--sizes", "1"], "--sizes must be at least 2, got 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments, "--out", "report.json")
    assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value", "message"), [("WORLD_SIZE", "2", "a single process"), ("PATH", "", "C\\+\\+ compiler")])
def test_what_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        throughput.benchmark_training(throughput.TrainBenchmark(compile=True, device="cpu"))


def test_only_options_may_come_without_a_command(call: Call) -> None:
    assert call("operators")[0] == 2
    code, out, _ = call("--help")
    assert code == 0 and all(command in out for command in ("operator", "train", "sample"))


class Clockwork(throughput.Turn):
    """Turns whose numbers are known: every call takes what the list says next."""

    calls: ClassVar[list[str]] = []

    def __init__(self, case: throughput.Case, other: throughput.Turn | None = None) -> None:
        super().__init__(case, other)
        self.speeds = iter({"fp32": [7.0, 1.0, 5.0, 2.0], "bf16": [8.0, 30.0, 10.0, 20.0]}[case.precision])

    def __call__(self) -> dict[str, float]:
        if self.case.precision == "bf16" and self.case.batch > 8:
            raise torch.OutOfMemoryError
        self.calls.append(self.case.precision)
        return {"images_per_second": next(self.speeds), "corruption_ms": 1.0, "network_ms": 3.0}

    @staticmethod
    def batch(config: object, device: torch.device) -> int:
        return 8

    def size(self) -> dict[str, int]:
        return {"batch": self.case.batch}

    def kept(self) -> list[torch.Tensor]:
        return [torch.zeros(5)]

    def estimate(self) -> int:
        return 1


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, object]]]:
    monkeypatch.setattr(throughput, "in_own_process", lambda function, *arguments: 2**20)
    monkeypatch.setattr(Clockwork, "calls", [])

    def run(**options: object) -> list[dict[str, object]]:
        rows = []
        monkeypatch.setattr(throughput, "write_json", lambda path, content: rows.extend(content["rows"]))
        usual = {"presets": ("digits",), "precision": ("fp32", "bf16"), "device": "cpu", "out": Path("report.json")}
        throughput.measure(throughput.TrainBenchmark(**usual | options), Clockwork, "a turn")
        return rows

    return run


def test_turns_alternate_and_the_first_does_not_count(clockwork: Callable[..., list[dict[str, object]]]) -> None:
    rows = clockwork()
    assert Clockwork.calls == ["fp32", "bf16"] * 4
    assert [row["images_per_second"] for row in rows] == [2.0, 20.0]
    assert all(row["corruption_share"] == 0.25 and row["memory_bytes"] == 2**20 for row in rows)


def test_what_does_not_fit_is_named_and_the_rest_is_measured(
    clockwork: Callable[..., list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = clockwork(batch=9)
    assert [row["precision"] for row in rows] == ["fp32"] and rows[0]["images_per_second"] == 2.0
    assert "digits, bf16: not enough memory for 9 images at a time" in capsys.readouterr().out


def test_the_verdict_on_compiling_is_the_ratio_of_speeds() -> None:
    def row(precision: str, compiled: bool, speed: float) -> dict[str, object]:
        facts = {"preset": "digits", "precision": precision, "compiled": compiled}
        return facts | {"images_per_second": speed, "first_turn_seconds": 31.0}

    lines = throughput.verdicts(
        [row("fp32", False, 40.0), row("fp32", True, 60.0), row("bf16", False, 50.0), row("bf16", True, 50.5)]
    )
    assert lines == [
        "digits, fp32: compiling wins, 1.50 times the speed; the first turn took 31 s",
        "digits, bf16: compiling does not win, 1.01 times the speed; the first turn took 31 s",
    ]
    assert throughput.verdicts([row("fp32", False, 40.0)]) == []


@pytest.mark.parametrize("kind", [throughput.TrainingTurn, throughput.SamplingTurn])
def test_turns_share_their_weights_and_compile_apart(monkeypatch: pytest.MonkeyPatch, kind: type[throughput.Turn]) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    options = throughput.TrainBenchmark() if kind is throughput.TrainingTurn else throughput.SampleBenchmark()
    case = throughput.Case("tiny", tiny_config(), 4, "fp32", False, CPU, options)
    first = kind(case)
    second = kind(replace(case, compiled=True), first)
    third = kind(case, second)
    networks = [(turn.state if kind is throughput.TrainingTurn else turn.pipeline).network for turn in (first, second, third)]
    assert compiled == [networks[1]] and len({id(network) for network in networks}) == 3
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        assert parameters[0] is parameters[1] is parameters[2]


def test_what_stays_between_steps_is_weights_gradients_average_and_two_moments() -> None:
    turn = throughput.TrainingTurn(
        throughput.Case("tiny", tiny_config(), 4, "fp32", False, CPU, throughput.TrainBenchmark(steps=1))
    )
    turn()
    parameters = list(turn.state.network.parameters())
    # Adam counts its steps for every parameter, in four bytes.
    assert sum(tensor.nbytes for tensor in turn.kept()) == 5 * sum(p.nbytes for p in parameters) + 4 * len(parameters)


def hold(megabytes: int) -> int | None:
    """Memory of a call that holds so much twice, one after the other."""

    def run() -> None:
        for _ in range(2):
            torch.ones(megabytes * 2**18)

    run()
    return measure.peak_memory(run, CPU)


@pytest.mark.skipif(not LINUX, reason="reads Linux's /proc")
def test_memory_on_the_cpu_is_what_is_held_at_one_time() -> None:
    assert measure.in_own_process(hold, 40) == pytest.approx(40 * 2**20, rel=0.05)


@pytest.mark.skipif(not LINUX, reason="reads Linux's /proc")
def test_memory_of_a_training_step_is_near_its_estimate() -> None:
    case = throughput.Case("digits", PRESETS["digits"], 64, "fp32", False, CPU, throughput.TrainBenchmark(steps=1))
    measured = measure.in_own_process(throughput.memory_of, throughput.TrainingTurn, case)
    assert measured == pytest.approx(memory(case.config, CPU).total(64), rel=0.15)
