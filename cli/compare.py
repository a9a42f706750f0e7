"""Corrupt one picture by every process, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tqdm import tqdm

from cli import console, figures, render
from cli.corrupt import PHOTOGRAPH, held
from diffusion.corruption import Corruption
from diffusion.data.dataset import evenly_spaced
from diffusion.data.images import read_image, resize_shorter
from diffusion.process import PROCESSES, ForwardProcess, named_process
from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer
from lbm_warp.heat import cosines

DEFAULT_SIZE = 256
VIDEO_WIDTH = 1920
VIDEO_PANEL = 480


@dataclass(frozen=True)
class Compare:
    """Options of ``python -m cli.compare``."""

    image: Annotated[Path | None, tyro.conf.Positional] = None
    """The picture, anything Pillow reads; the bundled photograph of a cat by default."""
    processes: tuple[str, ...] = tuple(name for name, process in PROCESSES.items() if process.transport)
    """Processes, in this order; all except the controls by default."""
    levels: int = 200
    """Number of levels K of each."""
    columns: int = 8
    """Pictures in a row, evenly spaced in the level."""
    seed: int = 0
    """Seed of the velocity field and the noise, the same for all."""
    size: int = DEFAULT_SIZE
    """Shorter side in pixels that the picture is resized to."""
    video: bool = False
    """Write comparison.mp4 as well."""
    fps: int = 30
    """Levels per second of the video."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the picture>-comparison by default."""


def compare(options: Compare) -> None:
    """Read the picture, corrupt it by every process, draw the results."""
    device = console.pick_device(options.device)
    for name, lowest in (("columns", 2), ("levels", 1), ("fps", 1), ("size", 8)):
        check_integer(f"--{name}", getattr(options, name), lowest)
    check_integer("--seed", options.seed, 0, 2**63 - 1)
    if not options.processes:
        raise InputError(f"--processes: name at least one of {', '.join(PROCESSES)}")
    processes = {name: replace(named_process(name), levels=options.levels) for name in options.processes}
    path = options.image or PHOTOGRAPH
    u0 = torch.from_numpy(resize_shorter(read_image(path), options.size))[None].to(device)
    columns = evenly_spaced(options.levels + 1, options.columns).tolist()

    rows, film = [], []
    with tqdm(total=len(processes) * (options.levels + 1), desc="corrupting", unit="level") as progress:
        for name, process in processes.items():
            pictures, spectra = [], []
            for level, u in Corruption(process, Size(*u0.shape[2:])).trajectory(u0, torch.tensor([options.seed])):
                progress.update()
                picture = render.to_pixels(u[0])
                if level in columns:
                    pictures.append(picture)
                    spectra.append(power_spectrum(u[0]))
                if options.video:
                    film.append(picture)
            rows.append(figures.ComparedProcess(name, describe(process), pictures, spectra))

    out = options.out or Path("outputs") / f"{path.stem}-comparison"
    written = [out / "comparison.png"]
    fractions = [level / options.levels for level in columns]
    figures.save_figure(written[0], figures.comparison(rows, fractions))
    if options.video:
        written.append(out / "comparison.mp4")
        frames = side_by_side(film, list(processes), options.levels)
        render.save_video(written[-1], held(frames, options.fps // 2, options.fps), options.fps)
    print("wrote " + ", ".join(str(file) for file in written))


def describe(process: ForwardProcess) -> str:
    """What sets a process apart, in two lines."""
    flow = f"Pe = {process.peclet:g}" if process.peclet > 0.0 else "no flow"
    flow += f", {process.turbulence}" if process.peclet > 0.0 else ""
    blur = "no blur" if process.blur == "none" else f"blur to {process.sigma_max:g} L"
    noise = f"noise {process.noise:g}" if process.noise > 0.0 else "no noise"
    return f"{flow}\n{blur}, {noise}"


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
    titles = [render.caption(name, max(2, round(width * factor))) for name in names]
    for level in range(levels + 1):
        panels = [render.resized(picture, factor) for picture in film[level :: levels + 1]]
        yield render.grid([np.concatenate(pair) for pair in zip(titles, panels, strict=True)], columns, gap=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m cli.compare``."""
    console.run("compare", compare, partial(tyro.cli, Compare), arguments)


if __name__ == "__main__":
    main()
