"""Several frames of one scene through moving air, one picture: carry the frames onto each other, and take their mean.

Air shifts every point of the scene u in every frame y by a tilt of its own. The way back e, y(x + e(x)) = u(x) + noise, is the most
probable one: both of its components are sums of cosines with amplitudes that are Gaussian before the frame is seen. This is a
least-squares problem, linear once y is carried by the last e, as the gradient of u then says what a further shift does
(Gauss-Newton; each step is solved by conjugate gradients). The scene is the mean of the carried frames. The ways have the mean 0,
as the tilt has: a shift that all frames share cannot be seen. Noise and rms of the ways are measured anew in every round.

What is left is the blur of short exposures (Fried 1966), and the shifts tell it. With the sampling q, the pixels of lambda / D, the
variance of the tilt on one axis is v = 0.182 q^2 (D / r0)^(5/3) [pixels^2], and the transfer function at f cycles per pixel

    T(f) = T_aperture(q f) exp(-18.9 v (q^(-1/3) f^(5/3) - f^2)).

It falls early and then hardly any more, unlike that of a Gaussian blur, which the model of photographs knows. So the mean is
filtered until its blur is a Gaussian where it shows more than noise, and is restored then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch.nn import functional

from diffusion.sampling.inverse import conjugate_gradients
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.tiles import PATCH, DegradationEstimator, Tile, model_of_photographs, tiles
from diffusion.size import Size
from lbm_warp.checks import InputError, as_floats, check_number
from lbm_warp.heat import blur, cosines, from_modes, full_precision, to_modes
from lbm_warp.optics import TILT, OpticalTurbulence, shifted

# Rounds, and steps in each; the shorter side at which ways are looked for, and cosines along it in the last round: each has twice
# as many as the one before, since strong shifts are found wrong in a fine texture. Frames that are in work at a time.
ROUNDS, STEPS, SIDE, MODES, FRAMES = 5, 2, 256, 32, 8
# Power of a component by wavenumber: k^(-SLOPE), steeper than the k^(-5/3) of one thin layer of air.
SLOPE = 2.5
# Rms of the ways [pixels] and of the noise, before the first round.
SHIFT, NOISE = 2.0, 0.05
# The largest value of a frame, far above white; noise may go beyond.
BEYOND = 10.0
# Sampling of a camera of which nothing is known; angle of a pixel, which does not matter where that is known.
SAMPLING, PIXEL = 1.5, 1e-6
# By what the model's deviations are multiplied beyond its own factor, since the blur is known from theory alone: chosen on
# photographs that the table of tools.bursts does not show, so that 90 % intervals hold 85 to 95 % at D / r0 = 1, 3 and 6.
FACTOR = 1.2


class Frames(Protocol):
    """Pictures [C, H, W] that can be gone through again and again: a list, a tensor [M, C, H, W], or what reads them from files."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[torch.Tensor]: ...


@dataclass(frozen=True)
class Aligned:
    """One scene, from several frames.

    Attributes:
        picture: the mean of the carried frames, each weighted by its noise, float32 [C, H, W].
        error: standard deviation of the picture, by how the carried frames differ, float32 [C, H, W].
        ways: amplitudes of cosines for :meth:`way`, in units of the shorter side, float32 [M, 2, K, J].
        noise: root mean square difference between each carried frame and the scene, float32 [M].
    """

    picture: torch.Tensor
    error: torch.Tensor
    ways: torch.Tensor
    noise: torch.Tensor

    @property
    def tilt(self) -> float:
        """Variance of the shifts of frames on one axis [pixels^2]."""
        share = _weights(self.noise)
        about_mean = 0.5 * min(self.picture.shape[1:]) ** 2 * self.ways.square().sum(dim=(1, 2, 3))
        return float((share * about_mean).sum() / (1.0 - share.square().sum()))

    @property
    def unseen(self) -> float:
        """Variance of the shift that all frames share, on one axis [pixels^2], if each has an air of its own."""
        alike = float(_weights(self.noise).square().sum())
        # From a few frames the variance of the shifts is known badly, which widens it (Student's distribution).
        return self.tilt * alike / (1.0 - alike)

    def air(self, sampling: float = SAMPLING) -> OpticalTurbulence:
        """The air between, seen by a camera with this sampling: lambda / D in pixels. The angle of a pixel is ``PIXEL``.

        Raises:
            InputError: if the sampling is out of range.
        """
        check_number("sampling [pixels]", sampling, 0.1, 100.0)
        strength = (self.tilt / (TILT * sampling**2)) ** 0.6
        view = min(self.picture.shape[1:]) * PIXEL
        return OpticalTurbulence(min(max(strength, 1e-3), 1e3), aperture=1.0, wavelength=sampling * PIXEL, view=view)

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
        k, j = (max(1, count >> ROUNDS - number) for count in spectrum.shape)
        rough = ..., slice(k), slice(j)
        for part in range(0, len(small), FRAMES):
            rows = slice(part, part + FRAMES)
            with full_precision(small.device):
                ways[rows][rough] = _registered(small[rows], scene, ways[rows][rough], shift * spectrum[rough], noise[rows])
        ways -= _mean(ways, noise)
        for row, frame in enumerate(small):
            carried[row] = _carried(frame, ways[row])
        scene = _mean(carried, noise)
        noise = (carried - scene).square().mean(dim=(1, 2, 3)).sqrt().clamp_min(1e-3)
        shift = max(0.1 / side, float(_fields(ways, height, width).square().mean().sqrt()))
        if callback is not None:
            callback(number, scene)
    scene, square = small.new_zeros(()), small.new_zeros(())
    weights = _weights(noise)
    for frame, way, weight in zip(_checked(frames), ways, weights, strict=True):
        moved = _carried(frame, way)
        scene, square = scene + weight * moved, square + weight * moved.square()
    alike = weights.square().sum()
    error = ((square - scene.square()).clamp_min(0.0) * alike / (1.0 - alike)).sqrt()
    return Aligned(scene, error, ways, noise)


def restored(
    pipeline: Pipeline, estimator: DegradationEstimator, aligned: Aligned, sampling: float = SAMPLING, ensemble: bool = False
) -> Iterator[Tile]:
    """Restore the scene of a burst by a model of photographs, tile by tile.

    Args:
        pipeline, estimator: the model.
        aligned: the burst.
        sampling: lambda / D in pixels: wavelength times f-number over the pitch of the pixels.
        ensemble: as for :func:`diffusion.sampling.tiles.tiles`.

    Returns:
        Tiles as those of :func:`diffusion.sampling.tiles.tiles`, but about 90 % of the scene lie within ``NINETY`` deviations. They
        hold what the model leaves unknown, the shift that all frames share, and what moved in the scene itself.

    Raises:
        InputError: if the run is not one of the preset ``photographs``, or the sampling is out of range.
    """
    picture, sigma, noise = _as_gaussian(pipeline, aligned, sampling)
    factor, shift = FACTOR * estimator.factor(noise), torch.tensor([aligned.unseen]).double().sqrt()
    for tile in tiles(pipeline, picture.cpu().numpy(), sigma, noise, ensemble=ensemble):
        x = torch.from_numpy(tile.mean)[None]
        # Mean of (x(place + shift) - x(place))^2 over a Gaussian shift.
        moved = (blur(x.square(), shift, False) - 2.0 * x * blur(x, shift, False) + x.square())[0].clamp_min(0.0)
        more = (aligned.error[:, tile.rows, tile.columns].cpu().square() - noise**2).clamp_min(0.0)
        yield replace(tile, deviation=((factor * torch.from_numpy(tile.deviation)).square() + moved + more).sqrt().numpy())


def _as_gaussian(pipeline: Pipeline, aligned: Aligned, sampling: float) -> tuple[torch.Tensor, float, float]:
    """The picture with a Gaussian blur instead of that of the air; the width [pixels], and the noise."""
    prior, _ = model_of_photographs(pipeline)
    air, noise = aligned.air(sampling), max(float(aligned.error.square().mean().sqrt()), float(pipeline.forward.noise[1]))

    def known(size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Variance of the modes of photographs, their wavenumbers, and the transfer function, [H, W]."""
        kappa = torch.hypot(*torch.meshgrid(*(cosines(side)[0] for side in size), indexing="ij"))
        return prior.spectrum(size)[0, 0], kappa, air.transfer_function(kappa / (2.0 * torch.pi * PIXEL))

    # The Gaussian that leaves as much unknown of a photograph.
    power, kappa, transfer = known(Size(PATCH, PATCH))
    widths = torch.linspace(0.0, float(pipeline.method.operator.widths(Size(PATCH, PATCH)).max()), 401).double()
    gaussians = torch.exp(-0.5 * (widths[:, None, None] * kappa).square())
    unknown, given = ((power / (power * one.square() + noise**2)).mean(dim=(-2, -1)) for one in (gaussians, transfer))
    sigma = float(widths[(unknown - given).abs().argmin()])
    # Wiener's filter where there is more than noise, nothing elsewhere.
    power, kappa, transfer = known(Size(*aligned.picture.shape[1:]))
    signal = power * transfer
    factor = (signal * torch.exp(-0.5 * (sigma * kappa).square()) + noise**2) / (signal * transfer + noise**2)
    return 0.5 + from_modes(factor.to(aligned.picture) * to_modes(aligned.picture - 0.5)), sigma, noise


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
