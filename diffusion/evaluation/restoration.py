"""Restoration scored: held-out pictures are degraded by known blur, noise and flow, and restored by a run and by scikit-image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion.rng import seeds
from diffusion.sampling.restoration import LevelEstimator, as_stored, restore
from lbm_warp.checks import InputError

if TYPE_CHECKING:
    from diffusion.sampling.pipeline import Pipeline

SAMPLES = 4
Picture = np.ndarray  # float64 [H, W, C] in [0, 1]


def score_restoration(
    pipeline: Pipeline, read: Callable[[np.ndarray], torch.Tensor], index: np.ndarray, level: int, *, seed: int = 0
) -> dict[str, object]:
    """PSNR and SSIM of pictures that were degraded to a level, stored with eight bits, and restored by several methods.

    The run finds the level by itself. The other methods know blur and noise, and their one free number is the best one on every
    other picture; all are scored on the rest.

    Args:
        pipeline: a run.
        read: called as ``read(index)``: pictures of these numbers, float32 [n, C, H, W] in [0, 1].
        index: numbers of pictures that the run has not learned, int64, at least 2.
        level: 1 to K.
        seed: of flows and noise.

    Returns:
        Blur width, noise, median relative error of the estimated blur width, and ``methods``: PSNR [dB] and SSIM by name.

    Raises:
        InputError: if scikit-image is not installed.
    """
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError as error:
        raise InputError("scores of restoration need scikit-image: pip install 'beyond-blur[restoration]'") from error
    forward, x = pipeline.forward, read(index)
    signal, own = float(forward.signal[level]), seeds(seed, "degraded", index)
    u = forward.corrupt(x.to(pipeline.device), level, own).cpu()
    z = as_stored(0.5 + (u - 0.5) / signal)
    widths = forward.operator.widths(pipeline.config.size)
    sigma, noise = float(widths[level]), float(forward.noise[level]) / signal
    estimator, errors = LevelEstimator(pipeline, seed=seed), []
    clean, degraded = (list(pictures.double().permute(0, 2, 3, 1).numpy()) for pictures in (x, z))

    def scored(restored: Sequence[Picture], truth: Sequence[Picture]) -> dict[str, float]:
        pairs = [(a, np.clip(b, 0.0, 1.0)) for a, b in zip(truth, restored, strict=True)]
        window = min(7, 2 * (min(truth[0].shape[:2]) // 2) - 1)
        return {
            "psnr": float(np.mean([peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs])),
            "ssim": float(
                np.mean([structural_similarity(a, b, data_range=1.0, channel_axis=2, win_size=window) for a, b in pairs])
            ),
        }

    tuning, test = slice(0, None, 2), slice(1, None, 2)
    methods = {"degraded": scored(degraded[test], clean[test])}
    for name, (method, values) in _baselines(sigma, noise).items():
        best = max(values, key=lambda value: scored([method(p, value) for p in degraded[tuning]], clean[tuning])["psnr"])
        methods[name] = scored([method(p, best) for p in degraded[test]], clean[test]) | {"parameter": best}
    means, singles = [], []
    for number in tqdm(range(len(x))[test], desc=f"level {level}", unit="picture", leave=False):
        found = max(1, estimator(z[number]).quantile(0.5))
        errors.append(abs(float(widths[found]) / sigma - 1.0))
        restored = restore(pipeline, z[number], found, SAMPLES, int(own[number]))
        means.append(restored.mean(dim=0).permute(1, 2, 0).double().numpy())
        singles.append(restored[0].permute(1, 2, 0).double().numpy())
    methods |= {"one sample": scored(singles, clean[test]), f"mean of {SAMPLES}": scored(means, clean[test])}
    return {"level": level, "sigma": sigma, "noise": noise, "sigma_error": float(np.median(errors)), "methods": methods}


def check_blurs(pipeline: Pipeline) -> None:
    """Raise InputError unless a run's process blurs: the other methods undo blur."""
    if not pipeline.forward.operator.widths(pipeline.config.size).any():
        raise InputError(f"{pipeline.config.process_name} does not blur: scores of restoration need a run whose process blurs")


def _baselines(sigma: float, noise: float) -> dict[str, tuple[Callable[[Picture, float], Picture], tuple[float, ...]]]:
    """Methods of scikit-image, and values of their free number."""
    from skimage.restoration import denoise_tv_chambolle, wiener
    from skimage.transform import resize

    reach = max(2, int(np.ceil(3.0 * sigma)))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / max(sigma, 1e-3)) ** 2)
    psf = np.outer(kernel, kernel) / kernel.sum() ** 2

    def bicubic(z: Picture, factor: float) -> Picture:
        small = resize(z, (max(2, round(z.shape[0] / factor)), max(2, round(z.shape[1] / factor))), order=3, anti_aliasing=True)
        return resize(small, z.shape, order=3)

    def deblurred(z: Picture, balance: float) -> Picture:
        width = ((reach, reach), (reach, reach))
        channels = [wiener(np.pad(z[..., c], width, mode="symmetric"), psf, balance, clip=False) for c in range(z.shape[2])]
        return np.stack([channel[reach:-reach, reach:-reach] for channel in channels], axis=2)

    def smooth(z: Picture, weight: float) -> Picture:
        return denoise_tv_chambolle(z, weight, channel_axis=2)

    wide = tuple(float(value) for value in np.geomspace(1e-4, 3.0, 15))
    return {
        "bicubic": (bicubic, (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)),
        "Wiener": (deblurred, wide),
        "total variation": (smooth, tuple(noise * value for value in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0))),
    }
