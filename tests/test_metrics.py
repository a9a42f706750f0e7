"""Scores against scipy, closed forms, and neighbours counted one by one."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import scipy.linalg
import torch

from diffusion.evaluation import metrics
from diffusion.evaluation.metrics import (
    Gaussian,
    Measurement,
    fit_gaussian,
    frechet_distance,
    kernel_distance,
    memorisation,
    precision_recall_density_coverage,
    score,
    sliced_wasserstein,
)
from lbm_warp.checks import InputError


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
    scale, axes = np.linalg.eigh(covariance)
    return Gaussian(torch.as_tensor(mean, dtype=torch.float64), torch.from_numpy(scale.clip(0)[:, None] ** 0.5 * axes.T))


def random_features(count: int, dimension: int, seed: int) -> np.ndarray:
    """Correlated features with a mean, float64."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(dimension, dimension))
    return generator.normal(size=(count, dimension)) @ mixing + generator.normal(size=dimension)


def rotation(dimension: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(9).normal(size=(dimension, dimension)))[0]


# Statistics


@pytest.mark.parametrize("count", [5, 50])
def test_statistics_of_fewer_and_of_more_images_than_features(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Far from the origin, where a sum of squares minus a square of sums loses ten digits; batch by batch."""
    monkeypatch.setattr(metrics, "FIT_BATCH", 20)
    features = random_features(count, 7, seed=0) + 1e5
    fitted = fit_gaussian(torch.from_numpy(features))
    assert fitted.root.shape == (min(count, 7), 7)
    np.testing.assert_allclose(fitted.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(fitted.covariance, np.cov(features.T), rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_statistics_are_float64_whatever_the_features_are(dtype: torch.dtype) -> None:
    features = torch.from_numpy(random_features(50, 7, seed=0)).to(dtype)
    fitted = fit_gaussian(features)
    assert fitted.mean.dtype == fitted.covariance.dtype == torch.float64
    np.testing.assert_allclose(fitted.covariance, np.cov(features.double().numpy().T), rtol=1e-12, atol=1e-12)


# The Frechet distance


@pytest.mark.parametrize("dimension", [2, 8, 40])
def test_frechet_distance_equals_scipy(dimension: int, device: torch.device) -> None:
    a, b = (random_features(200, dimension, seed) for seed in (1, 2))
    s_a, s_b = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(s_a @ s_b)
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + np.trace(s_a + s_b - 2 * root.real)
    found = frechet_distance(*(fit_gaussian(torch.from_numpy(x).to(device)) for x in (a, b)))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_fewer_images_than_features() -> None:
    """Covariances X^T X / (n - 1) of rank n - 1: the trace of the root is the nuclear norm of X_a X_b^T / (n - 1)."""
    a, b = (random_features(12, 60, seed) for seed in (1, 2))
    x_a, x_b = a - a.mean(axis=0), b - b.mean(axis=0)
    traces = (np.sum(x_a**2) + np.sum(x_b**2) - 2 * np.linalg.svd(x_a @ x_b.T, compute_uv=False).sum()) / 11
    expected = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + traces
    fitted_a, fitted_b = (fit_gaussian(torch.from_numpy(x)) for x in (a, b))
    assert frechet_distance(fitted_a, fitted_b) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(fitted_a, fitted_a) < 1e-10 * fitted_a.covariance.trace()


def test_frechet_distance_in_closed_form() -> None:
    # One dimension: (m_a - m_b)^2 + (s_a - s_b)^2.
    assert frechet_distance(gaussian([1.0], [[4.0]]), gaussian([-2.0], [[25.0]])) == pytest.approx(9 + 9)
    # Diagonal covariances: the sum of that over the dimensions.
    a, b = gaussian([0, 1, 2], np.diag([1, 4, 9])), gaussian([3, 1, 0], np.diag([16, 1, 0]))
    assert frechet_distance(a, b) == pytest.approx((9 + 9) + (0 + 1) + (4 + 9))
    # Equal covariances: the distance of the means, squared. Four times the covariance: the trace.
    covariance = np.cov(random_features(30, 5, seed=3).T)
    a = gaussian(np.zeros(5), covariance)
    assert frechet_distance(a, gaussian(np.arange(5), covariance)) == pytest.approx(30)
    assert frechet_distance(a, gaussian(np.zeros(5), 4 * covariance)) == pytest.approx(np.trace(covariance))
    # A point has no covariance at all.
    point = gaussian(np.zeros(5), np.zeros((5, 5)))
    assert frechet_distance(a, point) == pytest.approx(np.trace(covariance)) and frechet_distance(point, point) == 0.0


def test_frechet_distance_is_symmetric_and_does_not_see_a_rotation() -> None:
    a, b = (torch.from_numpy(random_features(100, 10, seed)) for seed in (1, 2))
    turn = torch.from_numpy(rotation(10))
    fitted_a, fitted_b, turned_a, turned_b = (fit_gaussian(x) for x in (a, b, a @ turn + 5, b @ turn + 5))
    distance = frechet_distance(fitted_a, fitted_b)
    assert frechet_distance(fitted_b, fitted_a) == pytest.approx(distance, rel=1e-12)
    assert frechet_distance(turned_a, turned_b) == pytest.approx(distance, rel=1e-10)
    assert frechet_distance(fitted_a, fitted_a) < 1e-10 * distance


# The kernel distance


def kernel(x: np.ndarray, y: np.ndarray) -> float:
    return float((x @ y / len(x) + 1) ** 3)


def paired(a: np.ndarray, b: np.ndarray) -> float:
    """Binkowski et al. 2018, equation 4, one pair of images at a time."""

    def within(points: np.ndarray) -> float:
        return float(np.mean([kernel(x, y) for i, x in enumerate(points) for j, y in enumerate(points) if i != j]))

    return within(a) + within(b) - 2 * float(np.mean([kernel(x, y) for x in a for y in b]))


@pytest.mark.parametrize("tile", [2**24, 20, 1])
def test_the_kernel_distance_is_that_of_all_pairs(monkeypatch: pytest.MonkeyPatch, tile: int, device: torch.device) -> None:
    """In whatever tiles."""
    monkeypatch.setattr(metrics, "TILE", tile)
    a, b = random_features(9, 4, seed=1), random_features(7, 4, seed=2)
    assert kernel_distance(*(torch.from_numpy(x).to(device) for x in (a, b)))[0] == pytest.approx(paired(a, b), rel=1e-12)


def test_the_kernel_distance_is_the_mean_over_all_subsets() -> None:
    """Others take a hundred random ones, of 1,000 images: this is what they approach."""
    a, b = random_features(5, 4, seed=1), random_features(6, 4, seed=2)
    subsets = [paired(a[list(i)], b[list(j)]) for i in combinations(range(5), 3) for j in combinations(range(6), 3)]
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b))[0] == pytest.approx(np.mean(subsets), rel=1e-12)


def moments(mean: np.ndarray, covariance: np.ndarray) -> list[np.ndarray]:
    """E x, E x x and E x x x (outer products) of a Gaussian, by Isserlis' theorem."""
    second = covariance + np.multiply.outer(mean, mean)
    mixed = np.multiply.outer(mean, covariance)
    third = np.multiply.outer(mean, np.multiply.outer(mean, mean)) + mixed + mixed.transpose(1, 0, 2) + mixed.transpose(1, 2, 0)
    return [mean, second, third]


@pytest.mark.parametrize(("count", "other", "equal"), [(2, 3, False), (50, 30, False), (50, 30, True)])
def test_the_kernel_distance_of_gaussians_has_no_bias(count: int, other: int, equal: bool) -> None:
    """(x.y / D + 1)^3 is 1 + 3 x.y / D + 3 (x.y)^2 / D^2 + (x.y)^3 / D^3, so the distance is the squared differences of the first
    three moments, weighted by 3 / D, 3 / D^2 and 1 / D^3. The mean of many estimates is within four standard errors of it.
    Their variance is what they say, or half of that where both distributions are one."""
    dimension, repeats = 3, 1000
    generator = np.random.default_rng(0)
    factor = 0.6 * generator.normal(size=(dimension, dimension))
    mean, covariance = (np.zeros(dimension), np.eye(dimension)) if equal else (np.array([0.8, -0.4, 0.0]), factor @ factor.T)
    factor = np.eye(dimension) if equal else factor
    pairs = zip(moments(mean, covariance), moments(np.zeros(dimension), np.eye(dimension)), (3 / 3, 3 / 9, 1 / 27), strict=True)
    expected = sum(weight * np.sum((one - two) ** 2) for one, two, weight in pairs)
    found = np.array(
        [
            kernel_distance(
                torch.from_numpy(generator.normal(size=(count, dimension)) @ factor.T + mean),
                torch.from_numpy(generator.normal(size=(other, dimension))),
            )
            for _ in range(repeats)
        ]
    )
    assert found[:, 0].mean() == pytest.approx(expected, abs=4 * found[:, 0].std() / repeats**0.5)
    if count > 2:
        said = np.mean(found[:, 1] ** 2) / found[:, 0].var()
        assert 1.6 < said < 2.4 if equal else 0.9 < said < 1.5


def test_two_halves_of_one_set_are_at_no_distance() -> None:
    """Within three standard errors, while the Frechet distance, which is biased, is far from zero."""
    features = torch.from_numpy(random_features(120, 40, seed=1))
    distance, error = kernel_distance(features[::2], features[1::2])
    assert abs(distance) < 3 * error
    one, other, both = (fit_gaussian(of) for of in (features[::2], features[1::2], features))
    assert frechet_distance(one, other) > 0.1 * both.covariance.trace()


# Precision, recall, density, coverage


def counted(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """The definitions of Kynkaanniemi et al. and Naeem et al. with closed balls, one pair of images at a time."""

    def distance(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.sqrt(np.sum((x - y) ** 2)))

    def radii(points: np.ndarray) -> list[float]:
        others = [[distance(x, y) for j, y in enumerate(points) if j != i] for i, x in enumerate(points)]
        return [sorted(row)[k - 1] for row in others]

    reference_radii, sample_radii = radii(reference), radii(samples)
    inside = [[distance(x, y) <= r for x, r in zip(reference, reference_radii, strict=True)] for y in samples]
    precision = sum(any(row) for row in inside) / len(samples)
    recall = sum(any(distance(x, y) <= r for y, r in zip(samples, sample_radii, strict=True)) for x in reference) / len(reference)
    density = sum(sum(row) for row in inside) / (k * len(samples))
    coverage = sum(any(row[i] for row in inside) for i in range(len(reference))) / len(reference)
    return precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 47)])
def test_four_scores_of_scattered_points(k: int, n: int, m: int, device: torch.device) -> None:
    generator = np.random.default_rng(k)
    reference, samples = generator.normal(size=(n, 4)), generator.normal(size=(m, 4)) + 0.9
    found = precision_recall_density_coverage(*(torch.from_numpy(x).to(device) for x in (reference, samples)), k)
    assert found == pytest.approx(counted(reference, samples, k), abs=1e-12)
    assert 0 < found[0] < 1 and 0 < found[3] < 1


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_four_scores_of_points_with_ties_and_copies(seed: int, k: int, shift: float) -> None:
    """Points of a small lattice: most distances occur many times, many points twice, and some balls have radius zero.

    Also far from the origin, where the squares of the lattice are small beside those of the points.
    """
    generator = np.random.default_rng(seed)
    reference, samples = (generator.integers(0, 3, size=(count, 3)).astype(float) for count in (30, 25))
    assert len(np.unique(reference, axis=0)) < len(reference)
    found = precision_recall_density_coverage(torch.from_numpy(reference + shift), torch.from_numpy(samples + shift), k)
    assert found == pytest.approx(counted(reference, samples, k), abs=1e-12)


def test_four_scores_counted_by_hand() -> None:
    """Reference 0, 1, 3, 10 on a line: to the nearest other it is 1, 1, 2, 7. Samples 2, 5, 20: it is 3, 3, 15.

    Sample 2 is in the balls of 1 and 3, sample 5 in those of 3 and 10, sample 20 in none: two of three samples, four balls in all.
    The balls of 1, 3 and 10 hold a sample. 0, 1 and 3 are in the ball of 2, from -1 to 5, and 10 is in that of 20, from 5 to 35.
    """
    reference, samples = (torch.tensor(x, dtype=torch.float32)[:, None] for x in ([0, 1, 3, 10], [2, 5, 20]))
    found = precision_recall_density_coverage(reference, samples, k=1)
    assert found == pytest.approx((2 / 3, 1.0, 4 / 3, 3 / 4))


@pytest.mark.parametrize("copies", [1, 4])
def test_a_set_against_itself(copies: int) -> None:
    features = torch.from_numpy(np.tile(random_features(30, 6, seed=4), (copies, 1)) + 1e3).float()
    precision, recall, density, coverage = precision_recall_density_coverage(features, features.flip(0), k=3)
    assert (precision, recall, coverage) == (1.0, 1.0, 1.0) and density >= 1.0
    assert frechet_distance(fit_gaussian(features), fit_gaussian(features.flip(0))) < 1e-9


def test_four_scores_do_not_see_rotation_translation_scale_or_order() -> None:
    reference, samples = (torch.from_numpy(random_features(60, 6, seed)) for seed in (5, 6))
    turn = 0.01 * torch.from_numpy(rotation(6))
    expected = precision_recall_density_coverage(reference, samples, 4)
    moved = precision_recall_density_coverage((reference @ turn + 3).flip(0), (samples @ turn + 3).flip(0), 4)
    assert moved == pytest.approx(expected, abs=1e-12)


def test_four_scores_of_sets_that_do_not_meet() -> None:
    generator = np.random.default_rng(0)
    reference, samples = (torch.from_numpy(generator.normal(size=(20, 3)) + shift) for shift in (0, 100))
    assert precision_recall_density_coverage(reference, samples, 5) == (0.0, 0.0, 0.0, 0.0)


def test_four_scores_do_not_depend_on_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, samples = (torch.from_numpy(random_features(50, 6, seed)) for seed in (5, 6))
    expected = precision_recall_density_coverage(reference, samples, 5)
    monkeypatch.setattr(metrics, "TILE", 7 * 50)
    assert precision_recall_density_coverage(reference, samples, 5) == expected
    monkeypatch.setattr(metrics, "TILE", 1)
    assert precision_recall_density_coverage(reference, samples, 5) == expected


def test_two_sets_of_one_distribution_have_the_expected_density_and_coverage() -> None:
    """Naeem et al. 2020: E[density] = 1 and E[coverage] = 1 - prod_i (N - i) / (M + N - i), i = 1..k, in any space.

    Over 8,000 nearly independent images five standard errors of the coverage are below 0.01.
    """
    n, m, k = 2000, 1000, 5
    generator = torch.Generator().manual_seed(0)
    found = torch.tensor(
        [
            precision_recall_density_coverage(torch.randn(n, 4, generator=generator), torch.randn(m, 4, generator=generator), k)
            for _ in range(4)
        ]
    ).mean(dim=0)
    expected = 1 - np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    assert found[3].item() == pytest.approx(expected, abs=0.01)
    assert found[2].item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_the_example_of_the_authors() -> None:
    """Two sets of 10,000 points of N(0, I) in 1,000 dimensions, k = 5, from the README of Naeem et al.'s own `prdc` package.

    Their numbers come without a seed; a ball of few points that is large by chance holds many, so they vary by some hundredths.
    Precision and density are means over the samples, so 2,000 of these are enough. Recall is precision with the sets exchanged, and
    coverage is known in closed form.
    """
    generator = torch.Generator().manual_seed(0)
    sets = (torch.randn(count, 1000, generator=generator) for count in (10_000, 2_000))
    precision, _, density, _ = precision_recall_density_coverage(*sets, k=5)
    assert precision == pytest.approx(0.4772, abs=0.04) and density == pytest.approx(1.0555, abs=0.08)


# All together


def measurement(count: int, dimension: int = 4, seed: int = 0) -> Measurement:
    generator = torch.Generator().manual_seed(seed)
    return Measurement(torch.randn(count, dimension, generator=generator), 255 * torch.rand(count, 3, generator=generator))


def test_scores_thin_the_larger_set_for_neighbours_alone() -> None:
    samples, reference = measurement(20, seed=1), measurement(61, seed=2)
    scores = score(samples, reference, k=3)
    assert (scores.samples, scores.reference, scores.neighbours) == (20, 61, 20)
    fitted = (fit_gaussian(x.features) for x in (samples, reference))
    assert scores.frechet_distance == pytest.approx(frechet_distance(*fitted), rel=1e-12)
    expected = counted(reference.features.double().numpy()[np.linspace(0, 60, 20).round().astype(int)], samples.features.numpy(), 3)
    assert (scores.precision, scores.recall, scores.density, scores.coverage) == pytest.approx(expected, abs=1e-12)


def test_colours_by_hand() -> None:
    features = torch.eye(2)
    reference = Measurement(features, torch.tensor([[100.0, 0.0, 50.0], [110.0, 0.0, 50.0]]))
    samples = Measurement(features, torch.tensor([[103.0, 0.0, 46.0], [113.0, 0.0, 46.0]]))
    scores = score(samples, reference, k=1)
    assert scores.colour_drift == pytest.approx(5.0) and scores.colour_drift_by_channel == pytest.approx((3.0, 0.0, -4.0))
    assert scores.colour_spread == pytest.approx(1.0)
    wider = Measurement(features, torch.tensor([[105.0, -15.0, 50.0], [105.0, 15.0, 50.0]]))
    assert score(wider, reference, k=1).colour_spread == pytest.approx(3.0)
    flat = Measurement(features, torch.full((2, 3), 7.0))
    assert score(samples, flat, k=1).colour_spread is None


def test_measurements_that_do_not_go_together_are_refused() -> None:
    features, colours = torch.rand(9, 4), torch.rand(9, 3)
    with pytest.raises(InputError, match=r"colours must be of shape \[N, C\] for 9 images, got \[7, 3\]"):
        Measurement(features, colours[:7])
    with pytest.raises(InputError, match="1 colour channels cannot be compared with 3"):
        score(Measurement(features, colours[:, :1]), Measurement(features, colours))
    with pytest.raises(InputError, match=r"samples must be a .*Measurement, got Tensor"):
        score(features, features)


BAD = float("nan")


@pytest.mark.parametrize(
    ("reference", "samples", "k", "message"),
    [
        (torch.zeros(9), torch.zeros(9, 2), 5, r"of shape \[N, D\], got torch.float32 of shape \[9\]"),
        (torch.zeros(9, 2), torch.zeros(9, 2, dtype=torch.int64), 5, "floating-point"),
        (torch.zeros(9, 0), torch.zeros(9, 0), 5, "shape"),
        (torch.zeros(9, 20_000), torch.zeros(9, 20_000), 5, "20000 features an image are too many, at most 16384"),
        (torch.zeros(5, 2), torch.zeros(9, 2), 5, "5 images given, at least 6 are needed"),
        (torch.zeros(9, 2), torch.zeros(5, 2), 5, "5 images given"),
        (torch.zeros(9, 2), torch.zeros(9, 3), 5, "dimension 3 cannot be compared with features of dimension 2"),
        (torch.tensor([[0.0], [BAD], [1.0]]), torch.zeros(3, 1), 1, "1 of 3 images are not finite"),
        (torch.zeros(3, 1), torch.tensor([[0.0], [BAD], [float("inf")]]), 1, "2 of 3 images are not finite"),
        (torch.zeros(9, 2), torch.zeros(9, 2), 0, "k must be at least 1, got 0"),
    ],
)
def test_bad_features_are_refused(reference: torch.Tensor, samples: torch.Tensor, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        precision_recall_density_coverage(reference, samples, k)


def test_bad_statistics_are_refused() -> None:
    good, other = gaussian([0, 0], np.eye(2)), gaussian([0], [[1]])
    with pytest.raises(InputError, match="dimension 2 cannot be compared with features of dimension 1"):
        frechet_distance(good, other)
    with pytest.raises(InputError, match="at least 2 images, got 1"):
        fit_gaussian(torch.zeros(1, 3))
    with pytest.raises(InputError, match="1 image given, at least 2 are needed"):
        kernel_distance(torch.zeros(1, 3), torch.zeros(5, 3))
    with pytest.raises(InputError, match="features are too large for the kernel distance"):
        kernel_distance(1e60 * torch.rand(5, 3, dtype=torch.float64), torch.zeros(5, 3))
    with pytest.raises(InputError, match=r"features must be a tensor \[N, D\], got ndarray"):
        kernel_distance(np.zeros((5, 3)), torch.zeros(5, 3))
    with pytest.raises(InputError, match="dimension 3 cannot be compared with features of dimension 4"):
        kernel_distance(torch.zeros(5, 3), torch.zeros(5, 4))
    with pytest.raises(InputError, match="1 of 5 images are not finite"):
        fit_gaussian(torch.zeros(5, 3).index_fill_(0, torch.tensor([2]), BAD))


# Sliced Wasserstein distance and memorisation


@pytest.mark.parametrize(("count", "other"), [(6, 6), (6, 4), (35, 50)])
def test_along_one_axis_it_is_the_distance_of_copies_in_order(count: int, other: int) -> None:
    """With as many copies of every number as make the sets equally large, the best pairs are those in order."""
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=count), 2.0 * generator.normal(size=other) + 1.0
    whole = np.lcm(count, other)
    pairs = np.sort(np.repeat(a, whole // count)) - np.sort(np.repeat(b, whole // other))
    found = sliced_wasserstein(torch.from_numpy(a)[:, None], torch.from_numpy(b)[:, None])
    assert found == pytest.approx(np.sqrt(np.mean(pairs**2)), rel=1e-12)


def test_the_sliced_distance_of_a_shift_is_its_length_over_the_root_of_the_dimension() -> None:
    """(c . a)^2 has the mean |c|^2 / D over directions a; 256 of them give it within 3 sqrt(2 / 256)."""
    features = torch.from_numpy(random_features(300, 12, seed=1))
    shift = torch.from_numpy(np.random.default_rng(2).normal(size=12))
    found = sliced_wasserstein(features + shift, features)
    assert found**2 == pytest.approx((shift.square().sum() / 12).item(), rel=3 * (2 / 256) ** 0.5)
    assert sliced_wasserstein(features, features.flip(0)) < 1e-12 < found
    assert sliced_wasserstein(features, features + shift) == pytest.approx(found)


def test_memorisation_is_one_for_copies_and_a_half_for_new_pictures() -> None:
    """Five standard errors of a share of 2,000."""
    learned, held_out, new = (torch.from_numpy(random_features(2000, 3, seed=0)[i::3]) for i in range(3))
    assert memorisation(learned[:100] + 1e-6, learned, held_out) == 1.0
    assert memorisation(held_out[:100], learned, held_out) == 0.0
    assert memorisation(new, learned, held_out) == pytest.approx(0.5, abs=5 * 0.5 / len(new) ** 0.5)
    # More pictures of one kind than of the other do not count.
    assert memorisation(new, learned, held_out[:200]) == pytest.approx(0.5, abs=5 * 0.5 / len(new) ** 0.5)
    assert memorisation(new, learned, learned) == 0.5
    with pytest.raises(InputError, match="dimension 2 cannot be compared with features of dimension 3"):
        memorisation(new, learned, held_out[:, :2])
