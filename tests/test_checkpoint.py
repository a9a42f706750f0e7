"""Run folders in every state of disrepair: one line each, and nothing in them is ever executed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from diffusion.files import load_tensors, owned, save_tensors, write_json
from diffusion.forward.statistics import Statistics, load_statistics
from diffusion.run import load_config
from diffusion.sampling.pipeline import BUNDLED, Pipeline
from diffusion.training.checkpoint import Checkpoints, load_checkpoint
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import Observer
from lbm_warp.checks import InputError
from tests.runs import files, stripes, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def edit(path: Path, **changes: object) -> None:
    values = json.loads(path.read_text())
    for name, value in changes.items():
        place = values
        *parts, key = name.split("__")
        for part in parts:
            place = place[part]
        place[key] = value
    path.write_text(json.dumps(values))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value)


def test_a_run_comes_back_as_it_was(run: Path) -> None:
    loaded = Pipeline.from_pretrained(run)
    assert loaded.config == tiny_config() == load_config(run)
    average = load_tensors(run / "ema.safetensors")
    assert all(torch.equal(tensor, average[name]) for name, tensor in loaded.network.state_dict().items())
    assert not loaded.network.training
    names = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert names == {
        "checkpoints/000000048.safetensors",
        "config.json",
        "data.json",
        "ema.safetensors",
        "metrics.jsonl",
        "model.safetensors",
        "prior.safetensors",
    }


def test_missing_things_are_named(run: Path) -> None:
    refused(run / "nowhere", "no such run folder")
    refused(run.parent, "not a run folder")
    for name in ("prior.safetensors", "ema.safetensors"):
        (run / name).unlink()
        refused(run, f"{name}: missing")


@pytest.mark.parametrize("name", ["ema.safetensors", "prior.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "pickle", "empty"])
def test_damaged_weights_are_refused_and_a_pickle_never_runs(run: Path, name: str, damage: str) -> None:
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (run / "executed",))

    content = (run / name).read_bytes()
    (run / name).write_bytes({"truncated": content[:-100], "pickle": pickle.dumps(Bomb()), "empty": b""}[damage])
    refused(run, f"{name}: not a readable safetensors file")
    assert not (run / "executed").exists()


def test_weights_of_another_shape_are_refused(run: Path) -> None:
    edit(run / "config.json", network__width=16)
    refused(run, "weights do not fit config.json: .* is .*, expected")


def test_a_prior_of_another_shape_is_refused(run: Path) -> None:
    save_tensors(run / "prior.safetensors", {"thumbnails": torch.zeros((5, 3, 4, 4))})
    refused(run, "holds no thumbnails for 1 x 8 x 8 images")
    save_tensors(run / "prior.safetensors", {"other": torch.zeros(3)})
    refused(run, "holds no thumbnails")


@pytest.mark.parametrize("name", ["ema", "prior", "best"])
def test_a_flipped_bit_in_tensors_of_the_right_shape_is_noticed(run: Path, name: str) -> None:
    path = run / f"{name}.safetensors"
    if name == "best":
        shutil.copy(run / "ema.safetensors", path)
    content = bytearray(path.read_bytes())
    content[-2] ^= 8
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.safetensors: not as it was written \(the checksum differs\)") as error:
        Pipeline.from_pretrained(run, best=name == "best")
    assert "\n" not in str(error.value)


def test_files_without_a_checksum_are_read(run: Path) -> None:
    """Those of other programs, and the bundled models."""
    tensors = load_tensors(run / "ema.safetensors")
    save_file(tensors, run / "ema.safetensors")
    assert Pipeline.from_pretrained(run).config == tiny_config()
    for name in BUNDLED:
        Pipeline.from_pretrained(name)


def test_statistics_are_checked_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    moments = Statistics(*(torch.rand(1, 4, 4) for _ in range(2)), *(torch.rand(3, 1, 4, 4) for _ in range(3)))
    moments.save(tmp_path)
    path = tmp_path / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"statistics.safetensors: not as it was written"):
        load_statistics(tmp_path, (1, 4, 4))


def test_a_lagging_training_leaves_newer_checkpoints_alone(tmp_path: Path) -> None:
    """Where the file system has no locks; what could not be loaded goes."""
    leading, lagging, tensors = Checkpoints(tmp_path), Checkpoints(tmp_path), {"network.a": torch.ones(2)}
    for training, moments in ((leading, (8, 16, 24, 32)), (lagging, (10, 12))):
        for images in moments:
            training.save(images, tensors, {})
        training.finish()
    assert list(lagging.paths()) == [10, 12, 24, 32]
    lagging.path(32).write_bytes(b"")
    assert len(lagging.resume(lambda path: load_checkpoint(path) and None)) == 1 and lagging.good == lagging.path(24)
    lagging.save(26, tensors, {})
    lagging.finish()
    assert list(lagging.paths()) == [24, 26]


def test_a_checkpoint_is_written_beside_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state as it was, while two more steps are made; Ctrl-C waits for it, and saves its own step."""
    written, whole = threading.Event(), tmp_path / "whole"

    def late(path: Path, *arguments: object) -> None:
        if path.parent.name == "checkpoints":
            assert written.wait(60)
        save_tensors(path, *arguments)

    class Stepping(Observer):
        def stepped(self, images: int) -> None:
            if images == 32:
                written.set()
                signal.raise_signal(signal.SIGINT)

    train(tiny_config(images=16), stripes(), whole, CPU)
    monkeypatch.setattr("diffusion.training.checkpoint.save_tensors", late)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), stripes(), tmp_path / "run", CPU, ExecutionConfig(checkpoint_every=16), observers=[Stepping()])
    ours, theirs = (load_tensors(folder / "checkpoints" / "000000016.safetensors") for folder in (tmp_path / "run", whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(Checkpoints(tmp_path / "run").paths()) == [16, 32]


def test_what_the_writer_could_not_do_is_raised_by_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    (tmp_path / "checkpoints").touch()
    checkpoints.save(8, {"network.a": torch.ones(2)}, {})
    for way in (checkpoints.finish, checkpoints.check, lambda: checkpoints.save(16, {}, {})):
        with pytest.raises((InputError, OSError), match="checkpoints"):
            way()
    assert checkpoints.good is None


@pytest.mark.parametrize(("minutes", "found"), [(0.0, [8, 16, 24, 32, 40, 48]), (1000.0, [48])])
def test_checkpoints_by_the_clock(tmp_path: Path, minutes: float, found: list[int]) -> None:
    """After every step that ends so many minutes after the last one, and at the end."""
    train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(checkpoint_every=8, checkpoint_minutes=minutes, keep_every=8))
    assert list(Checkpoints(tmp_path).paths()) == found


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.bfloat16, torch.bool, torch.int64, torch.uint8)
    tensors = {f"tensor ü {number}": torch.ones(number, 3).to(kind) for number, kind in enumerate(kinds)} | {"a": torch.tensor(2.0)}
    save_tensors(tmp_path / "ours.safetensors", tensors)
    found = load_file(tmp_path / "ours.safetensors")
    assert found.keys() == tensors.keys()
    assert all(tensor.dtype == found[name].dtype and torch.equal(tensor, found[name]) for name, tensor in tensors.items())


def test_only_what_a_training_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    """Not the files of an evaluation that is at work, nor those of a run further down."""
    ours = [
        ".ema.7-0.part.safetensors",
        ".data.7-0.part.json",
        "checkpoints/.000000016.7-0.part.safetensors",
        "samples/.000000016.7-0.part.png",
    ]
    others = [".metrics.7-0.part.json", "other/.ema.7-0.part.safetensors", "other/checkpoints/.000000016.7-0.part.safetensors"]
    for name in (*ours, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    Checkpoints(tmp_path).tidy()
    assert set(files(tmp_path)) == set(others)


OWNER = """
import pathlib, sys, time
from diffusion.files import owned
with owned(pathlib.Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_has_one_owner_until_its_process_ends(tmp_path: Path) -> None:
    """In another process, or in this one; a killed one does not block."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "deep" / "run")]
    root = Path(__file__).parent.parent
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "owned\n"
    start = time.monotonic()
    with pytest.raises(InputError, match=r"deep/run: another process works in this folder; wait .*\(--out\)"):
        with owned(tmp_path / "deep" / "run"):
            pass
    assert time.monotonic() - start < 1.0
    process.kill()
    process.communicate()
    with owned(tmp_path / "deep" / "run"), pytest.raises(InputError, match="another process"):
        with owned(tmp_path / "deep" / "run"):
            pass


def test_an_owner_leaves_no_trace_and_says_what_it_cannot_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with owned(tmp_path / "a" / "b"):
        assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == [".lock"]
    assert not (tmp_path / "a").exists()
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert set(files(tmp_path)) == {"a/b/kept"}
    with (
        pytest.raises(InputError, match=r"kept/c: cannot be written \(Not a directory\)"),
        owned(tmp_path / "a" / "b" / "kept" / "c"),
    ):
        pass

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", unsupported)
    with owned(tmp_path):
        assert "its file system has no locks" in capsys.readouterr().err


def test_files_are_flushed_through_a_handle_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows asks for."""
    modes = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE))
    write_json(tmp_path / "a.json", {})
    assert modes == [os.O_RDWR]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, r"RunConfig has unknown entries \['extra'\]"),
        ({"method__operator__code": "import os"}, r"Waves has unknown entries \['code'\]"),
        ({"method__operator__class": "os"}, r"names the class os, which is not the library's: .*types=\[os\]"),
        ({"method__operator__class": ["os"]}, "names no class"),
        ({"method__operator": {}}, "names no class"),
        ({"method__operator": None}, "operator must be a diffusion.Operator"),
        ({"method__operator": {"class": "Step"}}, "operator must be a diffusion.Operator .*, got Step"),
        ({"method": {"class": "Method"}}, r"Method .*lacks \['denoiser', 'density', 'operator', 'sampler', 'scales'\]"),
        ({"method": None}, "method must be a diffusion.Method"),
        ({"method__operator__peclet": -1.0}, "peclet must be from 0 to 1000000, got -1"),
        ({"method__operator__peclet": "fast"}, "peclet must be from 0 to 1000000, got 'fast'"),
        ({"method__operator__levels": 5.5}, "levels must be an integer, got 5.5"),
        ({"network": None}, "it names no network"),
        ({"network": {"class": "Method"}}, "Method has unknown entries|lacks"),
        ({"training__schedule": 3}, "schedule must be a diffusion.LearningRate"),
        ({"network__multipliers": []}, "multipliers must name at least one resolution"),
        ({"network__width": "wide"}, "width must be an integer, got 'wide'"),
        ({"network__multipliers": 3}, "wrong type|multipliers"),
        ({"training__flip": "yes"}, "flip must be true or false, got 'yes'"),
        ({"size": "big"}, "size must be one number of pixels"),
        ({"size": 9}, "needs sides divisible by 2, got size 9"),
        ({"format": 99}, "not a run of format 2"),
        ({"method__operator__levels": 10**9}, "levels must be from 1 to 100000, got 1000000000"),
        ({"method__operator__peclet": 1e9}, "peclet must be from 0 to 1000000, got 1000000000.0"),
        ({"method__operator__blur__sigma_max": 1e9}, "sigma_max must be from 0 to 100, got 1000000000.0"),
        ({"network__width": 10**9}, "network width must be from 8 to 4096, got 1000000000"),
        ({"network__blocks": 10**9}, "network blocks must be from 1 to 64"),
        ({"network__multipliers": [1, 10**9]}, "network multipliers must be from 1 to 64"),
        ({"network__multipliers": [1] * 40}, "network multipliers must name at least one resolution, at most 14"),
        ({"size": 10**6}, "size must be .* each 2 to 16384; got 1000000"),
        ({"channels": 10**9}, "channels must be from 1 to 1024"),
        ({"training__images": 10**30}, "images must be from 1 to 1000000000000, got 10{30}"),
        ({"training__batch": 10**9}, "batch must be from 1 to 1000000"),
        ({"training__clip": 10**400}, "clip must be at least 1e-12, got 10{400}"),
    ],
)
def test_a_config_with_foreign_or_bad_entries_is_refused(run: Path, changes: dict, message: str) -> None:
    edit(run / "config.json", **changes)
    refused(run, message)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\xff"])
def test_a_config_that_is_no_json_object_is_refused(run: Path, text: str) -> None:
    (run / "config.json").write_text(text, encoding="utf-8")
    refused(run, "config.json: not")
