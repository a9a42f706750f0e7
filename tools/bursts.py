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
from diffusion.sampling.burst import align
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.tiles import MODEL, DegradationEstimator, tiles
from lbm_warp import OpticalTurbulence
from tools.photographs import middle

STRENGTHS, NOISE, SIDE, BORDER = (1.0, 3.0, 6.0), 0.02, 256, 16


@dataclass(frozen=True)
class Bursts:
    """Options of ``python -m tools.bursts``."""

    folder: tyro.conf.Positional[Path] = Path("data/photographs")
    """What tools.photographs wrote; its photographs for tests are the scenes."""
    scenes: int = 8
    """Number of scenes."""
    frames: int = 20
    """Number of frames of each."""


def run(options: Bursts) -> None:
    """Print the table: PSNR [dB] away from the borders, before and after the model of photographs."""
    pipeline, estimator = Pipeline.from_pretrained(MODEL), DegradationEstimator.load()
    found: dict[str, list[tuple[float, float]]] = {}
    files = sorted((options.folder / "test").glob("*.png"))[: options.scenes]
    for strength in tqdm(STRENGTHS, unit="strength"):
        for number, file in enumerate(files):
            scene = torch.from_numpy(middle(read_image(file, "RGB"), SIDE))
            frames = burst(scene, strength, options.frames, number)
            for name, picture in pictures(frames, scene).items():
                (sigma, _), (noise, _) = estimator(picture.numpy()).moments()
                restored = next(tiles(pipeline, picture.numpy(), sigma, noise)).mean
                scores = psnr(picture, scene), psnr(torch.from_numpy(restored), scene)
                found.setdefault(f"{name} {strength:g}", []).append(scores)
    print("| | " + " | ".join(f"D / r0 = {strength:g}" for strength in STRENGTHS) + " |")
    print("|---|" + "---|" * len(STRENGTHS))
    for name in dict.fromkeys(key.rsplit(" ", 1)[0] for key in found):
        means = [np.mean(found[f"{name} {strength:g}"], axis=0) for strength in STRENGTHS]
        print(f"| {name} | " + " | ".join(f"{plain:.2f} / {restored:.2f}" for plain, restored in means) + " |")


def burst(scene: torch.Tensor, strength: float, count: int, number: int) -> torch.Tensor:
    """Frames of a scene [C, H, W], each through an air of its own, with the noise of a camera, as files hold them."""
    air, seed = OpticalTurbulence(d_over_r0=strength), torch.arange(count) + 100 * number
    seen = air(scene.expand(count, -1, -1, -1), air.levels, seed)
    return as_stored(seen + NOISE * torch.randn(seen.shape, generator=torch.Generator().manual_seed(number)))


def pictures(frames: torch.Tensor, scene: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one could take of frames [M, C, H, W], by name."""
    sharpness = torch.stack([frames.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3)]).sum(dim=0)
    best = max(frames, key=lambda frame: psnr(frame, scene))
    lucky = frames[sharpness.topk(max(1, len(frames) // 10)).indices].mean(dim=0)
    return {"the best frame": best, "the mean": frames.mean(dim=0), "lucky imaging": lucky, "aligned": align(frames).picture}


def psnr(picture: torch.Tensor, scene: torch.Tensor) -> float:
    """Of the inner part: beyond the borders no frame says what the scene is."""
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return float(-10.0 * (picture.clamp(0.0, 1.0) - scene)[inner].square().mean().log10())


main = partial(console.run, "bursts", run, partial(tyro.cli, Bursts), package="tools")


if __name__ == "__main__":
    main()
