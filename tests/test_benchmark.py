from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import nn

from cli.benchmark import __main__ as benchmark
from cli.benchmark import kernels, measure, throughput
from cli.benchmark.launches import times_of
from cli.benchmark.operator import Operator
from diffusion.presets import PRESETS
from diffusion.rng import below, seeds
from diffusion.run import RunConfig
from diffusion.training.estimate import memory
from diffusion.training.loop import ExecutionConfig
from diffusion.training.state import TrainingState
from lbm_warp.checks import InputError
from tests.runs import tiny_config

CPU = torch.device("cpu")
PLAIN = ExecutionConfig(precision="fp32")
ON_LINUX = Path("/proc/self/clear_refs").exists()
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", tiny_config())

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            benchmark.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize("name", [["operator"], []])
def test_the_operator_prints_a_table_and_writes_it(call: Call, tmp_path: Path, name: list[str]) -> None:
    options = ["--sizes", "16", "24", "--batches", "1", "2", "--repeats", "1", "--out", "report.json", "--plot", "cost.png"]
    code, out, _ = call(*name, *options)
    assert code == 0 and "stored populations" in out and out.count("MLUPS") == 1
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 4 * 5 and {(row["size"], row["batch"]) for row in rows} == {(16, 1), (16, 2), (24, 1), (24, 2)}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median_seconds"])
        assert row["name"] != "operator" or row["times_the_operator"] == 1.0
    assert iio.imread(tmp_path / "cost.png").std() > 1


def test_the_operator_is_compared_with_equal_corruptions() -> None:
    """The plain kernel and torch compute the same numbers; the operator is near them, and SciPy's shortcut not far."""
    results = {name: torch.as_tensor(run()) for name, _, run in Operator(sigma_max=0.1).contenders(48, 2, CPU)}
    plain = results["stored populations"]
    torch.testing.assert_close(results["torch"], plain, rtol=0, atol=1e-5)
    assert (results["operator"] - plain).abs().max() < 2 / 255
    assert (results["SciPy"] - plain).square().mean().sqrt() < 5 / 255


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "sample"])
def test_a_preset_is_measured_in_every_way(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: torch.device, command: str
) -> None:
    monkeypatch.setattr(measure, "in_own_process", lambda function, *arguments: function(*arguments))  # seconds less
    options = {"train": ["--steps", 2], "sample": ["--steps", 3]}[command]
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
        parts = row["corruption_ms"] + row["network_ms"] + row.get("host_ms", 0.0)
        # The rest of a batch's time is bookkeeping.
        assert 0.0 < parts <= 1.001 * 1e3 * 4 / row["images_per_second"]
        assert row["corruption_share"] == pytest.approx(row["corruption_ms"] / parts)
        assert (row["memory_bytes"] is not None) == (ON_LINUX or device.type == "cuda")
        if command == "sample":
            assert row["steps"] == 3 and row["network_ms"] < 3.0 * row["step_ms"] and row["host_ms"] > 0.0
            assert row["corruption_share"] + row["network_share"] + row["host_share"] == pytest.approx(1.0)
        else:
            assert row["estimated_bytes"] == memory(tiny_config(), device, row["precision"]).total(4)


def test_reading_is_measured_with_each_number_of_workers(call: Call, tmp_path: Path) -> None:
    options = ["--size", "8x12", "--images", 20, "--batch", 8, "--workers", 0, 1, "--repeats", 1, "--out", "report.json"]
    code, out, _ = call("data", *options)
    assert code == 0 and "20 pictures of 3 x 8 x 12" in out and len(out.splitlines()) == 4
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert [row["workers"] for row in rows] == [0, 1] and all(row["images_per_second"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--presets", "digit"], "unknown preset 'digit': expected one of digits"),
        (["train", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["train", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["sample", "--steps", "1001"], "steps must be from 2 to 1000, got 1001"),
        (["sample", "--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["operator", "--sizes", "16", "1"], "--sizes must be at least 2, got 1"),
        (["data", "--workers", "0", "-1"], "--workers must be at least 0, got -1"),
        (["kernels", "--arch", "9"], "--arch must be from 75 to 130, got 9"),
        (["launches", "--device", "cpu"], "kernels are timed on a GPU: --device cuda"),
        (["kernels", "--sizes", "1"], "--sizes must be at least 2, got 1"),
        (["data", "--size", "8x"], "size must be one number of pixels (64) or height x width"),
    ],
)
def test_bad_options_are_refused_in_one_line(call: Call, tmp_path: Path, arguments: list[str], message: str) -> None:
    code, out, err = call(*arguments, "--out", "report.json")
    assert code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "value", "message"), [("WORLD_SIZE", "2", "a single process"), ("PATH", "", "C\\+\\+ compiler")])
def test_what_is_not_there_is_not_measured(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    monkeypatch.delenv("CXX", raising=False)
    launched = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for variable, text in ({name: value} | (launched if name == "WORLD_SIZE" else {})).items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(InputError, match=message):
        throughput.Train(compile=True, device="cpu").run()


def test_only_options_may_come_without_a_command(call: Call) -> None:
    assert call("operators")[0] == 2
    code, out, _ = call("--help")
    assert code == 0 and all(command in out for command in ("operator", "train", "sample", "data"))


@dataclass(frozen=True)
class Clockwork(throughput.Throughput):
    """Turns whose speeds are known: every call takes the next of them."""

    calls: ClassVar[list[str]] = []

    def run(self) -> None:
        self.compare("a turn")

    def turn(self, config: RunConfig, state: TrainingState, device: torch.device, way: ExecutionConfig) -> throughput.Turn:
        speeds = iter({"fp32": [7.0, 1.0, 5.0, 2.0], "bf16": [8.0, 30.0, 10.0, 20.0]}[way.precision])

        def turn() -> dict[str, float]:
            if way.precision == "bf16" and config.training.batch > 64:
                raise torch.OutOfMemoryError
            self.calls.append(way.precision)
            speed = next(speeds) * (1.5 if way.compile and way.precision == "fp32" else 1.0)
            return {"images_per_second": speed, "corruption_ms": 1.0, "network_ms": 3.0, "kept_bytes": 20}

        return turn


@pytest.fixture
def clockwork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[dict[str, object]]]:
    """Measure turns of known speeds; returns the rows that are written."""
    monkeypatch.setattr(measure, "in_own_process", lambda function, *arguments: 2**20)
    monkeypatch.setattr(Clockwork, "calls", [])

    def run(**options: object) -> list[dict[str, object]]:
        Clockwork(precision=("fp32", "bf16"), device="cpu", out=tmp_path / "report.json", **options).run()
        return json.loads((tmp_path / "report.json").read_text())["rows"]

    return run


def test_turns_alternate_and_the_first_does_not_count(clockwork: Callable[..., list[dict[str, object]]]) -> None:
    rows = clockwork()
    assert Clockwork.calls == ["fp32", "bf16"] * 4
    assert [row["images_per_second"] for row in rows] == [2.0, 20.0]
    assert all(row["corruption_share"] == 0.25 and row["memory_bytes"] == 2**20 + 20 for row in rows)


def test_what_does_not_fit_is_named_and_the_rest_is_measured(
    clockwork: Callable[..., list[dict[str, object]]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = clockwork(batch=65)
    assert [row["precision"] for row in rows] == ["fp32"] and rows[0]["images_per_second"] == 2.0
    assert "digits, bf16: not enough memory for 65 images at a time" in capsys.readouterr().out


def test_the_verdict_on_compiling_is_the_ratio_of_speeds(
    clockwork: Callable[..., list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "seconds", lambda run: 31.0 if run() else 0.0)
    clockwork(compile=True)
    verdicts = [line for line in capsys.readouterr().out.splitlines() if "compiling" in line]
    assert verdicts == [
        "digits, fp32: compiling wins, 1.50 times the speed; the first turn took 31 s",
        "digits, bf16: compiling does not win, 1.00 times the speed; the first turn took 31 s",
    ]


@pytest.mark.parametrize("benchmarked", [throughput.Train(steps=1), throughput.Sample()])
def test_turns_share_their_weights_and_compile_apart(monkeypatch: pytest.MonkeyPatch, benchmarked: throughput.Throughput) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, options=None: compiled.append(self))
    state = TrainingState.initial(tiny_config(), CPU)
    for way in (PLAIN, replace(PLAIN, compile=True), PLAIN):
        benchmarked.turn(tiny_config(), state, CPU, way)()
    shared = state.network if isinstance(benchmarked, throughput.Train) else state.average.network
    assert len(compiled) == 1 and compiled[0] is not shared
    assert all(own is other for own, other in zip(compiled[0].parameters(), shared.parameters(), strict=True))


def test_what_stays_between_steps_is_weights_gradients_average_and_two_moments() -> None:
    state = TrainingState.initial(tiny_config(), CPU)
    kept = throughput.Train(steps=1).turn(tiny_config(), state, CPU, PLAIN)()["kept_bytes"]
    parameters = list(state.network.parameters())
    # Adam counts its steps for every parameter, in four bytes.
    assert kept == 5 * sum(p.nbytes for p in parameters) + 4 * len(parameters)


def hold(megabytes: int) -> int | None:
    """Memory of a call that holds so much twice, one after the other."""

    def run() -> None:
        for _ in range(2):
            torch.ones(megabytes * 2**18)

    run()
    return measure.peak_memory(run, CPU)


@pytest.mark.slow
@pytest.mark.skipif(not ON_LINUX, reason="reads Linux's /proc")
def test_memory_on_the_cpu_is_what_is_held_at_one_time() -> None:
    assert measure.in_own_process(hold, 40) == pytest.approx(40 * 2**20, rel=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not ON_LINUX, reason="reads Linux's /proc")
@pytest.mark.parametrize(("options", "tolerance"), [(["train", "--steps", 1], 0.15), (["sample", "--steps", 2], 0.3)])
def test_a_cpu_measures_the_digits_and_their_memory_is_near_the_estimate(
    call: Call, tmp_path: Path, options: list[object], tolerance: float
) -> None:
    assert call(*options, "--device", "cpu", "--repeats", 1, "--out", "report.json")[0] == 0
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert (row["preset"], row["batch"], row["precision"], row["compiled"]) == ("digits", 64, "fp32", False)
    assert row["memory_bytes"] == pytest.approx(row["estimated_bytes"], rel=tolerance)


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
    code, _, err = call("kernels")
    packages = "nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm"
    assert code == 2 and f"cuobjdump and nvdisasm not found: pip install {packages}," in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="CUDA's disassembler comes with dev on Linux")
def test_every_kernel_builds_for_sm_90_and_keeps_its_numbers_in_registers(call: Call) -> None:
    """A thread of the whole kernel, set-up too; sine and cosine of large numbers take 32 bytes."""
    assert call("kernels", "--sizes", 64, "--out", "kernels.json")[0] == 0
    report = json.loads(Path("kernels.json").read_text())
    rows = {row["name"]: row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == len(list(kernels.binaries()))
    assert all(row["stack"] <= 100 and row["local"] <= 24 for row in rows.values()), rows
    on_chip = [row for name, row in rows.items() if name.startswith("on chip")]
    assert len(on_chip) == 2 and all(row["per_update"] <= 22.2 and row["bytes_per_update"] == 0 for row in on_chip)


def test_times_of_kernels_are_gathered_by_name() -> None:
    found = [SimpleNamespace(name=name, elapsed=elapsed) for name, elapsed in (("a", 0.02), ("b", 0.5), ("a", 0.04), ("a", 0.03))]
    assert times_of(found, calls=2) == [
        {"name": "b", "launches": 0.5, "median_us": 500.0, "total_ms": 0.25},
        {"name": "a", "launches": 1.5, "median_us": 30.0, "total_ms": pytest.approx(0.045)},
    ]


def test_a_call_is_counted_without_a_device() -> None:
    """A larger image takes a second grid."""
    small, large = kernels.count_call(64, images=2), kernels.count_call(128, images=2)
    assert 1 < small["launches"] <= 5 < large["launches"] <= 11
    assert small["operations"] <= 12 and large["operations"] <= 20


def test_a_pair_of_a_training_is_counted_without_a_device() -> None:
    """Images of ffhq-128 at the last level, at levels on each of the three grids, and at those that training steps draw."""
    operator, u = PRESETS["ffhq-128"].method.operator, torch.empty((32, 3, 128, 128), device="meta")
    drawn = [below(operator.levels, seeds(seed, "image", np.arange(32)), "level") + 1 for seed in range(4)]
    for level in (operator.levels, torch.linspace(1, operator.levels, 32).long(), *drawn):
        pair = kernels.counted(lambda level=level: operator.pair(u, level, range(32)))
        assert 1 < pair["launches"] <= 17 and pair["operations"] <= 47
