"""The evidence command: the sweeps of its studies, and the page that they end in."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

from cli import sweep
from tests.runs import exit_code, in_this_process, said, stripes
from tools import evidence
from tools.evidence import STUDIES, Study

ROOT = Path(__file__).parent.parent
COMMON = (
    "--data data --size 12 --images 48 --batch 8 --warmup 16 --network.width 8 --network.multipliers 1 2 --levels 6 "
    "--process ddpm edm --peclet 0 --features pixels --num 15 --k 3 --cache cache"
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 41 pictures; processes run this code, and on the CPU."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data").mkdir()
    for index, picture in enumerate(np.rint(255 * np.stack(stripes(41))).astype(np.uint8)):
        Image.fromarray(picture[0]).save(tmp_path / "data" / f"{index:03}.png")
    return tmp_path


@pytest.mark.slow
def test_studies_end_in_a_page_of_what_could_be_carried_out(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sweeps, one of which cannot be carried out."""
    sweeps = {"short": "--likelihood", "long one": "--features own.safetensors"}
    studies = {
        "both": Study(
            "Which is better?", COMMON.replace("--process ddpm edm", "--process ddpm"), sweeps, True, tuple(evidence.COLUMNS)
        )
    }
    monkeypatch.setattr(evidence, "STUDIES", studies)
    for module in (evidence, sweep):
        monkeypatch.setattr(module, "side_by_side", in_this_process)
    assert exit_code(evidence.main, "--runs", "runs", "--out", "page", "--device", "cpu") == 2
    assert "1 of 2 sweeps failed (both: long one)" in said(capsys.readouterr())[1]
    text = (place / "page" / "README.md").read_text()
    assert "long one" not in text
    assert "## Which is better?" in text and re.search(r"\| short \| 0 \| 1 \| .* \| \d\.\d{3} \| \d+\.\d{3} \|", text)
    assert "| floor |" in text
    numbers = json.loads((place / "page" / "evidence.json").read_text())["both"]["short"]
    assert numbers["finished"] and [(row["name"], len(row["reports"])) for row in numbers["rows"]] == [("short", 1)]
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["both-short-samples.png"]
    with Image.open(place / "page" / "both-short-samples.png") as picture:
        assert picture.width <= 1400
    # The command line on the page is the one that was carried out.
    (line,) = re.findall(r"    python -m cli\.sweep (.*)", text)
    assert exit_code(sweep.main, *line.split()) == 0 and "1 run, 1 finished" in said(capsys.readouterr())[0]

    # What the page has is not carried out again, even without its runs; rows of another study are shown too.
    shutil.rmtree(place / "runs")
    whole = {"both": studies["both"]._replace(sweeps={"short": "--likelihood"})}
    again = Study("Again?", "--data data", {}, True, shared={"the same": ("both", "short", (0,))})
    monkeypatch.setattr(evidence, "STUDIES", whole | {"again": again})
    assert exit_code(evidence.main, "--runs", "runs", "--out", "page", "--device", "cpu") == 0
    assert not (place / "runs").exists() and "both: short: in page" in said(capsys.readouterr())[0]
    page = (place / "page" / "README.md").read_text()
    assert page.startswith(text[: text.index("Made by")]) and re.search(r"## Again\?\n\n.*\n.*\n\| the same \| 0 \| 1 \|", page)


@pytest.mark.slow
def test_every_study_is_a_sweep_that_can_be_made(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes, Peclet numbers and options fit; only those on the digits, which need no files."""
    assert exit_code(evidence.main, "--dry-run") == 0
    lines = said(capsys.readouterr())[0].splitlines()
    assert len(lines) == sum(len(study.sweeps) for study in STUDIES.values())
    # Those that differ in numbers of images alone are one.
    digits = {re.sub(r" --(images|num|seeds|out) \S+", "", line): line for line in lines if "--data digits" in line}
    for line in digits.values():
        options, training = tyro.cli(sweep.Sweep, args=line.split()[3:], return_unknown_args=True)
        options.validate()
        assert sweep.planned(replace(options, dry_run=True), training).runs()
    assert not [name for name in os.listdir(place) if name != "data"]


def test_bad_options(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in ((("--only", "digit"), "digits"), (("--jobs", 0), "--jobs")):
        assert exit_code(evidence.main, *options) == 2
        assert message in said(capsys.readouterr())[1]
