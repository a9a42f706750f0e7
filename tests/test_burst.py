"""Bursts: frames of one scene through moving air are carried onto each other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.restore import main
from diffusion.sampling.burst import ROUNDS, Aligned, align, restored
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.tiles import MODEL, NINETY, DegradationEstimator, tiles
from lbm_warp import InputError, OpticalTurbulence
from lbm_warp.optics import shifted
from tests.runs import exit_code

FRAMES, SIZE, BORDER = 12, 96, 8
NOISE = 0.02
Burst = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def air(strength: float) -> OpticalTurbulence:
    return OpticalTurbulence(d_over_r0=strength, view=4e-4)


SAMPLING = air(1.0).wavelength / air(1.0).aperture / (air(1.0).view / SIZE)


@pytest.fixture(scope="module")
def burst(photograph: torch.Tensor) -> Callable[[float], Burst]:
    """A scene, noisy frames of it through air, and their tilts, by the strength."""

    @functools.cache
    def made(strength: float) -> Burst:
        scene, seed = photograph[:, :1, :SIZE, :SIZE], torch.arange(FRAMES)
        frames = air(strength)(scene.expand(FRAMES, -1, -1, -1), air(strength).levels, seed)
        frames = frames + NOISE * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
        return scene[0], frames, air(strength).tilt(seed, SIZE, SIZE)

    return made


@pytest.fixture(scope="module")
def aligned(burst: Callable[[float], Burst]) -> Callable[[float], Aligned]:
    return functools.cache(lambda strength: align(burst(strength)[1]))


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    return float(-10.0 * (one - other)[inner].square().mean().log10())


def lucky(frames: torch.Tensor) -> torch.Tensor:
    """Lucky imaging (Fried 1978): the mean of the sharpest tenth of the frames."""
    sharpness = sum(frames.diff(dim=axis).square().mean(dim=(1, 2, 3)) for axis in (2, 3))
    return frames[sharpness.topk(max(1, len(frames) // 10)).indices].mean(dim=0)  # type: ignore[union-attr]


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_it_beats_the_best_frame_the_mean_and_lucky_imaging(
    strength: float, burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]
) -> None:
    scene, frames, tilt = burst(strength)
    tilt = tilt - tilt.mean(dim=0)
    found = psnr(aligned(strength).picture, scene)
    assert found > max(psnr(frame, scene) for frame in frames) + 0.3
    assert found > psnr(frames.mean(dim=0), scene) + 1.0
    assert found > psnr(lucky(frames), scene) + 1.0
    # Nearly as good as with the tilts themselves: x - tilt(x) shows x, so the way back is the tilt to first order.
    known = torch.stack([shifted(frame[None], -way[None])[0] for frame, way in zip(frames, tilt, strict=True)]).mean(dim=0)
    assert found > psnr(known, scene) - 0.1


def test_the_ways_are_the_tilts(burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]) -> None:
    _, frames, tilt = burst(3.0)
    tilt = tilt - tilt.mean(dim=0)
    ways = torch.stack([aligned(3.0).way(number, SIZE, SIZE) for number in range(len(frames))])
    inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    assert (ways - tilt)[inner].square().mean() < 0.25 * tilt[inner].square().mean()


def test_the_order_of_the_frames_does_not_matter(burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]) -> None:
    _, frames, _ = burst(3.0)
    torch.testing.assert_close(align(frames.flip(0)).picture, aligned(3.0).picture, atol=3e-3, rtol=0.0)


def test_still_frames_without_noise_stay_as_they_are(photograph: torch.Tensor) -> None:
    scene = photograph[0, :, :48, :48]
    found = align([scene] * 3)
    torch.testing.assert_close(found.picture, scene, atol=1e-5, rtol=0.0)
    assert found.tilt < 1e-6 and found.error.max() < 1e-3


def test_a_frame_that_shows_something_else_has_little_weight(
    burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]
) -> None:
    scene, frames, _ = burst(1.0)
    found = align([*frames, torch.zeros_like(scene)])
    assert found.noise[-1] > 5.0 * found.noise[:-1].max()
    assert psnr(found.picture, scene) > psnr(aligned(1.0).picture, scene) - 0.3


def test_large_and_oblong_colour_frames_are_searched_small(photograph: torch.Tensor) -> None:
    scene = torch.nn.functional.interpolate(photograph[..., ::2, ::2], (272, 306), mode="bicubic")[0].clamp(0.0, 1.0)
    seen: list[tuple[int, tuple[int, ...]]] = []
    moved = [shifted(scene[None], torch.full((1, 2, 272, 306), shift))[0] for shift in (-1.5, 1.5)]
    found = align(moved, callback=lambda number, u: seen.append((number, tuple(u.shape))))
    assert seen == [(number, (1, 256, 288)) for number in range(1, ROUNDS + 1)]
    assert psnr(found.picture, scene) > psnr(torch.stack(moved).mean(dim=0), scene) + 10.0
    for height, width in ((272, 306), (8, 9)):  # the first has all of the cosines
        assert abs(272 / height * float(found.way(0, height, width).mean()) + 1.5) < 0.1


def test_it_takes_no_gradients_and_full_precision(burst: Callable[[float], Burst]) -> None:
    frames = burst(1.0)[1][:3, :, ::2, ::2]
    with torch.autocast("cpu", torch.bfloat16):
        found = align(frames.clone().requires_grad_())
    assert torch.equal(found.picture, align(frames).picture) and not found.picture.requires_grad


def test_the_air_is_known_from_the_shifts(burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]) -> None:
    for strength in (1.0, 3.0):
        tilt = burst(strength)[2]
        assert abs(aligned(strength).tilt / tilt.var(dim=0).mean() - 1.0) < 0.25
        found = aligned(strength).air(SAMPLING)
        assert abs(found.strength / strength - 1.0) < 0.3
        # In pixels the transfer function follows from the variance of the tilt.
        f, v = 0.2, aligned(strength).tilt
        x = torch.tensor(SAMPLING * f).double()
        lens = 2.0 / torch.pi * (torch.acos(x) - x * (1.0 - x.square()).sqrt())
        expected = lens * torch.exp(
            -3.441939 / 0.1819238 * v * (SAMPLING ** (-1 / 3) * f ** (5 / 3) - f**2) * torch.ones(1).double()
        )
        torch.testing.assert_close(found.transfer_function(f * 1e6).reshape(1), expected)


def test_the_error_is_that_of_the_noise(photograph: torch.Tensor) -> None:
    frames = photograph[0, :, :32, :32] + NOISE * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert abs(align(frames).error.square().mean().sqrt() / (NOISE / 4) - 1.0) < 0.2


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_it_is_restored_and_says_how_far_to_trust_it(
    strength: float, burst: Callable[[float], Burst], aligned: Callable[[float], Aligned]
) -> None:
    scene, _, tilt = burst(strength)
    pipeline, estimator = Pipeline.from_pretrained(MODEL), DegradationEstimator.load()
    found, picture = next(restored(pipeline, estimator, aligned(strength), SAMPLING)), aligned(strength).picture
    mean = torch.from_numpy(found.mean)
    (sigma, _), (noise, _) = estimator(picture.numpy()).moments()
    as_gaussian = torch.from_numpy(next(tiles(pipeline, picture.numpy(), sigma, noise)).mean)
    # The shift that all frames share is not known to anybody.
    moved = shifted(scene[None], tilt.mean(dim=0, keepdim=True))[0]
    assert psnr(mean, moved) > psnr(picture, moved) + 2.0
    assert psnr(mean, moved) > psnr(as_gaussian, moved) + 0.5
    inside = ((mean - scene).abs() < NINETY * torch.from_numpy(found.deviation))[..., BORDER:-BORDER, BORDER:-BORDER]
    assert 0.8 < inside.float().mean() < 0.98


def test_what_moved_in_the_scene_is_not_trusted(photograph: torch.Tensor) -> None:
    frames = photograph[0, :, :64, :64].repeat(8, 1, 1, 1)
    frames[:4, :, 28:36, 28:36] = 1.0
    pipeline, estimator = Pipeline.from_pretrained(MODEL), DegradationEstimator.load()
    deviation = next(restored(pipeline, estimator, align(frames))).deviation
    assert deviation[:, 30:34, 30:34].mean() > 0.05 > deviation[:, :20].mean()


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


def written(folder: Path, frames: torch.Tensor, count: int = 4, deep: bool = False) -> list[str]:
    """Frames of a burst as files."""
    folder.mkdir()
    for number, frame in enumerate(frames[:count]):
        levels = (frame.clamp(0.0, 1.0) * (65535 if deep else 255)).round().numpy()[0]
        Image.fromarray(levels.astype(np.uint16 if deep else np.uint8)).save(folder / f"frame{number}.png")
    return [str(folder / f"frame{number}.png") for number in range(count)]


def test_the_command_makes_one_picture_of_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, burst: Callable[[float], Burst]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = written(tmp_path / "frames", burst(3.0)[1])
    assert exit_code(main, *names) == 0
    out = tmp_path / "outputs" / "frame0-restored"
    assert sorted(file.name for file in out.iterdir()) == ["aligned.png", "restoration.json", "restored.png", "spread.png"]
    record = json.loads((out / "restoration.json").read_text())
    assert record["pictures"] == names and len(record["noise_of_frames"]) == len(names) and record["size"] == [SIZE, SIZE]
    assert record["d_over_r0"] > 1.0 and 0.0 < record["half_width_90_percent"] < 0.3
    # A folder of the same frames gives the same files.
    assert exit_code(main, "frames") == 0
    for name in ("aligned.png", "restored.png", "spread.png"):
        assert (tmp_path / "outputs" / "frames-restored" / name).read_bytes() == (out / name).read_bytes()


def test_frames_of_16_bits_stay_so(tmp_path: Path, burst: Callable[[float], Burst]) -> None:
    names = written(tmp_path / "frames", burst(3.0)[1], 2, deep=True)
    assert exit_code(main, *names, "--out", str(tmp_path / "out")) == 0
    with Image.open(tmp_path / "out" / "aligned.png") as image:
        assert image.mode.startswith("I")


def test_bursts_that_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], burst: Callable[[float], Burst]
) -> None:
    names = written(tmp_path / "frames", burst(3.0)[1], 2)
    Image.new("L", (SIZE, SIZE + 2)).save(tmp_path / "other.png")
    (tmp_path / "one").mkdir()
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "one" / "one.png")
    for arguments, message in (
        ([*names, str(tmp_path / "other.png")], "number 3 has"),
        ([str(tmp_path / "one")], "at least two frames of one scene, got 1"),
        ([*names, str(tmp_path / "missing.png")], "missing.png"),
        ([*names, "--run", "digits"], "a run restores one picture, got 2"),
        ([names[0], "--run", "digits", "--sampling", "2"], "--sampling is for frames of one scene"),
        ([names[0], "--sampling", "2"], "--sampling goes with several frames"),
        ([*names, "--sampling", "0"], "--sampling [pixels] must be"),
        ([*names, "--noise", "0.1"], "blur and noise of several frames follow"),
        ([names[0], names[0]], "the frames are all equal"),
    ):
        assert exit_code(main, *arguments, "--out", str(tmp_path / "out")) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
