"""Photographs of any size restored in tiles, by a run of the preset ``photographs``, and their blur and noise estimated.

A tile is restored with what lies around it, as far as the network sees, so tiles fit together without seams, and memory does not
grow with the picture but for the arrays that hold it. Beyond its edges a picture is mirrored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from diffusion.data.images import check_picture
from diffusion.files import asset, load_tensors, save_tensors
from diffusion.photographs import LocalUNet, Photographs, as_stored
from diffusion.rng import seeds, uniform
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.checks import InputError, check_integer, check_number
from lbm_warp.heat import blur, cosines, to_modes
from lbm_warp.random import normal

MODEL = asset("photographs-model")
LEVELS = "levels.safetensors"
TILE = 512
FAR = 1.0  # aligned frames leave [0, 1] by less, and pictures of other ranges by more
ONE = torch.ones(1, dtype=torch.int64)  # a level; the network reads blur and noise
# 90 % of a Gaussian lie within so many standard deviations.
NINETY = 1.6449
# Patches that an estimate looks at: their side, how many at most in a row or column, bands of their spectrum; the pairs.
PATCH, MOST, BANDS = 64, 8, 12
BLURS, NOISES = np.linspace(0.0, 4.0, 17), np.geomspace(0.002, 0.25, 15)
# Least power and share that are compared, and what is added to variances.
LEAST_POWER, LEAST_SHARE, SLACK = 1e-7, 1e-3, 1e-3


@dataclass(frozen=True)
class Tile:
    """A restored part of a picture.

    Attributes:
        rows, columns: where it is.
        mean: the posterior mean, float32 [C, h, w], not clipped.
        deviation: standard deviation of what is not known, by the network, float32 [C, h, w].
    """

    rows: slice
    columns: slice
    mean: np.ndarray
    deviation: np.ndarray


def tiles(
    pipeline: Pipeline, picture: np.ndarray, sigma: float, noise: float, side: int = TILE, ensemble: bool = False
) -> Iterator[Tile]:
    """Restore a photograph, tile by tile, each row of tiles from left to right.

    Args:
        pipeline: a run of the preset ``photographs``.
        picture: float32 [C, H, W] in [0, 1], of any size; of one channel or three.
        sigma: its blur, the standard deviation of a Gaussian [pixels].
        noise: standard deviation of its white noise, in units of the range.
        side: of the tiles [pixels].
        ensemble: average what the network predicts for the eight orientations of a tile, in eight times the time (self-ensemble,
            Timofte et al. 2016).

    Raises:
        InputError: if the run is another one, or an argument is out of its range.
    """
    denoiser, network = model_of_photographs(pipeline)
    check_picture(picture, "the picture", (1, 3), FAR)
    check_number("blur", sigma, 0.0, pipeline.method.operator.widths(pipeline.config.size).max())
    check_number("noise", noise, 0.0, float(pipeline.forward.noise.max()))
    check_integer("side", side, 1)
    channels, height, width = picture.shape
    numbers = torch.tensor([sigma]).double(), torch.tensor([max(noise, float(pipeline.forward.noise[1]))]).double()
    count = 8 if ensemble else 1
    halo, factor = network.reach, network.side_factor
    side = min(side, max(height, width))
    for top, left in product(range(0, height, side), range(0, width, side)):
        h, w = min(side, height - top), min(side, width - left)
        # With what lies around, and a little more where the network needs whole multiples.
        rows, columns = (
            _mirrored(np.arange(start - halo, start - halo + factor * -(-(length + 2 * halo) // factor)), whole)
            for start, length, whole in ((top, h, height), (left, w, width))
        )
        part = torch.from_numpy(picture[:, rows[:, None], columns]).to(pipeline.device, torch.float32)
        with torch.inference_mode():
            inputs, base, gain = denoiser.estimate(part.expand(3, -1, -1)[None], *numbers)
            predicted = [_turned_back(pipeline.network(_turned(inputs, k), ONE), k) for k in range(count)]
            left_over, log_variance = torch.stack(predicted).mean(dim=0).chunk(2, dim=1)
            # Nothing in [0, 1] has a larger deviation.
            found = (base + gain * left_over, (gain * torch.exp(0.5 * log_variance)).clamp_max(0.5))
        inner = (slice(None), slice(halo, halo + h), slice(halo, halo + w))
        mean, deviation = (one[0][inner].cpu().numpy() for one in found)
        if channels == 1:
            mean, deviation = mean.mean(axis=0, keepdims=True), deviation.mean(axis=0, keepdims=True)
        yield Tile(slice(top, top + h), slice(left, left + w), mean, deviation)


def _turned(x: torch.Tensor, k: int) -> torch.Tensor:
    """Images [N, C, H, W] in their orientation k, 0 to 7: as they are, turned by k quarters, and from 4 on mirrored first."""
    return torch.rot90(x.flip(3) if k >= 4 else x, k % 4, (2, 3))


def _turned_back(x: torch.Tensor, k: int) -> torch.Tensor:
    x = torch.rot90(x, -(k % 4), (2, 3))
    return x.flip(3) if k >= 4 else x


def model_of_photographs(pipeline: Pipeline) -> tuple[Photographs, LocalUNet]:
    """What a run of the preset ``photographs`` learned with.

    Raises:
        InputError: if the run is another one.
    """
    denoiser, network = pipeline.method.denoiser, pipeline.config.network
    if not isinstance(denoiser, Photographs) or not isinstance(network, LocalUNet):
        raise InputError(f"a photograph in tiles needs a run of the preset photographs, got one of {pipeline.config.process_name}")
    return denoiser, network


def _mirrored(places: np.ndarray, length: int) -> np.ndarray:
    """Places of a picture of this length for places that may lie beyond its ends."""
    places = places % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


@dataclass(frozen=True)
class Degradation:
    """What is known of a photograph's blur and noise, in cells of pairs of the two.

    Attributes:
        evidence: logarithms of the probabilities of the cells, but for a constant, float64 [B, N].
        mean: blur [pixels] and noise, if they are in the cell, float64 [B, N, 2].
        variance: of both, float64 [B, N, 2].
    """

    evidence: np.ndarray
    mean: np.ndarray
    variance: np.ndarray

    def given(self, sigma: float | None, noise: float | None) -> Degradation:
        """The same where one of the two is known, or both."""
        evidence, mean, variance = self.evidence.copy(), self.mean.copy(), self.variance.copy()
        for axis, (name, value, grid) in enumerate((("blur", sigma, BLURS), ("noise", noise, NOISES))):
            if value is not None:
                check_number(name, value, 0.0, float(grid[-1]))
                away = np.arange(len(grid)) != np.abs(grid - value).argmin()
                np.moveaxis(evidence, axis, 0)[away] = -np.inf
                mean[..., axis], variance[..., axis] = value, 0.0
        return Degradation(evidence, mean, variance)

    def moments(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean and standard deviation of the blur [pixels], and of the noise."""
        share = np.exp(self.evidence - self.evidence.max())[..., None]
        share /= share.sum()
        least, most = (limit(axis=(0, 1)) for limit in (self.mean.min, self.mean.max))
        mean = (share * self.mean).sum(axis=(0, 1)).clip(least, most)  # exactly, where all are the same
        deviation = np.sqrt((share * (self.variance + (self.mean - mean) ** 2)).sum(axis=(0, 1)))
        return (float(mean[0]), float(deviation[0])), (float(mean[1]), float(deviation[1]))


class DegradationEstimator:
    """Finds blur and noise of photographs by a synthetic likelihood (Wood 2010).

    Blur and noise lie in a grid of cells. In each, numbers that are taken of a picture, and the blur and the noise themselves, are
    Gaussian, with a mean and a covariance that were measured on photographs. So the numbers of a picture give the probability of
    every cell and, by linear regression, blur and noise within it.

    Args:
        means: of blur, noise and the numbers, [B N, 2 + F].
        covariances: of the same, [B N, 2 + F, 2 + F].
        factors: by what the network's deviations are multiplied so that 90 % intervals hold 90 % of the pixels, [N].
    """

    def __init__(self, means: torch.Tensor, covariances: torch.Tensor, factors: torch.Tensor) -> None:
        self.means, self.covariances, self.factors = means.double(), covariances.double(), factors.double()

    @classmethod
    def load(cls, folder: Path = MODEL) -> DegradationEstimator:
        """Of the files of a bundled model, which ``tools.photographs`` writes."""
        tensors = load_tensors(folder / LEVELS)
        if {"means", "covariances", "factors"} - tensors.keys():
            raise InputError(f"{folder / LEVELS}: not what tools.photographs writes; write it again")
        return cls(tensors["means"], tensors["covariances"], tensors["factors"])

    @classmethod
    def measured(cls, photographs: Sequence[torch.Tensor]) -> DegradationEstimator:
        """Measured on patches of clean photographs, float32 [P, 3, PATCH, PATCH] each, all degraded to every cell."""
        means, covariances = [], []
        noises = [normal(seeds(i, "levels", np.arange(len(x))), x.shape, x.device) for i, x in enumerate(photographs)]
        for row, column in product(range(len(BLURS)), range(len(NOISES))):
            rows = []
            for i, (x, e) in enumerate(zip(photographs, noises, strict=True)):
                across, along = uniform(seeds(i, "cell", row), "cell", [2 * column, 2 * column + 1]).tolist()
                width = float(np.interp(row - 0.5 + across, np.arange(len(BLURS)), BLURS))
                r = float(np.interp(column - 0.5 + along, np.arange(-1, len(NOISES)), [0.0, *NOISES]))
                blurred = blur(x, torch.full((len(x),), width, dtype=torch.float64), periodic=False)
                rows.append(torch.cat([torch.tensor([width, r]).double(), features(as_stored(blurred + r * e))]))
            joint = torch.stack(rows)
            means.append(joint.mean(dim=0))
            covariances.append(torch.cov(joint.T))
        return cls(torch.stack(means), torch.stack(covariances), torch.ones(len(NOISES)))

    def save(self, folder: Path) -> None:
        """Write levels.safetensors."""
        parts = {"means": self.means, "covariances": self.covariances, "factors": self.factors}
        save_tensors(folder / LEVELS, {name: part.float() for name, part in parts.items()})

    def __call__(self, picture: np.ndarray) -> Degradation:
        """Of a picture, float32 [C, H, W] in [0, 1], with C = 1 or 3."""
        check_picture(picture, "the picture", (1, 3), FAR)
        difference = features(patches(picture)) - self.means[:, 2:]
        own, cross, of_both = self.covariances[:, 2:, 2:], self.covariances[:, :2, 2:], self.covariances[:, :2, :2]
        factor = torch.linalg.cholesky(own + SLACK * torch.eye(own.shape[1]))
        distance = torch.linalg.solve_triangular(factor, difference[:, :, None], upper=False).square().sum(dim=(1, 2))
        evidence = -factor.diagonal(dim1=1, dim2=2).log().sum(dim=1) - 0.5 * distance
        # Before the picture is seen, that it is not blurred is as probable as that it is.
        evidence[: len(NOISES)] += np.log(len(BLURS) - 1)
        gain = torch.cholesky_solve(cross.mT, factor).mT
        most = torch.tensor([BLURS[-1], NOISES[-1]])  # that the network knows
        mean = (self.means[:, :2] + (gain @ difference[:, :, None])[..., 0]).clamp_min(0.0).minimum(most)
        variance = (of_both - gain @ cross.mT).diagonal(dim1=1, dim2=2).clamp_min(0.0)
        grid = len(BLURS), len(NOISES)
        return Degradation(evidence.reshape(grid).numpy(), mean.reshape(*grid, 2).numpy(), variance.reshape(*grid, 2).numpy())

    def factor(self, noise: float) -> float:
        """By what the network's deviations are multiplied so that 90 % intervals hold 90 % of the pixels, at this noise."""
        return float(np.interp(np.log(max(noise, 1e-6)), np.log(NOISES), self.factors.numpy()))


def patches(picture: np.ndarray) -> torch.Tensor:
    """Patches spread evenly over a picture [C, H, W], float32 [P, C, PATCH, PATCH]; a smaller one is mirrored."""
    height, width = picture.shape[1:]
    places = []
    for side in (height, width):
        starts = np.linspace(0, max(side - PATCH, 0), max(1, min(MOST, side // PATCH))).round().astype(int)
        places.append([_mirrored(start + np.arange(PATCH), side) for start in starts])
    return torch.from_numpy(np.stack([picture[:, rows[:, None], columns] for rows, columns in product(*places)]))


def features(patches: torch.Tensor) -> torch.Tensor:
    """Numbers that tell blur and noise of patches of one picture, float32 [P, C, PATCH, PATCH] in [0, 1]: float64 [BANDS + 4]."""
    patches = patches.double()
    (ky, _), (kx, _) = (cosines(PATCH) for _ in range(2))
    band = torch.clamp(torch.sqrt(ky[:, None] ** 2 + kx**2) * (BANDS / torch.pi), max=BANDS - 1).long()
    band[0, 0] = BANDS
    # Smooth ramps between the edges of a patch have modes of all frequencies, so a window comes first.
    window = torch.hann_window(PATCH, periodic=False, dtype=torch.float64)
    modes = to_modes((patches - patches.mean(dim=(2, 3), keepdim=True)) * (window[:, None] * window)).square().mean(dim=(0, 1))
    powers = torch.stack([modes[band == number].mean() for number in range(BANDS)])
    # The second difference in both directions sees no edges along an axis; its kernel's norm is 6 (Immerkaer 1996).
    kernel = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64)
    fine = F.conv2d(patches.flatten(0, 1)[:, None], (kernel[:, None] * kernel)[None, None])[:, 0] / 6.0
    local = F.avg_pool2d(fine.square()[:, None], 10)[:, 0].flatten(1).flatten()
    floor = torch.stack([torch.quantile(local, share) for share in (0.05, 0.3)])
    cut = torch.stack([(patches <= 0.0).double().mean(), (patches >= 1.0).double().mean()])
    return torch.cat([torch.cat([powers, floor]).clamp_min(LEAST_POWER).log(), cut.clamp_min(LEAST_SHARE).log()])
