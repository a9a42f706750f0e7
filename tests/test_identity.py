"""A run and its pictures: told by what they show, wherever they lie and whatever they are called."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import evaluate, train
from diffusion.data import as_dataset, open_dataset
from diffusion.data.identity import Identity, load_identity
from diffusion.files import load_tensors
from diffusion.sampling import Pipeline
from diffusion.training import ExecutionConfig
from diffusion.training import train as training
from lbm_warp.checks import InputError
from tests.runs import exit_code, files, stripes, tiny_config

CPU = torch.device("cpu")
SMALL = ["--size", "8", "--batch", "8", "--network.width", "8", "--network.multipliers", "1", "--levels", "5", "--device", "cpu"]


def pictures(folder: Path, count: int, seed: int) -> Path:
    """A folder of pictures that differ; another seed, other pictures of the same names."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.random.default_rng((seed, number)).integers(0, 256, (2, 2), dtype=np.uint8)
        Image.fromarray(pixels).resize((8, 8), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


def identity(folder: Path) -> Identity:
    return Identity.of(open_dataset(str(folder), 8), folder.name)


def test_the_same_pictures_are_the_same_wherever_they_are(tmp_path: Path) -> None:
    cats = pictures(tmp_path / "cats" / "train", 12, 0)
    known = identity(cats)
    known.save(tmp_path)
    assert load_identity(tmp_path) == known and known.location == str(cats) and known.count == 12
    moved = Path(shutil.copytree(cats, tmp_path / "felines"))
    assert known.changes(identity(moved)) == []
    assert (
        known.changes(identity(pictures(tmp_path / "dogs" / "train", 12, 1)))[-1]
        == "12 of 12 that were looked at show something else"
    )
    # A last bit that another library rounds in another way.
    dataset = as_dataset(np.stack(stripes()))
    other = as_dataset(np.stack(stripes()) * 0.999)
    assert Identity.of(dataset, "s").changes(Identity.of(other, "s")) == []


def grown(folder: Path) -> None:
    pictures(folder, 15, 0)


def shrunk(folder: Path) -> None:
    (folder / "03.png").unlink()


def changed(folder: Path) -> None:
    pictures(folder, 3, 5)


def renamed(folder: Path) -> None:
    (folder / "03.png").rename(folder / "3.png")


def edited(folder: Path) -> None:
    pictures(folder, 12, 7)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (grown, "12 pictures before, now 15"),
        (shrunk, "12 pictures before, now 11"),
        (changed, "3 of 12 that were looked at show something else"),
        (renamed, "the names of the files"),
        (edited, "12 of 12 that were looked at"),
    ],
)
def test_a_set_that_has_changed_asks_for_a_word(tmp_path: Path, how: Callable[[Path], None], what: str) -> None:
    """The run is finished: without the word nothing is said to be trained, with it the run goes on as it began."""
    folder, run, config = pictures(tmp_path / "cats", 12, 0), tmp_path / "run", replace(tiny_config(images=16), data="cats")
    assert training(config, open_dataset(str(folder), 8), run, CPU)
    how(folder)
    before, longer = files(run), replace(config, training=replace(config.training, images=24))
    for now in (config, longer):
        with pytest.raises(InputError, match=rf"no longer those that it began with \(.*{what}.*--allow-new-pictures") as error:
            training(now, open_dataset(str(folder), 8), run, CPU)
        assert "\n" not in str(error.value) and files(run) == before
    allowed = ExecutionConfig(allow_new_pictures=True)
    assert training(longer, open_dataset(str(folder), 8), run, CPU, allowed)
    assert files(run)["prior.safetensors"] == before["prior.safetensors"] and files(run)["data.json"] != before["data.json"]
    # From here on these are its pictures.
    assert training(longer, open_dataset(str(folder), 8), run, CPU)


def test_another_set_is_refused_whatever_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In memory, where nothing but what they show is known; a name alone does not make another set."""
    config, run = tiny_config(images=8), tmp_path / "run"
    assert training(config, stripes(), run, CPU)
    other = r"run on other pictures: 20 pictures in memory, not 30 pictures in memory .*: 0 of 20 that were looked at are still "
    with pytest.raises(InputError, match=other + "there; even --allow-new-pictures asks for half of them; choose another"):
        training(config, [1.0 - picture for picture in stripes(30)], run, CPU, ExecutionConfig(allow_new_pictures=True))
    assert training(replace(config, data="bars"), stripes(), run, CPU)
    with pytest.raises(InputError, match=r"data is bars, not bars\[odd\]"):
        training(replace(config, data="bars[odd]"), stripes(), run, CPU)


def test_what_was_measured_on_the_pictures_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lost or damaged prior, and lost statistics: the same bits; but not from pictures that have changed since."""
    config = tiny_config("fluid", images=8, flip=True)
    assert training(config, stripes(), tmp_path, CPU)
    before = files(tmp_path)
    (tmp_path / "statistics.safetensors").unlink()
    (tmp_path / "prior.safetensors").write_bytes(before["prior.safetensors"][:-1] + b"?")
    with pytest.raises(InputError, match=r"get a new copy; in the folder where a run was trained, its command makes it again"):
        Pipeline.from_pretrained(tmp_path)
    capsys.readouterr()
    assert training(config, stripes(), tmp_path, CPU) and files(tmp_path) == before
    out = capsys.readouterr().out
    assert "statistics.safetensors: missing; made again from the pictures" in out and "prior.safetensors: not as it was" in out

    assert training(config, stripes(21), tmp_path, CPU, ExecutionConfig(allow_new_pictures=True))
    (tmp_path / "prior.safetensors").unlink()
    with pytest.raises(InputError, match=r"prior.safetensors: missing; it was measured on pictures that have changed since: get a"):
        training(config, stripes(21), tmp_path, CPU)


class Flipping(list):
    """Pictures that are another each time they are read, as of a data set that augments."""

    draws = np.random.default_rng(0)

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        return super().__getitem__(index)[..., :: self.draws.choice([-1, 1])].copy()


def test_pictures_that_are_never_twice_the_same_are_taken_on_trust(tmp_path: Path) -> None:
    config, dataset = tiny_config(images=8), Flipping(stripes())
    assert training(config, dataset, tmp_path, CPU) and training(config, dataset, tmp_path, CPU)
    with pytest.raises(InputError, match="20 pictures before, now 21"):
        training(config, Flipping(stripes(21)), tmp_path, CPU)


@pytest.mark.slow
def test_folders_of_one_last_name_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command: cats/train and dogs/train; then a moved folder, and the scores of a run whose pictures are found, or not."""
    monkeypatch.chdir(tmp_path)
    cats, dogs = pictures(tmp_path / "cats" / "train", 30, 0), pictures(tmp_path / "dogs" / "train", 30, 1)
    options = [*SMALL, "--process", "ihd"]
    assert exit_code(train.main, "--data", "cats/train", "--images", 16, *options) == 0
    run = tmp_path / "runs" / "train-ihd"
    before = files(run)
    assert json.loads((run / "data.json").read_text())["location"] == str(cats)
    capsys.readouterr()
    for more in ([], ["--images", 64], ["--allow-new-pictures"]):
        assert exit_code(train.main, "--data", "dogs/train", "--images", 16, *options, *more) == 2
        out, err = capsys.readouterr()
        line = f"error: runs/train-ihd is a run on other pictures: 30 pictures of {cats}, not 30 pictures of {dogs}"
        assert line in err and "--out" in err and "trained" not in out and files(run) == before
    assert exit_code(train.main, "--data", "cats/train", "--images", 16, *options, "--grey") == 0  # which they are
    assert exit_code(train.main, "--data", "cats/train", "--images", 16, *options, "--colour") == 2
    scores = ["runs/train-ihd", "--features", "pixels", "--num", 12, "--device", "cpu"]
    monkeypatch.chdir(tmp_path / "cats")
    scores[0] = str(run)
    assert exit_code(evaluate.main, *scores) == 0
    monkeypatch.chdir(tmp_path)
    cats.rename(tmp_path / "felines")
    capsys.readouterr()
    assert exit_code(evaluate.main, *scores) == 2
    assert f"{run} was trained on 30 pictures of {cats}: say where they are now with --data" in capsys.readouterr().err
    assert exit_code(train.main, "--data", "felines", "--images", 24, *options, "--out", run) == 0
    assert f"the same pictures as before, now of {tmp_path / 'felines'}" in capsys.readouterr().out
    assert exit_code(evaluate.main, *scores) == 0
    Image.new("RGB", (8, 8), "red").save("felines/red.png")  # the run stays grey
    again = ["--data", "felines", "--images", 32, *options, "--out", run]
    assert exit_code(train.main, *again) == 2 and "30 pictures before, now 31" in capsys.readouterr().err
    assert exit_code(train.main, *again, "--allow-new-pictures") == 0 and "31 grey images" in capsys.readouterr().out


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    for text in ("{}", '{"cells": 3}', '{"name": "a", "count": 3, "cells": ["zz"]}', "[]"):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(InputError, match=r"data.json: not"):
            load_identity(tmp_path)


def test_a_run_of_before_takes_its_pictures_on_trust(tmp_path: Path) -> None:
    assert training(tiny_config(images=8), stripes(), tmp_path, CPU)
    (tmp_path / "data.json").unlink()
    assert training(tiny_config(images=16), stripes(30), tmp_path, CPU)
    recorded = load_identity(tmp_path)
    assert recorded is not None and recorded.count == 30 and load_tensors(tmp_path / "ema.safetensors")
