"""Generate new images with a trained run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import nn
from tqdm import tqdm

from cli import console, render
from diffusion.checkpoint import RunConfig, load_run
from diffusion.files import write_json
from diffusion.prior import Prior
from diffusion.rng import seeds
from diffusion.sampling import residual_sampler
from lbm_warp.checks import check_integer

DEFAULT_RUN = Path("runs/digits-beyond-blur")
VIDEO_PANEL = 96


@dataclass(frozen=True)
class Sample:
    """Options of ``python -m cli.sample``."""

    run: Annotated[Path, tyro.conf.Positional] = DEFAULT_RUN
    """Run folder that python -m cli.train made."""
    num: int = 64
    """Number of images."""
    seed: int = 0
    """Image number i depends on this seed and on i alone."""
    batch: int = 64
    """Images at a time; the result does not depend on it."""
    video: bool = False
    """Write reverse.mp4: the grid on its way from level K to level 0."""
    fps: int = 12
    """Frames (levels) per second of the video."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the run>-samples if left out."""


def sample(options: Sample) -> None:
    """Read the run, walk from its prior to new images, write them."""
    device = console.pick_device(options.device)
    for name in ("num", "batch", "fps"):
        check_integer(f"--{name}", getattr(options, name), 1)
    check_integer("--seed", options.seed, 0, 2**63 - 1)
    run = load_run(options.run, device)
    config = run.config
    out = options.out or Path("outputs") / f"{options.run.resolve().name}-samples"
    # The video shows as much of the grid as fits a screen.
    filmed = min(options.num, 64) if options.video else 0
    film: list[list[np.ndarray]] = []
    samples = []
    starts = range(0, options.num, options.batch)
    with tqdm(total=options.num * (config.process.levels + 1), desc="sampling", unit="level") as progress:
        for start in starts:
            index = np.arange(start, min(start + options.batch, options.num))

            def on_level(level: int, u: torch.Tensor, start: int = start) -> None:
                progress.update(len(u))
                frame = config.process.levels - level
                if start < filmed:
                    film.extend([] for _ in range(frame + 1 - len(film)))
                    film[frame].extend(render.to_pixels(image) for image in u[: filmed - start])

            samples.append(generate(run.network, config, run.prior, index, device, seed=options.seed, callback=on_level))
    images = torch.cat(samples)

    for index, image in enumerate(images):
        render.save_image(out / "images" / f"{index:05d}.png", render.to_pixels(image))
    render.save_grid(out / "grid.png", images)
    written = [str(out / "grid.png"), f"{out / 'images'} ({options.num} files)"]
    if options.video:
        columns = render.grid_columns(filmed)
        frames = [render.grid([render.enlarged(p, VIDEO_PANEL) for p in pictures], columns, gap=6) for pictures in film]
        order = [*frames, *[frames[-1]] * (2 * options.fps)]
        render.save_video(out / "reverse.mp4", tqdm(order, desc="encoding", unit="frame"), options.fps)
        written.append(str(out / "reverse.mp4"))
    write_json(out / "sampling.json", {"run": str(options.run), "num": options.num, "seed": options.seed})
    print("wrote " + ", ".join(written))


def generate(
    network: nn.Module,
    config: RunConfig,
    prior: Prior,
    index: np.ndarray,
    device: torch.device,
    *,
    seed: int = 0,
    callback: Callable[[int, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Images number ``index`` of a run under ``seed``, float32 [len(index), C, S, S] on the CPU; not clipped."""
    sample_seed = seeds(seed, "sample", index)
    u = prior.draw(sample_seed, config.size, config.process, device)
    if callback is not None:
        callback(config.process.levels, u)
    return residual_sampler(network, u, config.process, sample_seed, callback).cpu()


if __name__ == "__main__":
    console.run(sample, Sample, "sample")
