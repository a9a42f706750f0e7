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

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from diffusion.files import whole_file, write_json
from diffusion.network import NetworkConfig, UNet
from diffusion.prior import Prior
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


@dataclass(frozen=True)
class Run:
    """A trained run, ready to sample from."""

    config: RunConfig
    network: nn.Module
    prior: Prior


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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError(f"{path}: not a run of format {FORMAT}, the one this version reads")
    del values["format"]
    parts = {"process": ForwardProcess, "network": NetworkConfig, "training": TrainingConfig}
    return _build(RunConfig, values | {name: _build(kind, values.get(name), path) for name, kind in parts.items()}, path)


def load_run(folder: Path, device: torch.device) -> Run:
    """Read a run to sample from: its averaged weights and its prior.

    Raises:
        InputError: if a file is missing, damaged, or does not fit the configuration.
    """
    config = load_config(folder)
    with torch.device("meta"):
        network = config.build_network()
    network.load_state_dict(_fitting(load_tensors(folder / "ema.safetensors"), network, folder / "ema.safetensors"), assign=True)
    network = network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    return Run(config, network, load_prior(folder, config))


def load_prior(folder: Path, config: RunConfig) -> Prior:
    """Read prior.safetensors.

    Raises:
        InputError: if it is missing, damaged, or holds thumbnails of other images.
    """
    path = folder / "prior.safetensors"
    thumbnails = load_tensors(path).get("thumbnails")
    if thumbnails is None or thumbnails.ndim != 4 or thumbnails.shape[1] != config.channels or not len(thumbnails):
        raise InputError(f"{path}: holds no thumbnails for {config.channels} x {config.size} x {config.size} images")
    return Prior(thumbnails.float())


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


def _fitting(tensors: dict[str, torch.Tensor], network: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """The tensors, if their names and shapes are the network's."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        have, want = tensors.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            have_shape, want_shape = (None if t is None else list(t.shape) for t in (have, want))
            raise InputError(f"{path}: weights do not fit config.json: {name} is {have_shape}, expected {want_shape}")
    return tensors


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
