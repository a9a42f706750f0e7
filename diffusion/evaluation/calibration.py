"""Calibration: whether restorations of a corrupted picture vary as much as they should.

A held-out picture x is corrupted to level k with noise and flow, and restored M times from there. If the sampler draws from p(x | u_k),
the picture and its M restorations are M + 1 draws from one distribution: of any number that is measured on them, the rank of the
picture among its restorations is uniform on 0 to M (Talts et al. 2018; rank histograms of ensemble forecasts, Hamill 2001). Too little
spread puts the picture at the ends, too much in the middle, a bias to one side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from diffusion.rng import seeds, uniform
from lbm_warp.checks import InputError, check_integer
from lbm_warp.heat import cosines

if TYPE_CHECKING:
    from diffusion.evaluation.features import FeatureExtractor
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


def calibration(
    pipeline: Pipeline,
    read: Callable[[np.ndarray], torch.Tensor],
    index: np.ndarray,
    level: int,
    *,
    extractor: FeatureExtractor | None = None,
    restorations: int = RESTORATIONS,
    seed: int = 0,
    levels: int | None = None,
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
        levels: number of steps from this level.

    Raises:
        InputError: if a value is out of its range.
    """
    check_integer("restorations", restorations, 1)
    check_integer("level", level, 1, pipeline.corruption.levels)
    measured = []
    for first in tqdm(range(0, len(index), BATCH), desc=f"level {level}", unit="batch", leave=False):
        numbers = index[first : first + BATCH]
        x, own = read(numbers), seeds(seed, "calibration", numbers)
        draws = seeds(own[:, None], "restoration", np.arange(restorations)).flatten()
        restored = pipeline.restore_corrupted(x.repeat_interleave(restorations, dim=0), level, own.repeat_interleave(restorations), draws, levels)
        everything = torch.cat([x[:, None], restored.unflatten(0, (len(x), restorations))], dim=1)
        measured.append(measure(everything, extractor, pipeline.device))
    return ranked(torch.cat(measured), level, seed, names(extractor))
