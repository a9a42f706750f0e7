"""The configuration of a run: process, network, image size and training, as frozen numbers and as config.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch

from diffusion.files import read_json, write_json
from diffusion.network import NetworkConfig, UNet
from diffusion.process import ForwardProcess
from lbm_warp.checks import InputError, check_integer, check_number

FORMAT = 1
Part = TypeVar("Part")


@dataclass(frozen=True)
class TrainingConfig:
    """How a network is trained."""

    images: int = 128_000
    """Length of the training in images."""
    batch: int = 64
    """Images a step, over all processes."""
    learning_rate: float = 1e-3
    """Adam's step size, > 0."""
    warmup: int = 6_400
    """Images over which the learning rate grows from zero."""
    ema: float = 0.999
    """Decay of the averaged weights, a step."""
    clip: float = 1.0
    """Largest norm of the gradient of the loss (squared error summed over an image)."""
    flip: bool = False
    """Mirror every other picture, at random."""
    seed: int = 0
    """Seed of everything random in the run, 0 to 2^63 - 1."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("images", self.images, 1)
        check_integer("batch", self.batch, 1)
        check_number("learning rate", self.learning_rate, 1e-12, 10.0)
        check_integer("warmup", self.warmup, 0)
        check_number("ema", self.ema, 0.0, 0.999999)
        check_number("clip", self.clip, 1e-12)
        if not isinstance(self.flip, bool):
            raise InputError(f"flip must be true or false, got {self.flip!r}")
        check_integer("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class RunConfig:
    """Everything a run is.

    Raises:
        InputError: if a value of one of its parts is out of its range, or the parts do not fit each other.
    """

    process_name: str
    """What the process is called; its numbers are in ``process``."""
    data: str
    """Where the pictures came from, for people."""
    channels: int
    """Channels of the images: 1 grey, 3 colour."""
    size: int
    """Side of the images [pixels]."""
    process: ForwardProcess
    network: NetworkConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        check_integer("channels", self.channels, 1)
        check_integer("size", self.size, 2)
        self.process.operator(self.size)
        self.network.validate()
        self.network.check_size(self.size)
        self.training.validate()

    def to_json(self) -> dict[str, Any]:
        """Stand-in: what config.json holds, but for its format number."""
        return asdict(self)

    def difference(self, other: RunConfig) -> str | None:
        """The first value in which ``other`` differs, in words; None if the two are equal."""
        here, there = _flat(self.to_json()), _flat(other.to_json())
        return next((f"{name} is {there[name]}, not {value}" for name, value in here.items() if there[name] != value), None)

    def build_network(self) -> UNet:
        """The network with fresh weights, which depend on torch's global seed."""
        return UNet(self.channels, self.network, self.process.levels)


def save_config(folder: Path, config: RunConfig) -> None:
    """Write config.json."""
    write_json(folder / "config.json", {"format": FORMAT} | asdict(config))


def load_config(folder: Path) -> RunConfig:
    """Read config.json.

    Raises:
        InputError: if the folder holds no run, or one this version cannot read.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder; train one with python -m cli.train")
    if not path.is_file():
        raise InputError(f"{folder}: not a run folder (it has no config.json)")
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: not a run of format {FORMAT}, the one this version reads")
    del values["format"]
    parts = {"process": ForwardProcess, "network": NetworkConfig, "training": TrainingConfig}
    return _build(RunConfig, values | {name: _build(kind, values.get(name), path) for name, kind in parts.items()}, path)


def fingerprint(config: RunConfig, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 of a run's configuration and its tensors, names, shapes and values: equal for equal models only."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
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
