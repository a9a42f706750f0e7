"""Opening data sets of every kind."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import pickle
import shutil
import struct
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data import dataset as data
from diffusion.data.dataset import open_dataset
from diffusion.data.images import fit, read_image, read_square
from tests.pictures import check, chw, damage, fails, first_levels, save, zipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six constant images, written in an order that is not the one to read them in, among files to leave out."""
    root = tmp_path / "pictures"
    for name, level in [("b.png", 40), ("a/z.png", 20), ("c/d/e.PNG", 50), ("a.png", 30), ("a/b/c.bmp", 10)]:
        save(root / name, (level, level, level + 1))
    save(root / "z.tif", 60, "L", side=12)
    for hidden in (".hidden.png", ".git/x.png", "c/.cache/x.png"):
        save(root / hidden, 99, "L")
    (root / "notes.txt").write_text("not an image")
    (root / "dataset.json").write_text('{"labels": null}')
    return root


# "a.png" precedes "a/..." since "." sorts before "/".
IN_ORDER = [30, 10, 20, 40, 50, 60]


def test_digits() -> None:
    digits = open_dataset("digits", None, None)
    assert (len(digits), digits.size, digits.channels, digits.name) == (1797, 16, 1, "digits")
    assert "1797" in digits.description and "\n" not in digits.description
    assert digits.labels.dtype == np.int64 and digits.labels.shape == (1797,)
    assert digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]

    images = np.stack(list(digits))
    assert images.shape == (1797, 1, 16, 16) and images.dtype == np.float32
    assert images.min() == 0 and images.max() == 1


def test_digits_at_their_own_size() -> None:
    digits = open_dataset("digits", 8, None)
    first = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    check(digits[0][:, :3], np.array([first], dtype=np.float32) / 16)
    check(digits[-1][:, :1], np.array([[[0, 0, 10, 14, 8, 1, 0, 0]]], dtype=np.float32) / 16)
    assert sum(int(image.sum() * 16) for image in digits) == 561718
    check(open_dataset("digits", 8, None, grey=False)[0], np.repeat(digits[0], 3, axis=0))


def test_digits_equal_the_original() -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    digits = open_dataset("digits", 8, None)
    np.testing.assert_array_equal(np.stack(list(digits))[:, 0] * 16, original.images)
    np.testing.assert_array_equal(digits.labels, original.target)


def test_folder(folder: Path) -> None:
    dataset = open_dataset(str(folder), None, None)
    assert (len(dataset), dataset.size, dataset.channels, dataset.name) == (6, 64, 3, "pictures")
    assert dataset.labels is None
    assert "6 colour images" in dataset.description and str(folder) in dataset.description
    assert first_levels(dataset) == IN_ORDER
    check(dataset[0], np.repeat(chw(np.full((64, 64), 30)), 3, axis=0) + chw(np.full((64, 64, 3), (0, 0, 1))), 1e-6)
    with pytest.raises(IndexError):
        dataset[6]


def test_folder_order_does_not_depend_on_the_file_system(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = os.walk

    def backwards(*args, **options):
        for directory, folders, names in walk(*args, **options):
            folders.sort(reverse=True)
            yield directory, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert first_levels(open_dataset(str(folder), 8, None)) == IN_ORDER


def test_links_are_followed_but_not_in_loops(folder: Path, tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "x.png", 70)
    (folder / "c" / "up").symlink_to(folder)
    (folder / "c" / "side").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder / "c")
    assert first_levels(open_dataset(str(folder), 8, None)) == [30, 10, 20, 40, 50, 70, 60]


def test_grey_or_colour(tmp_path: Path) -> None:
    for index in range(40):
        save(tmp_path / f"{index:02}.png", index, "RGB" if index == 32 else "L", side=2)
    dataset = open_dataset(str(tmp_path), 2, None)
    assert dataset.channels == 1 and dataset[32].shape == (1, 2, 2)
    assert "40 grey images" in dataset.description
    assert open_dataset(str(tmp_path), 2, None, grey=False)[0].shape == (3, 2, 2)

    save(tmp_path / "31.png", 31, "RGB", side=2)
    assert open_dataset(str(tmp_path), 2, None)[0].shape == (3, 2, 2)
    assert open_dataset(str(tmp_path), 2, None, grey=True)[31].shape == (1, 2, 2)


def test_each_file_is_decoded_once_if_all_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []

    def counting(file, size, mode, name):
        decoded.append(name)
        return read_square(file, size, mode, name)

    monkeypatch.setattr(data, "read_square", counting)
    dataset = open_dataset(str(folder), 8, None)
    assert decoded == []
    once, again = list(dataset), list(dataset)
    assert len(decoded) == 6
    np.testing.assert_array_equal(once, again)

    monkeypatch.setattr(data, "_CACHE_BYTES", 6 * 3 * 8 * 8 - 1)
    too_large = open_dataset(str(folder), 8, None)
    np.testing.assert_array_equal(list(too_large), once)
    np.testing.assert_array_equal(list(too_large), once)
    assert len(decoded) == 18


def test_decoded_images_are_shared_by_forked_processes_and_not_taken_along_by_others(folder: Path) -> None:
    dataset = open_dataset(str(folder), 8, None)
    read = list(open_dataset(str(folder), 8, None))
    process = multiprocessing.get_context("fork").Process(target=list, args=(dataset,))
    process.start()
    process.join()
    shutil.rmtree(folder)
    np.testing.assert_array_equal(list(dataset), read)
    with fails("6 damaged images", "no such file"):
        pickle.loads(pickle.dumps(dataset))[0]


def test_a_half_written_image_is_not_taken_from_the_cache() -> None:
    cache = data._Cache((2, 1, 4, 4))
    assert cache.get(0) is None and cache.get(1) is None
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    cache.put(1, image)
    np.testing.assert_array_equal(cache.get(1), image)
    cache.levels[1, 0, 3] = 0
    assert cache.get(0) is None and cache.get(1) is None


def test_files_are_rounded_to_8_bits(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint16) * 1000, (64, 64))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    image = open_dataset(str(tmp_path), 24, None)[0]
    check(image, fit(read_image(tmp_path / "a.png"), 24), 0.5001 / 255)
    check(image, chw(np.rint(image[0] * 255)))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_equals_folder(folder: Path, tmp_path: Path, compression: int) -> None:
    dataset = open_dataset(str(zipped(folder, tmp_path / "p.zip", compression)), 8, None)
    assert (len(dataset), dataset.channels, dataset.name) == (6, 3, "p.zip")
    np.testing.assert_array_equal(list(dataset), list(open_dataset(str(folder), 8, None)))


def test_zip_in_threads_processes_and_pickles(tmp_path: Path) -> None:
    for index in range(24):
        save(tmp_path / "in" / f"{index:02}.png", index, "L")
    archive = zipped(tmp_path / "in", tmp_path / "p.zip")
    dataset = open_dataset(str(archive), 8, None)
    with multiprocessing.get_context("fork").Pool(2) as processes:
        forked = processes.map(dataset.__getitem__, range(24), chunksize=1)
    with ThreadPoolExecutor(4) as threads:
        threaded = list(threads.map(dataset.__getitem__, range(24)))
    for images in (forked, threaded, pickle.loads(pickle.dumps(open_dataset(str(archive), 8, None)))):
        assert [round(float(image[0, 0, 0]) * 255) for image in images] == list(range(24))


# Data sets that cannot be opened


def test_bad_files_are_left_out_with_a_warning(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("text")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    save(folder / "small.png", 1, side=1)
    with pytest.warns(UserWarning, match="3 of 9 image files .*: broken.png, dangling.png, small.png;") as record:
        dataset = open_dataset(str(folder), 8, None)
    assert first_levels(dataset) == IN_ORDER
    assert len(record) == 1 and record[0].filename == __file__

    (folder / "dangling.png").unlink()
    with pytest.warns(UserWarning, match="2 of 8 image files .*: broken.png, small.png;"):
        assert first_levels(open_dataset(str(zipped(folder, tmp_path / "p.zip")), 8, None)) == IN_ORDER


def test_the_share_of_bad_files_decides(tmp_path: Path) -> None:
    for index in range(54):
        save(tmp_path / f"{index:02}.png", index, "L", side=2)
    for index in range(6):
        (tmp_path / f"bad{index}.png").write_text("text")
    with pytest.warns(UserWarning, match="6 of 60 .*: bad0.png, bad1.png, bad2.png, bad3.png, bad4.png, ...;"):
        assert len(open_dataset(str(tmp_path), 2, None)) == 54
    (tmp_path / "bad6.png").write_text("text")
    with fails(tmp_path, "7 of 61", "bad0.png", "bad4.png, ...;"):
        open_dataset(str(tmp_path), 2, None)


def test_no_image_left(tmp_path: Path) -> None:
    with fails(tmp_path, "no image files"):
        open_dataset(str(tmp_path), 8, None)
    (tmp_path / "a.png").write_text("text")
    with fails(tmp_path, "1 of 1", "a.png"):
        open_dataset(str(tmp_path), 8, None)


def test_damage_found_late_is_reported_once_and_replaced(folder: Path, tmp_path: Path) -> None:
    damage(folder / "b.png")
    damage(folder / "c/d/e.PNG")
    for path in (folder, zipped(folder, tmp_path / "p.zip")):
        dataset = open_dataset(str(path), 8, None)
        assert len(dataset) == 6
        with pytest.warns(UserWarning) as record:
            assert first_levels(dataset) == [30, 10, 20, 60, 60, 60]
        assert [str(warning.message).split(":")[0] for warning in record] == [f"{path}/b.png", f"{path}/c/d/e.PNG"]
        assert "damaged image 2" in str(record[1].message)
        assert first_levels(dataset) == [30, 10, 20, 60, 60, 60]
        assert dataset.read(3)[1] == list(dataset.damaged)
        assert first_levels([dataset[-3]]) == [60]


def test_the_last_image_is_replaced_by_the_first(folder: Path) -> None:
    dataset = open_dataset(str(folder), 8, None)
    (folder / "z.tif").unlink()
    with pytest.warns(UserWarning, match="z.tif: no such file"):
        assert first_levels(dataset) == [30, 10, 20, 40, 50, 30]


def test_too_much_damage_found_late_is_refused(tmp_path: Path) -> None:
    for index in range(12):
        save(tmp_path / f"{index:02}.png", index, side=24)
    dataset = open_dataset(str(tmp_path), 8, None)
    for index in range(0, 12, 2):
        damage(tmp_path / f"{index:02}.png")
    with pytest.warns(UserWarning) as record, fails("6 damaged images", tmp_path / "10.png"):
        list(dataset)
    assert len(record) == 5
    for index in range(1, 6, 2):
        damage(tmp_path / f"{index:02}.png")
    with fails("6 damaged images one after the other", tmp_path / "06.png"):
        open_dataset(str(tmp_path), 8, None).read(1)


def test_corrupt_archives(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "p.zip")
    content = archive.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        archive.write_bytes(damaged)
        with fails(archive, "damaged"):
            open_dataset(str(archive), 8, None)
    # Local headers overwritten: the directory can be read, no member can.
    archive.write_bytes(content.replace(b"PK\3\4", b"PK\0\0"))
    with fails(archive, "6 of 6"):
        open_dataset(str(archive), 8, None)


def test_encrypted_archive(folder: Path, tmp_path: Path) -> None:
    archive = zipped(folder, tmp_path / "p.zip")
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\1\2")
    while (start := content.find(b"PK\1\2", start)) >= 0:
        content[start + 8 : start + 10] = struct.pack("<H", 1)
        start += 4
    archive.write_bytes(content)
    with fails(archive, "without password"):
        open_dataset(str(archive), 8, None)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", ["did you mean 'digits'", "folder", ".zip"]),
        ("FFHQ", ["did you mean 'ffhq'"]),
        ("cifar-10", ["did you mean 'cifar10'"]),
        ("lsun_church", ["did you mean 'lsun-church'"]),
        ("nowhere/at/all", ["no such folder or archive", "folder", ".zip", "hf:owner/name", "digits", "mnist"]),
        ("nowhere.zip", ["no such folder or archive"]),
        ("", ["no such folder or archive"]),
        ("two\nlines", ["two lines"]),
    ],
)
def test_unknown_names(name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with fails(*words):
        open_dataset(name, None, None)


def test_a_single_file_is_no_data_set(folder: Path) -> None:
    with fails(folder / "a.png", "single file", "folder"):
        open_dataset(str(folder / "a.png"), None, None)


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_size_too_small(size: int) -> None:
    with fails(f"size {size}", "at least 2"):
        open_dataset("digits", size, None)


# Labels, tables, sets known by name


def test_labels_of_an_edm_archive(folder: Path, tmp_path: Path) -> None:
    names = ["a.png", "a/b/c.bmp", "a/z.png", "b.png", "c/d/e.PNG", "z.tif"]
    (folder / "broken.png").write_text("text")
    pairs = [[name, number] for number, name in enumerate([*names, "broken.png", "elsewhere.png"])]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
    for path in (folder, zipped(folder, tmp_path / "p.zip")):
        with pytest.warns(UserWarning, match="broken.png"):
            dataset = open_dataset(str(path), 8, None)
        assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Three grey images of 28 x 28 in MNIST's format."""
    (tmp_path / "raw").mkdir()
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32).reshape(3, 28, 28) % 251
    header = struct.pack(">4I", 0x0803, 3, 28, 28)
    (tmp_path / "raw" / "train-images-idx3-ubyte").write_bytes(header + pixels.astype(np.uint8).tobytes())
    with gzip.open(tmp_path / "raw" / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write(struct.pack(">2I", 0x0801, 3) + bytes([7, 0, 9]))
    return tmp_path / "raw"


def test_mnist(mnist: Path) -> None:
    dataset = open_dataset(str(mnist), 28, None)
    assert (len(dataset), dataset.channels, dataset.name, dataset.encoded) == (3, 1, "raw", False)
    assert "3 grey images of 28 x 28 pixels" in dataset.description and dataset.labels.tolist() == [7, 0, 9]
    check(dataset[2], (np.arange(2 * 784, 3 * 784) % 251).reshape(1, 28, 28).astype(np.float32) / 255)
    np.testing.assert_array_equal(open_dataset(str(mnist / "train-images-idx3-ubyte"), 28, None)[1], dataset[1])
    check(open_dataset(str(mnist), 14, None, grey=False)[1], np.repeat(fit(dataset[1], 14), 3, axis=0))


def test_cifar10(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    for number in range(5):
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(records[2 * number : 2 * number + 2].tobytes())
    dataset = open_dataset(str(tmp_path), 32, None)
    assert (len(dataset), dataset.channels) == (10, 3) and dataset.labels.tolist() == records[:, 0].tolist()
    # One byte of label, then 1024 of red, green and blue each, row after row.
    image = np.stack([records[7, 1 + 1024 * c : 1 + 1024 * (c + 1)].reshape(32, 32) for c in range(3)])
    check(dataset[7], image.astype(np.float32) / 255)
    assert open_dataset(str(tmp_path), 32, None, grey=True)[7].shape == (1, 32, 32)
    (tmp_path / "data_batch_3.bin").unlink()
    with fails("data_batch_3.bin", "no such file"):
        open_dataset(str(tmp_path), 32, None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no data folder named in the environment."""
    monkeypatch.delenv("BEYOND_BLUR_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(("name", "size"), [("ffhq", 128), ("afhq", 64), ("lsun-church", 128), ("cifar10", 32), ("mnist", 28)])
def test_known_names_open_their_local_copy(elsewhere: Path, name: str, size: int) -> None:
    save(Path("data") / name / "1.png", 5)
    dataset = open_dataset(name, None, None)
    assert (dataset.name, dataset.size, len(dataset)) == (name, size, 1)
    assert open_dataset(name, 4, None, grey=True)[0].shape == (1, 4, 4)


def test_known_names_take_forms_that_are_no_image_files(elsewhere: Path, mnist: Path) -> None:
    (elsewhere / "MNIST").mkdir()
    mnist.rename(elsewhere / "MNIST" / "raw")
    assert open_dataset("mnist", None, elsewhere).labels.tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ffhq", ["https://github.com/NVlabs/ffhq-dataset", "70,000", "2 GB", "CC BY-NC-SA 4.0", "data/thumbnails128x128"]),
        ("afhq", ["https://github.com/clovaai/stargan-v2", "7 GB", "CC BY-NC 4.0", "data/afhq", "hf:huggan/AFHQv2"]),
        ("lsun-church", ["https://github.com/fyu/lsun", "2.3 GB", "no licence", "data/lsun-church"]),
        ("cifar10", ["https://www.cs.toronto.edu/~kriz/cifar.html", "binary", "162 MB", "data/cifar-10-batches-bin"]),
        ("mnist", ["train-images-idx3-ubyte.gz", "10 MB", "CC BY-SA 3.0", "data/mnist", "hf:ylecun/mnist"]),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_missing_known_sets_say_where_to_get_them(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], installed: bool
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "datasets", None)
    with fails(f"{name}: none of", *words, "--data FOLDER", "cannot be loaded" if installed else "pip install 'beyond-blur[hub]'"):
        open_dataset(name, None, None)


@pytest.mark.parametrize("name", ["digits", "pictures"])
def test_only_sets_of_the_hub_can_be_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder.parent)
    with fails(f"{name}: only sets of the hub can be streamed"):
        open_dataset(name, None, None, stream=True)
