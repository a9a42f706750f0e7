"""How iterations are computed: tiles of an image on several cores, the textbook solver in the operator, CUDA streams."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import warp as wp

from lbm_warp import AdvectionDiffusion, Schedule, SpectralTurbulence, TextbookSolver, interop, stepping
from lbm_warp.checks import InputError
from lbm_warp.planner import DEFAULT_SCHEME, Scheme
from lbm_warp.stepping import MIN_TILE_ROWS, UNLIMITED, advance, stencil, tile_rows

SCHEDULE = Schedule.geometric(0.5, 3.0, 12)
# The fast scheme with the lattice temperature of the textbook solver at relaxation time 1.
ONE_THIRD = Scheme(theta_smooth=1.0 / 3.0)
every_collision = pytest.mark.parametrize("collision", ["bgk", "trt", "central-moments"])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Any number of threads, each worth waking."""
    monkeypatch.setattr(interop, "LEAST_SHARE", 1)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("height", "workers", "images"), [(96, 2, 1), (101, 3, 1), (150, 8, 3)])
def test_tiles_compute_every_row_once_per_iteration_and_after_its_neighbours(
    periodic: bool, height: int, workers: int, images: int
) -> None:
    """The rows in a model: a row is computed when it and its neighbours have the iteration before and still keep it."""
    phases, length = tile_rows(images, height, periodic, workers)
    assert len(phases) == 2 and 1 < length < UNLIMITED
    done = torch.zeros((images, height), dtype=torch.int64)
    for tiles in phases:
        start = done.clone()
        for n, top, bottom, top_change, bottom_change in tiles.tolist():
            for step in range(length):
                rows = torch.arange(top + step * top_change, bottom + step * bottom_change)
                for neighbour in (rows - 1, rows + 1):
                    inside = neighbour % height if periodic else neighbour.clamp(0, height - 1)
                    # Two buffers hold the last two iterations of a row. Rows of other tiles do not change in this phase.
                    own = (done[n, inside] != start[n, inside]) | torch.isin(inside, rows % height)
                    count = torch.where(own, done[n, inside], start[n, inside])
                    assert bool(((count == step) | (count == step + 1)).all())
                assert bool((done[n, rows % height] == step).all())
                done[n, rows % height] += 1
    assert bool((done == length).all())


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.usefixtures("threads")
def test_an_image_in_tiles_is_the_same_image(periodic: bool, adjoint: bool) -> None:
    """Bit for bit, with any number of threads; the images have different numbers of iterations."""
    height, width = 3 * MIN_TILE_ROWS + 5, 17
    generator = torch.Generator().manual_seed(0)
    u0 = torch.rand((2, 3, height, width), generator=generator)
    velocity = torch.randn((2, 2, height, width), generator=generator)
    weights = stencil(velocity, 0.05, torch.tensor([0.5, 0.3]), periodic=periodic, adjoint=adjoint)
    count = torch.tensor([75, 56], dtype=torch.int32)
    results = []
    for threads in (1, 2, 5, 16):
        torch.set_num_threads(threads)
        u = u0.clone()
        advance(u, weights, count, periodic)
        results.append(u)
    assert (results[0] - u0).abs().max() > 0.1
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("adjoint", [False, True])
def test_long_calls_are_made_of_short_launches(adjoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Ctrl-C is heard between them; the numbers do not change. A call that takes years is refused."""
    operator, u0 = AdvectionDiffusion(Schedule([0.0, 2.0]), peclet=30.0), torch.rand((2, 1, 8, 8))
    call = operator.adjoint if adjoint else operator
    whole, launches = call(u0, 1, 0), []
    monkeypatch.setattr(stepping, "launch", lambda *args, **how: (launches.append(1), interop.launch(*args, **how)))
    monkeypatch.setattr(stepping, "LAUNCH", 10 * u0.numel())
    assert torch.equal(call(u0, 1, 0), whole) and len(launches) > operator.iterations(8, 8)[1] / 10 > 3
    with pytest.raises(InputError, match=r"1e\+12 on 8 x 8 pixels takes .*e\+12 iterations, more than 1,000,000,000; lower"):
        AdvectionDiffusion(Schedule([0.0, 2.0]), peclet=1e12)(u0, 1, 0)


@every_collision
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_the_textbook_solver_at_relaxation_time_one_is_the_fast_scheme_to_second_order(
    collision: str, boundary: str, device: torch.device
) -> None:
    """With theta = 1/3 everywhere; every image has another level. At rest the same numbers up to rounding.

    In a flow they differ by terms of third order in velocity and wavenumber, which the noise of the images makes large.
    """
    u0 = torch.rand((3, 2, 24, 32), generator=torch.Generator().manual_seed(0)).to(device)
    for peclet, error in ((0.0, 3e-6), (0.5, 1e-3), (8.0, 2e-2)):
        fast = AdvectionDiffusion(SCHEDULE, peclet=peclet, boundary=boundary, scheme=ONE_THIRD, exact=False)
        textbook = TextbookSolver(SCHEDULE, peclet=peclet, boundary=boundary, collision=collision)
        for mine, other in zip(textbook.pair(u0, [1, 7, 12], [5, 6, 7]), fast.pair(u0, [1, 7, 12], [5, 6, 7]), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=error)


@pytest.mark.slow
@every_collision
@pytest.mark.parametrize("relaxation_time", [0.6, 0.8, 1.2])
def test_the_textbook_solver_reaches_the_same_levels_at_any_relaxation_time(
    collision: str, relaxation_time: float, photograph: torch.Tensor
) -> None:
    """Both are second-order: at a blur of three pixels they differ by about 1 / (24 sigma^2) of the contrast, 0.005."""
    schedule = Schedule.geometric(3.0, 6.0, 2)
    u0 = photograph[:, :, ::2, ::2].contiguous()
    fast = AdvectionDiffusion(schedule, peclet=4.0)(u0, 2, 3)
    textbook = TextbookSolver(schedule, peclet=4.0, collision=collision, relaxation_time=relaxation_time)(u0, 2, 3)
    assert (textbook - fast).abs().max() < 0.01
    assert (textbook - fast).square().mean().sqrt() < 0.002


def test_the_textbook_solver_has_the_background_too(photograph: torch.Tensor) -> None:
    """A compressible flow makes the same noise of it as in the fast scheme, at every level, up to terms of third order."""
    options = {"peclet": 0.1, "turbulence": SpectralTurbulence(compressible=True), "offset": 9.5}
    u0 = photograph[:, :1, ::4, ::4].contiguous()
    fast, textbook = AdvectionDiffusion(SCHEDULE, **options, scheme=ONE_THIRD), TextbookSolver(SCHEDULE, **options)
    for (level, mine), (_, other) in zip(textbook.trajectory(u0, 3), fast.trajectory(u0, 3), strict=True):
        assert (mine - other).abs().max() < 1e-3, level
        torch.testing.assert_close(textbook(u0, level, 3), mine, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u: TextbookSolver(SCHEDULE, collision="mrt"), "collision must be one of bgk, .*, got 'mrt'"),
        (lambda u: TextbookSolver(SCHEDULE, relaxation_time=2.0), r"from 0\.500001 to 1\.5, got 2"),
        (lambda u: TextbookSolver(SCHEDULE, peclet=2.0)(u.requires_grad_(), 3, 0), "the textbook solver has no gradient"),
        (lambda u: TextbookSolver(SCHEDULE, peclet=40.0)(u, 3, 0), "at Pe = 40 on 8 x 8 pixels .* at most [0-9.]+$"),
    ],
)
def test_bad_options_of_the_textbook_solver_are_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(torch.rand((1, 1, 8, 8)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(16, 24), (70, 66)])
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_the_operator_by_blocks_of_threads(size: tuple[int, int], boundary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, here in fibers: on chip on two grids, or in pieces that overlap; every image has another level."""
    soon = Scheme(coarsen_from_sigma_lu=1.5, min_cells=8, min_cells_per_peclet=2.0)
    operator = AdvectionDiffusion(SCHEDULE, peclet=4.0, boundary=boundary, scheme=soon if size == (16, 24) else DEFAULT_SCHEME)
    u0, w = torch.rand((2, 4, 1, *size), generator=torch.Generator().manual_seed(0))
    level, seed = torch.tensor([12, 2, 7, 1]), [1, 2, 3, 4]
    expected = *operator.pair(u0, level, seed), operator.adjoint(w, level, seed)
    monkeypatch.setattr(wp.config, "enable_cpu_blocks", True)
    found = *operator.pair(u0, level, seed), operator.adjoint(w, level, seed)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-6)
        assert mine.untyped_storage().nbytes() == mine.nbytes  # keeps no other image in memory


@pytest.mark.cuda
def test_a_call_runs_in_order_on_a_side_stream() -> None:
    """After slow work before it on the same stream, and before what follows."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), peclet=8.0)
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
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), peclet=8.0)
    u0, level, seed = torch.rand((4, 3, 64, 64), device="cuda"), torch.tensor([1, 4, 10, 7]), torch.arange(4)
    operator.pair(u0, level, seed)  # compiles and records
    torch.cuda.set_sync_debug_mode("error")
    try:
        operator.pair(u0, level, seed)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_a_call_cannot_be_recorded_into_a_graph_of_the_caller() -> None:
    operator, u0 = AdvectionDiffusion(SCHEDULE, peclet=8.0), torch.rand((1, 1, 16, 16), device="cuda")
    expected = operator(u0, 3, 0)
    with pytest.raises(InputError, match="cannot be recorded into a CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        operator(u0, 3, 0)
    assert torch.equal(operator(u0, 3, 0), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("size", [(16, 16), (64, 64), (100, 130), (7, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_on_the_device_is_the_same_in_every_batch(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Bit for bit, with many calls in flight; on chip whole, in tiles, and with a launch an iteration."""
    operator = AdvectionDiffusion(SCHEDULE, peclet=4.0)
    u0, level = torch.rand((5, 3, *size), dtype=dtype, device="cuda"), torch.tensor([12, 1, 7, 0, 12])
    together = [operator(u0, level, range(5)) for _ in range(20)]
    for n in range(5):
        alone = operator(u0[n : n + 1], int(level[n]), n)
        assert all(torch.equal(batch[n : n + 1], alone) for batch in together)
    torch.testing.assert_close(together[0].cpu(), operator(u0.cpu(), level, range(5)), rtol=0, atol=2e-5)


@pytest.mark.cuda
def test_a_device_that_is_not_current() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    operator, u0 = AdvectionDiffusion(SCHEDULE, peclet=8.0), torch.rand((2, 1, 32, 32))
    with torch.cuda.device(0):
        there = operator(u0.to("cuda:1"), 12, [0, 1])
    assert there.device == torch.device("cuda:1")
    assert torch.equal(there.cpu(), operator(u0.to("cuda:0"), 12, [0, 1]).cpu())
