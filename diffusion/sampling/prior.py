"""Where sampling starts: level K of the training pictures, kept as thumbnails.

At level K so little is left of a picture that a thumbnail gives the same corrupted image. A run keeps a bank of them, so it samples
without its training data; each sample corrupts one with a flow of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from diffusion.config import RunConfig
from diffusion.data.dataset import evenly_spaced
from diffusion.files import load_tensors
from diffusion.process import QUANTUM, ForwardProcess
from diffusion.rng import below
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines

PROBES = 32
BANK = 10_000


@dataclass(frozen=True)
class Prior:
    """A bank of thumbnails, float32 [M, C, T, T]."""

    thumbnails: torch.Tensor

    @classmethod
    def build(cls, dataset: Sequence[np.ndarray], process: ForwardProcess, device: torch.device) -> Prior:
        """Thumbnails just large enough that level K cannot tell them from the pictures.

        "Cannot tell" is meant strictly: even the best detector, who knows both and sees the difference under the noise of level K,
        has a signal-to-noise ratio below one: s_K ||A_K(picture) - A_K(thumbnail)|| < sigma_K. Where there is no noise to speak of,
        it sees what eight bits a value show. The operator is linear in the image, so this is measured on a few pictures spread over
        the set.

        Args:
            dataset: pictures, float32 [C, S, S]; of a large set ten thousand are kept.
            process: what corrupts them.
            device: where to compute.
        """
        count = len(dataset)
        probe = torch.stack([torch.from_numpy(dataset[i]) for i in evenly_spaced(count, PROBES).tolist()]).to(device)
        size = probe.shape[-1]
        noise = max(process.scales()[1][-1], QUANTUM)
        for side in range(1, size + 1):
            difference = probe - _resized(_resized(probe, side), size)
            if _faded(difference, process).amax() < noise:
                break
        kept = tqdm(evenly_spaced(count, BANK).tolist(), desc="prior", unit="img", leave=False)
        return cls(torch.cat([_resized(torch.from_numpy(dataset[i])[None], side) for i in kept]))

    def draw(self, seed: torch.Tensor, size: int, process: ForwardProcess, device: torch.device) -> torch.Tensor:
        """Images at level K, without its noise: a random thumbnail in a flow of its own for every seed.

        Args:
            seed: one integer a sample, int64 [N].
            size: side of the images [pixels].
            process: what corrupts them.
            device: where to compute.

        Returns:
            float32 [N, C, size, size].
        """
        chosen = self.thumbnails[below(len(self.thumbnails), seed, "thumbnail")].to(device)
        return process.mean(_resized(chosen, size), process.levels, seed)


def load_prior(folder: Path, config: RunConfig) -> Prior:
    """Read prior.safetensors.

    Raises:
        InputError: if it is missing, damaged, or holds thumbnails of other images.
    """
    path = folder / "prior.safetensors"
    thumbnails = load_tensors(path).get("thumbnails")
    if thumbnails is None or thumbnails.ndim != 4 or thumbnails.shape[1] != config.channels or not thumbnails.numel():
        raise InputError(f"{path}: holds no thumbnails for {config.channels} x {config.size} x {config.size} images")
    return Prior(thumbnails.float())


def _resized(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """The pictures [N, C, S, S] at another size, through their lowest cosine modes: the ones that blur between walls keeps longest.

    A mode that fits into both sizes is kept exactly, whatever the factor, and the brightness with it.
    """
    size = pictures.shape[-1]
    modes = min(size, side)
    matrix = cosines(side)[1][:modes].T @ cosines(size)[1][:modes] * (side / size) ** 0.5
    return (matrix.to(pictures) @ pictures @ matrix.T.to(pictures)).contiguous()


def _faded(difference: torch.Tensor, process: ForwardProcess) -> torch.Tensor:
    """s_K ||A_K(difference)|| per image, without the background: the difference of two images has none."""
    operator = replace(process, offset=0.0).operator(difference.shape[-1])
    faded = difference if operator is None else operator(difference, process.levels, torch.arange(len(difference)))
    return float(process.scales()[0][-1]) * faded.flatten(1).norm(dim=1)
