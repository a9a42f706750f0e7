"""Feature extractors: what they see, what they return, and which files they take."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.data.dataset import open_dataset
from diffusion.evaluation import features
from diffusion.evaluation.features import DigitClassifier, open_features, to_uint8, train_digit_features
from lbm_warp.checks import InputError

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


# Digits


def digits() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Images, labels, and which of them the classifier has never seen."""
    dataset = open_dataset("digits", 16, None)
    images = torch.from_numpy(np.stack([dataset[i] for i in range(len(dataset))]))
    return images, torch.from_numpy(dataset.labels), np.arange(len(dataset)) % 4 == 3


def accuracy(classifier: DigitClassifier, held_out: bool) -> float:
    images, labels, held = digits()
    chosen = torch.from_numpy(held == held_out)
    return (classifier(images[chosen]).argmax(dim=1) == labels[chosen]).double().mean().item()


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

    file = Path(str(resources.files("assets") / "digit_features.safetensors"))
    assert file.stat().st_size < 200 * 1024 and extractor.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    classifier = DigitClassifier()
    classifier.load_state_dict(features.load(file.read_bytes()))
    assert accuracy(classifier, held_out=True) > 0.97


@pytest.mark.slow
def test_the_classifier_can_be_trained_again() -> None:
    state = torch.random.get_rng_state()
    assert accuracy(train_digit_features(seed=1, epochs=15), held_out=True) > 0.97
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (train_digit_features(seed, epochs=1).state_dict() for seed in (2, 2, 3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any((first[name] - other[name]).abs().max() > 0.01 for name in first)


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


@pytest.mark.parametrize(("name", "message"), [("vgg", "expected inception, digits, pixels"), ("no.pt", "no.pt: no such file")])
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
