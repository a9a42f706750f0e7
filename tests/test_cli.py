"""The commands as a person meets them: what they write, and what they say about bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from PIL import Image

from cli import __main__ as cli
from cli import archives, render, scene, train
from diffusion import CleanImage, ConstantNoise, Operator, Resample, Uniform, methods
from diffusion.augmentation import GeometricAugmentation
from diffusion.data.dataset import open_dataset
from diffusion.data.images import fit, read_image, resize_shorter
from diffusion.files import owned
from diffusion.methods import METHODS, Method, named_method
from diffusion.network import NetworkConfig
from diffusion.presets import OWN, PRESETS, preset_for
from diffusion.specs import to_json
from diffusion.training import observers
from diffusion.weighting import Weighting
from lbm_warp import OpticalTurbulence, SpectralTurbulence
from tests.runs import exit_code
from tests.runs import files as contents

ROOT = Path(__file__).parent.parent
Call = Callable[..., tuple[int, str, str]]
SMALL_RUN = ["--images", "64", "--batch", "32", "--network.width", "8", "--levels", "5"]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command in a fresh working folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["beyond-blur", name, *map(str, arguments)])
        return exit_code(cli.main, name, *arguments), *capsys.readouterr()

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A small colour picture of odd size."""
    y, x = np.mgrid[0:33, 0:47]
    pixels = np.stack([5 * x, 7 * y, 255 - 5 * x], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speeds are not estimated, which takes a second or two: another test looks at what is said of them."""
    monkeypatch.setattr(train, "seconds_per_image", lambda *_: 1e-3)
    monkeypatch.setattr(train, "predicted_seconds", lambda _: None)


@pytest.mark.slow
@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize("name", ["beyond-blur", "ddpm", "structured-noise"])
def test_corrupt_as_a_process_does(call: Call, picture: Path, tmp_path: Path, name: str) -> None:
    """The last level is the process's own, of the seed that was named; what it takes to make it again is written down."""
    options = ["--process", name, "--levels", "6", "--columns", "3", "--seed", "4", "--size", "24"]
    assert call("corrupt", picture, *options, "--video", "--frames", "5", "--fps", "10")[0] == 0
    out = tmp_path / "outputs" / "picture"
    forward = named_method(name).changed(levels=6).forward
    drawn = {"velocity.png"} if forward.operator.peclet > 0 else set()
    assert files(out) == {"strip.png", "corrupted.png", "corruption.json", "trajectory.mp4"} | drawn
    record = json.loads((out / "corruption.json").read_text())
    assert record["process"] == to_json(forward) and len(record["sigma_px"]) == len(record["noise"]) == 7
    u0 = torch.from_numpy(resize_shorter(read_image(picture), 24))[None]
    expected = forward.corrupt(u0, 6, torch.tensor([4]))[0].clamp(0, 1)
    found = iio.imread(out / "corrupted.png").transpose(2, 0, 1) / 255
    assert np.abs(found - expected.numpy()).max() < 0.51 / 255 + 1e-5
    assert len(iio.imread(out / "trajectory.mp4")) == 5 + 5 + 10


@pytest.mark.slow
def test_compare_draws_every_process_on_the_same_picture(call: Call, picture: Path, tmp_path: Path) -> None:
    options = ["--size", "16", "--levels", "6", "--columns", "3", "--video", "--fps", "10"]
    assert call("compare", picture, *options)[0] == 0
    out = tmp_path / "outputs" / "picture-comparison"
    assert files(out) == {"comparison.png", "comparison.mp4", "comparison.json"}
    frames = iio.imread(out / "comparison.mp4")
    assert len(frames) == 5 + 7 + 10
    # The first frames show the clean picture everywhere, the last ones seven things that differ.
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 5
    whole = iio.imread(out / "comparison.png")
    assert call("compare", picture, *options[:-3], "--processes", "ihd", "ddpm", "--out", "two")[0] == 0
    assert iio.imread("two/comparison.png").shape[0] < whole.shape[0] / 2
    assert files(Path("two")) == {"comparison.png", "comparison.json"}


def test_a_very_thin_picture_is_not_enlarged_hugely_and_is_seen(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to 256 x 25,600 px, which --size asks for; the sheet shows the middle of it."""
    monkeypatch.setattr(scene, "LONGEST", 512)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 300, 3), dtype=np.uint8)).save("thin.png")
    code, out, _ = call("compare", "thin.png", "--levels", 1, "--columns", 2, "--processes", "ihd", "--out", tmp_path)
    assert code == 0 and "thin.png: 3 x 300 px; the shorter side becomes 5, not 256" in out
    with Image.open(tmp_path / "comparison.png") as sheet:
        assert sheet.height > 80 and len(np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 100


@pytest.mark.slow
def test_compilation_is_announced_once_and_only_where_it_happens(tmp_path: Path, picture: Path) -> None:
    """With a kernel cache of its own the first call compiles, the second finds everything there."""
    said = []
    for _ in range(2):
        # A command that draws no streamlines, which take longer than all the rest.
        command = [sys.executable, "-m", "cli.compare", str(picture), "--size", "16", "--levels", "2", "--columns", "2"]
        command += ["--processes", "beyond-blur-curl", "--device", "cpu"]
        environment = os.environ | {"WARP_CACHE_PATH": str(tmp_path / "kernels"), "PYTHONPATH": str(ROOT)}
        said.append(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stderr)
    assert [text.count("compiling kernels") for text in said] == [1, 0]
    assert str(tmp_path / "kernels") in said[0]


def files(folder: Path) -> set[str]:
    return set(contents(folder))


@pytest.mark.slow
def test_corrupt_writes_pictures_video_and_what_it_takes_to_make_them_again(call: Call, picture: Path, tmp_path: Path) -> None:
    options = [picture, "--video", "--frames", "12", "--fps", "10", "--levels", "20", "--columns", "4", "--seed", "5"]
    code, out, _ = call("corrupt", *options)
    assert code == 0 and "33 x 47 px" in out
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


@pytest.mark.usefixtures("empty_figures")
def test_corrupt_without_a_picture_takes_the_bundled_one(call: Call, tmp_path: Path) -> None:
    code, _, _ = call("corrupt", "--size", "32", "--levels", "3")
    assert code == 0 and "strip.png" in files(tmp_path / "outputs" / "chelsea")


@pytest.mark.usefixtures("empty_figures")
def test_corrupt_shows_the_air_in_time(call: Call, picture: Path, tmp_path: Path) -> None:
    small = ["--air", "3", "--view", "2e-4", "--wind", "2", "--levels", "2", "--columns", "2", "--size", "16", "--seed", "4"]
    code, _, err = call("corrupt", picture, "--out", "air", *small, "--video", "--frames", "3", "--fps", "5")
    assert code == 0, err
    film = iio.imread(tmp_path / "air" / "trajectory.mp4")
    assert len(film) == 3 and (film[0] != film[2]).any()
    air = OpticalTurbulence(3.0, view=2e-4, wind=2.0, levels=2)
    assert json.loads((tmp_path / "air" / "corruption.json").read_text())["operator"] == to_json(air)
    u0 = torch.from_numpy(resize_shorter(read_image(picture), 16))[None]
    np.testing.assert_array_equal(iio.imread(tmp_path / "air" / "corrupted.png"), render.to_pixels(air(u0, 2, 4)[0]))


@pytest.mark.usefixtures("empty_figures")
def test_every_option_changes_the_result(call: Call, picture: Path, tmp_path: Path) -> None:
    small = ["--levels", "5", "--columns", "2", "--size", "20"]
    assert call("corrupt", picture, "--out", "default", *small)[0] == 0
    default = iio.imread(tmp_path / "default" / "corrupted.png")
    for options in (
        ["--peclet", "0"],
        ["--turbulence", "spectral", "--boundary", "periodic", "--peclet", "5"],
        ["--turbulence", "compressible", "--offset", "9.5", "--peclet", "0.2", "--sigma-max", "12"],
        ["--size", "16", "--sigma-max", "0.3L", "--sigma-min", "1px", "--peclet", "5"],
        ["--turbulence-time", "5"],
    ):
        assert call("corrupt", picture, "--out", "other", *small, *options)[0] == 0
        other = iio.imread(tmp_path / "other" / "corrupted.png")
        assert default.shape != other.shape or (default != other).any()
        assert ("velocity.png" in files(tmp_path / "other")) == (options != ["--peclet", "0"])
        shutil.rmtree(tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "mode"), [((700, 9), "RGB"), ((9, 700), "RGB"), ((8, 8), "L")])
def test_pictures_of_any_shape(call: Call, tmp_path: Path, size: tuple[int, int], mode: str) -> None:
    noise = Image.effect_noise(size, 80).convert(mode)
    noise.save(tmp_path / "noise.png")
    assert call("corrupt", "noise.png", "--levels", "4", "--video", "--frames", "3", "--fps", "2")[0] == 0
    folder = tmp_path / "outputs" / "noise"
    final = iio.imread(folder / "corrupted.png")
    assert final.shape == (size[1], size[0], 3) and (mode == "RGB" or (final == final[..., :1]).all())
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
        ("corrupt", ["--peclet", "-1"], "peclet must be from 0 to 1000000, got -1"),
        ("corrupt", ["--air", "0"], "d_over_r0 must be from 0.001"),
        ("corrupt", ["--air", "3", "--octaves", "2"], "--octaves does not go with --air"),
        ("corrupt", ["--view", "1"], "--view is for turbulent air; add --air"),
        ("corrupt", ["--peclet", "nan"], "peclet must be from 0 to 1000000, got nan"),
        ("corrupt", ["--turbulence-time", "-1"], "turbulence_time must be at least 0, got -1"),
        ("corrupt", ["--process", "ddmp"], "unknown process 'ddmp'"),
        ("corrupt", ["--process", "ihd", "--sigma-max", "0.1L"], "--sigma-max does not go with --process, which has its own"),
        ("corrupt", ["--process", "ddpm", "--peclet", "1"], "--peclet does not go with --process ddpm, which has no flow"),
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
        ("train", ["--workers", "-1"], "workers must be from 0 to 1024, got -1"),
        ("train", ["--levls", "5"], "Unrecognized options: --levls, 5; did you mean --levels?"),
        ("train", ["--images", "many"], "Error parsing --images: invalid literal for int() with base 10: 'many'; --help explains"),
        ("train", ["--precision", "fp64"], "invalid choice 'fp64' for argument '--precision'"),
        ("train", ["--size", "96x"], "got '96x'"),
        ("corrupt", ["a.png", "b.png"], "Unrecognized options: b.png"),
        ("sample", ["--num"], "Missing value for argument '-n/--num'"),
        ("evaluate", [], "Missing from beyond-blur evaluate: SAMPLES"),
        ("paint", [], "unknown command 'paint': expected one of corrupt, compare, explore, train"),
        ("train", ["--process", "ihdd"], "did you mean ihd?"),
        ("train", ["--levels", "0"], "levels must be from 1 to 100000, got 0"),
        ("train", ["--size", "18"], "needs sides divisible by 4, got size 18"),
        ("train", ["--peclet", "-0.1"], "peclet must be from 0 to 1000000, got -0.1"),
        ("train", ["--sigma-max", "0.01"], "sigma_max must be at least sigma_min"),
        ("train", ["--sigma-max", "9"], "sigma_max must be at most 2 longer sides = 32 px"),
        ("corrupt", ["--size", "16", "--sigma-max", "1000"], "sigma_max must be at most 2 longer sides = 48 px"),
        ("train", ["--batch", "0"], "batch must be from 1 to 1000000, got 0"),
        ("train", ["--learning-rate", "-1"], "learning rate must be from"),
        ("train", ["--seed", "-1"], "seed must be from 0"),
        ("train", ["--network.width", "20"], "multiple of 8, got 20"),
        ("train", ["--checkpoint-every", "0"], "checkpoint_every must be at least 1"),
        ("train", ["--keep-every", "0"], "keep_every must be at least 1, got 0"),
        ("train", ["--accumulate", "0"], "accumulate must be at least 1, got 0"),
        ("train", ["--checkpoint-minutes", "-1"], "checkpoint_minutes must be from 0 to 100000, got -1"),
        ("train", ["--preset", "ffhq128"], "unknown preset 'ffhq128': expected one of digits, fashion-mnist, emoji,"),
        ("train", ["--preset=ffhq128"], "did you mean ffhq-128?"),
        ("train", ["--preset", "cifar10", "--size", "36"], "needs sides divisible by 8, got size 36"),
        ("train", ["--preset", "ffhq-128", "--dry-run", "--peclet", "-1"], "peclet must be from 0 to 1000000, got -1"),
        ("train", ["--measure"], "--measure goes with --dry-run"),
        ("train", ["--sampling-noise", "-1"], "sampling noise must be at least 0, got -1"),
        ("sample", ["nowhere"], "nowhere: no such run folder"),
        ("sample", ["empty"], "empty: not a run folder"),
        ("sample", ["empty/mine"], "empty/mine: no such run folder; train one with beyond-blur train"),
        ("sample", ["empty", "--num", "0"], "--num must be at least 1, got 0"),
        ("sample", ["empty", "--batch", "0"], "--batch must be at least 1, got 0"),
        ("sample", ["empty", "--seed", "-1"], "--seed must be from 0"),
        ("sample", ["empty", "--sampling-noise", "-1"], "--sampling-noise must be at least 0, got -1"),
        ("sample", ["--steps", "1001"], "steps must be from 2 to 1000, got 1001"),
        ("sample", ["--steps", "1"], "steps must be from 2 to 1000, got 1"),
        ("sample", ["--interpolate", "1"], "--interpolate must be at least 2, got 1"),
        ("sample", ["--interpolate", "3", "--seeds", "1-3"], "--interpolate needs --seeds in pairs, got 3 numbers"),
        ("sample", ["--seeds", "3", "x"], "--seeds takes numbers of at most 18 digits and ranges such as 3 17 100-131, got 'x'"),
        ("sample", ["--seeds", "1-9", "5-10000000"], "--seeds may name at most 10,000,000 images, got 5-10000000"),
        ("sample", ["--num", "1000000000000"], "--num must be at most 10,000,000, got 1000000000000"),
        ("sample", ["--interpolate", "2000000"], "--interpolate 2000000 would make 12,000,000 images, at most 10,000,000 are made"),
        ("sample", ["--seeds", "5-3"], "got '5-3'"),
        ("sample", ["--seeds", "0-99999999999"], "at most 10,000,000 images, got 0-99999999999"),
        ("sample", ["--seeds", "3", "--num", "2"], "--seeds names the images, --num counts them"),
        ("sample", ["--same-init", "--share-noise"], "--same-init and --share-noise do not go together"),
        ("sample", ["--interpolate", "3", "--from-image", "a.png"], "--interpolate and --from-image do not go together"),
        ("sample", ["--level", "3"], "--level goes with --from-image"),
        ("sample", ["--from-image", "a.png", "--video"], "--from-image goes with --num, and without --seeds and --video"),
        ("sample", ["--from-image", "a.png"], "a.png: no such file"),
        ("train", ["--process", "ddpm", "--peclet", "1"], "Unrecognized options: --peclet, 1"),
        ("train", ["--tell-flow", "--turbulence-time", "1"], "tell flow needs a frozen flow to be told"),
        ("train", ["--turbulence", "waves"], "invalid choice 'waves' for argument '--turbulence'"),
        ("train", ["--stop-after", "3"], "--stop-after counts scores; say how often to score with --score-every"),
        ("train", ["--stop-after", "0", "--score-every", "9"], "--stop-after must be at least 1, got 0"),
        ("compare", ["--processes", "ihdd"], "unknown process 'ihdd': expected one of fluid"),
        ("compare", ["--processes"], "--processes: name at least one of fluid"),
        ("compare", ["--processes", "ihd", "ddpm", "ihd"], "--processes names ihd more than once"),
        ("compare", ["--columns", "1"], "--columns must be at least 2, got 1"),
        ("compare", ["--columns", "5000"], "--columns must be at most 100, got 5000"),
        ("corrupt", ["--video", "--fps", "100000"], "--fps must be at most 240, got 100000"),
        ("compare", ["nowhere.png"], "nowhere.png: no such file"),
    ],
)
def test_bad_options_are_refused_in_one_line(call: Call, tmp_path: Path, command: str, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    code, _, err = call(command, *arguments)
    assert code == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert files(tmp_path) == set()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("corrupt", ["--size", "16", "--levels", "2"]),
        ("compare", ["--size", "16", "--levels", "2", "--processes", "ihd"]),
        ("train", []),
        ("sample", ["--num", "1", "--steps", "2"]),
    ],
)
def test_an_output_folder_that_is_a_file_is_refused(call: Call, tmp_path: Path, command: str, options: list[str]) -> None:
    (tmp_path / "taken").write_text("precious")
    code, _, err = call(command, "--out", "taken", *options)
    assert code == 2 and "taken" in err and "Traceback" not in err and err.strip().splitlines()[-1].startswith("error: ")
    assert files(tmp_path) == {"taken"} and (tmp_path / "taken").read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("command", ["corrupt", "compare", "train", "sample", "benchmark"])
def test_cuda_where_there_is_none_is_refused(call: Call, command: str) -> None:
    code, _, err = call(command, "--device", "cuda")
    assert code == 2 and "torch sees 0 CUDA devices here" in err and err.count("\n") == 1


def test_nonsense_and_help(call: Call) -> None:
    assert exit_code(cli.main) == 0
    code, out, err = call("--version")
    assert code == 0 and re.fullmatch(r"(?s).*\nbeyond-blur \d+\.\d+\.\d+\S*\n", out) and not err
    for command in cli.COMMANDS:
        code, _, err = call(command, "--no-such-option")
        assert code == 2 and err.count("\n") == 1 and err.startswith("error: "), command
        code, out, _ = call(command, *(["operator"] if command == "benchmark" else []), "--help")
        assert code == 0 and f"beyond-blur {command}" in out and ("--device" in out or command in ("features", "sweep"))


@pytest.mark.parametrize("command", [command for command in cli.COMMANDS if command != "benchmark"])
def test_help_is_short_and_says_where_the_rest_is(call: Call, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(command, "--help")
    whole = call(command, "--help-all")[1]
    assert code == 0 and len(out.splitlines()) <= 60
    assert set(re.findall(r"--[\w-]+", out)) - {"--help-all"} <= set(re.findall(r"--[\w-]+", whole))
    assert ("--help-all" in out) == (len(out) < len(whole))


def shown(help_text: str, option: str) -> str:
    """The default that a help text shows for an option."""
    words = " ".join(help_text.replace("│", " ").split())
    return words[words.index(f"{option} ") :].split("(default: ")[1].split(")")[0]


def test_help_shows_the_values_of_the_preset(call: Call) -> None:
    code, out, _ = call("train", "--preset", "ffhq-128-published", "--help-all")
    assert code == 0
    expected = {"--preset": "ffhq-128-published", "--data": "ffhq", "--size": "128", "--process": "beyond-blur"}
    expected |= {"--peclet": "0.06", "--levels": "200", "--batch": "32", "--sigma-max": "1.0"}
    expected |= {"--network.multipliers": "1 2 3 4 5", "--learning-rate": "2e-05", "--ema": "0.9999"}
    assert {option: shown(out, option) for option in expected} == expected
    code, out, _ = call("train", "--data=afhq", "--process", "ihd", "--help-all")
    assert shown(out, "--preset") == "afhq-64" and shown(out, "--peclet") == "0.0" and shown(out, "--offset") == "0.0"
    assert shown(call("train", "--help-all")[1], "--images") == "128000"


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in OWN])
def test_a_dry_run_says_what_a_preset_takes_and_writes_nothing(call: Call, tmp_path: Path, name: str) -> None:
    """Without the pictures."""
    code, out, err = call("train", "--preset", name, "--dry-run", "--precision", "bf16", "--accumulate", "2")
    assert code == 0 and err == "" and files(tmp_path) == set()
    report = json.loads(out)
    config = json.loads(json.dumps(PRESETS[name].to_json()))
    assert report["preset"] == name and report["config"] == config
    weights = report["memory_bytes"]["weights"]
    assert weights == 4 * report["parameters"] and report["images_at_a_time"] == config["training"]["batch"] // 2
    assert report["memory_bytes"]["total"] > 5 * weights
    cost = report["corruption_iterations"]
    flows = config["method"]["operator"].get("peclet", 0.0) > 0.0
    assert (0 < cost["mean_per_image"] < cost["whole_trajectory"]) == flows


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("name", METHODS)
def test_a_dry_run_knows_every_process(call: Call, name: str) -> None:
    """Its own numbers; no lattice iterations where nothing flows."""
    report = json.loads(call("train", "--dry-run", "--process", name)[1])
    method = named_method(name)
    assert report["config"]["method"] == to_json(method) and report["config"]["process_name"] == name
    flows = method.operator.peclet > 0 and name != "structured-noise"
    assert (report["corruption_iterations"]["whole_trajectory"] > 0) == flows


@pytest.mark.slow
def test_a_dry_run_resolves_everything_that_was_given(call: Call, tmp_path: Path) -> None:
    options = ["--preset", "ffhq-64", "--process", "beyond-blur-curl", "--peclet", "3", "--levels", "50", "--offset", "1"]
    options += ["--sigma-min", "0.7", "--sampling-noise", "1.5", "--boundary", "periodic", "--network.width", "32", "--flip"]
    options += ["--augment", "0.1", "--weighting", "plain"]
    config = json.loads(call("train", "--dry-run", *options, "--grey", "--turbulence", "spectral", "--clip", "2")[1])["config"]
    numbers = {"peclet": 3.0, "offset": 1.0, "boundary": "periodic", "turbulence": SpectralTurbulence(), "sigma_min": 0.7}
    method = named_method("beyond-blur-curl").changed(**numbers, levels=50, sampling_noise=1.5)
    assert config["method"] == to_json(method)
    assert config["network"] == to_json(NetworkConfig(32, (1, 2, 3, 4), 2, (2, 3), 0.05))
    assert config["training"]["augment"] == to_json(GeometricAugmentation(0.1))
    assert config["training"]["weighting"] == to_json(Weighting())
    assert config["training"]["flip"] is True and config["training"]["clip"] == 2.0 and config["channels"] == 1

    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "one.png")
    report = json.loads(call("train", "--dry-run", "--data", ".", "--size", "32")[1])
    assert report["preset"] == "small" and report["config"]["channels"] == 3 and report["config"]["size"] == 32
    assert report["config"]["training"]["images"] == 60_000 and report["config"]["training"]["flip"] is True
    assert re.fullmatch(r"[\d,]+ (s|min|h|h \d+ min|days|years)", report["very_rough_time_here"])
    assert files(tmp_path) == {"one.png"}


@pytest.mark.slow
def test_tensorboard_shows_the_log_and_the_grids(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert call("train", *SMALL_RUN, "--tensorboard", "--out", "run", "--checkpoint-every", "32")[0] == 0
    assert call("train", *SMALL_RUN, "--tensorboard", "--out", "run", "--images", "96")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [32, 64, 96]
    for name in ("loss", "images_per_second", "corruption_ms", "network_ms", "learning_rate"):
        assert [event.step for event in events.Scalars(name)] == [32, 64, 96]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in lines]), name
    grids = events.Images("samples")
    assert [grid.step for grid in grids] == [32, 64, 96]
    saved = iio.imread(tmp_path / "run" / "samples" / "000000096.png")
    assert (iio.imread(grids[-1].encoded_image_string, extension=".png") == saved).all()

    monkeypatch.setattr(observers, "find_spec", lambda name: None)
    code, _, err = call("train", *SMALL_RUN, "--tensorboard", "--out", "other")
    assert code == 2 and "TensorBoard is not installed; pip install tensorboard" in err and not (tmp_path / "other").exists()


def test_train_then_sample(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("train", *SMALL_RUN)
    assert code == 0 and "1797" in out and "preset digits" in out
    run = tmp_path / "runs" / "digits-fluid"
    assert {"config.json", "model.safetensors", "ema.safetensors", "prior.safetensors", "metrics.jsonl"} <= files(run)
    grid = run / "samples" / "000000064.png"
    drawn = grid.read_bytes()
    assert iio.imread(grid).ndim == 3
    # Killed between the checkpoint and its grid: the same command makes the grid. Called once more, it leaves it alone.
    for lost in (True, False):
        if lost:
            grid.unlink()
        before = None if lost else grid.stat().st_mtime_ns
        assert "trained" in call("train", *SMALL_RUN)[1] and grid.read_bytes() == drawn
        assert lost or grid.stat().st_mtime_ns == before

    code, out, _ = call("sample", run, "--num", "5", "--video")
    assert code == 0
    folder = tmp_path / "outputs" / "digits-fluid-samples"
    images = {f"images/{i:05d}.png" for i in range(5)}
    assert files(folder) == {"grid.png", "reverse.mp4", "sampling.json"} | images
    assert iio.imread(folder / "images" / "00000.png").shape == (16, 16)
    # Levels 5 to 0, and two seconds of the last.
    assert iio.immeta(folder / "reverse.mp4")["codec"] == "h264" and len(iio.imread(folder / "reverse.mp4")) == 6 + 2 * 12
    # Sampling does not need the batch, nor the order: two at a time gives the same pictures (to rounding).
    call("sample", run, "--num", "5", "--batch", "2", "--out", "other")
    for name in images:
        difference = iio.imread(folder / name).astype(int) - iio.imread(tmp_path / "other" / name)
        assert abs(difference).max() <= 1
    call("sample", run, "--num", "5", "--seed", "1", "--out", "third")
    assert (iio.imread(folder / "grid.png") != iio.imread(tmp_path / "third" / "grid.png")).any()


@pytest.mark.slow
def test_train_begins_from_another_run_and_stops_early(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that only grow stop the run after the second one that is no better, and the same command leaves it so."""
    assert "nowhere: no such run folder" in call("train", *SMALL_RUN, "--init", "nowhere", "--out", "none")[2]
    assert files(tmp_path) == set()
    said = call("train", *SMALL_RUN, "--rate-batch", "8", "--out", "first")[1]
    assert "trained" in said and "the learning rate is multiplied by sqrt(32 / 8): it is for batches of 8" in said
    scores = iter(range(100))
    monkeypatch.setattr(train, "scorer", lambda options, device: lambda pipeline: float(next(scores)))
    options = [*SMALL_RUN, "--images", "3200", "--init", "first", "--score-every", "32", "--stop-after", "2", "--out", "second"]
    code, out, _ = call("train", *options)
    assert code == 0 and "the weights are those of first" in out
    assert re.search("stopped, no better in 2 scores; sample with: .*sample second --best", out)
    assert json.loads((tmp_path / "second" / "init.json").read_text())["init"] == "first"
    folder = tmp_path / "second" / "checkpoints"
    before = contents(folder)
    assert list(before) == ["000000096.safetensors"]
    assert "stopped, no better in 2 scores" in call("train", *options)[1] and contents(folder) == before
    assert call("sample", "second", "--best", "--num", "1", *QUICK)[0] == 0


@pytest.mark.slow
def test_a_method_of_another_package_is_a_process(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers are options; the operator is a class that the library has never seen."""
    method = Method(Fade(), ConstantNoise(0.02), CleanImage(), Uniform(), Resample(eta=0.0))
    entry = SimpleNamespace(name="fade", value="package:FADE", load=lambda: method)
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry])
    assert shown(call("train", "--process", "fade", "--help-all")[1], "--strength") == "1.0"
    options = ["--process", "fade", "--strength", "0.5", "--steps", "4", *SMALL_RUN]
    code, out, _ = call("train", *options)
    assert code == 0 and "fade, Pe = 0, K = 5 levels" in out
    assert json.loads((tmp_path / "runs" / "digits-fade" / "config.json").read_text())["method"]["operator"]["strength"] == 0.5
    assert call("sample", "runs/digits-fade", "--num", "2")[0] == 0
    assert call("corrupt", "--process", "fade", "--size", "16", "--levels", "4")[0] == 0
    assert call("compare", "--processes", "fade", "ihd", "--size", "16", "--levels", "4")[0] == 0
    assert "did you mean fade?" in call("train", "--process", "fad")[2]
    monkeypatch.setattr(entry, "load", lambda: replace(method, operator=Clash()))
    assert "process fade: two of its values, or one and an option" in call("train", *options)[2]


@dataclass(frozen=True)
class Fade(Operator):
    """Images that grow dark."""

    levels: int = 20
    """K."""
    strength: float = 1.0
    """How dark."""
    linear = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 * (1.0 - self.strength * level / self.levels)[:, None, None, None].to(u0)


@dataclass(frozen=True)
class Clash(Fade):
    """An operator with a number that scales have, too."""

    noise: float = 0.5
    """Not that of the scales."""


QUICK = ["--steps", "3"]


def test_sampling_goes_on_with_what_is_missing_and_refuses_other_images(call: Call, tmp_path: Path) -> None:
    assert call("sample", *QUICK, "--num", "5", "--batch", "2", "--out", "out")[0] == 0
    out, images = tmp_path / "out", tmp_path / "out" / "images"
    whole = contents(out)
    assert whole.keys() == {"grid.png", "sampling.json", *(f"images/{number:05d}.png" for number in range(5))}
    for lost in (images / "00001.png", images / "00004.png", out / "grid.png"):
        lost.unlink()
    kept = (images / "00000.png").stat().st_mtime_ns
    assert "5 images, 2 new" in call("sample", *QUICK, "--num", "5", "--batch", "2", "--out", "out")[1]
    assert contents(out) == whole
    assert (images / "00000.png").stat().st_mtime_ns == kept
    # More of the same, and single ones of the same, go to the same folder.
    assert "6 images, 1 new" in call("sample", *QUICK, "--num", "6", "--out", "out")[1]
    assert "3 images, 2 new" in call("sample", *QUICK, "--seeds", "3", "17-18", "3", "--out", "out")[1]
    good = (images / "00003.png").read_bytes()
    (images / "00003.png").write_bytes(good[:50])
    code, _, err = call("sample", *QUICK, "--num", "5", "--out", "out")
    assert code == 2 and "00003.png: cannot be read" in err and "remove it, and the same command makes it again" in err
    (images / "00003.png").write_bytes(good)
    # Others are refused, and nothing is touched.
    before = contents(out)
    for other, what in (
        (["--seed", "1"], "seed 0, not 1"),
        (["--sampling-noise", "1"], "sampling_noise None, not 1.0"),
        (["--same-init"], "same_init False, not True"),
        (["--precision", "bf16"], "precision fp32, not bf16"),
        (["--steps", "4"], "steps 3, not 4"),
    ):
        code, _, err = call("sample", *QUICK, *other, "--out", "out")
        assert code == 2 and f"holds images made with {what}; choose another --out, or remove the folder" in err
    record = json.loads((out / "sampling.json").read_text())
    (out / "sampling.json").write_text(json.dumps(record | {"model": "other"}))
    assert "images made with another model" in call("sample", *QUICK, "--out", "out")[2]
    (out / "sampling.json").unlink()
    assert "holds images, and no sampling.json" in call("sample", *QUICK, "--out", "out")[2]
    before.pop("sampling.json")
    assert contents(out) == before


def test_sheets_of_earlier_samples_do_not_stay_beside_new_ones(call: Call, tmp_path: Path) -> None:
    assert call("sample", *QUICK, "--num", "2", "--npz", "--video", "--out", "out")[0] == 0
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert call("sample", *QUICK, "--num", "3", "--zip", "--out", "out")[0] == 0
    images = {f"images/{number:05d}.png" for number in range(3)}
    assert files(tmp_path / "out") == {"grid.png", "sampling.json", "samples.zip", "mine.txt"} | images
    with owned(tmp_path / "out"):
        code, _, err = call("sample", *QUICK, "--num", "4", "--out", "out")
    assert code == 2 and "another process works in this folder" in err and err.count("\n") == 1
    assert files(tmp_path / "out") == {"grid.png", "sampling.json", "samples.zip", "mine.txt"} | images


def test_archives_hold_the_images(call: Call, tmp_path: Path) -> None:
    assert call("sample", *QUICK, "--num", "5", "--batch", "3", "--npz", "--zip", "--out", "out")[0] == 0
    out = tmp_path / "out"
    images = np.stack([iio.imread(out / "images" / f"{number:05d}.png") for number in range(5)])[..., None]
    with np.load(out / "samples.npz", allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        assert archive["arr_0"].dtype == np.uint8 and (archive["arr_0"] == images).all()
    dataset = open_dataset(str(out / "samples.zip"), 16, None)
    assert len(dataset) == 5 and dataset.channels == 1
    assert all((np.rint(dataset[i] * 255) == images[i].transpose(2, 0, 1)).all() for i in range(5))
    with zipfile.ZipFile(out / "samples.zip") as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}
        # No time of making in them: the same images are the same archive, byte for byte.
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_archive_is_whole_or_not_there(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{number}.png" for number in range(3)]
    for file in pictures:
        Image.effect_noise((9, 7), 60).convert("RGB").save(file)
    expected = np.stack([iio.imread(file) for file in pictures])
    archives.save_npz(tmp_path / "samples.npz", pictures)
    assert (np.load(tmp_path / "samples.npz")["arr_0"] == expected).all() and expected.shape == (3, 7, 9, 3)
    pictures[1].write_text("damaged")
    before = (tmp_path / "samples.npz").read_bytes()
    with pytest.raises(OSError, match="cannot identify"):
        archives.save_npz(tmp_path / "samples.npz", pictures)
    assert (tmp_path / "samples.npz").read_bytes() == before and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_every_way_of_sampling_has_a_folder_of_its_own(call: Call, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    for options, name in (
        ([], "digits-samples-steps-3"),
        (["--same-init"], "digits-samples-steps-3-same-init"),
        (["--share-noise", "--seed", "2"], "digits-samples-seed-2-steps-3-share-noise"),
        (["--sampling-noise", "1.1"], "digits-samples-steps-3-sampling-noise-1.1"),
        (["--sampling-noise", "0"], "digits-samples-steps-3-sampling-noise-0.0"),
    ):
        assert call("sample", *QUICK, *options, "--num", "4")[0] == 0
        assert files(outputs / name) == {"grid.png", "sampling.json", *(f"images/{number:05d}.png" for number in range(4))}
    plain = outputs / "digits-samples-steps-3" / "images"
    same = outputs / "digits-samples-steps-3-same-init" / "images"
    assert (iio.imread(plain / "00000.png") == iio.imread(same / "00000.png")).all()
    assert (iio.imread(plain / "00001.png") != iio.imread(same / "00001.png")).any()

    # Rows of an interpolation end at the ordinary samples.
    code, out, _ = call("sample", *QUICK, "--interpolate", "5", "--seeds", "0", "3", "2", "1", "--video")
    folder = outputs / "digits-samples-steps-3-interpolate-5"
    assert code == 0 and "10 images" in out and len(files(folder)) == 13
    for row, ends in (("00000-00003", (0, 3)), ("00002-00001", (2, 1))):
        for place, end in zip((0, 4), ends, strict=True):
            picture = iio.imread(folder / "images" / f"{row}-{place:03d}.png").astype(int)
            assert abs(picture - iio.imread(plain / f"{end:05d}.png")).max() <= 1
    # Two rows of five pictures, each 64 pixels wide, with a gap of 4; in the video 96 and 6.
    assert iio.imread(folder / "grid.png").shape == (2 * 68 + 4, 5 * 68 + 4, 3)
    assert iio.imread(folder / "reverse.mp4").shape == (4 + 2 * 12, 2 * 102 + 6, 5 * 102 + 6, 3)


def test_a_picture_is_corrupted_and_restored(call: Call, picture: Path, tmp_path: Path) -> None:
    options = ["--from-image", picture, "--num", "2", "--steps", "4"]
    code, out, _ = call("sample", *options, "--level", "5", "30")
    folder = tmp_path / "outputs" / "digits-picture-steps-4"
    assert code == 0 and "restoration.png" in out
    images = {f"images/level{level:03d}-{number:05d}.png" for level in (5, 30) for number in (0, 1)}
    assert files(folder) == {"restoration.png", "sampling.json"} | images
    # The picture, fitted to 16 grey pixels, is nearer to what comes back from the lower level.
    original = np.rint(fit(read_image(picture, "L"), 16)[0] * 255)
    near, far = (abs(iio.imread(folder / "images" / f"level{level:03d}-00000.png") - original).mean() for level in (5, 30))
    assert near < far
    figure = iio.imread(folder / "restoration.png")
    assert figure.std() > 10 and figure.shape[1] > figure.shape[0]
    assert "level must be from 1 to 1000, got 1001" in call("sample", *options, "--level", "1001")[2]
    Image.effect_noise((20, 20), 60).save(picture)
    assert "made with another image" in call("sample", *options, "--level", "5")[2]


def sampling_process(folder: Path, *options: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "cli.sample", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_two_processes_share_the_images(call: Call, tmp_path: Path) -> None:
    assert call("sample", *QUICK, "--num", "7", "--out", "one")[0] == 0
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    # Some versions of Python's argparse, which torchrun uses, take --num for --numa-binding cut short.
    options = [*QUICK, "-n", "7", "--batch", "2", "--out", "two", "--npz", "--device", "cpu"]
    process = sampling_process(tmp_path, *options, launcher=launcher)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and out.count("wrote ") == 1 and "7 images, 7 new" in out
    assert files(tmp_path / "two") == files(tmp_path / "one") | {"samples.npz"}
    for number in range(7):
        one, two = (iio.imread(tmp_path / name / "images" / f"{number:05d}.png").astype(int) for name in ("one", "two"))
        assert abs(one - two).max() <= 1


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_images(call: Call, tmp_path: Path) -> None:
    options = ["--steps", "20", "--num", "48", "--batch", "4"]
    process = sampling_process(tmp_path, *options, "--out", "killed")
    images = tmp_path / "killed" / "images"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(images.glob("0*.png"))) < 6:
        time.sleep(0.02)
    process.kill()
    process.communicate()
    made = {file.name: file.read_bytes() for file in images.glob("0*.png")}
    assert 5 < len(made) < 48 and not (tmp_path / "killed" / "grid.png").exists()
    assert f"48 images, {48 - len(made)} new" in call("sample", *options, "--out", "killed")[1]
    assert all((images / name).read_bytes() == content for name, content in made.items())
    assert call("sample", *options, "--out", "whole")[0] == 0
    for file in (tmp_path / "whole" / "images").iterdir():
        assert (images / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_train_on_a_folder_of_pictures_and_refuse_its_other_run(call: Call, tmp_path: Path) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for index in range(6):
        Image.effect_noise((40, 30 + index), 60).convert("RGB").save(tmp_path / "pictures" / "deep" / f"{index}.jpg")
    options = ["--data", "pictures", "--size", "16", "--process", "beyond-blur-curl", *SMALL_RUN]
    assert call("train", *options)[0] == 0
    run = tmp_path / "runs" / "pictures-beyond-blur-curl"
    config = json.loads((run / "config.json").read_text())
    assert config["channels"] == 3 and config["size"] == 16 and config["method"]["operator"]["peclet"] == 2.0
    before = files(run)
    code, _, err = call("train", *options, "--noise", "0.02")
    assert code == 2 and "holds another run (method.scales.noise is 0.01, not 0.02)" in err
    assert files(run) == before
    assert call("train", *options, "--split", "odd")[0] == 0
    config = json.loads((tmp_path / "runs" / "pictures-odd-beyond-blur-curl" / "config.json").read_text())
    assert config["data"] == "pictures[odd]"
    report = json.loads(call("train", "--split", "even", "--dry-run")[1])
    assert report["config"]["data"] == "digits[even]"
    assert call("train", *options, "--grey", "--out", "grey")[0] == 0
    assert json.loads((tmp_path / "grey" / "config.json").read_text())["channels"] == 1


@pytest.mark.slow
def test_a_run_on_ones_own_pictures_goes_on_whatever_the_device_and_the_number_of_pictures(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own values are the defaults then: those of a GPU, or of many pictures, would be another run."""
    for index in range(6):
        Image.effect_noise((16, 16), 60 + index).convert("RGB").save(tmp_path / f"{index}.png")
    options = ["--data", ".", "--size", "8", "--batch", "4", "--out", "run", "--device", "cpu", "--no-grids"]
    code, out, _ = call("train", *options, "--images", "8")
    assert code == 0 and "preset small" in out
    assert "few pictures: dropout 0.1, and they are mirrored at random (--no-flip if left and right matter, as in letters)" in out
    assert not (tmp_path / "run" / "samples").exists()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["training"]["flip"] is True and config["network"]["width"] == 32
    monkeypatch.setattr(train, "preset_for", lambda *words, **more: preset_for(*words, **more | {"gpu": True, "count": 10**6}))
    code, out, err = call("train", *options)
    assert code == 0 and "trained" in out, err
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    code, _, err = call("train", *options, "--images", "12", "--no-flip")
    assert code == 2 and "holds another run (training.flip is True, not False)" in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_run_and_the_same_command_goes_on(call: Call, tmp_path: Path, number: signal.Signals) -> None:
    """A signal to this process, in which the command runs."""
    metrics, ended = tmp_path / "run" / "metrics.jsonl", threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.02):
            if metrics.exists() and metrics.read_text():
                os.kill(os.getpid(), number)
                return

    sender = threading.Thread(target=interrupt)
    sender.start()
    code, out, _ = call("train", *SMALL_RUN, "--images", 100_000, "--out", "run")
    ended.set()
    sender.join()
    assert code == 128 + number and "interrupted and saved" in out
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert call("train", *SMALL_RUN, "--images", int(saved.stem) + 32, "--out", "run")[0] == 0


STUCK = """
import threading
from cli import console, signals

def command(options):
    '''A command in a first step that does not end.'''
    with signals.noted() as arrived:
        print("begun", flush=True)
        lock = threading.Lock()
        lock.acquire() and lock.acquire()

console.run("train", command, lambda **_: None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_a_command_at_once(number: signal.Signals) -> None:
    """In the midst of a call that Python cannot break off."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(number)
    assert process.wait(5.0) == 128 + number
    assert "Traceback" not in process.communicate()[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_ends_with_the_number_of_the_signal(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """Every command, by way of console.run: here while pictures are prepared."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(train, "open_pictures", lambda *_: signal.raise_signal(number))
    code, out, err = call("train", "--out", "run")
    assert code == 128 + number and err.endswith("interrupted\n") and "trained" not in out and files(tmp_path) == set()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_folder_that_cannot_be_written_is_noticed_before_pictures_are_read(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "open_pictures", lambda *_: pytest.fail("pictures were read"))
    (tmp_path / "taken").touch()
    for out in ("taken", "taken/run"):
        code, _, err = call("train", "--out", out)
        assert code == 2 and "taken" in err and "cannot be written" in err and err.count("\n") == 1
    with owned(tmp_path / "run"):
        code, _, err = call("train", "--out", "run")
    assert code == 2 and "another process works in this folder" in err and files(tmp_path) == {"taken"}
