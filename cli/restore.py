"""Restore a degraded picture: estimate how degraded it is, and undo that.

A photograph of any size is restored by the bundled model of photographs in one pass, in tiles; a picture of the kind that a run has
learned by the reverse process of that run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from cli import console, render
from cli.photograph import RECORD, WHITE, restored_photograph
from cli.video import read_still
from diffusion.data.images import fit, read_image
from diffusion.data.products import save_image
from diffusion.files import asset, owned, products, write_json
from diffusion.photographs import Photographs
from diffusion.rng import seeds
from diffusion.sampling import tiles
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.restoration import Intervals, LevelEstimate, LevelEstimator, as_stored, best, restore
from diffusion.size import Size
from lbm_warp.checks import InputError, check_integer, check_number

PANEL = 160
COLUMNS = 4
MOST_OWN = 2**15  # pixels of a picture that is restored in its own size
EXAMPLE = asset("degraded.png")


@dataclass(frozen=True)
class Restore:
    """Options of ``python -m cli.restore``."""

    pictures: Annotated[tuple[Path, ...], tyro.conf.Positional] = (EXAMPLE,)
    """The degraded picture; by default two emoji, included, and the model emoji. A photograph keeps its size, its bits and its
    transparency. Several photographs, a folder or a film are frames of one scene behind moving air: they are aligned, and become
    one. For a run a picture is resized so that its shorter side is that of the run's images, but for a larger one that looks more
    like these in its own size; its shape stays."""
    run: str = ""
    """By default photographs, the bundled model, or another one that tools.photographs wrote. Else a run folder of cli.train,
    owner/name on the Hugging Face Hub, or digits, fashion or emoji, for pictures of that kind."""
    level: str = "auto"
    """With a run: level of its process that the picture is like, 1 to K; auto: estimated from its spectrum."""
    degrade: int | None = None
    """With a run: degrade the picture first, to this level of its process: what is restored then, and what is invented?"""
    samples: int = 4
    """With a run: number of restored pictures; how they differ shows what is not known."""
    best: bool = False
    """With a run: take the restored picture that explains the degraded one best, instead of the mean of all."""
    seed: int = 0
    """Seed of everything random."""
    steps: int | None = None
    """With a run: number of steps, at most the level; by default the process's own in proportion."""
    blur: float | None = None
    """Of a photograph: standard deviation of its blur, a Gaussian, 0 to 4 pixels, if you know it; else it is estimated."""
    noise: float | None = None
    """Of a photograph: standard deviation of its noise, 0 to 0.25 of the range, if you know it; else it is estimated."""
    sampling: float | None = None
    """Of several frames: lambda / D of the lens in pixels, which is wavelength times f-number over the pitch of the pixels. By
    default 1.5, as of many long lenses; it matters most where the air is weak."""
    ensemble: bool = False
    """Of photographs: the mean over eight orientations of a picture: 0.1 to 0.2 dB better, in eight times the time."""
    out: Path | None = None
    """Folder for the results; outputs/<name of the picture>-restored by default."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    @property
    def photographs(self) -> Path | None:
        """The folder of the model of photographs; None for another run."""
        folder = tiles.MODEL if self.run in ("", "photographs") else Path(self.run)
        return folder if (folder / tiles.LEVELS).is_file() else None

    def validate(self) -> None:
        """Raise InputError if an option is out of its range."""
        console.check_at_least(self, samples=1)
        if self.steps is not None:
            console.check_at_least(self, steps=1)
        check_integer("--seed", self.seed, 0, 2**63 - 1)
        if not re.fullmatch(r"auto|[1-9]\d{0,8}", self.level, re.ASCII):
            raise InputError(f"--level takes auto or a number from 1, got {self.level!r}")
        if not self.photographs and self.ensemble:
            raise InputError("--ensemble is for photographs, which go without --run; a run draws --samples")
        if not self.photographs and (self.blur is not None or self.noise is not None):
            raise InputError("--blur and --noise are for photographs; the level of a run's process has both: --level")
        if self.sampling is not None:
            if not self.photographs:
                raise InputError("--sampling is for frames of one scene behind moving air, which go without --run")
            check_number("--sampling [pixels]", self.sampling, 0.1, 100.0)
        if self.photographs and (self.level != "auto" or self.degrade is not None or self.best or self.steps is not None):
            raise InputError("--level, --degrade, --best and --steps go with --run; photographs have --blur and --noise")
        if self.photographs and self.samples != Restore.samples:
            raise InputError("--samples goes with --run; a photograph is restored in one way")
        if not self.photographs and len(self.pictures) > 1:
            raise InputError(f"a run restores one picture, got {len(self.pictures)}; frames of one scene go without --run")


def restore_picture(options: Restore) -> None:
    """Read the picture, find its level, restore it, write the results."""
    if options.pictures == (EXAMPLE,) and not options.run:
        options = replace(options, run="emoji")
    options.validate()
    picture = options.pictures[0]
    out = options.out or Path("outputs") / f"{picture.resolve().stem}-restored"
    names = "sample-*.png", "restored.*", "aligned.*", "spread.png", "restoration.png"
    with owned(out), products(out, RECORD, *names) as folder:
        device = console.pick_device(options.device)
        if options.photographs:
            how = options.blur, options.noise, options.sampling, options.ensemble
            made = restored_photograph(folder, options.pictures, options.photographs, device, *how)
        else:
            made = restored_into(folder, picture, options, device)
    print(f"wrote {', '.join(str(out / name) for name in made)} and {out / RECORD}")


def restored_into(folder: Path, path: Path, options: Restore, device: torch.device) -> list[str]:
    """Restore the picture by a run; write the samples, what is taken, all of them side by side, and the record."""
    read_image(path)  # before the model, which takes longer
    pipeline = Pipeline.from_pretrained(options.run, device=device)
    check_model(options.run, pipeline)
    image = read_still(path, "L" if pipeline.config.channels == 1 else "RGB")
    intervals = Intervals.of(pipeline) if options.steps is None else None
    clean, size = fitted(pipeline, image)
    picture = degraded(pipeline, clean, size, options)
    record: dict[str, object] = {"pictures": [str(path)], "run": options.run}
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
    made = ["restored.png", "sample-*.png"]
    if len(restored) > 1 and level:
        spread = (intervals(restored, level) if intervals else restored.std(dim=0)).mean(dim=0, keepdim=True)
        panels.append((spread / WHITE).clamp(max=1.0))
        names.append("spread")
        made.append("spread.png")
        save_image(folder / "spread.png", render.quantised(panels[-1]), "figure")
        record |= {"half_width_90_percent" if intervals else "standard_deviation": float(spread.mean()), "white": WHITE}
        if intervals:
            print(f"90 % of the pixels lie within +- {spread.mean():.3f} of the mean on average, if the picture is like those of")
            print(f"{intervals.data} (spread.png: white is +- {WHITE:g})")
        else:
            why = f"python -m cli.evaluate {options.run} --calibration measures it"
            why = "it is measured with the sampler's own steps: leave out --steps" if options.steps else why
            print(f"the restored pictures differ by {spread.mean():.3f} on average (spread.png: white is {WHITE:g}); how wide")
            print(f"intervals of 90 % are is not known: {why}")
    pixels = [render.enlarged(render.to_pixels(panel), PANEL) for panel in panels]
    width = pixels[0].shape[1]
    scale = render.scale(("0", f"{WHITE:g}"), width)
    below = [scale if name == "spread" else np.full_like(scale, 255) for name in names]
    labelled = [np.concatenate(column) for column in zip(render.captions(names, width, 36), pixels, below, strict=True)]
    for number, sample in enumerate(restored):
        save_image(folder / f"sample-{number:02d}.png", render.quantised(sample), "sample")
    save_image(folder / "restored.png", render.quantised(result), "sample")
    save_image(folder / "restoration.png", render.grid(labelled, min(len(labelled), COLUMNS), gap=6), "grid")
    record |= {"size": size.to_json(), "level": level}
    write_json(folder / RECORD, record | {"samples": len(restored), "best": chosen, "seed": options.seed})
    return made


def check_model(run: str, pipeline: Pipeline) -> None:
    """Raise InputError for a run that learned photographs, but is no model of them yet."""
    if isinstance(pipeline.method.denoiser, Photographs) and not Restore(run=run).photographs:
        raise InputError(f"{run}: restores photographs only as a model that python -m tools.photographs --run makes of it")


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
    nothing = f"no blur or noise of the kind that {run} knows is found, by its guess (probability {estimate.clean:.2f}): the "
    nothing += "picture stays as it is; it would not see other damage"
    return [unknown] * (not estimate.familiar) + [nothing] * (estimate.quantile(0.5) == 0)


def fitted(pipeline: Pipeline, image: np.ndarray) -> tuple[torch.Tensor, Size]:
    """A picture [C, H, W] in the size nearest to its shape that has the run's shorter side and that the network can take."""
    size = fitted_size(pipeline, Size(*image.shape[1:]))
    return torch.from_numpy(fit(image, size)), size


def fitted_size(pipeline: Pipeline, own: Size) -> Size:
    """The size of :func:`fitted` for a picture of a size."""
    shorter, factor = pipeline.config.size.shorter, pipeline.config.network.side_factor
    longer = max(shorter, factor * round(shorter * max(own) / (min(own) * factor)))
    return Size(longer, shorter) if own.height > own.width else Size(shorter, longer)


main = partial(console.run, "restore", restore_picture, partial(tyro.cli, Restore))


if __name__ == "__main__":
    main()
