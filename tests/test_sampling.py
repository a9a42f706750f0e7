"""Samplers against the formulas of their papers, with networks whose answer is known; the prior that they start from."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from torch.utils._python_dispatch import TorchDispatchMode

from diffusion.denoisers import CleanImage, Reverse
from diffusion.density import Uniform
from diffusion.forward import process as forward_process
from diffusion.forward.operators import Operator
from diffusion.forward.process import Level, UnitNoise
from diffusion.forward.scales import LogSNR
from diffusion.methods import METHODS, Method, named_method
from diffusion.network import NetworkConfig, UNet
from diffusion.rng import seeds
from diffusion.samplers import Resample, Residual
from diffusion.samplers.base import Callback, energy, spherical
from diffusion.sampling.pipeline import default_batch
from diffusion.sampling.prior import Prior, _resized
from diffusion.size import Size
from lbm_warp.checks import InputError
from tests.runs import SIZE, stripes, tiny_config

WIDE = Size(8, 12)
CPU = torch.device("cpu")
STEPS = [name for name, method in METHODS.items() if method.denoiser.gives_step]
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Known(Reverse):
    """A network that gives the clean image itself, whatever a denoiser predicts."""

    def clean(self, u: torch.Tensor, level: Level) -> torch.Tensor:
        return self.network(u, torch.as_tensor(level))


def walk(
    method: Method,
    network: Network,
    u: torch.Tensor,
    seed: torch.Tensor,
    callback: Callback | None = None,
    noise: UnitNoise | None = None,
    kind: type[Reverse] = Reverse,
    **options: int | None,
) -> torch.Tensor:
    """The method's sampler, from images without their noise, with the noise of the seeds."""
    reverse = kind(method.forward, method.denoiser, network, seed)
    return method.sampler(reverse, u, noise or method.forward.seeded_noise(seed, u), callback, **options)


def nothing(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """A network that predicts no change."""
    return torch.zeros_like(u)


@pytest.mark.parametrize("name", STEPS)
def test_with_a_network_that_knows_the_truth_sampling_walks_back_to_the_picture(name: str) -> None:
    """The oracle answers u_{k-1} - u_k of the true trajectory; without noise the walk ends at u_0, to rounding."""
    method = named_method(name).changed(levels=6, sampling_noise=0.0)
    u0 = torch.from_numpy(np.stack(stripes(3, WIDE)))
    levels = dict(method.operator.trajectory(u0, seed=[1, 2, 3]))

    def oracle(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return levels[int(level[0]) - 1] - levels[int(level[0])]

    visited: list[int] = []
    u = walk(method, oracle, levels[6], torch.arange(3), lambda level, _: visited.append(level))
    torch.testing.assert_close(u, u0, rtol=0, atol=1e-5)
    assert visited == list(range(5, -1, -1))


def resampled(name: str) -> tuple[Method, torch.Tensor, torch.Tensor]:
    """A method of 8 levels that adds no fresh noise, pictures, and their seeds."""
    method = named_method(name).changed(levels=8, eta=0.0)
    return method, torch.from_numpy(np.stack(stripes(3, WIDE))), torch.tensor([1, 2, 3])


@pytest.mark.parametrize("name", ["soft", "cold", "ddpm", "fluid"])
@pytest.mark.parametrize("steps", [None, 4])
def test_with_the_truth_resampling_goes_down_the_levels_of_one_trajectory(name: str, steps: int | None) -> None:
    """u_j = M_j + sigma_j eps with the noise of the start at every level visited, and u_0 at the end."""
    method, u0, seed = resampled(name)
    process = method.forward
    noise = process.seeded_noise(seed, u0)(process.levels)
    visited: list[int] = []

    def check(level: int, u: torch.Tensor) -> None:
        visited.append(level)
        expected = process.mean(u0, level, seed) + float(process.noise[level]) * noise
        torch.testing.assert_close(u, expected, rtol=0, atol=1e-5)

    start = process.mean(u0, process.levels, seed)
    u = walk(method, lambda u, level: u0, start, seed, check, kind=Known, steps=steps)
    torch.testing.assert_close(u, u0, rtol=0, atol=1e-5)
    assert visited == method.sampler.visited(process, steps=steps)[1:]


@pytest.mark.parametrize("name", ["blurring", "soft", "ddpm"])
def test_fresh_noise_keeps_the_distribution_of_every_level(name: str) -> None:
    """Mean M_j and variance sigma_j^2, of noise that is no longer the start's; five standard errors of 65,536 numbers."""
    method, seed = named_method(name).changed(levels=6), torch.arange(16)
    method = method if name == "blurring" else method.changed(variance="fixedsmall")
    process = method.forward
    u0 = torch.full((16, 1, 64, 64), 0.3)
    first = process.seeded_noise(seed, u0)(process.levels)

    def check(level: int, u: torch.Tensor) -> None:
        sigma = float(process.noise[level])
        rest = u - process.mean(u0, level, seed)
        assert abs(rest.mean().item()) <= 5 * sigma / rest.numel() ** 0.5 + 1e-6
        assert rest.std().item() == pytest.approx(sigma, rel=5 / (2 * rest.numel()) ** 0.5, abs=1e-6)
        if name != "soft" and 0 < level < 4:
            assert abs(torch.corrcoef(torch.stack([rest.flatten(), first.flatten()]))[0, 1]) < 0.9

    start = process.mean(u0, process.levels, seed)
    u = walk(method, lambda u, level: u0, start, seed, check, kind=Known)
    torch.testing.assert_close(u, u0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("eta", "variance"), [(0.0, "fixedsmall"), (1.0, "fixedsmall"), (1.0, "fixedlarge")])
def test_a_step_of_ddpm_and_of_ddim_is_that_of_their_papers(eta: float, variance: str) -> None:
    """Ho et al. 2020, equations 7 and 11 and section 3.2, and Song et al. 2021, equation 12, on x = 2 u - 1, with any network."""
    method = named_method("ddpm-1000").changed(eta=eta, variance=variance, clip_clean=False)
    u = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    beta = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - beta)

    steps: dict[int, torch.Tensor] = {}

    def noise(level: int) -> torch.Tensor:
        return torch.full_like(u, 0.1) if level < 300 else torch.zeros_like(u)

    walk(method, lambda u, level: torch.sin(5 * u), u, torch.arange(2), lambda k, v: steps.setdefault(k, v), noise, start=300)
    x, eps = 2 * u.double() - 1, torch.sin(5 * u).double()
    k = 300 - 1
    if eta:
        mean = (x - beta[k] / np.sqrt(1 - abar[k]) * eps) / np.sqrt(1 - beta[k])
        expected = mean + np.sqrt((1 - abar[k - 1]) / (1 - abar[k]) * beta[k] if variance == "fixedsmall" else beta[k]) * 0.1
    else:
        clean = (x - np.sqrt(1 - abar[k]) * eps) / np.sqrt(abar[k])
        expected = np.sqrt(abar[k - 1]) * clean + np.sqrt(1 - abar[k - 1]) * eps
    torch.testing.assert_close(2 * steps[299].double() - 1, expected, rtol=0, atol=2e-5)


def test_a_step_of_soft_diffusion_is_the_momentum_sampler() -> None:
    """Daras et al. 2023, section 3.3: the change of the predicted image's blur, and a step of the reverse diffusion of the noise,
    x_j = x_k + C_j x - C_k x - (1 - s_j^2 / s_k^2) (x_k - C_k x) + sqrt(s_k^2 - s_j^2) eta, with a network that is wrong."""
    method, u0, seed = named_method("soft"), torch.from_numpy(np.stack(stripes(3, WIDE))), torch.tensor([1, 2, 3])
    process = method.forward
    steps: dict[int, torch.Tensor] = {}
    start, k = torch.rand_like(u0), 10  # the noise still grows: 10 < 60 / 4

    def noise(level: int) -> torch.Tensor:
        return 0.1 * torch.ones_like(u0) if level < k else torch.zeros_like(u0)

    walk(method, lambda u, level: u0.flip(3), start, seed, lambda j, u: steps.setdefault(j, u), noise, Known, start=k)
    here, there = process.noise[k], process.noise[k - 1]
    assert there < here
    first, second = (process.operator(u0.flip(3), level, 0) for level in (k, k - 1))
    expected = start + second - first - (1 - (there / here) ** 2) * (start - first) + (here**2 - there**2) ** 0.5 * 0.1
    torch.testing.assert_close(steps[k - 1], expected, rtol=0, atol=1e-5)


def test_a_step_of_blurring_diffusion_is_the_posterior_of_its_paper() -> None:
    """Hoogeboom and Salimans 2023, appendix A, on z = 2 u - 1 in cosine modes, with any network for the noise."""
    method, k = named_method("blurring").changed(levels=50), 30
    u = torch.rand((2, 1, *WIDE), generator=torch.Generator().manual_seed(0))
    steps: dict[int, torch.Tensor] = {}

    def noise(level: int) -> torch.Tensor:
        return torch.full_like(u, 0.1) if level < k else torch.zeros_like(u)

    walk(method, lambda u, level: torch.sin(5 * u), u, torch.arange(2), lambda j, v: steps.setdefault(j, v), noise, start=k)

    kappa = sum(np.meshgrid(*[(np.pi * np.arange(side) / side) ** 2 for side in WIDE], indexing="ij"))

    def alpha_sigma(level: int) -> tuple[np.ndarray, float]:
        t = level / 50
        angle = np.arctan(np.exp(-5.0)) + t * (np.arctan(np.exp(5.0)) - np.arctan(np.exp(-5.0)))
        dissipation = 0.5 * (0.16 * 8 * np.sin(0.5 * np.pi * t) ** 2) ** 2
        return np.cos(angle) * (0.999 * np.exp(-kappa * dissipation) + 0.001), np.sin(angle)

    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(k), alpha_sigma(k - 1)
    alpha_ts = alpha_t / alpha_s
    variance_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    variance = 1 / (1 / sigma_s**2 + 1 / (sigma_t**2 / alpha_ts**2 - sigma_s**2))
    z, eps = (dctn(x.double().numpy(), axes=(2, 3), norm="ortho") for x in (2 * u - 1, torch.sin(5 * u)))
    mean = alpha_ts * variance / variance_ts * z + variance / (alpha_ts * sigma_s**2) * (z - sigma_t * eps)
    # The noise of the sampler is white in the modes.
    expected = idctn(mean + np.sqrt(variance) * 0.1, axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(2 * steps[k - 1].double().numpy() - 1, expected, rtol=0, atol=1e-4)


def test_cold_sampling_is_algorithm_two_of_its_paper() -> None:
    """x_{s-1} = x_s - D(x0, s) + D(x0, s - 1), with a network that is wrong."""
    method, u0, seed = resampled("cold")
    process = method.forward
    x = start = process.mean(u0, process.levels, seed)
    wrong = 0.3 * u0.flip(3)
    u = walk(method, lambda u, level: wrong + 0.5 * u, start, seed, kind=Known)
    for s in range(process.levels, 0, -1):
        clean = 0.5 * x + wrong
        x = x - process.mean(clean, s, seed) + process.mean(clean, s - 1, seed)
    torch.testing.assert_close(u, x, rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Drift(Operator):
    """One of three flows: none, or a shift to the left or to the right that grows with the level; periodic."""

    levels: int = 1000
    far: float = 2.0
    linear = random = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        shift = (seed % 3 - 1) * level * (self.far / self.levels)
        wave = 2.0j * torch.pi * torch.fft.rfftfreq(u0.shape[3], dtype=torch.float64)
        return torch.fft.irfft(torch.fft.rfft(u0.double()) * torch.exp(-wave * shift[:, None, None, None]), u0.shape[3]).to(u0)


class Gaussians:
    """Gaussian pictures 2 x 8, bright in the third and fourth column, under these flows: all about them is known."""

    shape, count = (1, 2, 8), 16

    def __init__(self, **sampler: float) -> None:
        sampler = {"steps": 30, "spacing": "edm", "second_order_above": 0.0} | sampler
        self.method = Method(Drift(), LogSNR(), CleanImage(), Uniform(), Resample(**sampler))
        self.forward = self.method.forward
        column = torch.arange(8, dtype=torch.float64)
        bright = 0.02 + 0.3 * torch.exp(-0.5 * (column - 3.0) ** 2)
        near = torch.exp(-0.5 * ((column[:, None] - column) / 1.5) ** 2) * bright[:, None] * bright
        rows = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        self.covariance = torch.kron(rows, near) + 1e-5 * torch.eye(self.count)

    def pictures(self, number: int) -> torch.Tensor:
        white = torch.randn((number, self.count), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return (white @ torch.linalg.cholesky(self.covariance).T).float().unflatten(1, self.shape)

    def flow(self, seed: torch.Tensor) -> torch.Tensor:
        """Which of the three flows the images have."""
        return seeds(seed, "flow") % 3

    def clean(self, u: torch.Tensor, level: int, flow: torch.Tensor | None = None) -> torch.Tensor:
        """E[x | u_k], or E[x | u_k, flow]."""
        signal, noise = float(self.forward.signal[level]), float(self.forward.noise[level])
        basis = torch.eye(self.count).unflatten(1, self.shape)
        blend = torch.stack([signal * self.method.operator(basis, level, of).flatten(1).T.double() for of in range(3)])
        seen = blend @ self.covariance @ blend.mT + noise**2 * torch.eye(self.count)
        rest = (u.double() - 0.5 * (1.0 - signal)).flatten(1)
        estimates = torch.einsum("fij,nj->fni", torch.linalg.solve(seen, blend @ self.covariance).mT, rest)
        fit = torch.einsum("ni,fin->fn", rest, torch.linalg.solve(seen, rest.T)) + torch.logdet(seen)[:, None]
        share = torch.softmax(-0.5 * fit, dim=0) if flow is None else torch.nn.functional.one_hot(flow, 3).double().T
        return (share[:, :, None] * estimates).sum(dim=0).float().unflatten(1, self.shape)

    def sampled(self, number: int, told: bool) -> torch.Tensor:
        """Samples by the exact denoiser, which is told the flow or not."""
        seed = torch.arange(number)
        flow, start = self.flow(seed) if told else None, self.forward.mean(self.pictures(number), self.forward.levels, seed)
        return walk(self.method, lambda u, level: self.clean(u, int(level), flow), start, seed, kind=Known)

    def distance(self, samples: torch.Tensor) -> float:
        """Frechet distance of samples from the pictures, as a share of their variance."""
        mean, found = samples.double().flatten(1).mean(dim=0), samples.double().flatten(1).T.cov(correction=0)
        scale, axes = torch.linalg.eigh(self.covariance)
        root = axes * scale.sqrt() @ axes.T
        cross = torch.linalg.eigvalsh(root @ found @ root).clamp_min(0.0).sqrt().sum()
        variance = self.covariance.trace()
        return float((mean.square().sum() + found.trace() + variance - 2.0 * cross) / variance)


def test_told_the_flow_samples_have_the_distribution_of_the_pictures_and_a_drawn_flow_comes_nearer_to_it() -> None:
    """A network that is not told the flow gives the mean over flows: with one flow throughout the samples vary too little.

    The distances: told 0.003, drawn 0.011, one flow 0.023; of the pictures themselves 0.004. (With more steps and samples told goes
    to 0, the others do not.)
    """
    told, same, drawn = (
        (world := Gaussians(flow_candidates=candidates)).distance(world.sampled(1500, told))
        for candidates, told in ((1, True), (1, False), (4, False))
    )
    assert told < 0.005 and told < 0.5 * drawn and drawn < 0.7 * same


def test_the_flow_is_drawn_from_its_posterior_given_the_clean_image() -> None:
    """From whatever flow, with many candidates; five standard errors. It is a function of the seed, not of the batch."""
    world, level, number = Gaussians(flow_candidates=64), 500, 900
    sampler, seed = world.method.sampler, torch.arange(number)
    assert isinstance(sampler, Resample)
    x = world.pictures(1).expand(number, -1, -1, -1)
    reverse = Reverse(world.forward, world.method.denoiser, nothing, seed)
    u = world.forward.corrupt(x, level, seed)
    flows = [seed[world.flow(seed) == flow][:1].expand(number) for flow in range(3)]
    misfit = torch.stack([energy(world.forward, u - world.forward.mean(x, level, flow)) for flow in flows])
    share = torch.softmax(-0.5 * misfit / float(world.forward.noise[level]) ** 2, dim=0)
    drawn = sampler.flow(reverse, x, u, level, flows[0])
    chosen = torch.nn.functional.one_hot(world.flow(drawn), 3).double().T
    assert 0.2 < share.amax(dim=0).mean() - 1.0 / 3.0 < 0.6
    error = 5.0 * (share * (1.0 - share)).mean(dim=1).sqrt() / number**0.5
    assert ((chosen - share).mean(dim=1).abs() < error).all()
    likely = (chosen * share).sum(dim=0) - share.square().sum(dim=0)
    assert likely.mean().abs() < 5.0 * likely.std() / number**0.5
    few = Reverse(world.forward, world.method.denoiser, nothing, seed[3:5])
    assert torch.equal(sampler.flow(few, x[3:5], u[3:5], level, flows[0][3:5]), drawn[3:5])
    with pytest.raises(InputError, match="no likelihood with flow candidates above 1"):
        sampler.check_density(world.forward)


def test_every_step_looks_at_noise_and_the_result_has_none_of_its_own() -> None:
    """With a network that does nothing K noises add up: standard deviation sqrt(K) delta. One that removes all leaves none."""
    method = named_method("beyond-blur").changed(levels=6)
    start = torch.zeros((4, 1, 64, 64))
    u = walk(method, nothing, start, torch.arange(4))
    delta = 0.01 * 1.25
    # 16,384 numbers: five standard errors of a standard deviation are 2.8 %.
    assert u.std().item() == pytest.approx(6**0.5 * delta, rel=0.03)
    seen: list[float] = []
    u = walk(method, lambda u, level: (seen.append(u.std().item()), -u)[1], start, torch.arange(4))
    assert torch.equal(u, start) and seen == pytest.approx([delta] * 6, rel=0.03)


def test_samples_do_not_depend_on_the_batch() -> None:
    config = tiny_config()
    torch.manual_seed(0)
    network = config.build_network().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    prior = Prior.build(stripes(), config.method, CPU)

    def draw(numbers: list[int]) -> torch.Tensor:
        seed = torch.tensor(numbers)
        return walk(config.method, network, prior.draw(seed, config.method, config.size, CPU), seed)

    together = draw([10, 11, 12, 13])
    torch.testing.assert_close(together[2:3], draw([12]), rtol=0, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.01


@pytest.mark.parametrize("name", STEPS)
def test_thumbnails_are_just_large_enough(name: str) -> None:
    """||A_K(picture) - A_K(thumbnail)|| is below the noise at the chosen size, and not below it one size down."""
    method = named_method(name).changed(levels=6)
    pictures = torch.from_numpy(np.stack(stripes()))
    side = Prior.build(stripes(), method, CPU).thumbnails.shape[-1]
    assert 1 < side < SIZE
    linear = method.changed(offset=0.0).operator

    def seen(at: int) -> float:
        difference = pictures - _resized(_resized(pictures, Size(at, at)), Size(SIZE, SIZE))
        return linear(difference, 6, torch.arange(len(difference))).flatten(1).norm(dim=1).max().item()

    assert seen(side) < method.forward.noise[-1] <= seen(side - 1)


def test_resizing_keeps_brightness_and_the_modes_that_fit() -> None:
    x = (torch.arange(16, dtype=torch.float64) + 0.5) / 16
    picture = (0.5 + 0.3 * torch.cos(2 * torch.pi * x)).expand(1, 1, 24, 16)
    small = _resized(picture, Size(7, 5))
    assert small.shape == (1, 1, 7, 5)
    y = (torch.arange(5, dtype=torch.float64) + 0.5) / 5
    torch.testing.assert_close(small[0, 0, 0], 0.5 + 0.3 * torch.cos(2 * torch.pi * y))
    torch.testing.assert_close(_resized(small, Size(24, 16)), picture)


def test_the_prior_draws_level_k_of_the_pictures_with_a_flow_of_its_own() -> None:
    """For one picture only: every draw is near its level K, none like another, and the seed decides."""
    method = named_method("beyond-blur").changed(levels=6)
    picture = stripes(1, WIDE)
    prior = Prior.build(picture, method, CPU)
    assert prior.thumbnails.shape[3] > prior.thumbnails.shape[2]
    draws = prior.draw(torch.tensor([1, 2, 1]), method, WIDE, CPU)
    assert torch.equal(draws[0], draws[2]) and (draws[0] - draws[1]).abs().max() > 0.01
    # Walls keep the mean of the picture, whatever the flow.
    torch.testing.assert_close(draws.mean(dim=(1, 2, 3)), torch.full((3,), float(picture[0].mean())), rtol=0, atol=1e-4)


def test_cold_starts_are_colours_of_the_pictures_distribution_and_all_differ() -> None:
    """Mean and covariance of the colours: five standard errors of 898 draws. The noise breaks the symmetry of every one."""
    method, size = named_method("cold").changed(levels=6), Size(SIZE, SIZE)
    generator = np.random.default_rng(0)
    colours = generator.multivariate_normal([0.3, 0.5, 0.6], [[0.02, 0.01, 0], [0.01, 0.02, 0.005], [0, 0.005, 0.01]], 300)
    pictures = [np.full((3, SIZE, SIZE), 1, np.float32) * colour[:, None, None].astype(np.float32) for colour in colours]
    prior = Prior.build(pictures, method, CPU)
    draws = prior.draw(torch.arange(898), method, size, CPU)
    assert prior.thumbnails.shape == (300, 3, 1, 1) and len({draw.numpy().tobytes() for draw in draws}) == 898
    found, spread = draws.mean(dim=(2, 3)).double(), np.cov(colours.T, bias=True)
    scale = np.sqrt(np.diag(spread))
    assert (np.abs(found.mean(dim=0).numpy() - colours.mean(axis=0)) < 5 * scale / 898**0.5).all()
    assert (np.abs(np.cov(found.T.numpy()) - spread) < 5 * np.outer(scale, scale) * (2 / 898) ** 0.5).all()
    assert (draws - found.float()[:, :, None, None]).std().item() == pytest.approx(0.001, rel=0.05)
    assert torch.equal(prior.draw(torch.tensor([7]), method, size, CPU)[0], draws[7])


def blur(levels: int, sampling_noise: float = 0.0) -> Method:
    return named_method("ihd").changed(sigma_max=0.25, levels=levels, sampling_noise=sampling_noise)


def coarse_mode(q: int, levels: int, steps: int) -> tuple[float, float]:
    """Amplitude of a cosine mode (q along x) that the sampler restores from level K, and what its formula says, in floats."""
    size = 32
    sigma = [0.0, *np.geomspace(0.5, 0.25 * size, levels).tolist()]
    eigenvalue = (np.pi * q / size) ** 2

    def grown(level: int) -> float:
        return float(np.exp(eigenvalue * (sigma[level] ** 2 - sigma[level - 1] ** 2) / 2))

    def oracle(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return u * (grown(int(level[0])) - 1.0)

    mode = torch.cos(torch.pi * q * (torch.arange(size) + 0.5) / size).expand(1, 1, size, size)
    faded = float(np.exp(-eigenvalue * sigma[-1] ** 2 / 2))
    restored = walk(blur(levels), oracle, faded * mode, torch.zeros(1, dtype=torch.int64), steps=steps)
    torch.testing.assert_close(restored, restored[..., :1] / mode[..., :1] * mode, rtol=0, atol=1e-4)

    amplitude, level = faded, levels
    for place in range(1, steps + 1):
        below = round(levels + (1 - levels) * place / (steps - 1)) if place < steps else 0
        factor = grown(level)
        if below < level - 1:
            stretch = np.log(sigma[level] / sigma[below]) / np.log(sigma[level] / sigma[level - 1])
            wiener = factor**2 / (factor**2 + (factor - 1.0) ** 2)
            factor += (stretch - 1.0) * wiener * (factor - 1.0)
        amplitude, level = amplitude * factor, below
    return float((restored / mode)[0, 0, 0, 0]), amplitude


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("steps", [40, 20, 13, 2])
def test_a_coarser_walk_restores_a_mode_as_its_formula_says(q: int, steps: int) -> None:
    """u_k = exp(-kappa^2 sigma_k^2 / 2) u_0 under pure blur: the network's answer is known, and so is every step."""
    restored, expected = coarse_mode(q, levels=40, steps=steps)
    assert restored == pytest.approx(expected, rel=2e-5)
    if steps == 40:
        assert restored == pytest.approx(1.0, rel=1e-4)


def test_a_coarser_walk_is_near_the_whole_one_and_comes_nearer_with_more_steps() -> None:
    """Mode 1 has x = 0.31 at the start, mode 2 1.23, mode 3 2.8: the step is right to second order at x = 1."""
    for q in (1, 2, 3):
        errors = [abs(coarse_mode(q, levels=256, steps=steps)[0] - 1.0) for steps in (16, 32, 64, 128)]
        assert errors[1] < 0.1
        for error, finer in pairwise(errors):
            assert finer < 0.7 * error


def test_a_coarser_walk_does_not_stretch_the_removal_of_noise() -> None:
    """Where nothing is left of a picture the network removes all it sees. So does a step over many levels; m times that would
    be noise m - 1 times as large, and again in every step."""
    u = walk(blur(60, sampling_noise=1.25), lambda u, level: -u, torch.zeros((2, 1, 16, 16)), torch.arange(2), steps=6)
    assert u.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("start", "steps", "visited"),
    [
        (None, None, [6, 5, 4, 3, 2, 1, 0]),
        (None, 3, [6, 4, 1, 0]),
        (None, 2, [6, 1, 0]),
        (4, None, [4, 3, 2, 1, 0]),
        (4, 2, [4, 1, 0]),
        (1, 1, [1, 0]),
    ],
)
def test_the_walk_ends_with_levels_1_and_0(start: int | None, steps: int | None, visited: list[int]) -> None:
    method = named_method("beyond-blur").changed(levels=6)
    assert method.sampler.visited(method.forward, start, steps) == visited
    seen: list[int] = []
    u = torch.zeros((1, 1, SIZE, SIZE))
    walk(method, nothing, u, torch.zeros(1, dtype=torch.int64), lambda k, _: seen.append(k), start=start, steps=steps)
    assert seen == visited[1:]


def test_every_coarse_walk_visits_each_level_once() -> None:
    process = named_method("ihd").changed(levels=47).forward
    for steps in range(2, 48):
        visited = Residual().visited(process, steps=steps)
        assert len(set(visited)) == steps + 1 and visited == sorted(visited, reverse=True)


@pytest.mark.parametrize(
    ("start", "steps", "message"),
    [
        (None, 7, "steps must be from 2 to 6, got 7"),
        (None, 1, "steps must be from 2 to 6, got 1"),
        (3, 4, "steps must be from 2 to 3, got 4"),
        (7, None, "level must be from 1 to 6, got 7"),
        (0, None, "level must be from 1 to 6, got 0"),
        (None, 2.5, "steps must be an integer, got 2.5"),
    ],
)
def test_walks_that_do_not_exist_are_refused(start: int | None, steps: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Residual().visited(named_method("ihd").changed(levels=6).forward, start, steps)


def test_noise_on_the_way_between_two_is_standard_normal_and_ends_at_them() -> None:
    like = torch.zeros((3, 1, 128, 128))
    process = named_method("ihd").changed(levels=6).forward
    one, other = (process.seeded_noise(torch.arange(n, n + 3), like) for n in (0, 10))
    place = torch.tensor([0.0, 0.5, 1.0])[:, None, None, None]
    between = spherical(one, other, place)(4)
    assert torch.equal(between[0], one(4)[0]) and torch.equal(between[2], other(4)[2])
    # 16,384 numbers: five standard errors of a standard deviation are 2.8 %. Half-way it has as much of either.
    assert between[1].std().item() == pytest.approx(1.0, rel=0.03)
    for noise in (one, other):
        assert (between[1] * noise(4)[1]).mean().item() == pytest.approx(0.5**0.5, abs=0.04)


def test_the_seeds_of_all_steps_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(forward_process, "seeds", lambda *arguments: (calls.append(1), seeds(*arguments))[1])
    walk(named_method("ihd").changed(levels=6), nothing, torch.zeros((2, 1, SIZE, SIZE)), torch.arange(2))
    assert len(calls) == 1


@pytest.mark.cuda
def test_no_step_waits_for_the_device() -> None:
    config = tiny_config()
    network = config.build_network().eval().cuda()

    def strict(level: int, u: torch.Tensor) -> None:
        torch.cuda.set_sync_debug_mode("error")

    try:
        u = torch.zeros((2, 1, SIZE, SIZE), device="cuda")
        walk(config.method, network, u, torch.arange(2), strict, steps=3)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_a_walk_through_a_compiled_network_is_one_graph() -> None:
    """No break in the network, and nothing compiled anew at another level."""
    graphs: list[object] = []
    torch.compiler.reset()
    config = tiny_config()
    network = config.build_network().eval().requires_grad_(False)
    network.compile(backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True)
    walk(config.method, network, torch.zeros((2, 1, SIZE, SIZE)), torch.arange(2))
    assert len(graphs) == 1


class Peak(TorchDispatchMode):
    """Most bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self.known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
                self.most = max(self.most, self.held)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.held -= size


@pytest.mark.parametrize(
    ("size", "network"),
    [
        ((32, 48), NetworkConfig()),
        (32, NetworkConfig(width=32, multipliers=(1, 2, 3), blocks=2, attention=(2,))),
        (64, NetworkConfig(width=16, multipliers=(1, 1, 2, 4), blocks=3)),
    ],
)
def test_the_memory_of_an_image_is_what_was_estimated(size: int | tuple[int, int], network: NetworkConfig) -> None:
    size = Size.of(size)
    unet = UNet(3, network, 10).eval()
    with torch.no_grad(), Peak() as peak:
        unet(torch.zeros((2, 3, *size)), torch.ones(2, dtype=torch.int64))
    assert 0.5 < peak.most / (2 * network.activation_bytes(size)) < 1.2


def test_batches_are_chosen_by_memory() -> None:
    large = NetworkConfig(width=128, multipliers=(1, 2, 3, 4, 5), blocks=3)
    assert default_batch(tiny_config(network=NetworkConfig()), CPU) == 64
    assert 1 <= default_batch(tiny_config(size=(128, 96), network=large), CPU) < 10
    assert default_batch(tiny_config(size=1024, network=large), CPU) == 1


def test_the_spacing_of_edm_is_its_rule() -> None:
    """Karras et al. (2022, equation 5), rho = 7. Tolerance: half a level, of which there are 999 in a factor of 10,000."""
    forward = METHODS["edm"].forward
    visited = Resample(steps=18, spacing="edm").visited(forward)
    root = np.linspace(40.0 ** (1 / 7), 0.004 ** (1 / 7), 18)
    found = 2.0 * forward.noise[visited[:-1]] / forward.signal[visited[:-1]]
    np.testing.assert_allclose(np.log(found), 7.0 * np.log(root), rtol=0, atol=0.51 * np.log(1e4) / 999)
    assert visited[0] == 1000 and visited[-2:] == [1, 0] and all(level > below for level, below in pairwise(visited))
    # With hardly fewer steps than levels it still goes down in every step.
    assert Resample(spacing="edm").visited(forward, steps=999)[0] == 1000
    assert len(set(Resample(spacing="edm").visited(forward, steps=999))) == 1000
