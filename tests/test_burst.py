"""Bursts: frames of one scene through moving air are carried onto each other."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.restore import main
from diffusion.data.images import fit, read_image
from diffusion.files import asset
from diffusion.sampling.burst import ROUNDS, Aligned, align
from diffusion.size import Size
from lbm_warp import InputError, OpticalTurbulence
from lbm_warp.optics import shifted
from tests.runs import exit_code

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


def written(folder: Path, count: int = 4, deep: bool = False) -> list[str]:
    """Frames of a burst as files."""
    _, frames, _ = burst(3.0)
    folder.mkdir()
    for number, frame in enumerate(frames[:count]):
        levels = (frame.clamp(0.0, 1.0) * (65535 if deep else 255)).round().numpy()[0]
        Image.fromarray(levels.astype(np.uint16 if deep else np.uint8)).save(folder / f"frame{number}.png")
    return [str(folder / f"frame{number}.png") for number in range(count)]


def test_the_command_makes_one_picture_of_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = written(tmp_path / "frames")
    assert exit_code(main, *names) == 0
    out = tmp_path / "outputs" / "frame0-restored"
    assert sorted(file.name for file in out.iterdir()) == ["aligned.png", "restoration.json", "restored.png"]
    record = json.loads((out / "restoration.json").read_text())
    assert record["pictures"] == names and len(record["noise_of_frames"]) == len(names) and record["size"] == [SIZE, SIZE]
    # A folder of the same frames gives the same picture, but in colour, as films have.
    assert exit_code(main, "frames") == 0
    of_folder = read_image(tmp_path / "outputs" / "frames-restored" / "aligned.png", "L")
    np.testing.assert_allclose(of_folder, read_image(out / "aligned.png"), atol=1.5 / 255)


def test_frames_of_16_bits_stay_so(tmp_path: Path) -> None:
    names = written(tmp_path / "frames", 2, deep=True)
    assert exit_code(main, *names, "--out", str(tmp_path / "out")) == 0
    with Image.open(tmp_path / "out" / "aligned.png") as image:
        assert image.mode.startswith("I")


def test_bursts_that_the_command_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = written(tmp_path / "frames", 2)
    Image.new("L", (SIZE, SIZE + 2)).save(tmp_path / "other.png")
    (tmp_path / "one").mkdir()
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "one" / "one.png")
    for arguments, message in (
        ([*names, str(tmp_path / "other.png")], "number 3 has"),
        ([str(tmp_path / "one")], "at least two frames of one scene, got 1"),
        ([*names, str(tmp_path / "missing.png")], "missing.png"),
        ([*names, "--run", "digits"], "a run restores one picture, got 2"),
    ):
        assert exit_code(main, *arguments, "--out", str(tmp_path / "out")) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
