"""The heat kernel, which the operator uses at Pe = 0."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.heat import blur, cosines

SCHEDULE = Schedule.geometric(0.5, 9.0, 8)


def reference(image: np.ndarray, sigma: float, boundary: str) -> np.ndarray:
    """Heat flow of a float64 image by SciPy's cosine transform or NumPy's Fourier transform."""
    height, width = image.shape[-2:]
    if boundary == "wall":
        k2 = (np.pi * np.arange(height) / height)[:, None] ** 2 + (np.pi * np.arange(width) / width)[None] ** 2
        return idctn(dctn(image, axes=(-2, -1)) * np.exp(-0.5 * k2 * sigma**2), axes=(-2, -1))
    k2 = (2 * np.pi * np.fft.fftfreq(height))[:, None] ** 2 + (2 * np.pi * np.fft.fftfreq(width))[None] ** 2
    return np.fft.ifft2(np.fft.fft2(image) * np.exp(-0.5 * k2 * sigma**2)).real


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("size", [(12, 16), (11, 7), (2, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_zero_peclet_is_the_heat_kernel(
    boundary: str, size: tuple[int, int], dtype: torch.dtype, tolerance: float, device: torch.device
) -> None:
    """Up to rounding, with another level for every image; background and changes of the flow have no effect."""
    u0 = torch.rand((3, 2, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    operator = AdvectionDiffusion(SCHEDULE, peclet=0.0, boundary=boundary, offset=9.5, turbulence_time=1.0)
    assert operator.solver == "heat kernel"
    levels = [8, 0, 3]
    found = operator(u0.to(device), levels, 0)
    assert found.dtype == dtype
    for n, level in enumerate(levels):
        expected = reference(u0[n].double().numpy(), SCHEDULE.sigma[level], boundary)
        np.testing.assert_allclose(found[n].cpu().double(), expected, rtol=0, atol=tolerance)


def test_the_lattice_is_used_on_request_and_in_a_flow(photograph: torch.Tensor) -> None:
    assert (
        AdvectionDiffusion(SCHEDULE, peclet=1.0).solver == AdvectionDiffusion(SCHEDULE, peclet=0.0, exact=False).solver == "lattice"
    )
    lattice = AdvectionDiffusion(SCHEDULE, peclet=0.0, exact=False)
    assert lattice.solver == "lattice"
    apart = lattice(photograph, 8, 0) - AdvectionDiffusion(SCHEDULE, peclet=0.0)(photograph, 8, 0)
    assert 0 < apart.abs().max() < 0.3 / 255


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_the_heat_kernel_is_symmetric(boundary: str) -> None:
    generator = torch.Generator().manual_seed(0)
    u0, w = (torch.rand((2, 1, 5, 6), generator=generator, dtype=torch.float64) for _ in range(2))
    operator = AdvectionDiffusion(SCHEDULE, peclet=0.0, boundary=boundary)
    assert (operator(u0, 4, 0) * w).sum().item() == pytest.approx((u0 * operator.adjoint(w, 4, 0)).sum().item(), rel=1e-13)


@pytest.mark.parametrize("size", [2, 7, 16])
def test_the_modes_are_orthonormal(size: int) -> None:
    _, modes = cosines(size)
    torch.testing.assert_close(modes @ modes.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13)
    for periodic in (False, True):
        u = torch.rand((1, 1, size, size), dtype=torch.float64)
        torch.testing.assert_close(blur(u, torch.zeros(1, dtype=torch.float64), periodic), u, rtol=0, atol=1e-13)
