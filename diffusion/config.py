"""The configuration of a run: process, network, image size and training, as frozen numbers and as config.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffusion.corruption import Corruption
from diffusion.files import read_json, write_json
from diffusion.network import NetworkConfig, UNet
from diffusion.process import ForwardProcess
from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer, check_name, check_number

FORMAT = 1
# Entries that runs of earlier versions lack, with the values that they were made with.
ADDED = {
    "process": {
        "wave_speed": 0.0,
        "turbulence_time": 0.0,
        "tell_flow": False,
        "noise_exponent": 0.0,
        "by_channel": False,
        "blur_floor": 0.0,
        "spectrum": "measured",
        "network_input": "image",
        "loss": "squared",
        "level_density": "uniform",
        "log_mean": -1.2,
        "log_deviation": 1.2,
        "fresh": 1.0,
        "variance": "fixedsmall",
        "clip_clean": False,
        "second_order_above": None,
        "start": "pictures",
        "start_noise": 0.0,
        "spacing": "even",
        "steps": None,
    },
    "training": {"decay": 0.0},
}
Part = TypeVar("Part")


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained."""

    images: int = 128_000
    """Length of the training in images."""
    batch: int = 64
    """Images in a step, over all ranks."""
    learning_rate: float = 1e-3
    """Adam's step size, > 0."""
    warmup: int = 6_400
    """Images over which the learning rate grows linearly from zero."""
    decay: float = 0.0
    """Share of the training, at its end, over which the learning rate falls linearly to zero, 0 to 1."""
    ema: float = 0.999
    """Decay of the averaged weights (EMA) in a step."""
    clip: float = 1.0
    """Largest norm of the gradient of the loss (squared error summed over an image)."""
    flip: bool = False
    """Mirror pictures left to right, each with probability 1/2."""
    seed: int = 0
    """Seed of everything random in the run, 0 to 2^63 - 1."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("images", self.images, 1)
        check_integer("batch", self.batch, 1)
        check_number("learning rate", self.learning_rate, 1e-12, 10.0)
        check_integer("warmup", self.warmup, 0)
        check_number("decay", self.decay, 0.0, 1.0)
        check_number("ema", self.ema, 0.0, 0.999999)
        check_number("clip", self.clip, 1e-12)
        if not isinstance(self.flip, bool):
            raise InputError(f"flip must be true or false, got {self.flip!r}")
        check_integer("seed", self.seed, 0, 2**63 - 1)

    def learning_rate_at(self, first: int, count: int) -> float:
        """Learning rate of the step on ``count`` images, from the run's image number ``first`` on."""
        rising = min(1.0, (first + count) / max(self.warmup, 1))
        falling = min(1.0, (self.images - first) / max(self.decay * self.images, 1.0))
        return self.learning_rate * min(rising, falling)


@dataclass(frozen=True)
class RunConfig:
    """The complete configuration of a run.

    Raises:
        InputError: if a value of one of its parts is out of its range, or the parts do not fit each other.
    """

    process_name: str
    """Name of the process, for people; its numbers are in ``process``."""
    data: str
    """Name of the data set, for people."""
    channels: int
    """Channels of the images: 1 grey, 3 colour."""
    size: Size
    """Height and width of the images [pixels]; also given as one number for a square, or as text such as 96x128."""
    process: ForwardProcess
    network: NetworkConfig
    training: TrainingConfig
    classes: tuple[str, ...] = ()
    """Names of the classes that the network learns; none for a run without labels."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", Size.of(self.size))
        check_integer("channels", self.channels, 1)
        self.corruption()
        self.network.validate()
        self.network.check_size(self.size)
        self.training.validate()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape [C, H, W] of an image."""
        return self.channels, *self.size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of what the network sees of an image: its channels, or two estimates of them, and the flow if it is told."""
        seen = self.channels * (2 if self.process.network_input == "estimates" else 1)
        return seen + (2 if self.process.tell_flow else 0), *self.size

    def corruption(self) -> Corruption:
        """The forward process at the size of the run's images."""
        return Corruption(self.process, self.size)

    def build_network(self) -> UNet:
        """The network with fresh weights, which depend on torch's global seed."""
        return UNet(self.channels, self.network, self.process.levels, len(self.classes), self.input_shape[0])

    def means_every_class(self, label: str | int | None) -> bool:
        """Whether a label is ``all``, and not the name of one class."""
        return bool(self.classes) and label == "all" and label not in self.classes

    def label_number(self, label: str | int | None) -> int | None:
        """Number of a class by its name or its number; that of no label for None. None for a run without classes.

        Raises:
            InputError: if there is no such class.
        """
        if not self.classes:
            if label is not None:
                raise InputError(f"label {label}: this run knows no classes; train one with --classes")
            return None
        if label is None:
            return len(self.classes)
        if str(label) not in self.classes and str(label).isdecimal() and int(label) < len(self.classes):
            return int(label)
        check_name("label", str(label), self.classes)
        return self.classes.index(str(label))

    def to_json(self) -> dict[str, Any]:
        """What config.json holds, but for its format number."""
        return asdict(self) | {"size": self.size.to_json()}

    def difference(self, other: RunConfig) -> str | None:
        """The first value in which ``other`` differs, in words; None if the two are equal."""
        here, there = _flat(self.to_json()), _flat(other.to_json())
        return next((f"{name} is {there[name]}, not {value}" for name, value in here.items() if there[name] != value), None)


def save_config(folder: Path, config: RunConfig) -> None:
    """Write config.json."""
    write_json(folder / "config.json", {"format": FORMAT} | config.to_json())


def load_config(folder: Path) -> RunConfig:
    """Read config.json.

    Raises:
        InputError: if the folder holds no run, or one that this version cannot read.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with python -m cli.train")
    if not path.is_file():
        raise InputError(f"{folder}: not a run folder (it has no config.json)")
    values = read_json(path)
    if values.pop("format", None) != FORMAT:
        raise InputError(f"{path}: not a run of format {FORMAT}, the one this version reads")
    parts = {"process": ForwardProcess, "network": NetworkConfig, "training": TrainingConfig}
    for name, added in ADDED.items():
        if isinstance(values.get(name), dict):
            values[name] = added | values[name]
    built = {name: _build(kind, values.get(name), path) for name, kind in parts.items()}
    return _build(RunConfig, {"classes": ()} | values | built, path)


def check_same_run(folder: Path, config: RunConfig) -> None:
    """Raise InputError unless the folder holds this run; only the length of the training may differ."""
    there = load_config(folder)
    here = replace(config, training=replace(config.training, images=there.training.images))
    if difference := here.difference(there):
        raise InputError(f"{folder} holds another run ({difference}); choose another --out")


def fingerprint(config: RunConfig, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of a run's configuration and its tensors (names, shapes and values): equal for equal models only."""
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _build(kind: type[Part], values: Any, path: Path) -> Part:
    """A config dataclass from JSON values."""
    names = {field.name for field in fields(kind)}
    if not isinstance(values, dict) or values.keys() != names:
        given = set(values) if isinstance(values, dict) else set()
        raise InputError(f"{path}: {kind.__name__} has unknown entries {sorted(given - names)} or lacks {sorted(names - given)}")
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except TypeError as error:
        raise InputError(f"{path}: {kind.__name__} has an entry of the wrong type ({error})") from None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Entries of nested objects under names such as ``network.width``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
