"""Corrupt one picture by every process, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from cli import console, figures, render
from cli.scene import PictureOptions
from cli.video import held, save_video
from diffusion import specs
from diffusion.data.dataset import evenly_spaced
from diffusion.files import owned, products, write_json
from diffusion.forward.process import ForwardProcess
from diffusion.methods import METHODS, named_method
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines

RECORD = "comparison.json"
VIDEO_WIDTH = 1920
VIDEO_PANEL = 480


@dataclass(frozen=True)
class Compare(PictureOptions):
    """Options of ``python -m cli.compare``."""

    size: int = 256
    """Shorter side in pixels that the picture is resized to."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the picture>-comparison by default."""
    processes: tuple[str, ...] = tuple(name for name, method in METHODS.items() if method.operator.transport)
    """Processes, in this order; all except the controls by default."""
    video: bool = False
    """Write comparison.mp4 as well."""
    fps: int = 30
    """Levels per second of the video."""


def compare(options: Compare) -> None:
    """Read the picture, corrupt it by every process, draw the results."""
    console.check_at_least(options, size=8, fps=1)
    if not options.processes:
        raise InputError(f"--processes: name at least one of {', '.join(METHODS)}")
    console.check_once("--processes", options.processes)
    processes = {name: specs.changed(named_method(name).forward, levels=options.levels) for name in options.processes}
    columns = evenly_spaced(options.levels + 1, options.columns).tolist()
    out = options.out or Path("outputs") / f"{options.image.resolve().stem}-comparison"
    with owned(out), products(out, RECORD, "comparison.png", "comparison.mp4") as folder:
        rows, film = corrupted(processes, options, columns)
        drawn = figures.comparison(rows, [level / options.levels for level in columns])
        figures.save_figure(folder / "comparison.png", drawn, dpi=120)  # noise makes a large PNG
        if options.video:
            frames = side_by_side(film, list(processes), options.levels)
            save_video(folder / "comparison.mp4", held(frames, options.fps), options.fps)
        write_json(folder / RECORD, {"command": console.command_line(), "processes": list(processes)})
    print(f"wrote {out / 'comparison.png'}" + (f", {out / 'comparison.mp4'}" if options.video else ""))


def corrupted(
    processes: Mapping[str, ForwardProcess], options: Compare, columns: list[int]
) -> tuple[list[figures.ComparedProcess], list[np.ndarray]]:
    """What is drawn of every process at some levels; and for a video all pictures, uint8 [H, W, 3], by process and level."""
    u0 = options.read()
    rows: list[figures.ComparedProcess] = []
    film: list[np.ndarray] = []
    with tqdm(total=len(processes) * (options.levels + 1), desc="corrupting", unit="level") as progress:
        for name, forward in processes.items():
            pictures, spectra = [], []
            for level, u in forward.trajectory(u0, torch.tensor([options.seed])):
                progress.update()
                picture = render.to_pixels(u[0])
                if level in columns:
                    pictures.append(picture)
                    spectra.append(power_spectrum(u[0]))
                if options.video:
                    film.append(picture)
            rows.append(figures.ComparedProcess(name, describe(forward), pictures, spectra))
    return rows, film


def describe(forward: ForwardProcess) -> str:
    """What sets a process apart, in two lines."""
    noise = forward.noise[-1]
    return f"{forward.operator.describe()}, {f'noise {noise:.2g}' if noise > 0.0 else 'no noise'}"


def power_spectrum(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of the cosine modes of an image [C, H, W] around wavenumbers 1, 2, ... [waves per shorter side]."""
    height, width = image.shape[1:]
    length = min(height, width)
    (ky, rows), (kx, columns) = cosines(height), cosines(width)
    power = (rows @ image.cpu().double() @ columns.T).square().mean(dim=0).flatten()
    ring = (torch.hypot(ky[:, None], kx) * length / (2.0 * torch.pi)).round().long().flatten()
    count = torch.bincount(ring)
    mean = torch.bincount(ring, weights=power) / count.clamp_min(1)
    k = np.arange(1, length // 2 + 1)
    return k, mean[k].numpy()


def side_by_side(film: list[np.ndarray], names: list[str], levels: int) -> Iterator[np.ndarray]:
    """Frames with the processes beside each other under their names, from pictures in order of process and level."""
    columns = min(len(names), 4)
    height, width = film[0].shape[:2]
    factor = min((VIDEO_WIDTH // columns - 8) / width, VIDEO_PANEL / height)
    titles = render.captions(names, max(2, round(width * factor)))
    for level in range(levels + 1):
        panels = [render.resized(picture, factor) for picture in film[level :: levels + 1]]
        yield render.grid([np.concatenate(pair) for pair in zip(titles, panels, strict=True)], columns, gap=8)


main = partial(console.run, "compare", compare, partial(tyro.cli, Compare))


if __name__ == "__main__":
    main()
