"""What the network sees and predicts, against closed forms for pictures with independent Gaussian cosine modes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.data.adapters import as_dataset
from diffusion.denoisers import Reverse, Step
from diffusion.files import save_tensors
from diffusion.forward.operators import Identity, Operator
from diffusion.forward.process import ForwardProcess
from diffusion.forward.scales import Cosine
from diffusion.forward.statistics import FILE, Statistics
from diffusion.methods import Method, named_method
from diffusion.samplers import Residual
from diffusion.sampling.pipeline import Pipeline
from diffusion.size import Size
from diffusion.training.loop import train
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines, to_modes
from tests.runs import REMAINDER, stripes, tiny_config

CPU = torch.device("cpu")
WIDE = Size(8, 12)


def gaussian(count: int, size: Size = WIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose cosine modes are independent and Gaussian, [count, 1, H, W], and the variances of the modes, [H, W]."""
    (ky, rows), (kx, columns) = (cosines(side) for side in size)
    variance = 0.3 / (1.0 + 8.0 * (ky[:, None] + kx).square())
    amplitudes = torch.randn((count, 1, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64) * variance.sqrt()
    return (0.4 + rows.T @ amplitudes @ columns).float(), variance


def measured(method: Method, pictures: torch.Tensor) -> ForwardProcess:
    """The forward process with the moments of these pictures."""
    return method.forward.measured(method.denoiser.measure(list(pictures.numpy()), method.forward, CPU))


def exact(method: Method, variance: torch.Tensor, size: Size = WIDE) -> Statistics:
    """The moments of ``gaussian`` pictures under blur: <x x> = P, <x y> = d P, <y y> = d^2 P, d = exp(-kappa^2 b^2 / 2)."""
    ky, kx = (cosines(side)[0] for side in size)
    widths = torch.from_numpy(method.operator.widths(size))[:, None, None, None]
    transfer = torch.exp(-0.5 * widths**2 * (ky.square()[:, None] + kx.square()))
    mean = torch.full((1, *size), 0.4)
    power = variance[None].expand_as(mean)
    moments = (mean, power, mean.expand(len(transfer), -1, -1, -1), transfer**2 * power, transfer * power)
    return Statistics(*(moment.float() for moment in moments))


def test_the_moments_of_blurred_pictures_are_those_of_the_transfer_function() -> None:
    """<x y> = d <x x> and <y y> = d^2 <x x> hold for every set of pictures, not only on average."""
    method = REMAINDER.changed(levels=32)
    pictures, _ = gaussian(70)
    found = Statistics.measure(list(pictures.numpy()), method.operator, CPU)
    expected = exact(method, to_modes(pictures.double()).var(dim=0, correction=0)[0])
    torch.testing.assert_close(found.mean, pictures.mean(dim=0), rtol=0, atol=1e-5)
    for name in ("variance", "corrupted_variance", "covariance"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("change", [{}, {"peclet": 8.0}, {"operator": Identity(32)}, {"scales": Cosine()}])
def test_inputs_and_targets_have_variance_one_at_every_level(change: dict[str, object]) -> None:
    """For the pictures that were measured, under flow too. Tolerance: the spread of the mean over 6,144 correlated pixels."""
    method = REMAINDER.changed(levels=32).changed(**change)
    pictures, _ = gaussian(64, Size(16, 24))
    process = measured(method, pictures)
    for level in (1, 5, 16, 24, 32):
        inputs, target = method.denoiser.example(process, pictures, torch.full((64,), level), torch.arange(64))
        assert (2.0 * inputs - 1.0).square().mean() == pytest.approx(1.0, abs=0.15)
        assert target.square().mean() == pytest.approx(1.0, abs=0.15)


def test_without_blur_and_with_a_white_spectrum_it_is_the_preconditioning_of_edm() -> None:
    """Karras et al. (2022), table 1: c_skip, c_out and c_in, for pictures of root mean square sigma_data between -1 and 1."""
    method = named_method("edm")
    pictures = torch.rand((70, 1, *WIDE), generator=torch.Generator().manual_seed(0))
    data = (2.0 * pictures - 1.0).square().mean().sqrt().item()
    process, remainder = measured(method, pictures), method.denoiser
    u, prediction = torch.rand(3, 1, *WIDE), torch.randn(3, 1, *WIDE)
    for level in (1, 400, 1000):
        sigma = float(2.0 * process.noise[level] / process.signal[level])
        x = (2.0 * u - 1.0) / float(process.signal[level])
        torch.testing.assert_close(2.0 * remainder.inputs(process, u, level) - 1.0, x / (sigma**2 + data**2) ** 0.5)
        expected = data**2 / (sigma**2 + data**2) * x + sigma * data / (sigma**2 + data**2) ** 0.5 * prediction
        clean = remainder.clean(process, prediction, u, level, torch.arange(3))
        torch.testing.assert_close(2.0 * clean - 1.0, expected, rtol=1e-5, atol=1e-5)


def test_the_target_gives_the_clean_image_at_any_level() -> None:
    method = REMAINDER.changed(peclet=4.0, levels=40)
    pictures, _ = gaussian(8)
    process, remainder = measured(method, pictures), method.denoiser
    level, seed = torch.tensor([1, 3, 7, 12, 20, 30, 39, 40]), torch.arange(8)
    inputs, target = remainder.example(process, pictures, level, seed)
    u = process.corrupt(pictures, level, seed)
    torch.testing.assert_close(remainder.inputs(process, u, level), inputs)
    torch.testing.assert_close(remainder.clean(process, target, u, level, seed), pictures, rtol=0, atol=1e-5)
    one = remainder.clean(process, target[3:4], u[3:4], 12, seed[3:4])
    torch.testing.assert_close(one, pictures[3:4], rtol=0, atol=1e-5)


def test_the_network_is_told_how_far_a_pixel_is_from_black_and_white() -> None:
    """tanh(z / 2 r) and tanh((z - 1) / 2 r), z = 1/2 + (u - 1/2) / s, r = sigma / s, beside what it sees without them.

    They tell an exact 0 from a dark grey of four deviations of the noise (tanh 2 = 0.96); here that is 1/125 of the contrast.
    """
    method = REMAINDER.changed(levels=40)
    pictures, _ = gaussian(8)
    process = measured(method, pictures)
    told = method.changed(tell_ends=True).denoiser
    assert told.channels(1, process) == method.denoiser.channels(1, process) + 2
    level, seed = torch.tensor([1, 3, 7, 12, 20, 30, 39, 40]), torch.arange(8)
    u = process.corrupt(pictures, level, seed)
    inputs = told.inputs(process, u, level)
    torch.testing.assert_close(inputs[:, :-2], method.denoiser.inputs(process, u, level), rtol=0, atol=0)
    signal, noise = (torch.from_numpy(scale)[level][:, None, None, None] for scale in (process.signal, process.noise))
    z = 0.5 + (u.double() - 0.5) / signal
    for channel, end in ((-2, 0.0), (-1, 1.0)):
        expected = torch.tanh((z - end) / (2.0 * noise / signal))[:, 0]
        torch.testing.assert_close(2.0 * inputs[:, channel].double() - 1.0, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(told.inputs(process, u[3:4], 12), inputs[3:4], rtol=0, atol=1e-6)
    grey = torch.zeros(2, 1, *WIDE)
    grey[1] = 4.0 * float(process.ratio[1])
    black, dark = told.inputs(process, process.scaled(grey, 1), 1)[:, -2]
    assert (dark - black).min() > 0.48 and grey.max() < 1.01 / 125


def sampled_variance(method: Method, variance: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """Variance of the modes of samples by the exact denoiser: of Gaussian pictures the Wiener estimate, F = 0."""
    process, seed = method.forward.measured(exact(method, variance)), torch.arange(count)
    start = process.mean(torch.full((count, 1, *WIDE), 0.4), process.levels, seed)
    reverse = Reverse(process, method.denoiser, lambda u, level: torch.zeros_like(u), seed)
    samples = method.sampler(reverse, start, process.seeded_noise(seed, start), steps=steps)
    return to_modes(samples.double() - 0.4).square().mean(dim=(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("operator", [REMAINDER.operator, Identity(1000)], ids=["blur", "none"])
def test_the_exact_denoiser_gives_samples_of_the_distribution(eta: float, operator: Operator) -> None:
    """All modes get the variance of the pictures. Tolerance: five standard errors of 1,000 samples, and 3 % for 250 steps."""
    _, variance = gaussian(1)
    method = REMAINDER.changed(eta=eta, operator=operator, second_order_above=0.0)
    ratio = sampled_variance(method, variance, 1000, 250) / variance
    assert (ratio - 1.0).abs().max() < 5.0 * (2.0 / 1000) ** 0.5 + 0.03


@pytest.mark.parametrize(("above", "order"), [(None, 1.0), (0.3, 1.0), (0.0, 2.0)])
def test_the_order_of_the_steps(above: float | None, order: float) -> None:
    """Without fresh noise a sample is a linear map of its start: the error of one start falls as steps^-order."""
    _, variance = gaussian(1)

    def sample(steps: int) -> torch.Tensor:
        method = REMAINDER.changed(eta=0.0, second_order_above=above, operator=Identity(1000))
        return sampled_variance(method, variance, 1, steps)

    limit = sample(1000)
    errors = [(sample(steps) - limit).abs().max() for steps in (25, 50, 100)]
    assert float(errors[0] / errors[2]) > 4.0 ** (order - 0.25)


def test_a_run_keeps_its_statistics_and_samples_with_them(tmp_path: Path) -> None:
    config = tiny_config(REMAINDER.changed(levels=40, steps=5))
    assert train(config, stripes(), tmp_path / "run", "cpu")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    images = pipeline.sample(2)
    assert images.isfinite().all()
    pipeline.save_pretrained(tmp_path / "saved")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "saved").sample(2), images)
    tensors = vars(pipeline.statistics)
    for wrong in ({name: tensor[..., :4] for name, tensor in tensors.items()}, {"mean": tensors["mean"]}):
        save_tensors(tmp_path / "run" / FILE, wrong)
        with pytest.raises(InputError, match="not the statistics of 1 x 8 x 8 images; train the run again"):
            Pipeline.from_pretrained(tmp_path / "run")
    (tmp_path / "run" / FILE).unlink()
    with pytest.raises(InputError, match="missing; get a new copy"):
        Pipeline.from_pretrained(tmp_path / "run")
    with pytest.raises(InputError, match="needs the statistics"):
        config.method.denoiser.inputs(config.forward, images, 3)


def test_the_moments_are_those_of_mirrored_pictures_where_these_are_learned(tmp_path: Path) -> None:
    """One picture alone has no variance. With its mirror image it has, and the loss is of order one for each pixel."""
    picture, config = gaussian(1)[0].clamp(0.0, 1.0), tiny_config(REMAINDER.changed(levels=40, steps=5))
    config = replace(config, size=WIDE, training=replace(config.training, flip=True))
    train(config, as_dataset(picture.expand(4, -1, -1, -1)), tmp_path / "run", "cpu")
    variance = Pipeline.from_pretrained(tmp_path / "run").statistics.variance
    odd = torch.arange(WIDE.width) % 2  # modes that are odd in x change their sign
    torch.testing.assert_close(variance, odd * to_modes(picture)[0].square(), rtol=0, atol=1e-6)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(losses) < 10 * picture.numel()


@pytest.mark.parametrize("axis", [0, 1])
def test_the_flow_that_the_network_is_told_is_how_far_the_image_was_carried(axis: int) -> None:
    """du = -displacement . grad u: a ramp of slope g changes where it is zero by displacement times g.

    Tolerance: while the image is carried the blur of sigma pixels widens the velocity, whose eddies are about 4 to 32 pixels
    wide, and so do the scheme's means over three cells; the difference falls with sigma (28 % at 2, 15 % at 1, 12 % at 0.7).
    """
    side = 64
    fluid = named_method("fluid").changed(tell_flow=True, sigma_max=0.7 / 64, levels=10)
    process, still = (fluid.changed(peclet=peclet).forward for peclet in (8.0, 0.0))
    along = (torch.arange(side) - 0.5 * (side - 1)).expand(4, 1, side, side)
    ramp = (along if axis == 0 else along.mT).contiguous()
    seed, level = torch.arange(4), torch.full((4,), 10)
    told = fluid.denoiser.seen(process, ramp, level, seed)
    torch.testing.assert_close(told[:, :1], ramp)
    torch.testing.assert_close(fluid.denoiser.seen(still, ramp, level, seed)[:, 1:], torch.full((4, 2, side, side), 0.5))
    displacement = 2.0 * told[:, 1 + axis] - 1.0
    carried = (still.mean(ramp, level, seed) - process.mean(ramp, level, seed))[:, 0] / float(process.signal[10])
    near = (ramp[:, 0].abs() < 3.0) & (ramp.mT[:, 0].abs() < 24.0)
    assert displacement[near].square().mean().sqrt() > 0.02
    assert (carried - displacement)[near].square().mean().sqrt() < 0.13 * displacement[near].square().mean().sqrt()


def test_a_network_that_is_told_the_flow_trains_and_samples(tmp_path: Path) -> None:
    method = named_method("fluid").changed(levels=6, tell_flow=True, steps=4)
    assert train(tiny_config(method), stripes(), tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path)
    seen = []
    pipeline.network.register_forward_hook(lambda network, inputs, output: seen.append(inputs[0]))
    images = pipeline.sample(3, seed=1)
    torch.testing.assert_close(pipeline.sample([2], seed=1), images[2:])
    # Two estimates of the image, and the flow. It is one from the start to the end: its channels are in proportion in all steps.
    first, last = 2.0 * seen[0][:, -2:] - 1.0, 2.0 * seen[2][:, -2:] - 1.0
    ratio = (last * first).sum() / first.square().sum()
    assert seen[0].shape[1] == 4 and 0.0 < ratio < 1.0
    torch.testing.assert_close(last, ratio * first, rtol=1e-4, atol=1e-6)


def test_a_network_that_predicts_the_step_can_be_told_the_flow_too(tmp_path: Path) -> None:
    method = named_method("beyond-blur-curl").changed(levels=6, denoiser=Step(tell_flow=True))
    assert isinstance(method.sampler, Residual) and train(tiny_config(method), stripes(), tmp_path)
    assert Pipeline.from_pretrained(tmp_path).sample(2).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"peclet": 0.0}, {}, {"noise_exponent": 0.5}])
def test_the_network_sees_the_best_linear_estimates_of_image_and_noise(change: dict[str, object]) -> None:
    """Errors of the best linear estimates are uncorrelated with them, in every mode: <x b> = <b b> and <eps n> = c <n n> with one c
    for all modes, and <n n> is one in the mean. Tolerance: six standard errors of correlations of 4,096 pairs."""
    method = named_method("fluid").changed(levels=16, **change)
    pictures, _ = gaussian(4096)
    process, remainder = measured(method, pictures), method.denoiser
    seed, error = torch.arange(4096), 6.0 / 4096**0.5

    def left_over(truth: torch.Tensor, estimate: torch.Tensor) -> float:
        truth, estimate = (to_modes(part - part.mean(dim=0)) for part in (truth, estimate))
        product = ((truth - estimate) * estimate).mean(dim=0)
        return (product / (truth.square().mean(dim=0) * estimate.square().mean(dim=0)).sqrt()).abs().max().item()

    eps = process.unit_noise(seed, pictures)
    for level in (3, 8, 12, 16):
        inputs, _ = remainder.example(process, pictures, torch.full((4096,), level), seed)
        base, noise = inputs[:, :1], 2.0 * inputs[:, 1:] - 1.0
        u = process.corrupt(pictures, level, seed)
        torch.testing.assert_close(base, remainder.clean(process, torch.zeros_like(base), u, level, seed))
        assert left_over(pictures, base) < error
        assert noise.square().mean() == pytest.approx(1.0, abs=0.01)
        scale = (eps * noise).mean() / noise.square().mean()
        assert left_over(eps, scale * noise) < error


@pytest.mark.parametrize("exponent", [-0.5, 1.0])
def test_coloured_noise_has_its_spectrum_and_the_denoiser_knows_it(exponent: float) -> None:
    """Amplitude ~ (1 + k)^-p with k half waves a side, mean variance one. Tolerance: five standard errors of 4,096 amplitudes."""
    method = REMAINDER.changed(levels=16, noise_exponent=exponent)
    noise = method.forward.unit_noise(torch.arange(4096), torch.zeros((4096, 1, *WIDE)))
    power = to_modes(noise).square().mean(dim=0)[0]
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(12.0) * 8 / 12, indexing="ij")
    expected = (1.0 + (x**2 + y**2).sqrt()) ** (-2.0 * exponent)
    torch.testing.assert_close(power, expected / expected.mean(), rtol=5 * (2 / 4096) ** 0.5, atol=0)
    pictures, _ = gaussian(64)
    process = measured(method, pictures)
    for level in (2, 9, 16):
        inputs, target = method.denoiser.example(process, pictures, torch.full((64,), level), torch.arange(64))
        assert (2.0 * inputs - 1.0).square().mean() == pytest.approx(1.0, abs=0.15)
        assert target.square().mean() == pytest.approx(1.0, abs=0.15)


def test_a_moving_flow_is_another_one_and_keeps_the_mass() -> None:
    pictures, _ = gaussian(4, Size(16, 16))
    fluid = named_method("fluid").changed(levels=16, peclet=8.0)
    frozen, moving = (fluid.changed(turbulence_time=time).forward for time in (0.0, 4.0))
    seed = torch.arange(4)
    still, moved = (process.mean(pictures, 16, seed) for process in (frozen, moving))
    assert (still - moved).abs().max() > 1e-4 * float(frozen.signal[16])
    torch.testing.assert_close(still.mean(dim=(1, 2, 3)), moved.mean(dim=(1, 2, 3)), rtol=0, atol=1e-6)
