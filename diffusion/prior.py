"""Where sampling starts: level K of the training pictures, kept as thumbnails.

At level K so little is left of a picture that a thumbnail gives the same corrupted image. A run keeps a bank of them, so it samples
without its training data; each sample corrupts one with a flow of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from diffusion.process import ForwardProcess
from diffusion.rng import below, seeds
from lbm_warp.random import normal

PROBES = 32
BANK = 10_000


@dataclass(frozen=True)
class Prior:
    """A bank of thumbnails, float32 [M, C, T, T]."""

    thumbnails: torch.Tensor

    @classmethod
    def build(cls, images: Iterable[np.ndarray], count: int, process: ForwardProcess) -> Prior:
        """Thumbnails just large enough that level K cannot tell them from the pictures.

        "Cannot tell" is meant strictly: even the best detector, who knows both and sees the difference under the training noise, has
        a signal-to-noise ratio below one: ||A_K(picture) - A_K(thumbnail)|| < noise. The operator is linear in the image, so this is
        measured on a few pictures spread over the set.

        Args:
            images: pictures, float32 [C, S, S].
            count: how many they are.
            process: what corrupts them.
        """
        keep = set(np.linspace(0, count - 1, min(count, BANK)).round().astype(int))
        pictures = [torch.from_numpy(image) for index, image in enumerate(images) if index in keep]
        size = pictures[0].shape[-1]
        probe = torch.stack(pictures[:: max(len(pictures) // PROBES, 1)])
        for side in (s for s in range(1, size + 1) if size % s == 0):
            difference = probe - _enlarge(_reduce(probe, side), size)
            if _faded(difference, process).amax() < process.noise:
                break
        return cls(torch.stack([_reduce(picture[None], side)[0] for picture in pictures]))

    def draw(self, seed: torch.Tensor, size: int, process: ForwardProcess, device: torch.device) -> torch.Tensor:
        """Images at level K, under the sampling noise: a random thumbnail in a flow of its own for every seed.

        Args:
            seed: one integer a sample, int64 [N].
            size: side of the images [pixels].
            process: what corrupts them.
            device: where to compute.

        Returns:
            float32 [N, C, size, size].
        """
        chosen = self.thumbnails[below(len(self.thumbnails), seed, "thumbnail")].to(device)
        u = process.operator(size)(_enlarge(chosen, size), process.levels, seeds(seed, "flow"))
        return u + process.noise * process.sampling_noise * normal(seeds(seed, "noise", process.levels), u.shape, device)


def _reduce(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Means over equal blocks, [N, C, side, side]."""
    return F.avg_pool2d(pictures, pictures.shape[-1] // side)


def _enlarge(thumbnails: torch.Tensor, size: int) -> torch.Tensor:
    """Blocks of equal pixels, [N, C, size, size]: it keeps every mean, and level K has no eye for edges."""
    return F.interpolate(thumbnails, size=(size, size), mode="nearest")


def _faded(difference: torch.Tensor, process: ForwardProcess) -> torch.Tensor:
    """||A_K(difference)|| per image, without the background: the difference of two images has none."""
    operator = replace(process, offset=0.0).operator(difference.shape[-1])
    faded = operator(difference.contiguous(), process.levels, torch.arange(len(difference)))
    return faded.flatten(1).norm(dim=1)
