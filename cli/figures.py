"""Figures: strips of pictures, velocity fields, comparisons, restorations, scores and costs."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from cli.render import CRISP, INK, spelled
from diffusion.data.products import mark
from diffusion.files import whole_file

MOST_ASPECT = 8  # beyond it the middle of a picture is shown
WIDTH = 9.0  # of a figure [inches]: a text of 9 points is read where a page shows it 900 pixels wide
DASHES = (0, (5, 3))
matplotlib.rc("text", color=INK)
matplotlib.rc("figure", titlesize=11)
matplotlib.rc("axes", titlesize=11, titlelocation="left", labelcolor=INK, grid=True)
matplotlib.rc("axes.spines", top=False, right=False)
matplotlib.rc("grid", color="#e3e6ea")
matplotlib.rc("legend", frameon=False)


def save_figure(path: Path, figure: Figure, dpi: int = 160) -> None:
    """Write a figure as an image file, cropped to what is drawn and a small margin; names in it are drawn as they are."""
    _spell(figure)
    with whole_file(path) as aside:
        marked = {"Software": mark("figure")}
        figure.savefig(aside, dpi=dpi, facecolor="white", bbox_inches="tight", pad_inches=0.15, metadata=marked)


def strip(pictures: Sequence[np.ndarray], captions: Sequence[str], title: str) -> Figure:
    """Pictures uint8 [H, W, 3] of one size in a row, with a caption under each."""
    figure, (row,) = _grid(1, len(pictures), width=max(WIDTH / len(pictures), 1.2), height=4.4)
    shown = [_middle(picture) for picture in pictures]
    figure.suptitle(title if shown[0].shape == pictures[0].shape else f"{title}: the middle")
    for axes, picture, caption in zip(row, shown, captions, strict=True):
        _show(axes, picture)
        _write(axes, "below", caption)
    return figure


def restorations(
    original: np.ndarray, corrupted: Sequence[np.ndarray], restored: Sequence[Sequence[np.ndarray]], captions: Sequence[str]
) -> Figure:
    """A picture uint8 [H, W, 3], and in a row for every level: a caption, the corrupted picture, pictures restored from it."""
    figure, grid = _grid(len(corrupted), 2 + len(restored[0]), width=1.5, height=1.2)
    for axes, title in zip(grid[0], ("original", "corrupted", "restored"), strict=False):
        axes.set_title(title, size=9)
    _show(grid[0, 0], original)
    for row, caption, start, ends in zip(grid, captions, corrupted, restored, strict=True):
        _write(row[1], "left", caption)
        _write(row[2], "left", "→", size=12)
        for axes, picture in zip(row[1:], [start, *ends], strict=True):
            _show(axes, picture)
    return figure


def labelled_strips(strips: Sequence[tuple[str, np.ndarray]], title: str) -> Figure:
    """Strips uint8 [H, W, 3] of one size below each other, each with its label on the left."""
    figure, grid = _grid(len(strips), 1, width=9.0, height=9.0)
    figure.suptitle(title)
    for (axes,), (label, strip) in zip(grid, strips, strict=True):
        _show(axes, strip)
        _write(axes, "left", label)
    return figure


class ComparedProcess(NamedTuple):
    """A process in a comparison: its name, two lines about it, pictures uint8 [H, W, 3], and their spectra (k, power)."""

    name: str
    about: str
    pictures: Sequence[np.ndarray]
    spectra: Sequence[tuple[np.ndarray, np.ndarray]]


def comparison(processes: Sequence[ComparedProcess], fractions: Sequence[float]) -> Figure:
    """A row for every process: its pictures at the same fractions k / K of the levels, and their power spectra."""
    figure, grid = _grid(len(processes), len(fractions) + 1, width=max((WIDTH - 1.6) / (len(fractions) + 1), 1.0), height=1.75)
    clean = "clean" if _middle(first := processes[0].pictures[0]).shape == first.shape else "clean, the middle"
    colours = matplotlib.colormaps["plasma"](np.linspace(0.0, 0.88, len(fractions)))
    for axes, fraction, colour in zip(grid[0], fractions, colours, strict=False):
        _write(axes, "above", f"k / K = {fraction:.2g}" if fraction else clean)
        # The colour of its spectrum. A text in it would not be read on white.
        axes.plot([0.0, 1.0], [1.04, 1.04], transform=axes.transAxes, color=colour, linewidth=2.5, clip_on=False)
    _write(grid[0, -1], "above", "power spectrum")
    low = 1e-9 * min(power.max() for _, power in processes[0].spectra)
    high = 3.0 * max(power.max() for process in processes for _, power in process.spectra)
    for (*row, beside), process in zip(grid, processes, strict=True):
        _write(row[0], "left", process.name, va="bottom", size=10, weight="bold")
        _write(row[0], "left", process.about, va="top", size=8)
        shown = [_middle(picture) for picture in process.pictures]
        for axes, picture in zip(row, shown, strict=True):
            _show(axes, picture)
        for colour, (k, power) in zip(colours, process.spectra, strict=True):
            beside.loglog(k, np.maximum(power, low / 10), color=colour, linewidth=1.3)
        beside.set_axis_on()
        beside.set(ylim=(low, high), box_aspect=shown[0].shape[0] / shown[0].shape[1])
        beside.tick_params(which="both", direction="in", labelsize=7, labelbottom=False)
    beside.tick_params(labelbottom=True)
    beside.set_xlabel("waves per shorter side", size=8.5)
    return figure


def velocity_and_spectrum(
    velocity: np.ndarray, title: str, spectrum: tuple[np.ndarray, np.ndarray, np.ndarray], seeds: int
) -> Figure:
    """A velocity field [2, H, W] as speed and streamlines, and beside it its energy spectrum.

    ``spectrum`` holds wavenumbers, the energy of this field, and the mean energy of the fields of so many ``seeds``.
    """
    _, height, width = velocity.shape
    speed = np.hypot(*velocity)
    wide = min(4.8, 6.0 * width / height)  # inches
    figure = Figure(figsize=(wide + 4.6, max(3.6, 0.6 + wide * height / width)), layout=ConstrainedLayoutEngine(wspace=0.04))
    field, beside = figure.subplots(1, 2, width_ratios=(wide + 0.8, 3.4))
    shown = field.imshow(speed, cmap="magma", extent=(0, width, height, 0), interpolation="bilinear", vmin=0.0)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    # The default steps are as long as the smallest eddies are wide, and do not close their circles.
    fine = {"integration_max_step_scale": 0.2, "integration_max_error_scale": 0.01, "maxlength": 1.5, "arrowsize": 0.6}
    drawn = field.streamplot(x, y, *velocity, density=1.3, color="white", linewidth=0.3 + 0.9 * speed / speed.max(), **fine)
    drawn.lines.set_capstyle("round")
    field.set(xlim=(0, width), ylim=(height, 0), title=title)
    field.set_axis_off()
    bar = figure.colorbar(shown, cax=field.inset_axes((1.02, 0.0, 0.03, 1.0)), label="speed / V")
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)

    k, this, mean = spectrum
    magma = matplotlib.colormaps["magma"]
    beside.loglog(k, this, color=magma(0.75), linewidth=1.0, label="this flow")
    beside.loglog(k, mean, color=magma(0.35), linewidth=2.4, label=f"mean of {seeds} seeds")
    # Kolmogorov's law, a little above the curve.
    law = 1.6 * mean[k <= 2][-1] * (k / k[k <= 2][-1]) ** (-5.0 / 3.0)
    beside.loglog(k, law, color=INK, linestyle=DASHES, linewidth=1.2, label="k⁻⁵ᐟ³ (Kolmogorov)")
    floor = 1e-5 * mean.max()
    beside.set(xlim=(0.9, 1.1 * k[mean > floor].max()), ylim=(floor, 1.5 * law.max()), box_aspect=1.0)
    beside.set(xlabel="wavenumber k [waves per shorter side]", title="Energy spectrum E(k) / V²")
    beside.legend(loc="lower left", fontsize=9)
    return figure


class SweepPanel(NamedTuple):
    """A score in a sweep: its name, whether more is better, its value for real pictures, and its values for the runs."""

    name: str
    more_is_better: bool
    floor: float
    curves: Mapping[str, Mapping[float, Sequence[float]]]
    """By process and Peclet number, or number of network calls, the scores of all seeds."""
    shared: Collection[float]
    """Values at which the curves meet, because their runs are the same."""


def sweep_curves(panels: Sequence[SweepPanel], title: str, about: str, against: str) -> Figure:
    """Scores against a number, a line for every process: mean, standard deviation, single seeds, and the floor."""
    columns = -(-len(panels) // 2)
    figure = Figure(figsize=(3.6 * columns, 7.2), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    grid = figure.subplots(2, columns)
    values = sorted({value for curve in panels[0].curves.values() for value in curve})
    colours = matplotlib.colormaps["Dark2"](np.arange(8))
    for panel, axes in zip(panels, grid.flat, strict=False):
        # Side by side, so that no bar hides another.
        sides = min(0.12, 0.6 / len(panel.curves)) * (np.arange(len(panel.curves)) - (len(panel.curves) - 1) / 2)
        for (process, curve), colour, side in zip(panel.curves.items(), colours, sides, strict=False):
            places = {value: values.index(value) + (0.0 if value in panel.shared else side) for value in curve}
            means = [np.mean(scores) for scores in curve.values()]
            axes.plot(list(places.values()), means, color=colour, linewidth=1.8, marker="o", markersize=5, label=process)
            for value, scores in curve.items():
                if len(scores) > 1:
                    style = {"color": INK if value in panel.shared else colour, "zorder": 3}
                    axes.errorbar(places[value], np.mean(scores), np.std(scores, ddof=1), fmt="o", markersize=5, capsize=3, **style)
                    axes.scatter([places[value]] * len(scores), scores, s=9, alpha=0.45, linewidths=0, **style)
        axes.axhline(panel.floor, color=INK, linestyle=DASHES, linewidth=1.1, label="floor")
        axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axes.set_xlim(-0.4, len(values) - 0.6)
        axes.set_title(f"{panel.name} {'↑' if panel.more_is_better else '↓'}", size=10.5)
        axes.set_xlabel(against)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    curves = grid[0, 0].get_legend_handles_labels()
    figure.legend(*curves, loc="outside upper left", ncols=len(curves[0]), title=title, title_fontsize=12, alignment="left")
    figure.supxlabel(textwrap.fill(about, 55 * columns), x=0.0045, ha="left", size=8.5, linespacing=1.4)
    return figure


def rank_histograms(ranks: Sequence[Mapping], title: str) -> Figure:
    """Frequencies of ranks from every level: bars for all numbers together, and for each kind of them a line, their mean, in a band
    from the least to the most. An exact sampler's are flat."""
    figure = Figure(figsize=(max(WIDTH, 2.4 * len(ranks)), 3.6), layout="constrained")
    for axes, found in zip(figure.subplots(1, len(ranks), squeeze=False, sharey=True)[0], ranks, strict=True):
        counts = np.array(found["histogram"]) * ((found["restorations"] + 1) / found["pictures"])
        places = np.arange(counts.shape[1])
        axes.bar(places, counts.mean(axis=0), width=0.9, color="#d5dde3", label="all")
        # "mode 0,1" is one of the modes, "digits feature 3" of the features.
        kinds = [name.rstrip("0123456789, ") for name in found["measured"]]
        for kind, colour in zip(dict.fromkeys(kinds), matplotlib.colormaps["Dark2"](np.arange(8)), strict=False):
            rows = counts[[other == kind for other in kinds]]
            axes.plot(places, rows.mean(axis=0), color=colour, linewidth=1.8, label=kind + "s" * (len(rows) > 1))
            axes.fill_between(places, rows.min(axis=0), rows.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1.0, color=INK, linestyle=DASHES, linewidth=1.1, label="exact sampler")
        axes.set_title(f"from level {found['level']}: off by {100 * found['error']:.0f} %", size=9)
        axes.set_xlabel("rank of the picture")
        axes.set_xticks(places)
    figure.axes[0].set_ylabel("frequency, relative")
    curves = axes.get_legend_handles_labels()
    figure.legend(*curves, loc="outside lower center", fontsize=9, ncols=len(curves[0]))
    figure.suptitle(title, size=10)
    return figure


def cost_curves(rows: Sequence[dict], title: str) -> Figure:
    """Seconds an image against its side, a line for every way of computing it."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["name"] for row in rows))
    for colour, name in zip(matplotlib.colormaps["viridis"](np.linspace(0.1, 0.85, len(names))), names, strict=True):
        points = sorted((row["size"], 1.0 / row["images_per_second"]) for row in rows if row["name"] == name)
        axes.loglog(*zip(*points, strict=True), marker="o", color=colour, linewidth=2, label=name)
    sizes = sorted({row["size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="side of the image [pixels]", ylabel="seconds an image")
    axes.set_title(title, size=10)
    axes.legend()
    return figure


def _spell(figure: Figure) -> None:
    """Take texts letter by letter: a dollar begins no formula, and a letter that the font lacks is its number, such as \\u7167."""
    numbers = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers and text.get_text():
            text.set_text(spelled(text.get_text(), fontManager.findfont(text.get_fontproperties())))
            text.set_parse_math(False)


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure and its axes [rows, columns], without frames, for pictures at most so wide and high [inches].

    Pictures keep their shape. The gaps between them are small, and grow only where a text needs room.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0, compress=True)
    figure = Figure(figsize=(columns * width + 1.5, rows * height), layout=layout)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, grid


def _middle(picture: np.ndarray) -> np.ndarray:
    """What of a picture uint8 [H, W, 3] can be seen in a row: of a very long one the middle."""
    height, width = (min(side, MOST_ASPECT * min(picture.shape[:2])) for side in picture.shape[:2])
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top : top + height, left : left + width]


def _show(axes: Axes, picture: np.ndarray) -> None:
    """Draw a picture uint8 [H, W, 3]; the pixels of small ones stay sharp."""
    axes.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < CRISP else "antialiased")


def _write(axes: Axes, side: str, text: str, **style: Any) -> None:
    """Write above, below or left of a picture. Unlike a title or a label, the text gets all the room it needs."""
    at, offset, alignment = {
        "above": ((0.5, 1.0), (0, 8), {"ha": "center", "va": "baseline"}),
        "below": ((0.5, 0.0), (0, -6), {"ha": "center", "va": "top"}),
        "left": ((0.0, 0.5), (-8, 0), {"ha": "right", "va": "center"}),
    }[side]
    style = {"size": 9, "linespacing": 1.35} | alignment | style
    axes.annotate(text, at, offset, xycoords="axes fraction", textcoords="offset points", **style)
