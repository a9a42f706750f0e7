"""Restore a degraded picture with a trained run: estimate how degraded it is, and undo that."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from cli import console, render
from cli.video import read_still
from diffusion.data.images import fit, read_image
from diffusion.files import asset, owned, products, write_json
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.restoration import LevelEstimator, best, restore
from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer

RECORD = "restoration.json"
PANEL = 160
EXAMPLE = asset("degraded.png")


@dataclass(frozen=True)
class Restore:
    """Options of ``python -m cli.restore``."""

    picture: Annotated[Path, tyro.conf.Positional] = EXAMPLE
    """The degraded picture; by default two emoji, included. It is resized so that its shorter side is that of the run's images; its
    shape stays."""
    run: str = "emoji"
    """Run folder of cli.train, owner/name on the Hugging Face Hub, or a bundled model: digits, fashion or emoji."""
    level: str = "auto"
    """Level of the run's process that the picture is like, 1 to K; auto: estimated from its spectrum."""
    samples: int = 4
    """Number of restored pictures: how they differ shows what is not known."""
    best: bool = False
    """Take the restored picture that explains the degraded one best, instead of the mean of all."""
    seed: int = 0
    """Seed of everything random."""
    steps: int | None = None
    """Number of steps, at most the level; by default the process's own in proportion."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the picture>-restored by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def validate(self) -> None:
        """Raise InputError if an option is out of its range."""
        console.check_at_least(self, samples=1)
        check_integer("--seed", self.seed, 0, 2**63 - 1)
        if not re.fullmatch(r"auto|[1-9]\d{0,8}", self.level, re.ASCII):
            raise InputError(f"--level takes auto or a number from 1, got {self.level!r}")


def restore_picture(options: Restore) -> None:
    """Read the picture, find its level, restore it, write the results."""
    options.validate()
    out = options.out or Path("outputs") / f"{options.picture.resolve().stem}-restored"
    with owned(out), products(out, RECORD, "sample-*.png", "restored.png", "restoration.png") as folder:
        restored_into(folder, options)
    print(f"wrote {out / 'restored.png'}, {options.samples} samples and {out / RECORD}")


def restored_into(folder: Path, options: Restore) -> None:
    """Restore the picture; write the samples, what is taken, all of them side by side, and the record."""
    device = console.pick_device(options.device)
    read_image(options.picture)  # before the model, which takes longer
    pipeline = Pipeline.from_pretrained(options.run, device=device)
    picture, size = fitted(pipeline, read_still(options.picture, "L" if pipeline.config.channels == 1 else "RGB"))
    record: dict[str, object] = {"picture": str(options.picture), "run": options.run, "size": size.to_json()}
    if options.level == "auto":
        estimate = LevelEstimator(pipeline, seed=options.seed)(picture)
        level, low, high = (estimate.quantile(share) for share in (0.5, 0.05, 0.95))
        (sigma, sigma_spread), (noise, noise_spread) = (estimate.spread(values) for values in (estimate.sigma, estimate.noise))
        print(
            f"level {level} of {pipeline.method.levels} ({low} to {high}): blur {sigma:.2f} +- {sigma_spread:.2f} px, "
            f"noise {noise:.3f} +- {noise_spread:.3f} of the range"
        )
        record |= {"levels_90_percent": [low, high], "sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
    else:
        level = int(options.level)
    pipeline = pipeline.at_size(size)
    restored = restore(pipeline, picture, level, options.samples, options.seed, steps=options.steps)
    chosen = best(pipeline, picture, level, restored) if options.best else None
    result = restored.mean(dim=0) if chosen is None else restored[chosen]

    panels = [picture, result, *restored]
    if len(restored) > 1:
        # Three standard deviations fill the range from black to white.
        panels.append((3.0 * restored.std(dim=0)).clamp(max=1.0))
    names = ["degraded", "restored", *(f"sample {number}" for number in range(len(restored))), "3 x spread"]
    pixels = [render.enlarged(render.to_pixels(panel), PANEL) for panel in panels]
    labelled = [np.concatenate([render.caption(name, p.shape[1]), p]) for name, p in zip(names, pixels, strict=False)]
    for number, sample in enumerate(restored):
        render.save_image(folder / f"sample-{number:02d}.png", render.quantised(sample), "sample")
    render.save_image(folder / "restored.png", render.quantised(result), "sample")
    render.save_image(folder / "restoration.png", render.grid(labelled, min(len(labelled), 7), gap=6), "grid")
    write_json(folder / RECORD, record | {"level": level, "samples": len(restored), "best": chosen, "seed": options.seed})


def fitted(pipeline: Pipeline, image: np.ndarray) -> tuple[torch.Tensor, Size]:
    """A picture [C, H, W] in the size nearest to its shape that has the run's shorter side and that the network can take."""
    height, width = image.shape[1:]
    shorter, factor = pipeline.config.size.shorter, pipeline.config.network.side_factor
    longer = max(shorter, factor * round(shorter * max(height, width) / (min(height, width) * factor)))
    size = Size(longer, shorter) if height > width else Size(shorter, longer)
    return torch.from_numpy(fit(image, size)), size


main = partial(console.run, "restore", restore_picture, partial(tyro.cli, Restore))


if __name__ == "__main__":
    main()
