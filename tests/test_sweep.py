"""The sweep command: which runs there are, what their scores become, and what survives interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

from cli import evaluate, render, summary, sweep, train
from cli.jobs import Job
from diffusion import Pipeline
from diffusion.files import write_json
from diffusion.forward import FlowAndBlur, Waves
from diffusion.methods import METHODS
from diffusion.run import load_config, save_config
from diffusion.size import Size
from diffusion.training.observers import grid
from tests.runs import SIZE, exit_code, files, in_this_process, said, stripes

ROOT = Path(__file__).parent.parent
PICTURES = np.rint(255 * np.stack(stripes(41))).astype(np.uint8)
# 41 pictures: 21 of even number to learn, 20 of odd number to be scored against.
TRAINING = ("--images", 48, "--batch", 8, "--warmup", 16, "--network.width", 8, "--network.multipliers", 1, 2, "--levels", 6)
COMMON = ("--data", "data", "--size", SIZE, *TRAINING, "--features", "pixels", "--num", 15, "--cache", "cache", "--device", "cpu")
SMALL = (*COMMON, "--sigma-max", 0.5, "--process", "beyond-blur", "--k", 3, "--out", "out")
PAIR = (*SMALL, "--process", "beyond-blur", "structured-noise", "--peclet", 0.1, 0, "--seeds", 2)
NAMES = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("ihd-Pe0", "beyond-blur-Pe0.1", "structured-noise-Pe0.1")]
HEADS = {
    "frechet_distance": ("Frechet distance", ".2f"),
    "kernel_distance": ("KID", ".3g"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "density": ("density", ".3f"),
    "coverage": ("coverage", ".3f"),
    "colour_drift": ("colour drift [1/255]", ".2f"),
}
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and a whole sweep, as if it had been carried out: two processes at two Peclet numbers."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "data").mkdir()
    for index, picture in enumerate(PICTURES):
        Image.fromarray(picture[0]).save(folder / "data" / f"{index:03}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for run in planned(*PAIR).runs():
            finish(run)
    return folder


@pytest.fixture
def place(tmp_path: Path, whole_sweep: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working folder with the data; processes of a sweep run this code, and on the CPU."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    shutil.copytree(whole_sweep / "data", tmp_path / "data")
    return tmp_path


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command; returns exit code, standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        return exit_code(sweep.main, *arguments), *said(capsys.readouterr())

    return command


@pytest.fixture
def swept(place: Path, whole_sweep: Path) -> Path:
    """A working folder with the data and the whole sweep."""
    shutil.copytree(whole_sweep / "out", place / "out")
    return place


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the runs that would be carried out. The sweep ends as if it was interrupted at once."""
    names: list[str] = []

    def side_by_side(jobs: Sequence[Job], devices: Sequence[str]) -> list[tuple[Job, str]]:
        names.extend(job.name for job in jobs)
        raise KeyboardInterrupt(signal.SIGTERM)

    monkeypatch.setattr(sweep, "side_by_side", side_by_side)
    return names


def planned(*arguments: object) -> sweep.Plan:
    return sweep.planned(*tyro.cli(sweep.Sweep, args=[str(word) for word in arguments], return_unknown_args=True))


def finish(run: sweep.Run) -> None:
    """Write the files of a run as cli.train and cli.evaluate leave them, with scores made up."""
    save_config(run.folder, run.config)
    asked = dict(run.asked)
    reference, k, num = (asked.pop(name) for name in ("reference", "k", "num"))
    generator = np.random.default_rng(list(run.folder.name.encode()))
    scores, floor = ({"samples": num, "reference": 20} | {name: generator.uniform() for name in HEADS} for _ in range(2))
    facts = {"reference": reference, "features": {"name": "pixels"}, "k": k, "scores": scores, "floor": floor}
    for calls in (None, *run.network_calls):
        write_json(run.scores(calls), {"samples": asked | {"source": str(run.folder), "steps": calls}} | facts)
    samples = torch.from_numpy(generator.uniform(size=(36, 1, SIZE, SIZE)))
    render.save_image(summary.last_grid(run.folder, run.config.training.images), grid(samples), "grid")


def found(folder: Path) -> dict:
    return json.loads((folder / "out" / "sweep.json").read_text())


# Which runs


def test_processes_without_their_flow_are_one(device: torch.device) -> None:
    """What the sharing of runs at Pe = 0 rests on."""
    u0, seed = torch.from_numpy(np.stack(stripes(4))).to(device), torch.arange(4)
    level = torch.tensor([1, 20, 40, 60])
    ihd, same = METHODS["ihd"], []
    expected = ihd.denoiser.example(ihd.forward, u0, level, seed)
    for name, flowing in METHODS.items():
        if sweep.has_peclet(flowing) and sweep.without_flow(flowing.changed(sigma_max=0.5)) == ihd:
            method = flowing.changed(peclet=0.0, sigma_max=0.5)
            for got, want in zip(method.denoiser.example(method.forward, u0, level, seed), expected, strict=True):
                assert (got - want).abs().max() < 2e-5, name
            same.append(name)
    assert len(same) == 6


def test_values_are_the_processes_own_unless_given(place: Path) -> None:
    both = ("--sigma-max", 0.5, "--process", "beyond-blur", "beyond-blur-curl", "--peclet", 0, 2, *COMMON)
    plan = planned(*both)
    one, other = (plan.points[name, 2.0][0].config.method.operator for name in ("beyond-blur", "beyond-blur-curl"))
    assert (type(one), one.offset, type(other), other.offset) == (Waves, 9.5, FlowAndBlur, 0.0)
    assert plan.folder == Path("sweeps/data")
    # Given, even as what is the first one's own, they hold for all.
    plan = planned(*both, "--offset", "9.5", "--noise", "0.02")
    for runs in plan.points.values():
        assert (runs[0].config.method.operator.offset, runs[0].config.method.scales.noise) == (9.5, 0.02)
    assert len(plan.runs()) == 3


@pytest.mark.slow
def test_only_processes_that_differ_in_their_flow_alone_share_a_run(place: Path) -> None:
    options = ("--seeds", 2, "--seed", 5, *COMMON)
    plan = planned("--process", "soft", "ihd", "beyond-blur-curl", "ddpm", "--peclet", 0, *options)
    assert [run.folder.name for run in plan.runs()] == [
        f"{name}-Pe0-seed{seed}" for seed in (5, 6) for name in ("soft", "ihd", "ddpm")
    ]
    assert [run.config.training.seed for run in plan.runs()] == [5, 5, 5, 6, 6, 6]
    # With their own widths, 0.5 and 1 side, they are two.
    assert len(planned("--process", "ihd", "beyond-blur", "--peclet", 0, *COMMON).runs()) == 2


@pytest.mark.parametrize(("split", "name", "other"), [("all", "data", "all"), ("odd", "data[odd]", "even")])
def test_the_commands_of_a_run_say_what_it_is(place: Path, split: str, name: str, other: str) -> None:
    run = planned("--peclet", 0.05, "--split", split, "--keep-every", 16, *SMALL).runs()[0]
    training = train.parse(run.training).suited(channels=1, count=20, probes=np.empty(0))
    assert training.out == run.folder == Path("out/beyond-blur-Pe0.05-seed0") and training.pictures.split == split
    assert training.resolve(name, 1) == run.config and "--keep-every" in run.training
    scoring = tyro.cli(evaluate.Evaluate, args=run.scoring)
    assert scoring.samples == str(run.folder) and scoring.data == "data" and scoring.evaluation.split == other
    assert (scoring.evaluation.num, scoring.evaluation.k, scoring.evaluation.features) == (15, 3, "pixels")
    asked = {name: value for name, value in run.asked.items() if name != "reference"}
    assert asked == {"k": 3, "num": 15, "seed": 0, "sampling_noise": None, "likelihood": False, "calibration": False}


def test_a_dry_run_writes_nothing(call: Call, place: Path) -> None:
    before = files(place)
    code, out, _ = call(*PAIR, "--dry-run")
    report = json.loads(out)
    assert code == 0 and report["runs"] == NAMES and report["config"]["network"]["width"] == 8 and files(place) == before


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert sweep.devices("auto", 3) == ["cuda:0", "cuda:1", "cuda:0"] and sweep.devices("cuda:1", 3) == ["cuda:1"] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert sweep.devices("auto", 2) == ["auto"] * 2


# What there is


@pytest.mark.slow
def test_means_and_deviations_in_json_and_table(call: Call, swept: Path, carried_out: list[str]) -> None:
    code, out, _ = call(*PAIR)
    assert code == 0 and "6 runs, 6 finished" in out and carried_out == []
    whole, lines = found(swept), (swept / "out" / "sweep.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["process", "Pe", *(title for title, _ in HEADS.values())]
    assert [row[:2] for row in rows[2:]] == [["ihd", "0"], ["beyond-blur", "0.1"], ["structured-noise", "0.1"], ["floor", ""]]
    for row in rows[2:-1]:
        for (score, (_, form)), cell in zip(HEADS.items(), row[2:], strict=True):
            values = [whole["runs"][f"{row[0]}-Pe{row[1]}-seed{seed}"][score] for seed in (0, 1)]
            assert cell == f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"
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
    assert "At Pe = 0 these processes are ihd: beyond-blur, structured-noise." in caption and "finished" not in caption
    for name, height in (("sweep.png", 900), ("samples.png", 400)):
        with Image.open(swept / "out" / name) as picture:
            assert picture.height > height and len(np.unique(np.asarray(picture.convert("L")))) > 20
    # Fewer values are a part of the same sweep.
    assert call(*SMALL, "--peclet", "0.1")[0] == 0 and carried_out == []
    assert list(found(swept)["runs"]) == ["beyond-blur-Pe0.1-seed0"]


@pytest.mark.slow
def test_scores_by_network_calls_are_added_to_finished_runs(call: Call, swept: Path, carried_out: list[str]) -> None:
    calls = ("--network-calls", 2, 4)
    runs = planned(*PAIR, *calls).runs()
    assert call(*PAIR, *calls)[0] == 143 and carried_out == [run.folder.name for run in runs]
    # A finished training ends at once; its own scores are kept, and only those that are missing are made.
    for run in runs:
        train, *scorings = run.job.commands
        assert train[:2] == ["-m", "cli.train"] and (run.folder / "metrics.json").exists()
        assert [line[-3:] for line in scorings] == [[n, "--out", str(run.folder / f"metrics-{n}-calls.json")] for n in ("2", "4")]
        finish(run)
    assert call(*PAIR, *calls)[0] == 0 and len(carried_out) == 6
    by_calls = found(swept)["points"][1]["by_network_calls"]
    scores = [json.loads(run.scores(4).read_text())["scores"] for run in runs if run.config.process_name == "beyond-blur"]
    expected = statistics.mean(score["recall"] for score in scores)
    assert list(by_calls) == ["2", "4"] and by_calls["4"]["mean"]["recall"] == pytest.approx(expected)
    with Image.open(swept / "out" / "network-calls.png") as picture:
        assert picture.height > 900 and len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.parametrize("size", [Size(8, 8), Size(28, 28), Size(80, 96), Size(8, 24)])
def test_the_first_samples_of_a_grid(tmp_path: Path, size: Size) -> None:
    """Samples of one grey level each are found in their order."""
    levels = torch.arange(36) * 7 / 255
    render.save_image(tmp_path / "grid.png", grid(levels[:, None, None, None].expand(-1, 1, *size)), "grid")
    shown = summary.first_samples(tmp_path / "grid.png", size)
    cells = np.split(shown, 12, axis=1)
    assert [int(cell[-1, -1, 0]) for cell in cells] == [int(cell[40, 40, 0]) for cell in cells] == [7 * n for n in range(12)]


# Going on


LOST = {
    "damaged scores": lambda folder, run: (run / "metrics.json").write_text('{"scores": '),
    "no scores": lambda folder, run: (run / "metrics.json").write_text('{"scores": []}'),
    "no configuration": lambda folder, run: (run / "config.json").unlink(),
    "half trained": lambda folder, run: (run / "samples" / "000000048.png").rename(run / "samples" / "000000040.png"),
    "other pictures": lambda folder, run: Image.fromarray(PICTURES[1, 0] // 2).save(folder / "data" / "001.png"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", [*LOST, ("--k", 2), ("--num", 12), ("--features", "digits")])
def test_what_is_not_finished_or_was_scored_in_another_way_is_carried_out(
    call: Call, swept: Path, carried_out: list[str], what: str | tuple
) -> None:
    run, options = swept / "out" / NAMES[1], what if isinstance(what, tuple) else ()
    if what in LOST:
        LOST[what](swept, run)
    code, out, _ = call(*SMALL, "--peclet", 0.1, 0, *options)
    assert code == 143 and carried_out == (NAMES[:2] if options or what == "other pictures" else NAMES[1:2])
    # Its old scores are gone before it begins: it may end half-way.
    assert not (run / "metrics.json").exists() and "interrupted and saved; the same command goes on with out" in out
    # What is known is there already.
    whole = found(swept)
    assert set(whole["runs"]) == set(NAMES[:2]) - set(carried_out) and whole["points"][1]["mean"]["recall"] is None
    if whole["runs"]:
        assert "Finished: 1 of 2 runs." in (swept / "out" / "sweep.md").read_text()


@pytest.mark.slow
def test_a_run_that_fails_does_not_stop_the_others(call: Call, swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails, one that ends too early, and one that does not."""
    runs = {run.folder.name: run for run in planned(*PAIR).runs()}
    for name in NAMES[:3]:
        (swept / "out" / name / "metrics.json").unlink()

    def side_by_side(jobs: Sequence[Job], devices: Sequence[str]) -> Iterator[tuple[Job, str]]:
        assert [job.name for job in jobs] == NAMES[:3] and devices == ["cpu"] * 3
        yield jobs[0], "the loss is not finite"
        yield jobs[1], ""
        finish(runs[jobs[2].name])
        yield jobs[2], ""

    monkeypatch.setattr(sweep, "side_by_side", side_by_side)
    code, out, err = call(*PAIR, "--jobs", 3)
    assert code == 2 and "Finished: 4 of 6 runs." in out and set(found(swept)["runs"]) == set(NAMES[2:])
    assert f"{NAMES[1]}: it ended before it was complete\n" in err
    assert err.endswith(f"error: 2 of 6 runs failed; {NAMES[0]}: the loss is not finite; the same command tries again\n")


# Bad input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("--network.width", 16), "network.width is 8, not 16"),
        (("--images", 56), "training.images is 48, not 56"),
        (("--split", "odd"), "data is data[even], not data[odd]"),
        (("--noise", "0.02"), "method.scales.noise is 0.01, not 0.02"),
        (("--process", "beyond-blur-curl", "--levels", 7, "--ema", 0.9), "training.ema is 0.999, not 0.9"),
    ],
)
def test_a_folder_of_another_sweep_is_refused(call: Call, swept: Path, other: tuple, message: str) -> None:
    before = files(swept)
    code, _, err = call(*SMALL, "--peclet", "0.2", *other)
    assert code == 2 and err == f"error: out holds another sweep ({message}); choose another --out\n" and files(swept) == before


@pytest.mark.slow
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(place)
    zero = ("--peclet", "0")
    for arguments, message in (
        (["--process", "beyond-blr", *zero], "unknown process 'beyond-blr'"),
        (["--process", "ihd", "beyond-blr", *zero], "did you mean beyond-blur?"),
        (["--process", "beyond-blur", "ddpm", "--peclet", "0", "0.1"], "ddpm has no flow, so it takes --peclet 0 alone"),
        (
            ["--process", "ihd", "--peclet", "0.1"],
            "with a flow: fluid, beyond-blur, beyond-blur-frozen, beyond-blur-curl, structured-noise",
        ),
        ([], "--peclet: name at least one, such as 0 2 4"),
        (["--process", *zero], "--process: name at least one, such as fluid"),
        ([*zero, "--network-calls", "4", "4"], "--network-calls names 4 more than once"),
        ([*zero, "--network-calls", "2", "7"], "--network-calls must be from 2 to 6, got 7"),
        (["--peclet", "0", "0.1", "0.10"], "--peclet names 0.1 more than once"),
        (["--process", "ihd", "ihd", *zero], "--process names ihd more than once"),
        (["--peclet", "0", "-1"], "--peclet must be at least 0, got -1.0"),
        (["--peclet", "inf"], "--peclet must be at least 0, got inf"),
        (["--seeds", "0", *zero], "--seeds must be at least 1, got 0"),
        (["--jobs", "0", *zero], "--jobs must be at least 1, got 0"),
        (["--num", "1", *zero], "num must be from 2 to 10000000, got 1"),
        (["--num", "3", *zero], "a set of samples has 3 images, too few for k = 3: at least 4 are needed"),
        (["--k", "20", *zero], "each half of data has 20 images, too few for k = 20: at least 21 are needed"),
        (["--features", "vgg", *zero], "features 'vgg': expected inception, inception-clean"),
        (["--data", "nothing", *zero], "nothing: no such folder or archive"),
        (["--process", "ddpm", *zero], "Unrecognized options: --sigma-max, 0.5"),
        (["--stop-after", "3", "--score-every", "9", *zero], "the runs of a sweep are equally long"),
        (["--hours", "1", *zero], "the runs of a sweep are equally long; say how long with --images"),
        (["--no-grids", *zero], "a sweep shows the last grid of every run; leave it out"),
        (["--levels", "0", *zero], "levels must be from 1 to 100000, got 0"),
        (["--checkpoint-every", "0", *zero], "checkpoint_every must be at least 1, got 0"),
        (["--device", "tpu", *zero], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        (["--out", "data/000.png", *zero], "data/000.png"),
        (["--levls", "5", *zero], "Unrecognized options: --levls, 5; did you mean --levels?"),
    ):
        code, _, err = call(*SMALL, *arguments)
        assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
    launched = {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    code, _, err = call(*SMALL, *zero)
    assert code == 2 and "leave out torchrun or accelerate launch" in err
    assert files(place) == before


def test_help_says_where_the_other_options_are(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0 and all(f"--{name}" in out for name in ("peclet", "seeds", "jobs", "split", "num"))
    assert "All options of cli.train can be given too" in " ".join(out.split())


# As a whole


@pytest.mark.slow
def test_a_sweep_as_a_whole(call: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run; then one more, of two at a time, which leaves the first as it is."""
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "side_by_side", in_this_process)
        assert call(*SMALL, "--peclet", 0.1)[0] == 0
    first = files(place / "out" / NAMES[1])
    assert call(*SMALL, "--peclet", 0, 0.1, "--jobs", 2)[0] == 0
    assert files(place / "out" / NAMES[1]) == first
    whole, names = found(place), NAMES[:2]
    assert list(whole["runs"]) == names and "training" in (place / "out" / NAMES[0] / "log.txt").read_text()
    for name, process, peclet in zip(names, ("ihd", "beyond-blur"), (0.0, 0.1), strict=True):
        run = place / "out" / name
        config, pipeline = load_config(run), Pipeline.from_pretrained(run)
        assert (config.process_name, config.method.operator.peclet, config.data) == (process, peclet, "data[even]")
        # Only pictures of even number were seen: the prior is a bank of all that were.
        assert len(pipeline.prior.thumbnails) == 21
        # The samples shown are those that cli.sample draws. A pixel on the edge between two bytes may fall either way.
        expected = (pipeline.sample(12).clamp(0, 1) * 255).round().numpy()[:, 0]
        shown = summary.first_samples(summary.last_grid(run, 48), Size(SIZE, SIZE))
        cells = [cell[8::8, 8::8, 0].astype(int) for cell in np.split(shown, 12, axis=1)]
        assert np.abs(np.stack(cells) - expected).max() <= 1
    still, flowing = (load_config(place / "out" / name).method.operator for name in NAMES[:2])
    assert isinstance(flowing, Waves) and flowing.offset == 9.5 and still == FlowAndBlur(levels=6)
    # The scores are those of cli.evaluate, which finds the other half from the name of the run's data.
    options = ("--num", 15, "--features", "pixels", "--k", 3, "--cache", "other", "--out", "one.json", "--device", "cpu")
    evaluate.main([f"out/{NAMES[1]}", "--data", "data", *map(str, options)])
    one = json.loads(Path("one.json").read_text())
    assert one["reference"]["split"] == "odd" and one["scores"]["reference"] == 20
    # A sum over another number of threads is rounded otherwise.
    distances = [scoring["floor"].pop("frechet_distance") for scoring in (whole["scoring"], one)]
    assert distances[0] == pytest.approx(distances[1], rel=1e-9)
    assert whole["scoring"] == {name: one[name] for name in ("reference", "features", "k", "floor")}
    assert whole["runs"][NAMES[1]]["frechet_distance"] == pytest.approx(one["scores"]["frechet_distance"], rel=1e-3)


@pytest.mark.slow
def test_runs_are_saved_however_a_sweep_ends(place: Path) -> None:
    """Killed, told to end, or by Ctrl-C to all of its processes: its runs write a checkpoint and end, and the next one goes on."""
    saved = [0]
    for how, peclets in ((signal.SIGKILL, (0.1,)), (signal.SIGTERM, (0.1,)), (signal.SIGINT, (0, 0.1))):
        code, out, err = end(place, how, peclets)
        newest = {run.name: int(max(run.glob("checkpoints/*.safetensors")).stem) for run in place.glob("out/*/")}
        saved.append(newest[NAMES[1]])
        assert saved[-1] > saved[-2] and len(newest) == len(peclets) and found(place)["runs"] == {}
        if how != signal.SIGKILL:
            assert code == 128 + how and "interrupted and saved; the same command goes on with out" in out
            assert "Traceback" not in err and "error" not in err


def end(place: Path, how: signal.Signals, peclets: Sequence[float]) -> tuple[int, str, str]:
    """Start a long sweep, and end it when all of its runs have trained for a while."""
    options = (*SMALL, "--peclet", *peclets, "--jobs", 2, "--checkpoint-every", 10**9, "--images", 10**9)

    def lines() -> dict[Path, int]:
        return {path: len(path.read_text().splitlines()) for path in place.glob("out/*/metrics.jsonl")}

    before = lines()
    words = [sys.executable, "-m", "cli.sweep", *map(str, options)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_until(lambda: sum(count > before.get(path, 0) for path, count in lines().items()) == len(peclets))
        (os.killpg if how == signal.SIGINT else os.kill)(process.pid, how)
        out, err = process.communicate(timeout=60)
        wait_until(lambda: not there_are_processes(process.pid))
    finally:
        if there_are_processes(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


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
