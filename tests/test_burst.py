"""Bursts: frames of one scene through moving air are carried onto each other."""

from __future__ import annotations

import functools

import pytest
import torch

from diffusion.data.images import fit, read_image
from diffusion.files import asset
from diffusion.sampling.burst import ROUNDS, Aligned, align
from diffusion.size import Size
from lbm_warp import InputError, OpticalTurbulence
from lbm_warp.optics import shifted

FRAMES, SIZE, BORDER = 12, 96, 8
NOISE = 0.02


def photograph(size: int) -> torch.Tensor:
    """The bundled photograph, [1, 3, size, size]."""
    return torch.from_numpy(fit(read_image(asset("chelsea.png")), Size(size, size)))[None]


@functools.cache
def burst(strength: float, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A scene, noisy frames of it through air, and their tilts less the mean one, which nobody can see."""
    scene = photograph(SIZE)[:, :channels]
    optics, seed = OpticalTurbulence(d_over_r0=strength, view=4e-4), torch.arange(FRAMES)
    frames = optics(scene.expand(FRAMES, -1, -1, -1), optics.levels, seed)
    frames = frames + NOISE * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    tilt = optics.tilt(seed, SIZE, SIZE)
    return scene[0], frames, tilt - tilt.mean(dim=0)


@functools.cache
def aligned(strength: float) -> Aligned:
    return align(burst(strength)[1])


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return float(-10.0 * (one - other)[inner].square().mean().log10())


def lucky(frames: torch.Tensor) -> torch.Tensor:
    """Lucky imaging (Fried 1978): the mean of the sharpest tenth of the frames."""
    sharpness = sum(frames.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3))
    return frames[sharpness.topk(max(1, len(frames) // 10)).indices].mean(dim=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_it_beats_the_best_frame_the_mean_and_lucky_imaging(strength: float) -> None:
    scene, frames, tilt = burst(strength)
    found = psnr(aligned(strength).picture, scene)
    assert found > max(psnr(frame, scene) for frame in frames) + 0.3
    assert found > psnr(frames.mean(dim=0), scene) + 1.0
    assert found > psnr(lucky(frames), scene) + 1.0
    # Nearly as good as with the tilts themselves: x - tilt(x) shows x, so the way back is the tilt to first order.
    known = torch.stack([shifted(frame[None], -way[None])[0] for frame, way in zip(frames, tilt, strict=True)]).mean(dim=0)
    assert found > psnr(known, scene) - 0.1


def test_the_ways_are_the_tilts() -> None:
    _, frames, tilt = burst(3.0)
    ways = torch.stack([aligned(3.0).way(number, SIZE, SIZE) for number in range(len(frames))])
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    assert (ways - tilt)[inner].square().mean() < 0.25 * tilt[inner].square().mean()


def test_the_order_of_the_frames_does_not_matter() -> None:
    _, frames, _ = burst(3.0)
    torch.testing.assert_close(align(frames.flip(0)).picture, aligned(3.0).picture, atol=3e-3, rtol=0.0)


def test_still_frames_without_noise_stay_as_they_are() -> None:
    scene = photograph(48)[0]
    torch.testing.assert_close(align([scene] * 3).picture, scene, atol=1e-5, rtol=0.0)


def test_a_frame_that_shows_something_else_has_little_weight() -> None:
    scene, frames, _ = burst(1.0)
    found = align([*frames, torch.zeros_like(scene)])
    assert found.noise[-1] > 5.0 * found.noise[:-1].max()
    assert psnr(found.picture, scene) > psnr(aligned(1.0).picture, scene) - 0.3


def test_large_and_oblong_colour_frames_are_searched_small() -> None:
    scene = torch.nn.functional.interpolate(photograph(64), (272, 306), mode="bicubic")[0].clamp(0.0, 1.0)
    seen: list[tuple[int, tuple[int, ...]]] = []
    moved = [shifted(scene[None], torch.full((1, 2, 272, 306), shift))[0] for shift in (-1.5, 1.5)]
    found = align(moved, callback=lambda number, u: seen.append((number, tuple(u.shape))))
    assert seen == [(number, (1, 256, 288)) for number in range(1, ROUNDS + 1)]
    assert psnr(found.picture, scene) > psnr(torch.stack(moved).mean(dim=0), scene) + 10.0
    for height, width in ((272, 306), (8, 9)):  # the first has all of the cosines
        assert abs(272 / height * float(found.way(0, height, width).mean()) + 1.5) < 0.1


def test_it_takes_no_gradients_and_full_precision() -> None:
    frames = burst(1.0)[1][:3, :, ::2, ::2]
    with torch.autocast("cpu", torch.bfloat16):
        found = align(frames.clone().requires_grad_())
    assert torch.equal(found.picture, align(frames).picture) and not found.picture.requires_grad


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least two frames of one scene, got 0"),
        ([torch.rand(1, 8, 8)], "at least two frames of one scene, got 1"),
        ([torch.rand(1, 8, 8), torch.rand(1, 8, 9)], r"the first has \[1, 8, 8\], number 2 has \[1, 8, 9\]"),
        ([torch.rand(1, 8, 8), torch.rand(3, 8, 8)], r"number 2 has \[3, 8, 8\]"),
        ([torch.zeros(1, 8, 8, dtype=torch.uint8)] * 2, "frame 1 must be floating-point, got torch.uint8"),
        ([torch.rand(8, 8)] * 2, r"frame 1 must have shape \[C, H, W\]"),
        ([torch.rand(1, 8, 8), torch.full((1, 8, 8), torch.nan)], "frame 2 has values up to nan; expected 0 to 1"),
        ([255.0 * torch.rand(1, 8, 8)] * 2, "frame 1 has values up to 2"),
    ],
)
def test_bursts_that_are_none_are_refused(frames: list[torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        align(frames)
