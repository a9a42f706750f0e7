"""The kernels: CPU and CUDA kernels agree; random numbers are correct."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp

from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import InputError
from lbm_warp.interop import WARP_DTYPES, launch, warp_device
from lbm_warp.kernels import cpu, cuda, onchip
from lbm_warp.kernels import stencil as stencils
from lbm_warp.kernels.grids import transfers
from lbm_warp.kernels.turbulence import curl_noise_kernel
from lbm_warp.random import normal
from lbm_warp.stepping import Pieces, fits_on_chip, stencil, whole

MODULES = ["hashing", "turbulence", "populations"]


def test_the_list_of_kernel_files_is_complete() -> None:
    folder = Path(importlib.import_module("lbm_warp.kernels").__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"__init__"} == {
        *MODULES,
        "rules",
        "cpu",
        "cuda",
        "onchip",
        "grids",
        "sensitivity",
        "stencil",
    }


def test_a_new_size_needs_no_new_kernel() -> None:
    """Widths with and without long and short pieces of a row; the reference sums the nine neighbours in torch."""
    before = cpu.advance_kernel.cache_info().misses
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 2.0, 4), peclet=2.0, boundary="periodic")
    for width in (2, 3, 9, 10, 11, 33, 34, 35, 42, 67):
        u0 = torch.rand((1, 2, 5, width), generator=torch.Generator().manual_seed(width))
        assert operator(u0, 4, 0).shape == u0.shape
        # A flow at rest: the weights are products of (theta, 2 - 2 theta, theta) / 2.
        still = AdvectionDiffusion(Schedule(np.array([0.0, 0.5])), peclet=0.0, boundary="periodic", exact=False)
        theta, expected = 0.25, u0
        for axis in (2, 3):
            expected = (1 - theta) * expected + theta / 2 * (expected.roll(1, axis) + expected.roll(-1, axis))
        torch.testing.assert_close(still(u0, 1, 0), expected, rtol=0, atol=1e-6)
    assert cpu.advance_kernel.cache_info().misses <= before + 1


def test_a_device_that_warp_cannot_use_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wp, "get_cuda_device_count", lambda: 0)
    with pytest.raises(InputError, match=r"^Warp .* cannot use cuda:0: the driver is too old.*update the driver or use the CPU$"):
        warp_device(torch.device("cuda:0"))


def splitmix(state: int, counter: int) -> int:
    """SplitMix64 in Python's integers, from the paper's constants."""
    mask = 2**64 - 1
    z = ((state ^ (counter % 2**32)) + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_normal_numbers_are_the_box_muller_transform_of_splitmix(device: torch.device) -> None:
    seeds = [0, 12345678901234567, -3]
    drawn = normal(seeds, (3, 50), device).cpu().numpy()
    for row, seed in enumerate(seeds):
        for i in range(50):
            state = splitmix(splitmix(seed % 2**64, 0), i)
            uniform = [((splitmix(state, j) >> 41) + 0.5) / 2**23 for j in range(2)]
            expected = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])
            assert drawn[row, i] == pytest.approx(expected, abs=2e-5)


def test_normal_numbers_have_the_moments_of_a_gaussian() -> None:
    """Means of n samples scatter by sqrt(var / n): 1, 2 and 96 are the variances of x, x^2 and x^4; five standard errors."""
    x = normal(range(8), (8, 40_000)).double()
    n = x.numel()
    for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
        assert abs(x.pow(power).mean().item() - mean) < 5 * np.sqrt(variance / n)
    correlation = torch.corrcoef(x) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / np.sqrt(40_000)


def test_normal_numbers_do_not_depend_on_the_batch() -> None:
    together = normal([4, 5, 6], (3, 2, 5, 5))
    assert torch.equal(together[1], normal(5, (1, 2, 5, 5))[0])
    with pytest.raises(ValueError, match="seed must be one integer or one for each of the 3 images"):
        normal([1, 2], (3, 4))


KINDS = pytest.mark.parametrize(("adjoint", "background"), [(False, False), (False, True), (True, False)])


def iterations(
    shape: tuple[int, ...], dtype: torch.dtype, periodic: bool, adjoint: bool, background: bool
) -> tuple[torch.Tensor, ...]:
    """Random images, and weights of random velocities at another temperature for each image."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(shape, generator=generator, dtype=torch.float64)
    velocity = torch.randn((shape[0], 2, *shape[2:]), generator=generator, dtype=torch.float64).to(dtype)
    theta = torch.linspace(0.5, 0.1, shape[0]).to(dtype)
    options = {"periodic": periodic, "offset": 9.5 if background else 0.0, "adjoint": adjoint}
    return u.to(dtype), stencil(velocity, 0.05, theta, **options), velocity, theta


def on_one_core(u: torch.Tensor, weights: torch.Tensor, count: torch.Tensor, periodic: bool) -> torch.Tensor:
    """By the kernel for CPUs."""
    a, b = u.clone(), u.clone()
    kernel, tiles = cpu.advance_kernel(WARP_DTYPES[u.dtype], weights.shape[1] == 10, u.shape[1]), whole(len(u), u.shape[2])
    launch(kernel, (len(u),), batched=[tiles], inputs=[count, weights, periodic, 0, 1000, a, b])
    return a


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("size", [(9, 14), (2, 2), (5, 70)])
def test_the_weights_of_cuda_kernels_equal_those_of_cpu_kernels(size: tuple[int, int], adjoint: bool, periodic: bool) -> None:
    """One thread a cell, and one a row with pieces of constant length; forward weights are those of the adjoint, gathered."""
    _, weights, velocity, theta = iterations((3, 1, *size), torch.float64, periodic, adjoint, False)
    kernel = stencils.stencil_kernel(wp.float64, adjoint)
    thetas = torch.stack([theta, -torch.ones_like(theta), theta])
    together = torch.full((9, *weights.shape[1:]), torch.nan, dtype=torch.float64)
    launch(kernel, (3, *size), batched=[velocity], inputs=[thetas, 0.05, periodic, together])
    first, none, last = together.unflatten(0, (3, 3))
    assert torch.equal(first, last) and bool(none.isnan().all())
    torch.testing.assert_close(first, weights, rtol=0, atol=1e-15)
    # A cell gives away all it has. What it gets is more or less: this velocity has a divergence.
    total = weights.sum(dim=1)
    torch.testing.assert_close(total if adjoint else total.mean(dim=(1, 2)), torch.ones_like(total if adjoint else total[:, 0, 0]))


def test_the_source_of_a_background_is_what_the_weights_have_in_excess() -> None:
    for periodic in (False, True):
        _, weights, *_ = iterations((3, 1, 9, 14), torch.float64, periodic, False, True)
        torch.testing.assert_close(weights[:, 9], 9.5 * (weights[:, :9].sum(dim=1) - 1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("periodic", [False, True])
@KINDS
def test_cuda_kernels_equal_cpu_kernels(adjoint: bool, background: bool, periodic: bool) -> None:
    """The kernel with a thread a cell, run on the CPU; images with different numbers of iterations."""
    u, weights, *_ = iterations((4, 3, 9, 14), torch.float64, periodic, adjoint, background)
    count = torch.tensor([0, 20, 3, 6], dtype=torch.int32)
    a, b = u.clone(), u.clone()
    kernel = cuda.iterate_kernel(wp.float64, background)
    for number in range(20):
        launch(kernel, (4, 9, 14), batched=[count, weights], inputs=[periodic, number], outputs=[a, b])
    torch.testing.assert_close(a, on_one_core(u, weights, count, periodic), rtol=0, atol=1e-13)
    assert torch.equal(a[0], u[0]) and (a[1] - u[1]).abs().max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(
    ("size", "counts", "lengths", "halos", "most"),
    [
        ((12, 17), (1, 1), (12, 17), (0, 0), 1000),
        ((8, 33), (1, 1), (8, 33), (0, 0), 1000),
        ((40, 50), (2, 3), (25, 24), (2, 3), 2),
        ((41, 9), (3, 1), (24, 9), (5, 0), 5),
    ],
)
@KINDS
def test_kernels_on_chip_equal_cpu_kernels(
    adjoint: bool,
    background: bool,
    size: tuple[int, int],
    counts: tuple[int, int],
    lengths: tuple[int, int],
    halos: tuple[int, int],
    most: int,
    periodic: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blocks of threads in fibers on one core: whole images and pieces, with and without a side that a piece goes round.

    A run of two images, a partial iteration of two with other weights, and a further run of one.
    """
    monkeypatch.setattr(wp.config, "enable_cpu_blocks", True)
    u, weights, *_ = iterations((3, 2, *size), torch.float32, periodic, adjoint, background)
    others = weights.flip(0)
    first, partial, second = runs = torch.tensor([[0, 9, 8], [1, 1, 0], [0, 6, 0]], dtype=torch.int32)
    program = torch.cat([torch.tensor([[0, -3], [3, 0], [0, -3]]), runs.cumsum(0)], dim=1).int()
    a, b, parts = u.clone(), u.clone(), torch.empty_like(u[:2])
    kernel, threads = onchip.advance_kernel(background), 192
    blocks = 3 * 2 * counts[0] * counts[1]
    for number in range(-(-16 // most)):
        inputs = [program, torch.cat([weights, others]), periodic, *counts, *lengths, *halos, most, number]
        launch(kernel, (blocks, threads), inputs=inputs, outputs=[a, b, parts], block=threads)
    # The weights and their order are the same; the compiler may contract other products.
    torch.testing.assert_close(a, on_one_core(u, weights, first + second, periodic), rtol=0, atol=2e-6)
    expected = on_one_core(on_one_core(u, weights, first, periodic), others, partial, periodic)
    torch.testing.assert_close(parts, expected[:2], rtol=0, atol=2e-6)
    assert torch.equal(a[0], u[0]) and (a[1] - u[1]).abs().max() > 0.01


@pytest.mark.parametrize("periodic", [False, True])
def test_transfers_between_grids_do_not_depend_on_how_rows_are_cut(periodic: bool) -> None:
    """One thread a row, as on CPUs, and one a cell, as on GPUs."""
    fine, coarse = (torch.rand((3, 2, *size), dtype=torch.float64) for size in ((8, 12), (4, 6)))
    for name, kernel in transfers(wp.float64)._asdict().items():
        finer = name in ("restrict_transposed", "prolong", "restrict_velocity_transposed")
        source, target = (coarse, fine) if finer else (fine, coarse)
        if name in ("restrict_transposed", "prolong", "prolong_transposed"):
            source, target = source.flatten(0, 1), target.flatten(0, 1)
        arrays = 2 if name == "restrict" else 1  # images and velocities
        results = [[torch.full_like(target, torch.nan) for _ in range(arrays)] for _ in range(3)]
        for run, outputs in zip((6, 1, 4), results, strict=True):
            inputs = [run] if name == "restrict_transposed" else [periodic, run]
            launch(kernel, (len(source), 4, -(-6 // run)), batched=[source] * arrays, inputs=inputs, outputs=outputs)
        for outputs in results[1:]:
            torch.testing.assert_close(outputs, results[0], rtol=0, atol=1e-15)


def test_a_flow_does_not_depend_on_how_rows_are_cut() -> None:
    nodes, cells = torch.rand((3, 3, 23)), torch.tensor([[2, 3, 0], [1, 4, 12]], dtype=torch.int32)
    fields = [torch.full((3, 2, 7, 11), torch.nan) for _ in range(3)]
    for lanes, field in zip((1, 4, 32), fields, strict=True):
        outputs = [field, torch.empty((3, 7), dtype=torch.float64)]
        launch(curl_noise_kernel, (3, 7, lanes), batched=[nodes], inputs=[cells, torch.ones(2), lanes], outputs=outputs)
    for field in fields[1:]:
        torch.testing.assert_close(field, fields[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("periodic", [False, True])
def test_pieces_fit_on_chip_and_cover_every_image(periodic: bool) -> None:
    for size in ((8, 8), (16, 16), (28, 28), (64, 64), (8, 500), (65, 64), (128, 128), (512, 512), (9, 700), (500, 9), (5000, 9)):
        pieces = Pieces.of(torch.empty((3, 2, *size), device="meta"), periodic)
        rows, columns = pieces.lengths
        assert 2 * (rows + 2) * (columns + 2) <= onchip.MEMORY
        assert -(-rows // onchip.ROWS) * columns <= pieces.threads <= onchip.THREADS and pieces.threads % 32 == 0
        assert pieces.blocks == 6 * pieces.counts[0] * pieces.counts[1]
        for side, count, length, halo in zip(size, *pieces[:3], strict=True):
            # Outer pieces need no halo at walls.
            own = count * (length - 2 * halo) + (0 if periodic else 2 * halo)
            assert own >= side and (0 < pieces.most <= halo if count > 1 else halo == 0)
    assert Pieces.of(torch.empty((1, 1, 128, 128), device="meta"), periodic).most == (10 if periodic else 16)
    for image in (
        *(torch.empty((1, 1, *size), device="meta") for size in ((7, 64), (64, 7))),
        torch.empty((1, 1, 64, 64), dtype=torch.float64, device="meta"),
    ):
        assert not fits_on_chip(image)
