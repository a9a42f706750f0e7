"""Draw optical turbulence: its closed forms against what is measured, and a building through the air, as a picture and a film."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from scipy.special import j0, j1, jv
from tqdm.auto import tqdm

from cli import console, figures, render
from cli.video import save_video
from lbm_warp import OpticalTurbulence

SPECTRUM = 0.0229  # of Kolmogorov's phase: 0.0229 r0^(-5/3) f^(-11/3) [rad^2 m^2]
STRENGTHS = (1.0, 3.0, 6.0)
PRINT = ("HEAT HAZE", "D / r0 = 1, 3, 6", "the air moves, the wall stays", "Fried 1966, Noll 1976, Tatarskii 1971")
FONT = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
CYCLES = (np.arange(1000) + 0.5) ** 3 * 2e-8  # cycles per aperture; the tilt of long waves is evenly spread in their cube roots


@dataclass(frozen=True)
class Optics:
    """Options of ``python -m tools.optics``."""

    out: Path = Path("outputs/optics")
    """Folder for optics.png, heat-haze.jpg and heat-haze.mp4."""
    seeds: int = 1000
    """Seeds that the means are taken over."""
    seconds: float = 2.5
    """Length of the film."""
    fps: int = 24
    """Frames per second of the film."""


def draw(options: Optics) -> None:
    """Draw the figures and the film."""
    console.check_at_least(options, seeds=10, fps=1)
    figures.save_figure(options.out / "optics.png", theory(options.seeds), dpi=110)
    u0 = torch.from_numpy(building(320).transpose(2, 0, 1)[None] / np.float32(255.0))
    pictures = [render.to_pixels(u[0]) for u in (u0, *(OpticalTurbulence(d)(u0, 50, seed=5) for d in STRENGTHS))]
    sheet = np.vstack([np.hstack(pictures[:2]), np.hstack(pictures[2:])])
    render.save_image(options.out / "heat-haze.jpg", sheet, "building")
    save_video(options.out / "heat-haze.mp4", film(options), options.fps)
    print(f"wrote optics.png, heat-haze.jpg, heat-haze.mp4 to {options.out}")


def film(options: Optics) -> Iterator[np.ndarray]:
    """The building through air that a wind of half a metre a second carries along, at three strengths side by side."""
    u0 = torch.from_numpy(building(200).transpose(2, 0, 1)[None] / np.float32(255.0))
    for frame in tqdm(range(round(options.seconds * options.fps)), desc="film", unit="frame"):
        airs = [OpticalTurbulence(d, wind=(0.5, 0.1), time=frame / options.fps) for d in STRENGTHS]
        yield np.hstack([render.to_pixels(air(u0, air.levels, seed=5)[0]) for air in airs])


def theory(seeds: int) -> Figure:
    """Closed forms, drawn through, and what is measured, as points with twice their standard error."""
    figure = Figure(figsize=(figures.WIDTH, 7.0), layout="constrained")
    panels = zip(figure.subplots(2, 2).flat, (_variance, _structure, _transfer_functions, _in_time), strict=True)
    for axes, panel in panels:
        panel(axes, seeds)
        axes.legend(fontsize=8)
    return figure


def covariance(optics: OpticalTurbulence, angle: float, seconds: float = 0.0) -> np.ndarray:
    """Covariance of the tilts [rad^2] of two points ``angle`` apart and two moments, along and across what lies between them.

    By quadrature (Tatarskii 1971; Sasiela 1994): energy Cn2 gamma^2 f^(-11/3) (f 8 J_2(x) / x^2)^2 f df dz, x = pi D gamma f,
    times J_0 -+ J_2 of 2 pi f d, for the distance d = angle z - wind time of two footprints at z.
    """
    z = optics.path * (np.arange(200) + 0.5) / 200
    gamma = 1.0 - z / optics.path if optics.spherical else np.ones_like(z)
    profile = np.atleast_1d(1.0 if optics.cn2 is None else optics.cn2)
    energy = np.outer(response(CYCLES), np.interp(z, np.linspace(0.0, optics.path, len(profile)), profile) * gamma ** (5.0 / 3.0))
    energy *= 0.182 * (optics.wavelength / optics.aperture) ** 2 * optics.strength ** (5.0 / 3.0) / energy.sum()
    f = CYCLES[:, None] / (optics.aperture * gamma)
    energy /= (1.0 + (1.0 / (f * (optics.outer_scale or np.inf))) ** 2) ** (11.0 / 6.0)
    a = 2.0 * np.pi * f * (angle * z - np.atleast_1d(optics.wind)[0] * seconds) + 1e-9
    along, both = (energy * (2.0 * j0(a) - 2.0 * j1(a) / a)).sum(), (energy * 2.0 * j0(a)).sum()
    return np.array([along, both - along])


def response(cycles: np.ndarray) -> np.ndarray:
    """Energy of the tilt of a wave of the phase with so many cycles per aperture, relative to a long one (Noll 1976)."""
    x = np.pi * cycles
    return (8.0 * jv(2, x) / x**2) ** 2


def temporal_spectrum(optics: OpticalTurbulence, frequency: np.ndarray) -> np.ndarray:
    """Power of the tilt along the wind [rad^2 / Hz] at frequencies [Hz], for a plane wave: a line of the one in space."""
    wind, unit = np.atleast_1d(optics.wind)[0], optics.wavelength / optics.aperture
    across = np.concatenate([-CYCLES[::-1], CYCLES])
    along = frequency[:, None] * optics.aperture / wind
    cycles = np.hypot(along, across)
    power = along**2 * cycles ** (-11.0 / 3.0) * response(cycles)
    scale = 2.0 * SPECTRUM * optics.strength ** (5.0 / 3.0) * unit**2 * optics.aperture / wind
    return scale * np.trapezoid(power, across, axis=1)


def measured_spectrum(optics: OpticalTurbulence, seeds: int, step: float, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """What :func:`temporal_spectrum` says, from moments ``step`` seconds apart: frequencies [Hz], power of each seed."""
    moments = [replace(optics, time=step * number).tilt(range(seeds), 2, 2)[:, 0, 0, 0] for number in range(count)]
    tilt = torch.stack(moments).double().numpy() * optics.view / 2.0
    window = np.blackman(count)[:, None]
    power = 2.0 * step / (window**2).sum() * np.abs(np.fft.rfft(window * (tilt - tilt.mean(axis=0)), axis=0)) ** 2
    return np.fft.rfftfreq(count, step)[4 : count // 3], power[4 : count // 3]


def _points(axes: Axes, x: np.ndarray, samples: np.ndarray, label: str, colour: str) -> None:
    """Means over the last axis, with twice their standard error."""
    error = 2.0 * samples.std(axis=-1) / samples.shape[-1] ** 0.5
    axes.errorbar(x, samples.mean(axis=-1), error, fmt="o", markersize=3, color=colour, label=label, linewidth=1)


def _variance(axes: Axes, seeds: int) -> None:
    strengths = np.geomspace(0.5, 16.0, 11)
    for scale, colour in ((None, "C0"), (1.0, "C1")):
        airs = [OpticalTurbulence(d, outer_scale=scale) for d in strengths]
        unit = airs[0].wavelength / airs[0].aperture
        tilt = np.stack([(air.tilt(range(seeds), 2, 2)[:, 0, 0, 0].numpy() * air.view / 2.0 / unit) ** 2 for air in airs])
        name = "no outer scale" if scale is None else f"outer scale {scale:g} m"
        axes.loglog(strengths, [covariance(air, 0.0)[0] / unit**2 for air in airs], color=colour, linewidth=1)
        _points(axes, strengths, tilt, name, colour)
    axes.set(title="Variance of the tilt: 0.182 (D / r0)^(5/3)", xlabel="D / r0", ylabel="variance on an axis [(λ / D)²]")


def _structure(axes: Axes, seeds: int) -> None:
    angles = np.arange(1, 32)
    for spherical, (along, across) in ((True, ("C0", "C1")), (False, ("C2", "C3"))):
        air = OpticalTurbulence(3.0, spherical=spherical, view=4e-5)
        pixel, unit = air.view / 2.0, air.wavelength / air.aperture
        tilt = air.tilt(range(seeds), 2, 32)[:, :, 0].double().numpy() * pixel / unit
        exact = np.stack([2.0 * (covariance(air, 0.0) - covariance(air, angle * pixel)) / unit**2 for angle in angles])
        for axis, colour in enumerate((along, across)):
            name = f"{'spherical' if spherical else 'plane'}, {('along', 'across')[axis]}"
            axes.plot(angles * pixel * 1e6, exact[:, axis], color=colour, linewidth=1)
            square = (tilt[:, axis, 1:] - tilt[:, axis, :1]) ** 2
            _points(axes, (angles * pixel * 1e6)[::3], square.T[::3], name, colour)
    axes.set(title="Structure function of the tilt over the field", xlabel="angle of two points [µrad]", ylabel="[(λ / D)²]")


def _transfer_functions(axes: Axes, seeds: int) -> None:
    short, long = OpticalTurbulence(3.0), OpticalTurbulence(3.0, long_exposure=True)
    x = torch.linspace(0.0, 1.0, 101, dtype=torch.float64)
    frequency = x * short.aperture / short.wavelength
    for air, name, colour in ((short, "short exposure, without its tilt", "C0"), (long, "long exposure", "C1")):
        axes.plot(x, air.transfer_function(frequency), color=colour, linewidth=1, label=f"{name} (Fried 1966)")
    # A point in the middle, seen many times: the spectrum of its mean picture.
    size = 128
    point = torch.zeros(1, 1, size, size)
    point[..., size // 2, size // 2] = 1.0
    air = replace(short, view=size * short.wavelength / (2.0 * short.aperture))
    pictures = torch.cat([air(point, air.levels, seed) for seed in range(seeds // 4)])
    spectra = torch.fft.fft(torch.fft.ifftshift(pictures.sum(dim=2), dim=-1), dim=-1).real[:, 0, : size // 2]
    _points(axes, np.arange(size // 2)[2::3] / (size / 2), spectra.T.numpy()[2::3], "mean of short ones with their tilt", "C2")
    axes.set(title="Transfer functions, D / r0 = 3", xlabel="λ f / D", ylabel="contrast")


def _in_time(axes: Axes, seeds: int) -> None:
    air = OpticalTurbulence(3.0, spherical=False, wind=1.0)
    unit, turn = air.wavelength / air.aperture, air.aperture
    frequency = np.geomspace(0.01, 6.0, 200) / turn
    axes.loglog(frequency * turn, temporal_spectrum(air, frequency) / unit**2, color="C0", linewidth=1, label="quadrature")
    for step, colour in ((1.0, "C1"), (0.07, "C2")):
        f, power = measured_spectrum(air, seeds // 10, step * turn)
        _points(axes, f * turn, power / unit**2, f"frames every {step:g} D / v", colour)
    for slope, place, value in ((-2 / 3, 0.02, 3.0), (-17 / 3, 1.5, 1e-3)):
        part = place * np.array([1.0, 3.0])
        axes.loglog(part, value * temporal_spectrum(air, part[:1] / turn) / unit**2 * (part / place) ** slope, "--", color="grey")
    axes.set(title="Power of the tilt in time: slopes -2/3 and -17/3", xlabel="frequency D / v", ylabel="[(λ / D)² / Hz]")


def building(size: int) -> np.ndarray:
    """A house front of brick with a sign, windows, bars, small print and railings, uint8 [size, size, 3]."""
    fine = 4 * size / 256  # drawn four times as large, in units of 1 / 256
    sky = np.linspace(0.0, 1.0, 4 * size)[:, None, None] ** 0.8 * np.array([104, 68, 21]) + np.array([118, 160, 205])
    image = Image.fromarray(np.broadcast_to(sky, (4 * size, 4 * size, 3)).astype(np.uint8))
    pen, random = ImageDraw.Draw(image), np.random.default_rng(3)
    white, stone, dark = (240, 240, 236), (226, 220, 206), (20, 20, 24)

    def box(x: float, y: float, width: float, height: float, colour: tuple[int, ...]) -> None:
        pen.rectangle([x * fine, y * fine, (x + width) * fine - 1, (y + height) * fine - 1], fill=colour)

    def text(x: float, y: float, height: float, words: str, colour: tuple[int, ...], anchor: str = "lm") -> None:
        pen.text((x * fine, y * fine), words, fill=colour, font=ImageFont.truetype(FONT, height * fine), anchor=anchor)

    for y in range(8, 40, 6):
        for x in (206, 216):
            pen.line([x * fine, y * fine, (422 - x) * fine, (y + 6) * fine], fill=(150, 60, 50), width=round(0.8 * fine))
            box(x - 0.6, 4, 1.2, 40, (150, 60, 50))
    box(18, 44, 220, 212, (186, 150, 132))
    for row, y in enumerate(range(48, 256, 4)):
        for x in range(18 - row % 2 * 5, 238, 10):
            left, right = max(x, 18) + 0.3, min(x + 10, 238) - 0.3
            tone = int(random.normal(0.0, 9.0))
            box(left, y + 0.3, right - left, 3.4, (160 + tone, 88 + tone, 70 + tone))
    box(12, 38, 232, 8, (214, 206, 190))
    box(12, 46, 232, 2, (120, 112, 100))
    box(40, 54, 176, 22, (28, 44, 66))
    text(128, 65, 17, "OBSERVATORY", (245, 238, 214), "mm")
    for number in range(10):
        x, y = 30 + 42 * (number % 5), 86 + 46 * (number // 5)
        box(x - 3, y - 3, 34, 42, stone)
        box(x - 5, y + 38, 38, 4, (196, 188, 172))
        lit = number % 7 == 1
        box(x, y, 28, 36, (250, 214, 130) if lit else (52, 70, 92))
        if not lit:
            pen.polygon([(x * fine, y * fine), ((x + 18) * fine, y * fine), (x * fine, (y + 26) * fine)], fill=(92, 116, 142))
        box(x + 13, y, 2, 36, stone)
        box(x, y + 17, 28, 2, stone)
    box(22, 182, 84, 40, white)
    left = 26.0
    for width in (3.0, 2.4, 1.8, 1.2, 0.8):
        for bar in range(4):
            box(left + 2 * bar * width, 186, width, 32, dark)
        left += 8 * width + 1.5
    box(150, 182, 82, 40, white)
    for line, height, words in zip((188, 197, 205, 213), (8.0, 6.0, 4.5, 3.4), PRINT, strict=True):
        text(153, line, height, words, dark)
    box(112, 180, 32, 76, stone)
    box(116, 185, 24, 71, (44, 78, 68))
    for x in (119, 130):
        box(x, 190, 7, 22, (34, 60, 53))
        box(x, 216, 7, 28, (34, 60, 53))
    for x in [*range(1, 110, 5), *range(147, 256, 5)]:
        box(x, 232, 1.2, 24, (40, 42, 46))
    box(0, 232, 110, 1.8, (40, 42, 46))
    box(146, 232, 110, 1.8, (40, 42, 46))
    box(0, 250, 256, 6, (120, 118, 112))
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


main = partial(console.run, "optics", draw, partial(tyro.cli, Optics), package="tools")


if __name__ == "__main__":
    main()
