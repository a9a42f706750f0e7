"""Opening data sets of every kind."""

from __future__ import annotations

import gzip
import json
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import evaluate, features, sample, sweep, train
from cli.figures import labelled_strips, save_figure
from cli.video import open_film
from diffusion.data import catalog, prepare
from diffusion.data.dataset import (
    evenly_spaced,
    find_source,
    name_of_half,
    numbers_of,
    open_dataset,
    whole_and_half,
)
from diffusion.data.images import fit, read_image
from diffusion.data.products import save_image
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.sources import open_pictures
from diffusion.size import Size
from lbm_warp.checks import InputError
from tests.pictures import check, chw, fails, first_levels, save, zipped
from tests.runs import exit_code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six constant images, written in an order that is not the one to read them in, among files to leave out."""
    root = tmp_path / "pictures"
    for name, level in [("b.png", 40), ("a/z.png", 20), ("c/d/e.PNG", 50), ("a.png", 30), ("a/b/c.bmp", 10)]:
        save(root / name, (level, level, level + 1))
    save(root / "z.tif", 60, "L", side=12)
    save(root / ".hidden.png", 99, "L")
    (root / "notes.txt").write_text("not an image")
    (root / "dataset.json").write_text('{"labels": null}')
    return root


IN_ORDER = [30, 10, 20, 40, 50, 60]


def test_digits() -> None:
    digits = open_dataset("digits")
    assert (len(digits), digits.size, digits.channels, digits.name) == (1797, (16, 16), 1, "digits")
    assert "1797" in digits.description and "\n" not in digits.description
    assert repr(digits) == "ImageDataset(digits: 1,797 pictures of [1, 16, 16])"
    assert digits.labels.dtype == np.int64 and digits.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert np.bincount(digits.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images = np.stack(list(digits))
    assert images.shape == (1797, 1, 16, 16) and images.dtype == np.float32 and (images.min(), images.max()) == (0, 1)


def test_digits_at_their_own_size() -> None:
    digits = open_dataset("digits", 8)
    first = [[0, 0, 5, 13, 9, 1, 0, 0], [0, 0, 13, 15, 10, 15, 5, 0], [0, 3, 15, 2, 0, 11, 8, 0]]
    check(digits[0][:, :3], np.array([first], dtype=np.float32) / 16)
    assert sum(int(image.sum() * 16) for image in digits) == 561718
    check(open_dataset("digits", 8, grey=False)[0], np.repeat(digits[0], 3, axis=0))
    # They are not rounded to 8 bits.
    check(open_dataset("digits", "8x12")[5], fit(digits[5], (8, 12)))


def test_digits_equal_the_original() -> None:
    original = pytest.importorskip("sklearn.datasets").load_digits()
    digits = open_dataset("digits", 8)
    np.testing.assert_array_equal(np.stack(list(digits))[:, 0] * 16, original.images)
    np.testing.assert_array_equal(digits.labels, original.target)


def test_folder(folder: Path) -> None:
    dataset = open_dataset(str(folder))
    assert (len(dataset), dataset.size, dataset.channels, dataset.name) == (6, (64, 64), 3, "pictures")
    assert dataset.labels is None
    assert "6 colour images" in dataset.description and str(folder) in dataset.description
    assert first_levels(dataset) == IN_ORDER
    check(dataset[0], np.repeat(chw(np.full((64, 64), 30)), 3, axis=0) + chw(np.full((64, 64, 3), (0, 0, 1))), 1e-6)
    with pytest.raises(IndexError):
        dataset[6]


def test_grey_or_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a small set decide, and pictures spread over a large one; the description says how many."""
    for index in range(40):
        save(tmp_path / f"{index:02}.png", index, "L", side=2)
    dataset = open_dataset(str(tmp_path), 2)
    assert dataset.channels == 1 and dataset[32].shape == (1, 2, 2)
    assert dataset.description == f"40 grey images from {tmp_path} (grey: all 40 looked at)"
    assert open_dataset(str(tmp_path), 2, grey=False)[0].shape == (3, 2, 2)

    for index in range(33, 40):
        save(tmp_path / f"{index:02}.png", index, "RGB", side=2)
    dataset = open_dataset(str(tmp_path), 2)
    assert dataset[0].shape == (3, 2, 2) and "40 colour images" in dataset.description
    assert dataset.description.endswith("(colour: 7 of 40 looked at)")
    forced = open_dataset(str(tmp_path), 2, grey=True)
    assert forced[31].shape == (1, 2, 2) and forced.description == f"40 grey images from {tmp_path}"
    monkeypatch.setattr(prepare, "PROBES", 5)
    assert "(colour: 1 of 5 looked at)" in open_dataset(str(tmp_path), 2).description


@pytest.mark.parametrize("main", [train.main, evaluate.main, sweep.main, features.main])
def test_grey_and_colour_do_not_go_together(main: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    words = {evaluate.main: ["outputs"], sweep.main: ["--peclet", "0"]}.get(main, [])
    assert exit_code(main, *words, "--grey", "--colour") == 2
    assert "--grey and --colour do not go together; choose one" in capsys.readouterr().err


def test_the_range_of_float_pictures_is_that_of_the_set(tmp_path: Path) -> None:
    """One that overshoots is not a picture of bytes, and one that lies far outside is left out."""
    for number, top in enumerate((1.0, 1.02, 0.5, 3.7)):
        Image.fromarray(np.array([[0, 0.25], [0.125, top]], np.float32)).save(tmp_path / f"{number}.tif")
    with pytest.warns(UserWarning, match="1 of 4 image files.*: 3.tif; .* values from 0 to 3.7; expected 0 to 1"):
        dataset = open_dataset(str(tmp_path), 2)
    assert dataset.description.endswith("float values from 0 to 1)")
    np.testing.assert_array_equal((dataset.pixels[:, 0, 1, 1], dataset.pixels[:, 0, 0, 1]), [(255, 255, 128), (64, 64, 64)])
    for number in range(4):
        Image.fromarray(np.array([[0, 0.5], [100, 200]], np.float32)).save(tmp_path / f"{number}.tif")
    dataset = open_dataset(str(tmp_path), 2)
    assert dataset.description.endswith("float values from 0 to 255)") and dataset.pixels[3, 0, 1].tolist() == [100, 200]


# What is not read


def test_nearly_black_pictures_are_said(tmp_path: Path) -> None:
    """Twelve bits in sixteen, or masks of classes."""
    Image.fromarray(np.full((8, 8), 4095, np.uint16)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="its pictures are nearly black, 16 of 255 at most; if they should not be"):
        open_dataset(str(tmp_path), 8)
    save(tmp_path / "b.png", 99)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(str(tmp_path), 8)


def test_files_that_are_no_images_are_counted(tmp_path: Path) -> None:
    for name in ("a.heic", "deep/b.HEIC", "LICENSE", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    with fails("no image files among 3 (.heic 2, no ending 1); expected names that end in .png", "rename the files"):
        open_dataset(str(tmp_path), 8)
    save(tmp_path / "c.png", 1)
    with pytest.warns(UserWarning, match=r"left out, since they are not images we read: 3 \(\.heic 2, no ending 1\)"):
        assert len(open_dataset(str(tmp_path), 8)) == 1


def test_what_this_project_made_is_no_data(tmp_path: Path) -> None:
    """Told by the mark in the file, not by its name; a re-opened set tells it again."""
    save(tmp_path / "grid.png", 7)
    save_image(tmp_path / "photo.png", np.full((8, 8, 3), 9, np.uint8), "sample")
    save_image(tmp_path / "deep" / "face.png", np.full((20, 20, 1), 9, np.uint8), "grid")
    save_figure(tmp_path / "cat.png", labelled_strips([("a", np.zeros((4, 8, 3), np.uint8))], "title"))
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"left out, since this program made them: 3 \(figure 1, grid 1, sample 1\)"):
            assert first_levels(open_dataset(str(tmp_path), 8)) == [7]
    with pytest.warns(UserWarning, match=r"left out, since this program made them: 2 \(figure 1, grid 1\)"):
        assert first_levels(open_dataset(str(tmp_path), 8, samples=True)) == [7, 9]
    (tmp_path / "grid.png").unlink()
    with pytest.warns(UserWarning, match="all of its pictures were made by this program"):
        assert first_levels(open_dataset(str(tmp_path), 8)) == [9]
    (tmp_path / "photo.png").unlink()
    with fails("no pictures to read: left out, since this program made them: 2 (figure 1, grid 1)"):
        open_dataset(str(tmp_path), 8)


def test_frames_come_as_a_person_counts_and_without_sheets(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        save(tmp_path / f"frame{number}.png", number)
    save_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8), "grid")
    save_image(tmp_path / "frame3.png", np.full((8, 8, 3), 3, np.uint8), "frame")
    pictures = open_film(tmp_path)
    assert first_levels(pictures.read()) == [1, 2, 10]
    assert pictures.remarks == ("left out, since this program made them: 2 (frame 1, grid 1)",)
    for number in (1, 2, 10):
        (tmp_path / f"frame{number}.png").unlink()
    assert first_levels(open_film(tmp_path).read()) == [3]


@pytest.mark.filterwarnings("ignore:.*not images we read")
def test_samples_are_counted_without_their_grid(finished_run: Path, tmp_path: Path) -> None:
    """What cli.sample writes, as cli.evaluate reads it: grey, since the grid, which is in colour, does not count."""
    assert exit_code(sample.main, finished_run, "--num", 3, "--out", tmp_path / "out", "--zip") == 0
    for place in ("out", "out/samples.zip"):
        config = EvaluationConfig(data_cache=tmp_path / "cache")
        source = open_pictures(str(tmp_path / place), config, samples=True)
        assert (source.count, source.channels) == (3, 1)


@pytest.mark.parametrize("size", [24, "24x40"])
def test_files_are_cropped_resized_and_rounded_to_8_bits(tmp_path: Path, size: int | str) -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint16) * 1000, (48, 64))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    dataset = open_dataset(str(tmp_path), size)
    assert dataset.size == Size.of(size)
    check(dataset[0], fit(read_image(tmp_path / "a.png"), size), 0.5001 / 255)
    check(dataset[0], np.rint(dataset[0] * 255).astype(np.float32) / 255)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_equals_folder(folder: Path, tmp_path: Path, compression: int) -> None:
    dataset = open_dataset(str(zipped(folder, tmp_path / "p.zip", compression)), 8)
    assert (len(dataset), dataset.channels, dataset.name) == (6, 3, "p.zip")
    np.testing.assert_array_equal(list(dataset), list(open_dataset(str(folder), 8)))


def test_a_source_is_found_without_preparing_it(folder: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:-30])
    found = find_source(str(folder), None, None, None, False)
    assert (found.name, len(found.source.names), found.size, found.channels) == ("pictures", 6, (64, 64), 3)


# Data sets that cannot be opened


def test_bad_files_are_left_out_with_a_warning(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_text("text")
    (folder / "dangling.png").symlink_to(folder / "nowhere.png")
    save(folder / "small.png", 1, side=1)
    names = ["a.png", "a/b/c.bmp", "a/z.png", "b.png", "c/d/e.PNG", "z.tif"]
    pairs = [[name, number] for number, name in enumerate([*names, "broken.png", "elsewhere.png"])]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))
    with pytest.warns(UserWarning, match="3 of 9 image files .*: broken.png, dangling.png, small.png;"):
        dataset = open_dataset(str(folder), 8)
    (folder / "dangling.png").unlink()
    with pytest.warns(UserWarning, match="2 of 8 image files .*: broken.png, small.png;"):
        packed = open_dataset(str(zipped(folder, tmp_path / "p.zip")), 8)
    for found in (dataset, packed):
        assert first_levels(found) == IN_ORDER
        # As EDM and StyleGAN keep them.
        assert found.labels.dtype == np.int64 and found.labels.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digit", ["did you mean 'digits'"]),
        ("FFHQ", ["did you mean 'ffhq'"]),
        ("lsun_church", ["did you mean 'lsun-church'"]),
        ("nowhere/at/all", ["folder", ".zip", "hf:owner/name", "digits", "mnist"]),
        ("nowhere.zip", []),
        ("", []),
        ("two\nlines", ["two lines"]),
    ],
)
def test_unknown_names(name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with fails("no such folder or archive", *words):
        open_dataset(name)


@pytest.mark.parametrize("size", [-1, 0, 1, "8x", (8, 1)])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(InputError, match="size must be one number of pixels"):
        open_dataset("digits", size)


# Tables, sets known by name


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
    dataset = open_dataset(str(mnist), 28)
    assert (len(dataset), dataset.channels, dataset.name) == (3, 1, "raw")
    assert "3 grey images" in dataset.description and dataset.labels.tolist() == [7, 0, 9]
    check(dataset[2], (np.arange(2 * 784, 3 * 784) % 251).reshape(1, 28, 28).astype(np.float32) / 255)
    np.testing.assert_array_equal(open_dataset(str(mnist / "train-images-idx3-ubyte"), 28)[1], dataset[1])
    check(open_dataset(str(mnist), 14, grey=False)[1], np.repeat(fit(dataset[1], 14), 3, axis=0), 0.5001 / 255)


def test_cifar10(tmp_path: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (10, 3073), dtype=np.uint8)
    for number in range(5):
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(records[2 * number : 2 * number + 2].tobytes())
    dataset = open_dataset(str(tmp_path), 32)
    assert (len(dataset), dataset.channels) == (10, 3) and dataset.labels.tolist() == records[:, 0].tolist()
    # One byte of label, then 1024 of red, green and blue each, row after row.
    image = np.stack([records[7, 1 + 1024 * c : 1 + 1024 * (c + 1)].reshape(32, 32) for c in range(3)])
    check(dataset[7], image.astype(np.float32) / 255)
    assert open_dataset(str(tmp_path), 32, grey=True)[7].shape == (1, 32, 32)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with no data folder named in the environment or installed."""
    monkeypatch.delenv("BEYOND_BLUR_DATA", raising=False)
    monkeypatch.setattr(catalog, "SYSTEM", tmp_path / "usr")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "size"),
    [("ffhq", 128), ("afhq", 64), ("lsun-church", 128), ("cifar10", 32), ("mnist", 28), ("fashion-mnist", 28)],
)
def test_known_names_open_their_local_copy(elsewhere: Path, name: str, size: int) -> None:
    save(Path("data") / name / "1.png", 5)
    dataset = open_dataset(name)
    assert (dataset.name, dataset.size, len(dataset)) == (name, (size, size), 1)
    assert open_dataset(name, 4, grey=True)[0].shape == (1, 4, 4)


@pytest.mark.parametrize(("name", "place"), [("mnist", "root/MNIST/raw"), ("fashion-mnist", "usr/fashion-mnist")])
def test_known_names_take_forms_that_are_no_image_files(elsewhere: Path, mnist: Path, name: str, place: str) -> None:
    (elsewhere / place).parent.mkdir(parents=True)
    mnist.rename(elsewhere / place)
    dataset = open_dataset(name, root=elsewhere / "root")
    assert dataset.name == name and dataset.labels.tolist() == [7, 0, 9]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ffhq", ["https://github.com/NVlabs/ffhq-dataset", "70,000", "2 GB", "CC BY-NC-SA 4.0", "data/thumbnails128x128"]),
        ("afhq", ["https://github.com/clovaai/stargan-v2", "7 GB", "CC BY-NC 4.0", "data/afhq", "hf:huggan/AFHQv2"]),
        ("lsun-church", ["https://github.com/fyu/lsun", "2.3 GB", "no licence", "data/lsun-church"]),
        ("cifar10", ["https://www.cs.toronto.edu/~kriz/cifar.html", "binary", "162 MB", "data/cifar-10-batches-bin"]),
        ("mnist", ["train-images-idx3-ubyte.gz", "10 MB", "CC BY-SA 3.0", "data/mnist", "hf:ylecun/mnist"]),
        ("fashion-mnist", ["dataset-fashion-mnist", "26 MB", "MIT", "data/fashion-mnist", "hf:zalando-datasets/fashion_mnist"]),
    ],
)
@pytest.mark.parametrize("installed", [True, False])
def test_missing_known_sets_say_where_to_get_them(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], installed: bool
) -> None:
    if not installed:
        monkeypatch.setitem(sys.modules, "datasets", None)
    with fails(f"{name}: none of", *words, "--data FOLDER", "cannot be loaded" if installed else "pip install 'beyond-blur[hub]'"):
        open_dataset(name)


@pytest.mark.parametrize("name", ["digits", "pictures"])
def test_only_sets_of_the_hub_can_be_streamed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder.parent)
    with fails(f"{name}: only sets of the hub can be streamed"):
        open_dataset(name, stream=True)


# Halves


@pytest.mark.parametrize("name", ["digits", "pictures"])
def test_halves_are_disjoint_and_together_everything(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder.parent)
    whole, even, odd = (open_dataset(name, 8, split=split) for split in ("all", "even", "odd"))
    assert (len(even), len(odd)) == ((len(whole) + 1) // 2, len(whole) // 2)
    assert (even.name, odd.name, odd.split, even.size) == (f"{name}[even]", f"{name}[odd]", "odd", (8, 8))
    assert f"the {len(even)} of even number" in even.description
    for number in range(len(whole)):
        one = (even, odd)[number % 2]
        check(one[number // 2], whole[number])
        assert whole.labels is None or one.labels[number // 2] == whole.labels[number]
    with pytest.raises(IndexError):
        odd[len(odd)]


def test_the_only_image_has_no_other_half(tmp_path: Path) -> None:
    save(tmp_path / "one.png", 1)
    assert len(open_dataset(str(tmp_path), 8, split="even")) == 1
    with fails("none of odd number; expected at least 2"):
        open_dataset(str(tmp_path), 8, split="odd")
    with fails("a stream has no halves; leave out --stream, or --split"):
        open_dataset("hf:owner/name", stream=True, split="even")


@pytest.mark.parametrize("name", ["digits", "my faces", "a[b]", "[even]", "x[even]y", "hf:owner/name"])
@pytest.mark.parametrize("split", ["all", "even", "odd"])
def test_the_name_of_a_half_tells_which(name: str, split: str) -> None:
    assert whole_and_half(name_of_half(name, split)) == (name, split)


def test_numbers() -> None:
    assert [numbers_of(split, 5).tolist() for split in ("all", "even", "odd")] == [[0, 1, 2, 3, 4], [0, 2, 4], [1, 3]]
    assert evenly_spaced(5, 9).tolist() == [0, 1, 2, 3, 4] and evenly_spaced(101, 5).tolist() == [0, 25, 50, 75, 100]
