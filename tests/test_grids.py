"""Coarser grids: conserved quantities, and the error of the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from diffusion.files import asset
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence
from lbm_warp.grids import coarsen, prolong, restrict, restrict_velocity
from tests.test_turbulence import corner_divergence


def test_restriction_undoes_prolongation() -> None:
    u = torch.rand((2, 3, 12, 20), dtype=torch.float64)
    for periodic in (False, True):
        torch.testing.assert_close(restrict(prolong(u, periodic)), u, rtol=0, atol=1e-15)
        torch.testing.assert_close(prolong(u, periodic).mean(dim=(2, 3)), u.mean(dim=(2, 3)))


def test_images_and_velocities_go_to_a_coarser_grid_together() -> None:
    u, velocity = torch.rand((2, 3, 12, 20)), torch.randn((2, 2, 12, 20))
    for periodic in (False, True):
        together = coarsen(u, velocity, periodic)
        assert torch.equal(together[0], restrict(u)) and torch.equal(together[1], restrict_velocity(velocity, periodic))
        torch.testing.assert_close(together[0], functional.avg_pool2d(u, 2))


@pytest.mark.parametrize("periodic", [False, True])
def test_prolongation_is_fourth_order(periodic: bool) -> None:
    """Cell means of a cosine, restricted and prolonged: half the cell size divides the error by 2^4 or more."""

    def error(cells: int) -> float:
        edges = torch.linspace(0.0, 2.0 * torch.pi, cells + 1, dtype=torch.float64)
        means = (edges.sin().diff() / edges.diff()).expand(1, 1, 8, cells)
        return (prolong(restrict(means), periodic) - means).abs().max().item()

    assert np.log2(error(32) / error(64)) > 3.9


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence()], ids=str)
def test_a_restricted_velocity_has_no_divergence(turbulence, boundary: str) -> None:
    v = turbulence.velocity([0, 1], 64, 96, boundary=boundary).double()
    coarse = restrict_velocity(v, boundary == "periodic")
    assert coarse.shape == (2, 2, 32, 48)
    assert corner_divergence(coarse, boundary).abs().max() < 1e-5
    # It hardly changes at scales of several cells.
    smooth = CurlNoise(octaves=1).velocity(0, 64, 64).double()
    assert (restrict_velocity(smooth, False) - restrict(smooth)).square().mean().sqrt() < 0.03


def large(size: int) -> torch.Tensor:
    """The bundled photograph at size x size, bicubic, with 5 % of white noise for detail at the scale of the pixels."""
    with Image.open(asset("chelsea.png")) as image:
        square = image.convert("RGB").crop((75, 0, 375, 300)).resize((size, size), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(square, dtype=np.float32) / 255.0).permute(2, 0, 1)[None]
    noise = 0.05 * torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    return (0.95 * pixels + noise).contiguous()


COMPRESSIBLE = SpectralTurbulence(compressible=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "peclet", "options", "factors", "saving"),
    [
        (256, 0.0, {"exact": False}, [1, 2, 4, 8], 8),
        (256, 8.0, {}, [1, 2, 4], 8),
        (256, 10.0, {"turbulence": SpectralTurbulence(), "boundary": "periodic"}, [1, 2, 4], 8),
        (256, 3.0, {"turbulence": COMPRESSIBLE}, [1, 2], 8),
        (256, 0.1, {"turbulence": COMPRESSIBLE, "offset": 9.5}, [1, 2, 4], 8),
        pytest.param(512, 8.0, {}, [1, 2, 4, 8], 10, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_coarsening_changes_an_image_by_less_than_one_grey_level(
    size: int, peclet: float, options: dict, factors: list[int], saving: float, device: torch.device
) -> None:
    """RGB image to sigma = 0.16 L: at most 1/255 anywhere and 0.1/255 rms at every level, mass conserved, much less work."""
    u0 = large(size).to(device)
    schedule = Schedule.geometric(0.5, 0.16 * size, 16)
    fine, coarse = (AdvectionDiffusion(schedule, peclet=peclet, coarsen=coarsen, **options) for coarsen in (False, True))
    assert [grid.factor for grid in coarse.plan(size, size).grids] == factors
    assert fine.iterations(size, size)[-1] > saving * coarse.iterations(size, size)[-1]
    for (level, expected), (_, u) in zip(fine.trajectory(u0, seed=1), coarse.trajectory(u0, seed=1), strict=True):
        difference = 255 * (u - expected)
        assert difference.abs().max() <= 1.0, level
        assert difference.square().mean().sqrt() <= 0.1, level
    mass = u0.double().sum(dim=(2, 3))
    # The background is ten times the image, and so is its rounding error.
    assert ((u.double().sum(dim=(2, 3)) - mass).abs() / mass).max() < (1e-4 if options.get("offset") else 1e-5)


@pytest.mark.parametrize(("size", "grids"), [((300, 451), 1), ((300, 450), 2), ((1024, 512), 4), ((510, 1024), 2)])
def test_grids_with_an_odd_side_are_not_coarsened(size: tuple[int, int], grids: int) -> None:
    assert len(AdvectionDiffusion(Schedule.geometric(0.5, 60.0, 12), peclet=8.0).plan(*size).grids) == grids
