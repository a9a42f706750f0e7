"""Pictures of one's own: arrays, tensors, PIL images, torch and Hugging Face data sets."""

from __future__ import annotations

import base64
import io
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from diffusion.data import ImageDataset, as_dataset, batches, open_dataset
from diffusion.data.loader import labels_of
from tests.pictures import fails

COLOUR = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 6), dtype=np.uint8)
FLOATS = COLOUR / np.float32(255)
GREY = COLOUR[:, :1]
LABELS = [2, 0, 1, 1, 0, 2, 2]


class Pairs(Dataset):
    """A map-style set of pictures and labels that notes what is read."""

    def __init__(self, pictures: Any, labels: Any = tuple(LABELS)) -> None:
        self.pictures, self.labels, self.read = pictures, labels, []

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        self.read.append(number)
        return self.pictures[number], self.labels[number]


def hub(pictures: np.ndarray) -> datasets.Dataset:
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])})
    images = [Image.fromarray(picture.transpose(1, 2, 0).squeeze()) for picture in pictures]
    return datasets.Dataset.from_dict({"image": images, "label": LABELS}, features=kinds)


KINDS = {
    "array": lambda x: x,
    "list": list,
    "float64": lambda x: x / 255.0,
    "float32": lambda x: x / np.float32(255),
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda x: (torch.from_numpy(x).float() / 255).requires_grad_(),
    "TensorDataset": lambda x: TensorDataset(torch.from_numpy(x)),
    "pairs of tensors": lambda x: TensorDataset(torch.from_numpy(x), torch.tensor(LABELS)),
    "pairs": Pairs,
    "list of pairs": lambda x: list(zip(x, LABELS, strict=True)),
    "PIL": lambda x: [Image.fromarray(picture.transpose(1, 2, 0).squeeze()) for picture in x],
    "hub": hub,
    "hub, numpy": lambda x: hub(x).with_format("numpy"),
    "hub, torch": lambda x: hub(x).with_format("torch"),
    "our own": lambda x: ImageDataset("ours", "", x),
}


@pytest.mark.parametrize("pictures", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_pictures(kind: str, pictures: np.ndarray) -> None:
    found = as_dataset(KINDS[kind](pictures), channels=pictures.shape[1], size=(4, 6))
    assert (len(found), found.channels, found.size) == (7, pictures.shape[1], (4, 6))
    expected = pictures / np.float32(255)
    np.testing.assert_allclose(np.stack(list(found)), expected, rtol=0, atol=1e-7)
    np.testing.assert_array_equal(found.read(np.array([6, 1])) / np.float32(255 if kind == "our own" else 1), expected[[6, 1]])
    assert found[0].dtype == np.float32 and found.read([]).shape == (0, *pictures.shape[1:])
    with pytest.raises(IndexError):
        found[7]


def test_pictures_without_channels_are_grey() -> None:
    found = as_dataset(GREY[:, 0])
    assert (found.channels, found.size) == (1, (4, 6))
    assert repr(found) == f"OwnPictures(ndarray: {len(GREY)} pictures of [1, 4, 6])"
    np.testing.assert_array_equal(found[3], GREY[3] / np.float32(255))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_notebook_shows_ten_pictures(channels: int) -> None:
    pictures = np.linspace(0.0, 1.0, 12 * channels * 24, dtype=np.float32).reshape(12, channels, 4, 6)
    text, _, shown = ImageDataset("<zoo>", "", pictures)._repr_html_().partition("<img")
    assert text == f"ImageDataset(&lt;zoo&gt;: 12 pictures of {[channels, 4, 6]})"
    content = base64.b64decode(shown.partition("base64,")[2].partition('"')[0])
    found = np.asarray(Image.open(io.BytesIO(content)), np.float32) / 255.0
    assert found.shape == (4, 60, 3)
    first = pictures[0, : 3 if channels >= 3 else 1].transpose(1, 2, 0)
    np.testing.assert_allclose(found[:, :6] - first, 0.0, atol=0.51 / 255.0)


@pytest.mark.parametrize("kind", ["pairs of tensors", "pairs", "list of pairs", "hub", "hub, torch"])
def test_labels_are_read_when_they_are_asked_for(kind: str) -> None:
    found = as_dataset(KINDS[kind](COLOUR))
    assert found.labelled and found.classes() == (("ant", "bee", "cow") if "hub" in kind else ("0", "1", "2"))
    assert found.labels.dtype == np.int64 and found.labels.tolist() == LABELS
    assert found.classes(("a", "b", "c", "d")) == ("a", "b", "c", "d")
    with batches(found, 3, 2, 12, 5) as images:
        seen = torch.cat(list(images)).numpy()
    places = [int(np.abs(found.read(slice(None)) - image).sum(axis=(1, 2, 3)).argmin()) for image in seen]
    assert labels_of(found, 3, np.arange(2, 12)).tolist() == [LABELS[place] for place in places]


def test_a_large_set_is_not_read_at_once() -> None:
    pairs = Pairs(COLOUR)
    found = as_dataset(pairs)
    assert set(pairs.read) == {0} and found.labelled and set(pairs.read) == {0}
    found[5]
    assert set(pairs.read) == {0, 5} and found.classes() and set(pairs.read) == set(range(7))
    pairs.read.clear()
    assert found.labels.tolist() == LABELS and not pairs.read


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cow", "ant", "bee", "bee", "ant", "cow", "cow"], ("ant", "bee", "cow")),
        (np.array(["c\u00f3", "a", "b", "b", "a", "co\u0301", "c\u00f3"]), ("a", "b", "c\u00f3")),
        (np.array(LABELS, np.float32), ("0", "1", "2")),
        (np.eye(3)[LABELS], ("0", "1", "2")),
        (torch.eye(3, dtype=torch.int64)[LABELS], ("0", "1", "2")),
        (torch.tensor(LABELS)[:, None], ("0", "1", "2")),
        (dict(enumerate(LABELS)), ("0", "1", "2")),
    ],
)
def test_labels_of_every_form(labels: Any, names: tuple[str, ...]) -> None:
    found = as_dataset(COLOUR, labels=labels)
    assert found.classes() == names and found.labels.dtype == np.int64 and found.labels.tolist() == LABELS
    assert as_dataset((torch.from_numpy(COLOUR), labels)).classes() == names or isinstance(labels, dict)
    assert found.describe_classes(names) == f"classes: {names[0]} 2, {names[1]} 2, {names[2]} 3"
    if isinstance(labels, dict):
        with fails("ndarray: labels by 'a.png'; expected a list, a label for each image, or a dict by its number"):
            as_dataset(COLOUR, labels={"a.png": 1})


def test_columns_of_names_and_files_that_are_not_decoded() -> None:
    rows = hub(COLOUR)
    words = ["cow", "ant", "bee", "bee", "ant", "cow", "cow"]
    rows = rows.remove_columns("label").add_column("label", words).cast_column("image", datasets.Image(decode=False))
    found = as_dataset(rows)
    assert found.classes() == ("ant", "bee", "cow") and found.labels.tolist() == LABELS
    np.testing.assert_array_equal(found[3], COLOUR[3] / np.float32(255))


@pytest.mark.parametrize(
    ("pictures", "range_"),
    [(COLOUR.astype(np.float32), "0, which is black, to 255"), (COLOUR / 127.5 - 1, "-1, which is black, to 1")],
)
def test_the_range_of_floats_is_that_of_the_set_and_is_said(pictures: np.ndarray, range_: str) -> None:
    with pytest.warns(UserWarning, match=f"ndarray: values from {range_}, which is white, as in most of the 7 pictures looked at"):
        found = as_dataset(pictures)
    np.testing.assert_allclose(np.stack(list(found)), COLOUR / np.float32(255), rtol=0, atol=1e-6)


def test_a_float_picture_may_overshoot_a_little() -> None:
    pictures = np.array(FLOATS)
    pictures[2, 0, 0, 0], pictures[3, 0, 0, 0] = 1.02, -0.02
    found = as_dataset(pictures)
    assert found[2][0, 0, 0] == 1.0 and found[3][0, 0, 0] == 0.0
    np.testing.assert_array_equal(found[2][1:], FLOATS[2, 1:])


def test_labels_can_be_given_apart() -> None:
    for labels in (LABELS, np.array(LABELS, np.uint8), torch.tensor(LABELS)):
        found = as_dataset(COLOUR, "zoo", labels=labels, class_names=("ant", "bee", "cow"))
        assert (found.name, found.labels.tolist(), found.classes()) == ("zoo", LABELS, ("ant", "bee", "cow"))
    with fails("digits: 7 labels; expected one for each of 1,797 images"):
        as_dataset(open_dataset("digits"), labels=LABELS).classes()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_our_own_data_sets(workers: int) -> None:
    """Bit for bit, by this process or by others."""

    def run(dataset: Any, first: int) -> np.ndarray:
        with batches(dataset, 5, first, 30, 4, flip=True, workers=workers) as queue:
            return torch.cat(list(queue)).numpy()

    expected = run(ImageDataset("ours", "", COLOUR), 0)
    for kind in ("pairs", "hub", "float32"):
        np.testing.assert_array_equal(run(as_dataset(KINDS[kind](COLOUR)), 0), expected)
        np.testing.assert_array_equal(run(as_dataset(KINDS[kind](COLOUR)), 17), expected[17:])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_picture_is_found_when_it_is_read(workers: int) -> None:
    pictures = [*COLOUR / np.float32(255), np.full((3, 4, 6), np.nan, np.float32)]
    with fails("list, picture 7: values that are NaN or infinite; expected 0 to 1"):
        with batches(as_dataset(pictures), 0, 0, 8, 2, workers=workers) as queue:
            list(queue)


def test_samples_are_clipped() -> None:
    samples = torch.tensor([-0.4, 0.5, 1.3]).expand(2, 3, 4, 3)
    assert as_dataset(samples, clip=True)[1][0, 0].tolist() == [0.0, 0.5, 1.0]
    with fails("Tensor: values from -2 to 2; expected 0 to 1, -1 to 1 or 0 to 255; rescale or clip them"):
        as_dataset(torch.linspace(-2, 2, 16).view(1, 1, 4, 4), clip=True)


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        yield COLOUR[0]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (COLOUR.astype(np.int64), "picture 0: int64; expected a PIL image, or an array or tensor of uint8, float32, float64"),
        (FLOATS.astype(complex), "picture 0: complex128; expected"),
        (FLOATS > 0.5, "picture 0: bool; expected"),
        (COLOUR.astype(object), "picture 0: object; expected"),
        (torch.from_numpy(FLOATS).bfloat16(), "Tensor, picture 0: bfloat16; expected"),
        (["a.png"], "list, picture 0: str; expected a PIL image"),
        (FLOATS * 1.1, "ndarray: values from 0"),
        (FLOATS * 1.1, "; expected 0 to 1, -1 to 1 or 0 to 255; rescale or clip them"),
        (ImageDataset("ours", "", COLOUR.astype(np.float32)), "ours: values from 0 to 255; expected 0 to 1; rescale or clip them"),
        (ImageDataset("ours", "", FLOATS * np.float32(np.nan)), "ours: values that are NaN or infinite; expected 0 to 1"),
        (ImageDataset("ours", "", FLOATS.astype(np.float64)), "ours: float64; expected uint8 or float32; convert the pictures"),
        (ImageDataset("ours", "", COLOUR[:0]), "ours: no pictures; expected at least one"),
        (DataLoader(FLOATS), "DataLoader: not a sequence of pictures, but what reads it: pass its .dataset"),
        (FLOATS + np.inf, "picture 0: values that are NaN or infinite"),
        (FLOATS[:, :2], "picture 0: shape [2, 4, 6]; expected [C, H, W], [H, W, C] or [H, W] with C 1 (grey) or 3 (RGB)"),
        (np.zeros((2, 4, 6, 4), np.uint8), "picture 0: shape [4, 6, 4]; expected [C, H, W]"),
        (np.zeros((2, 1, 4, 6, 3), np.uint8), "picture 0: shape [1, 4, 6, 3]; expected [C, H, W]"),
        (np.zeros(5, np.float32), "picture 0: shape []; expected [C, H, W]"),
        ([], "list: no pictures; expected at least one"),
        (Endless(), "Endless: not a sequence of pictures; files and names of data sets: diffusion.open_dataset"),
        ("digits", "str: not a sequence of pictures; files and names of data sets: diffusion.open_dataset"),
        (np.array(1.0), "ndarray: not a sequence of pictures"),
        (torch.from_numpy(FLOATS).to("meta"), "Tensor, picture 0: torch.strided on meta; expected a dense tensor with values"),
        (torch.from_numpy(FLOATS).to_sparse(), "Tensor, picture 0: torch.sparse_coo on cpu; expected a dense tensor"),
        (datasets.DatasetDict(train=hub(COLOUR)), "DatasetDict: not a sequence of pictures of train; name one of them"),
        (hub(COLOUR).rename_column("image", "img"), "Dataset, picture 0: columns img, label; expected image, perhaps label"),
        ([(COLOUR[0], 1, 2)], "list, picture 0: a tuple of 3; expected a picture, or a pair of a picture and its label"),
        (np.ma.masked_less(COLOUR, 50), "MaskedArray, picture 0: masked values; expected a number for every pixel; fill them"),
        (COLOUR[0], "ndarray: shape [3, 4, 6] may be one picture; expected [N, C, H, W] or [N, H, W, C]; for one picture pass"),
        (COLOUR[0].transpose(1, 2, 0), "ndarray: shape [4, 6, 3] may be one picture"),
        (COLOUR[:, :1], "ndarray: channels and pixels 1 x 4 x 6; expected 3 x 4 x 6; convert, crop or resize"),
        (np.zeros((2, 3, 8, 8), np.uint8), "ndarray: channels and pixels 3 x 8 x 8; expected 3 x 4 x 6; convert, crop or resize"),
    ],
)
def test_what_is_no_set_of_pictures_is_refused_in_one_line(pictures: Any, message: str) -> None:
    with fails(message):
        as_dataset(pictures, channels=3, size=(4, 6))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (COLOUR[0, :, :3], "list, picture 1: channels and pixels 3 x 3 x 6; expected 3 x 4 x 6; convert, crop or resize"),
        (COLOUR[0, :1], "list, picture 1: channels and pixels 1 x 4 x 6; expected 3 x 4 x 6; convert, crop or resize"),
        (Image.new("L", (6, 4)), "list, picture 1: channels and pixels 1 x 4 x 6; expected 3 x 4 x 6"),
        (FLOATS[0] * 3.7, "list, picture 1: values from"),
        (None, "list, picture 1: NoneType; expected a PIL image"),
    ],
)
def test_every_picture_is_checked(second: Any, message: str) -> None:
    found = as_dataset([COLOUR[0], second, *FLOATS])
    with fails(message):
        found[1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 0.5], "Pairs, picture 2: label 0.5; expected an integer, from 0, a name or a one-hot row; number the classes"),
        ([0, "bee", 1], "Pairs, picture 0: label 0, where others are names; make all of them names or numbers"),
        ([0, 1, {"class": 1}], "Pairs, picture 2: label {'class': 1}; expected an integer"),
        ([0, 1, float("inf")], "Pairs, picture 2: label inf; expected an integer"),
        ([0, 1, [1, 1]], "Pairs, picture 2: label [1, 1]; expected an integer"),
        (["ant", "bee", "gnu"], "Pairs, picture 2: label 'gnu'; expected one of the classes ant, bee, cow"),
        ([0, True, 1], "Pairs, picture 1: label True; expected an integer"),
        ([0, 1, None], "not every image has a class: 1 of 3 have none, such as Pairs, picture 2"),
        ([0, float("nan"), -1.0], "not every image has a class: 1 of 3 have none, such as Pairs, picture 1"),
        ([0, 1, np.zeros(2)], "Pairs, picture 2: label [0.0, 0.0]; expected an integer"),
        ([0, -1, 1], "Pairs: image 1 has label -1; expected 0 to 1"),
        ([0, 1, 4], "Pairs: image 2 has label 4; expected 0 to 2"),
        ([None, 1, 0], "Pairs: not every image has a class"),
        ([0, 0, 0], "Pairs: number of classes 1; expected 2 to 10000; number them from 0, or leave out --classes"),
        ([-1, -1, -1], "Pairs: number of classes 1; expected 2"),
        ([0, 1, 10**15], "Pairs: number of classes 1000000000000001; expected 2 to 10000"),
    ],
)
def test_wrong_labels_are_refused_in_one_line(labels: list[Any], message: str) -> None:
    found = as_dataset(Pairs(COLOUR[:3], labels), class_names=("ant", "bee", "cow") if "gnu" in message else ())
    with fails(message):
        found.classes(("a", "b", "c") if "label 4" in message else ())


@pytest.mark.parametrize(
    "labels", [{0, 1, 2}, (label for label in "abc"), "abc", np.array(1), 3], ids=lambda labels: type(labels).__name__
)
def test_labels_without_an_order_are_refused(labels: Any) -> None:
    with fails("ndarray: labels are a", "expected a list, a label for each image, or a dict by its number"):
        as_dataset(COLOUR[:3], labels=labels)


def test_two_classes_of_one_name_are_refused() -> None:
    with fails("ndarray: 'ant' is the name of several classes; give each a name of its own"):
        as_dataset(COLOUR[:3], labels=[0, 1, 1], class_names=("ant", "ant")).classes()


def test_a_size_is_given_in_any_form_and_bytes_come_in_any_order() -> None:
    squares = np.ascontiguousarray(FLOATS[:, :, :, :4]).astype(">f4")
    assert as_dataset(squares, size=4).size == as_dataset(squares, size="4x4").size == (4, 4)
    assert np.array_equal(as_dataset(squares)[0], as_dataset(squares.astype(np.float32))[0])
