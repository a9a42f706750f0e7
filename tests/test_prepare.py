"""Preparing images once: what is kept, what is made again, and what happens when something goes wrong on the way."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.data import prepare as module
from diffusion.data.dataset import ImageDataset, open_dataset
from tests.pictures import constants, damage, fails, first_levels, save


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return constants(tmp_path / "in", 30)


@pytest.fixture
def opened(folder: Path, tmp_path: Path) -> Callable[..., ImageDataset]:
    """Open the pictures with a cache folder of the test's own."""
    return lambda size=8, **options: open_dataset(str(folder), size, cache=tmp_path / "cache", **options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that are decoded."""
    names, decode = [], module.decode

    def counting(label, *arguments):
        names.append(Path(label).name)
        return decode(label, *arguments)

    monkeypatch.setattr(module, "decode", counting)
    return names


def kept(cache: Path) -> set[str]:
    """What lies in the cache folder beside locks, by suffix."""
    return {path.suffix for path in cache.iterdir()} - {".lock"}


def test_every_picture_is_decoded_once(opened: Callable[..., ImageDataset], decoded: list[str], tmp_path: Path) -> None:
    once, again = opened(), opened()
    assert sorted(decoded) == [f"{level:02}.png" for level in range(30)]
    assert first_levels(once) == first_levels(again) == list(range(30))
    assert isinstance(again.pixels, np.memmap) and kept(tmp_path / "cache") == {".uint8", ".json"}
    [array] = (tmp_path / "cache").glob("in-8-*.uint8")
    np.testing.assert_array_equal(np.fromfile(array, np.uint8).reshape(30, 1, 8, 8), once.pixels)
    index = json.loads(array.with_suffix(".json").read_text())
    assert (index["source"], index["done"], index["refused"]) == (str(tmp_path / "in"), 30, {})


def test_sizes_and_colours_are_kept_apart(opened: Callable[..., ImageDataset], decoded: list[str]) -> None:
    shapes = [opened(8).pixels.shape, opened("6x9").pixels.shape, opened(8, grey=False).pixels.shape]
    assert shapes == [(30, 1, 8, 8), (30, 1, 6, 9), (30, 3, 8, 8)] and len(decoded) == 90
    # Grey pictures are grey, whether that was asked for or found.
    assert opened(8, grey=True).channels == 1 and len(decoded) == 90


def test_changed_files_are_prepared_again(
    opened: Callable[..., ImageDataset], decoded: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = opened()
    save(folder / "03.png", 99, "L", side=24)
    assert first_levels(opened())[3] == 99 and len(decoded) == 60
    (folder / "00.png").unlink()
    assert first_levels(opened())[2] == 99 and len(decoded) == 89
    monkeypatch.setattr(module, "VERSION", 2)
    assert len(opened()) == 29 and len(decoded) == 118
    # What is out of date does not stay behind, but who still uses it goes on with it.
    assert len(list((tmp_path / "cache").glob("*.uint8"))) == 1 and first_levels(before) == list(range(30))


def test_a_killed_preparation_is_gone_on_with(
    opened: Callable[..., ImageDataset], decoded: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    damage(folder / "02.png")
    decode, tried = module.decode, []

    def killed(*arguments):
        tried.append(arguments)
        if len(tried) == 15:
            raise KeyboardInterrupt
        return decode(*arguments)

    monkeypatch.setattr(module, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        opened()
    assert json.loads(next((tmp_path / "cache").glob("*.json")).read_text())["done"] == 12
    decoded.clear()
    with pytest.warns(UserWarning, match=r"1 of 30 .*: 02.png; .*; they are left out"):
        dataset = opened()
    # Of the fourth four not all were read, so that all four are read again.
    assert sorted(decoded) == [f"{level:02}.png" for level in range(12, 30)]
    assert first_levels(dataset) == [level for level in range(30) if level != 2]
    assert kept(tmp_path / "cache") == {".uint8", ".json"}


@pytest.mark.parametrize("done", [20, 30])
@pytest.mark.parametrize("harm", ["other version", "short array", "no array", "no index", "damaged index", "other index"])
def test_a_damaged_cache_is_made_again(opened: Callable[..., ImageDataset], tmp_path: Path, harm: str, done: int) -> None:
    """Whether it was finished or only begun."""
    whole = np.array(opened().pixels)
    [array] = (tmp_path / "cache").glob("*.uint8")
    index = array.with_suffix(".json")
    progress = json.loads(index.read_text()) | {"done": done}
    array.write_bytes(bytes(done * 64 - (harm == "short array")))
    index.write_text({"damaged index": '{"done": 20', "other index": "{}"}.get(harm, json.dumps(progress)))
    if harm == "other version":
        index.write_text(json.dumps(progress | {"version": "other"}))
    elif harm in ("no array", "no index"):
        (array if harm == "no array" else index).unlink()
    np.testing.assert_array_equal(opened().pixels, whole)


def test_labels_are_read_anew(opened: Callable[..., ImageDataset], decoded: list[str], folder: Path) -> None:
    assert opened().labels is None
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{level:02}.png", level % 3] for level in range(30)]}))
    assert opened().labels.tolist() == [level % 3 for level in range(30)] and len(decoded) == 30


def test_one_of_several_processes_prepares_and_the_others_wait(
    opened: Callable[..., ImageDataset], decoded: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for processes here: the lock keeps them apart alike."""
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(module, "ANNOUNCED", 0)
    slow = threading.Event()
    decode = module.decode
    monkeypatch.setattr(module, "decode", lambda *arguments: slow.wait(0.05) or decode(*arguments))
    with ThreadPoolExecutor(3) as pool:
        datasets = list(pool.map(lambda _: opened(), range(3)))
    assert len(decoded) == 30
    for dataset in datasets:
        assert first_levels(dataset) == list(range(30))
    said = capsys.readouterr().err
    assert said.count("preparing 30 images") == 1 and said.count("waiting for another process") == 2


def test_the_number_of_threads_changes_nothing(
    opened: Callable[..., ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = np.array(opened().pixels)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(module, "THREADS", 1)
    np.testing.assert_array_equal(opened().pixels, whole)


# What cannot be prepared


def test_the_space_is_said_first_and_refused_where_the_disk_has_less(
    opened: Callable[..., ImageDataset], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**20))
    with fails("30 images", "at 256 pixels: 1.9 MiB", tmp_path / "cache", "1.0 MiB free", "--data-cache"):
        opened(256)
    assert kept(tmp_path / "cache") == set()
    monkeypatch.setattr(module, "ANNOUNCED", 2**16)
    opened(128)
    assert f"preparing 30 images of {tmp_path / 'in'} at 128 pixels: 0.5 MiB in {tmp_path / 'cache'}" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(opened: Callable[..., ImageDataset], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with fails(tmp_path / "cache", "cannot be kept there", "--data-cache"):
        opened()


def test_the_share_of_bad_files_decides(tmp_path: Path) -> None:
    for index in range(54):
        save(tmp_path / "in" / f"{index:02}.png", index, "L", side=2)
    for index in range(6):
        (tmp_path / "in" / f"bad{index}.png").write_text("text")
    with pytest.warns(UserWarning, match="6 of 60 .*: bad0.png, bad1.png, bad2.png, bad3.png, bad4.png, ...;") as record:
        assert len(open_dataset(str(tmp_path / "in"), 2, cache=tmp_path / "cache")) == 54
    assert len(record) == 1 and record[0].filename == __file__
    # Found once, and told every time.
    with pytest.warns(UserWarning, match="6 of 60"):
        open_dataset(str(tmp_path / "in"), 2, cache=tmp_path / "cache")
    (tmp_path / "in" / "bad6.png").write_text("text")
    with fails(tmp_path, "7 of 61", "bad0.png", "bad4.png, ...;", "not an image", "remove or replace"):
        open_dataset(str(tmp_path / "in"), 2, cache=tmp_path / "cache")
    assert ".uint8" not in kept(tmp_path / "cache")


def test_no_picture_left(tmp_path: Path) -> None:
    for grey in (None, True):
        with fails(tmp_path, "no image files"):
            open_dataset(str(tmp_path), grey=grey)
    (tmp_path / "a.png").write_text("text")
    with fails(tmp_path, "no image among the 1 that were looked at", "a.png: not an image"):
        open_dataset(str(tmp_path))
    # The header can be read, the pixels cannot.
    save(tmp_path / "a.png", 1, side=24)
    damage(tmp_path / "a.png")
    with fails(tmp_path, "1 of 1 image files", "a.png"):
        open_dataset(str(tmp_path))
