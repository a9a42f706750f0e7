"""Going on at half the resolution: what it must keep, and how much it may cost in accuracy."""

from __future__ import annotations

from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence
from lbm_warp.grids import coarser, coarser_velocity, finer
from tests.test_turbulence import corner_divergence


def test_means_survive_the_way_down_and_back() -> None:
    u = torch.rand((2, 3, 12, 20), dtype=torch.float64)
    for periodic in (False, True):
        torch.testing.assert_close(coarser(finer(u, periodic)), u, rtol=0, atol=1e-15)
        torch.testing.assert_close(finer(u, periodic).mean(dim=(2, 3)), u.mean(dim=(2, 3)))


@pytest.mark.parametrize("periodic", [False, True])
def test_the_way_back_is_fourth_order(periodic: bool) -> None:
    """Means of a cosine over cells, down and back: halving the cells divides the error by 2^4 or more."""

    def error(cells: int) -> float:
        edges = torch.linspace(0.0, 2.0 * torch.pi, cells + 1, dtype=torch.float64)
        means = (edges.sin().diff() / edges.diff()).expand(1, 1, 8, cells)
        return (finer(coarser(means), periodic) - means).abs().max().item()

    assert np.log2(error(32) / error(64)) > 3.9


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence()], ids=str)
def test_the_coarser_flow_has_no_divergence_either(turbulence, boundary: str) -> None:
    v = turbulence.velocity([0, 1], 64, 96, boundary=boundary).double()
    coarse = coarser_velocity(v, boundary == "periodic")
    assert coarse.shape == (2, 2, 32, 48)
    assert corner_divergence(coarse, boundary).abs().max() < 1e-5
    # Scales of several cells pass nearly unchanged.
    smooth = CurlNoise(octaves=1).velocity(0, 64, 64).double()
    plain = coarser(smooth)
    assert (coarser_velocity(smooth, False) - plain).square().mean().sqrt() < 0.03


def large(size: int) -> torch.Tensor:
    """The bundled photograph at size x size, sharpened by nothing: bicubic, so it has fine detail at 300 px only."""
    with Image.open(str(resources.files("assets") / "chelsea.png")) as image:
        square = image.convert("RGB").crop((75, 0, 375, 300)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255.0).permute(2, 0, 1)[None]
    noise = 0.05 * torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    return (0.95 * pixels + noise).contiguous()


@pytest.mark.parametrize(
    ("peclet", "options", "factors"),
    [
        (0.0, {"exact": False}, [1, 2, 4, 8]),
        (8.0, {}, [1, 2, 4]),
        (10.0, {"turbulence": SpectralTurbulence(), "boundary": "periodic"}, [1, 2, 4]),
        (3.0, {"turbulence": SpectralTurbulence(compressible=True)}, [1, 2]),
        (0.1, {"turbulence": SpectralTurbulence(compressible=True), "offset": 9.5}, [1, 2, 4]),
    ],
    ids=str,
)
def test_coarsening_changes_a_picture_by_less_than_one_grey_level(
    peclet: float, options: dict, factors: list[int], device: torch.device
) -> None:
    """256 x 256 RGB to sigma = 0.16 L: at most 1/255 anywhere and 0.1/255 rms at every level, mass kept, a tenth of the work."""
    u0 = large(256).to(device)
    schedule = Schedule.geometric(0.5, 0.16 * 256, 16)
    fine, coarse = (AdvectionDiffusion(schedule, peclet, coarsen=coarsen, **options) for coarsen in (False, True))
    plans = [operator.march(256, 256) for operator in (fine, coarse)]
    assert [grid.factor for grid in plans[1].grids] == factors and plans[0].work > 8 * plans[1].work
    pairs = zip(fine.trajectory(u0, seed=1), coarse.trajectory(u0, seed=1), strict=True)
    for (level, expected), (_, u) in pairs:
        difference = 255 * (u - expected)
        assert difference.abs().max() <= 1.0, level
        assert difference.square().mean().sqrt() <= 0.1, level
    mass = u0.double().sum(dim=(2, 3))
    # The background is an order of magnitude above the picture, and so is its rounding.
    assert ((u.double().sum(dim=(2, 3)) - mass).abs() / mass).max() < (1e-4 if options.get("offset") else 1e-5)


@pytest.mark.slow
def test_five_hundred_and_twelve_pixels_at_a_tenth_of_the_cost() -> None:
    u0 = large(512)
    schedule = Schedule.geometric(0.5, 0.16 * 512, 8)
    fine, coarse = (AdvectionDiffusion(schedule, 8.0, coarsen=coarsen) for coarsen in (False, True))
    assert fine.march(512, 512).work > 10 * coarse.march(512, 512).work
    difference = 255 * (coarse(u0, 8, seed=2) - fine(u0, 8, seed=2))
    assert difference.abs().max() <= 1.0 and difference.square().mean().sqrt() <= 0.1


def test_levels_on_different_grids_in_one_batch_bit_for_bit() -> None:
    u0 = large(256)
    images = torch.cat([u0, u0.flip(3), u0.flip(2), 1 - u0])
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 30.0, 12), 8.0)
    level, seed = torch.tensor([12, 2, 9, 11]), torch.tensor([1, 2, 3, 4])
    assert set(operator.march(256, 256).grid[level - 1]) == {0, 1, 2}
    together = operator(images, level, seed)
    before, after = operator.pair(images, level, seed)
    for i in range(4):
        one = slice(i, i + 1)
        assert torch.equal(operator(images[one], int(level[i]), int(seed[i]))[0], together[i])
        alone = operator.pair(images[one], int(level[i]), int(seed[i]))
        assert torch.equal(alone[0][0], before[i]) and torch.equal(alone[1][0], after[i])
    torch.testing.assert_close(after, together, rtol=0, atol=1e-6)


def test_sides_that_cannot_be_halved_are_left_alone() -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 60.0, 12), 8.0)
    assert len(operator.march(300, 451).grids) == 1 and len(operator.march(300, 450).grids) == 2
    assert len(operator.march(1024, 512).grids) == 4 and len(operator.march(510, 1024).grids) == 2
