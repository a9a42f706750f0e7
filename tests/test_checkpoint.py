"""Run folders in every state of disrepair: one line each, and nothing in them is ever executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from diffusion.files import load_tensors, save_tensors
from diffusion.run import load_config
from diffusion.sampling.pipeline import Pipeline
from tests.runs import tiny_config

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
        ({"method__operator__peclet": -1.0}, "peclet must be at least 0, got -1"),
        ({"method__operator__peclet": "fast"}, "peclet must be at least 0, got 'fast'"),
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
    ],
)
def test_a_config_with_foreign_or_bad_entries_is_refused(run: Path, changes: dict, message: str) -> None:
    edit(run / "config.json", **changes)
    refused(run, message)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\xff"])
def test_a_config_that_is_no_json_object_is_refused(run: Path, text: str) -> None:
    (run / "config.json").write_text(text, encoding="utf-8")
    refused(run, "config.json: not")
