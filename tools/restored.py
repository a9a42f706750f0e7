"""Restore photographs that were never learned, beside other methods, and print a table.

    python -m tools.restored data/photographs            # a folder of tools.photographs

Every method knows blur and noise, but for the row that estimates them. Each has one number of its own, tuned for every setting by
the same search on other photographs. Pictures are blurred with mirrored edges, made noisy, cut to [0, 1] and rounded to eight bits;
the others see them continued by their mirror images. Wavelets and BM3D are taken if installed (pip install PyWavelets bm3d; the
second is free for non-commercial use).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro

from cli import console
from diffusion.data.images import read_image
from diffusion.files import write_json
from diffusion.photographs import Photographs
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.tiles import MODEL, NINETY, DegradationEstimator, tiles
from lbm_warp.checks import InputError
from lbm_warp.heat import blur
from tools.photographs import COMPARED, degraded, middle

SETTINGS = ((1.0, 0.02), (1.5, 0.05), (2.5, 0.02), (0.0, 0.06), (0.0, 0.1), (0.0, 0.2))
SIDE, TUNED_SIDE, PAD = 192, 128, 32
OURS = "ours", "ours, --ensemble", "ours, estimated level"
# Photographs of scikit-image that its package has; the methods are compared on them and on those of the folder that are COMPARED.
OF_SKIMAGE = ("astronaut", "camera", "chelsea", "coffee", "rocket")
TUNING = ("erase-24", "explore_monuments-22", "explore_farm_animals-7")


@dataclass(frozen=True)
class Restored:
    """Options of ``python -m tools.restored``."""

    folder: tyro.conf.Positional[Path] = Path("data/photographs")
    """What tools.photographs wrote."""
    out: Path = Path("outputs/restored.json")
    """Where the scores are kept: those of other methods are not computed again."""
    model: Path = MODEL
    """The model of photographs."""


class Other(NamedTuple):
    """Another method: called with a picture [H, W, C], its blur and noise, and the number that is tuned."""

    restore: Callable[[np.ndarray, float, float, float], np.ndarray]
    numbers: tuple[float, ...]
    blurred: bool
    """Whether it is for blurred pictures."""
    sharp: bool
    """Whether it is for pictures that are only noisy."""


def run(options: Restored) -> None:
    """Compute what is not there yet, and print the table."""
    test, tuning = pictures(options.folder)
    scores: dict[str, list[list[float]]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name, other in others().items():
        for sigma, noise in SETTINGS:
            key = f"{name} {sigma:g} {noise:g}"
            if key not in scores and (other.blurred if sigma else other.sharp):
                number = tuned(other, tuning, sigma, noise)
                restore = partial(padded, other.restore, sigma=sigma, noise=noise, number=number)
                scores[key] = [score(x, restore(given(x, sigma, noise, i))) for i, x in enumerate(test)]
                options.out.parent.mkdir(parents=True, exist_ok=True)
                write_json(options.out, scores)
                print(key, number, np.round(np.mean(scores[key], axis=0), 3))
    scores |= ours(options.model, test)
    write_json(options.out, scores)
    print(table(scores))


def ours(model: Path, test: list[np.ndarray]) -> dict[str, list[list[float]]]:
    """Scores of the model, told blur and noise, in eight orientations too, and not told; with the share of values inside the 90 %
    intervals."""
    pipeline, estimator = Pipeline.from_pretrained(model), DegradationEstimator.load(model)
    scores: dict[str, list[list[float]]] = {}
    for sigma, noise in SETTINGS:
        for i, x in enumerate(test):
            z = given(x, sigma, noise, i)
            (found, _), (found_noise, _) = estimator(z).moments()
            numbers = (sigma, noise), (sigma, noise), (found, found_noise)
            for name, told, ensemble in zip(OURS, numbers, (False, True, False), strict=True):
                tile = next(tiles(pipeline, z, *told, ensemble=ensemble))
                inside = np.abs(tile.mean - x) <= NINETY * estimator.factor(told[1]) * tile.deviation
                scores.setdefault(f"{name} {sigma:g} {noise:g}", []).append([*score(x, tile.mean), float(inside.mean())])
    return scores


def pictures(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Clean photographs for the test and for the tuning, float32 [C, H, W]."""
    try:
        from skimage import data
    except ModuleNotFoundError:
        raise InputError("tools.restored needs scikit-image: pip install scikit-image") from None
    test = [np.atleast_3d(getattr(data, name)()).transpose(2, 0, 1).astype(np.float32) / 255.0 for name in OF_SKIMAGE]
    test += [read_image(folder / "test" / f"{name}.png", "RGB") for name in COMPARED]
    tuning = [read_image(folder / "test" / f"{name}.png", "RGB") for name in TUNING]
    return [middle(x, SIDE) for x in test], [middle(x, TUNED_SIDE) for x in tuning]


def given(x: np.ndarray, sigma: float, noise: float, seed: int) -> np.ndarray:
    """A picture with blur and noise, float32 [C, H, W]."""
    return degraded(torch.from_numpy(x)[None], sigma, noise, seed)[0].numpy()


def score(x: np.ndarray, restored: np.ndarray) -> list[float]:
    """PSNR [dB], structural similarity, and the energy of the gradient over that of the true picture: 1 is as sharp."""
    from skimage.metrics import structural_similarity

    y = restored.clip(0.0, 1.0).astype(np.float32)
    energy = [sum(float(np.square(np.diff(one, axis=axis)).sum()) for axis in (1, 2)) for one in (y, x)]
    similarity = structural_similarity(x, y, channel_axis=0, data_range=1.0)
    return [float(-10.0 * np.log10(np.square(y - x).mean())), float(similarity), energy[0] / energy[1]]


def padded(restore: Callable[..., np.ndarray], z: np.ndarray, *, sigma: float, noise: float, number: float) -> np.ndarray:
    """What a method makes of a picture [C, H, W], which it sees continued by its mirror image."""
    seen = np.pad(z.transpose(1, 2, 0).astype(np.float64), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="symmetric")
    made = np.asarray(restore(seen, sigma, noise, number)).reshape(seen.shape)
    return made[PAD:-PAD, PAD:-PAD].transpose(2, 0, 1)


def tuned(other: Other, tuning: list[np.ndarray], sigma: float, noise: float) -> float:
    """The number with the best mean PSNR on the pictures for the tuning."""

    def quality(number: float) -> float:
        restore = partial(padded, other.restore, sigma=sigma, noise=noise, number=number)
        return float(np.mean([score(x, restore(given(x, sigma, noise, 100 + i)))[0] for i, x in enumerate(tuning)]))

    return max(other.numbers, key=quality)


@cache
def others() -> dict[str, Other]:
    """The other methods that are installed."""
    from skimage import restoration

    def kernel(sigma: float) -> np.ndarray:
        place = np.arange(-16, 17)
        line = np.exp(-0.5 * (place / sigma) ** 2)
        return np.outer(line, line) / line.sum() ** 2

    def by_channel(one: Callable[[np.ndarray], np.ndarray], z: np.ndarray) -> np.ndarray:
        return np.stack([one(z[..., channel]) for channel in range(z.shape[2])], axis=2)

    def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
        u = torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]
        return blur(u, torch.tensor([sigma], dtype=torch.float64), periodic=False)[0].numpy().transpose(1, 2, 0)

    def wiener(z: np.ndarray, sigma: float, noise: float, power: float) -> np.ndarray:
        u = torch.from_numpy(z.transpose(2, 0, 1).copy())[None]
        numbers = torch.tensor([sigma]).double(), torch.tensor([noise]).double()
        return Photographs(power=power).estimate(u, *numbers)[1][0].numpy().transpose(1, 2, 0)

    def total_variation(z: np.ndarray, sigma: float, noise: float, weight: float) -> np.ndarray:
        """min |A x - z|^2 / 2 + weight noise TV(x) by accelerated proximal gradients (Beck and Teboulle 2009)."""
        x = momentum = z
        t = 1.0
        for _ in range(40 if sigma else 1):
            residual = blurred(blurred(momentum, sigma) - z, sigma) if sigma else momentum - z
            steps = 20 if sigma else 200
            after = restoration.denoise_tv_chambolle(momentum - residual, weight * noise, channel_axis=-1, max_num_iter=steps)
            t, before = (1.0 + np.sqrt(1.0 + 4.0 * t * t)) / 2.0, t
            momentum, x = after + (before - 1.0) / t * (after - x), after
        return x

    def wavelet(z: np.ndarray, sigma: float, noise: float, factor: float) -> np.ndarray:
        return restoration.denoise_wavelet(z, factor * noise, channel_axis=-1, convert2ycbcr=z.shape[2] == 3, rescale_sigma=True)

    def richardson_lucy(z: np.ndarray, sigma: float, noise: float, steps: float) -> np.ndarray:
        return by_channel(lambda one: restoration.richardson_lucy(one.clip(1e-3), kernel(sigma), num_iter=int(steps)), z)

    def unsupervised(z: np.ndarray, sigma: float, noise: float, unused: float) -> np.ndarray:
        chain = {"max_num_iter": 100, "min_num_iter": 30}
        return by_channel(lambda one: restoration.unsupervised_wiener(one, kernel(sigma), user_params=chain, rng=0)[0], z)

    found = {
        "Wiener": Other(wiener, (0.003, 0.006, 0.0113, 0.02, 0.04), True, True),
        "total variation": Other(total_variation, (0.1, 0.2, 0.4, 0.6, 0.9, 1.3), True, True),
        "Richardson-Lucy": Other(richardson_lucy, (3, 5, 10, 20, 40), True, False),
        "unsupervised Wiener": Other(unsupervised, (0.0,), True, False),
    }
    if find_spec("pywt"):
        found["wavelet"] = Other(wavelet, (0.5, 0.7, 1.0, 1.4), False, True)
    if not find_spec("bm3d"):
        return found
    import bm3d  # type: ignore[import-not-found]

    vars(np).setdefault("trapz", np.trapezoid)  # its old name, which bm4d calls

    def bm3d_of(z: np.ndarray, sigma: float, noise: float, factor: float) -> np.ndarray:
        if sigma:  # channel by channel: of all together it fails (bm3d 4.0.3)
            return by_channel(lambda one: bm3d.bm3d_deblurring(one[..., None], factor * noise, kernel(sigma)), z)
        return bm3d.bm3d_rgb(z, factor * noise) if z.shape[2] == 3 else np.atleast_3d(bm3d.bm3d(z[..., 0], factor * noise))

    return found | {"BM3D": Other(bm3d_of, (1.0, 1.2), True, True)}


def table(scores: dict[str, list[list[float]]]) -> str:
    """Means over the pictures, in Markdown: PSNR, structural similarity and sharpness for every setting."""
    names = list(dict.fromkeys(key.rsplit(" ", 2)[0] for key in scores))
    head = [f"blur {sigma:g} px, noise {noise:g}" if sigma else f"noise {noise:g}" for sigma, noise in SETTINGS]
    lines = ["| | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name in names:
        cells = []
        for sigma, noise in SETTINGS:
            rows = scores.get(f"{name} {sigma:g} {noise:g}")
            psnr, similarity, sharpness, *_ = np.mean(rows, axis=0) if rows else (np.nan,) * 3
            cells.append(f"{psnr:.2f} / {similarity:.3f} / {sharpness:.2f}" if rows else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for name in OURS:
        shares = [np.mean(scores[f"{name} {sigma:g} {noise:g}"], axis=0)[3] for sigma, noise in SETTINGS]
        lines.append(f"| {name}: inside 90 % | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")
    return "\n".join(lines)


main = partial(console.run, "restored", run, partial(tyro.cli, Restored), package="tools")


if __name__ == "__main__":
    main()
