"""Class labels: read with the pictures, learned, dropped at random, and used with guidance."""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from cli import sample, train
from diffusion.data.adapters import as_dataset
from diffusion.data.dataset import ImageDataset, open_dataset
from diffusion.data.images import DataError
from diffusion.data.loader import batches, labels_of
from diffusion.files import load_tensors
from diffusion.network import UNet
from diffusion.run import RunConfig, load_config
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.training.loop import DROPPED, ExecutionConfig, Trainer
from diffusion.training.loop import train as learn
from diffusion.training.ranks import Ranks
from diffusion.training.state import TrainingState
from lbm_warp.checks import InputError
from tests.pictures import encoded
from tests.runs import SIZE, exit_code, said, stripes, tiny_config, without_dropout

CPU = torch.device("cpu")
NAMES = ("dark", "bright")


def labelled() -> ImageDataset:
    """Stripes, and whether they are bright."""
    pixels = np.stack(stripes())
    return ImageDataset("stripes", "stripes", pixels, (pixels.max(axis=(1, 2, 3)) > 0.75).astype(np.int64), class_names=NAMES)


def config(**training: object) -> RunConfig:
    return without_dropout(tiny_config(classes=NAMES, **training))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels") / "run"
    assert learn(config(), labelled(), folder, CPU, ExecutionConfig(checkpoint_every=8))
    return folder


def test_labels_are_those_of_the_images_of_the_run() -> None:
    """Over two epochs, in whatever batches: the label goes with the picture."""
    dataset = labelled()
    with batches(dataset, 3, 5, 37, 8) as images:
        seen = torch.cat(list(images))
    expected = (seen.amax(dim=(1, 2, 3)) > 0.75).long()
    assert torch.equal(labels_of(dataset, 3, np.arange(5, 37)), expected)
    assert torch.equal(labels_of(dataset, 3, np.array([12])), expected[7:8])


def test_a_tenth_of_the_labels_is_dropped_by_the_number_of_the_image() -> None:
    """Binomial: five standard errors of 4,000 images. In parts of a batch the same ones."""
    run = config()
    labels = lambda numbers: torch.zeros(len(numbers), dtype=torch.int64)  # noqa: E731
    trainer = Trainer(run, TrainingState.initial(run, CPU), Ranks(CPU), ExecutionConfig(), labels=labels)
    sample = torch.arange(4000)
    found = trainer._label(0, sample)
    assert abs((found == 2).float().mean().item() - DROPPED) < 5 * (DROPPED * (1 - DROPPED) / 4000) ** 0.5
    assert set(found.tolist()) == {0, 2} and torch.equal(trainer._label(100, sample[100:150]), found[100:150])


def test_a_run_learns_its_labels_and_resumes_bit_for_bit(run: Path, tmp_path: Path) -> None:
    shorter = replace(config(), training=replace(config().training, images=24))
    learn(shorter, labelled(), tmp_path / "twice", CPU)
    learn(config(), labelled(), tmp_path / "twice", CPU, ExecutionConfig(workers=1))
    once, twice = (load_tensors(folder / "ema.safetensors") for folder in (run, tmp_path / "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once) and once["label.weight"].abs().amax(dim=1).min() > 0.0
    assert load_config(run).classes == NAMES
    pipeline = Pipeline.from_pretrained(run)
    dark, bright, free = (pipeline.sample(3, label=label) for label in ("dark", 1, None))
    assert (dark - bright).abs().max() > 1e-4 and (dark - free).abs().max() > 1e-4
    torch.testing.assert_close(pipeline.sample([2], label="bright")[0], bright[2], rtol=0, atol=1e-5)


def test_every_class_in_turn(run: Path, tmp_path: Path) -> None:
    """Image i has class i modulo 2, whatever the batch, with guidance too; the grid has a column for each class."""
    pipeline = Pipeline.from_pretrained(run, batch=2)
    for guidance in (1.0, 2.0):
        single = [pipeline.sample([i], label=NAMES[i % 2], guidance=guidance)[0] for i in (0, 1, 2, 5)]
        torch.testing.assert_close(
            pipeline.sample([0, 1, 2, 5], label="all", guidance=guidance), torch.stack(single), rtol=0, atol=1e-5
        )
    assert exit_code(sample.main, run, "--label", "all", "--out", tmp_path / "out") == 0
    assert len(list((tmp_path / "out" / "images").iterdir())) == 16
    width, height = Image.open(tmp_path / "out" / "grid.png").size
    assert height > 8 * (96 + 4) + 4 and width == 2 * (96 + 4) + 4  # with a name above each column


class Known(nn.Module):
    """Predicts the number of the label."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def forward(self, u: torch.Tensor, level: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return 0.01 * label[:, None, None, None].expand_as(u)


def test_guidance_is_its_formula() -> None:
    """F = F_none + g (F_label - F_none): with F = label / 100 and K steps without noise the sample moves by K F."""
    numbers = config()
    pipeline = Pipeline(numbers, Known(), Prior.build(stripes(), numbers.method, CPU))

    def moved(label: str | None, guidance: float) -> float:
        with_label = pipeline.sample(2, label=label, guidance=guidance, sampling_noise=0.0)
        return float((with_label - pipeline.sample(2, label="dark", sampling_noise=0.0)).mean()) / (0.01 * numbers.method.levels)

    assert moved("bright", 1.0) == pytest.approx(1.0, abs=1e-4)
    assert moved(None, 1.0) == pytest.approx(2.0, abs=1e-4)
    for guidance in (0.0, 0.5, 3.0):
        assert moved("bright", guidance) == pytest.approx(2.0 + guidance * (1.0 - 2.0), abs=1e-4)


def test_a_network_without_classes_is_what_it_was() -> None:
    plain, classes = (UNet(1, tiny_config().network, 6, count) for count in (0, 3))
    assert set(classes.state_dict()) - set(plain.state_dict()) == {"label.weight"} and classes.label.weight.shape[0] == 4


def test_classes_of_every_kind_of_source(tmp_path: Path) -> None:
    assert open_dataset("digits", 16).classes() == tuple("0123456789")
    for name, brightness in (("cats/a", 20), ("cats/b", 30), ("dogs/x/c", 40)):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), brightness).save(tmp_path / "pets" / f"{name}.png")
    pets = open_dataset(str(tmp_path / "pets"), 8, cache=tmp_path / "cache")
    assert pets.classes() == ("cats", "dogs") and pets.labels.tolist() == [0, 0, 1]
    Image.new("L", (8, 8)).save(tmp_path / "pets" / "loose.png")
    message = "pets: not every image has a class: 1 of 4 have none, such as loose.png; leave out --classes"
    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path / "pets"), 8, cache=tmp_path / "cache").classes()
    os.remove(tmp_path / "pets" / "loose.png")
    (tmp_path / "pets" / "dataset.json").write_text(
        json.dumps({"labels": [["cats/a.png", 1], ["cats/b.png", 0], ["dogs/x/c.png", 2]]})
    )
    pets = open_dataset(str(tmp_path / "pets"), 8, cache=tmp_path / "cache")
    assert pets.classes() == ("0", "1", "2") and pets.labels.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["cat/1", "cat/2", "dog/3"], {"cat": 2, "dog": 1}),
        (["set/cat/1", "set/dog/x/2"], {"cat": 1, "dog": 1}),
        (["set\\cat\\1", "set\\dog\\2"], {"cat": 1, "dog": 1}),
        (["caf\u00e9/1", "cafe\u0301/2", "dog/3"], {"caf\u00e9": 2, "dog": 1}),
        (["set/train/cat/1", "set/train/dog/2", "set/val/cat/3", "set/val/dog/4"], {"cat": 2, "dog": 2}),
        (["train/all/cat/1", "train/all/dog/2", "Test/all/dog/3"], {"cat": 1, "dog": 2}),
        (["cat/train/1", "dog/train/2", "cat/val/3"], {"cat": 2, "dog": 1}),
        (["cats/young/1", "cats/old/2", "dogs/young/3", "dogs/old/4"], {"cats": 2, "dogs": 2}),
        (["train/1", "boat/2"], {"boat": 1, "train": 1}),
        (["train/steam/1", "test/engine/2"], {"test": 1, "train": 1}),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_classes_are_the_folders_in_which_pictures_differ(
    tmp_path: Path, paths: list[str], expected: dict[str, int], packed: bool
) -> None:
    """Not what all have in common, nor the parts of a set: those have the same folders in them, and names of such parts."""
    files = {f"{path}.png": encoded(number) for number, path in enumerate(paths)}
    if packed:
        with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    for name, content in {} if packed else files.items():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(content)
    found = open_dataset(str(tmp_path / ("p.zip" if packed else "p")), 8, cache=tmp_path / "cache")
    counts = dict(zip(found.classes(), np.bincount(found.labels).tolist(), strict=True))
    assert counts == expected and list(counts) == sorted(counts)


def test_what_is_dropped_is_said(tmp_path: Path) -> None:
    for name in ("train/cat/1", "train/dog/2", "val/cat/3"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(encoded(1))
    (tmp_path / "val" / "gnu").mkdir()
    found = open_dataset(str(tmp_path), 8)
    note = "the same folders lie in train, val, which are read as one set; no pictures in val/gnu"
    assert found.describe_classes(found.classes()) == f"classes: cat 2, dog 1 ({note})"


def test_many_classes_are_summed_up() -> None:
    found = as_dataset(np.zeros((60, 4, 4), np.uint8), labels=[*range(30), *[0] * 30])
    assert found.describe_classes(found.classes()).endswith("19 1, and 10 more of 1 to 31")


def test_pairs_of_a_torch_data_set_are_learned_as_ours(run: Path, tmp_path: Path) -> None:
    """The same weights, bit for bit; labels that do not fit are refused before anything is written."""
    ours = labelled()
    pairs = TensorDataset(torch.from_numpy(ours.pixels), torch.from_numpy(ours.labels))
    learn(config(), pairs, tmp_path / "pairs", CPU)
    once, again = (load_tensors(folder / "ema.safetensors") for folder in (run, tmp_path / "pairs"))
    assert all(torch.equal(once[name], again[name]) for name in once)
    for pictures, message in (
        (stripes(), "list: not every image has a class"),
        (as_dataset(ours, labels=[0, 1, 2, 0] * 5), "stripes: image 2 has label 2; expected 0 to 1"),
        (np.zeros((9, 3, SIZE, SIZE), np.uint8), "ndarray: channels and pixels 3 x 8 x 8; expected 1 x 8 x 8"),
    ):
        with pytest.raises(InputError, match=message):
            learn(config(), pictures, tmp_path / "wrong", CPU)
    assert not (tmp_path / "wrong").exists()


def test_wrong_labels_are_refused_in_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    Image.new("L", (SIZE, SIZE), 99).save(tmp_path / "plain" / "a.png")
    for main, arguments, message in (
        (sample.main, [run, "--label", "brigt"], "unknown label 'brigt': expected one of dark, bright; did you mean bright?"),
        (sample.main, [run, "--label", 2], "unknown label '2': expected one of dark, bright"),
        (sample.main, [run, "--label", "all", "--interpolate", 3], "unknown label 'all': expected one of dark, bright"),
        (sample.main, ["--model", "emojis"], "unknown model 'emojis': expected one of digits, fashion, emoji; did you mean emoji?"),
        (sample.main, [run, "--model", "emoji"], "and --model emoji do not go together; choose one"),
        (sample.main, [run, "--guidance", 2], "guidance 2 needs a label"),
        (sample.main, [run, "--label", 1, "--guidance", -1], "guidance must be at least 0, got -1"),
        (sample.main, ["--label", "three"], "label three: this run knows no classes; train one with cli.train --classes"),
        (train.main, ["--data", "plain", "--size", 8, "--classes"], "plain: not every image has a class; leave out --classes"),
    ):
        code, (_, err) = exit_code(main, *arguments), said(capsys.readouterr())
        assert code == 2 and message in err and err.count("\n") == 1, (arguments, err)
    assert not (tmp_path / "runs").exists() and not list(tmp_path.glob("outputs/*/images"))
    with pytest.raises(InputError, match="needs a label"):
        Pipeline.from_pretrained(run).sample(1, guidance=0.5)


def test_a_class_is_named_by_its_number_unless_classes_are_called_by_numbers() -> None:
    named, numbered = (tiny_config(classes=classes) for classes in (("dark", "bright"), ("2", "1", "all")))
    assert [named.label_number(label) for label in ("dark", "bright", "1", 0, None)] == [0, 1, 1, 0, 2]
    assert [numbered.label_number(label) for label in ("2", "1", 1, "all")] == [0, 1, 1, 2]
    with pytest.raises(InputError, match="unknown label '0': expected one of 2, 1, all"):
        numbered.label_number("0")
