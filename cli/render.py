"""Pictures and videos for people: strips with captions, velocity fields, grids, H.264."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from diffusion.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#20242c"


def _pyplot() -> ModuleType:
    """matplotlib.pyplot without a window, imported by those who draw: it takes longer than many a command that does not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def quantised(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, C] from a float image [C, H, W], clipped to [0, 1]."""
    return (image.detach().cpu().permute(1, 2, 0).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy()


def to_pixels(image: torch.Tensor) -> np.ndarray:
    """uint8 [H, W, 3] from a float image [C, H, W], clipped to [0, 1]; grey becomes three equal channels."""
    return quantised(image.expand(3, -1, -1))


def enlarged(pixels: np.ndarray, shorter: int, longest: int = 3840) -> np.ndarray:
    """The picture with a shorter side of at least ``shorter`` pixels: tiny ones by whole pixels, others smoothly.

    No side becomes longer than ``longest``; a picture that has a longer one is reduced.
    """
    height, width = pixels.shape[:2]
    factor = min(max(shorter / min(height, width), 1.0), longest / max(height, width))
    if factor == 1.0:
        return pixels
    if factor >= 4.0:
        times = min(math.ceil(factor), longest // max(height, width))
        return pixels.repeat(times, axis=0).repeat(times, axis=1)
    size = (max(round(width * factor), 2), max(round(height * factor), 2))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def save_image(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3], or [H, W, 1] as a grey one, as an image file."""
    with whole_file(path) as aside:
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(aside)


def save_figure(path: Path, figure: Figure, dpi: int = 160) -> None:
    """Write a figure and close it."""
    with whole_file(path) as aside:
        figure.savefig(aside, dpi=dpi, facecolor="white")
    _pyplot().close(figure)


def strip(images: Sequence[np.ndarray], captions: Sequence[str], title: str) -> Figure:
    """Pictures in one row, a caption under each."""
    height, width = images[0].shape[:2]
    # Inches: a picture is 2.1 wide, or 3.4 high if it is a tall one; a caption needs 1.1 beside its neighbours.
    panel_width = min(2.1, 3.4 * width / height)
    panel_height = panel_width * height / width
    cell = max(panel_width, 1.1)
    margin, gap, head, foot = 0.15, 0.08, 0.5, 0.62
    columns = len(images)
    size = (2 * margin + columns * cell + (columns - 1) * gap, head + panel_height + foot)
    figure = _pyplot().figure(figsize=size)
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
) -> Figure:
    """A picture, what became of it at several levels (a row each, with its caption), and what was restored from that."""
    panel, gap, wide, margin, head = 1.1, 0.06, 0.2, 0.15, 0.34
    columns = 2 + max(map(len, restored))
    # Inches from the left: the original, the corrupted ones with their captions, the restorations.
    left = [margin, margin + panel + 1.05 + wide]
    left += [left[1] + panel + wide + (panel + gap) * number for number in range(columns - 2)]
    size = (left[-1] + panel + margin, head + len(corrupted) * (panel + gap) + margin)
    figure = _pyplot().figure(figsize=size)

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


def velocity_figure(velocity: np.ndarray, title: str) -> Figure:
    """Speed of a velocity field [2, H, W] in colour, the way it goes as streamlines."""
    _, height, width = velocity.shape
    speed = np.hypot(*velocity)
    figure, axes = _pyplot().subplots(figsize=(7.6, float(np.clip(0.6 + 6.4 * height / width, 1.8, 12.0))), layout="constrained")
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
    return figure


def save_video(path: Path, frames: Iterable[np.ndarray], fps: int) -> None:
    """Write uint8 frames [H, W, 3] as H.264 that browsers play; odd sizes gain a repeated row or column."""
    import imageio.v2 as imageio

    options = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    # CRF 18 is visually lossless; faststart lets a browser begin before it has the whole file.
    with (
        whole_file(path) as aside,
        imageio.get_writer(
            aside, fps=fps, quality=None, output_params=["-crf", "18", "-preset", "medium", "-movflags", "+faststart"], **options
        ) as writer,
    ):
        for frame in frames:
            padding = [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)]
            writer.append_data(np.pad(frame, padding, mode="edge"))


def grid(images: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Pictures of one size side by side, uint8 [H, W, 3], on white."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for index, pixels in enumerate(images):
        top, left = (gap + (height + gap) * (index // columns)), (gap + (width + gap) * (index % columns))
        sheet[top : top + height, left : left + width] = pixels
    return sheet


def grid_columns(count: int) -> int:
    """Columns of a grid that is about as wide as high."""
    return max(1, round(count**0.5))


def save_grid(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images [N, C, H, W] as one sheet, about as wide as high unless told, enlarged so that small ones can be seen."""
    pictures = [enlarged(to_pixels(image), 64) for image in images]
    save_image(path, grid(pictures, columns or grid_columns(len(pictures)), gap=4))


def cost_figure(rows: Sequence[dict], title: str) -> Figure:
    """Seconds an image against its side, one line a way of computing it."""
    figure, axes = _pyplot().subplots(figsize=(6.4, 4.2), layout="constrained")
    colours = _pyplot().get_cmap("viridis")(np.linspace(0.1, 0.85, len({row["name"] for row in rows})))
    for colour, name in zip(colours, dict.fromkeys(row["name"] for row in rows), strict=True):
        points = sorted((row["size"], 1.0 / row["images_per_second"]) for row in rows if row["name"] == name)
        axes.loglog(*zip(*points, strict=True), marker="o", color=colour, linewidth=2, label=name)
    sizes = sorted({row["size"] for row in rows})
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("side of the image [pixels]", color=INK)
    axes.set_ylabel("seconds an image", color=INK)
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.grid(True, which="major", color="#e3e6ea")
    axes.set_axisbelow(True)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
