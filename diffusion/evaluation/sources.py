"""What is scored, and what it is compared with, as images by number: a run, a data set, a file of samples, arrays."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather
from tqdm.auto import tqdm

from diffusion.data.adapters import as_dataset
from diffusion.data.dataset import NAMES, OTHER_HALF, Pictures, Split, as_floats, grey_or_colour, open_dataset, whole_and_half
from diffusion.data.identity import Identity, load_identity
from diffusion.data.images import DataError, fit, with_channels
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.features import FeatureExtractor, to_uint8
from diffusion.evaluation.metrics import Measurement, check_features
from diffusion.sampling.pipeline import BUNDLED, Pipeline, is_model_id
from diffusion.size import Size
from lbm_warp.checks import InputError

# How many of some pictures a run learned.
Share = Literal["all", "half", "none"]


@dataclass(frozen=True)
class ImageSource:
    """Images by number."""

    name: str
    size: Size
    channels: int
    count: int
    """Number of images; 0 for a run, which makes any number."""
    read: Callable[[np.ndarray], torch.Tensor]
    """Called as ``read(index)``: the images of these numbers, uint8 [len(index), channels, height, width]."""
    data: Pictures | None = None
    """The data set; None for a run."""
    pipeline: Pipeline | None = None
    """The run, with its own sampling noise."""

    def measure(self, index: np.ndarray, extractor: FeatureExtractor, batch: int, device: torch.device) -> Measurement:
        """Features and colours of the images number ``index``, on the CPU, in this order whatever the number of ranks.

        Raises:
            InputError: if an image or its features are not finite.
        """
        state = PartialState()
        # Gathering needs shares of equal length: the last rank goes on with images from the start, which are cut off.
        share = -(-len(index) // state.num_processes)
        mine = index[(state.process_index * share + np.arange(share)) % len(index)]
        features, colours = [], []
        with tqdm(total=share, desc=self.name, unit="img", leave=False, disable=not state.is_main_process) as progress:
            for start in range(0, share, batch):
                try:
                    images = self.read(mine[start : start + batch]).to(device)
                    features.append(extractor(images))
                    check_features(features[-1], 0)
                except DataError:
                    raise  # which names the image
                except InputError as error:
                    raise InputError(f"{self.name}: {error}") from None
                colours.append(images.double().mean(dim=(2, 3)))
                progress.update(len(images))
        return Measurement(*(gather(torch.cat(parts))[: len(index)].cpu() for parts in (features, colours)))


def open_sources(
    samples: Any, data: Any, config: EvaluationConfig, device: torch.device, types: Sequence[type] = ()
) -> tuple[ImageSource, ImageSource, EvaluationConfig, Share | None]:
    """The samples and the pictures, of one size and number of channels; the configuration with its split; and how many of the
    pictures a run was trained on, None if that is not known.

    Arguments and errors are those of :func:`diffusion.evaluate`.
    """
    learned: Identity | None = None
    trained_on, trained_half, own = "", "all", data is None
    source, path = None, Path(samples) if isinstance(samples, (str, Path)) else None
    split: Split = "all"
    name = str(samples) if path else "pipeline" if isinstance(samples, Pipeline) else type(samples).__name__
    if isinstance(samples, Pipeline) or (path and is_run(path)):
        pipeline = samples if isinstance(samples, Pipeline) else Pipeline.from_pretrained(samples, device=device, types=types)
        source = open_run(name, pipeline, config)
        trained_on, trained_half = whole_and_half(pipeline.config.data)
        learned = load_identity(path) if path else None
        data, split = _learned(name, trained_on, learned) if data is None else data, OTHER_HALF[trained_half]
        if config.size is not None and Size.of(config.size) != source.size:
            raise InputError(f"size {config.size}: the images of {name} have size {source.size}")
    elif path and not path.exists():
        raise InputError(f"{name}: no such run folder, folder or .zip of images, or .npz file")
    elif config.steps is not None or config.sampling_noise is not None:
        raise InputError(f"{name}: not a run; steps and sampling_noise say how a run makes its samples")
    elif data is None:
        raise InputError(f"{name}: not a run, so name the real pictures to compare its images with: --data NAME")
    elif path is None or path.suffix.lower() == ".npz":
        source = open_pictures(read_npz(path) if path else samples, config, name=name, clip=True)
    if isinstance(data, Pictures) and data.split != "all":
        split = "all"  # of what is a half already
    grey = grey_or_colour(config.grey, config.colour)
    if source and grey is not None and grey != (source.channels == 1):
        option, found = ("--grey", "in colour") if grey else ("--colour", "grey")
        raise InputError(f"{option}: the images of {name} are {found}; leave it out")
    config = replace(config, split=config.split or split, size=str(source.size) if source else config.size)
    try:
        pictures = open_pictures(data, config, source.channels if source else None)
    except DataError as error:
        if learned is None or data != learned.data or os.path.exists(str(learned.location)):
            raise  # the pictures are where they were
        raise InputError(f"{error}; {name} was trained on {learned.where()}: say where they are now with --data") from None
    source = source or open_pictures(name, replace(config, size=str(pictures.size)), pictures.channels, samples=True)
    share: Share | None = None
    if source.pipeline and pictures.data and (own or _are_learned(pictures.data, trained_on, learned)):
        compared = config.split if pictures.data.split == "all" else pictures.data.split
        share = "all" if trained_half in ("all", compared) else "half" if compared == "all" else "none"
    return source, pictures, config, share


def _are_learned(pictures: Pictures, name: str, learned: Identity | None) -> bool:
    """Whether these are known to be the pictures that a run learned, or half of them: by its record of them, else by their name."""
    origin = pictures.origin
    if origin is None or learned is None or learned.location is None:
        return origin is not None and origin.data == name in NAMES
    same_files = learned.names is not None and (learned.names, learned.bytes) == (origin.names, origin.bytes)
    return same_files or learned.location == origin.location


def _learned(name: str, data: str, learned: Identity | None) -> str:
    """What opens the pictures that a run learned: what it recorded, else their name."""
    if learned is None or (learned.data is None and data in NAMES):
        return data
    if learned.data is None:
        raise InputError(f"{name} was trained on pictures in memory ({data}); name those to compare with: --data")
    return learned.data


def is_run(samples: Path | str) -> bool:
    """Whether this is a run folder, or the name of a bundled model, or owner/name of a run on the Hub."""
    named = str(samples) in BUNDLED or is_model_id(str(samples))
    return (Path(samples) / "config.json").exists() or (not Path(samples).exists() and named)


def open_run(name: str, pipeline: Pipeline, how: EvaluationConfig) -> ImageSource:
    """The images that a run makes from a seed, in a number of steps, with its sampling noise or another."""

    def read(index: np.ndarray) -> torch.Tensor:
        return to_uint8(pipeline.sample(index, how.seed, steps=how.steps, sampling_noise=how.sampling_noise))

    return ImageSource(name, pipeline.config.size, pipeline.config.channels, 0, read, pipeline=pipeline)


def open_pictures(
    data: Any,
    config: EvaluationConfig,
    channels: int | None = None,
    name: str | None = None,
    clip: bool = False,
    samples: bool = False,
) -> ImageSource:
    """A data set or images, by name or as :func:`diffusion.data.as_dataset` takes them, cropped and resized where they need be.

    Args:
        data: name, path, or pictures.
        config: says the size, whether they are grey, and where data sets are.
        channels: 1 or 3; by default those that ``config`` says, or those of the pictures.
        name, clip: as for :func:`diffusion.data.as_dataset`.
        samples: as for :func:`diffusion.open_dataset`.
    """
    pictures: Pictures
    if isinstance(data, (str, Path)):
        name, grey = str(data), grey_or_colour(config.grey, config.colour) if channels is None else channels == 1
        pictures = open_dataset(name, config.size, config.data_root, grey=grey, cache=config.data_cache, samples=samples)
    else:
        pictures = as_dataset(data, name, clip=clip)
    size = pictures.size if config.size is None else Size.of(config.size)
    shape = channels or pictures.channels, *size

    def read(index: np.ndarray) -> torch.Tensor:
        images = as_floats(pictures.read(index))
        if images.shape[1:] != shape:
            images = np.stack([with_channels(fit(image, size), shape[0]) for image in images])
        return to_uint8(torch.from_numpy(images))

    return ImageSource(name or pictures.name, size, shape[0], len(pictures), read, pictures)


def read_npz(path: Path) -> np.ndarray:
    """Images in the form that many samplers write, ``arr_0``, uint8 [N, H, W, C], C 1 or 3: as [N, C, H, W].

    Raises:
        InputError: if the file is damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, images = list(archive), archive.get("arr_0")
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):  # numpy's advice would be to run the file
        raise InputError(f"{path}: not an .npz file with an array arr_0 of numbers, or damaged") from None
    if images is None:
        raise InputError(f"{path}: no array arr_0, but {', '.join(names)}; write it with numpy.savez(file, images)")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or min(images.shape[:3]) < 2:
        raise InputError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, C], C 1 or 3")
    return images.transpose(0, 3, 1, 2)
