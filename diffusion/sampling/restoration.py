"""Restore a picture that is already degraded: find the level that it looks like, and start the reverse process there.

The picture z is taken for level k in units of the signal, z = m + (u_k - m) / s_k = A_k(x) + (sigma_k / s_k) eps, as a file holds
it: cut to [0, 1] and rounded to eight bits. Its level is found by a synthetic likelihood (Wood 2010). Pictures of the run are
degraded to every level; a few numbers of each (powers in bands of its spectrum, shares of cut pixels) are Gaussian, with a mean
and a covariance for every level; Bayes' rule gives the probabilities of the levels. Before the picture is seen, that it is clean
(level 0) is as probable as that it is degraded, and all other levels are equally probable: so a picture is called degraded only if
that explains it better.

Whether it looks like what the run knows is asked at the level that is found: by those numbers (the squared Mahalanobis distance,
which is one per number on average), and by how far its thumbnail is from the mean one, in units of the variance of each pixel.

How restorations differ says what is not known, but they may differ too little. How wide an interval about their mean must be to
hold 90 % of the pixels is measured on pictures that are known, in units of the standard deviation of the restorations (conformal
prediction with a score in units of the spread, Lei et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from diffusion.data.dataset import evenly_spaced
from diffusion.photographs import as_stored
from diffusion.rng import seeds
from diffusion.samplers.base import Callback, noise_of_parts
from diffusion.sampling.pipeline import Pipeline
from lbm_warp import checks
from lbm_warp.checks import InputError, check_integer
from lbm_warp.heat import cosines, to_modes

# Bands of the spectrum, and levels that are compared at most.
BANDS, MOST = 8, 200
# What the run knows is at most so many standard deviations from what it draws; the shorter side of thumbnails; and what is added to
# the standard deviation of their pixels, which may never change.
UNLIKE, THUMBNAIL, LEAST = 4.0, 8, 0.02
# Beyond [0, 1], a value that noise does not reach.
FAR = 1e3
# Times that the pixels which were cut are drawn anew, given what the network makes of the others.
ROUNDS = 3
# Share of the pixels in an interval, half its width for a Gaussian in standard deviations, and the smallest spread that counts,
# half a grey level.
SHARE, GAUSSIAN, ROUNDING = 0.9, 1.645, 0.5 / 255.0


@dataclass(frozen=True)
class LevelEstimate:
    """What is known of a picture's level.

    Attributes:
        level: levels that were compared, int64 [L], rising from 0, which is a clean picture.
        probability: of these, float64 [L].
        sigma: their blur widths [pixels].
        noise: their noise in units of the signal, sigma_k / s_k.
        deviation: how far the picture is from those of the run at each level: root mean square, in standard deviations, of the
            numbers that are compared, float64 [L].
        distance: the same of the thumbnail, in units of the farthest one that the run has drawn, float64 [L]. Of a picture that is
            larger than the run's it is that of the nearest of its parts in their size; 0 for a smaller one.
    """

    level: np.ndarray
    probability: np.ndarray
    sigma: np.ndarray
    noise: np.ndarray
    deviation: np.ndarray
    distance: np.ndarray

    @property
    def clean(self) -> float:
        """The probability that the picture is not degraded."""
        return float(self.probability[self.level == 0].sum())

    @property
    def familiar(self) -> bool:
        """Whether the picture looks like those of the run at the level that is found."""
        return self.at(self.deviation) <= UNLIKE and self.at(self.distance) <= 1.0

    def at(self, values: np.ndarray) -> float:
        """A number that every level has, at the level that is found."""
        return float(values[self.level == self.quantile(0.5)][0])

    def quantile(self, share: float) -> int:
        """The level that the picture's own does not exceed with this probability; 0.5 gives the median."""
        return int(self.level[min(int(np.searchsorted(self.probability.cumsum(), share)), len(self.level) - 1)])

    def spread(self, values: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of a number that every level has."""
        mean = float(self.probability @ values)
        return mean, float(np.sqrt(self.probability @ (values - mean) ** 2))


class LevelEstimator:
    """Finds the level of degraded pictures. Pictures are drawn from the run and degraded once; then each estimate is quick.

    Args:
        pipeline: the run.
        stored: whether the pictures come from files, and were cut to [0, 1] and rounded there.
        images: number of pictures drawn.
        seed: of these and their degradation.
        callback: called as ``callback(level, u)`` for every step of the drawing, and for every level of the degradation.
    """

    def __init__(
        self, pipeline: Pipeline, *, stored: bool = True, images: int = 64, seed: int = 0, callback: Callback | None = None
    ) -> None:
        forward = pipeline.forward
        self.stored = stored
        self.level = np.concatenate([[0], 1 + evenly_spaced(forward.levels, MOST)])
        self.sigma, self.noise = forward.operator.widths(pipeline.config.size)[self.level], forward.ratio[self.level]
        clean = pipeline.sample(images, seed, callback=callback).clamp(0.0, 1.0).to(pipeline.device)
        wanted = set(self.level.tolist())
        means, covariances, self._thumbnails = [], [], []
        for level, u in forward.trajectory(clean, seeds(seed, "degraded", np.arange(images))):
            if callback is not None:
                callback(level, u)
            if level in wanted:
                z = 0.5 + (u - 0.5) / float(forward.signal[level])
                z = as_stored(z) if stored else z
                self._thumbnails.append(_Thumbnails.of(_thumbnail(z)))
                features = _features(z, stored)
                means.append(features.mean(dim=0))
                covariances.append(torch.cov(features.T) + 1e-3 * torch.eye(features.shape[1], dtype=features.dtype))
        self._means, self._covariances = torch.stack(means), torch.stack(covariances)
        self.images, self._channels, self._shape = images, clean.shape[1], (clean.shape[2], clean.shape[3])

    def __call__(self, picture: torch.Tensor) -> LevelEstimate:
        """The level of a picture, float32 [C, H, W] with the shorter side of the run's images; the longer one may differ.

        Raises:
            InputError: if it has other channels, or values far outside [0, 1].
        """
        low, high = (-0.5, 1.5) if self.stored else (-FAR, 1.0 + FAR)  # as resizing leaves them
        if picture.ndim != 3 or len(picture) != self._channels or not bool(((picture >= low) & (picture <= high)).all()):
            shown = f"{list(picture.shape)}, {float(picture.min()):g} to {float(picture.max()):g}"
            raise InputError(f"the picture must have {self._channels} channels and values from {low:g} to {high:g}, got {shown}")
        difference, n = _features(picture[None], self.stored) - self._means, self.images
        both = difference[0].isfinite()  # what pictures of both sizes have
        factor = torch.linalg.cholesky(self._covariances[:, both][:, :, both])
        distance = torch.linalg.solve_triangular(factor, difference[:, both, None], upper=False).square().sum(dim=(1, 2))
        # Student's t: mean and covariance are known from n pictures only (Geisser 1993, section 9.1).
        evidence = -factor.diagonal(dim1=1, dim2=2).log().sum(dim=1) - 0.5 * n * torch.log1p(distance * n / (n**2 - 1))
        evidence[1:] -= np.log(len(evidence) - 1)  # clean or degraded: one to one
        parts = _thumbnail(_parts(picture, *self._shape))
        far = [float(known.distance(parts).amin()) / known.farthest if len(parts) else 0.0 for known in self._thumbnails]
        deviation = (distance / both.sum()).sqrt().numpy()
        return LevelEstimate(self.level, evidence.softmax(dim=0).numpy(), self.sigma, self.noise, deviation, np.array(far))


@dataclass(frozen=True)
class _Thumbnails:
    """Mean and variance of thumbnails [C, h, w], and the distance of the farthest one from the others."""

    mean: torch.Tensor
    variance: torch.Tensor
    farthest: float = 0.0

    @classmethod
    def of(cls, y: torch.Tensor) -> _Thumbnails:
        """Those of thumbnails [N, C, h, w]."""
        n = len(y)
        known = cls(y.mean(dim=0), y.var(dim=0) + LEAST**2)
        # Every one against all others.
        mean = (n * known.mean - y) / (n - 1)
        variance = (y.square().sum(dim=0) - y.square() - (n - 1) * mean.square()) / (n - 2) + LEAST**2
        return cls(known.mean, known.variance, float(cls(mean, variance).distance(y).amax()))

    def distance(self, y: torch.Tensor) -> torch.Tensor:
        """Root mean square of thumbnails about the mean, in standard deviations of each pixel, [N]."""
        return ((y - self.mean).square() / self.variance).flatten(1).mean(dim=1).sqrt()


def _parts(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Parts of this size of a picture [C, H, W], a quarter of their sides apart, [N, C, height, width]; none if it is smaller."""
    if picture.shape[1] < height or picture.shape[2] < width:
        return picture.new_zeros((0, len(picture), height, width))
    parts = picture.unfold(1, height, max(1, height // 4)).unfold(2, width, max(1, width // 4))
    return parts.flatten(1, 2).transpose(0, 1)


def _thumbnail(z: torch.Tensor) -> torch.Tensor:
    """Pictures [N, C, H, W] as means over blocks, float64 [N, C, h, w]."""
    return functional.adaptive_avg_pool2d(z.double().cpu(), THUMBNAIL)


def restore(
    pipeline: Pipeline,
    picture: torch.Tensor,
    level: int,
    images: int = 1,
    seed: int = 0,
    *,
    steps: int | None = None,
    callback: Callback | None = None,
) -> torch.Tensor:
    """Draw clean pictures that may have become a degraded one, by the reverse process from its level.

    Every one assumes a flow of its own, because that of the picture is not known. A pixel at 0 or 1 may have been beyond: it is
    drawn from there, given what the network makes of the others.

    Args:
        pipeline: the run.
        picture: float32 [C, H, W], in [0, 1].
        level: k, 1 to K.
        images: how many.
        seed: of flows and noise.
        steps: number of steps, at most k.
        callback: called as ``callback(level, u)`` at the start and after every step.

    Returns:
        float32 [images, C, H, W] on the CPU.

    Raises:
        InputError: if an argument has the wrong shape or range.
    """
    _check(pipeline, picture)
    forward, sampler = pipeline.forward, pipeline.method.sampler
    check_integer("level", level, 1, forward.levels)
    check_integer("images", images, 1, checks.MOST)
    sampler.visited(forward, level, steps)
    own = seeds(seed, "restoration", np.arange(images))

    def draw(rows: slice) -> torch.Tensor:
        z = picture.to(pipeline.device, torch.float32).expand(len(own[rows]), -1, -1, -1)
        if pipeline.method.denoiser.gives_clean(forward):
            z = _uncut(pipeline, z, level, own[rows])
        u = 0.5 + float(forward.signal[level]) * (z - 0.5)
        # The picture has its noise already; the sampler adds some below its level.
        noise = noise_of_parts(lambda k: torch.zeros_like(u), forward.seeded_noise(own[rows], u), level)
        if callback is not None:
            callback(level, u)
        return sampler(pipeline.reverse(own[rows]), u, noise, callback, start=level, steps=steps)

    return pipeline.batched(images, draw)


def best(pipeline: Pipeline, picture: torch.Tensor, level: int, restored: torch.Tensor) -> int:
    """Which of the restored pictures [N, C, H, W] is nearest to the picture if it is degraded again, without flow and noise."""
    again = pipeline.method.operator.still()(restored, level, 0)
    return int((again.clamp(0.0, 1.0) - picture).flatten(1).norm(dim=1).argmin())


@dataclass(frozen=True)
class Intervals:
    """Intervals about the mean of restorations that hold 90 % of the pixels of pictures that are like the measured ones.

    Attributes:
        level: levels that were restored from, int64 [L], rising from 0.
        widths: their half widths in units of :func:`deviation`, of 2, 3, ... restorations, float64 [L, M - 1].
        data: name of the pictures that they were measured with.
    """

    level: np.ndarray
    widths: np.ndarray
    data: str = ""

    @classmethod
    def of(cls, pipeline: Pipeline) -> Intervals | None:
        """Those that ``cli.evaluate --calibration`` has measured with the run as it is now; None if it has not.

        At level 0 they are those of a Gaussian: of weak noise a sampler knows how much it does not know.

        Args:
            pipeline: the run at the size that it was trained at.
        """
        report = pipeline.metrics
        try:
            level = np.array([0, *(int(ranks["level"]) for ranks in report["calibration"])])
            measured = np.array([ranks["half_widths"] for ranks in report["calibration"]], dtype=np.float64)
            drawn = report.get("earlier", {}).get("calibration", report["samples"])
            # Not with another amount of the sampler's noise.
            if drawn["sampling_noise"] is not None or report["samples"]["model"] != pipeline.fingerprint:
                return None
            data = str(report["reference"]["data"])
        except (KeyError, TypeError, AttributeError, ValueError):  # without it, or of something else
            return None
        if (
            measured.ndim != 2
            or not measured.size
            or not (np.isfinite(measured) & (measured > 0.0)).all()
            or (np.diff(level) <= 0).any()
        ):
            return None
        # At level 0 those of a value beyond M others, all from one Gaussian.
        gaussian = GAUSSIAN * np.sqrt(1.0 + 1.0 / np.arange(2, 2 + measured.shape[1]))
        return cls(level, np.vstack([gaussian, measured]), data)

    def __call__(self, restored: torch.Tensor, level: int) -> torch.Tensor:
        """Half widths for two or more restorations [M, C, H, W] from a level, [C, H, W]; between measured levels interpolated.

        They are of a sampler with its own number of steps.

        Raises:
            InputError: if there are fewer.
        """
        if restored.ndim != 4 or len(restored) < 2:
            raise InputError(f"intervals need two or more restorations [M, C, H, W], got {list(restored.shape)}")
        widths = self.widths[:, min(len(restored) - 2, self.widths.shape[1] - 1)]
        return float(np.interp(level, self.level, widths)) * deviation(restored)


def deviation(restored: torch.Tensor) -> torch.Tensor:
    """Standard deviation of restorations [..., M, C, H, W] and of what rounding hides, [..., C, H, W]."""
    return (restored.var(dim=-4) + ROUNDING**2).sqrt()


def half_widths(x: torch.Tensor, restored: torch.Tensor) -> tuple[float, ...]:
    """Half widths of the intervals about the mean of the first 2, 3, ..., M restorations that hold 90 % of the pixels, in units of
    :func:`deviation`.

    Args:
        x: pictures [N, C, H, W].
        restored: their restorations [N, M, C, H, W].
    """
    some = (restored[:, :count] for count in range(2, restored.shape[1] + 1))
    return tuple(float(np.quantile((x - part.mean(dim=1)).abs() / deviation(part), SHARE)) for part in some)


def _check(pipeline: Pipeline, picture: torch.Tensor) -> None:
    if tuple(picture.shape) != pipeline.config.shape:
        raise InputError(f"the picture must have shape {list(pipeline.config.shape)}, got {list(picture.shape)}")
    if not bool(picture.isfinite().all()):
        raise InputError("the picture has values that are NaN or infinite; repair it")


def _features(z: torch.Tensor, stored: bool) -> torch.Tensor:
    """Numbers that tell the level of pictures [N, C, H, W]: logarithms of powers in bands and of shares of cut pixels, [N, F].

    Pictures of a few pixels have no modes in some of the bands: there it is NaN.
    """
    (ky, _), (kx, _) = (cosines(side) for side in z.shape[2:])
    z = z.double().cpu()
    power = to_modes(z).square().mean(dim=1)
    k = torch.sqrt(ky[:, None] ** 2 + kx**2)
    band = torch.clamp(k * (BANDS / torch.pi), max=BANDS - 1).long()
    band[0, 0] = BANDS  # the mean brightness says nothing
    powers = [power[:, band == number].mean(dim=1) for number in range(BANDS)]
    cut = [(z <= 0.0).double().mean(dim=(1, 2, 3)), (z >= 1.0).double().mean(dim=(1, 2, 3))] if stored else []
    # Powers below that of rounding to eight bits, and shares below a hundredth, say nothing.
    return torch.stack([p.clamp_min(1e-6).log() for p in powers] + [share.clamp_min(1e-2).log() for share in cut], dim=1)


def _uncut(pipeline: Pipeline, z: torch.Tensor, level: int, seed: torch.Tensor) -> torch.Tensor:
    """Pictures [N, C, H, W] whose pixels at 0 and 1 are drawn from beyond: Gaussian about what the network makes of the others."""
    forward, reverse = pipeline.forward, pipeline.reverse(seed)
    signal, scale = float(forward.signal[level]), float(forward.ratio[level])
    low, high = z <= 0.0, z >= 1.0
    if scale < 1.0 / 255.0 or not bool((low | high).any()):
        return z
    draw = forward.seeded_noise(seeds(seed, "uncut"), z)
    for number in range(ROUNDS):
        clean = reverse.clean(0.5 + signal * (z - 0.5), level).clamp(0.0, 1.0)
        mean = forward.operator(clean, level, seeds(seed, "flow"))
        share = torch.special.ndtr(draw(number))
        # Quantiles of the Gaussian below 0 and above 1.
        below = mean + scale * torch.special.ndtri((share * torch.special.ndtr(-mean / scale)).clamp_min(1e-30))
        above = mean - scale * torch.special.ndtri((share * torch.special.ndtr((mean - 1.0) / scale)).clamp_min(1e-30))
        z = torch.where(low, below.clamp(max=0.0), torch.where(high, above.clamp(min=1.0), z))
    return z
