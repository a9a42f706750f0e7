"""The kernels: they compile for a GPU on a machine without one; CPU and CUDA kernels agree; random numbers are correct."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
import warp as wp

from lbm_warp.interop import GRAPH_LAUNCHES, launch, launch_repeatedly
from lbm_warp.kernels.advection_diffusion import count_steps_kernel, cpu_kernels, cuda_kernels
from lbm_warp.random import normal

MODULES = ["hashing", "turbulence", "populations"]


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
    for kernel in (*cuda_kernels(dtype, adjoint, background), count_steps_kernel):
        wp.compile_aot_module(kernel.module, device=None, arch=90, module_dir=tmp_path / kernel.key)
        built = [file for file in (tmp_path / kernel.key).rglob("*") if file.suffix in (".ptx", ".cubin")]
        assert built and any(kernel.key.encode() in file.read_bytes() for file in built)


def test_the_list_of_kernel_files_is_complete() -> None:
    folder = Path(importlib.import_module("lbm_warp.kernels").__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - {"__init__"} == {*MODULES, "advection_diffusion"}


def test_cpu_kernels_are_built_once_per_shape() -> None:
    shape = (1, 9, 7)
    kind = (wp.float32, False, False)
    assert cpu_kernels(*kind, False, *shape) is cpu_kernels(*kind, False, *shape)
    assert cpu_kernels(*kind, False, *shape) is not cpu_kernels(*kind, True, *shape)


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
    settings = [0.05, 1.0 / 3.0, 0.5, 6, 9.5 if background else 0.0]
    results = []
    for repeat in range(3):
        a, b = u.clone(), u.clone()
        if repeat == 0:
            kernels = cpu_kernels(wp.float64, adjoint, background, periodic, *u.shape[1:])
            tiles = torch.tensor([[n, 0, 9, 0, 0] for n in range(4)], dtype=torch.int32)
            launch(kernels.advance, (4,), batched=[tiles], inputs=[first, stop, velocity, *settings, 0, 1000, a, b])
            advanced = a.clone()
            launch(kernels.read_out, (4,), batched=[theta, velocity], inputs=[settings[0], settings[-1]], outputs=[a, b])
        else:  # The second replay gets other tensors.
            kernels = cuda_kernels(wp.float64, adjoint, background)
            launch_repeatedly(
                kernels.advance,
                (4, 9, 14),
                tensors=[first, stop, velocity, a, b],
                settings=[*u.shape[1:], *settings, periodic],
                steps=int((stop - first).max()),
            )
            advanced = a.clone()
            constants = [settings[0], settings[-1], periodic]
            launch(kernels.read_out, (4, 9, 14), batched=[theta, velocity], inputs=constants, outputs=[a, b])
        results.append((advanced, b))
    for other in results[1:]:
        for on_cpu, on_cuda in zip(results[0], other, strict=True):
            torch.testing.assert_close(on_cuda, on_cpu, rtol=0, atol=1e-13)
    assert torch.equal(results[0][0][0], u[0])
    assert (results[0][0][1] - u[1]).abs().max() > 0.01
