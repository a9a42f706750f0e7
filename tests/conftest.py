"""Shared fixtures: every test of numerics runs on every device there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import warp as wp
from PIL import Image

from diffusion.files import asset

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# No test uses the network.
os.environ["HF_HUB_OFFLINE"] = "1"

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache folder is one of the tests' own, but for compiled kernels."""
    wp.init()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARP_CACHE_PATH", str(Path(wp.config.kernel_cache_dir).parent))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session")
def photograph() -> torch.Tensor:
    """A sharp 128 x 128 piece of the bundled photograph, float32 [1, 3, 128, 128]."""
    with Image.open(asset("chelsea.png")) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)[50:178, 100:228] / 255.0
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy())


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run, trained once for all tests: to be copied, and left as it is."""
    # Imported here: libraries that this brings in read the setting above when they start.
    from diffusion.training.loop import train
    from tests.runs import stripes, tiny_config

    folder = tmp_path_factory.mktemp("run") / "run"
    train(tiny_config(), stripes(), folder, torch.device("cpu"))
    return folder


@pytest.fixture
def empty_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of cli.corrupt are empty: drawing takes most of its time, and other tests look at them."""
    # Imported here: what needs no figure does not wait for matplotlib.
    from matplotlib.figure import Figure

    from cli import figures

    for name in ("strip", "velocity_and_spectrum"):
        monkeypatch.setattr(figures, name, lambda *_: Figure(figsize=(1, 1)))


@pytest.fixture(scope="module")
def browser_arguments() -> list[str]:
    """More arguments for Chromium, for the tests of a file that need some."""
    return []


@pytest.fixture(scope="module")
def browser(browser_arguments: list[str]) -> Iterator[Browser]:
    """The system's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no Chromium here; install the system's package chromium")
    with playwright.sync_playwright() as started:
        # A container's root may have no sandbox.
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = started.chromium.launch(executable_path=chromium, args=[*browser_arguments, *sandbox])
        yield opened
        opened.close()
