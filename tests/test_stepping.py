"""How iterations are shared out: bands of one image on several cores, the textbook solver behind the operator, streams of a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from lbm_warp.lattice import March
from lbm_warp.sweeps import ALL, LEAST_BAND, Sweep, _phases

from lbm_warp import AdvectionDiffusion, Schedule, SpectralTurbulence, lattice
from lbm_warp.checks import InputError

SCHEDULE = Schedule.geometric(0.5, 3.0, 12)
TEXTBOOK = pytest.mark.parametrize("collision", ["bgk", "trt", "central-moments"])


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("height", "workers", "images"), [(96, 2, 1), (101, 3, 1), (150, 8, 3)])
def test_bands_compute_every_cell_once_an_iteration_and_after_its_neighbours(
    periodic: bool, height: int, workers: int, images: int
) -> None:
    """The phases on paper: a row is computed when it and the rows beside it are one iteration behind, no further on, and unread."""
    phases, length = _phases(images, height, periodic, workers)
    assert len(phases) == 2 and 1 < length < ALL
    done = torch.zeros((images, height), dtype=torch.int64)
    for jobs in phases:
        start = done.clone()
        for n, top, bottom, top_growth, bottom_growth in jobs.tolist():
            for step in range(length):
                rows = torch.arange(top + step * top_growth, bottom + step * bottom_growth)
                for neighbour in (rows - 1, rows + 1):
                    inside = neighbour % height if periodic else neighbour.clamp(0, height - 1)
                    # Two buffers hold a row's last two iterations; another job's rows do not change in this phase.
                    mine = (done[n, inside] != start[n, inside]) | torch.isin(inside, rows % height)
                    behind = torch.where(mine, done[n, inside], start[n, inside])
                    assert bool(((behind == step) | (behind == step + 1)).all())
                assert bool((done[n, rows % height] == step).all())
                done[n, rows % height] += 1
    assert bool((done == length).all())


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
def test_an_image_cut_into_bands_is_the_same_image(periodic: bool, adjoint: bool, threads: None) -> None:
    """Bit for bit, whatever the number of cores; with images that stop at iterations of their own."""
    height, width = 3 * LEAST_BAND + 5, 17
    generator = torch.Generator().manual_seed(0)
    u0 = torch.rand((2, 3, height, width), generator=generator)
    velocity = torch.randn((2, 2, height, width), generator=generator)
    grid = March.plan(SCHEDULE, 8.0, height, width).grids[0]
    first, stop = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([75, 60], dtype=torch.int32)
    results = []
    for count in (1, 2, 5, 16):
        torch.set_num_threads(count)
        u = u0.clone()
        Sweep(grid, 0.0, periodic, adjoint).march(u, velocity, first, stop, len(u))
        results.append(u)
    assert (results[0] - u0).abs().max() > 0.1
    for other in results[1:]:
        assert torch.equal(results[0], other)


@TEXTBOOK
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_the_textbook_solver_at_relaxation_time_one_is_the_fast_scheme(
    collision: str, boundary: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that one keeps to theta = 1/3; every image at a level of its own."""
    monkeypatch.setattr(lattice, "THETA_SMOOTH", lattice.THETA_SHARP)
    u0 = torch.rand((3, 2, 24, 32), generator=torch.Generator().manual_seed(0)).to(device)
    fast = AdvectionDiffusion(SCHEDULE, 8.0, boundary=boundary)
    textbook = AdvectionDiffusion(SCHEDULE, 8.0, boundary=boundary, collision=collision)
    for mine, other in zip(textbook.pair(u0, [1, 7, 12], [5, 6, 7]), fast.pair(u0, [1, 7, 12], [5, 6, 7]), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=3e-6)


@TEXTBOOK
@pytest.mark.parametrize("relaxation_time", [0.6, 0.8, 1.2])
def test_the_textbook_solver_reaches_the_same_levels_at_any_relaxation_time(
    collision: str, relaxation_time: float, photograph: torch.Tensor
) -> None:
    """On a photograph blurred by three pixels both are second-order: some 1 / (24 sigma^2) of a contrast of one apart, 0.005."""
    schedule = Schedule.geometric(3.0, 6.0, 2)
    u0 = photograph[:, :, ::2, ::2].contiguous()
    fast = AdvectionDiffusion(schedule, 4.0)(u0, 2, 3)
    textbook = AdvectionDiffusion(schedule, 4.0, collision=collision, relaxation_time=relaxation_time)(u0, 2, 3)
    assert (textbook - fast).abs().max() < 0.01
    assert (textbook - fast).square().mean().sqrt() < 0.002


def test_the_textbook_solver_knows_the_background(photograph: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compressible flow prints noise from the background, the same as the fast scheme's, and levels come in any order."""
    monkeypatch.setattr(lattice, "THETA_SMOOTH", lattice.THETA_SHARP)
    options = {"peclet": 0.1, "turbulence": SpectralTurbulence(compressible=True), "offset": 9.5}
    u0 = photograph[:, :1, ::4, ::4].contiguous()
    fast, textbook = AdvectionDiffusion(SCHEDULE, **options), AdvectionDiffusion(SCHEDULE, collision="bgk", **options)
    for (level, mine), (_, other) in zip(textbook.trajectory(u0, 3), fast.trajectory(u0, 3), strict=True):
        assert (mine - other).abs().max() < 2e-5, level
        torch.testing.assert_close(textbook(u0, level, 3), mine, rtol=0, atol=0)


def test_what_the_textbook_solver_cannot_do_is_refused() -> None:
    u0 = torch.rand((1, 1, 8, 8))
    with pytest.raises(InputError, match="collision must be one of equilibrium, bgk, trt, central-moments, got 'mrt'"):
        AdvectionDiffusion(SCHEDULE, collision="mrt")
    with pytest.raises(InputError, match=r"relaxation_time must be from 0\.500001 to 1\.5, got 2"):
        AdvectionDiffusion(SCHEDULE, collision="bgk", relaxation_time=2.0)
    with pytest.raises(InputError, match=r"collision 'equilibrium' is relaxation time 1, got 0\.8"):
        AdvectionDiffusion(SCHEDULE, relaxation_time=0.8)
    textbook = AdvectionDiffusion(SCHEDULE, 2.0, collision="bgk")
    with pytest.raises(InputError, match="collision 'bgk' has no gradient"):
        textbook(u0.requires_grad_(), 3, 0)
    with pytest.raises(InputError, match="collision 'bgk' has no gradient"):
        textbook.adjoint(u0.detach(), 3, 0)
    fast_flow = AdvectionDiffusion(SCHEDULE, 40.0, collision="bgk")
    with pytest.raises(InputError, match=r"at Pe = 40 on 8 x 8 pixels .* relaxation times up to [0-9.]+ are stable"):
        fast_flow(u0.detach(), 3, 0)


@pytest.mark.cuda
def test_a_call_keeps_its_place_on_a_side_stream() -> None:
    """Slow work before it, on the same stream, must be over when it reads its input; what follows must see its result."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), 8.0)
    u0 = torch.rand((4, 3, 64, 64), device="cuda")
    expected = operator(u0, 10, range(4)) + 1.0
    big = torch.rand((4096, 4096), device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    for _ in range(3):
        with torch.cuda.stream(stream):
            late = torch.zeros_like(u0)
            for _ in range(20):
                big @ big
            late.copy_(u0)
            found = operator(late, 10, range(4)) + 1.0
            late.zero_()
        stream.synchronize()
        assert torch.equal(found, expected)


@pytest.mark.cuda
def test_a_call_never_waits_for_the_device() -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), 8.0)
    u0, level, seed = torch.rand((4, 3, 64, 64), device="cuda"), torch.tensor([1, 4, 10, 7]), torch.arange(4)
    operator.pair(u0, level, seed)  # compiles and records
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator.pair(u0, level, seed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
