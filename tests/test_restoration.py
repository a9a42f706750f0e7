"""Restoring degraded pictures: the level found, what is drawn beyond the range, other shapes, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli.restore import fitted, in_own_size, main
from diffusion import Pipeline, open_dataset
from diffusion.data.images import fit, read_image, resize_shorter
from diffusion.evaluation.restoration import score_restoration
from diffusion.files import asset
from diffusion.rng import seeds
from diffusion.sampling.restoration import Intervals, LevelEstimate, LevelEstimator, as_stored, best, restore
from diffusion.size import Size
from lbm_warp.checks import InputError
from lbm_warp.heat import cosines


@pytest.fixture(scope="module")
def digits() -> Pipeline:
    return Pipeline.from_pretrained("digits")


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    dataset = open_dataset("digits", Size(16, 16))
    return torch.stack([torch.from_numpy(dataset[i]) for i in range(0, 1600, 100)])


def degraded(pipeline: Pipeline, x: torch.Tensor, level: int) -> torch.Tensor:
    """Pictures at a level in units of the signal, flow and noise included."""
    u = pipeline.forward.corrupt(x, level, seeds(7, "test", np.arange(len(x))))
    return 0.5 + (u - 0.5) / float(pipeline.forward.signal[level])


@pytest.mark.slow
def test_the_level_of_pictures_is_found(digits: Pipeline, pictures: torch.Tensor) -> None:
    """Blur within 10 %, for pictures from files and as they are; the truth is in the 90 % interval of most."""
    for stored in (True, False):
        estimator = LevelEstimator(digits, stored=stored)
        for level in (380, 520, 650):
            z = degraded(digits, pictures, level)
            found = [estimator(one) for one in (as_stored(z) if stored else z)]
            sigma = digits.method.operator.widths(digits.config.size)
            errors = [abs(sigma[estimate.quantile(0.5)] / sigma[level] - 1.0) for estimate in found]
            assert np.median(errors) < 0.05 and np.quantile(errors, 0.9) < 0.1
            inside = np.mean([estimate.quantile(0.05) <= level <= estimate.quantile(0.95) for estimate in found])
            assert inside > 0.6, "16 pictures: 0.9 is expected, and less than 0.6 in one of 3,000 trials"


@pytest.mark.slow
def test_what_is_clean_what_is_strange_and_at_which_size(digits: Pipeline, pictures: torch.Tensor) -> None:
    estimator = LevelEstimator(digits)
    for wrong in (pictures[0].expand(3, -1, -1), 255.0 * pictures[0], pictures[0] / 0.0, pictures[:1]):
        with pytest.raises(InputError, match=r"1 channels and values from -0\.5 to 1\.5, got"):
            estimator(wrong)
    assert np.mean([estimator(one).quantile(0.5) == 0 for one in pictures]) > 0.9
    assert np.mean([estimator(one).familiar for one in pictures]) > 0.9
    noisy = as_stored(degraded(digits, pictures, 300))  # noise of 0.03
    assert all(estimator(one).quantile(0.5) > 200 for one in noisy) and np.mean([estimator(one).familiar for one in noisy]) > 0.9
    photograph = torch.from_numpy(fit(read_image(asset("chelsea.png"), "L"), 16))
    for strange in (photograph, 1.0 - pictures[0], torch.full((1, 16, 16), 0.5), torch.rand(1, 16, 16)):
        assert not estimator(strange).familiar

    # Four digits on one sheet are like digits in their own size only; one that fills the sheet is like them at their size.
    sheet = torch.cat([torch.cat(list(pictures[i : i + 2]), dim=2) for i in (0, 2)], dim=1)
    sheet = as_stored(degraded(digits.at_size(Size(32, 32)), sheet[None], 400))[0].numpy()
    at_runs_size = estimator(fitted(digits, sheet)[0])
    picture, size, estimate = in_own_size(digits, sheet, estimator, at_runs_size)
    assert size == Size(32, 32) and np.array_equal(picture, sheet) and abs(estimate.quantile(0.5) - 400) < 60
    large = resize_shorter(pictures[0].numpy(), 64)
    assert in_own_size(digits, large, estimator, estimator(fitted(digits, large)[0])) is None


def test_the_level_is_found_where_a_wider_picture_has_modes_that_those_of_the_run_have_not(
    digits: Pipeline, pictures: torch.Tensor
) -> None:
    """8 x 8 pixels have no wave that is longer than eight of them."""
    estimator = LevelEstimator(digits.at_size(Size(8, 8)), images=16)
    wide = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(pictures[1:2], (6, 2)), 2)
    z = as_stored(degraded(digits.at_size(Size(8, 12)), wide, 600))[0]
    assert abs(estimator(z).quantile(0.5) - 600) < 100


@pytest.mark.slow
def test_restored_pictures_are_nearer_to_the_truth_than_those_of_other_methods(digits: Pipeline, pictures: torch.Tensor) -> None:
    pytest.importorskip("skimage")
    report = score_restoration(digits, lambda index: pictures[index], np.arange(16), 450)
    psnr = {name: score["psnr"] for name, score in report["methods"].items()}
    others = max(psnr[name] for name in ("degraded", "bicubic", "Wiener", "total variation"))
    assert psnr["mean of 4"] > others + 1.0 and psnr["mean of 4"] > psnr["one sample"]
    assert report["sigma_error"] < 0.05


def test_an_estimate_in_numbers() -> None:
    numbers = np.array([1.0, 2.0, 3.0]), np.zeros(3), np.array([9.0, 1.0, 9.0]), np.array([0.0, 0.5, 2.0])
    estimate = LevelEstimate(np.array([0, 5, 9]), np.array([0.2, 0.6, 0.2]), *numbers)
    assert [estimate.quantile(share) for share in (0.1, 0.5, 0.9, 1.0)] == [0, 5, 9, 9]
    assert estimate.clean == 0.2 and estimate.familiar and not replace(estimate, distance=np.full(3, 1.5)).familiar
    assert estimate.spread(estimate.sigma) == pytest.approx((2.0, 0.4**0.5))


@pytest.mark.slow
def test_restorations_do_not_depend_on_the_batch(digits: Pipeline, pictures: torch.Tensor) -> None:
    z = as_stored(degraded(digits, pictures[:1], 400))[0]
    together = restore(digits, z, 400, 3, seed=1, steps=4)
    batch, digits.batch = digits.batch, 2
    try:
        torch.testing.assert_close(restore(digits, z, 400, 3, seed=1, steps=4), together, rtol=0, atol=1e-4)
    finally:
        digits.batch = batch
    assert (together - restore(digits, z, 400, 3, seed=2, steps=4)).abs().max() > 0.01
    candidates = torch.stack([1.0 - pictures[0], pictures[0], pictures[5]])
    assert best(digits, z, 400, candidates) == 1
    with pytest.raises(InputError, match=r"shape \[1, 16, 16\], got \[1, 8, 8\]"):
        restore(digits, z[:, :8, :8], 400)
    with pytest.raises(InputError, match="level must be from 1 to 1000, got 0"):
        restore(digits, z, 0)


def test_statistics_at_another_size(digits: Pipeline) -> None:
    """Mode m of W has the wavenumber pi m / W: twice as many modes show the same spectrum at half the step."""
    statistics = digits.statistics
    same, wide = statistics.at_size(Size(16, 16)), statistics.at_size(Size(16, 32))
    for name, moment in vars(statistics).items():
        torch.testing.assert_close(getattr(same, name), moment)
        assert getattr(wide, name).shape == (*moment.shape[:-1], 32)
    torch.testing.assert_close(wide.variance[..., ::2], statistics.variance)
    (k, _), (k_wide, _) = cosines(16), cosines(32)
    assert torch.equal(k_wide[::2], k)


@pytest.mark.slow
def test_nine_tenths_of_the_pixels_lie_in_the_intervals(digits: Pipeline, pictures: torch.Tensor) -> None:
    """85 to 95 % of those of 16 pictures, at levels between the measured ones; in the intervals of the spread alone fewer."""
    intervals = Intervals.of(digits)
    assert intervals is not None
    for level in (350, 600):
        inside, own = [], []
        for number, (x, z) in enumerate(zip(pictures, as_stored(degraded(digits, pictures, level)), strict=True)):
            restored = restore(digits, z, level, 4, number)
            error = (x - restored.mean(dim=0)).abs()
            inside.append((error <= intervals(restored, level)).double().mean().item())
            own.append((error <= 1.645 * restored.std(dim=0) * 1.25**0.5).double().mean().item())
        assert 0.85 < np.mean(inside) < 0.95 and np.mean(own) < np.mean(inside) - 0.05


@pytest.mark.slow
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: torch.Tensor, digits: Pipeline) -> None:
    """A picture that is not square (so the run knows nothing like it), its level found; the same command gives the same files."""
    monkeypatch.chdir(tmp_path)
    truth = torch.nn.functional.pad(pictures[1:2], (6, 2))
    z = degraded(digits.at_size(Size(16, 24)), truth, 450)
    Image.fromarray((255 * as_stored(z)[0, 0]).round().byte().numpy()).save("wide.png")
    main(["wide.png", "--run", "digits", "--samples", "3"])
    report = json.loads(Path("outputs/wide-restored/restoration.json").read_text())
    assert report["size"] == [16, 24] and abs(report["level"] - 450) < 40 and report["best"] is None
    low, high = report["levels_90_percent"]
    assert low <= report["level"] <= high
    restored = read_image("outputs/wide-restored/restored.png")
    assert restored.shape == (1, 16, 24)
    truth = truth[0].numpy()
    assert np.square(restored - truth).mean() < 0.95 * np.square(as_stored(z)[0].numpy() - truth).mean()
    assert read_image("outputs/wide-restored/restoration.png").shape[0] == 3
    spread = read_image("outputs/wide-restored/spread.png")
    assert spread.shape == (1, 16, 24) and spread.mean() == pytest.approx(
        report["half_width_90_percent"] / report["white"], abs=0.1
    )
    first = Path("outputs/wide-restored/restored.png").read_bytes()
    shutil.rmtree("outputs")
    main(["wide.png", "--run", "digits", "--samples", "3"])
    assert Path("outputs/wide-restored/restored.png").read_bytes() == first
    # A clean picture is degraded first, and shown beside the others.
    Image.fromarray((255 * pictures[1, 0]).round().byte().numpy()).save("clean.png")
    main(["clean.png", "--run", "digits", "--samples", "1", "--degrade", "450", "--level", "450"])
    restored, sheet = read_image("outputs/clean-restored/restored.png"), read_image("outputs/clean-restored/restoration.png")
    assert np.square(restored - pictures[1].numpy()).mean() < 0.04 and sheet.shape[2] == 4 * 160 + 5 * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "missing.png"),
        (["p.png", "--level", "high"], "--level takes auto or a number from 1, got 'high'"),
        (["p.png", "--run", "digits", "--level", "2000"], "level must be from 1 to 1000, got 2000"),
        (["p.png", "--samples", "0"], "--samples must be at least 1"),
        (["p.png", "--run", "digits", "--degrade", "2000"], "--degrade must be from 1 to 1000, got 2000"),
        (["p.png", "--run", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((16, 16), dtype=np.uint8)).save("p.png")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and message in err and err.count("\n") == 1
    assert not Path("outputs").exists()
