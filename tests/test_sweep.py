"""The sweep command: which runs there are, what their scores become, and what survives interruptions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from cli import console, evaluate, jobs, summary, sweep
from diffusion import Pipeline
from diffusion.config import load_config
from diffusion.process import PROCESSES, ForwardProcess, named_process
from lbm_warp.checks import InputError
from tests.runs import SIZE, stripes

ROOT = Path(__file__).parent.parent
PICTURES = np.rint(255 * np.stack(stripes(41))).astype(np.uint8)
# 41 pictures: 21 of even number to learn, 20 of odd number to be scored against.
TRAINING = ("--images", 48, "--batch", 8, "--warmup", 16, "--network.width", 8, "--network.multipliers", 1, 2, "--levels", 6)
COMMON = ("--data", "data", "--size", SIZE, *TRAINING, "--features", "pixels", "--num", 15, "--cache", "cache", "--device", "cpu")
SMALL = (*COMMON, "--k", 3, "--out", "out")
PAIR = (*SMALL, "--process", "beyond-blur", "structured-noise", "--peclet", 0.1, 0, "--seeds", 2)
NAMES = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("ihd-Pe0", "beyond-blur-Pe0.1", "structured-noise-Pe0.1")]
Call = Callable[..., tuple[int, str, str]]


def save_data(folder: Path) -> None:
    folder.mkdir()
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture[0]).save(folder / f"{index:03}.png")


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cli.sweep", *map(str, arguments)])
    try:
        console.run(sweep.sweep, sweep.Sweep, "sweep", sweep.defaults)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a whole sweep: two processes at two Peclet numbers, two seeds each."""
    folder = tmp_path_factory.mktemp("sweep")
    save_data(folder / "data")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        assert run_command(monkeypatch, *PAIR) == 0
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working folder with the data."""
    monkeypatch.chdir(tmp_path)
    save_data(tmp_path / "data")
    return tmp_path


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a copy of the finished sweep."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command; returns exit code, standard output and standard error."""
    return lambda *arguments: (run_command(monkeypatch, *arguments), *capsys.readouterr())


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that are carried out."""
    names: list[str] = []
    carry_out = sweep.carry_out
    monkeypatch.setattr(sweep, "carry_out", lambda run, device: names.append(run.folder.name) or carry_out(run, device))
    return names


def planned(*arguments: object) -> sweep.Plan:
    words = tuple(map(str, arguments))
    return sweep.planned(tyro.cli(sweep.Sweep, args=words, default=sweep.defaults(words)))


def found(folder: Path) -> dict:
    return json.loads((folder / "out" / "sweep.json").read_text())


def logs(folder: Path) -> dict[str, bytes]:
    """The logs of all trainings: they grow with every step."""
    return {path.parent.name: path.read_bytes() for path in folder.glob("out/*/metrics.jsonl")}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What there is


def test_every_run_is_an_ordinary_run_of_its_name(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "out").iterdir() if path.is_dir()) == sorted(NAMES)
    for name in NAMES:
        process, peclet, seed = re.fullmatch(r"(.+)-Pe(.+)-seed(\d)", name).groups()
        config = load_config(finished / "out" / name)
        assert (config.process_name, config.process.peclet, config.training.seed) == (process, float(peclet), int(seed))
        assert config.data == "data[even]" and config.training.images == 48 and config.network.width == 8
        # Only pictures of even number were seen: the prior is a bank of all that were.
        assert len(Pipeline.from_pretrained(finished / "out" / name).prior.thumbnails) == 21
    still, flowing = (load_config(finished / "out" / name).process for name in NAMES[:2])
    assert (flowing.turbulence, flowing.offset) == ("compressible", 9.5) and still == ForwardProcess(levels=6)


def test_the_scores_are_those_of_cli_evaluate(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything left out that a run folder knows: the pictures of odd number are found from its name for the data."""
    name = NAMES[1]
    options = ("--data", "data", "--num", 15, "--features", "pixels", "--k", 3, "--cache", "other", "--out", "one.json")
    monkeypatch.setattr(sys, "argv", ["cli.evaluate", str(copy / "out" / name), *map(str, options)])
    console.run(evaluate.evaluate, evaluate.Evaluate, "evaluate")
    one, whole = json.loads(Path("one.json").read_text()), found(copy)
    assert one["reference"]["split"] == "odd" and one["scores"]["reference"] == 20
    assert whole["runs"][name] == one["scores"] and whole["scoring"]["floor"] == one["floor"]
    assert whole["scoring"]["reference"] == one["reference"] and whole["scoring"]["k"] == 3


def test_means_and_deviations_in_json_and_table(finished: Path) -> None:
    whole, lines = found(finished), (finished / "out" / "sweep.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heads = ["Frechet distance", "precision", "recall", "density", "coverage", "colour drift [1/255]"]
    assert rows[0] == ["process", "Pe", *heads]
    assert [row[:2] for row in rows[2:]] == [["ihd", "0"], ["beyond-blur", "0.1"], ["structured-noise", "0.1"], ["floor", ""]]
    scores = ["frechet_distance", "precision", "recall", "density", "coverage", "colour_drift"]
    for row in rows[2:-1]:
        for score, cell in zip(scores, row[2:], strict=True):
            values = [whole["runs"][f"{row[0]}-Pe{row[1]}-seed{seed}"][score] for seed in (0, 1)]
            digits = 2 if score in ("frechet_distance", "colour_drift") else 3
            assert cell == f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"
    assert rows[-1][2] == f"{whole['scoring']['floor']['frechet_distance']:.2f}"
    # Curves: at Pe = 0 both have the same runs.
    points = {(point["process"], point["peclet"]): point for point in whole["points"]}
    assert list(points) == [(process, value) for process in ("beyond-blur", "structured-noise") for value in (0.0, 0.1)]
    assert points["beyond-blur", 0.0]["runs"] == points["structured-noise", 0.0]["runs"] == ["ihd-Pe0-seed0", "ihd-Pe0-seed1"]
    assert points["structured-noise", 0.1]["runs"] == [f"structured-noise-Pe0.1-seed{seed}" for seed in (0, 1)]
    for point in points.values():
        values = [whole["runs"][name]["recall"] for name in point["runs"]]
        assert point["mean"]["recall"] == pytest.approx(statistics.mean(values))
        assert point["standard_deviation"]["recall"] == pytest.approx(statistics.stdev(values))
    caption = "\n".join(lines)
    for words in ("48 images", "even number", "15 samples", "20 pictures of odd number", "pixels features, k = 3", "2 seeds"):
        assert words in caption
    assert "At Pe = 0 beyond-blur and structured-noise are ihd." in caption and "finished" not in caption


def test_pictures(finished: Path) -> None:
    """The strips hold the samples that cli.sample draws; the plots are not empty."""
    for name in NAMES[:2]:
        images = Pipeline.from_pretrained(finished / "out" / name).sample(12)
        expected = (images.clamp(0, 1) * 255).round().to(torch.uint8).numpy()[:, 0]
        strip = summary.read_strip(finished / "out" / name / "strip.png")
        assert strip.shape == (SIZE + 2, 12 * (SIZE + 1) + 1, 3)
        for number, image in enumerate(expected):
            left = 1 + number * (SIZE + 1)
            # A pixel on the edge between two bytes may fall either way.
            assert np.abs(strip[1:-1, left : left + SIZE, 0].astype(int) - image).max() <= 1
    for name, height in (("sweep.png", 900), ("samples.png", 400)):
        with Image.open(finished / "out" / name) as picture:
            assert picture.height > height and len(np.unique(np.asarray(picture.convert("L")))) > 20


# Which runs


def test_processes_without_their_flow_are_one(device: torch.device) -> None:
    """What the sharing of runs at Pe = 0 rests on."""
    u0, seed = torch.from_numpy(np.stack(stripes(4))).to(device), torch.arange(4)
    level = torch.tensor([1, 20, 40, 60])
    expected = named_process("ihd").training_example(u0, level, seed)
    for name, process in PROCESSES.items():
        if process.peclet > 0.0:
            for got, want in zip(replace(process, peclet=0.0).training_example(u0, level, seed), expected, strict=True):
                assert (got - want).abs().max() < 2e-5, name


def test_values_are_the_processes_own_unless_given(place: Path) -> None:
    both = ("--process", "beyond-blur", "beyond-blur-curl", "--peclet", 0, 2, *COMMON)
    plan = planned(*both)
    one, other = (plan.curves[name][2.0][0].config.process for name in ("beyond-blur", "beyond-blur-curl"))
    assert (one.turbulence, one.offset, other.turbulence, other.offset) == ("compressible", 9.5, "curl-noise", 0.0)
    assert plan.folder == Path("sweeps/data")
    # Given, even as what is the first one's own, they hold for all.
    plan = planned(*both, "--offset", "9.5", "--noise", "0.02")
    for name in ("beyond-blur", "beyond-blur-curl"):
        for runs in plan.curves[name].values():
            assert (runs[0].config.process.offset, runs[0].config.process.noise) == (9.5, 0.02)
    assert len(plan.runs()) == 3


def test_only_processes_that_differ_in_their_flow_alone_share_a_run(place: Path) -> None:
    plan = planned("--process", "soft", "ihd", "beyond-blur", "ddpm", "--peclet", 0, "--seeds", 2, "--seed", 5, *COMMON)
    assert [run.folder.name for run in plan.runs()] == [
        f"{name}-Pe0-seed{seed}" for seed in (5, 6) for name in ("soft", "ihd", "ddpm")
    ]
    assert [run.config.training.seed for run in plan.runs()] == [5, 5, 5, 6, 6, 6]
    every = planned("--peclet", 0, "--split", "all", *COMMON).runs()[0]
    assert (every.config.data, every.evaluation.split) == ("data", "all")
    assert planned("--peclet", 0, "--split", "odd", *COMMON).runs()[0].evaluation.split == "even"


def test_a_dry_run_writes_nothing(call: Call, place: Path) -> None:
    before = files(place)
    code, out, _ = call(*PAIR, "--dry-run")
    report = json.loads(out)
    assert code == 0 and report["runs"] == NAMES and report["config"]["network"]["width"] == 8 and files(place) == before


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert sweep.devices(sweep.Sweep(jobs=3)) == ["cuda:0", "cuda:1", "cuda:0"]
    assert sweep.devices(sweep.Sweep(jobs=3, device="cuda:1")) == ["cuda:1"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sweep.devices(sweep.Sweep(jobs=2)) == ["auto"] * 2


# Going on


def test_what_is_finished_is_read_back(call: Call, copy: Path, carried_out: list[str]) -> None:
    before = found(copy), logs(copy)
    assert call(*PAIR)[0] == 0 and carried_out == [] and (found(copy), logs(copy)) == before
    # One that was lost is carried out again, and no other; so is the scoring of one whose results are damaged.
    shutil.rmtree(copy / "out" / NAMES[1])
    (copy / "out" / NAMES[2] / "metrics.json").write_text('{"sweep": ')
    code, out, _ = call(*PAIR)
    assert code == 0 and carried_out == NAMES[1:3] and "6 runs, 4 of them finished" in out
    whole = found(copy)
    for name, scores in before[0]["runs"].items():
        assert whole["runs"][name]["frechet_distance"] == pytest.approx(scores["frechet_distance"], rel=1e-6)
    after = logs(copy)
    assert {name: after[name] for name in NAMES if name != NAMES[1]} == {n: log for n, log in before[1].items() if n != NAMES[1]}
    # Fewer values are a part of the same sweep.
    carried_out.clear()
    assert call(*SMALL, "--peclet", "0.1")[0] == 0 and carried_out == []
    assert list(found(copy)["runs"]) == ["beyond-blur-Pe0.1-seed0"]


@pytest.mark.parametrize("other", [("--k", 2), ("--num", 12), ("--features", "digits")])
def test_other_scores_are_computed_without_training(call: Call, copy: Path, carried_out: list[str], other: tuple) -> None:
    before = logs(copy)
    options = (*SMALL, "--peclet", "0.1", *other)
    code, out, _ = call(*options)
    assert code == 0 and carried_out == ["beyond-blur-Pe0.1-seed0"] and "0 of them finished" in out and logs(copy) == before
    whole = found(copy)
    assert {
        "--k": whole["scoring"]["k"],
        "--num": whole["runs"][NAMES[1]]["samples"],
        "--features": whole["scoring"]["features"]["name"],
    }[other[0]] == other[1]
    assert call(*options)[0] == 0 and carried_out == ["beyond-blur-Pe0.1-seed0"]


def test_other_pictures_to_score_against_are_noticed(call: Call, copy: Path, carried_out: list[str]) -> None:
    Image.fromarray(PICTURES[1, 0] // 2).save(copy / "data" / "001.png")
    assert call(*SMALL, "--peclet", "0.1")[0] == 0 and carried_out == ["beyond-blur-Pe0.1-seed0"]


def test_a_sweep_that_is_interrupted_between_runs_goes_on(
    call: Call, place: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = sweep.carry_out

    def interrupted(run: sweep.Run, device: str) -> bool:
        if run.folder.name == NAMES[1]:
            raise KeyboardInterrupt
        return carry_out(run, device)

    monkeypatch.setattr(sweep, "carry_out", interrupted)
    options = (*SMALL, "--peclet", "0", "0.1")
    code, _, err = call(*options)
    assert code == 130 and err.endswith("interrupted\n")
    # What is known is there already.
    assert list(found(place)["runs"]) == NAMES[:1] and found(place)["points"][1]["mean"]["recall"] is None
    assert "1 of 2 runs are finished." in (place / "out" / "sweep.md").read_text()
    assert (place / "out" / "sweep.png").exists() and (place / "out" / "samples.png").exists()
    # In the middle of a training: it says so and ends well.
    monkeypatch.setattr(sweep, "carry_out", lambda run, device: False)
    code, out, _ = call(*options)
    assert code == 0 and "interrupted and saved; the same command goes on with out" in out
    monkeypatch.setattr(sweep, "carry_out", carry_out)
    assert call(*options)[0] == 0
    whole, expected = found(place)["runs"], found(finished)["runs"]
    assert list(whole) == NAMES[:2]
    for name, scores in whole.items():
        assert scores["frechet_distance"] == pytest.approx(expected[name]["frechet_distance"], rel=1e-6)


def test_a_run_that_fails_does_not_stop_the_others(call: Call, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out = sweep.carry_out
    for name in NAMES[:2]:
        (copy / "out" / name / "metrics.json").unlink()

    def failing(run: sweep.Run, device: str) -> bool:
        if run.folder.name == NAMES[0]:
            raise InputError("the loss is not finite\nat all")
        return carry_out(run, device)

    monkeypatch.setattr(sweep, "carry_out", failing)
    code, out, err = call(*PAIR)
    message = "error: 1 of 6 runs failed; ihd-Pe0-seed0: the loss is not finite at all; the same command tries again\n"
    assert code == 2 and err.endswith(message) and "5 of 6 runs are finished" in out
    assert set(found(copy)["runs"]) == set(NAMES[1:])
    monkeypatch.setattr(sweep, "carry_out", carry_out)
    assert call(*PAIR)[0] == 0 and set(found(copy)["runs"]) == set(NAMES)


# Bad input


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("--network.width", 16), "network.width = 8, not 16"),
        (("--images", 56), "training.images = 48, not 56"),
        (("--split", "odd"), "data = data[even], not data[odd]"),
        (("--noise", "0.02"), "processes.beyond-blur.noise = 0.01, not 0.02"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(call: Call, copy: Path, other: tuple, message: str) -> None:
    before = files(copy)
    code, _, err = call(*SMALL, "--peclet", "0.2", *other)
    assert code == 2 and err == f"error: out holds a sweep with {message}; choose another --out\n" and files(copy) == before


def test_bad_input_is_refused_in_one_line_and_nothing_is_written(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(place)
    zero = ("--peclet", "0")
    for arguments, message in (
        (["--process", "beyond-blr", *zero], "unknown process 'beyond-blr'"),
        (["--process", "ihd", "beyond-blr", *zero], "did you mean beyond-blur?"),
        (["--process", "beyond-blur", "ddpm", "--peclet", "0", "0.1"], "ddpm has no flow, so it takes --peclet 0 alone"),
        (["--process", "ihd", "--peclet", "0.1"], "with a flow: beyond-blur, beyond-blur-curl, structured-noise"),
        ([], "--peclet: name at least one, such as 0 0.05 0.1"),
        (["--process", *zero], "--process: name at least one, such as beyond-blur"),
        (["--peclet", "0", "0.1", "0.10"], "--peclet names 0.1 more than once"),
        (["--process", "ihd", "ihd", *zero], "--process names ihd more than once"),
        (["--peclet", "0", "-1"], "--peclet must be at least 0, got -1.0"),
        (["--peclet", "inf"], "--peclet must be at least 0, got inf"),
        (["--seeds", "0", *zero], "--seeds must be at least 1, got 0"),
        (["--jobs", "0", *zero], "--jobs must be at least 1, got 0"),
        (["--num", "1", *zero], "--num must be at least 2, got 1"),
        (["--num", "3", *zero], "a set of samples has 3 images, too few for k = 3: at least 4 are needed"),
        (["--k", "20", *zero], "each half of data has 20 images, too few for k = 20: at least 21 are needed"),
        (["--features", "vgg", *zero], "features 'vgg': expected inception, digits, pixels"),
        (["--data", "nothing", *zero], "nothing: no such folder or archive"),
        (["--blur", "none", "--peclet", "0.1"], "target step needs a blur"),
        (["--levels", "0", *zero], "levels must be at least 1, got 0"),
        (["--checkpoint-every", "0", *zero], "--checkpoint-every must be at least 1, got 0"),
        (["--device", "tpu", *zero], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (["--out", "data/000.png", *zero], "data/000.png"),
    ):
        code, _, err = call(*SMALL, *arguments)
        assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call(*SMALL, *zero)
    assert code == 2 and "leave out torchrun or accelerate launch" in err
    assert files(place) == before


def test_help_shows_the_options_of_training_too(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(f"--{name}" in out for name in ("peclet", "seeds", "jobs", "network.width", "learning-rate", "split"))
    assert "--arguments" not in out


# Several at a time


def task_of(kind: str, device: str) -> bool:
    """For other processes: what can become of a task."""
    if kind == "fails":
        raise InputError("as it\nshould")
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    return kind == "succeeds"


@pytest.mark.slow
def test_what_becomes_of_jobs(capfd: pytest.CaptureFixture[str]) -> None:
    kinds = ["succeeds", "fails", "dies", "is interrupted"]
    ended: Sequence[tuple[str, str]] = list(jobs.side_by_side(task_of, kinds, ["cpu"] * 3))
    assert dict(ended) == {"succeeds": "", "fails": "as it should", "dies": jobs.DIED}


@pytest.mark.slow
def test_jobs_find_what_one_process_finds(call: Call, place: Path, finished: Path) -> None:
    code, _, err = call(*SMALL, "--peclet", "0", "0.1", "--jobs", 2)
    assert code == 0 and "runs: 100%" in err and "training" not in err and "sampling" not in err
    whole, expected = found(place), found(finished)
    assert set(whole["runs"]) == set(NAMES[:2]) and whole["scoring"] == expected["scoring"]
    for name, scores in whole["runs"].items():
        assert scores["frechet_distance"] == pytest.approx(expected["runs"][name]["frechet_distance"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_jobs_stop_with_checkpoints(place: Path, how: signal.Signals) -> None:
    """However the command ends, Ctrl-C to all of its processes included, its jobs write a checkpoint and end too."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = [*map(str, SMALL), "--peclet", "0", "0.1", "--jobs", "2", "--checkpoint-every", str(10**9), "--images", str(10**9)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.sweep", *options],
        env=environment,
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: len(logs(place)) == 2 and all(logs(place).values()))
        if how == signal.SIGINT:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        out, err = process.communicate(timeout=60)
        wait_until(lambda: not there_are_processes(process.pid))
    finally:
        if there_are_processes(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert len(list(place.glob("out/*/checkpoints/*.safetensors"))) == 2 and found(place)["runs"] == {}
    if how != signal.SIGKILL:
        assert process.returncode == 0 and "interrupted and saved; the same command goes on with out" in out
        assert "Traceback" not in err and "error" not in err


def there_are_processes(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
