"""Feature extractors: what the scores of :mod:`diffusion.evaluation.metrics` look at.

inception    2,048 features of Inception v3 (the FID's), from NVIDIA's TorchScript file, which is not bundled
digits       64 features of a small classifier of handwritten digits, bundled
pixels       the image itself
FILE.pt      any TorchScript module of one's own
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import nn
from torch.nn import functional as F

from diffusion.data.dataset import open_dataset
from diffusion.rng import seeds
from lbm_warp.checks import InputError

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
DIGITS_FILE = "digit_features.safetensors"
DIGIT_SIZE = 16
HELD_OUT = 4  # every fourth digit is kept from the classifier's training


@dataclass(frozen=True)
class FeatureExtractor:
    """Turns images into features: ``extractor(images)``."""

    name: str
    """inception, digits, pixels, or the name of a file."""
    sha256: str | None
    """Hash of the file the weights came from; None where there are none."""
    function: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            images: uint8 [N, C, H, W] on the extractor's device, C 1 (grey) or 3 (RGB).

        Returns:
            float32 [N, D] on the same device.

        Raises:
            InputError: if the module in a file fails on the images or returns another shape.
        """
        try:
            features = self.function(images)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"{self.name}: fails on uint8 images of shape {list(images.shape)} ({reason})") from None
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(f"{self.name}: must return features of shape [{len(images)}, D] for {len(images)} images, got {shape}")
        return features.float()


def open_features(name: str, device: torch.device, inception: Path | None = None) -> FeatureExtractor:
    """The feature extractor called ``name``.

    Args:
        name: ``inception``, ``digits``, ``pixels``, or the path of a TorchScript file (*.pt). A TorchScript archive is a program:
            one is only ever run because its user names it (or, for Inception, because its hash is the known one). It is called
            with uint8 [N, 3, H, W], values 0 to 255, and returns floating-point [N, D]; resizing is its own business.
        device: where to compute.
        inception: Inception's file, where it is not in one of the usual places.

    Raises:
        InputError: if there is no such extractor, or its file is missing, damaged, or not the one expected.
    """
    if name == "pixels":
        return FeatureExtractor(name, None, lambda images: images.flatten(1) / 255.0)
    if name == "digits":
        weights = (resources.files("assets") / DIGITS_FILE).read_bytes()
        classifier = DigitClassifier()
        classifier.load_state_dict(load(weights))
        classifier = classifier.to(device).eval().requires_grad_(False)
        return FeatureExtractor(name, _sha256(weights), lambda images: classifier.features(images / 255.0))
    if name == "inception":
        return _open_inception(inception or _find_inception(), device)
    path = Path(name)
    if path.suffix == ".pt":
        module, sha256 = _read_torchscript(path, device)
        return FeatureExtractor(path.name, sha256, lambda images: module(_rgb(images)))
    raise InputError(f"features {name!r}: expected inception, digits, pixels or a TorchScript file (*.pt)")


class DigitClassifier(nn.Module):
    """A small convolutional network that tells handwritten digits apart; its last layer but one is the ``digits`` features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 64),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 10))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 [N, 64] of images float32 [N, C, H, W] in [0, 1]: bright ink on dark paper, any size, grey or RGB."""
        grey = images.mean(dim=1, keepdim=True)
        if grey.shape[2:] != (DIGIT_SIZE, DIGIT_SIZE):
            grey = F.interpolate(grey, (DIGIT_SIZE, DIGIT_SIZE), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return self.body(2.0 * grey - 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, 10] of the ten digits."""
        return self.head(self.features(images))


def train_digit_features(seed: int = 0, epochs: int = 30) -> DigitClassifier:
    """Train the classifier behind the ``digits`` features: about five seconds on one core of a CPU.

    The same seed gives the same weights on the same machine with as many threads. It never sees every fourth of the digits
    (number 3, 7, 11, ...). The bundled file is what this saved, on one thread:

        save_tensors(Path("assets/digit_features.safetensors"), train_digit_features().state_dict())

    Args:
        seed: seed of the weights, the order and the augmentation (shifts by up to a pixel).
        epochs: times that each digit is seen.
    """
    dataset = open_dataset("digits", DIGIT_SIZE, None)
    train = np.flatnonzero(np.arange(len(dataset)) % HELD_OUT != HELD_OUT - 1)
    images = torch.from_numpy(np.stack([dataset[index] for index in train]))
    labels = torch.from_numpy(dataset.labels[train])
    steps = epochs * (len(images) // 32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds(seed, "digit features")))
        classifier = DigitClassifier()
        optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.randperm(len(images))[: steps // epochs * 32].split(32):
                top, left = torch.randint(3, (2,)).tolist()
                shifted = F.pad(images[batch], (1, 1, 1, 1))[:, :, top : top + DIGIT_SIZE, left : left + DIGIT_SIZE]
                loss = F.cross_entropy(classifier(shifted), labels[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
    return classifier.eval().requires_grad_(False)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images floating-point [N, C, H, W] as they would be in a file: clipped to [0, 1], uint8.

    Raises:
        InputError: if an image is not finite.
    """
    broken = len(images) - int(images.flatten(1).isfinite().all(dim=1).sum())
    if broken:
        raise InputError(f"{broken} of {len(images)} images are not finite (NaN or infinite)")
    return (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def _open_inception(path: Path, device: torch.device) -> FeatureExtractor:
    module, sha256 = _read_torchscript(path, device, INCEPTION_SHA256)
    return FeatureExtractor("inception", sha256, lambda images: module(_rgb(images), return_features=True))


def _find_inception() -> Path:
    folders = [Path(folder) for folder in (os.environ.get("BEYOND_BLUR_DATA"), "data") if folder]
    folders.append(Path(torch.hub.get_dir()) / "checkpoints")
    for folder in folders:
        if (folder / INCEPTION_FILE).is_file():
            return folder / INCEPTION_FILE
    raise InputError(
        f"no {INCEPTION_FILE} in {', '.join(map(str, folders))}: download it from {INCEPTION_URL} (96 MB, NVIDIA's TorchScript "
        f"form of the FID's Inception v3, SHA-256 {INCEPTION_SHA256}) into one of these folders, or name it with --inception FILE; "
        "or choose other features with --features digits, pixels or FILE.pt"
    )


def _read_torchscript(path: Path, device: torch.device, expected: str | None = None) -> tuple[torch.jit.ScriptModule, str]:
    """A TorchScript module and the SHA-256 of its file; nothing of it is run before the hash is the expected one."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a TorchScript module")
    archive = path.read_bytes()
    sha256 = _sha256(archive)
    if expected is not None and sha256 != expected:
        raise InputError(f"{path}: not {INCEPTION_FILE}: its SHA-256 is {sha256}, expected {expected}; get it from {INCEPTION_URL}")
    try:
        return torch.jit.load(io.BytesIO(archive), map_location=device).eval(), sha256
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise InputError(f"{path}: not a TorchScript archive ({reason}); make one with torch.jit.script or trace") from None


def _rgb(images: torch.Tensor) -> torch.Tensor:
    """Grey images as three equal channels."""
    return images.expand(-1, 3, -1, -1)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
