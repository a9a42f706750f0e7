"""Calibration: whether restorations of a corrupted picture vary as much as they should.

A held-out picture x is corrupted to level k with noise and flow, and restored M times from there. If the sampler draws from
p(x | u_k), the picture and its M restorations are M + 1 draws from one distribution: of any number that is measured on them, the
rank of the picture among its restorations is uniform on 0 to M (rank histograms, Hamill 2001; Talts et al. 2018). Too little spread
puts the picture at the ends, too much in the middle, a bias to one side.

How much wider than their spread the intervals about the mean of the restorations must be to hold 90 % of the pixels is measured
along, and ``cli.restore`` uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion.evaluation.features import FeatureExtractor, to_uint8
from diffusion.rng import seeds, uniform
from diffusion.sampling.restoration import half_widths
from lbm_warp.checks import check_integer
from lbm_warp.heat import cosines

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

RESTORATIONS = 9
BATCH = 16
# Cosine modes (half waves along y and x) whose amplitudes are ranked, of the mean over the channels.
MODES = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (2, 2), (0, 4), (4, 0))
FEATURES = 8


@dataclass(frozen=True)
class Calibration:
    """Ranks of pictures among their restorations from one level."""

    level: int
    pictures: int
    restorations: int
    histogram: tuple[tuple[int, ...], ...]
    """Pictures of every rank 0 to M, a row for each number that was measured."""
    measured: tuple[str, ...]
    """What was measured: brightness, cosine modes, features."""
    error: float
    """Root mean square, over numbers and ranks, of the relative error of a rank's frequency beyond what chance gives so few
    pictures: 0 for an exact sampler; 1 is an error of 100 %."""
    chi_square: float
    """Mean over the numbers of Pearson's statistic over its degrees of freedom: about 1 for an exact sampler."""
    half_widths: tuple[float, ...] = ()
    """Half widths of the intervals that hold 90 % of the pixels, about the mean of the first 2, 3, ..., M restorations, in standard
    deviations of these: see ``diffusion.sampling.restoration``."""


def calibration(
    pipeline: Pipeline,
    read: Callable[[np.ndarray], torch.Tensor],
    index: np.ndarray,
    level: int,
    *,
    extractor: FeatureExtractor | None = None,
    restorations: int = RESTORATIONS,
    seed: int = 0,
    steps: int | None = None,
) -> Calibration:
    """Ranks of held-out pictures among their restorations.

    Args:
        pipeline: a run.
        read: called as ``read(index)``: pictures of these numbers, float32 [n, C, H, W] in [0, 1].
        index: numbers of pictures that the run has not learned, int64.
        level: level to restore from, 1 to K.
        extractor: features to rank as well: their first eight principal components over the pictures and restorations.
        restorations: M, at least 1.
        seed: of flows, noise, and the order of equal numbers.
        steps: number of steps from this level.

    Raises:
        InputError: if a value is out of its range.
    """
    check_integer("restorations", restorations, 1)
    check_integer("level", level, 1, pipeline.forward.levels)
    rows = []
    for first in tqdm(range(0, len(index), BATCH), desc=f"level {level}", unit="batch", leave=False):
        numbers = index[first : first + BATCH]
        x, own = read(numbers), seeds(seed, "calibration", numbers)
        repeated, of_each = (tensor.repeat_interleave(restorations, dim=0) for tensor in (x, own))
        draws = seeds(own[:, None], "restoration", np.arange(restorations)).flatten()
        restored = pipeline.posterior(repeated, level, of_each, draws, steps)
        rows.append(torch.cat([x[:, None], restored.unflatten(0, (len(x), restorations))], dim=1))
    pictures = torch.cat(rows)
    values, names = measure(pictures, extractor, pipeline.device)
    ranks = ranks_among(values, uniform(seeds(seed, "ties", np.arange(values[:, :, 0].numel())), "tie").view(values.shape[:2]))
    return replace(summarised(ranks, level, restorations, names), half_widths=half_widths(pictures[:, 0], pictures[:, 1:]))


def measure(
    pictures: torch.Tensor, extractor: FeatureExtractor | None, device: torch.device
) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Numbers of pictures float32 [N, M + 1, C, H, W]: float64 [N, M + 1, S], and what they are called."""
    grey = pictures.double().mean(dim=2)
    rows, columns = (cosines(side)[1] for side in grey.shape[2:])
    modes = rows @ grey @ columns.T
    values = [grey.mean(dim=(2, 3)), *(modes[..., i, j] for i, j in MODES)]
    names = ["brightness", *(f"mode {i},{j}" for i, j in MODES)]
    if extractor is not None:
        bytes_ = to_uint8(pictures.flatten(0, 1))
        features = torch.cat([extractor(part.to(device)).cpu() for part in bytes_.split(64)]).double()
        centred = features - features.mean(dim=0)
        _, _, axes = torch.linalg.svd(centred, full_matrices=False)
        components = (centred @ axes[:FEATURES].T).unflatten(0, pictures.shape[:2])
        values += components.unbind(dim=2)
        names += [f"{extractor.name} feature {i + 1}" for i in range(components.shape[2])]
    return torch.stack(values, dim=2), tuple(names)


def ranks_among(values: torch.Tensor, ties: torch.Tensor) -> torch.Tensor:
    """How many of the restorations are below the picture, [N, S] from 0 to M.

    The first of the values [N, M + 1, S] is the picture's. Equal values are in the order of ``ties``, random numbers [N, M + 1].
    """
    truth, others = values[:, :1], values[:, 1:]
    first = (ties[:, 1:] < ties[:, :1])[:, :, None]
    return ((others < truth) | ((others == truth) & first)).sum(dim=1)


def summarised(ranks: torch.Tensor, level: int, restorations: int, names: Sequence[str]) -> Calibration:
    """What ranks [N, S] say."""
    count = len(ranks)
    histogram = torch.stack([torch.bincount(column, minlength=restorations + 1) for column in ranks.T]).double()
    relative = histogram * ((restorations + 1) / count) - 1.0
    # Counts of N pictures in M + 1 equal cells have the relative variance M / N.
    chance = restorations / count
    return Calibration(
        level=level,
        pictures=count,
        restorations=restorations,
        histogram=tuple(tuple(int(number) for number in row) for row in histogram.tolist()),
        measured=tuple(names),
        error=max(relative.square().mean().item() - chance, 0.0) ** 0.5,
        chi_square=relative.square().mean().item() / chance,
    )
