"""The configuration of a run: method, network, image size and training, as frozen objects of numbers and as config.json."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffusion import specs
from diffusion.augmentation import Augmentation
from diffusion.files import read_json, write_json
from diffusion.forward.process import ForwardProcess
from diffusion.learning_rate import LearningRate, WarmUpAndDecay
from diffusion.methods import LIBRARY, Method, known_classes
from diffusion.network import GivenNetwork, NetworkConfig, NetworkShape, NetworkSpec
from diffusion.size import Size
from diffusion.weighting import Weighting
from lbm_warp.checks import InputError, check_integer, check_name, check_number, check_object

FORMAT = 2


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained."""

    images: int = 128_000
    """Length of the training in images."""
    batch: int = 64
    """Images in a step, over all ranks."""
    schedule: LearningRate = WarmUpAndDecay()
    """Learning rate over the training."""
    rate_batch: int | None = None
    """Batch that the learning rate is for: with another one it is multiplied by the square root of their ratio, as Adam needs it
    (Malladi et al. 2022, arXiv:2205.10287). By default the learning rate is taken as it is, whatever the batch."""
    ema: float = 0.999
    """Decay of the averaged weights (EMA) in a step."""
    ema_half_life: int | None = None
    """Images over which a weight's share of the average halves, in place of --ema: the same for every batch. At first it is a
    twentieth of the images seen (EDM, Karras et al. 2022, arXiv:2206.00364, and its code)."""
    clip: float = 1.0
    """Largest norm of the gradient of the loss (squared error summed over an image, so 1 acts in most steps)."""
    flip: bool = False
    """Mirror pictures left to right, each with probability 1/2."""
    augment: Augmentation = Augmentation()
    """Pictures are mirrored, shifted, turned and stretched, each with this probability, and the network is told so: samples look
    like the pictures themselves (EDM, Karras et al. 2022, arXiv:2206.00364, with 0.12 to 0.15). 0 is none."""
    weighting: Weighting = Weighting()
    """How much each level counts: plain, as the denoiser says; learned, by its uncertainty, so that all levels count alike (EDM2,
    Karras et al. 2024, arXiv:2312.02696)."""
    seed: int = 0
    """Seed of everything random in the run, 0 to 2^63 - 1."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("images", self.images, 1, 10**12)
        check_integer("batch", self.batch, 1, 10**6)
        if not isinstance(self.schedule, LearningRate):
            raise InputError(f"schedule must be a diffusion.LearningRate (subclass it), got {type(self.schedule).__name__}")
        self.schedule.validate()
        if self.rate_batch is not None:
            check_integer("rate_batch", self.rate_batch, 1, 10**6)
        check_number("ema", self.ema, 0.0, 0.999999)
        if self.ema_half_life is not None:
            check_integer("ema_half_life", self.ema_half_life, 1)
        check_number("clip", self.clip, 1e-12)
        if not isinstance(self.flip, bool):
            raise InputError(f"flip must be true or false, got {self.flip!r}")
        check_object("augment", self.augment, Augmentation)
        self.augment.validate()
        check_object("weighting", self.weighting, Weighting)
        self.weighting.validate()
        check_integer("seed", self.seed, 0, 2**63 - 1)

    def ema_decay(self, first: int, last: int) -> float:
        """Decay of the averaged weights in the step from ``first`` to ``last`` images seen."""
        return self.ema if self.ema_half_life is None else 0.5 ** ((last - first) / min(self.ema_half_life, 0.05 * last))

    def rate(self, first: int, last: int, images: int) -> float:
        """The learning rate of one step; arguments as for :meth:`LearningRate.at`."""
        return float(self.schedule.at(first, last, images)) * math.sqrt(self.batch / (self.rate_batch or self.batch))


@dataclass(frozen=True)
class RunConfig:
    """The complete configuration of a run.

    Raises:
        InputError: if a value of one of its parts is out of its range, or the parts do not fit each other.
    """

    process_name: str
    """Name of the method, for people; its numbers are in ``method``."""
    data: str
    """Name of the data set, for people."""
    channels: int
    """Channels of the images: 1 grey, 3 colour."""
    size: Size
    """Height and width of the images [pixels]; also given as one number for a square, or as text such as 96x128."""
    method: Method
    network: NetworkSpec = NetworkConfig()
    """What builds the network; also given as a module, ``GivenNetwork.of(module)``, which is then trained."""
    training: TrainingConfig = TrainingConfig()
    classes: tuple[str, ...] = ()
    """Names of the classes that the network learns; none for a run without labels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", Size.of(self.size))
        if isinstance(self.network, nn.Module):
            object.__setattr__(self, "network", GivenNetwork.of(self.network))
        check_integer("channels", self.channels, 1, 1024)
        for name, kind in {"method": Method, "network": NetworkSpec, "training": TrainingConfig}.items():
            check_object(name, getattr(self, name), kind)
        self.method.operator.check(self.size)
        self.network.validate()
        self.network.check_size(self.size)
        self.training.validate()
        # Refuse what config.json cannot keep, and what could not be loaded from it.
        self.to_json()
        specs.by_name(dict.fromkeys((*LIBRARY, *specs.classes(self.method), *specs.classes(self.training))))
        if isinstance(self.classes, str) or not all(isinstance(name, str) for name in self.classes or ()):
            raise InputError(f"classes must be a tuple of names, such as ('cat', 'dog'), got {self.classes!r}")
        object.__setattr__(self, "classes", tuple(self.classes or ()))
        if len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes must have different names, got {', '.join(self.classes)}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of an image."""
        return self.channels, *self.size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of what the network sees of an image: its channels, or two estimates of them, and what it is told."""
        return self.method.denoiser.channels(self.channels, self.forward), *self.size

    @property
    def forward(self) -> ForwardProcess:
        """The forward process."""
        return self.method.forward

    def build_network(self, empty: bool = False) -> nn.Module:
        """The network with fresh weights, which depend on torch's global seed; or ``empty``, with weights to be replaced."""
        told, outputs = self.training.augment.told, self.method.denoiser.outputs(self.channels)
        shape = NetworkShape(self.input_shape[0], outputs, self.method.levels, len(self.classes), self.size, told)
        return self.network.build_empty(shape) if empty else self.network.build(shape)

    def build_weighting(self) -> nn.Module:
        """What weights the losses of images by their levels."""
        return self.training.weighting.build(self.method.levels, math.prod(self.shape))

    def means_every_class(self, label: str | int | None) -> bool:
        """Whether a label is ``all``, and not the name of one class."""
        return bool(self.classes) and label == "all" and label not in self.classes

    def label_number(self, label: str | int | None) -> int | None:
        """Number of a class by its name or, unless classes are named by numbers, its number; that of no label for None. None for a
        run without classes.

        Raises:
            InputError: if there is no such class.
        """
        if not self.classes:
            if label is not None:
                raise InputError(f"label {label}: this run knows no classes; train one with cli.train --classes")
            return None
        if label is None:
            return len(self.classes)
        by_number = not any(name.isdecimal() for name in self.classes)
        if by_number and str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        check_name("label", str(label), self.classes)
        return self.classes.index(str(label))

    def to_json(self) -> dict[str, Any]:
        """What config.json holds, but for its format number."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: specs.to_json(value) for name, value in values.items()} | {"size": self.size.to_json()}

    def difference(self, other: RunConfig) -> str | None:
        """The first value in which ``other`` differs, in words; None if the two are equal."""
        return differing(self.to_json(), other.to_json())


def save_config(folder: Path, config: RunConfig) -> None:
    """Write config.json."""
    write_json(folder / "config.json", {"format": FORMAT} | config.to_json())


def load_config(folder: Path, types: Iterable[type] | type = (), network: nn.Module | None = None) -> RunConfig:
    """Read config.json.

    Args:
        folder: the run.
        types: classes that it may name beside the library's.
        network: the module of a run that was trained with a module.

    Raises:
        InputError: if the folder holds no run, or one that this version cannot read, or names a class that is not known.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with beyond-blur train")
    if not path.is_file():
        raise InputError(f"{folder}: not a run folder (it has no config.json)")
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not a run of format {FORMAT}, the one this version reads")
    known = known_classes(types) | specs.by_name((RunConfig, TrainingConfig, NetworkConfig, GivenNetwork))
    if not isinstance(values.get("network"), dict):
        raise InputError(f"{path}: it names no network")
    config = specs.from_json(values | {specs.CLASS: RunConfig.__name__}, known, str(path))
    if network is not None:
        config = replace(config, network=config.network.filled(network))
    return config


def check_same_run(folder: Path, config: RunConfig) -> None:
    """Raise InputError unless the folder holds this run; only the length of the training may differ."""
    here = {"format": FORMAT} | config.to_json()
    try:  # fields that the file lacks have their defaults
        there = {"format": FORMAT} | load_config(folder, specs.classes(config)).to_json()
    except InputError:
        if not (folder / "config.json").is_file():
            raise
        there = read_json(folder / "config.json")
    if isinstance(there.get("training"), dict) and "images" in there["training"]:
        here["training"]["images"] = there["training"]["images"]
    # As text NaN equals NaN.
    here, there = (json.loads(json.dumps(values), parse_constant=str) for values in (here, there))
    if difference := differing(here, there):
        raise InputError(f"{folder} holds another run ({difference}); choose another --out")


def differing(here: Mapping[str, Any], there: Mapping[str, Any]) -> str | None:
    """The first value of JSON in which another one differs, in words; None if the two are equal."""
    ours, theirs = ({n: v for n, v in _flat(one).items() if n != "format"} for one in (here, there))
    names = dict.fromkeys((*ours, *theirs))
    return next(
        (f"{n} is {theirs.get(n, 'not there')}, not {ours.get(n, 'there')}" for n in names if ours.get(n) != theirs.get(n)), None
    )


def fingerprint(config: RunConfig, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a run's configuration and its tensors (names, shapes and values): equal for equal models only."""
    digest = hashlib.sha256(json.dumps(specs.distinct(config), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of nested objects under names such as ``network.width``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
