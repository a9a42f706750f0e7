"""Several frames of one scene through moving air, one picture: carry the frames onto each other, and take their mean.

Air shifts every point of the scene u in every frame y by a tilt of its own. The way back e, y(x + e(x)) = u(x) + noise, is the most
probable one: both of its components are sums of cosines with amplitudes that are Gaussian before the frame is seen. This is a
least-squares problem, linear once y is carried by the last e, as the gradient of u then says what a further shift does
(Gauss-Newton; each step is solved by conjugate gradients). The scene is the mean of the carried frames. The ways have the mean 0,
as the tilt has: a shift that all frames share cannot be seen. Noise and rms of the ways are measured anew in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from diffusion.sampling.inverse import conjugate_gradients
from lbm_warp.checks import InputError, as_floats
from lbm_warp.heat import cosines, full_precision
from lbm_warp.optics import shifted

# Rounds, and steps in each; the shorter side at which ways are looked for, and cosines along it; frames that are in work at a time.
ROUNDS, STEPS, SIDE, MODES, FRAMES = 5, 2, 256, 32, 8
# Power of a component by wavenumber: k^(-SLOPE), steeper than the k^(-5/3) of one thin layer of air.
SLOPE = 2.5
# Rms of the ways [pixels] and of the noise, before the first round.
SHIFT, NOISE = 2.0, 0.05
# The largest value of a frame, far above white; noise may go beyond.
BEYOND = 10.0


class Frames(Protocol):
    """Pictures [C, H, W] that can be gone through again and again: a list, a tensor [M, C, H, W], or what reads them from files."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...


@dataclass(frozen=True)
class Aligned:
    """One scene, from several frames.

    Attributes:
        picture: the mean of the carried frames, each weighted by its noise, float32 [C, H, W].
        ways: amplitudes of cosines for :meth:`way`, in units of the shorter side, float32 [M, 2, K, J].
        noise: root mean square difference between each carried frame and the scene, float32 [M].
    """

    picture: torch.Tensor
    ways: torch.Tensor
    noise: torch.Tensor

    def way(self, number: int, height: int, width: int) -> torch.Tensor:
        """The way back of a frame: x + way(x) is where it shows what is at x in the scene.

        Returns:
            Pixels, float32 [2, height, width], components (x, y) with x along the width.
        """
        return _fields(self.ways[number], height, width) * min(height, width)


@torch.no_grad()
def align(frames: Frames, callback: Callable[[int, torch.Tensor], None] | None = None) -> Aligned:
    """Find how the frames of a burst were shifted, and their mean without the shifts.

    Args:
        frames: at least two pictures of one size, floating-point [C, H, W] in [0, 1], on one device. They are taken one after the
            other, twice, so they need not be in memory at the same time.
        callback: called as ``callback(round, scene)`` after each of the ``ROUNDS``; of the scene, grey and with at most ``SIDE``
            pixels along its shorter side.

    Raises:
        InputError: if there are fewer than two frames, they are no pictures of one size, or have values far beyond [0, 1].
    """
    if len(frames) < 2:
        raise InputError(f"a burst has at least two frames of one scene, got {len(frames)}")
    small = torch.cat([_reduced(frame) for frame in _checked(frames)])
    height, width = small.shape[2:]
    side = min(height, width)
    spectrum = _spectrum(height, width).to(small)
    ways = small.new_zeros((len(small), 2, *spectrum.shape))
    carried, noise, shift = small.clone(), small.new_full((len(small),), NOISE), SHIFT / side
    for number in range(1, ROUNDS + 1):
        scene = _mean(carried, noise)
        for part in range(0, len(small), FRAMES):
            rows = slice(part, part + FRAMES)
            with full_precision(small.device):
                ways[rows] = _registered(small[rows], scene, ways[rows], shift * spectrum, noise[rows])
        ways -= _mean(ways, noise)
        for row, frame in enumerate(small):
            carried[row] = _carried(frame, ways[row])
        scene = _mean(carried, noise)
        noise = (carried - scene).square().mean(dim=(1, 2, 3)).sqrt().clamp_min(1e-3)
        shift = max(0.1 / side, float(_fields(ways, height, width).square().mean().sqrt()))
        if callback is not None:
            callback(number, scene)
    scene = small.new_zeros(())
    for frame, way, weight in zip(_checked(frames), ways, _weights(noise), strict=True):
        scene = scene + weight * _carried(frame, way)
    return Aligned(scene, ways, noise)


def _checked(frames: Frames) -> Iterator[torch.Tensor]:
    """The frames, float32."""
    first = None
    for number, frame in enumerate(frames, 1):
        shape = list(as_floats(f"frame {number}", frame, "C, H, W").shape)
        first = first or shape
        if shape != first:
            raise InputError(f"frames of a burst have one shape: the first has {first}, number {number} has {shape}")
        most = float(frame.abs().max())
        if not most <= BEYOND:
            raise InputError(f"frame {number} has values up to {most:g}; expected 0 to 1, with noise up to {BEYOND:g}")
        yield frame.float()


def _registered(
    frames: torch.Tensor, scene: torch.Tensor, ways: torch.Tensor, prior: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Better ways of frames [N, C, H, W] from their last ones; ``prior`` holds standard deviations of amplitudes [K, J]."""
    height, width = scene.shape[1:]
    slope_y, slope_x = torch.gradient(scene, dim=(1, 2))
    slope = torch.stack([slope_x, slope_y]) * min(height, width)
    rows, columns = (_waves(size, count).to(scene) for size, count in zip((height, width), prior.shape, strict=True))
    weight = noise.square().reciprocal()[:, None, None, None]

    def change(v: torch.Tensor) -> torch.Tensor:
        return (slope * (rows.T @ (prior * v) @ columns)[:, :, None]).sum(dim=1)

    def transposed(w: torch.Tensor) -> torch.Tensor:
        return prior * (rows @ (slope * (weight * w)[:, None]).sum(dim=2) @ columns.T)

    v = ways / prior
    for _ in range(STEPS):
        left = scene - torch.stack([_carried(frame, way) for frame, way in zip(frames, prior * v, strict=True)])
        v = v + conjugate_gradients(lambda step: transposed(change(step)) + step, transposed(left) - v)
    return prior * v


def _carried(frame: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
    """A frame [C, H, W] at x + way(x), for the amplitudes of the way."""
    height, width = frame.shape[1:]
    return shifted(frame[None], -min(height, width) * _fields(way[None], height, width))[0]


def _fields(ways: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Fields [..., 2, height, width] from amplitudes [..., 2, K, J]."""
    rows, columns = (_waves(size, count).to(ways) for size, count in zip((height, width), ways.shape[-2:], strict=True))
    with full_precision(ways.device):
        return rows.T @ ways[..., : len(rows), : len(columns)] @ columns


def _waves(size: int, count: int) -> torch.Tensor:
    """The longest cosines along a side, with a mean square of one, [count, size]."""
    return cosines(size)[1][:count] * size**0.5


def _spectrum(height: int, width: int) -> torch.Tensor:
    """Standard deviations of the amplitudes of a component with unit rms, [K, J]."""
    shorter = min(height, width)
    along_y, along_x = (torch.arange(min(size, MODES * size // shorter), device="cpu") / size * shorter for size in (height, width))
    deviation = torch.hypot(along_y[:, None], along_x).clamp_min(0.5) ** (-SLOPE / 2)
    return deviation / deviation.square().sum().sqrt()


def _reduced(frame: torch.Tensor) -> torch.Tensor:
    """The mean of a frame's channels, [1, 1, h, w] with at most SIDE pixels along the shorter side, by area averaging."""
    grey, shorter = frame.mean(dim=0)[None, None], min(frame.shape[1:])
    size = [round(side * SIDE / shorter) for side in frame.shape[1:]]
    return grey if shorter <= SIDE else functional.interpolate(grey, size, mode="area")


def _weights(noise: torch.Tensor) -> torch.Tensor:
    """Shares of frames in their mean, by their noise."""
    return noise.square().reciprocal() / noise.square().reciprocal().sum()


def _mean(frames: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """The weighted mean of frames, or of their ways."""
    return (_weights(noise)[:, None, None, None] * frames).sum(dim=0)
