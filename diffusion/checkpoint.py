"""Run folders: what a training run writes and sampling reads.

    config.json               process, network, image shape, training: everything the run is
    ema.safetensors           averaged weights, the ones to sample with
    model.safetensors         weights as trained
    prior.safetensors         thumbnails that sampling starts from
    checkpoints/              <images>.safetensors: weights, average and optimiser at one moment, to resume from
    metrics.jsonl             one line every few steps
    samples/                  grids made while training

Files are JSON and safetensors: reading a run never executes anything in it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
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
    """Write tensors as safetensors, whole or not at all.

    Raises:
        InputError: if the file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(path) as aside:
            save_file(tensors, aside, metadata)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: cannot be written ({error.strerror if isinstance(error, OSError) else error})") from None


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


class Checkpoints:
    """The folder checkpoints/ of a run: everything it takes to resume, as one file a moment, so that moments never mix.

    The last two are kept, so that one is left should a disk spoil the other, and of older ones the first at or after every multiple
    of ``keep_every`` images.

    Args:
        folder: the run folder.
        keep_every: images; None keeps the last two only.

    Attributes:
        good: the last checkpoint that is known to be whole.
    """

    def __init__(self, folder: Path, keep_every: int | None = None) -> None:
        self.folder = folder / "checkpoints"
        self.keep_every = keep_every
        self.good: Path | None = None

    def path(self, images: int) -> Path:
        """The file of this number of images."""
        return self.folder / f"{images:09d}.safetensors"

    def paths(self) -> dict[int, Path]:
        """The files by their number of images, oldest first."""
        found = {path.stem: path for path in self.folder.glob("*.safetensors") if path.stem.isdecimal()}
        return {int(stem): found[stem] for stem in sorted(found, key=int)}

    def save(self, images: int, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
        """Write the checkpoint of this number of images, then remove those that need not be kept.

        Raises:
            InputError: if it cannot be written; the ones before are then left as they are.
        """
        metadata = metadata | {"images": str(images), "checksum": _checksum(tensors)}
        save_tensors(self.path(images), tensors, metadata)
        paths = self.paths()
        # What lies beyond this moment could not be read, or the run would have gone on from there.
        older = [number for number in paths if number <= images]
        keep = set(older[-2:])
        if self.keep_every is not None:
            first = {number // self.keep_every: number for number in reversed(older)}
            keep |= {number for multiple, number in first.items() if multiple > 0}
        for number in paths.keys() - keep:
            paths[number].unlink(missing_ok=True)

    def resume(self, load: Callable[[Path], None]) -> list[InputError]:
        """Go back to the newest checkpoint that is whole.

        Args:
            load: takes a checkpoint over or raises InputError; called for the newest, then for older ones until it does.

        Returns:
            What was wrong with the newer ones.

        Raises:
            InputError: if there are checkpoints and none can be read.
        """
        problems: list[InputError] = []
        for path in reversed(self.paths().values()):
            try:
                load(path)
            except InputError as error:
                problems.append(error)
            else:
                self.good = path
                return problems
        if problems:
            raise InputError(f"no checkpoint can be read; {problems[0]}; choose another --out to begin anew")
        return problems

    def tidy(self) -> None:
        """Remove what a process that was killed left half-written in the run folder."""
        for part in self.folder.parent.rglob(".*.part.*"):
            part.unlink(missing_ok=True)

    def last(self) -> str:
        """What is safe, in words."""
        return f"the last good checkpoint is {self.good}" if self.good else "there is no checkpoint yet"


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata that :meth:`Checkpoints.save` wrote.

    Raises:
        InputError: if the file is damaged, be it only that a number is another.
    """
    tensors = load_tensors(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("checksum") != _checksum(tensors):
        raise InputError(f"{path}: not what was written (the checksum is another)")
    return tensors, metadata


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of the contents, tensor by tensor in the order of the names."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


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
