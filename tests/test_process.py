"""Forward processes against the formulas of the papers they come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from diffusion.parametrisation import Plain
from diffusion.process import PROCESSES, ForwardProcess, named_process
from diffusion.rng import below, seeds
from lbm_warp import Schedule
from tests.runs import corruption

BLURS = ["ihd", "blurring", "soft", "cold"]
STEPS = [name for name, process in PROCESSES.items() if process.target == "step"]


def dct_blur(image: torch.Tensor, sigma: float) -> np.ndarray:
    """exp(-k^2 sigma^2 / 2) for every mode of the cosine transform, by SciPy."""
    height, width = image.shape[-2:]
    k2 = (np.pi * np.arange(height) / height)[:, None] ** 2 + (np.pi * np.arange(width) / width) ** 2
    return idctn(dctn(image.double().numpy(), axes=(-2, -1)) * np.exp(-0.5 * k2 * sigma**2), axes=(-2, -1))


def published(name: str, k: int, levels: int, size: int) -> tuple[float, float, float]:
    """Blur width [px], signal scale and noise of level k, written down from the papers; images run from -1 to 1."""
    t = k / levels
    if name == "ihd":  # Rissanen et al. 2023: sigma_B,k logarithmic from 0.5 px to half the image; sigma = 0.01 in [0, 1]
        return 0.5 * (0.5 * size / 0.5) ** ((k - 1) / (levels - 1)), 1.0, 0.02
    if name == "blurring":  # Hoogeboom and Salimans 2023, appendix A: sin^2 blur, cosine with log-SNR in [-10, 10]
        limit_max = np.arctan(np.exp(-0.5 * 10))
        limit_min = np.arctan(np.exp(0.5 * 10)) - limit_max
        log_snr = -2 * np.log(np.tan(limit_min * t + limit_max))
        return 0.16 * size * np.sin(t * np.pi / 2) ** 2, (1 / (1 + np.exp(-log_snr))) ** 0.5, (1 / (1 + np.exp(log_snr))) ** 0.5
    if name == "cold":  # Bansal et al. 2022: one blur after another, of standard deviation exp(0.01 k), k = 0..299, at 128 px
        kernel = np.ones(1)
        for i in range(300 * k // levels):  # 27 taps each
            tap = np.exp(-0.5 * (np.arange(-13, 14) / np.exp(0.01 * i)) ** 2)
            kernel = np.convolve(kernel, tap / tap.sum())
        place = np.arange(len(kernel)) - len(kernel) // 2
        return np.sqrt(kernel @ place**2) * size / 128, 1.0, 0.0
    assert name == "soft"  # Daras et al. 2023: blur, and noise that grows to a small value in the first quarter
    return 0.5 * (0.5 * size / 0.5) ** ((k - 1) / (levels - 1)), 1.0, 0.2 * 0.1 ** (1 - min(4 * t, 1))


@pytest.mark.parametrize("name", BLURS)
def test_earlier_blurs_are_the_cosine_transforms_of_their_papers(name: str, photograph: torch.Tensor) -> None:
    """The mean of level k in [-1, 1] is s_k times the blurred image; cold's widths come out within 1 % (86 px is 0.67 sides),
    and blurring keeps a thousandth of the image."""
    process = corruption(name, 32, levels=60)
    u0 = photograph[:, :, ::4, ::4].contiguous()
    for k in (1, 20, 45, 60):
        sigma, signal, noise = published(name, k, 60, 32)
        mean = process.mean(u0, k, torch.tensor([3]))
        if name == "cold":
            exact = process.sigma[k]
            assert exact == pytest.approx(sigma, rel=0.01)
            sigma = exact
        floor = 0.001 if name == "blurring" else 0.0
        expected = signal * ((1 - floor) * dct_blur(2 * u0 - 1, sigma) + floor * (2 * u0 - 1).numpy())
        np.testing.assert_allclose(2 * mean.numpy() - 1, expected, rtol=0, atol=5e-6)
        assert 2 * process.noise[k] == pytest.approx(noise, abs=1e-12)


@pytest.mark.parametrize("levels", [1000, 50])
def test_ddpm_has_the_mean_and_variance_of_its_closed_form(levels: int) -> None:
    """x_k ~ N(sqrt(abar_k) x_0, 1 - abar_k) (Ho et al. 2020, equation 4), x = 2 u - 1; five standard errors of n numbers."""
    process = corruption("ddpm", 32, levels=levels)
    # With fewer steps each stands for several of the thousand; the last abar is nearly the same.
    abar = np.cumprod((1 - np.linspace(1e-4, 0.02, levels)) ** (1000 / levels))
    u0 = torch.full((64, 1, 32, 32), 0.9)
    for k in (1, levels // 3, levels):
        x = 2 * process.corrupt(u0, k, torch.arange(64)).double() - 1
        n, variance = x.numel(), 1 - abar[k - 1]
        assert abs(x.mean().item() - np.sqrt(abar[k - 1]) * 0.8) < 5 * np.sqrt(variance / n)
        assert abs(x.var().item() - variance) < 5 * variance * np.sqrt(2 / n)
    assert abar[-1] == pytest.approx(4e-5, rel=0.3)


@pytest.mark.parametrize("name", STEPS)
def test_the_network_sees_level_k_under_noise_and_learns_the_step_to_the_level_before(name: str, device: torch.device) -> None:
    process = corruption(name, (16, 24), levels=12)
    u0 = torch.rand((6, 3, 16, 24), generator=torch.Generator().manual_seed(0)).to(device)
    level = torch.tensor([1, 2, 5, 9, 11, 12])
    seed = torch.arange(6)
    corrupted, answer = Plain(process).example(u0, level, seed)
    before, after = process.operator.pair(u0, level, seeds(seed, "flow"))
    torch.testing.assert_close(corrupted + answer, before)
    noise = corrupted - after
    # 6,912 numbers of standard deviation 0.01: their own scatters by 1 / sqrt(2 n), about 1 %; five of these.
    assert noise.std().item() == pytest.approx(process.process.noise, rel=0.05)
    assert noise.mean().abs() < 5 * process.process.noise / noise.numel() ** 0.5


@pytest.mark.parametrize("name", [name for name, process in PROCESSES.items() if process.target in ("clean", "noise")])
def test_the_right_answer_gives_the_clean_image(name: str, device: torch.device) -> None:
    process = corruption(name, (24, 16), levels=12)
    u0 = torch.rand((3, 1, 24, 16), generator=torch.Generator().manual_seed(0)).to(device)
    seed = torch.arange(3)
    for k in (1, 6, 12):
        corrupted, answer = Plain(process).example(u0, torch.full((3,), k), seed)
        torch.testing.assert_close(corrupted, process.corrupt(u0, k, seed), rtol=0, atol=1e-6)
        assert (corrupted - u0).abs().max() > 1e-3
        # Where a mode has a small factor (ddpm's last level: 1/200), rounding is larger by its inverse.
        smallest = process.signal[k] * process.transfer(k, u0.double()).min().item() if process.process.target == "noise" else 1.0
        torch.testing.assert_close(Plain(process).clean(answer, corrupted, k), u0, rtol=0, atol=1e-5 + 4e-7 / smallest)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_trajectory_is_its_levels(name: str) -> None:
    process = corruption(name, (12, 20), levels=7)
    u0, seed = torch.rand((2, 3, 12, 20), generator=torch.Generator().manual_seed(0)), torch.tensor([5, 6])
    levels = dict(process.trajectory(u0, seed))
    assert list(levels) == list(range(8))
    for k in (0, 3, 7):
        assert torch.equal(levels[k], process.corrupt(u0, k, seed))


@pytest.mark.parametrize("name", PROCESSES)
def test_level_zero_is_clean_and_levels_of_a_batch_are_its_images_own(name: str) -> None:
    process = corruption(name, 16, levels=9)
    u0 = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    seed = torch.tensor([5, 6, 7])
    assert torch.equal(process.corrupt(u0, 0, seed), u0)
    together = process.corrupt(u0, torch.tensor([9, 0, 4]), seed)
    for n, k in enumerate((9, 0, 4)):
        assert torch.equal(process.corrupt(u0[n : n + 1], k, seed[n : n + 1])[0], together[n])
    signal, noise = process.signal, process.noise
    assert signal[0] == 1.0 and noise[0] == 0.0 and (np.diff(signal) <= 0).all() and (np.diff(noise[1:]) >= 0).all()


def test_flow_and_noise_of_an_image_come_from_its_seed_alone() -> None:
    process = corruption("beyond-blur-frozen", 16, levels=12)
    u0 = torch.rand((1, 1, 16, 16)).repeat(3, 1, 1, 1)
    corrupted, answer = Plain(process).example(u0, torch.tensor([12, 12, 12]), torch.tensor([1, 2, 1]))
    assert torch.equal(corrupted[0], corrupted[2]) and torch.equal(answer[0], answer[2])
    assert (corrupted[0] - corrupted[1]).abs().max() > 0.1


def test_the_published_process_makes_structured_noise_and_transport_does_not() -> None:
    flat, seed = torch.full((8, 1, 32, 32), 0.5), torch.arange(8)
    spread = {name: corruption(name, 32, levels=20).mean(flat, 20, seed).std() for name in STEPS}
    assert 0.005 < spread["beyond-blur"] < 0.015 and 0.1 < spread["beyond-blur-frozen"] < 0.4
    for suffix in ("", "-frozen"):
        assert spread["structured-noise" + suffix] == pytest.approx(spread["beyond-blur" + suffix].item(), rel=0.1)
    assert spread["beyond-blur-curl"] < 0.004 and spread["ihd"] < 1e-5


@pytest.mark.parametrize("suffix", ["", "-frozen"])
def test_structured_noise_is_beyond_blurs_noise_on_a_blurred_image(suffix: str) -> None:
    """Linear: on a flat image both processes are one, and what an image adds to it is its blur alone."""
    names = ("structured-noise" + suffix, "beyond-blur" + suffix, "ihd")
    noise, both, blur = (corruption(name, 16, levels=9, sigma_max=0.5) for name in names)
    u0, seed = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    # The mean of an image counts to the background of the moving field, and to the image in the frozen one.
    flat = torch.zeros_like(u0) if suffix else u0.mean().expand_as(u0)
    torch.testing.assert_close(noise.mean(flat, 6, seed), both.mean(flat, 6, seed), rtol=0, atol=1e-6)
    expected = blur.mean(u0 - flat, 6, seed) + both.mean(flat, 6, seed)
    torch.testing.assert_close(noise.mean(u0, 6, seed), expected, rtol=0, atol=1e-6)
    assert (noise.mean(u0, 6, seed) - both.mean(u0, 6, seed)).abs().max() > 1e-5


def test_a_single_level_is_the_schedules() -> None:
    for name in ("ihd", "fluid", "cold"):
        process = corruption(name, 32, levels=1)
        expected = Schedule.geometric(0.5, process.process.sigma_max * 32, levels=1).sigma
        np.testing.assert_allclose(process.sigma, expected, rtol=1e-12)


def test_every_channel_can_have_a_flow_of_its_own() -> None:
    """Channel c of an image is an image of one channel with a seed of its own, in any order of the images and levels."""
    numbers = {"levels": 6, "by_channel": True}
    u0, level, seed = torch.rand((2, 3, 16, 16)), torch.tensor([6, 3]), torch.tensor([5, 6])
    for name in ("beyond-blur", "structured-noise-frozen", "fluid"):
        process, shared = corruption(name, 16, **numbers), corruption(name, 16, levels=6)
        together = process.mean(u0, level, seed)
        before, after = process.operator.pair(u0, level, seeds(seed, "flow"))
        assert torch.equal(process.mean(u0[1:], 3, seed[1:])[0], together[1])
        assert torch.equal(dict(process.operator.trajectory(u0, seeds(seed, "flow")))[6][0], after[0])
        assert (before - after).abs().max() > 1e-4
        grey = u0[:, :1].expand(-1, 3, -1, -1).contiguous()
        own, one = process.mean(grey, level, seed), shared.mean(grey, level, seed)
        assert (own[:, 0] - own[:, 1]).abs().max() > 1e-4 and torch.equal(one[:, 0], one[:, 1])


def test_an_eighth_method_is_made_by_naming_its_numbers() -> None:
    """Transport under fading contrast: the mean is the operator's picture on grey, s_k times its contrast."""
    numbers = ForwardProcess(
        peclet=2.0, signal="cosine", noise=0.5, noise_schedule="variance-preserving", target="clean", sampler="ancestral", levels=8
    )
    process, u0, seed = corruption(numbers, 16), torch.rand((1, 1, 16, 16)), torch.tensor([4])
    carried = process.operator(u0, 5, seeds(seed, "flow"))
    signal, noise = process.signal[5], process.noise[5]
    torch.testing.assert_close(process.mean(u0, 5, seed), 0.5 + float(signal) * (carried - 0.5))
    assert noise == pytest.approx(0.5 * np.sqrt(1 - signal**2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named_process("beyond-blurr"), r"unknown process 'beyond-blurr'.*did you mean beyond-blur\?"),
        (
            lambda: ForwardProcess(turbulence="smoke").validate(),
            "turbulence must be one of curl-noise, spectral, compressible, waves",
        ),
        (lambda: ForwardProcess(wave_speed=-1.0).validate(), "wave speed must be at least 0, got -1"),
        (lambda: ForwardProcess(blur="box").validate(), "blur must be one of geometric, sine, truncated, none, got 'box'"),
        (lambda: ForwardProcess(peclet=-1.0).validate(), "peclet must be at least 0, got -1"),
        (lambda: ForwardProcess(noise=-0.1).validate(), "noise must be from 0 to 1, got -0.1"),
        (lambda: ForwardProcess(sampling_noise=-1.0).validate(), "sampling noise must be at least 0"),
        (lambda: ForwardProcess(levels=0).validate(), "levels must be at least 1, got 0"),
        (lambda: corruption(ForwardProcess(sigma_max=0.01), 16), r"sigma_max must be at least sigma_min = 0\.5 px, got 0\.16 px"),
        (lambda: ForwardProcess(sampler="resample").validate(), "sampler resample cannot use target step"),
        (lambda: ForwardProcess(target="clean").validate(), "sampler residual cannot use target clean"),
        (lambda: ForwardProcess(target="noise", sampler="ancestral").validate(), "target noise needs blur none; or a blur floor"),
        (lambda: corruption("blurring", peclet=1.0), "target noise needs blur none; or a blur floor above 0, walls and peclet 0"),
        (lambda: corruption("blurring", target="clean", boundary="periodic"), "sampler posterior needs walls and no flow"),
        (lambda: corruption("fluid", spectrum="flat"), "spectrum flat needs target remainder and blur none"),
        (lambda: corruption("ihd", loss="filtered"), "loss filtered needs target clean and offset 0"),
        (lambda: corruption("soft", noise=0.0), "loss filtered needs noise above 0"),
        (lambda: corruption("ddpm", network_input="estimates"), "network input estimates needs target remainder and spectrum"),
        (lambda: corruption("fluid", noise=0.0), "target remainder needs noise above 0"),
        (lambda: corruption("cold", second_order_above=0.0), "second order needs noise above 0"),
        (lambda: corruption("fluid", second_order_above=-1.0), "second order above must be at least 0, got -1"),
        (lambda: corruption("fluid", steps=1), "steps must be at least 2, got 1"),
        (lambda: ForwardProcess(blur="none", peclet=1.0, target="clean", sampler="resample").validate(), "peclet must be 0, got 1"),
        (lambda: ForwardProcess(blur="none").validate(), "target step needs a blur"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_seeds_are_functions_of_seed_stream_and_index() -> None:
    grid = seeds(np.arange(50)[:, None], "flow", np.arange(60)[None])
    assert grid.shape == (50, 60) and grid.min() >= 0 and len(grid.unique()) == 3000
    assert int(grid[7, 9]) == int(seeds(7, "flow", 9))
    assert int(seeds(7, "noise", 9)) != int(seeds(7, "flow", 9))
    # 3000 draws below 10: each count is binomial, standard deviation 16.4.
    counts = below(10, torch.arange(3000), "level").bincount(minlength=10)
    assert counts.sum() == 3000 and (counts - 300).abs().max() < 5 * 16.5


@pytest.mark.parametrize(("mean", "deviation"), [(-1.2, 1.2), (-1.6, 1.6), (0.5, 0.7)])
def test_the_noise_of_training_is_log_normal(mean: float, deviation: float) -> None:
    """Tolerance: five standard errors of 20,000 numbers; the range from 0.004 to 40 cuts 0.6 % off the widest one's tail."""
    process = corruption("fluid", log_mean=mean, log_deviation=deviation)
    level = process.draw_levels(torch.arange(20_000))
    drawn = np.log(2.0 * process.noise[level] / process.signal[level])
    assert drawn.mean() == pytest.approx(mean, abs=5 * deviation / 20_000**0.5 + 0.02)
    assert drawn.std() == pytest.approx(deviation, rel=5 / 40_000**0.5 + 0.02)
