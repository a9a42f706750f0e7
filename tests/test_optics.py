"""Optical turbulence against closed forms: Fried, Noll, Tatarskii; tools/optics.py draws the same comparisons."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lbm_warp import InputError, OpticalTurbulence, check_operator
from lbm_warp.optics import shifted
from tools.optics import covariance, main, measured_spectrum, temporal_spectrum

# All of the air in the first or in the last hundredth of the path.
NEAR, FAR = (3e-12, *[0.0] * 100), (*[0.0] * 99, 1e-12, 1e-12)
AIRS = {
    "spherical": OpticalTurbulence(3.0),
    "plane, wind, outer scale": OpticalTurbulence(3.0, spherical=False, wind=(2.0, -1.0), time=3.0, outer_scale=1.0),
    "profile": OpticalTurbulence(cn2=(1e-14, 5e-15, 0.0, 2e-14), levels=3),
    "long exposure": OpticalTurbulence(3.0, long_exposure=True),
}


def tilts(optics: OpticalTurbulence, seeds: int, height: int = 2, width: int = 2) -> np.ndarray:
    """Tilt fields [rad], float64 [seeds, 2, height, width]."""
    return optics.tilt(range(seeds), height, width).double().numpy() * optics.view / min(height, width)


def assert_mean(samples: np.ndarray, expected: np.ndarray | float, sigmas: float = 4.0, systematic: float = 0.0) -> None:
    """The mean over the first axis is what is expected: within so many standard errors, std / sqrt(N), taken from the samples."""
    error = samples.std(axis=0) / len(samples) ** 0.5
    assert np.all(np.abs(samples.mean(axis=0) - expected) <= sigmas * error + systematic), (samples.mean(axis=0), expected, error)


@pytest.mark.parametrize("name", AIRS)
def test_is_a_right_operator(name: str, device: torch.device) -> None:
    optics = AIRS[name]
    report = check_operator(optics, (12, 20), channels=2, device=device)
    report.raise_if_wrong()
    assert report.adjoint is not None and report.random == (not optics.long_exposure)


def test_fried_parameter_and_rytov_variance() -> None:
    """r0 = (0.423 k^2 Cn2 L)^(-3/5) of a plane wave, with 3/8 of it of a spherical one; 1.23 and 0.5 Cn2 k^(7/6) L^(11/6)."""
    k = 2.0 * np.pi / 550e-9
    for spherical, share, rytov in ((False, 1.0, 1.23), (True, 3.0 / 8.0, 0.5)):
        for cn2 in (1e-14, [1e-14] * 7, np.full(3, 1e-14)):
            optics = OpticalTurbulence(cn2=cn2, spherical=spherical)
            assert optics.r0 == pytest.approx((0.423 * k**2 * 1e-14 * 1000.0 * share) ** -0.6, rel=2e-3)
            assert optics.rytov == pytest.approx(rytov * 1e-14 * k ** (7 / 6) * 1000.0 ** (11 / 6), rel=1e-2)
            again = OpticalTurbulence(optics.strength, spherical=spherical)
            assert again.rytov == pytest.approx(optics.rytov, rel=1e-6) and again.strength == optics.aperture / optics.r0


@pytest.mark.parametrize("name", ["spherical", "plane, wind, outer scale", "profile"])
def test_variance_and_covariance_of_the_tilt(name: str) -> None:
    optics = replace(AIRS[name], view=1e-4)
    tilt = tilts(optics, 300, width=24)[:, :, 0]
    assert covariance(optics, 0.0) == pytest.approx(optics.tilt_rms**2, rel=3e-3)
    if optics.outer_scale is None:
        expected = 0.182 * (optics.wavelength / optics.aperture) ** 2 * (optics.aperture / optics.r0) ** (5.0 / 3.0)
        assert optics.tilt_rms**2 == pytest.approx(expected, rel=1e-3)
    assert_mean((tilt**2).mean(axis=2), optics.tilt_rms**2)
    for apart in (1, 4, 23):
        exact = covariance(optics, apart * optics.view / 2.0)
        assert_mean((tilt[..., apart:] * tilt[..., :-apart]).mean(axis=2), exact)
        assert_mean(((tilt[..., apart:] - tilt[..., :-apart]) ** 2).mean(axis=2), 2.0 * (covariance(optics, 0.0) - exact))


def test_wind_carries_the_air() -> None:
    """In time the tilt has the covariance of a distance v t in the air, whatever its place along the path."""
    optics = OpticalTurbulence(3.0, wind=2.0)
    first = tilts(optics, 300)[..., 0, 0]
    for time in (0.02, 0.1, 5.0):
        then = replace(optics, time=time)
        assert_mean(first * tilts(then, 300)[..., 0, 0], covariance(optics, 0.0, time))
    # Frames of a film go on smoothly, and the pattern of a thin layer at z moves by v t / z over the field.
    film = [replace(optics, spherical=False, time=0.002 * n).tilt(0, 16, 16) for n in range(3)]
    assert (film[2] - 2.0 * film[1] + film[0]).norm() < 0.3 * (film[1] - film[0]).norm() < 0.1 * film[0].norm()
    layer = OpticalTurbulence(cn2=FAR, spherical=False, wind=1.0, view=4e-4)
    moved = replace(layer, time=4e-4 / 8 * 995.0).tilt(0, 8, 8)
    torch.testing.assert_close(moved[..., 1:], layer.tilt(0, 8, 8)[..., :-1], rtol=0.0, atol=0.1 * float(moved.std()))


def test_slopes_of_the_spectrum_in_time() -> None:
    """-2/3 below v / D, and -17/3 above: a tilt fitted to the wavefront, not its mean slope, which has -11/3 (Tyler 1994)."""
    optics = OpticalTurbulence(3.0, spherical=False, wind=1.0)
    for low, high, slope in ((0.01, 0.1, -2.0 / 3.0), (30.0, 120.0, -17.0 / 3.0)):
        frequency = np.geomspace(low, high, 40)
        power = temporal_spectrum(optics, frequency)
        assert np.polyfit(np.log(frequency), np.log(power), 1)[0] == pytest.approx(slope, abs=0.1)
    # The window of the measurement fills the dips between.
    for step in (0.1, 0.01):
        frequency, measured = measured_spectrum(optics, 40, step, count=48)
        logarithms = np.log(np.stack([measured.mean(axis=1), temporal_spectrum(optics, frequency)], axis=1))
        difference = np.polyfit(np.log(frequency), logarithms[:, 0] - logarithms[:, 1], 1)
        assert abs(difference[0]) < 0.5 and np.abs(logarithms[:, 0] - logarithms[:, 1]).mean() < 0.5


def test_transfer_functions_are_those_of_fried() -> None:
    short, long = (OpticalTurbulence(4.0, long_exposure=long, levels=10) for long in (False, True))
    x = torch.tensor([0.0, 0.1, 0.4, 0.9, 1.0, 1.5], dtype=torch.float64)
    frequency = x * short.aperture / short.wavelength
    inside = x.clamp(max=1.0)
    aperture = 2.0 / torch.pi * (inside.acos() - inside * (1.0 - inside**2).sqrt())
    for level, share in ((10, 1.0), (5, 0.5)):
        damping = 3.44 * share * (short.wavelength * frequency / short.r0) ** (5.0 / 3.0)
        expected = aperture * torch.exp(-damping)
        torch.testing.assert_close(long.transfer_function(frequency, level), expected, rtol=1e-2, atol=1e-12)
        expected = aperture * torch.exp(-damping * (1.0 - inside ** (1.0 / 3.0)))
        torch.testing.assert_close(short.transfer_function(frequency, level), expected, rtol=1e-2, atol=1e-12)
    assert torch.equal(long.transfer_function(frequency, 0), torch.ones_like(x))
    finite = replace(long, outer_scale=1.0).transfer_function(frequency)
    assert (finite >= long.transfer_function(frequency)).all() and (finite <= short.transfer_function(frequency)).all()


def test_long_exposure_is_the_mean_of_short_ones_with_their_tilt() -> None:
    """Exactly T_short exp(-2 pi^2 f^2 var(tilt)); Fried's 3.44 for 2 pi^2 0.182 = 3.59 leaves 4 % of the exponent's last part."""
    optics = OpticalTurbulence(3.0, view=32 * 3e-6)
    point = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    point[..., 16, 16] = 1.0
    pictures = torch.cat([optics(point.expand(50, -1, -1, -1), 50, range(n, n + 50)) for n in range(0, 300, 50)])
    spectra = torch.fft.rfft(torch.fft.ifftshift(pictures.sum(dim=2), dim=-1), dim=-1).real[:, 0, :8].numpy()
    frequency = torch.arange(8, dtype=torch.float64) / optics.view
    mean = optics.transfer_function(frequency) * torch.exp(-2.0 * torch.pi**2 * frequency**2 * optics.tilt_rms**2)
    assert_mean(spectra, mean.numpy())
    long = replace(optics, long_exposure=True)
    torch.testing.assert_close(mean, long.transfer_function(frequency), rtol=0.0, atol=0.012)
    seen = torch.fft.rfft(torch.fft.ifftshift(long(point, 50, 0).sum(dim=2), dim=-1), dim=-1).real[0, 0, :8]
    torch.testing.assert_close(seen, long.transfer_function(frequency), rtol=0.0, atol=2e-3)


@pytest.mark.slow
def test_the_figures_are_drawn(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--seeds", "10", "--seconds", "0.1"])
    assert {path.name for path in tmp_path.iterdir()} == {"optics.png", "heat-haze.jpg", "heat-haze.mp4"}


def test_light_and_grey_values_are_kept() -> None:
    point = torch.zeros(1, 1, 33, 33, dtype=torch.float64)
    point[..., 16, 16] = 1.0
    # Where all points of the scene have the same tilt, a point stays a point's light; else it does so in the mean.
    near = OpticalTurbulence(cn2=NEAR, view=1e-4)
    assert near.tilt(0, 33, 33).std(dim=(2, 3)).max() < 0.02 * near.tilt_rms * 33 / near.view
    torch.testing.assert_close(near(point, 50, 0).sum(), torch.tensor(1.0, dtype=torch.float64), rtol=0.0, atol=0.02)
    optics = OpticalTurbulence(3.0, view=1e-4)
    assert_mean(optics(point.expand(100, -1, -1, -1), 50, range(100)).sum(dim=(1, 2, 3)).numpy(), 1.0)
    flat = torch.full((1, 2, 12, 18), 0.7)
    torch.testing.assert_close(OpticalTurbulence(9.0)(flat, 50, 3), flat, rtol=0.0, atol=1e-5)


def test_the_same_air_at_every_size_level_and_dtype() -> None:
    optics = OpticalTurbulence(3.0)
    fine, coarse = optics.tilt(7, 63, 90), optics.tilt(7, 21, 30)
    torch.testing.assert_close(fine[..., 1::3, 1::3], 3.0 * coarse, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(optics.tilt([7, 7], 21, 30, level=[10, 0])[0], 0.2**0.5 * coarse[0])
    u0 = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    u = optics(u0, 50, [1, 2])
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
        result = optics(u0.to(dtype), 50, [1, 2])
        assert result.dtype == dtype
        torch.testing.assert_close(result.float(), u, rtol=0.0, atol=tolerance)
    torch.testing.assert_close(optics(u0.to(memory_format=torch.channels_last), 50, [1, 2]), u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(optics(u0, 50, [1, 2]), u)


def test_the_air_that_is_kept_is_that_of_the_question() -> None:
    """Whatever seeds, sizes, levels and times were asked for before, and whether in inference mode or not."""
    optics, u0 = OpticalTurbulence(3.0, wind=2.0), torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor([1, 2])
    with torch.inference_mode():
        before = optics(u0, 50, seed).clone()
    u0.requires_grad_()
    optics(u0, 50, seed).sum().backward()
    seed += 1
    for found, expected in (
        (optics(u0, 50, seed), [2, 3]),
        (optics(u0[:, :, :7], 50, seed), [2, 3]),
        (optics(u0, 50, [1, 2]), [1, 2]),
    ):
        u = u0[:, :, : found.shape[2]]
        assert torch.equal(found, OpticalTurbulence(3.0, wind=2.0)(u, 50, expected))
    assert torch.equal(optics(u0, 50, [1, 2]), before)
    assert not torch.equal(replace(optics, time=1.0)(u0, 50, [1, 2]), before)


def test_grey_values_are_carried_by_a_cubic_spline() -> None:
    """Exact where the way is whole pixels, and of fourth order where it is not; mirror images beyond the borders."""
    u = torch.rand(1, 2, 9, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    way = torch.zeros(1, 2, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(u, way), u)
    way[:, 0] = 2.0
    torch.testing.assert_close(shifted(u, way)[..., 2:], u[..., :-2])
    torch.testing.assert_close(shifted(u, way)[..., :2], u[..., :2].flip(-1))
    errors = []
    for size in (32, 64):
        x = (torch.arange(size, dtype=torch.float64) + 0.5) / size
        way = torch.full((1, 2, size, size), 0.5, dtype=torch.float64) * torch.tensor([1.0, 0.0])[:, None, None]
        u = torch.cos(6.0 * torch.pi * x).expand(1, 1, size, size)
        errors.append(float((shifted(u, way) - torch.cos(6.0 * torch.pi * (x - 0.5 / size))).abs().max()))
    assert errors[1] < errors[0] / 12.0 < 1e-3


def test_blur_varies_where_the_path_is_anisoplanatic() -> None:
    """Stripes keep another contrast in every part of the picture; where all air is near, in every picture."""
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 1, 64, 64)

    def contrast(cn2: tuple[float, ...], seed: int) -> torch.Tensor:
        optics = OpticalTurbulence(cn2=cn2, view=64 * 4e-6)
        return optics(stripes, 50, seed)[0, 0].unfold(0, 16, 16).unfold(1, 16, 16).std(dim=(2, 3))

    def spread(values: torch.Tensor) -> float:
        return float(values.std() / values.mean())

    near = torch.stack([contrast(NEAR, seed) for seed in range(6)])
    uniform = contrast((3e-14,) * 2, 0)
    assert spread(near[0, 1:3, 1:3]) < 0.02 < 0.05 < spread(near.mean(dim=(1, 2)))
    assert spread(uniform[1:3, 1:3]) > 0.03


def test_numbers_may_be_arrays_and_frequencies_anything() -> None:
    air = OpticalTurbulence(cn2=np.array(1e-14), wind=torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    assert air == OpticalTurbulence(cn2=1e-14, wind=(1.0, 2.0))
    west, east = OpticalTurbulence(3.0, wind=-2.0, time=0.5), OpticalTurbulence(3.0, wind=(-2.0, 0.0), time=0.5)
    assert torch.equal(west.tilt(0, 4, 4), east.tilt(0, 4, 4))
    expected = air.transfer_function(torch.tensor([1e5], dtype=torch.float64))
    assert expected.dtype == torch.float64 and 0.0 < expected < 1.0
    for frequency in (np.array([1e5]), [-1e5], 1e5, torch.tensor([100000])):
        torch.testing.assert_close(air.transfer_function(frequency).reshape(1), expected)  # type: ignore[arg-type]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no strength": ({}, "either d_over_r0 or cn2"),
    "two strengths": ({"d_over_r0": 3.0, "cn2": 1e-14}, "either d_over_r0 or cn2"),
    "no aperture": ({"d_over_r0": 3.0, "aperture": 0.0}, r"aperture \[m\]"),
    "nanometres": ({"d_over_r0": 3.0, "wavelength": 550}, r"wavelength \[m\]"),
    "degrees": ({"d_over_r0": 3.0, "view": 2.0}, r"view \[rad\]"),
    "no eddies so large": ({"d_over_r0": 0.1, "outer_scale": 0.5}, "above the outer scale"),
    "no outer scale": ({"d_over_r0": 3.0, "outer_scale": 0.0}, "outer_scale"),
    "a storm": ({"d_over_r0": 3.0, "wind": -2000.0}, "wind must be from -1000"),
    "wind in space": ({"d_over_r0": 3.0, "wind": (1.0, 0.0, 0.0)}, "two components"),
    "no air": ({"cn2": [0.0, 0.0]}, "above 0 somewhere"),
    "negative air": ({"cn2": [1e-14, -1e-14]}, "cn2 must be from 0"),
    "air of two dimensions": ({"cn2": np.ones((2, 2))}, "cn2 must be from 0"),
    "words": ({"cn2": "strong"}, "cn2 must be from 0"),
    "not a number": ({"d_over_r0": float("nan")}, "d_over_r0"),
    "a word for yes": ({"d_over_r0": 3.0, "spherical": "no"}, "spherical must be True or False"),
    "wind to be learned": ({"d_over_r0": 3.0, "wind": torch.ones(2, requires_grad=True)}, "no gradient in wind"),
    "no level": ({"d_over_r0": 3.0, "levels": 0}, "levels"),
}


@pytest.mark.parametrize("name", BAD)
def test_values_that_contradict_each_other_are_refused(name: str) -> None:
    arguments, message = BAD[name]
    with pytest.raises(InputError, match=message) as caught:
        OpticalTurbulence(**arguments)
    assert len(str(caught.value).splitlines()) == 1
