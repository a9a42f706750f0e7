"""cli.evaluate's scores of runs that look at more than samples: likelihood, calibration, memorisation."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import evaluate
from diffusion.data.dataset import open_dataset
from diffusion.files import load_tensors, save_tensors, write_json
from diffusion.training.loop import train
from tests.runs import exit_code, said, tiny_config

SCORING = ("--features", "pixels", "--num", 40, "--k", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fluid and one of edm on the even digits, in few steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("fluid", "edm"):
        config = tiny_config(name, 8)
        config = replace(config, data="digits[even]", method=config.method.changed(levels=12, steps=4))
        assert train(config, open_dataset("digits", 8, split="even"), folder / name)
    return folder


@pytest.mark.slow
def test_likelihood_calibration_and_memorisation_of_a_run(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = (*SCORING, "--cache", tmp_path / "cache", "--likelihood", "--calibration", "--variance", "--out", "scores.json")
    assert exit_code(evaluate.main, runs / "fluid", *options) == 0
    out, _ = said(capsys.readouterr())
    report = json.loads((tmp_path / "scores.json").read_text())
    bound = report["likelihood"]
    assert bound["pictures"] == 40 and bound["steps"] == 12
    assert bound["bits_per_dimension"] == pytest.approx(bound["start"] + bound["end"] + sum(bound["by_tenth"]))
    assert f"likelihood: at most {bound['bits_per_dimension']:.3f} +- " in out
    ranks = report["calibration"]
    assert [found["level"] for found in ranks] == [3, 6, 9] and all(
        sum(row) == 256 for found in ranks for row in found["histogram"]
    )
    assert "calibration from level 3: ranks off by" in out
    assert set(report["variance"]) == {"pixels"} and sum(report["variance"]["pixels"].values()) == pytest.approx(1.0)
    assert "variance of the samples (pixels): start " in out
    low, high = report["intervals"]["frechet_distance"]
    assert low <= report["scores"]["frechet_distance"] <= high and f"frechet distance {low:.3g} to {high:.3g}" in out
    assert 0.0 <= report["memorisation"] <= 1.0 and "are nearer to a picture that was learned" in out
    with Image.open(tmp_path / "scores-calibration.png") as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_earlier_results_of_the_same_model_stay(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And those of another model, or on other pictures, go. Whether the pictures were learned is said, and written down."""
    run, common = Path(shutil.copytree(runs / "fluid", tmp_path / "run")), ["--cache", tmp_path, "--features", "pixels", "--k", 2]
    half = ["--data", "digits", "--split", "even", "--num", 8, "--bootstrap", 0, *common]

    def call(*options: object) -> tuple[dict, str]:
        assert exit_code(evaluate.main, run, *half, *options) == 0
        return json.loads((run / "metrics.json").read_text()), capsys.readouterr().out

    first, out = call("--likelihood")
    assert first["learned"] == first["likelihood"]["learned"] == "all" and "earlier" not in first and "memorisation" not in first
    assert "the run was trained on these pictures" in out and "8 pictures that it was trained on, 12 steps)" in out
    later, out = call("--sampling-noise", 0.5, "--seed", 1)
    assert later["likelihood"] == first["likelihood"] and "kept of an earlier evaluation of the same model: likelihood" in out
    assert later["earlier"] == {"likelihood": {"seed": 0, "steps": None, "sampling_noise": None}}
    weights = load_tensors(run / "ema.safetensors")
    save_tensors(run / "ema.safetensors", {name: 0.9 * tensor for name, tensor in weights.items()})
    found, out = call()
    assert (
        "likelihood" not in found
        and "not kept of an earlier evaluation, with another model, pictures or features: likelihood" in out
    )
    write_json(run / "metrics.json", later)
    other, out = call("--split", "odd")
    assert "likelihood" not in other and other["learned"] == "none" and "memorisation" in other and "was trained on" not in out


@pytest.mark.slow
def test_the_likelihood_is_that_of_the_sampling_noise_asked_for(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Starting with noise that is larger by c costs (1 / c^2 - 1 + log c^2) / 2 nats a dimension, up to the pictures' own part."""
    monkeypatch.chdir(tmp_path)
    for name, noise in (("usual", ()), ("same", ("--sampling-noise", 1)), ("more", ("--sampling-noise", 2))):
        options = (*SCORING, "--cache", tmp_path / "cache", "--likelihood", *noise, "--out", f"{name}.json")
        assert exit_code(evaluate.main, runs / "fluid", *options) == 0
    usual, same, more = (json.loads((tmp_path / f"{name}.json").read_text())["likelihood"] for name in ("usual", "same", "more"))
    assert same == usual and (more["end"], more["by_tenth"]) == (usual["end"], usual["by_tenth"])
    cost = 0.5 * (0.25 - 1.0 + math.log(4.0)) / math.log(2.0)
    assert more["start"] - usual["start"] == pytest.approx(cost, rel=0.1)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("fluid", ["--likelihood", "--sampling-noise", 0], "fluid has no likelihood with sampling noise 0: Resample has"),
        ("edm", ["--likelihood"], "edm has no likelihood with sampling noise 1: Resample has steps without fresh noise"),
        ("folder", ["--likelihood", "--data", "digits"], "not a run; leave out likelihood, calibration, variance and restoration"),
        ("folder", ["--calibration", "--data", "digits"], "not a run; leave out likelihood, calibration, variance and restoration"),
    ],
)
def test_what_cannot_be_scored_so_is_refused_in_one_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, options: list[str], message: str
) -> None:
    (tmp_path / "folder").mkdir()
    for number in range(6):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / "folder" / f"{number}.png")
    where = runs / source if source in ("edm", "fluid") else tmp_path / source
    assert exit_code(evaluate.main, where, *options, "--features", "pixels", "--k", 3, "--cache", tmp_path / "cache") == 2
    _, err = said(capsys.readouterr())
    assert message in err and err.count("\n") == 1
