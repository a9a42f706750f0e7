"""Score the samples of a run, or of any other model, against real pictures."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from tqdm import tqdm

from cli import console
from diffusion.data.dataset import OTHER_HALF, as_floats, evenly_spaced, numbers_of, open_dataset, whole_and_half
from diffusion.data.images import fit
from diffusion.evaluation.features import FeatureExtractor, open_features, to_uint8
from diffusion.evaluation.metrics import Measurement, check_features, score
from diffusion.files import load_tensors, save_tensors, write_json
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.checks import InputError, check_integer

DEFAULT_NUM = 10_000
PROBES = 2048
CACHE_FORMAT = 1


@dataclass(frozen=True)
class Evaluate:
    """Options of ``python -m cli.evaluate``."""

    run: Annotated[Path, tyro.conf.Positional]
    """A run folder; or samples of any model: a folder or .zip of images, or an .npz file (arr_0, uint8 [N, H, W, C])."""
    data: str | None = None
    """Real pictures to compare with, named as for cli.train; the run's own if left out."""
    data_root: Path | None = None
    """Where named data sets lie; the environment variable BEYOND_BLUR_DATA or ./data if left out."""
    data_cache: Path | None = None
    """Folder where prepared pictures are kept; ~/.cache/beyond-blur/data if left out."""
    split: Literal["all", "even", "odd"] | None = None
    """Pictures that are the reference: all, or those of even or odd number, for a model that was trained on the others; those that
    a run was not trained on (cli.train --split), or else all, if left out."""
    num: int | None = None
    """Number of samples; for a run as many as the reference has, at most 10,000, for files all, if left out."""
    seed: int = 0
    """Seed of a run's samples, as for cli.sample."""
    size: int | None = None
    """Side in pixels that pictures are compared at; the run's, the .npz file's, or else what cli.train takes for the data."""
    features: str | None = None
    """inception, digits, pixels, or a TorchScript file (*.pt: it is run!); digits for the digits, else inception."""
    inception: Path | None = None
    """Where inception-2015-12-05.pt is, if not under BEYOND_BLUR_DATA, ./data or torch's hub cache."""
    k: int = 5
    """Neighbours that set the size of a neighbourhood, for precision, recall, density and coverage."""
    batch: int = 64
    """Images at a time; the result does not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; under torchrun or accelerate launch each process takes its own."""
    cache: Path | None = None
    """Folder where features of real pictures are kept; ~/.cache/beyond-blur if left out."""
    out: Path | None = None
    """JSON file for the results; metrics.json in a run folder, else outputs/<name>-metrics.json, if left out."""


@dataclass(frozen=True)
class Source:
    """Images by number."""

    name: str
    """What the user calls them."""
    size: int
    """Side in pixels."""
    channels: int
    """1 grey, 3 RGB."""
    count: int | None
    """How many there are; None for a generator, which has as many as one likes."""
    read: Callable[[np.ndarray], torch.Tensor]
    """Called as ``read(index)``: the images of these numbers, uint8 [len(index), channels, size, size]."""


def evaluate(options: Evaluate) -> None:
    """Score the samples, print the scores, write them down."""
    report = assess(options)
    if report is None:
        return
    samples, reference, features = (report[name] for name in ("samples", "reference", "features"))
    title = f"{samples['source']} against {reference['data']} ({reference['split']}), {report['size']} x {report['size']} px"
    print(f"{title}, {features['name']} features, k = {report['k']}")
    rows = {"samples": report["scores"], "floor": report["floor"]}
    print(table(rows, distance_name(features["name"], "FD")))
    print("floor: half of the real pictures as samples of the other half; drift and spread: of the mean colour, drift in 1/255")
    is_run = samples["seed"] is not None
    out = options.out or (options.run / "metrics.json" if is_run else Path("outputs") / f"{options.run.stem}-metrics.json")
    write_json(out, report)
    print(f"wrote {out}")


def assess(options: Evaluate) -> dict[str, Any] | None:
    """Measure real pictures and samples, every rank its share; score the samples, and real pictures as if they were samples.

    Returns:
        What metrics.json holds; None but on the main rank.

    Raises:
        InputError: if an option is out of its range, or the samples or the reference are missing, damaged or too few.
    """
    for name, lowest in (("num", 2), ("k", 1), ("batch", 1), ("size", 2)):
        if getattr(options, name) is not None:
            check_integer(f"--{name}", getattr(options, name), lowest)
    check_integer("--seed", options.seed, 0, 2**63 - 1)
    device = console.pick_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    device = state.device if state.num_processes > 1 else device

    samples, reference, split = open_sources(options, device)
    chosen = numbers_of(split, reference.count)
    index = sample_numbers(samples, options.num, len(chosen))
    check_enough(reference, samples.name, len(index), options.k)
    extractor = extractor_for(reference, options, device)

    real = measure_once(reference, extractor, options, state, device)
    generated = measure(samples, index, extractor, options.batch, state, device)
    if not state.is_main_process:
        return None
    scores = score(generated.to(device), real[chosen].to(device), options.k)
    held = "even" if split == "even" else "odd"
    half, other = (numbers_of(name, reference.count) for name in (held, OTHER_HALF[held]))
    floor = score(real[other[evenly_spaced(len(other), len(index))]].to(device), real[half].to(device), options.k)
    return {
        "samples": {"source": samples.name, "seed": options.seed if samples.count is None else None},
        "reference": {"data": reference.name, "split": split},
        "size": samples.size,
        "channels": samples.channels,
        "features": {"name": extractor.name, "sha256": extractor.sha256, "dimension": real.features.shape[1]},
        "k": options.k,
        "scores": asdict(scores),
        "floor": asdict(floor),
    }


def check_enough(reference: Source, samples: str, count: int, k: int) -> None:
    """Raise InputError unless both halves of the reference, and ``count`` samples, have more than ``k`` images."""
    for name, have in (("each half of " + reference.name, reference.count // 2), (samples, count)):
        if have <= k:
            raise InputError(f"{name} has {have} images, too few for k = {k}: at least {k + 1} are needed")


def extractor_for(reference: Source, options: Evaluate, device: torch.device) -> FeatureExtractor:
    """The features that the options ask for, or that suit the reference.

    Raises:
        InputError: if there are none of that name, or their file is not there.
    """
    return open_features(options.features or ("digits" if reference.name == "digits" else "inception"), device, options.inception)


def sample_numbers(samples: Source, num: int | None, reference: int) -> np.ndarray:
    """Which samples to take: ``num``, or as many as there are; a run makes as many as there are reference pictures, within reason.

    Raises:
        InputError: if there are fewer than ``num``.
    """
    if samples.count is None:
        return np.arange(num or min(reference, DEFAULT_NUM))
    if num is not None and num > samples.count:
        raise InputError(f"{samples.name} has {samples.count} images, fewer than --num {num}")
    return evenly_spaced(samples.count, num or samples.count)


def open_sources(options: Evaluate, device: torch.device) -> tuple[Source, Source, Literal["all", "even", "odd"]]:
    """The samples and the reference, of one size and as many channels, and which half of the reference to hold them against.

    Raises:
        InputError: if one of them is missing, damaged, or of another size than the options ask for.
    """
    path = options.run
    if not path.exists():
        raise InputError(f"{path}: no such run folder, folder or .zip of images, or .npz file")
    if (path / "config.json").exists():
        samples, trained_on = open_run(path, options.seed, device)
        data, trained_half = whole_and_half(trained_on)
        if options.size not in (None, samples.size):
            raise InputError(f"--size {options.size}: the images of {path} have {samples.size} x {samples.size} pixels")
        reference = open_pictures(options.data or data, samples.size, options, samples.channels)
        return samples, reference, options.split or OTHER_HALF[trained_half]
    split = options.split or "all"
    if options.data is None:
        raise InputError(f"{path}: not a run folder, so name the data to compare its images with: --data NAME")
    if path.suffix.lower() == ".npz":
        samples = open_npz(path, options.size)
        return samples, open_pictures(options.data, samples.size, options, samples.channels), split
    reference = open_pictures(options.data, options.size, options)
    return open_pictures(str(path), reference.size, options, reference.channels), reference, split


def open_run(folder: Path, seed: int, device: torch.device) -> tuple[Source, str]:
    """What a trained run generates, and the name of the data it was trained on."""
    pipeline = Pipeline.from_pretrained(folder, device=device)
    config = pipeline.config

    def read(index: np.ndarray) -> torch.Tensor:
        return to_uint8(pipeline.sample(index, seed))

    return Source(str(folder), config.size, config.channels, None, read), config.data


def open_pictures(data: str, size: int | None, options: Evaluate, channels: int | None = None) -> Source:
    """A data set, or a folder or archive of images."""
    grey = None if channels is None else channels == 1
    dataset = open_dataset(data, size, options.data_root, grey=grey, cache=options.data_cache)

    def read(index: np.ndarray) -> torch.Tensor:
        return to_uint8(torch.from_numpy(as_floats(dataset.pixels[index])))

    return Source(data, dataset.size.to_json(), dataset.channels, len(dataset), read)


def open_npz(path: Path, size: int | None) -> Source:
    """Images in the form that many samplers write: ``arr_0``, uint8 [N, H, W, C], C 1 or 3."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an .npz file with an array arr_0 ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or min(images.shape[:3]) < 2:
        raise InputError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, C], C 1 or 3")
    side = size or min(images.shape[1:3])

    def read(index: np.ndarray) -> torch.Tensor:
        chosen = images[index].transpose(0, 3, 1, 2).astype(np.float32) / 255.0
        return to_uint8(torch.from_numpy(np.stack([fit(image, side) for image in chosen])))

    return Source(str(path), side, images.shape[3], len(images), read)


def measure(
    source: Source, index: np.ndarray, extractor: FeatureExtractor, batch: int, state: PartialState, device: torch.device
) -> Measurement:
    """Features and colours of the images number ``index``, on the CPU, in that order whatever the number of ranks.

    Raises:
        InputError: if an image or its features are not finite.
    """
    # Every rank takes equally many, as gathering wants it: the last one goes on with images from the start, which are cut off.
    share = -(-len(index) // state.num_processes)
    mine = index[(state.process_index * share + np.arange(share)) % len(index)]
    features, colours = [], []
    with tqdm(total=share, desc=source.name, unit="img", leave=False, disable=not state.is_main_process) as progress:
        for start in range(0, share, batch):
            try:
                images = source.read(mine[start : start + batch]).to(device)
                features.append(extractor(images))
                check_features(features[-1], 0)
            except InputError as error:
                raise InputError(f"{source.name}: {error}") from None
            colours.append(images.double().mean(dim=(2, 3)))
            progress.update(len(images))
    return Measurement(*(gather(torch.cat(parts))[: len(index)].cpu() for parts in (features, colours)))


def measure_once(
    reference: Source, extractor: FeatureExtractor, options: Evaluate, state: PartialState, device: torch.device
) -> Measurement:
    """The measurement of all reference pictures, kept in the cache for the next time; None but on the main rank if it was there."""
    measured, path = None, Path()
    if state.is_main_process:
        path = cache_folder(options.cache) / f"{fingerprint(reference, extractor)}.safetensors"
        try:
            measured = Measurement(**load_tensors(path))
        except (InputError, TypeError):  # not there, or damaged
            pass
    [known] = broadcast_object_list([measured is not None])
    if not known:
        measured = measure(reference, np.arange(reference.count), extractor, options.batch, state, device)
        if state.is_main_process:
            save_tensors(path, vars(measured), {"data": reference.name, "features": extractor.name})
    return measured


def fingerprint(reference: Source, extractor: FeatureExtractor) -> str:
    """A hash of what a measurement depends on: size and number of the pictures, up to 2,048 spread over them, the extractor."""
    probes = reference.read(evenly_spaced(reference.count, PROBES)).numpy()
    facts = [CACHE_FORMAT, reference.count, *probes.shape, extractor.name, extractor.sha256]
    return hashlib.sha256(json.dumps(facts).encode() + probes.tobytes()).hexdigest()


def cache_folder(folder: Path | None) -> Path:
    """Where cached files go: as asked for, or the user's cache."""
    return folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "beyond-blur"


def distance_name(features: str, other: str) -> str:
    """What the Frechet distance between features of this name is called: FID, or if they are not Inception's ``other``."""
    return "FID" if features == "inception" else other


def table(rows: Mapping[str, Mapping[str, Any]], distance: str) -> str:
    """Scores side by side for a terminal, as they stand in metrics.json."""
    heads = ["", "images", "reference", distance, "precision", "recall", "density", "coverage", "drift", "spread"]
    lines = [heads]
    for name, scores in rows.items():
        lines.append(
            [
                name,
                str(scores["samples"]),
                str(scores["reference"]),
                f"{scores['frechet_distance']:.4g}",
                *(f"{scores[share]:.3f}" for share in ("precision", "recall", "density", "coverage")),
                f"{scores['colour_drift']:.2f}",
                "-" if scores["colour_spread"] is None else f"{scores['colour_spread']:.3f}",
            ]
        )
    return "\n".join(f"{line[0]:<8}" + "".join(f"{cell:>11}" for cell in line[1:]) for line in lines)


if __name__ == "__main__":
    console.run(evaluate, Evaluate, "evaluate")
