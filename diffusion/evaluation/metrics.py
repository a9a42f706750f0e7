"""Scores of samples against reference images, from the features and the mean colours of both.

    Frechet distance        between Gaussians fitted to the features (Heusel et al. 2017); called FID with Inception's features
    kernel distance, KID    between the distributions of the features, without bias of few images (Binkowski et al. 2018)
    precision, recall       the share of samples on the reference's manifold, and the reverse (Kynkaanniemi et al. 2019)
    density, coverage       how densely, and how widely, samples fill the reference's neighbourhoods (Naeem et al. 2020)
    sliced Wasserstein      distance between the sets themselves, along random directions (Bonneel et al. 2015)
    colour drift, spread    what a forward process that loses or gains brightness shows first
    memorisation            whether samples are nearer to the pictures that were learned than to others

Everything is computed in float64, on the device that the features are on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from diffusion.data.dataset import evenly_spaced
from lbm_warp.checks import InputError, amount, check_integer, check_object

TILE = 2**24  # distances at a time: 128 MiB
FIT_BATCH = 4096
DIRECTIONS, SLICES = 256, 16
MOST_FEATURES = 2**14  # a covariance of 2 GiB


@dataclass(frozen=True)
class Gaussian:
    """Mean, float64 [D], and a root R of the covariance R^T R, float64 [r, D], r at most D."""

    mean: torch.Tensor
    root: torch.Tensor

    @property
    def covariance(self) -> torch.Tensor:
        """float64 [D, D]."""
        return self.root.T @ self.root


@dataclass(frozen=True)
class Measurement:
    """What the scores need to know of a set of N images."""

    features: torch.Tensor
    """One row an image, floating-point [N, D]."""
    colours: torch.Tensor
    """Mean of each channel of each image in 1/255, floating-point [N, C]."""

    def __post_init__(self) -> None:
        if self.colours.ndim != 2 or len(self.colours) != len(self.features):
            shape = list(self.colours.shape)
            raise InputError(f"colours must be of shape [N, C] for {amount(len(self.features), 'image')}, got {shape}")

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: np.ndarray) -> Measurement:
        """The measurement of the images number ``index``."""
        rows = torch.from_numpy(index)
        return Measurement(self.features[rows], self.colours[rows])

    def to(self, device: torch.device) -> Measurement:
        """The same on another device."""
        return Measurement(self.features.to(device), self.colours.to(device))


@dataclass(frozen=True)
class Scores:
    """How close a set of samples is to a reference set."""

    samples: int
    """Number of samples."""
    reference: int
    """Number of reference images."""
    neighbours: int
    """Number of images of each set that precision, recall, density and coverage were computed from."""
    frechet_distance: float
    """0 for equal means and covariances; lower is better."""
    kernel_distance: float
    """Squared distance of the distributions, in the mean 0 for equal ones however few the images; so it may be negative."""
    kernel_distance_error: float
    """Its standard error."""
    sliced_wasserstein: float
    """Root mean square, over 256 directions, of the 2-Wasserstein distance of the features along it, in their own unit; lower is
    better."""
    precision: float
    """Share of samples within a reference image's neighbourhood, 0 to 1."""
    recall: float
    """Share of reference images within a sample's neighbourhood, 0 to 1."""
    density: float
    """Reference neighbourhoods a sample lies in, over k; its mean is 1 for samples that are distributed like the reference."""
    coverage: float
    """Share of reference images with a sample in their neighbourhood, 0 to 1."""
    colour_drift: float
    """Length of the difference of the mean colours, in 1/255."""
    colour_drift_by_channel: tuple[float, ...]
    """Mean of the samples minus mean of the reference, in 1/255."""
    colour_spread: float | None
    """Standard deviation of the mean colour from image to image, over the reference's; None if the reference has none."""


def score(samples: Measurement, reference: Measurement, k: int = 5) -> Scores:
    """All scores of ``samples`` against ``reference``.

    The distances take every image. The radius of a neighbourhood depends on how many images there are, so the other four
    take equally many of both: the larger set is thinned evenly.

    Args:
        samples, reference: measurements with the same extractor, on one device.
        k: neighbours that set the size of a neighbourhood, >= 1.

    Raises:
        InputError: if a set has k images or fewer, features that are not finite, or features or colours of another dimension.
    """
    check_object("samples", samples, Measurement)
    check_object("reference", reference, Measurement)
    if samples.colours.shape[1] != reference.colours.shape[1]:
        raise InputError(f"{samples.colours.shape[1]} colour channels cannot be compared with {reference.colours.shape[1]}")
    fitted = [fit_gaussian(measured.features) for measured in (samples, reference)]
    equal = min(len(samples), len(reference))
    pictures, made = (measured[evenly_spaced(len(measured), equal)].features for measured in (reference, samples))
    precision, recall, density, coverage = precision_recall_density_coverage(pictures, made, k)
    drift = samples.colours.double().mean(dim=0) - reference.colours.double().mean(dim=0)
    kernel, kernel_error = kernel_distance(samples.features, reference.features)
    deviation, reference_deviation = (m.colours.double().var(dim=0).sum().sqrt().item() for m in (samples, reference))
    return Scores(
        samples=len(samples),
        reference=len(reference),
        neighbours=equal,
        frechet_distance=frechet_distance(*fitted),
        kernel_distance=kernel,
        kernel_distance_error=kernel_error,
        sliced_wasserstein=sliced_wasserstein(samples.features, reference.features),
        precision=precision,
        recall=recall,
        density=density,
        coverage=coverage,
        colour_drift=drift.norm().item(),
        colour_drift_by_channel=tuple(drift.tolist()),
        colour_spread=deviation / reference_deviation if reference_deviation > 0 else None,
    )


def fit_gaussian(features: torch.Tensor) -> Gaussian:
    """Mean and covariance (divided by N - 1) of features, floating-point [N, D].

    Of no more images than features the root is the centred features themselves, so that no covariance [D, D] is made.

    Raises:
        InputError: if there are fewer than two images, or the features have the wrong shape or are not finite.
    """
    check_features(features, 0)
    count, dimension = features.shape
    if count < 2:
        raise InputError(f"a covariance needs at least 2 images, got {count}")
    mean = features.mean(dim=0, dtype=torch.float64)
    if count <= dimension:
        return Gaussian(mean, (features - mean).div_((count - 1) ** 0.5))
    scatter = mean.new_zeros((dimension, dimension))
    for part in features.split(FIT_BATCH):
        centred = part.double() - mean
        scatter.addmm_(centred.T, centred)
    eigenvalues, directions = torch.linalg.eigh(scatter / (count - 1))
    return Gaussian(mean, eigenvalues.clamp_min(0.0).sqrt()[:, None] * directions.T)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}), at least 0 (Dowson and Landau 1982).

    With S = R^T R the trace of the root is the sum of the singular values of R_a R_b^T. It is not taken from the eigenvalues of
    S_a^{1/2} S_b S_a^{1/2}, their squares: where the covariances have less than full rank (fewer images than features), rounding
    leaves eigenvalues of 1e-16 there whose roots are 1e-8.

    Raises:
        InputError: if the Gaussians are of different dimensions.
    """
    _check_same_dimension(len(a.mean), len(b.mean))
    root_trace = torch.linalg.svdvals(a.root @ b.root.T).sum()
    distance = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2.0 * root_trace
    return max(distance.item(), 0.0)


def kernel_distance(samples: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two sets of features with the kernel k(x, y) = (x.y / D + 1)^3, estimated without bias,
    and its standard error: the KID of Binkowski et al. 2018.

    It is the mean over all subsets, of any one size, where others average over some random ones of 1,000 images: the same number,
    without their scatter. Let w be the mean kernel of an image with the others of its set, minus that with the other set. Then it
    is mean(w) over the samples + mean(w) over the reference. An image is at either place of a pair, so the variance is
    4 var(w) / N + 4 var(w) / M. For two sets of one distribution that is too much, by a factor of up to 2. Images that are in both
    sets make it negative.

    Args:
        samples, reference: features, floating-point [N, D] and [M, D], at least two of each; N and M may differ.

    Raises:
        InputError: if a set has fewer than two images, or the features are too large, not finite or of different dimensions.
    """
    for features in (samples, reference):
        check_features(features, 2)
    _check_same_dimension(samples.shape[1], reference.shape[1])
    sets = samples.double(), reference.double()
    value, variance = 0.0, 0.0
    for own, across, others in zip(sets, _kernel_sums(*sets), sets[::-1], strict=True):
        within = _kernel_sums(own, own)[0] - (own.square().mean(dim=1) + 1.0) ** 3
        witness = within / (len(own) - 1) - across / len(others)
        value += witness.mean().item()
        variance += 4.0 * witness.var().item() / len(own)
    if not math.isfinite(value):
        raise InputError("features are too large for the kernel distance; scale them")
    return value, variance**0.5


def sliced_wasserstein(samples: torch.Tensor, reference: torch.Tensor, directions: int = DIRECTIONS) -> float:
    """Sliced 2-Wasserstein distance of two sets of features: the root of the mean, over directions, of the integral of
    (F^-1(t) - G^-1(t))^2 over t, where F and G are the distributions of the projections.

    Args:
        samples, reference: features, floating-point [N, D] and [M, D]; N and M may differ.
        directions: how many; they are always the same.

    Raises:
        InputError: if a set is empty, or the features are not finite or of different dimensions.
    """
    for features in (samples, reference):
        check_features(features, 1)
    _check_same_dimension(samples.shape[1], reference.shape[1])
    generator = torch.Generator().manual_seed(0)
    axes = torch.randn((samples.shape[1], directions), generator=generator, dtype=torch.float64)
    axes = (axes / axes.norm(dim=0)).to(samples.device)
    counts = [torch.arange(1, len(features) + 1, dtype=torch.float64) for features in (samples, reference)]
    ends = [(count / len(count)).to(axes.device) for count in counts]
    # Both inverse distributions are constant between these places.
    places = torch.cat(ends).unique()
    widths = torch.diff(places, prepend=places.new_zeros(1))
    middles = places - 0.5 * widths
    total = 0.0
    samples, reference = samples.double(), reference.double()
    for part in axes.split(SLICES, dim=1):
        first, second = (
            (features @ part).sort(dim=0).values[torch.searchsorted(end, middles)]
            for features, end in zip((samples, reference), ends, strict=True)
        )
        total += ((first - second).square() * widths[:, None]).sum().item()
    return (total / directions) ** 0.5


def memorisation(samples: torch.Tensor, learned: torch.Tensor, held_out: torch.Tensor) -> float:
    """Share of samples that are nearer to a learned picture than to any other: 0.5 for a model that knows no picture by heart.

    Args:
        samples: features of the samples, floating-point [N, D].
        learned, held_out: features of pictures that the model learned, and of others from the same distribution. Equally many are
            taken of both: the larger set is thinned evenly. A sample that is equally near to both counts as half.

    Raises:
        InputError: if a set is empty, or the features are not finite or of different dimensions.
    """
    for features in (samples, learned, held_out):
        check_features(features, 1)
        _check_same_dimension(features.shape[1], samples.shape[1])
    count = min(len(learned), len(held_out))
    centre = held_out.double().mean(dim=0)
    nearest = []
    for pictures in (learned, held_out):
        thinned = pictures[evenly_spaced(len(pictures), count)].double() - centre
        tiles = _squared_distances(samples.double() - centre, thinned)
        nearest.append(torch.cat([distance.amin(dim=1) for _, distance in tiles]))
    here, there = nearest
    return ((here < there).double() + 0.5 * (here == there).double()).mean().item()


def precision_recall_density_coverage(
    reference: torch.Tensor, samples: torch.Tensor, k: int = 5
) -> tuple[float, float, float, float]:
    """Precision, recall and coverage, shares of 0 to 1, and density, at least 0: arguments as for :func:`neighbourhoods`."""
    balls, recalled, covered = neighbourhoods(reference, samples, k)
    precision, recall, coverage = (inside.double().mean().item() for inside in (balls > 0, recalled, covered))
    return precision, recall, balls.double().mean().item() / k, coverage


def neighbourhoods(reference: torch.Tensor, samples: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What precision, recall, density and coverage are means of.

    An image's neighbourhood is the closed ball that reaches to its k-th nearest other image of the same set. Distances that differ
    by rounding alone count as equal, so an image lies in every ball around a copy of itself, even one of radius zero.

    Args:
        reference, samples: features, floating-point [N, D] and [M, D].
        k: neighbours that set the size of a neighbourhood, >= 1.

    Returns:
        The number of neighbourhoods of the reference around each sample, int64 [M]. Whether each reference image is in a
        neighbourhood of a sample, and whether a sample is in its own, both bool [N].

    Raises:
        InputError: if a set has k images or fewer, features that are not finite, or features of another dimension.
    """
    check_integer("k", k, 1)
    for features in (reference, samples):
        check_features(features, k + 1)
    _check_same_dimension(samples.shape[1], reference.shape[1])
    # Moving both sets changes no distance, and near the origin |a|^2 + |b|^2 - 2 a.b loses the fewest digits.
    centre = reference.double().mean(dim=0)
    reference, samples = reference.double() - centre, samples.double() - centre
    largest = max(features.square().sum(dim=1).max().item() for features in (reference, samples))
    rounding = 8.0 * reference.shape[1] * torch.finfo(torch.float64).eps * largest

    reference_radius, sample_radius = (_neighbourhood(features, k) + rounding for features in (reference, samples))
    balls = torch.zeros(len(samples), dtype=torch.int64, device=samples.device)
    recalled, covered = [], []
    for rows, distance in _squared_distances(reference, samples):
        inside = distance <= reference_radius[rows, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((distance <= sample_radius).any(dim=1))
    return balls, torch.cat(recalled), torch.cat(covered)


def check_features(features: torch.Tensor, least: int) -> None:
    """Raise InputError unless ``features`` is floating-point [N, D], N at least ``least``, D at most 16,384, and finite."""
    if not isinstance(features, torch.Tensor):
        raise InputError(f"features must be a tensor [N, D], got {type(features).__name__}")
    if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
        raise InputError(f"features must be floating-point of shape [N, D], got {features.dtype} of shape {list(features.shape)}")
    if features.shape[1] > MOST_FEATURES:
        raise InputError(f"{features.shape[1]} features an image are too many, at most {MOST_FEATURES}: take other ones")
    if len(features) < least:
        raise InputError(f"{amount(len(features), 'image')} given, at least {least} are needed")
    broken = len(features) - int(features.isfinite().all(dim=1).sum())
    if broken:
        raise InputError(f"the features of {broken} of {len(features)} images are not finite (NaN or infinite)")


def _check_same_dimension(have: int, want: int) -> None:
    if have != want:
        raise InputError(f"features of dimension {have} cannot be compared with features of dimension {want}")


def _neighbourhood(features: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance of each image [N] to its k-th nearest other one."""
    # The nearest of all is the image itself, or a copy of it at the same distance.
    tiles = _squared_distances(features, features)
    return torch.cat([distance.topk(k + 1, dim=1, largest=False).values[:, -1] for _, distance in tiles])


def _kernel_sums(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of (a_i.b_j / D + 1)^3 over j, float64 [len(a)], and over i, float64 [len(b)]."""
    one, rows, columns = a.new_ones(1), [], a.new_zeros(len(b))
    for part in a.split(max(1, TILE // len(b))):
        kernel = torch.addmm(one, part, b.T, alpha=1.0 / a.shape[1]) ** 3
        rows.append(kernel.sum(dim=1))
        columns += kernel.sum(dim=0)
    return torch.cat(rows), columns


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """|a_i - b_j|^2 in tiles of some rows at a time: the rows, and float64 [rows, len(b)]."""
    a_squared, b_squared = a.square().sum(dim=1), b.square().sum(dim=1)
    step = max(1, TILE // len(b))
    for start in range(0, len(a), step):
        rows = slice(start, start + step)
        yield rows, torch.addmm(b_squared, a[rows], b.T, alpha=-2.0).add_(a_squared[rows, None])
