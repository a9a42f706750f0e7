"""Run folders: what a training run writes and sampling reads.

    config.json               process, network, image shape, training: everything the run is
    ema.safetensors           averaged weights, the ones to sample with
    model.safetensors         weights as trained
    prior.safetensors         thumbnails that sampling starts from
    training.safetensors      weights, average and optimiser at one moment, to resume from
    metrics.jsonl             one line every few steps
    samples/                  grids made while training

Files are JSON and safetensors: reading a run never executes anything in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from diffusion.files import read_json, whole_file, write_json
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
    """Images a step."""
    learning_rate: float = 1e-3
    """Adam's step size, > 0."""
    warmup: int = 6_400
    """Images over which the learning rate grows from zero."""
    ema: float = 0.999
    """Decay of the averaged weights, a step."""
    clip: float = 1.0
    """Largest norm of the gradient of the loss (squared error summed over an image)."""
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


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as aside:
        save_file(tensors, aside, metadata)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: if it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; the run folder is not complete")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def load_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file that :func:`load_tensors` can read."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


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
