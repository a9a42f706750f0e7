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
from diffusion.rng import seeds
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.restoration import LevelEstimate, LevelEstimator, as_stored, best, restore
from diffusion.size import Size
from lbm_warp.checks import InputError, amount, check_integer

RECORD = "restoration.json"
PANEL = 160
COLUMNS = 4
# A standard deviation of the samples that is drawn white, in units of the range.
WHITE = 0.3
MOST_OWN = 2**15  # pixels of a picture that is restored in its own size
EXAMPLE = asset("degraded.png")


@dataclass(frozen=True)
class Restore:
    """Options of ``python -m cli.restore``."""

    picture: Annotated[Path, tyro.conf.Positional] = EXAMPLE
    """The degraded picture; by default two emoji, included. It is resized so that its shorter side is that of the run's images, but
    for a larger one that looks more like these in its own size; its shape stays."""
    run: str = "emoji"
    """Run folder of cli.train, owner/name on the Hugging Face Hub, or a bundled model: digits, fashion or emoji."""
    level: str = "auto"
    """Level of the run's process that the picture is like, 1 to K; auto: estimated from its spectrum."""
    degrade: int | None = None
    """Degrade the picture first, to this level of the run's process: what is restored then, and what is invented?"""
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
    print(f"wrote {out / 'restored.png'}, {amount(options.samples, 'sample')} and {out / RECORD}")


def restored_into(folder: Path, options: Restore) -> None:
    """Restore the picture; write the samples, what is taken, all of them side by side, and the record."""
    device = console.pick_device(options.device)
    read_image(options.picture)  # before the model, which takes longer
    pipeline = Pipeline.from_pretrained(options.run, device=device)
    image = read_still(options.picture, "L" if pipeline.config.channels == 1 else "RGB")
    clean, size = fitted(pipeline, image)
    picture = degraded(pipeline, clean, size, options)
    record: dict[str, object] = {"picture": str(options.picture), "run": options.run}
    if options.level == "auto":
        estimator = LevelEstimator(pipeline, seed=options.seed)
        estimate = estimator(picture)
        if options.degrade is None and (own := in_own_size(pipeline, image, estimator, estimate)):
            picture, size, estimate = own
        level, low, high = (estimate.quantile(share) for share in (0.5, 0.05, 0.95))
        (sigma, sigma_spread), (noise, noise_spread) = (estimate.spread(values) for values in (estimate.sigma, estimate.noise))
        print(
            f"level {level} of {pipeline.method.levels} ({low} to {high}): blur {sigma:.2f} +- {sigma_spread:.2f} px, "
            f"noise {noise:.3f} +- {noise_spread:.3f} of the range"
        )
        for remark in remarks(estimate, options.run):
            print(remark)
        record |= {"levels_90_percent": [low, high], "sigma": [sigma, sigma_spread], "noise": [noise, noise_spread]}
    else:
        level = int(options.level)
    pipeline = pipeline.at_size(size)
    if level == 0:
        restored = picture.expand(options.samples, -1, -1, -1)
    else:
        restored = restore(pipeline, picture, level, options.samples, options.seed, steps=options.steps)
    chosen = best(pipeline, picture, level, restored) if options.best else None
    result = restored.mean(dim=0) if chosen is None else restored[chosen]

    first = {"clean": clean, "degraded": picture} if options.degrade else {"degraded": picture}
    panels = [*first.values(), result, *restored]
    names = [*first, "restored", *(f"sample {number}" for number in range(len(restored)))]
    if len(restored) > 1:
        panels.append((restored.std(dim=0).mean(dim=0, keepdim=True) / WHITE).clamp(max=1.0))
        names.append("spread")
    pixels = [render.enlarged(render.to_pixels(panel), PANEL) for panel in panels]
    width = pixels[0].shape[1]
    scale = render.scale(("0", f"{WHITE:g}"), width)
    above = [scale if name == "spread" else np.full_like(scale, 255) for name in names]
    labelled = [np.concatenate(column) for column in zip(above, render.captions(names, width, 36), pixels, strict=True)]
    for number, sample in enumerate(restored):
        render.save_image(folder / f"sample-{number:02d}.png", render.quantised(sample), "sample")
    render.save_image(folder / "restored.png", render.quantised(result), "sample")
    render.save_image(folder / "restoration.png", render.grid(labelled, min(len(labelled), COLUMNS), gap=6), "grid")
    record |= {"size": size.to_json(), "level": level}
    write_json(folder / RECORD, record | {"samples": len(restored), "best": chosen, "seed": options.seed})


def degraded(pipeline: Pipeline, picture: torch.Tensor, size: Size, options: Restore) -> torch.Tensor:
    """A picture [C, H, W] at the level that the options degrade it to; its flow and noise are none that a restoration draws.

    Raises:
        InputError: if there is no such level.
    """
    if options.degrade is None:
        return picture
    check_integer("--degrade", options.degrade, 1, pipeline.method.levels)
    forward = pipeline.at_size(size).forward
    u = forward.corrupt(picture[None], options.degrade, seeds(options.seed, "degraded"))[0]
    return as_stored(0.5 + (u - 0.5) / float(forward.signal[options.degrade]))


def in_own_size(
    pipeline: Pipeline, image: np.ndarray, estimator: LevelEstimator, fitted: LevelEstimate
) -> tuple[torch.Tensor, Size, LevelEstimate] | None:
    """A picture [C, H, W] that is larger than those of a run in its own size, if it looks more like them there than ``fitted`` to
    theirs: without the last rows and columns that the network cannot take, with its size and what is known of its level."""
    factor = pipeline.config.network.side_factor
    size = Size(*(side - side % factor for side in image.shape[1:]))
    if size.shorter <= pipeline.config.size.shorter or size.height * size.width > MOST_OWN:
        return None
    picture = torch.from_numpy(np.ascontiguousarray(image[:, : size.height, : size.width]))
    estimate = estimator(picture)
    better = estimate.familiar and estimate.at(estimate.deviation) < fitted.at(fitted.deviation)
    return (picture, size, estimate) if better else None


def remarks(estimate: LevelEstimate, run: str) -> list[str]:
    """What a person should know of a picture."""
    unknown = f"this picture does not look like those that {run} was trained on: what it restores may be made up"
    nothing = f"no blur or noise is found (probability {estimate.clean:.2f}): the picture stays as it is"
    return [unknown] * (not estimate.familiar) + [nothing] * (estimate.quantile(0.5) == 0)


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
