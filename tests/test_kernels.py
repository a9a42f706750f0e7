"""The kernels: they compile for a GPU on a machine without one; CPU and CUDA kernels agree; random numbers are correct."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp

from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import InputError
from lbm_warp.interop import GRAPH_LAUNCHES, launch, launch_repeatedly, warp_device
from lbm_warp.kernels import cpu, cuda
from lbm_warp.kernels.sensitivity import displacement_gradient_kernel
from lbm_warp.random import normal

MODULES = ["hashing", "turbulence", "populations", "steps"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_kernel_builds_for_sm_90(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(f"lbm_warp.kernels.{name}")
    kernels = [value for value in vars(module).values() if isinstance(value, wp.Kernel)]
    assert kernels
    wp.compile_aot_module(module, device=None, arch=90, module_dir=tmp_path)
    built = [file for file in tmp_path.rglob("*") if file.suffix in (".ptx", ".cubin")]
    assert built
    binary = b"".join(file.read_bytes() for file in built)
    for kernel in kernels:
        assert kernel.key.encode() in binary, kernel.key


@pytest.mark.slow
@pytest.mark.parametrize(("adjoint", "background"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("dtype", [wp.float32, wp.float64])
def test_the_advection_diffusion_kernels_build_for_sm_90(dtype: type, adjoint: bool, background: bool, tmp_path: Path) -> None:
    for kernel in (*cuda.kernels(dtype, adjoint, background), displacement_gradient_kernel(dtype)):
        wp.compile_aot_module(kernel.module, device=None, arch=90, module_dir=tmp_path / kernel.key)
        built = [file for file in (tmp_path / kernel.key).rglob("*") if file.suffix in (".ptx", ".cubin")]
        assert built and any(kernel.key.encode() in file.read_bytes() for file in built)


def test_the_list_of_kernel_files_is_complete() -> None:
    folder = Path(importlib.import_module("lbm_warp.kernels").__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"__init__"} == {*MODULES, "rules", "cpu", "cuda", "sensitivity"}


def test_a_new_size_needs_no_new_kernel() -> None:
    """Widths with and without long and short pieces of a row; the reference sums the nine neighbours in torch."""
    before = cpu.advance_kernel.cache_info().misses
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 2.0, 4), 2.0, boundary="periodic")
    for width in (2, 3, 9, 10, 11, 33, 34, 35, 42, 67):
        u0 = torch.rand((1, 2, 5, width), generator=torch.Generator().manual_seed(width))
        assert operator(u0, 4, 0).shape == u0.shape
        # A flow at rest: the weights are products of (theta, 2 - 2 theta, theta) / 2.
        still = AdvectionDiffusion(Schedule(np.array([0.0, 0.5])), 0.0, boundary="periodic", exact=False)
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


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("adjoint", "background"), [(False, False), (False, True), (True, False)])
def test_cuda_kernels_equal_cpu_kernels(adjoint: bool, background: bool, periodic: bool) -> None:
    """The CUDA kernels, recorded and replayed on the CPU: images with different numbers of iterations, then a read-out."""
    generator = torch.Generator().manual_seed(0)
    u = torch.rand((4, 3, 9, 14), generator=generator, dtype=torch.float64)
    velocity = torch.randn((4, 2, 9, 14), generator=generator, dtype=torch.float64)
    theta = torch.rand(4, generator=generator, dtype=torch.float64) / 2
    # No iterations, more than there are launches in a graph, an odd and an even number.
    first, stop = (torch.tensor(v, dtype=torch.int32) for v in ([0, 3, 5, 2], [0, 3 + GRAPH_LAUNCHES + 9, 8, 8]))
    scale, temperatures, smooth_from, offset = 0.05, (1.0 / 3.0, 0.5), 6, 9.5 if background else 0.0
    tiles = torch.tensor([[n, 0, 9, 0, 0] for n in range(4)], dtype=torch.int32)
    on_cpu = cpu.advance_kernel(wp.float64, adjoint, background, 3)

    def on_one_core(first: torch.Tensor, stop: torch.Tensor, theta: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
        numbers = [first, stop, theta, velocity, scale, smooth_from, offset, periodic, 0, 1000]
        launch(on_cpu, (4,), batched=[tiles], inputs=[*numbers, a, b])

    results = []
    for repeat in range(3):
        a, b = u.clone(), u.clone()
        if repeat == 0:
            on_one_core(first, stop, torch.tensor([temperatures] * 4, dtype=torch.float64), a, b)
            advanced = a.clone()
            one = torch.ones_like(first)
            on_one_core(0 * one, one, theta[:, None].repeat(1, 2), b, a)
        else:  # The second replay gets other tensors.
            kernels = cuda.kernels(wp.float64, adjoint, background)
            numbers = torch.tensor([scale, *temperatures, smooth_from, offset], dtype=torch.float64)
            launch_repeatedly(
                kernels.advance,
                (4, 9, 14),
                tensors=[first, stop, velocity, a, b, numbers],
                settings=[*u.shape[1:], periodic],
                steps=int((stop - first).max()),
            )
            advanced = a.clone()
            constants = [scale, offset, periodic]
            launch(kernels.read_out, (4, 9, 14), batched=[theta, velocity], inputs=constants, outputs=[a, b])
        results.append((advanced, b))
    for other in results[1:]:
        for here, there in zip(results[0], other, strict=True):
            torch.testing.assert_close(there, here, rtol=0, atol=1e-13)
    assert torch.equal(results[0][0][0], u[0])
    assert (results[0][0][1] - u[1]).abs().max() > 0.01
