"""Scores of a run, or of samples from anywhere, against real pictures."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from tqdm import tqdm

from diffusion.data.dataset import OTHER_HALF, Split, as_floats, evenly_spaced, numbers_of, open_dataset, whole_and_half
from diffusion.data.images import fit
from diffusion.evaluation.bootstrap import intervals
from diffusion.evaluation.calibration import Calibration, calibration
from diffusion.evaluation.features import BUNDLED, FeatureExtractor, open_features, to_uint8
from diffusion.evaluation.likelihood import Likelihood, check_density, likelihood
from diffusion.evaluation.metrics import Measurement, check_features, fit_gaussian, frechet_distance, memorisation, score
from diffusion.evaluation.restoration import score_restoration
from diffusion.evaluation.variance import analysis_of_variance
from diffusion.files import load_tensors, save_tensors
from diffusion.sampling.pipeline import Pipeline, is_model_id
from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer

MOST_SAMPLES = 10_000  # of a run, unless told
PROBES = 2048  # pictures that a fingerprint looks at
RESTORED = 256  # pictures that calibration restores
DEGRADED = 64  # pictures that are degraded and restored, half of them for the free numbers of other methods
LEARNED = 256  # pictures that a run learned, for the last term of its likelihood
FEW_FEATURES = 256
CACHE_FORMAT = 1


@dataclass(frozen=True)
class ScoringConfig:
    """How samples are compared with real pictures."""

    num: int | None = None
    """Number of samples; by default all of a folder or file, and of a run as many as the reference has, at most 10,000."""
    features: str | None = None
    """inception, inception-clean (resized as clean-fid does), digits, fashion-mnist, emoji, pixels, a classifier of cli.features
    (*.safetensors), or a TorchScript file (*.pt, which is run); by default those of the data's name, else inception."""
    inception: Path | None = None
    """The file inception-2015-12-05.pt; looked for in BEYOND_BLUR_DATA, ./data and torch's hub cache by default."""
    bootstrap: int | None = None
    """Resamples of the images for 95 % intervals; by default 100, or 0 for more than 256 features, where they take minutes."""
    k: int = 5
    """Nearest neighbours that set the radius of a neighbourhood, for precision, recall, density and coverage."""
    likelihood: bool = False
    """Also bound the likelihood of the pictures under a run, in bits a dimension, with its sampler in first-order steps: in all K
    levels, or in --levels where that is given."""
    cache: Path | None = None
    """Folder where the features of real pictures are kept; ~/.cache/beyond-blur by default."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("k", self.k, 1)
        if self.bootstrap:
            check_integer("bootstrap", self.bootstrap, 2)
        if self.num is not None:
            check_integer("num", self.num, 2)


@dataclass(frozen=True)
class EvaluationConfig(ScoringConfig):
    """How samples are made or read, and compared with real pictures."""

    split: Split | None = None
    """Pictures to compare with: all, or those of even or odd number; by default those that a run was not trained on, else all."""
    seed: int = 0
    """Seed of a run's samples, as for cli.sample."""
    levels: int | None = None
    """Number of steps of a run's sampler, as for cli.sample; calibration and restoration go through all levels below theirs."""
    delta: float | None = None
    """Sampling noise of a run, as for cli.sample."""
    calibration: bool = False
    """Also rank 256 pictures among nine restorations each, from a quarter, half and three quarters of a run's levels: uniform ranks
    mean that restorations vary as much as they should."""
    variance: bool = False
    """Also say how much of the variance of a run's samples is due to the start, the flow and the noise: 216 samples."""
    restoration: bool = False
    """Also degrade 64 pictures to a quarter, two fifths and half of a run's levels, restore them without telling the level, and
    compare PSNR and SSIM with methods of scikit-image (pip install 'beyond-blur[restoration]')."""
    size: str | None = None
    """Size to compare at in pixels, such as 64 or 96x128; by default that of the run or .npz file, else that of the data."""
    batch: int = 64
    """Images at a time; the result does not depend on it."""
    data_root: Path | None = None
    """Folder of named data sets; by default the environment variable BEYOND_BLUR_DATA, or ./data."""
    data_cache: Path | None = None
    """Folder of prepared pictures; ~/.cache/beyond-blur/data by default."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        super().validate()
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("batch", self.batch, 1)


@dataclass(frozen=True)
class ImageSource:
    """Images by number."""

    name: str
    size: Size
    channels: int
    count: int | None
    """Number of images; None for a run, which makes any number."""
    read: Callable[[np.ndarray], torch.Tensor]
    """Called as ``read(index)``: the images of these numbers, uint8 [len(index), channels, height, width]."""
    families: np.ndarray | None = None
    """As in :class:`ImageDataset`."""
    pipeline: Pipeline | None = None
    """The run."""


@dataclass(frozen=True)
class Reference:
    """Real pictures, and how samples are compared with them.

    Raises:
        InputError: by ``extractor`` and what uses it, if there are no such features, or their file is missing or damaged.
    """

    pictures: ImageSource
    config: EvaluationConfig
    device: torch.device

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The features that the configuration names, or those that suit the pictures."""
        features = self.config.features or (self.pictures.name if self.pictures.name in BUNDLED else "inception")
        return open_features(features, self.device, self.config.inception)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the features depend on: number and size of the pictures, up to 2,048 of them, and the extractor."""
        probes = self.pictures.read(evenly_spaced(self.pictures.count, PROBES)).numpy()
        facts = [CACHE_FORMAT, self.pictures.count, *probes.shape, self.extractor.name, self.extractor.sha256]
        return hashlib.sha256(json.dumps(facts).encode() + probes.tobytes()).hexdigest()

    def numbers(self, split: Split | None = None) -> np.ndarray:
        """Numbers of the pictures that samples are compared with, or of those of another split, int64."""
        families = self.pictures.families
        return numbers_of(split or self.config.split, self.pictures.count if families is None else families)

    @property
    def num(self) -> int:
        """Number of samples of a run: as many as pictures that they are compared with, at most 10,000, or ``config.num``."""
        return self.config.num or min(len(self.numbers()), MOST_SAMPLES)

    def facts(self) -> dict[str, str]:
        """What metrics.json says of the reference."""
        return {"data": self.pictures.name, "split": self.config.split, "fingerprint": self.fingerprint}

    def read(self, index: np.ndarray) -> torch.Tensor:
        """Pictures as a run takes them, float32 [n, C, H, W] in [0, 1]."""
        return self.pictures.read(index).float() / 255.0

    def calibration(self, pipeline: Pipeline) -> list[Calibration]:
        """Ranks of pictures, spread over all, among what a run restores from three levels."""
        numbers, last = self.numbers(), pipeline.corruption.levels
        chosen = numbers[evenly_spaced(len(numbers), RESTORED)]
        quarters = sorted({max(1, last * quarter // 4) for quarter in (1, 2, 3)})
        options = {"extractor": self.extractor, "seed": self.config.seed}
        return [calibration(pipeline, self.read, chosen, level, **options) for level in quarters]

    def restoration(self, pipeline: Pipeline) -> list[dict[str, object]]:
        """Scores of pictures, spread over all, degraded to three levels and restored."""
        numbers, last = self.numbers(), pipeline.corruption.levels
        chosen = numbers[evenly_spaced(len(numbers), DEGRADED)]
        levels = sorted({max(1, round(last * share)) for share in (0.25, 0.4, 0.5)})
        return [score_restoration(pipeline, self.read, chosen, level, seed=self.config.seed) for level in levels]

    def likelihood(self, pipeline: Pipeline) -> Likelihood:
        """Bound of the likelihood of the pictures under a run: of as many as there are samples, spread over all."""
        numbers, learned = self.numbers(), self.numbers(OTHER_HALF[self.config.split])
        chosen, probes = numbers[evenly_spaced(len(numbers), self.num)], learned[evenly_spaced(len(learned), LEARNED)]
        return likelihood(pipeline, self.read, chosen, probes, self.config.seed, self.config.levels)

    def check_enough(self, samples: str, count: int) -> None:
        """Raise InputError unless both halves of the pictures, and ``count`` samples, are more than k images."""
        k = self.config.k
        for name, have in ((f"each half of {self.pictures.name}", self.pictures.count // 2), (samples, count)):
            if have <= k:
                raise InputError(f"{name} has {have} images, too few for k = {k}: at least {k + 1} are needed")


def evaluate(
    samples: Pipeline | Path | str,
    data: str | None = None,
    config: EvaluationConfig | None = None,
    *,
    device: torch.device | str | None = None,
) -> dict[str, Any] | None:
    """Score samples against real pictures, and real pictures as if they were samples.

    Call it in one process, or in each process that torchrun or accelerate launch started: they share the work.

    Args:
        samples: a run (its folder, ``owner/name`` on the Hugging Face Hub, or a pipeline), or samples of any model: a folder or
            .zip of images, or an .npz file (arr_0, uint8 [N, H, W, C]).
        data: name of the real pictures, as for :func:`diffusion.open_dataset`; by default those that the run was trained on.
        config: how to compare them.
        device: where to sample and to compute features; by default CUDA where there is one. Launched processes take one each.

    Returns:
        On rank 0 what metrics.json holds, on the others None. ``scores`` and ``floor`` have the entries of
        :class:`diffusion.evaluation.Scores`; the floor is one half of the real pictures as samples of the other half.

    Raises:
        InputError: if a value is out of its range, or samples, pictures or features are missing, damaged or too few.
    """
    config = config or EvaluationConfig()
    config.validate()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = PartialState(cpu=device.type == "cpu")
    device = state.device if state.num_processes > 1 else device
    source, reference = open_sources(samples, data, config, device)
    index = np.arange(reference.num) if source.count is None else evenly_spaced(source.count, config.num or source.count)
    if len(index) < (config.num or 0):
        raise InputError(f"{source.name} has {len(index)} images, fewer than num = {config.num}")
    reference.check_enough(source.name, len(index))
    if (config.likelihood or config.calibration or config.variance or config.restoration) and source.pipeline is None:
        raise InputError(f"{source.name}: not a run; leave out likelihood, calibration, variance and restoration")
    if config.likelihood:
        check_density(source.pipeline)

    real = measure_reference(reference)
    extractor = reference.extractor
    generated = measure(source, index, extractor, config.batch, device)
    if not state.is_main_process:
        return None
    compared = generated.to(device), real[reference.numbers()].to(device)
    scores = score(*compared, config.k)
    held = "even" if reference.config.split == "even" else "odd"
    others = reference.numbers(OTHER_HALF[held])
    shown = others[evenly_spaced(len(others), len(index))]
    floor = score(real[shown].to(device), real[reference.numbers(held)].to(device), config.k)
    made = {"seed": config.seed, "levels": config.levels, "delta": config.delta} if source.count is None else {}
    resamples = (100 if real.features.shape[1] <= FEW_FEATURES else 0) if config.bootstrap is None else config.bootstrap
    more = {"intervals": intervals(scores, *compared, config.k, resamples)} if resamples else {}
    more |= {"likelihood": asdict(reference.likelihood(source.pipeline))} if config.likelihood else {}
    if source.pipeline is not None and reference.config.split != "all":
        learned = real[reference.numbers(OTHER_HALF[reference.config.split])]
        more["memorisation"] = memorisation(generated.features, learned.features, real[reference.numbers()].features)
    if config.calibration:
        more["calibration"] = [asdict(ranks) for ranks in reference.calibration(source.pipeline)]
    if config.variance:
        more["variance"] = analysis_of_variance(source.pipeline, extractor, seed=config.seed, levels=config.levels)
    if config.restoration:
        more["restoration"] = reference.restoration(source.pipeline)
    return {
        "samples": {"source": source.name} | made,
        "reference": reference.facts(),
        "size": source.size.to_json(),
        "channels": source.channels,
        "features": {"name": extractor.name, "sha256": extractor.sha256, "dimension": real.features.shape[1]},
        "k": config.k,
        "scores": asdict(scores),
        "floor": asdict(floor),
    } | more


def frechet_scorer(data: str, config: EvaluationConfig, device: torch.device) -> Callable[[Pipeline], float | None]:
    """A function that gives the Frechet distance of a run's samples to real pictures, for scores while it is trained.

    The features are opened, and the pictures measured, once; call it, and the function, on all ranks.

    Args:
        data: name of the real pictures.
        config: how to compare them; ``num``, ``split`` and ``size`` are given.
        device: where to compute features.

    Returns:
        The function; on ranks other than 0 it returns None.

    Raises:
        InputError: if pictures or features are missing, damaged or too few.
    """
    config.validate()
    reference = Reference(open_pictures(data, config), config, device)
    reference.check_enough("a set of samples", reference.num)
    real = measure_reference(reference)
    fitted = fit_gaussian([real.features[torch.from_numpy(reference.numbers())]]) if PartialState().is_main_process else None

    def distance(pipeline: Pipeline) -> float | None:
        source = open_run("score", pipeline, config)
        samples = measure(source, np.arange(reference.num), reference.extractor, config.batch, device)
        return None if fitted is None else frechet_distance(fit_gaussian([samples.features]), fitted)

    return distance


def open_sources(
    samples: Pipeline | Path | str, data: str | None, config: EvaluationConfig, device: torch.device
) -> tuple[ImageSource, Reference]:
    """The samples and the reference, of one size and number of channels; arguments and errors as for :func:`evaluate`."""
    source, split = None, "all"
    if isinstance(samples, Pipeline) or is_run(samples):
        pipeline = samples if isinstance(samples, Pipeline) else Pipeline.from_pretrained(samples, device=device)
        name = "pipeline" if samples is pipeline else str(samples)
        source = open_run(name, pipeline if config.delta is None else pipeline.with_sampling_noise(config.delta), config)
        trained_on, trained_half = whole_and_half(pipeline.config.data)
        data, split = data or trained_on, OTHER_HALF[trained_half]
        if config.size is not None and Size.of(config.size) != source.size:
            raise InputError(f"size {config.size}: the images of {source.name} have size {source.size}")
    elif not Path(samples).exists():
        raise InputError(f"{samples}: no such run folder, folder or .zip of images, or .npz file")
    elif config.levels is not None or config.delta is not None:
        raise InputError(f"{samples}: not a run; levels and delta say how a run makes its samples")
    elif data is None:
        raise InputError(f"{samples}: not a run, so name the real pictures to compare its images with: --data NAME")
    elif Path(samples).suffix.lower() == ".npz":
        source = open_npz(Path(samples), config.size)
    config = replace(config, split=config.split or split, size=str(source.size) if source else config.size)
    pictures = open_pictures(data, config, source.channels if source else None)
    source = source or open_pictures(str(samples), replace(config, size=str(pictures.size)), pictures.channels)
    return source, Reference(pictures, config, device)


def is_run(samples: Path | str) -> bool:
    """Whether this is a run folder, or owner/name of a run on the Hub."""
    return (Path(samples) / "config.json").exists() or (not Path(samples).exists() and is_model_id(str(samples)))


def open_run(name: str, pipeline: Pipeline, how: EvaluationConfig) -> ImageSource:
    """The images that a run makes from a seed, in a number of steps."""
    config = pipeline.config

    def read(index: np.ndarray) -> torch.Tensor:
        return to_uint8(pipeline.sample(index, how.seed, levels=how.levels))

    return ImageSource(name, config.size, config.channels, None, read, pipeline=pipeline)


def open_pictures(data: str, config: EvaluationConfig, channels: int | None = None) -> ImageSource:
    """A data set, or a folder or archive of images."""
    grey = None if channels is None else channels == 1
    dataset = open_dataset(data, config.size, config.data_root, grey=grey, cache=config.data_cache)

    def read(index: np.ndarray) -> torch.Tensor:
        return to_uint8(torch.from_numpy(as_floats(dataset.pixels[index])))

    return ImageSource(data, dataset.size, dataset.channels, len(dataset), read, dataset.families)


def open_npz(path: Path, size: str | None) -> ImageSource:
    """Images in the form that many samplers write: ``arr_0``, uint8 [N, H, W, C], C 1 or 3.

    Raises:
        InputError: if the file is damaged, or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            images = archive["arr_0"]
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not an .npz file with an array arr_0 ({error})") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3) or min(images.shape[:3]) < 2:
        raise InputError(f"{path}: arr_0 is {images.dtype} {list(images.shape)}; expected uint8 [N, H, W, C], C 1 or 3")
    target = Size.of(size or images.shape[1:3])

    def read(index: np.ndarray) -> torch.Tensor:
        chosen = images[index].transpose(0, 3, 1, 2).astype(np.float32) / 255.0
        return to_uint8(torch.from_numpy(np.stack([fit(image, target) for image in chosen])))

    return ImageSource(str(path), target, images.shape[3], len(images), read)


def measure(source: ImageSource, index: np.ndarray, extractor: FeatureExtractor, batch: int, device: torch.device) -> Measurement:
    """Features and colours of the images number ``index``, on the CPU, in this order whatever the number of ranks.

    Raises:
        InputError: if an image or its features are not finite.
    """
    state = PartialState()
    # Gathering needs shares of equal length: the last rank goes on with images from the start, which are cut off.
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


def measure_reference(reference: Reference) -> Measurement | None:
    """Features and colours of all real pictures, from the cache if they are there, else measured and kept there.

    On a cache hit only rank 0 gets them, the others None.
    """
    measured, pictures, main = None, reference.pictures, PartialState().is_main_process
    if main:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        path = (reference.config.cache or caches / "beyond-blur") / f"{reference.fingerprint}.safetensors"
        with suppress(InputError, TypeError):  # missing or damaged
            measured = Measurement(**load_tensors(path))
    [cached] = broadcast_object_list([measured is not None])
    if not cached:
        everything = np.arange(pictures.count)
        measured = measure(pictures, everything, reference.extractor, reference.config.batch, reference.device)
        if main:
            save_tensors(path, vars(measured), {"data": pictures.name, "features": reference.extractor.name})
    return measured
