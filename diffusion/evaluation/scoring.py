"""Scores of a run, or of samples from anywhere, against real pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from diffusion.data.dataset import OTHER_HALF, Split, evenly_spaced
from diffusion.evaluation.bootstrap import intervals
from diffusion.evaluation.calibration import calibration
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.features import Features
from diffusion.evaluation.kept import KeptSamples
from diffusion.evaluation.likelihood import check_density, likelihood
from diffusion.evaluation.metrics import Measurement, Scores, fit_gaussian, frechet_distance, memorisation, score
from diffusion.evaluation.reference import Reference
from diffusion.evaluation.restoration import check_blurs, score_restoration
from diffusion.evaluation.sources import Share, open_pictures, open_run, open_sources
from diffusion.evaluation.variance import analysis_of_variance
from diffusion.launcher import launch
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.checks import InputError, amount, as_device, check_object

RESTORED = 256  # pictures that calibration restores
DEGRADED = 64  # pictures that are degraded and restored, half of them for the free numbers of other methods
LEARNED = 256  # pictures that a run learned, for the last term of its likelihood
FEW_FEATURES = 256


def evaluate(
    samples: Pipeline | Path | str | Any,
    data: str | Any | None = None,
    config: EvaluationConfig | None = None,
    *,
    features: Features | None = None,
    device: torch.device | str | None = None,
    types: Sequence[type] = (),
) -> dict[str, Any] | None:
    """Score samples against real pictures, and real pictures as if they were samples.

    Call it in one process, or in each process that torchrun or accelerate launch started: they share the work.

    Args:
        samples: a run (its folder, digits, fashion or emoji, ``owner/name`` on the Hugging Face Hub, or a pipeline), or samples
            of any model: a folder or .zip of images, an .npz file (arr_0, uint8 [N, H, W, C]), or images as
            :func:`diffusion.data.as_dataset` takes them, such as a tensor [N, C, H, W]; values that leave [0, 1] a little are
            clipped.
        data: name of the real pictures, as for :func:`diffusion.open_dataset`, or pictures as :func:`diffusion.data.as_dataset`
            takes them; by default those that the run was trained on.
        config: how to compare them.
        features: features of one's own, as for :func:`diffusion.evaluation.open_features`; by default those of ``config``.
        device: where to sample and to compute features; by default CUDA where there is one. Launched processes take one each.
        types: classes that are not ours and that the run's config.json names.

    Returns:
        On rank 0 what metrics.json holds, on the others None. ``scores`` and ``floor`` have the entries of
        :class:`diffusion.evaluation.Scores`; the floor is one half of the real pictures as samples of the other half. ``learned``
        says how many of the pictures a run was trained on: all, half or none; None if that is not known.

    Raises:
        InputError: if a value is out of its range, or samples, pictures or features are missing, damaged or too few.
    """
    config = config or EvaluationConfig()
    check_object("config", config, EvaluationConfig)
    config.validate()
    device = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    launch()  # refuses half an environment, in which processes would wait for each other
    state = PartialState(cpu=device.type == "cpu")
    device = state.device if state.num_processes > 1 else device
    source, pictures, config, share = open_sources(samples, data, config, device, types)
    reference, model = Reference(pictures, config, device, features), source.pipeline
    run = model if model is None or config.sampling_noise is None else model.with_sampling_noise(config.sampling_noise)
    index = np.arange(reference.num) if run else evenly_spaced(source.count, config.num or source.count)
    if len(index) < (config.num or 0):
        raise InputError(f"{source.name} has {amount(len(index), 'image')}, fewer than num = {config.num}")
    reference.check_enough(source.name, len(index))
    if (config.likelihood or config.calibration or config.variance or config.restoration) and run is None:
        raise InputError(f"{source.name}: not a run; leave out likelihood, calibration, variance and restoration")
    if run is not None:  # before all else, which takes longer
        run.method.sampler.visited(run.forward, steps=config.steps)
    if config.likelihood and run is not None:
        check_density(run)
    if config.restoration and run is not None:
        check_blurs(run)

    real, extractor = reference.measured(), reference.extractor
    kept = None if run is None else KeptSamples(source, run, config)
    generated = (replace(source, read=kept.read) if kept else source).measure(index, extractor, config.batch, device)
    if real is None or not state.is_main_process:
        return None
    compared = generated.to(device), real[reference.numbers()].to(device)
    scores = score(*compared, config.k)
    made = {name: getattr(config, name) for name in ("seed", "steps", "sampling_noise")} if run is not None else {}
    dimension = real.features.shape[1]
    report: dict[str, Any] = {
        "samples": {"source": source.name, **made},
        "reference": reference.facts(),
        "size": source.size.to_json(),
        "channels": source.channels,
        "features": {"name": extractor.name, "sha256": extractor.sha256, "dimension": dimension},
        "k": config.k,
        "scores": asdict(scores),
        "floor": asdict(_floor(real, reference, len(index))),
    }
    resamples = (100 if dimension <= FEW_FEATURES else 0) if config.bootstrap is None else config.bootstrap
    if resamples:
        report["intervals"] = intervals(scores, *compared, config.k, resamples)
    if run is not None and model is not None and kept is not None:
        report["samples"]["model"] = model.fingerprint
        report |= {"learned": share} | _of_run(run, reference, real, generated, share)
        kept.remove()
    return report


def _floor(real: Measurement, reference: Reference, count: int) -> Scores:
    """Scores of the other half of the real pictures, at most ``count`` of them, as samples."""
    held: Split = "even" if reference.config.split == "even" else "odd"
    others = reference.numbers(OTHER_HALF[held])
    shown, kept = (real[numbers] for numbers in (others[evenly_spaced(len(others), count)], reference.numbers(held)))
    return score(shown.to(reference.device), kept.to(reference.device), reference.config.k)


def _of_run(run: Pipeline, reference: Reference, real: Measurement, generated: Measurement, share: Share | None) -> dict[str, Any]:
    """What is found out about a run, which learned a share of the pictures, beside its samples: all that the configuration asks
    for, by name."""
    config, read, last = reference.config, reference.read, run.forward.levels
    numbers, learned, seed = reference.numbers(), reference.numbers(OTHER_HALF[config.split or "all"]), config.seed
    found: dict[str, Any] = {}

    def spread(numbers: np.ndarray, count: int) -> np.ndarray:
        return numbers[evenly_spaced(len(numbers), count)]

    if config.likelihood:
        bound = likelihood(run, read, spread(numbers, reference.num), spread(learned, LEARNED), seed, config.steps)
        found["likelihood"] = asdict(bound) | {"learned": share}
    if share == "none":
        found["memorisation"] = memorisation(generated.features, real[learned].features, real[numbers].features)
    if config.calibration:
        levels, chosen = sorted({max(1, last * quarter // 4) for quarter in (1, 2, 3)}), spread(numbers, RESTORED)
        ranks = (calibration(run, read, chosen, level, extractor=reference.extractor, seed=seed) for level in levels)
        found["calibration"] = [asdict(of_level) for of_level in ranks]
    if config.variance:
        found["variance"] = analysis_of_variance(run, reference.extractor, seed=seed, steps=config.steps)
    if config.restoration:
        levels, chosen = sorted({max(1, round(last * share)) for share in (0.25, 0.4, 0.5)}), spread(numbers, DEGRADED)
        found["restoration"] = [score_restoration(run, read, chosen, level, seed=seed) for level in levels]
    return found


def frechet_scorer(
    data: str | Any, config: EvaluationConfig, device: torch.device, features: Features | None = None
) -> Callable[[Pipeline], float | None]:
    """A function that gives the Frechet distance of a run's samples to real pictures, for scores while it is trained.

    The features are opened, and the pictures measured, once; call it, and the function, on all ranks.

    Args:
        data: real pictures, as for :func:`evaluate`.
        config: how to compare them; ``num``, ``split`` and ``size`` are given.
        device: where to compute features.
        features: features of one's own, as for :func:`evaluate`.

    Returns:
        The function; on ranks other than 0 it returns None.

    Raises:
        InputError: if pictures or features are missing, damaged or too few.
    """
    config.validate()
    reference = Reference(open_pictures(data, config), config, device, features)
    reference.check_enough("a set of samples", reference.num)
    real = reference.measured()
    fitted = fit_gaussian(real[reference.numbers()].features) if real is not None and PartialState().is_main_process else None

    def distance(pipeline: Pipeline) -> float | None:
        source = open_run("score", pipeline, config)
        samples = source.measure(np.arange(reference.num), reference.extractor, config.batch, device)
        return None if fitted is None else frechet_distance(fit_gaussian(samples.features), fitted)

    return distance
