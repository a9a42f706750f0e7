"""Second moments of the training pictures and of their corruption, mode by mode: what a Wiener filter needs.

They are measured once, on pictures corrupted by the process itself (blur, flow and background), and kept in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm

from diffusion.files import load_tensors, save_tensors
from diffusion.forward.operators import Operator
from diffusion.rng import seeds
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import from_modes, to_modes

FILE = "statistics.safetensors"
# Levels at which the moments are measured (between them they are interpolated), pictures, and pictures at a time.
KNOTS = 33
MOST = 4096
BATCH = 64


@dataclass(frozen=True)
class Statistics:
    """Moments of clean pictures x and of corrupted ones y = A_k(x), without signal scale and noise.

    Variances and covariances are those of the amplitudes of the orthonormal cosine modes (DCT-II). All are float32 [C, H, W], or
    [L, C, H, W] for L levels spaced evenly from 0 to K.
    """

    mean: torch.Tensor
    """Mean picture, [C, H, W]."""
    variance: torch.Tensor
    """Variance of x, [C, H, W]."""
    corrupted_mean: torch.Tensor
    """Mean of y, [L, C, H, W]."""
    corrupted_variance: torch.Tensor
    """Variance of y, [L, C, H, W]."""
    covariance: torch.Tensor
    """Covariance of x and y, [L, C, H, W]."""

    @classmethod
    def measure(cls, dataset: Sequence[np.ndarray], operator: Operator, device: torch.device, *, flat: bool = False) -> Statistics:
        """The moments of a data set under an operator.

        Args:
            dataset: pictures, float32 [C, H, W]; of a large set 4,096 are taken, spread over it. Picture i has the flow of seed i.
            operator: what corrupts them.
            device: where to compute.
            flat: for an operator that leaves pictures as they are, whether all modes get one number, the mean square about the
                middle of the range, and all means are that middle: sigma_data^2 of EDM.
        """
        # Imported here: it brings Pillow, which a configuration does not need.
        from diffusion.data.dataset import evenly_spaced

        chosen = evenly_spaced(len(dataset), MOST)
        knots = min(KNOTS, operator.levels + 1)
        levels = np.linspace(0, operator.levels, knots).round().astype(int).tolist()
        first, second, cross = torch.zeros((3, knots, *dataset[0].shape), dtype=torch.float64, device=device)
        batches = np.array_split(chosen, -(-len(chosen) // BATCH))
        for numbers in tqdm(batches, desc="statistics", unit="batch", delay=1, leave=False):
            x = torch.stack([torch.from_numpy(dataset[i]) for i in numbers.tolist()]).to(device)
            flow, of_all = seeds(numbers, "statistics"), [torch.full((len(x),), level) for level in levels]
            clean = to_modes(x).double()  # products cancel, amplitudes do not
            # Level by level: all at once are too many for a processor's cache.
            for knot, y in enumerate(operator.at(x, of_all, flow)):
                modes = to_modes(y).double()
                first[knot] += modes.sum(dim=0)
                second[knot] += modes.square().sum(dim=0)
                cross[knot] += (modes * clean).sum(dim=0)
        mean = first / len(chosen)
        variance = second / len(chosen) - mean.square()
        covariance = cross / len(chosen) - mean * mean[0]
        pictures = from_modes(mean)
        if flat:
            power = (variance[0].mean() + (pictures[0] - 0.5).square().mean()).expand_as(variance)
            pictures, variance, covariance = torch.full_like(pictures, 0.5), power, power
        moments = (pictures[0], variance[0], pictures, variance, covariance)
        return cls(*(moment.float().cpu() for moment in moments))

    def to(self, like: torch.Tensor) -> Statistics:
        """The moments on the device of a tensor, in its dtype."""
        return Statistics(**{name: moment.to(like) for name, moment in vars(self).items()})

    def interpolated(self, level: int | torch.Tensor, levels: int) -> tuple[torch.Tensor, ...]:
        """Mean, variance and covariance of corrupted pictures between the levels at which they were measured, each [N, C, H, W] or,
        for one level, [1, C, H, W].

        Args:
            level: one for all images, or int64 [N] on the CPU, 0 to ``levels``.
            levels: K.
        """
        moments = self.corrupted_mean, self.corrupted_variance, self.covariance
        place = torch.as_tensor(level).reshape(-1).double() * ((len(self.covariance) - 1) / levels)
        lower = place.floor().long().clamp(max=len(self.covariance) - 2)
        weight = (place - lower)[:, None, None, None].to(self.mean.dtype).to(self.mean.device, non_blocking=True)
        lower = lower.to(self.mean.device, non_blocking=True)
        return tuple(torch.lerp(moment[lower], moment[lower + 1], weight) for moment in moments)

    def at_size(self, size: Size) -> Statistics:
        """The moments for images of another size whose pixels show as much: mode m of W is mode m W' / W of W'."""

        def interpolated(moment: torch.Tensor, of_modes: bool) -> torch.Tensor:
            places = [
                (torch.arange(new) + 0.5 * (not of_modes)) * (old / new) for old, new in zip(moment.shape[-2:], size, strict=True)
            ]
            # grid_sample counts from the border of the first value, at -1, to that of the last, at 1.
            y, x = ((place + 0.5 * of_modes) * (2.0 / old) - 1.0 for place, old in zip(places, moment.shape[-2:], strict=True))
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
            planes = moment.reshape(1, -1, *moment.shape[-2:])
            values = functional.grid_sample(planes, grid[None], align_corners=False, padding_mode="border")
            return values.reshape(*moment.shape[:-2], *size)

        return Statistics(**{name: interpolated(moment, "mean" not in name) for name, moment in vars(self).items()})

    def save(self, folder: Path) -> None:
        """Write statistics.safetensors."""
        save_tensors(folder / FILE, {field.name: getattr(self, field.name) for field in fields(self)})


def load_statistics(folder: Path, shape: tuple[int, int, int]) -> Statistics:
    """Read a run's statistics.safetensors.

    Args:
        folder: the run.
        shape: [C, H, W] of its images.

    Raises:
        InputError: if the file is missing, damaged, or of images of another shape.
    """
    tensors = load_tensors(folder / FILE)
    knots = len(tensors.get("covariance", ()))
    expected = {field.name: shape if field.name in ("mean", "variance") else (knots, *shape) for field in fields(Statistics)}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected or not knots:
        channels, height, width = shape
        raise InputError(f"{folder / FILE}: not the statistics of {channels} x {height} x {width} images; train the run again")
    return Statistics(**{name: tensor.float() for name, tensor in tensors.items()})
