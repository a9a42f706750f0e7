"""The examples, as a reader runs them: as scripts with options, killed and run again, loaded elsewhere."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion import Pipeline
from diffusion.files import load_tensors
from lbm_warp.checks import InputError
from tools import notebooks

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.slow


def run(name: str, *arguments: object) -> str:
    """Run an example as a script, but in this process, which has torch already; returns what it prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return printed.getvalue()


def module(name: str) -> ModuleType:
    """An example as a module, with its classes."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_shows_what_is_kept_in_it(path: Path) -> None:
    """The same words, numbers within a fifth, pictures within a tenth: other machines round otherwise."""
    if path.stem == "deepinv":
        pytest.importorskip("deepinv", reason="the extra 'deepinv' is not installed")
    number = r"\d+(?:\.\d+)?(?:e-?\d+)?"
    for cell, now in zip(json.loads(path.read_text(encoding="utf-8"))["cells"], notebooks.run(path)["cells"], strict=True):
        (text, images), (text_now, images_now) = shown(cell), shown(now)
        assert re.sub(number, "", text) == re.sub(number, "", text_now)
        numbers, numbers_now = ([float(found) for found in re.findall(number, said)] for said in (text, text_now))
        assert numbers_now == pytest.approx(numbers, rel=0.2, abs=1e-4)
        for image, image_now in zip(images, images_now, strict=True):
            # A label of another length may move a border by some pixels.
            assert np.abs(np.subtract(image.shape, image_now.shape)).max() <= 4
            rows, columns = np.minimum(image.shape[:2], image_now.shape[:2])
            assert np.abs(image[:rows, :columns] - image_now[:rows, :columns]).mean() < 25.0


def shown(cell: dict[str, Any]) -> tuple[str, list[np.ndarray]]:
    """What a cell of a notebook shows: all text, and the pictures."""
    text, images = "", []
    for output in cell.get("outputs", ()):
        data = {kind: "".join(lines) for kind, lines in output.get("data", {"text": output.get("text")}).items()}
        if png := data.pop("image/png", ""):
            images.append(np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), float))
        text += re.sub(r"base64,[\w+/=]+", "", "".join(data.values()))
    return text, images


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60


def test_an_operator_of_ones_own_trains_resumes_after_a_kill_and_samples_masked_pictures(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, EXAMPLES / "own_operator.py", "--out", killed, "--images", "1600"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoints/*.safetensors")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(killed.glob("checkpoints/*.safetensors")) and not (killed / "way.png").exists()
    said = run("own_operator.py", "--out", killed, "--images", 1600)
    assert "share of dark pixels" in said and (killed / "way.png").is_file()
    own = module("own_operator")
    own.main(whole, 1600)
    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (load_tensors(folder / name) for folder in (killed, whole))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    with pytest.raises(InputError, match=r"names the class Masking.*types=\[Masking\]"):
        Pipeline.from_pretrained(killed)
    pipeline = Pipeline.from_pretrained(killed, types=[own.Masking])
    way: dict[int, torch.Tensor] = {}
    pipeline.sample(4, callback=lambda level, u: way.setdefault(level, u.clone()))
    levels = pipeline.forward.levels
    for level, u in way.items():
        # A masked pixel holds nothing but noise of 0.02: five standard deviations.
        assert (u.abs() < 0.1).float().mean() >= level / levels - 0.5 / 256
    middle = way[min(way, key=lambda level: abs(level - levels // 2))]
    assert (middle > 0.2).float().mean() > 0.05


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    run("own_network.py", "--out", tmp_path, "--images", 128)
    images = Pipeline.from_pretrained(tmp_path, types=[module("own_network").EDM2]).sample(2, steps=4)
    assert images.shape == (2, 1, 16, 16) and images.isfinite().all()


def test_data_features_logger_and_learning_rate_of_ones_own(tmp_path: Path) -> None:
    said = run("own_data.py", "--out", tmp_path, "--images", 256, "--scored", 8)
    assert "loss" in said and "Frechet distance" in said
    assert (tmp_path / "samples.png").is_file()


def test_flow_matching(tmp_path: Path) -> None:
    said = run("flow_matching.py", "--out", tmp_path, "--images", 128, "--scored", 6)
    assert "bits a dimension" in said


def test_media_look_like_the_figure(tmp_path: Path) -> None:
    run("medium.py", "--out", tmp_path / "medium.jpg")
    made, kept = (
        np.asarray(Image.open(path), float) for path in (tmp_path / "medium.jpg", EXAMPLES.parent / "assets/figures/medium.jpg")
    )
    assert np.abs(made - kept).mean() < 5.0


def test_inpainting_honours_the_measurement(tmp_path: Path) -> None:
    said = run("inpainting.py", "--out", tmp_path, "--pictures", 2, "--samples", 2)
    errors = [float(line.split("measurement by ")[1].split()[0]) for line in said.splitlines() if "off the measurement" in line]
    # The noise on the measurement is 0.02; the samples keep within twice that.
    assert len(errors) == 4 and max(errors) < 0.04
