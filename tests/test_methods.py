"""Methods: forward processes against the formulas of the papers they come from, and parts that do not fit each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from diffusion import methods
from diffusion.denoisers import CleanImage, Noise, Remainder, Step
from diffusion.density import LogitNormal, LogNormal, Uniform
from diffusion.flow_matching import FlowMatching
from diffusion.forward.operators import FlowAndBlur, Geometric, Identity, Operator, Waves
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import ConstantNoise, Cosine, LinearBeta, LinearPath, LogSNR
from diffusion.methods import METHODS, Method, named_method
from diffusion.rng import below, seeds
from diffusion.samplers import ODE, MeanColour, Posterior, Resample, Residual, Start
from diffusion.size import Size
from lbm_warp import Schedule
from lbm_warp.checks import InputError

BLURS = ["ihd", "blurring", "soft", "cold"]
STEPS = [name for name, method in METHODS.items() if method.denoiser.gives_step]
NOISES = ["blurring", "ddpm", "ddpm-1000"]


def changed(name: str, **numbers: object) -> ForwardProcess:
    """The forward process of a method, with other numbers."""
    return named_method(name).changed(**numbers).forward


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
    process = changed(name, levels=60)
    u0 = photograph[:, :, ::4, ::4].contiguous()
    for k in (1, 20, 45, 60):
        sigma, signal, noise = published(name, k, 60, 32)
        mean = process.mean(u0, k, torch.tensor([3]))
        if name == "cold":
            exact = process.operator.widths(Size(32, 32))[k]
            assert exact == pytest.approx(sigma, rel=0.01)
            sigma = exact
        floor = 0.001 if name == "blurring" else 0.0
        expected = signal * ((1 - floor) * dct_blur(2 * u0 - 1, sigma) + floor * (2 * u0 - 1).numpy())
        np.testing.assert_allclose(2 * mean.numpy() - 1, expected, rtol=0, atol=5e-6)
        assert 2 * process.noise[k] == pytest.approx(noise, abs=1e-12)


@pytest.mark.parametrize("levels", [1000, 50])
def test_ddpm_has_the_mean_and_variance_of_its_closed_form(levels: int) -> None:
    """x_k ~ N(sqrt(abar_k) x_0, 1 - abar_k) (Ho et al. 2020, equation 4), x = 2 u - 1; five standard errors of n numbers."""
    process = changed("ddpm", levels=levels)
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
    method = named_method(name).changed(levels=12)
    process = method.forward
    u0 = torch.rand((6, 3, 16, 24), generator=torch.Generator().manual_seed(0)).to(device)
    level = torch.tensor([1, 2, 5, 9, 11, 12])
    seed = torch.arange(6)
    corrupted, answer = method.denoiser.example(process, u0, level, seed)
    before, after = process.operator.pair(u0, level, seeds(seed, "flow"))
    torch.testing.assert_close(corrupted + answer, before)
    noise = corrupted - after
    # 6,912 numbers of standard deviation 0.01: their own scatters by 1 / sqrt(2 n), about 1 %; five of these.
    assert noise.std().item() == pytest.approx(process.noise[-1], rel=0.05)
    assert noise.mean().abs() < 5 * process.noise[-1] / noise.numel() ** 0.5


@pytest.mark.parametrize("name", [*NOISES, "soft", "cold"])
def test_the_right_answer_gives_the_clean_image(name: str, device: torch.device) -> None:
    method = named_method(name).changed(levels=12)
    process, denoiser = method.forward, method.denoiser
    u0 = torch.rand((3, 1, 24, 16), generator=torch.Generator().manual_seed(0)).to(device)
    seed = torch.arange(3)
    for k in (1, 6, 12):
        corrupted, answer = denoiser.example(process, u0, torch.full((3,), k), seed)
        torch.testing.assert_close(corrupted, process.corrupt(u0, k, seed), rtol=0, atol=1e-6)
        assert (corrupted - u0).abs().max() > 1e-3
        # Where a mode has a small factor (ddpm's last level: 1/200), rounding is larger by its inverse.
        smallest = process.signal[k] * method.operator.transfer(k, Size(24, 16)).min().item() if name in NOISES else 1.0
        clean = denoiser.clean(process, answer, corrupted, k, seed)
        torch.testing.assert_close(clean, u0, rtol=0, atol=1e-5 + 4e-7 / smallest)


@pytest.mark.parametrize("name", METHODS)
def test_a_trajectory_is_its_levels(name: str) -> None:
    process = changed(name, levels=7)
    u0, seed = torch.rand((2, 3, 12, 20), generator=torch.Generator().manual_seed(0)), torch.tensor([5, 6])
    levels = dict(process.trajectory(u0, seed))
    assert list(levels) == list(range(8))
    for k in (0, 3, 7):
        assert torch.equal(levels[k], process.corrupt(u0, k, seed))


@pytest.mark.parametrize("name", METHODS)
def test_level_zero_is_clean_and_levels_of_a_batch_are_its_images_own(name: str) -> None:
    process = changed(name, levels=9)
    u0 = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    seed = torch.tensor([5, 6, 7])
    assert torch.equal(process.corrupt(u0, 0, seed), u0)
    together = process.corrupt(u0, torch.tensor([9, 0, 4]), seed)
    for n, k in enumerate((9, 0, 4)):
        assert torch.equal(process.corrupt(u0[n : n + 1], k, seed[n : n + 1])[0], together[n])
    signal, noise = process.signal, process.noise
    assert signal[0] == 1.0 and noise[0] == 0.0 and (np.diff(signal) <= 0).all() and (np.diff(noise[1:]) >= 0).all()


def test_flow_and_noise_of_an_image_come_from_its_seed_alone() -> None:
    method = named_method("beyond-blur-frozen").changed(levels=12)
    u0 = torch.rand((1, 1, 16, 16)).repeat(3, 1, 1, 1)
    corrupted, answer = method.denoiser.example(method.forward, u0, torch.tensor([12, 12, 12]), torch.tensor([1, 2, 1]))
    assert torch.equal(corrupted[0], corrupted[2]) and torch.equal(answer[0], answer[2])
    assert (corrupted[0] - corrupted[1]).abs().max() > 0.1


def test_the_published_process_makes_structured_noise_and_transport_does_not() -> None:
    flat, seed = torch.full((8, 1, 32, 32), 0.5), torch.arange(8)
    spread = {name: changed(name, levels=20).mean(flat, 20, seed).std() for name in STEPS}
    assert 0.005 < spread["beyond-blur"] < 0.015 and 0.1 < spread["beyond-blur-frozen"] < 0.4
    for suffix in ("", "-frozen"):
        assert spread["structured-noise" + suffix] == pytest.approx(spread["beyond-blur" + suffix].item(), rel=0.1)
    assert spread["beyond-blur-curl"] < 0.004 and spread["ihd"] < 1e-5


@pytest.mark.parametrize("suffix", ["", "-frozen"])
def test_structured_noise_is_beyond_blurs_noise_on_a_blurred_image(suffix: str) -> None:
    """Linear: on a flat image both processes are one, and what an image adds to it is its blur alone."""
    names = ("structured-noise" + suffix, "beyond-blur" + suffix, "ihd")
    noise, both, blur = (changed(name, levels=9, sigma_max=0.5) for name in names)
    u0, seed = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(0)), torch.tensor([3])
    # The mean of an image counts to the background of the moving field, and to the image in the frozen one.
    flat = torch.zeros_like(u0) if suffix else u0.mean().expand_as(u0)
    torch.testing.assert_close(noise.mean(flat, 6, seed), both.mean(flat, 6, seed), rtol=0, atol=1e-6)
    expected = blur.mean(u0 - flat, 6, seed) + both.mean(flat, 6, seed)
    torch.testing.assert_close(noise.mean(u0, 6, seed), expected, rtol=0, atol=1e-6)
    assert (noise.mean(u0, 6, seed) - both.mean(u0, 6, seed)).abs().max() > 1e-5


def test_a_single_level_is_the_schedules() -> None:
    for name in ("ihd", "fluid", "cold"):
        operator = changed(name, levels=1).operator
        expected = Schedule.geometric(0.5, operator.blur.sigma_max * 32, levels=1).sigma
        np.testing.assert_allclose(operator.widths(Size(32, 32)), expected, rtol=1e-12)


def test_another_method_is_made_by_naming_its_parts() -> None:
    """Transport under fading contrast: the mean is the operator's picture on grey, s_k times its contrast."""
    method = Method(FlowAndBlur(peclet=2.0, levels=8), Cosine(), CleanImage(), Uniform(), Resample())
    process, u0, seed = method.forward, torch.rand((1, 1, 16, 16)), torch.tensor([4])
    carried = process.operator(u0, 5, seeds(seed, "flow"))
    signal, noise = process.signal[5], process.noise[5]
    torch.testing.assert_close(process.mean(u0, 5, seed), 0.5 + float(signal) * (carried - 0.5))
    assert noise == pytest.approx(0.5 * np.sqrt(1 - signal**2))


def parts(**other: object) -> Method:
    """A method of which some parts are others."""
    usual = {"operator": FlowAndBlur(), "scales": ConstantNoise(), "denoiser": CleanImage(), "density": Uniform()}
    return Method(**usual | {"sampler": Resample()} | other)


COMPRESSIBLE = FlowAndBlur(peclet=0.1, offset=9.5)


@dataclass(frozen=True)
class NoLevels(Operator):
    """What forgets to say how many levels there are."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: named_method("beyond-blurr"), r"unknown process 'beyond-blurr'.*did you mean beyond-blur\?"),
        (lambda: FlowAndBlur(turbulence="smoke"), "turbulence must be a lbm_warp.Turbulence .* got str"),
        (lambda: FlowAndBlur(blur="box"), "blur must be a diffusion.Blur .* got str"),
        (lambda: Waves(wave_speed=-1.0), "wave speed must be at least 0, got -1"),
        (lambda: FlowAndBlur(peclet=-1.0), "peclet must be from 0 to 1000000, got -1"),
        (lambda: FlowAndBlur(levels=0), "levels must be from 1 to 100000, got 0"),
        (lambda: FlowAndBlur(blur_floor=2.0), "blur floor must be from 0 to 1, got 2"),
        (lambda: FlowAndBlur(boundary="sea"), "boundary must be"),
        (lambda: FlowAndBlur(blur=Geometric(0.01)).check(Size(16, 16)), r"sigma_max must be .* sigma_min = 0\.5 px, got 0\.16 px"),
        (lambda: Identity(0), "levels must be from 1 to 100000, got 0"),
        (lambda: ConstantNoise(noise=-0.1), "noise must be from 0 to 1, got -0.1"),
        (lambda: LogSNR(noise_exponent=5.0), "noise exponent must be from -4 to 4, got 5"),
        (lambda: LinearPath(least_signal=0.0), "least signal must be from 1e-06 to 1, got 0"),
        (lambda: LogNormal(log_deviation=0.0), "log deviation must be from 0.01 to 100, got 0"),
        (lambda: LogitNormal(logit_deviation=0.0), "logit deviation must be from 0.01 to 100, got 0"),
        (lambda: CleanImage(error="huber"), "error must be one of squared, absolute, filtered"),
        (lambda: Remainder(spectrum="flat", network_input="estimates"), "network input estimates needs spectrum measured"),
        (lambda: FlowMatching(prediction="score"), "prediction must be one of clean, noise, velocity, got 'score'"),
        (lambda: Residual(sampling_noise=-1.0), "sampling noise must be at least 0"),
        (lambda: Resample(eta=1.5), "eta must be from 0 to 1, got 1.5"),
        (lambda: Resample(second_order_above=-1.0), "second order above must be at least 0, got -1"),
        (lambda: Resample(flow_candidates=0), "flow candidates must be from 1 to 1000, got 0"),
        (lambda: Resample(steps=1), "steps must be at least 2, got 1"),
        (lambda: Resample(spacing="odd"), "spacing must be one of even, edm, got 'odd'"),
        (lambda: ODE(order=3), "order must be 1 or 2, got 3"),
        (lambda: Start(start_noise=-1.0), "start noise must be at least 0, got -1"),
        # Parts that are no parts.
        (lambda: parts(operator="blur"), "operator must be a diffusion.Operator .* got str"),
        (lambda: parts(operator=NoLevels()), "levels must be from 1 to 100000, got 0"),
        (lambda: parts(scales=None), "scales must be a diffusion.Scales .* got NoneType"),
        (lambda: parts(denoiser=Step), "denoiser must be a diffusion.Denoiser .* got type"),
        (lambda: parts(density=0.5), "density must be a diffusion.Density .* got float"),
        (lambda: parts(sampler=Uniform()), "sampler must be a diffusion.Sampler .* got Uniform"),
        # Parts that do not fit each other.
        (
            lambda: parts(denoiser=Step()),
            "sampler Resample needs the clean image, which denoiser Step does not give here: take Residual",
        ),
        (lambda: parts(denoiser=Step(), sampler=ODE()), "sampler ODE needs the velocity, which denoiser Step does not give"),
        (lambda: parts(sampler=Residual()), "sampler Residual needs the predicted step, which denoiser CleanImage does not give"),
        (lambda: parts(operator=Identity(), denoiser=Step(), sampler=Residual()), "target step needs a blur"),
        (lambda: parts(denoiser=Noise()), "target noise needs an operator that loses nothing"),
        (lambda: changed("blurring", peclet=1.0), "target noise needs an operator that loses nothing"),
        (lambda: changed("ddpm", noise=0.0), "target noise needs noise above 0"),
        (lambda: changed("blurring", denoiser=CleanImage(), boundary="periodic"), "sampler Posterior needs a diagonal operator"),
        (lambda: changed("blurring", denoiser=CleanImage(), peclet=1.0), "sampler Posterior needs a diagonal operator"),
        (lambda: parts(scales=Cosine(noise_exponent=1.0), sampler=Posterior()), "sampler Posterior needs white noise"),
        (lambda: parts(scales=ConstantNoise(0.0), sampler=Posterior()), "sampler Posterior needs noise above 0"),
        (lambda: parts(denoiser=Remainder(spectrum="flat"), scales=LogSNR()), "spectrum flat needs an operator that leaves images"),
        (lambda: changed("fluid", noise=0.0), "target remainder needs noise above 0"),
        (lambda: parts(operator=COMPRESSIBLE, denoiser=CleanImage(error="filtered")), "error filtered needs a linear operator"),
        (lambda: changed("soft", noise=0.0), "error filtered needs noise above 0"),
        (lambda: changed("soft", noise_exponent=0.5), "error filtered needs white noise: noise exponent 0"),
        (lambda: changed("cold", second_order_above=0.0), "second order needs noise above 0"),
        (lambda: changed("cold", flow_candidates=2), "a draw among flow candidates needs noise above 0"),
        (lambda: changed("fluid", flow_candidates=2, tell_flow=True), "flow candidates above 1 are for a network that is not told"),
        (lambda: parts(scales=ConstantNoise(0.0), density=LogNormal()), "a log-normal density of levels needs noise above 0"),
        (lambda: parts(scales=ConstantNoise(0.0), sampler=Resample(spacing="edm")), "spacing edm needs noise above 0"),
        (lambda: parts(scales=ConstantNoise(0.0), sampler=ODE()), "sampler ODE needs noise above 0"),
        (lambda: parts(operator=COMPRESSIBLE, sampler=ODE()), "sampler ODE needs a linear operator"),
        (lambda: parts(operator=Identity(2), sampler=ODE()), "sampler ODE needs at least 3 levels"),
        (lambda: changed("fluid", tell_flow=True, turbulence_time=1.0), "tell flow needs a frozen flow to be told"),
        (lambda: parts(operator=Waves(peclet=0.1), denoiser=CleanImage(True)), "tell flow needs a frozen flow to be told"),
        (lambda: changed("ddpm", tell_flow=True), "tell flow needs a frozen flow to be told; Identity has none"),
        (lambda: changed("ddpm", peclet=1.0), "no part has a value called peclet; there are clip_clean, "),
    ],
)
def test_bad_values_and_parts_that_do_not_fit_are_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_the_parts_of_a_method_have_other_numbers_at_once() -> None:
    """Each alone would not fit the others."""
    method = named_method("ihd").changed(denoiser=CleanImage(), sampler=Resample(steps=3), sigma_max=0.3, noise=0.02)
    assert method == Method(FlowAndBlur(blur=Geometric(0.3)), ConstantNoise(0.02), CleanImage(), Uniform(), Resample(steps=3))
    assert method.changed(start=MeanColour(), start_noise=0.1).sampler == Resample(steps=3, start=MeanColour(0.1))
    assert method.changed() == method and method.levels == 200


# Methods of other packages


ELSEWHERE = Method(Identity(7), LinearBeta(), Noise(), Uniform(), Resample())


def nothing() -> None:
    """What offers no method."""


def offer(monkeypatch: pytest.MonkeyPatch, **objects: str) -> None:
    """Let an installed package offer these methods."""
    found = [EntryPoint(name.replace("_", "-"), value, methods.GROUP) for name, value in objects.items()]
    monkeypatch.setattr(methods, "entry_points", lambda group: [entry for entry in found if entry.group == group])


def test_the_methods_of_an_installed_package_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, elsewhere=f"{__name__}:ELSEWHERE", made=f"{__name__}:parts", ddpm=f"{__name__}:ELSEWHERE")
    assert named_method("elsewhere") is ELSEWHERE and named_method("made") == parts()
    assert named_method("ddpm") is METHODS["ddpm"], "the library's own name comes first"
    with pytest.raises(InputError, match=r"unknown process 'elsewere'.*did you mean elsewhere\?"):
        named_method("elsewere")


def test_a_method_that_cannot_be_loaded_is_one_line_and_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, gone="no_such_package:METHOD", empty=f"{__name__}:nothing", text=f"{__name__}:__name__")
    for name, message in {
        "gone": r"method gone of no_such_package:METHOD cannot be loaded \(ModuleNotFoundError: No module",
        "empty": r"method empty of .*:nothing is a NoneType, not a diffusion.Method",
        "text": r"method text of .*:__name__ cannot be loaded \(TypeError: 'str' object is not callable\)",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            named_method(name)
        assert "\n" not in str(error.value)
    assert named_method("ddpm") is METHODS["ddpm"] and methods.known_classes()["Identity"] is Identity


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
    method = named_method("fluid").changed(log_mean=mean, log_deviation=deviation)
    process = method.forward
    level = method.density.draw(process, torch.arange(20_000))
    drawn = np.log(2.0 * process.noise[level] / process.signal[level])
    assert drawn.mean() == pytest.approx(mean, abs=5 * deviation / 20_000**0.5 + 0.02)
    assert drawn.std() == pytest.approx(deviation, rel=5 / 40_000**0.5 + 0.02)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.6, 0.7)])
def test_the_time_of_training_is_logit_normal(mean: float, deviation: float) -> None:
    """Esser et al. (2024, section 3.1), t = 1 - k / K from noise to image. Tolerance: five standard errors of 20,000 numbers, and
    the width of a level's share, 1 / K, which is 4 / K in log(t / (1 - t))."""
    method = named_method("flow-matching").changed(logit_mean=mean, logit_deviation=deviation)
    level = method.density.draw(method.forward, torch.arange(20_000)).double().numpy()
    t = 1.0 - (level - 0.5) / method.levels
    drawn = np.log(t / (1.0 - t))
    assert drawn.mean() == pytest.approx(mean, abs=5 * deviation / 20_000**0.5 + 4e-3)
    assert drawn.std() == pytest.approx(deviation, rel=5 / 40_000**0.5 + 4e-3)
