"""Make one picture of simulated frames through moving air, beside what else one could take of them, and print a table.

python -m tools.bursts data/photographs              # a folder of tools.photographs
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from cli import console
from diffusion.data.images import read_image
from diffusion.photographs import as_stored
from diffusion.sampling import burst, tiles
from diffusion.sampling.pipeline import Pipeline
from lbm_warp import OpticalTurbulence
from lbm_warp.optics import shifted
from tools.photographs import middle

STRENGTHS, SIDE, BORDER = (1.0, 3.0, 6.0), 256, 16


@dataclass(frozen=True)
class Bursts:
    """Options of ``python -m tools.bursts``."""

    folder: tyro.conf.Positional[Path] = Path("data/photographs")
    """What tools.photographs wrote; its photographs for tests are the scenes."""
    first: int = 0
    """Number of the first scene. The factor of the intervals was chosen on those from 8 on; the table is of those before."""
    scenes: int = 8
    """Number of scenes."""
    frames: int = 20
    """Number of frames of each."""
    noise: float = 0.02
    """Standard deviation of the noise of a frame."""


def run(options: Bursts) -> None:
    """Print the table: PSNR [dB] away from the borders, before and after the model of photographs."""
    pipeline, estimator = Pipeline.from_pretrained(tiles.MODEL), tiles.DegradationEstimator.load()
    scores: dict[tuple[str, float], list[tuple[float, ...]]] = {}
    ratios: dict[float, list[np.ndarray]] = {strength: [] for strength in STRENGTHS}
    files = sorted((options.folder / "test").glob("*.png"))[options.first :][: options.scenes]
    for strength in tqdm(STRENGTHS, unit="strength"):
        air = OpticalTurbulence(d_over_r0=strength)
        sampling = air.wavelength / air.aperture / (air.view / SIDE)
        for number, file in enumerate(files, options.first):
            scene = torch.from_numpy(middle(read_image(file, "RGB"), SIDE))
            frames, tilt = seen(scene, air, options.frames, number, options.noise)
            rows = []
            for name, picture in alternatives(frames, scene).items():
                (sigma, _), (noise, _) = estimator(picture.numpy()).moments()
                rows.append((name, scene, picture, next(tiles.tiles(pipeline, picture.numpy(), sigma, noise)).mean))
            aligned = burst.align(frames)
            tile = next(burst.restored(pipeline, estimator, aligned, sampling))
            rows.append(("aligned", scene, aligned.picture, tile.mean))
            moved = shifted(scene[None], tilt.mean(dim=0, keepdim=True))[0]
            rows.append(("aligned, but for the shift of all", moved, aligned.picture, tile.mean))
            for name, truth, *before_and_after in rows:
                pair = tuple(psnr(torch.as_tensor(one), truth) for one in before_and_after)
                scores.setdefault((name, strength), []).append(pair)
            error = np.abs(tile.mean - scene.numpy()) / (tiles.NINETY * tile.deviation)
            ratios[strength].append(error[:, BORDER:-BORDER, BORDER:-BORDER])
    print("| | " + " | ".join(f"D / r0 = {strength:g}" for strength in STRENGTHS) + " |")
    print("|---|" + "---|" * len(STRENGTHS))
    for name in dict.fromkeys(name for name, _ in scores):
        means = [np.mean(scores[name, strength], axis=0) for strength in STRENGTHS]
        print(f"| {name} | " + " | ".join(f"{before:.2f} / {after:.2f}" for before, after in means) + " |")
    print("| inside 90 % | " + " | ".join(f"{100 * np.mean(np.stack(ratios[one]) <= 1.0):.0f} %" for one in STRENGTHS) + " |")
    needed = np.quantile(np.stack([ratio for one in STRENGTHS for ratio in ratios[one]]), 0.9)
    print(f"With intervals {needed:.2f} times as wide 90 % were inside.")


def seen(scene: torch.Tensor, air: OpticalTurbulence, count: int, number: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of a scene [C, H, W], each through an air of its own, with the noise of a camera, as files hold them; their tilts."""
    seed = torch.arange(count) + 100 * number
    u = air(scene.expand(count, -1, -1, -1), air.levels, seed)
    u = u + noise * torch.randn(u.shape, generator=torch.Generator().manual_seed(number))
    return as_stored(u), air.tilt(seed, *scene.shape[1:])


def alternatives(frames: torch.Tensor, scene: torch.Tensor) -> dict[str, torch.Tensor]:
    """What else one could take of frames [M, C, H, W], by name."""
    sharpness = torch.stack([frames.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3)]).sum(dim=0)
    best = max(frames, key=lambda frame: psnr(frame, scene))
    lucky = frames[sharpness.topk(max(1, len(frames) // 10)).indices].mean(dim=0)
    return {"the best frame": best, "the mean": frames.mean(dim=0), "lucky imaging": lucky}


def psnr(picture: torch.Tensor, scene: torch.Tensor) -> float:
    """Of the inner part: beyond the borders no frame says what the scene is."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return float(-10.0 * (picture.clamp(0.0, 1.0) - scene)[inner].square().mean().log10())


main = partial(console.run, "bursts", run, partial(tyro.cli, Bursts), package="tools")


if __name__ == "__main__":
    main()
