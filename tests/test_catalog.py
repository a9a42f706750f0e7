"""Where local copies of known data sets are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion.data import catalog
from diffusion.data.catalog import KNOWN, find
from diffusion.size import Size


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def test_places_and_names_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, named, here, system = tmp_path / "root", tmp_path / "named", tmp_path / "work" / "data", tmp_path / "usr" / "datasets"
    here.mkdir(parents=True)
    monkeypatch.chdir(here.parent)
    monkeypatch.setenv("BEYOND_BLUR_DATA", str(named))
    monkeypatch.setattr(catalog, "SYSTEM", system)
    assert catalog.folders(root) == [root, named, Path("data"), system]
    assert find("ffhq", Size.of(128), root) is None
    # From the last place to the first: each new one comes before all the earlier.
    for path in (
        system / "ffhq",
        here / "images1024x1024",
        here / "thumbnails128x128",
        named / "images1024x1024",
        root / "thumbnails128x128",
        root / "ffhq-128x128.zip",
        root / "ffhq.zip",
        root / "ffhq",
    ):
        make(path)
        assert find("ffhq", Size.of(128), root).resolve() == path
    monkeypatch.delenv("BEYOND_BLUR_DATA")
    assert catalog.folders(None) == [Path("data"), system]


def test_the_smallest_copy_that_is_large_enough(tmp_path: Path) -> None:
    for name in ("ffhq-64x64.zip", "ffhq-256x256.zip", "thumbnails128x128", "images1024x1024", "ffhq-32x64.zip"):
        make(tmp_path / name)
    for size, name in (
        (32, "ffhq-64x64.zip"),
        (64, "ffhq-64x64.zip"),
        ("32x65", "ffhq-256x256.zip"),
        (65, "ffhq-256x256.zip"),
        (257, "ffhq-32x64.zip"),
    ):
        assert find("ffhq", Size.of(size), tmp_path) == tmp_path / name
    (tmp_path / "ffhq-32x64.zip").rmdir()
    assert find("ffhq", Size.of(300), tmp_path) == tmp_path / "images1024x1024"
    assert find("ffhq", Size.of(2000), tmp_path) is None


@pytest.mark.parametrize(
    ("name", "copy"),
    [
        ("afhq", "afhqv2-64x64.zip"),
        ("afhq", "afhq/train"),
        ("lsun-church", "church_outdoor_train"),
        ("lsun-church", "lsunchurch256x256.zip"),
        ("lsun-church", "church_outdoor_train_lmdb"),
        ("cifar10", "cifar10-32x32.zip"),
        ("cifar10", "cifar-10-batches-bin"),
        ("cifar10", "cifar-10-batches-py"),
        ("mnist", "MNIST/raw"),
        ("fashion-mnist", "FashionMNIST/raw"),
    ],
)
def test_copies_under_the_names_they_have_elsewhere(tmp_path: Path, name: str, copy: str) -> None:
    path = make(tmp_path / copy)
    assert find(name, Size.of(KNOWN[name].size), tmp_path) == path
