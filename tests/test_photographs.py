"""The prior of photographs: its grid of blur and noise, restoration in tiles, what is estimated, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import photograph as photographs
from cli.restore import main
from diffusion import Pipeline, Size
from diffusion.data.images import read_image
from diffusion.data.pair_files import png, tiff
from diffusion.photographs import as_stored
from diffusion.presets import PRESETS
from diffusion.rng import seeds
from diffusion.sampling.tiles import MODEL, NINETY, DegradationEstimator, tiles
from lbm_warp.checks import InputError
from lbm_warp.heat import blur, cosines, from_modes
from tests.runs import exit_code
from tools.photographs import Photograph, chosen, shrunk

METHOD = PRESETS["photographs"].method


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return Pipeline.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def cat(photograph: torch.Tensor) -> np.ndarray:
    return photograph[0, :, 20:116, 24:120].numpy()


def degraded(x: np.ndarray, sigma: float, noise: float) -> np.ndarray:
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return as_stored(blur(torch.from_numpy(x)[None], torch.tensor([sigma]).double(), False)[0] + noise * eps).numpy()


def squares(side: int) -> torch.Tensor:
    """Squares of the wavenumbers of the cosine modes of a square picture."""
    k = cosines(side)[0]
    return k[:, None] ** 2 + k**2


def whole(model: Pipeline, z: np.ndarray, sigma: float, noise: float, side: int = 512) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = np.full_like(z, np.nan), np.full_like(z, np.nan)
    for tile in tiles(model, z, sigma, noise, side):
        mean[:, tile.rows, tile.columns], deviation[:, tile.rows, tile.columns] = tile.mean, tile.deviation
    return mean, deviation


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    return float(-10.0 * np.log10(np.square(x - y.clip(0.0, 1.0)).mean()))


def test_levels_are_all_pairs_of_blur_and_noise() -> None:
    """The operator is what its transfer says, and the density draws as often as it says."""
    forward, operator = METHOD.forward, METHOD.operator
    pairs = set(zip(operator.widths(Size(8, 8))[1:].tolist(), forward.noise[1:].tolist(), strict=True))
    assert len(pairs) == METHOD.levels == 33 * 24
    level = METHOD.density.draw(forward, torch.arange(4000))
    assert abs((operator.widths(Size(8, 8))[level] == 0.0).mean() - 0.25) < 0.03
    u = torch.rand(3, 1, 8, 12)
    own = torch.tensor([1, 400, METHOD.levels])
    expected = blur(u, torch.from_numpy(operator.widths(Size(8, 12))[own]), periodic=False)
    torch.testing.assert_close(operator(u, own, 0), expected)


def test_the_wiener_filter_is_the_best_linear_estimate() -> None:
    """Of Gaussian pictures with the spectrum that it assumes, its error is what it expects, and orthogonal to what is seen."""
    denoiser, n = METHOD.denoiser, 64
    power = denoiser.power * (squares(64) + denoiser.bend**2) ** (-0.5 * denoiser.exponent)
    x = 0.5 + from_modes(power.sqrt().float() * torch.randn((n, 3, 64, 64), generator=torch.Generator().manual_seed(0)))
    y = blur(x, torch.full((n,), 1.5).double(), periodic=False) + 0.05 * torch.randn(
        x.shape, generator=torch.Generator().manual_seed(1)
    )
    _, base, gain = denoiser.estimate(y, torch.full((n,), 1.5).double(), torch.full((n,), 0.05).double())
    error = x - base
    assert abs(float(error.square().mean().sqrt() / gain[0]) - 1.0) < 0.02
    assert abs(float((error * (y - 0.5)).mean() / (error.std() * y.std()))) < 0.01


def test_training_pictures_are_as_files_hold_them_and_some_are_grey_and_mirrored() -> None:
    u0 = torch.rand((64, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    level, seed = torch.full((64,), 33 * 12 + 1), seeds(0, "image", np.arange(64))
    inputs, target = METHOD.denoiser.example(METHOD.forward, u0, level, seed)
    grey = (inputs[:, 0] == inputs[:, 1]).flatten(1).all(dim=1)
    assert inputs.shape == (64, 8, 64, 64) and target.shape == u0.shape and 0 < grey.sum() < 20
    _, _, gain = METHOD.denoiser.estimate(u0, torch.zeros(64).double(), torch.from_numpy(METHOD.forward.noise)[level])
    clean = inputs[:, :3] + gain * target
    mirrored = sum((one[:, k - 1] - one[:, k]).abs().max() < 1e-4 for one in clean for k in range(1, 16))
    assert 10 < mirrored < 54, "half of them have an edge, most of these within"


def test_tiles_have_no_seams(model: Pipeline, cat: np.ndarray) -> None:
    z = degraded(cat, 2.0, 0.05)
    (one, spread), (tiled, tiled_spread) = (whole(model, z, 2.0, 0.05, side) for side in (96, 40))
    assert np.abs(one - tiled).max() < 1e-4 and np.abs(spread - tiled_spread).max() < 1e-4


def test_it_restores_better_than_a_linear_filter_and_knows_how_well(model: Pipeline, cat: np.ndarray) -> None:
    """The picture is not among those that were learned."""
    estimator = DegradationEstimator.load()
    for sigma, noise, gained in ((0.0, 0.1, 1.0), (1.5, 0.05, 0.5)):
        z = degraded(cat, sigma, noise)
        mean, deviation = whole(model, z, sigma, noise)
        numbers = torch.tensor([sigma]).double(), torch.tensor([noise]).double()
        linear = METHOD.denoiser.estimate(torch.from_numpy(z)[None], *numbers)[1][0].numpy()
        assert psnr(cat, mean) > psnr(cat, linear) + gained and psnr(cat, mean) > psnr(cat, z) + 2.0
        assert 0.8 < (np.abs(mean - cat) < NINETY * estimator.factor(noise) * deviation).mean() < 0.98


def test_an_ensemble_is_better_and_turns_with_the_picture(model: Pipeline, cat: np.ndarray) -> None:
    x = cat[:, :40, :72]
    z = degraded(x, 1.0, 0.05)
    (one,), (all_eight,) = (tiles(model, z, 1.0, 0.05, ensemble=ensemble) for ensemble in (False, True))
    assert psnr(x, all_eight.mean) > psnr(x, one.mean) + 0.05
    for turned in (lambda a: a.transpose(0, 2, 1), lambda a: a[:, ::-1], lambda a: a[:, :, ::-1]):
        (tile,) = tiles(model, np.ascontiguousarray(turned(z)), 1.0, 0.05, ensemble=True)
        assert np.abs(tile.mean - turned(all_eight.mean)).max() < 1e-4
        assert np.abs(tile.deviation - turned(all_eight.deviation)).max() < 1e-4


def test_blur_and_noise_are_found(cat: np.ndarray) -> None:
    estimator = DegradationEstimator.load()
    for sigma, noise in ((1.5, 0.05), (2.5, 0.02), (0.0, 0.1)):
        (width, _), (found, deviation) = estimator(degraded(cat, sigma, noise)).moments()
        assert abs(width - sigma) < 0.7 and abs(found / noise - 1.0) < 0.15 and 0.0 < deviation < 0.2 * noise
    # What the network does not know is taken for the most that it knows.
    assert estimator(np.random.default_rng(0).random(cat.shape, np.float32)).moments()[1][0] <= 0.25
    told = estimator(degraded(cat, 1.5, 0.05)).given(1.2, None).moments()
    assert told[0] == (1.2, 0.0) and abs(told[1][0] / 0.05 - 1.0) < 0.2


def test_a_photograph_keeps_size_bits_and_transparency(cat: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    z = degraded(cat[:, :21, :34], 1.0, 0.05).transpose(1, 2, 0)
    deep, eight = np.rint(65535 * z).astype(np.uint16), np.rint(255 * z).astype(np.uint8)
    alpha = np.arange(21 * 34).reshape(21, 34).astype(np.uint8)
    (tmp_path / "deep.png").write_bytes(png(deep))
    (tmp_path / "deep.tif").write_bytes(tiff(deep))
    both = np.dstack([deep, 257 * alpha.astype(np.uint16) ^ 3])
    (tmp_path / "both.png").write_bytes(png(both[..., 2:]))
    (tmp_path / "both.tif").write_bytes(tiff(both))
    Image.fromarray(eight[..., 0]).save(tmp_path / "grey.jpg", quality=95)
    Image.fromarray(np.dstack([eight, alpha])).save(tmp_path / "alpha.png")
    for name, made, mode in (
        ("deep.png", "restored.png", "RGB"),
        ("deep.tif", "restored.tif", "RGB"),
        ("grey.jpg", "restored.png", "L"),
        ("alpha.png", "restored.png", "RGBA"),
        ("both.png", "restored.png", "RGBA"),
        ("both.tif", "restored.tif", "RGBA"),
    ):
        out = tmp_path / f"{name}-out"
        assert exit_code(main, tmp_path / name, "--blur", "1", "--noise", "0.05", "--out", out) == 0
        record = json.loads((out / "restoration.json").read_text())
        assert record["sigma"] == [1.0, 0.0] and record["noise"] == [0.05, 0.0] and made in record["files"]
        with Image.open(out / made) as image:
            assert image.size == (34, 21) and image.mode == mode
            if mode == "RGBA":
                assert np.array_equal(np.asarray(image)[..., 3], alpha)
    assert "blur 1.00 +- 0.00 px" in capsys.readouterr().out
    steps = np.rint(65535 * read_image(tmp_path / "deep.png-out" / "restored.png"))
    assert np.array_equal(steps, np.rint(65535 * read_image(tmp_path / "deep.tif-out" / "restored.tif")))
    assert (steps % 257 != 0).mean() > 0.9, "more than eight bits"
    for name, channels in (("both.png", 1), ("both.tif", 3)):
        found = photographs.Photograph.read(tmp_path / f"{name}-out" / f"restored{name[4:]}")
        assert found.dtype is np.uint16 and found.alpha is not None and np.array_equal(found.alpha[0], both[..., 3])
        assert len(found.pixels) == channels and (found.quantised(found.pixels) % 257 != 0).mean() > 0.9
    assert psnr(cat[:, :21, :34], steps / 65535) > psnr(cat[:, :21, :34], z.transpose(2, 0, 1)) + 1.0


def test_what_does_not_go_is_said(model: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for words, message in (
        (["--blur", "1", "--run", "digits"], "--blur and --noise are for photographs"),
        (["--level", "3"], "photographs have --blur and --noise"),
        (["--samples", "7"], "--samples goes with --run"),
        (["--ensemble", "--run", "digits"], "--ensemble is for photographs"),
        (["--blur", "9"], "blur must be from 0 to 4"),
        (["--noise", "-1"], "noise must be from 0 to 0.25"),
        (["--run", "photographs", "--best"], "photographs have --blur and --noise"),
    ):
        assert exit_code(main, tmp_path / "one.png", *words, "--out", tmp_path / "out") == 2
        assert message in capsys.readouterr().err and not (tmp_path / "out" / "restored.png").exists()
    for shape in ((3, 1, 1), (1, 2, 40)):
        (tile,) = tiles(model, np.full(shape, 0.5, np.float32), 1.0, 0.05)
        assert tile.mean.shape == shape and np.abs(tile.mean - 0.5).max() < 0.05
    flat = np.full((3, 4, 4), 0.5, np.float32)
    for wrong, message in (
        (np.uint8(255 * flat), "expected floating-point .*, C = 1 or 3, of numpy; got uint8"),
        (flat[0], r"got float32 \[4, 4\]"),
        (255.0 * flat, "values from 127.5 to 127.5"),
        (np.nan * flat, "NaN or infinite"),
    ):
        for use in (lambda picture: next(tiles(model, picture, 1.0, 0.05)), DegradationEstimator.load(MODEL)):
            with pytest.raises(InputError, match=message):
                use(wrong)
    with pytest.raises(InputError, match="preset photographs, got one of fluid"):
        next(tiles(Pipeline.from_pretrained("digits"), np.zeros((1, 8, 8), np.float32), 0.0, 0.1))


def test_drawings_and_doubles_are_left_out(photograph: torch.Tensor) -> None:
    pixels = np.rint(255 * photograph[0].numpy().transpose(1, 2, 0)).astype(np.uint8)
    cat = Image.fromarray(pixels)
    drawing = Image.new("RGB", cat.size, "navy")
    drawing.paste("gold", (20, 30, 90, 100))
    other = Image.fromarray(np.ascontiguousarray(pixels[::-1]))
    found = [Photograph(name, "", shrunk(image, 64)) for name, image in (("cat", cat), ("drawing", drawing), ("other", other))]
    found.append(Photograph("mirrored", "", shrunk(cat.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((200, 200)), 64)))
    assert [one.name for one in chosen(found)] == ["cat", "other"]
