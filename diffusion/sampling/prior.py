"""The prior that sampling starts from: level K of the training pictures, kept as thumbnails or as mean colours.

At level K so little is left of a picture that a thumbnail gives the same corrupted image. A run keeps up to ten thousand
thumbnails, so it samples without its training data. Each sample corrupts one of them with a flow of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusion.data.dataset import evenly_spaced
from diffusion.files import load_tensors, save_tensors
from diffusion.methods import Method
from diffusion.rng import below, seeds
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines
from lbm_warp.random import normal

FILE = "prior.safetensors"
PROBES = 32
MOST = 10_000
# The quantization step of eight-bit pictures.
QUANTUM = 1.0 / 255.0


@dataclass(frozen=True)
class Prior:
    """Thumbnails of training pictures, float32 [M, C, h, w]."""

    thumbnails: torch.Tensor

    @classmethod
    def build(cls, dataset: Sequence[np.ndarray], method: Method, device: torch.device) -> Prior:
        """The smallest thumbnails that level K cannot tell from the pictures.

        That is measured on a few pictures spread over the data set, for the best possible detector: one that knows both images, and
        sees their difference under the noise of level K. Its signal-to-noise ratio is below one, s_K ||A_K(picture) -
        A_K(thumbnail)|| < sigma_K. A process with little noise is measured against the quantization step of eight bits instead.

        Args:
            dataset: pictures, float32 [C, H, W]; of a large set ten thousand are kept.
            method: its level K is what sampling starts from, and its sampler says how.
            device: where to compute.
        """
        count, forward = len(dataset), method.forward
        size = Size(*dataset[0].shape[1:])
        kept = evenly_spaced(count, MOST).tolist()
        if method.sampler.start.colours:
            colours = [torch.from_numpy(dataset[i]).mean(dim=(1, 2)) for i in kept]
            return cls(torch.stack(colours)[:, :, None, None])
        probe = torch.stack([torch.from_numpy(dataset[i]) for i in evenly_spaced(count, PROBES).tolist()]).to(device)
        noise = max(forward.noise[-1], QUANTUM)
        seed = torch.arange(len(probe))
        at_last = forward.operator(probe, forward.levels, seed)

        def hidden(other: torch.Tensor) -> bool:
            difference = at_last - forward.operator(other, forward.levels, seed)
            return float((float(forward.signal[-1]) * difference.flatten(1).norm(dim=1)).amax()) < noise

        mean = torch.zeros((1, *dataset[0].shape), dtype=torch.float64)
        for i in kept:
            mean += torch.from_numpy(dataset[i])
        mean /= len(kept)
        if hidden(mean.to(probe).expand_as(probe)):
            return cls(mean.float())
        for side in range(1, size.shorter + 1):
            small = _thumbnail_size(size, side)
            if hidden(_resized(_resized(probe, small), size)):
                break
        bar = tqdm(kept, desc="prior", unit="img", delay=1, leave=False)
        return cls(torch.cat([_resized(torch.from_numpy(dataset[i])[None], small) for i in bar]))

    def save(self, folder: Path) -> None:
        """Write prior.safetensors."""
        save_tensors(folder / FILE, {"thumbnails": self.thumbnails})

    def describe(self) -> str:
        """What of the training pictures it holds, in a sentence for people who publish a run."""
        count, _, height, width = self.thumbnails.shape
        if count == 1:
            return "It holds the mean of the training pictures and none of them: the last level hides what they differ in."
        return f"It holds {count:,} training pictures as thumbnails of {height} x {width} pixels: whoever has the model has these."

    def draw(
        self, seed: torch.Tensor, method: Method, size: Size, device: torch.device, flow: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images at level K without its noise, for every seed another: a random thumbnail, or a random colour from a Gaussian that
        is fitted to the mean colours, corrupted by a flow of its own, with the noise of the sampler's start.

        Args:
            seed: one integer a sample, int64 [N].
            method: what corrupts, and how sampling starts.
            size: of the images.
            device: where to compute.
            flow: seeds of the flows, int64 [N]; by default ``seed``.

        Returns:
            float32 [N, C, H, W].
        """
        start = method.sampler.start
        chosen = self._colours(seed) if start.colours else self.thumbnails[below(len(self.thumbnails), seed, "thumbnail")]
        pictures = _resized(chosen.to(device), size)
        return start.noised(method.forward.mean(pictures, method.levels, seed if flow is None else flow), seed)

    def pictures(self, size: Size) -> torch.Tensor:
        """The thumbnails at the size of the images, float32 [M, C, height, width]."""
        return _resized(self.thumbnails, size)

    def _colours(self, seed: torch.Tensor) -> torch.Tensor:
        """A colour for every seed, [N, C, 1, 1], with mean and covariance of the thumbnails' mean colours."""
        colours = self.thumbnails.double().mean(dim=(2, 3))
        scale, axes = torch.linalg.eigh(colours.T.cov(correction=0).reshape(2 * colours.shape[1:]))
        normals = normal(seeds(seed, "colour"), (len(seed), len(scale), 1, 1), torch.device("cpu"))[:, :, 0, 0].double()
        drawn = colours.mean(dim=0) + (normals * scale.clamp_min(0.0).sqrt()) @ axes.T
        return drawn.float()[:, :, None, None]


def load_prior(folder: Path, shape: tuple[int, int, int]) -> Prior:
    """Read prior.safetensors.

    Args:
        folder: the run.
        shape: [C, H, W] of its images.

    Raises:
        InputError: if it is missing, damaged, or holds thumbnails of other images.
    """
    path = folder / FILE
    thumbnails = load_tensors(path).get("thumbnails")
    if thumbnails is None or thumbnails.ndim != 4 or thumbnails.shape[1] != shape[0] or not thumbnails.numel():
        channels, height, width = shape
        raise InputError(f"{path}: holds no thumbnails for {channels} x {height} x {width} images")
    return Prior(thumbnails.float())


def _thumbnail_size(size: Size, shorter: int) -> Size:
    """The size with this shorter side and about the same aspect ratio."""
    height, width = (-(-side * shorter // size.shorter) for side in size)
    return Size(height, width)


def _resized(pictures: torch.Tensor, size: Size) -> torch.Tensor:
    """The pictures [N, C, H, W] at another size, from their lowest cosine modes: those that blur between walls keeps longest.

    A mode that both sizes can hold is kept exactly, whatever the factor, and so is the brightness.
    """
    rows, columns = (_resampling(old, new).to(pictures) for old, new in zip(pictures.shape[2:], size, strict=True))
    return (rows @ pictures @ columns.T).contiguous()


def _resampling(old: int, new: int) -> torch.Tensor:
    """The matrix [new, old] that resizes one axis."""
    modes = min(old, new)
    return cosines(new)[1][:modes].T @ cosines(old)[1][:modes] * (new / old) ** 0.5
