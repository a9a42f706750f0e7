"""The commands as a person meets them: what they write, and what they say about bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from cli import benchmark, console, corrupt, sample, train

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "corrupt": (corrupt.corrupt, corrupt.Corrupt),
    "train": (train.run, train.Train),
    "sample": (sample.sample, sample.Sample),
    "benchmark": (benchmark.benchmark, benchmark.Benchmark),
}
Call = Callable[..., tuple[int, str, str]]
SMALL_RUN = ["--images", "64", "--batch", "32", "--network.width", "8", "--levels", "5"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"cli.{name}", *map(str, arguments)])
        try:
            console.run(*COMMANDS[name], name)
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small colour picture of odd size."""
    y, x = np.mgrid[0:33, 0:47]
    pixels = np.stack([5 * x, 7 * y, 255 - 5 * x], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def test_corrupt_writes_pictures_video_and_what_it_takes_to_make_them_again(call: Call, picture: Path, tmp_path: Path) -> None:
    options = [picture, "--video", "--frames", "12", "--fps", "10", "--levels", "20", "--columns", "4", "--seed", "5"]
    code, out, _ = call("corrupt", *options)
    assert code == 0 and "33 x 47" not in out and "47 x 33 px" in out
    folder = tmp_path / "outputs" / "picture"
    assert files(folder) == {"strip.png", "corrupted.png", "velocity.png", "trajectory.mp4", "corruption.json"}

    final = iio.imread(folder / "corrupted.png")
    assert final.shape == (33, 47, 3) and final.std() > 1
    video = iio.imread(folder / "trajectory.mp4")
    assert video.shape[0] == 12 + 5 + 10 and video.shape[1] % 2 == video.shape[2] % 2 == 0 and min(video.shape[1:3]) >= 512
    information = iio.immeta(folder / "trajectory.mp4")
    assert information["codec"] == "h264" and information["pix_fmt"].startswith("yuv420p") and information["fps"] == 10
    shrunk = np.asarray(Image.fromarray(video[-1]).resize((47, 33), Image.Resampling.BOX)).astype(int)
    assert abs(shrunk - final).mean() < 4

    record = json.loads((folder / "corruption.json").read_text())
    assert record["options"]["seed"] == 5 and record["peclet"] == 33.0 and len(record["sigma_px"]) == 21
    code, _, _ = call("corrupt", *options, "--out", "again")
    assert code == 0
    for name in ("corrupted.png", "strip.png"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_corrupt_without_a_picture_takes_the_bundled_one(call: Call, tmp_path: Path) -> None:
    code, _, _ = call("corrupt", "--size", "32", "--levels", "3")
    assert code == 0 and "strip.png" in files(tmp_path / "outputs" / "chelsea")


@pytest.mark.parametrize(
    "options",
    [
        ["--peclet", "0"],
        ["--turbulence", "spectral", "--boundary", "periodic"],
        ["--turbulence", "compressible", "--offset", "9.5", "--peclet", "0.2", "--sigma-max", "12"],
        ["--size", "20", "--sigma-max", "0.3L", "--sigma-min", "1px"],
        ["--turbulence-time", "5"],
    ],
    ids=" ".join,
)
def test_every_option_changes_the_result(call: Call, picture: Path, tmp_path: Path, options: list[str]) -> None:
    assert call("corrupt", picture, "--out", "default", "--levels", "9")[0] == 0
    assert call("corrupt", picture, "--out", "other", "--levels", "9", *options)[0] == 0
    default, other = (iio.imread(tmp_path / name / "corrupted.png") for name in ("default", "other"))
    assert default.shape != other.shape or (default != other).any()
    assert ("velocity.png" in files(tmp_path / "other")) == ("0" != options[1])


def test_grey_pictures_are_grey_to_the_end(call: Call, tmp_path: Path) -> None:
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "grey.png")
    assert call("corrupt", "grey.png", "--levels", "5")[0] == 0
    final = iio.imread(tmp_path / "outputs" / "grey" / "corrupted.png")
    assert (final == final[..., :1]).all()


@pytest.mark.parametrize("size", [(700, 9), (9, 700), (8, 8)])
def test_pictures_of_any_shape(call: Call, tmp_path: Path, size: tuple[int, int]) -> None:
    noise = Image.effect_noise(size, 80).convert("RGB")
    noise.save(tmp_path / "noise.png")
    assert call("corrupt", "noise.png", "--levels", "4", "--video", "--frames", "3", "--fps", "2")[0] == 0
    folder = tmp_path / "outputs" / "noise"
    assert iio.imread(folder / "corrupted.png").shape == (size[1], size[0], 3)
    assert max(iio.imread(folder / "trajectory.mp4").shape[1:3]) <= 3840
    for name in ("strip.png", "velocity.png"):
        assert max(iio.imread(folder / name).shape[:2]) < 5000


BAD_PICTURES: dict[str, Callable[[Path], object]] = {
    "missing.png": lambda path: None,
    "folder.png": lambda path: path.mkdir(),
    "text.png": lambda path: path.write_text("not a picture"),
    "one.png": lambda path: Image.new("RGB", (1, 1)).save(path),
    "nan.tiff": lambda path: Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)).save(path),
    "truncated.jpg": lambda path: (
        Image.effect_noise((64, 64), 90).save(path),
        path.write_bytes(path.read_bytes()[:700]),
    ),
}


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_pictures_are_refused_in_one_line(call: Call, tmp_path: Path, name: str) -> None:
    BAD_PICTURES[name](tmp_path / name)
    before = files(tmp_path)
    code, _, err = call("corrupt", name)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1 and name in err and "Traceback" not in err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("corrupt", ["--peclet", "-1"], "peclet must be at least 0, got -1"),
        ("corrupt", ["--peclet", "nan"], "peclet must be at least 0, got nan"),
        ("corrupt", ["--turbulence-time", "-1"], "turbulence_time must be at least 0, got -1"),
        ("corrupt", ["--sigma-max", "0.4"], "sigma_max must be at least sigma_min = 0.5 px, got 0.4 px"),
        ("corrupt", ["--sigma-max", "wide"], "a blur width is a number of pixels"),
        ("corrupt", ["--sigma-max", "infL"], "sigma_max"),
        ("corrupt", ["--levels", "0"], "--levels must be at least 1, got 0"),
        ("corrupt", ["--frames", "1"], "--frames must be at least 2"),
        ("corrupt", ["--fps", "0"], "--fps must be at least 1"),
        ("corrupt", ["--columns", "1"], "--columns must be at least 2"),
        ("corrupt", ["--size", "1"], "--size must be at least 2"),
        ("corrupt", ["--seed", str(2**63)], "--seed must be from"),
        ("corrupt", ["--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        ("corrupt", ["--device", "mps"], "--device mps: expected auto, cpu, cuda or cuda:N"),
        ("train", ["--data", "nowhere"], "nowhere"),
        ("train", ["--data", "empty"], "empty"),
        ("train", ["--data", "ffhq"], "thumbnails128x128"),
        ("train", ["--data", "hf:owner/name"], "hf:owner/name: cannot be loaded"),
        ("train", ["--stream"], "digits: only sets of the hub can be streamed"),
        ("train", ["--workers", "-1"], "--workers must be at least 0, got -1"),
        ("train", ["--process", "ihdd"], "did you mean ihd?"),
        ("train", ["--levels", "0"], "levels must be at least 1, got 0"),
        ("train", ["--size", "18"], "needs a size divisible by 4, got 18"),
        ("train", ["--peclet", "-0.1"], "peclet must be at least 0, got -0.1"),
        ("train", ["--sigma-max", "0.01"], "sigma_max must be at least sigma_min"),
        ("train", ["--batch", "0"], "batch must be at least 1, got 0"),
        ("train", ["--learning-rate", "-1"], "learning rate must be from"),
        ("train", ["--seed", "-1"], "seed must be from 0"),
        ("train", ["--network.width", "20"], "multiple of 8, got 20"),
        ("train", ["--checkpoint-every", "0"], "--checkpoint-every must be at least 1"),
        ("sample", ["nowhere"], "nowhere: no such run folder"),
        ("sample", ["empty"], "empty: not a run folder"),
        ("sample", [], "no such run folder; train one with python -m cli.train"),
        ("sample", ["empty", "--num", "0"], "--num must be at least 1, got 0"),
        ("sample", ["empty", "--seed", "-1"], "--seed must be from 0"),
        ("benchmark", ["--repeats", "0"], "--repeats must be at least 1"),
        ("benchmark", ["--sizes", "1"], "--sizes must be at least 2, got 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(call: Call, tmp_path: Path, command: str, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call(command, *arguments)
    assert code == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert files(tmp_path) == set()


@pytest.mark.parametrize("command", ["corrupt", "train"])
def test_an_output_folder_that_is_a_file_is_refused(call: Call, tmp_path: Path, command: str) -> None:
    (tmp_path / "taken").write_text("precious")
    size = ["--size", "16"]
    code, _, err = call(command, "--out", "taken", *size)
    assert code == 2 and "taken" in err and "Traceback" not in err and err.strip().splitlines()[-1].startswith("error: ")
    assert files(tmp_path) == {"taken"} and (tmp_path / "taken").read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", COMMANDS)
def test_cuda_where_there_is_none_is_refused(call: Call, command: str) -> None:
    code, _, err = call(command, "--device", "cuda")
    assert code == 2 and "torch sees 0 CUDA devices here" in err and err.count("\n") == 1


def test_nonsense_and_help(call: Call) -> None:
    for command in COMMANDS:
        assert call(command, "--no-such-option")[0] == 2
        code, out, _ = call(command, "--help")
        assert code == 0 and f"python -m cli.{command}" in out and "--device" in out


def test_train_then_sample(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("train", *SMALL_RUN)
    assert code == 0 and "1797" in out
    run = tmp_path / "runs" / "digits-beyond-blur"
    assert {"config.json", "model.safetensors", "ema.safetensors", "prior.safetensors", "metrics.jsonl"} <= files(run)
    assert iio.imread(run / "samples" / "000000064.png").ndim == 3
    assert "trained" in call("train", *SMALL_RUN)[1]

    code, out, _ = call("sample", run, "--num", "5", "--video")
    assert code == 0
    folder = tmp_path / "outputs" / "digits-beyond-blur-samples"
    images = {f"images/{i:05d}.png" for i in range(5)}
    assert files(folder) == {"grid.png", "reverse.mp4", "sampling.json"} | images
    assert iio.imread(folder / "images" / "00000.png").shape == (16, 16, 3)
    assert iio.immeta(folder / "reverse.mp4")["codec"] == "h264"
    # Sampling does not need the batch, nor the order: two at a time gives the same pictures (to rounding).
    call("sample", run, "--num", "5", "--batch", "2", "--out", "other")
    for name in images:
        difference = iio.imread(folder / name).astype(int) - iio.imread(tmp_path / "other" / name)
        assert abs(difference).max() <= 1
    call("sample", run, "--num", "5", "--seed", "1", "--out", "third")
    assert (iio.imread(folder / "grid.png") != iio.imread(tmp_path / "third" / "grid.png")).any()


def test_train_on_a_folder_of_pictures_and_refuse_its_other_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for index in range(6):
        Image.effect_noise((40, 30 + index), 60).convert("RGB").save(tmp_path / "pictures" / "deep" / f"{index}.jpg")
    options = ["--data", "pictures", "--size", "16", "--process", "beyond-blur-curl", *SMALL_RUN]
    assert call("train", *options)[0] == 0
    run = tmp_path / "runs" / "pictures-beyond-blur-curl"
    config = json.loads((run / "config.json").read_text())
    assert config["channels"] == 3 and config["size"] == 16 and config["process"]["peclet"] == 2.0
    before = files(run)
    code, _, err = call("train", *options, "--noise", "0.02")
    assert code == 2 and "holds another run (its process has noise = 0.01, this one 0.02)" in err
    assert files(run) == before
    assert call("train", *options, "--grey", "--out", "grey")[0] == 0
    assert json.loads((tmp_path / "grey" / "config.json").read_text())["channels"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "cli.train", *SMALL_RUN, "--images", "1000000", "--out", str(tmp_path / "run")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and b"interrupted and saved" in out
    assert (tmp_path / "run" / "training.safetensors").exists()


def test_benchmark_prints_a_table_and_writes_it(call: Call, tmp_path: Path) -> None:
    options = ["--sizes", "16", "24", "--batches", "1", "2", "--repeats", "1", "--out", "report.json", "--plot", "cost.png"]
    code, out, _ = call("benchmark", "operator", *options)
    assert code == 0 and "stored populations" in out and "MLUPS" in out
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 4 * 5 and {(row["size"], row["batch"]) for row in rows} == {(16, 1), (16, 2), (24, 1), (24, 2)}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["median_seconds"])
        assert row["name"] != "operator" or row["times_the_operator"] == 1.0
    assert iio.imread(tmp_path / "cost.png").std() > 1


def test_the_benchmark_compares_equal_corruptions() -> None:
    """The plain kernel and torch compute the same numbers; the operator is near them, and SciPy's shortcut not far."""
    options = benchmark.Benchmark(sigma_max=0.1)
    results = {c.name: torch.as_tensor(c.run()) for c in benchmark._contenders(options, 48, 2, torch.device("cpu"))}
    plain = results["stored populations"]
    torch.testing.assert_close(results["torch"], plain, rtol=0, atol=1e-5)
    assert (results["operator"] - plain).abs().max() < 2 / 255
    assert (results["SciPy"] - plain).square().mean().sqrt() < 5 / 255
