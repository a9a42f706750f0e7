"""Figures with captions: strips, velocity fields, comparisons, restorations, costs."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion.files import whole_file

matplotlib.use("Agg")
from matplotlib import font_manager
from matplotlib import pyplot as plt

INK = "#20242c"


def save_figure(path: Path, figure: plt.Figure, dpi: int = 160) -> None:
    """Write a figure and close it."""
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=dpi, facecolor="white")
    plt.close(figure)


def strip(images: Sequence[np.ndarray], captions: Sequence[str], title: str) -> plt.Figure:
    """Pictures in one row, a caption under each."""
    height, width = images[0].shape[:2]
    # Inches: a picture is 2.1 wide, or 3.4 high if it is a tall one; a caption needs 1.1 beside its neighbours.
    panel_width = min(2.1, 3.4 * width / height)
    panel_height = panel_width * height / width
    cell = max(panel_width, 1.1)
    margin, gap, head, foot = 0.15, 0.08, 0.5, 0.62
    columns = len(images)
    size = (2 * margin + columns * cell + (columns - 1) * gap, head + panel_height + foot)
    figure = plt.figure(figsize=size)
    figure.text(margin / size[0], 1 - 0.5 * head / size[1], title, ha="left", va="center", fontsize=11, color=INK)
    for column, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        middle = margin + column * (cell + gap) + cell / 2
        left = middle - panel_width / 2
        axes = figure.add_axes((left / size[0], foot / size[1], panel_width / size[0], panel_height / size[1]))
        axes.imshow(pixels, interpolation="nearest" if min(height, width) < 64 else "antialiased")
        axes.set_axis_off()
        figure.text(
            middle / size[0], (foot - 0.08) / size[1], caption, ha="center", va="top", fontsize=9, linespacing=1.35, color=INK
        )
    return figure


def restorations(
    original: np.ndarray, corrupted: Sequence[np.ndarray], restored: Sequence[Sequence[np.ndarray]], captions: Sequence[str]
) -> plt.Figure:
    """A picture, what became of it at several levels (a row each, with its caption), and what was restored from that."""
    panel, gap, wide, margin, head = 1.1, 0.06, 0.2, 0.15, 0.34
    columns = 2 + max(map(len, restored))
    # Inches from the left: the original, the corrupted ones with their captions, the restorations.
    left = [margin, margin + panel + 1.05 + wide]
    left += [left[1] + panel + wide + (panel + gap) * number for number in range(columns - 2)]
    size = (left[-1] + panel + margin, head + len(corrupted) * (panel + gap) + margin)
    figure = plt.figure(figsize=size)

    def place(pixels: np.ndarray, column: int, row: float) -> None:
        bottom = size[1] - head - panel - row * (panel + gap)
        axes = figure.add_axes((left[column] / size[0], bottom / size[1], panel / size[0], panel / size[1]))
        axes.imshow(pixels, interpolation="nearest" if min(pixels.shape[:2]) < 64 else "antialiased")
        axes.set_axis_off()

    def write(text: str, x: float, y: float, **options: object) -> None:
        figure.text(x / size[0], y / size[1], text, color=INK, fontsize=9, linespacing=1.35, **options)

    middle_row = (len(corrupted) - 1) / 2
    place(original, 0, middle_row)
    top = size[1] - 0.75 * head
    for column, text, row in ((0, "original", middle_row), (1, "corrupted", 0), (2, "restored", 0)):
        write(text, left[column], top - row * (panel + gap), va="baseline")
    for row, caption in enumerate(captions):
        middle = size[1] - head - panel / 2 - row * (panel + gap)
        write(caption, left[1] - 0.12, middle, ha="right", va="center")
        for column, pixels in enumerate([corrupted[row], *restored[row]], start=1):
            place(pixels, column, row)
    return figure


def velocity_figure(
    velocity: np.ndarray, title: str, spectrum: tuple[np.ndarray, np.ndarray, np.ndarray], seeds: int
) -> plt.Figure:
    """A velocity field [2, H, W]: speed in colour, the way it goes as streamlines; beside it how its energy is spread.

    ``spectrum`` holds wavenumbers, the energy of this field and its mean over the fields of so many seeds.
    """
    _, height, width = velocity.shape
    speed = np.hypot(*velocity)
    tall = float(np.clip(0.6 + 6.4 * height / width, 4.2, 12.0))
    figure, (axes, beside) = plt.subplots(1, 2, figsize=(12.4, tall), width_ratios=(7.6, 4.2), layout="constrained")
    shown = axes.imshow(speed, cmap="magma", extent=(0, width, height, 0), interpolation="bilinear", vmin=0.0)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    axes.streamplot(x, y, *velocity, density=1.6, color="white", linewidth=0.3 + 0.9 * speed / speed.max(), arrowsize=0.7)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("speed / V", color=INK)
    bar.outline.set_visible(False)
    for side in axes.spines.values():
        side.set_visible(False)

    k, this, mean = spectrum
    magma = plt.get_cmap("magma")
    beside.loglog(k, this, color=magma(0.75), linewidth=1.0, label="this flow")
    beside.loglog(k, mean, color=magma(0.35), linewidth=2.4, label=f"mean of {seeds} seeds")
    # Kolmogorov's law, a little above the curve.
    law = 1.6 * mean[k <= 2][-1] * (k / k[k <= 2][-1]) ** (-5.0 / 3.0)
    beside.loglog(k, law, color=INK, linestyle=(0, (5, 3)), linewidth=1.2, label="$k^{-5/3}$ (Kolmogorov)")
    floor = 1e-5 * mean.max()
    beside.set(xlim=(0.9, 1.1 * k[mean > floor].max()), ylim=(floor, 1.5 * law.max()))
    beside.set_box_aspect(1.0)
    beside.set_xlabel("wavenumber k [waves per shorter side]", color=INK)
    beside.set_title("Energy spectrum E(k) / V$^2$", fontsize=11, color=INK, loc="left")
    beside.legend(frameon=False, loc="lower left", fontsize=9)
    _plain(beside)
    return figure


class ComparedRow(NamedTuple):
    """A process in a comparison: its name, a line or two about it, pictures uint8 [H, W, 3], and their spectra (k, power)."""

    name: str
    about: str
    pictures: Sequence[np.ndarray]
    spectra: Sequence[tuple[np.ndarray, np.ndarray]]


def comparison(rows: Sequence[ComparedRow], fractions: Sequence[float]) -> plt.Figure:
    """One row a process: pictures at the same shares of the way, and at the end how their power is spread over scales."""
    height, width = rows[0].pictures[0].shape[:2]
    # Inches.
    columns, panel_width = len(fractions), float(np.clip(1.75 * width / height, 0.7, 2.4))
    panel_height = panel_width * height / width
    spectrum_height = min(panel_height, 1.6)
    margin, gap, label, head, spectrum_width = 0.15, 0.06, 1.75, 0.42, 2.0
    size = (
        margin + label + columns * (panel_width + gap) + 0.62 + spectrum_width + margin,
        head + len(rows) * (panel_height + gap) + 0.5,
    )
    figure = plt.figure(figsize=size)

    def axes_at(left: float, top: float, width: float, height: float) -> plt.Axes:
        return figure.add_axes((left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1]))

    def text_at(left: float, top: float, text: str, **style: object) -> None:
        figure.text(left / size[0], 1 - top / size[1], text, **({"color": INK, "fontsize": 10} | style))

    colours = plt.get_cmap("plasma")(np.linspace(0.0, 0.88, columns))
    right = margin + label + columns * (panel_width + gap) + 0.62
    low = min(power.max() for _, power in rows[0].spectra) * 1e-9
    peak = max(power.max() for row in rows for _, power in row.spectra)
    for column, fraction in enumerate(fractions):
        middle = margin + label + column * (panel_width + gap) + panel_width / 2
        title = "clean" if fraction == 0 else f"k / K = {fraction:.2g}"
        text_at(middle, head / 2, title, ha="center", va="center", color=colours[column] if fraction else INK)
    text_at(right + spectrum_width / 2, head / 2, "power at scale", ha="center", va="center")
    for index, row in enumerate(rows):
        top = head + index * (panel_height + gap)
        middle = top + panel_height / 2
        text_at(margin, middle - 0.06, row.name, ha="left", va="bottom", fontsize=12, fontweight="bold")
        text_at(margin, middle, row.about, ha="left", va="top", fontsize=8.5, linespacing=1.4)
        for column, picture in enumerate(row.pictures):
            axes = axes_at(margin + label + column * (panel_width + gap), top, panel_width, panel_height)
            axes.imshow(picture, interpolation="nearest" if min(height, width) < 64 else "antialiased")
            axes.set_axis_off()
        beside = axes_at(right, middle - spectrum_height / 2 + 0.05, spectrum_width, spectrum_height - 0.1)
        for colour, (k, power) in zip(colours, row.spectra, strict=True):
            beside.loglog(k, np.maximum(power, low / 10), color=colour, linewidth=1.3)
        beside.set_ylim(low, 3 * peak)
        beside.tick_params(labelsize=7, labelbottom=index == len(rows) - 1)
        _plain(beside)
    beside.set_xlabel("waves per shorter side", fontsize=8.5, color=INK)
    return figure


class SweepPanel(NamedTuple):
    """A score in a sweep: its name, whether more is better, that of real pictures, and that of every run."""

    name: str
    more_is_better: bool
    floor: float
    curves: Mapping[str, Mapping[float, Sequence[float]]]
    """By process and Peclet number the scores of all seeds."""
    shared: Collection[float]
    """Peclet numbers at which the curves meet, because their runs are the same."""


def sweep_curves(panels: Sequence[SweepPanel], title: str, about: str) -> plt.Figure:
    """Every score against the Peclet number, a line a process: mean, standard deviation and single seeds, and the floor."""
    figure, grid = plt.subplots(2, 3, figsize=(11.0, 6.9), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    values = sorted({value for curve in panels[0].curves.values() for value in curve})
    for panel, axes in zip(panels, grid.flat, strict=True):
        axes.axhline(panel.floor, color=INK, linestyle=(0, (5, 3)), linewidth=1.1, label="floor")
        # Side by side, so that no bar hides another.
        sides = min(0.12, 0.6 / len(panel.curves)) * (np.arange(len(panel.curves)) - (len(panel.curves) - 1) / 2)
        for (process, curve), colour, side in zip(panel.curves.items(), plt.get_cmap("Dark2").colors, sides, strict=False):
            places = {value: values.index(value) + (0.0 if value in panel.shared else side) for value in curve}
            means = [np.mean(scores) for scores in curve.values()]
            axes.plot(list(places.values()), means, color=colour, linewidth=1.8, marker="o", markersize=5, label=process)
            for value, scores in curve.items():
                if len(scores) > 1:
                    style = {"color": INK if value in panel.shared else colour, "zorder": 3}
                    axes.errorbar(places[value], np.mean(scores), np.std(scores, ddof=1), fmt="o", markersize=5, capsize=3, **style)
                    axes.scatter([places[value]] * len(scores), scores, s=9, alpha=0.45, linewidths=0, **style)
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlim(-0.4, len(values) - 0.6)
        arrow = "\N{UPWARDS ARROW}" if panel.more_is_better else "\N{DOWNWARDS ARROW}"
        axes.set_title(f"{panel.name} {arrow}", fontsize=10.5, color=INK, loc="left")
        _plain(axes)
    for axes in grid[-1]:
        axes.set_xlabel("Peclet number", color=INK)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend([*handles[1:], handles[0]], [*labels[1:], labels[0]], loc="outside upper right", ncols=len(labels), frameon=False)
    figure.text(0.012, 0.985, title, ha="left", va="top", fontsize=12, color=INK)
    figure.supxlabel(textwrap.fill(about, 165), x=0.012, ha="left", fontsize=8.5, color=INK, linespacing=1.4)
    return figure


def rows(strips: Sequence[tuple[str, np.ndarray]], title: str) -> plt.Figure:
    """Strips of one size below each other, what each is beside it."""
    height, width = strips[0][1].shape[:2]
    # Inches.
    label, margin, gap, head = 1.35, 0.15, 0.02, 0.42
    strip_width = 9.0
    strip_height = strip_width * height / width
    size = (margin + label + strip_width + margin, head + len(strips) * (strip_height + gap) + margin)
    figure = plt.figure(figsize=size)
    figure.text(margin / size[0], 1 - 0.5 * head / size[1], title, ha="left", va="center", fontsize=11, color=INK)
    for number, (about, pixels) in enumerate(strips):
        bottom = size[1] - head - number * (strip_height + gap) - strip_height
        axes = figure.add_axes(((margin + label) / size[0], bottom / size[1], strip_width / size[0], strip_height / size[1]))
        axes.imshow(pixels, interpolation="nearest" if height < 64 else "antialiased")
        axes.set_axis_off()
        figure.text(
            margin / size[0], (bottom + strip_height / 2) / size[1], about, va="center", fontsize=9, linespacing=1.35, color=INK
        )
    return figure


def cost_figure(rows: Sequence[dict], title: str) -> plt.Figure:
    """Seconds an image against its side, one line a way of computing it."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len({row["name"] for row in rows})))
    for colour, name in zip(colours, dict.fromkeys(row["name"] for row in rows), strict=True):
        points = sorted((row["size"], 1.0 / row["images_per_second"]) for row in rows if row["name"] == name)
        axes.loglog(*zip(*points, strict=True), marker="o", color=colour, linewidth=2, label=name)
    sizes = sorted({row["size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("side of the image [pixels]", color=INK)
    axes.set_ylabel("seconds an image", color=INK)
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.legend(frameon=False)
    _plain(axes)
    return figure


def caption(text: str, width: int, height: int = 40) -> np.ndarray:
    """A line of text in the middle of a white strip, uint8 [height, width, 3]."""
    strip = Image.new("RGB", (width, height), "white")
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), int(0.5 * height))
    ImageDraw.Draw(strip).text((width / 2, height / 2), text, fill=INK, font=font, anchor="mm")
    return np.asarray(strip)


def _plain(axes: plt.Axes) -> None:
    """A light grid behind the curves, and no frame."""
    axes.grid(True, which="major", color="#e3e6ea")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
