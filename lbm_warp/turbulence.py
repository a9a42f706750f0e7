"""Turbulent velocity fields with a Kolmogorov spectrum, one independent field per seed.

Kolmogorov's E(k) ~ k^(-5/3) sets the amplitudes: |v| ~ k^(-1/3) per octave of noise, |psi_k|^2 ~ k^(-14/3) per wave in two
dimensions. A field lives on x / L, so a seed is one flow at every resolution, and it depends on nothing but its seed: not on the
batch it was made in, nor on the device (up to rounding).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch

from lbm_warp.checks import InputError, as_batch, check_boundary, check_integer, check_number
from lbm_warp.interop import launch
from lbm_warp.kernels import turbulence as kernels
from lbm_warp.lattice import PEAK_TO_RMS

# The narrowest wave or noise cell the grid is asked to carry.
MIN_PIXELS = 4


class Turbulence(Protocol):
    """What the operator asks of a velocity field. Anything with this method will do.

    An attribute ``compressible`` of False promises fields without divergence, which larger cells can carry.
    """

    def velocity(
        self,
        seed: int | Sequence[int] | torch.Tensor,
        height: int,
        width: int,
        *,
        boundary: str = "wall",
        device: torch.device | str = "cpu",
        time: float = 0.0,
    ) -> torch.Tensor:
        """Velocity fields (u_x, u_y) in units of V, float32 [N, 2, height, width], one per seed."""
        ...


@dataclass(frozen=True)
class CurlNoise:
    """Divergence-free turbulence: the curl of octaves of gradient noise (Bridson, Houriham and Nordenstam 2007).

    Args:
        octaves: number of octaves, >= 1; each has half the size of the one before. An octave whose cells would be narrower than
            four pixels is left out.
        cells: noise cells along the shorter image side in the first octave, >= 1; the largest eddies measure about L / cells.

    Raises:
        ValueError: if a value is out of its range.
    """

    octaves: int = 4
    cells: int = 2

    # |v| ~ k^(-1/3) per octave and psi = v / k: 2^(-4/3).
    GAIN = 2.0 ** (-4.0 / 3.0)
    compressible: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_integer("octaves", self.octaves, 1)
        check_integer("cells", self.cells, 1)

    def velocity(
        self,
        seed: int | Sequence[int] | torch.Tensor,
        height: int,
        width: int,
        *,
        boundary: str = "wall",
        device: torch.device | str = "cpu",
        time: float = 0.0,
    ) -> torch.Tensor:
        """Velocity fields of unit rms (mean of (u_x^2 + u_y^2) / 2 is one), without divergence.

        Args:
            seed: one integer, or N of them.
            height, width: size of the field [pixels], >= 2.
            boundary: ``wall`` (nothing flows through the border) or ``periodic``.
            device: where the field is made.
            time: moment of the flow's own evolution, in turnover times of an eddy as large as the image.

        Returns:
            float32 [N, 2, height, width], components (u_x, u_y) with x along the width.

        Raises:
            ValueError: if a value is out of its range.
        """
        seeds = _seeds(seed, height, width, boundary, device)
        psi = seeds.new_zeros((len(seeds), height + 1, width + 1), dtype=torch.float32)
        length = min(height, width)
        for octave in range(self.octaves):
            cells = self.cells * 2**octave
            if octave > 0 and cells * MIN_PIXELS > length:
                break
            # Whole cells along both axes, so that walls run through lattice nodes and periodic sides meet.
            ny, nx = round(cells * height / length), round(cells * width / length)
            nodes = psi.new_empty((len(seeds), 3, ny + 1, nx + 1))
            launch(
                kernels.noise_nodes_kernel,
                (len(seeds), ny + 1, nx + 1),
                batched=[seeds],
                inputs=[octave, time * cells ** (2.0 / 3.0), boundary == "periodic"],
                outputs=[nodes],
            )
            launch(
                kernels.add_octave_kernel,
                psi.shape,
                batched=[nodes],
                inputs=[self.GAIN**octave],
                outputs=[psi],
            )
        return _normalised(_curl(psi))


@dataclass(frozen=True)
class SpectralTurbulence:
    """Turbulence as a sum of waves with random phases.

    Args:
        compressible: ``False`` makes a stream function with |psi_k| ~ k^(-7/3) and takes its curl, E(k) ~ k^(-5/3). ``True`` draws
            both components independently with |v_k| ~ k^(-5/3), as the research code published with *Beyond Blur* does: such a
            field has sources and sinks, and with the operator's ``offset`` they print structured noise into the image.
        k_max: shortest wave, in waves per shorter image side, >= 1. Waves shorter than four pixels are left out.
        k_min: longest wave, in the same unit, >= 0 and below ``k_max``; on walls the longest there is has half a wave a side.

    Raises:
        ValueError: if a value is out of its range.
    """

    compressible: bool = False
    k_max: float = 16.0
    k_min: float = 0.0

    def __post_init__(self) -> None:
        check_number("k_max", self.k_max, 1.0)
        check_number("k_min", self.k_min, 0.0, 0.999 * self.k_max)

    def velocity(
        self,
        seed: int | Sequence[int] | torch.Tensor,
        height: int,
        width: int,
        *,
        boundary: str = "wall",
        device: torch.device | str = "cpu",
        time: float = 0.0,
    ) -> torch.Tensor:
        """Velocity fields of unit rms; arguments, result and errors as for :meth:`CurlNoise.velocity`."""
        seeds = _seeds(seed, height, width, boundary, device)
        if not self.compressible:
            waves = "fourier" if boundary == "periodic" else "sine"
            psi = self._waves(seeds, 0, (waves, waves), (height, width), -7.0 / 3.0, time, corners=True)
            return _normalised(_curl(psi))
        # On walls the component across the wall is made of sines, the one along it of cosines.
        kinds = [("fourier", "fourier")] * 2 if boundary == "periodic" else [("cosine", "sine"), ("sine", "cosine")]
        components = [
            self._waves(seeds, component, kinds[component], (height, width), -5.0 / 3.0, time, corners=False)
            for component in range(2)
        ]
        return _normalised(torch.stack(components, dim=1))

    def _waves(
        self,
        seeds: torch.Tensor,
        component: int,
        kinds: tuple[str, str],
        size: tuple[int, int],
        exponent: float,
        time: float,
        corners: bool,
    ) -> torch.Tensor:
        """Sum of waves along (y, x) on the cells' corners or middles, float32 [N, height (+ 1), width (+ 1)]."""
        (ky, key_y, basis_y), (kx, key_x, basis_x) = (
            _wave_basis(kinds[axis], size[axis], min(size), self.k_max, corners, seeds.device) for axis in range(2)
        )
        count = len(seeds)
        amplitude = basis_y.new_empty((count, len(ky), len(kx)))
        columns = basis_y.new_empty((count, len(kx), basis_y.shape[1]))
        field = basis_y.new_empty((count, basis_y.shape[1], basis_x.shape[1]))
        launch(
            kernels.wave_amplitudes_kernel,
            amplitude.shape,
            batched=[seeds],
            inputs=[component, ky, kx, key_y, key_x, exponent, self.k_min, self.k_max, time],
            outputs=[amplitude],
        )
        launch(kernels.sum_waves_kernel, columns.shape, batched=[amplitude], inputs=[basis_y], outputs=[columns])
        launch(kernels.sum_waves_kernel, field.shape, batched=[columns], inputs=[basis_x], outputs=[field])
        return field


@dataclass(frozen=True, eq=False)
class GivenVelocity:
    """Velocity fields made elsewhere, one an image (or one for all of them).

    Args:
        field: (u_x, u_y) in units of V, x along the width, [N, 2, H, W] or [1, 2, H, W], float32 or float64. The Peclet number
            refers to V, so a field of unit rms has it as its own.
        project: take out the part with divergence (:func:`solenoidal`) first.

    Raises:
        InputError: if the field has the wrong shape or type, holds NaN or infinity, or is anywhere faster than 6 V, the limit the
            solver plans its steps for.
    """

    field: torch.Tensor
    project: bool = False

    @property
    def compressible(self) -> bool:
        """Whether the fields may have divergence."""
        return not self.project

    def __post_init__(self) -> None:
        field = self.field
        if not isinstance(field, torch.Tensor) or field.ndim != 4 or field.shape[1] != 2 or not field.dtype.is_floating_point:
            found = f"{field.dtype} {list(field.shape)}" if isinstance(field, torch.Tensor) else type(field).__name__
            raise InputError(f"a velocity must be a floating-point tensor [N, 2, H, W], got {found}")
        peak = field.abs().max().item()
        if not peak <= PEAK_TO_RMS:
            raise InputError(
                f"a velocity must be finite and at most {PEAK_TO_RMS:g} V in each component, got {peak:g} V: "
                "divide it by its rms and multiply the Peclet number instead"
            )

    def velocity(
        self,
        seed: int | Sequence[int] | torch.Tensor,
        height: int,
        width: int,
        *,
        boundary: str = "wall",
        device: torch.device | str = "cpu",
        time: float = 0.0,
    ) -> torch.Tensor:
        """The given fields, for as many images as there are seeds; neither the seeds' values nor the time matter.

        Raises:
            InputError: if the images have another size or number than the fields.
        """
        count = len(_seeds(seed, height, width, boundary, "cpu"))
        if self.field.shape[0] not in (1, count) or self.field.shape[2:] != (height, width):
            raise InputError(
                f"the given velocity is {list(self.field.shape)}, the images need {[count, 2, height, width]}, or one for all"
            )
        field = self.field.to(device)
        if self.project:
            field = solenoidal(field, boundary)
        return field.expand(count, -1, -1, -1).contiguous()


def solenoidal(velocity: torch.Tensor, boundary: str = "wall") -> torch.Tensor:
    """The part of a velocity field that has no divergence and does not flow through walls: its Helmholtz projection.

    Divergence is what the lattice sees, mean_y diff_x u_x + mean_x diff_y u_y on the corners of the cells. On a periodic field, or
    one continued by its mirror images beyond the walls, it is a_x u_x + a_y u_y in Fourier space; the projection takes out the
    component of u along (a_x, a_y)*.

    Args:
        velocity: (u_x, u_y), floating-point [N, 2, H, W].
        boundary: ``wall`` or ``periodic``.

    Returns:
        A tensor of the same shape and type; the identity on fields without divergence.
    """
    check_boundary(boundary)
    height, width = velocity.shape[2:]
    field = _periodic(velocity.double(), boundary)
    spectrum = torch.fft.fft2(field)
    step_y, step_x = (
        torch.exp(2j * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64, device=field.device)) for n in field.shape[2:]
    )
    a = torch.stack([(step_y[:, None] + 1) * (step_x - 1), (step_y[:, None] - 1) * (step_x + 1)]) / 2
    size = a.abs().square().sum(dim=0)
    # Where a vanishes (the mean, and the finest checkerboard) the lattice sees no divergence.
    along = (a * spectrum).sum(dim=1) / torch.where(size > 1e-24, size, 1.0)
    spectrum = spectrum - a.conj() * along[:, None]
    return torch.fft.ifft2(spectrum).real[..., :height, :width].to(velocity.dtype).contiguous()


def energy_spectrum(velocity: torch.Tensor, boundary: str = "wall") -> tuple[torch.Tensor, torch.Tensor]:
    """How the energy of a flow is spread over scales.

    Args:
        velocity: (u_x, u_y), floating-point [N, 2, H, W].
        boundary: ``wall`` (the field goes on in its mirror images) or ``periodic``.

    Returns:
        ``(k, E)``: wavenumbers 1, 2, ... up to half the shorter side [waves a shorter side], float64 [K], and the mean over the N
        fields of the energy (u_x^2 + u_y^2) / 2 between k - 1/2 and k + 1/2, float64 [K]. Over all k it sums up to the mean energy,
        but for the mean flow and the corners of the spectrum.
    """
    check_boundary(boundary)
    field = _periodic(velocity.double(), boundary)
    cells = field.shape[2] * field.shape[3]
    energy = torch.fft.fft2(field).abs().square().sum(dim=1).mean(dim=0) / (2.0 * cells**2)
    length = min(velocity.shape[2:])
    ky, kx = (length * torch.fft.fftfreq(n, dtype=torch.float64, device=field.device) for n in field.shape[2:])
    ring = torch.hypot(ky[:, None], kx[None]).add(0.5).long()
    total = energy.new_zeros(int(ring.max()) + 1).index_add_(0, ring.flatten(), energy.flatten())
    k = torch.arange(1, length // 2 + 1)
    return k.double(), total[k.to(total.device)].cpu()


def _periodic(velocity: torch.Tensor, boundary: str) -> torch.Tensor:
    """The field as one period: itself, or itself and its mirror images beyond the walls, [N, 2, 2 H, 2 W]."""
    if boundary == "periodic":
        return velocity
    across = velocity.new_tensor([-1.0, 1.0])[:, None, None]
    velocity = torch.cat([velocity, velocity.flip(3) * across], dim=3)
    return torch.cat([velocity, velocity.flip(2) * -across], dim=2)


@functools.lru_cache(maxsize=64)
def _wave_basis(kind: str, size: int, length: int, k_max: float, corners: bool, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Waves along an axis: wavenumber [waves per shorter side], key for the random numbers, values [waves, positions].

    A wall axis carries half waves (sines vanish on the walls, cosines have no slope there), a periodic one whole waves.
    """
    x = np.arange(size + 1) / size if corners else (np.arange(size) + 0.5) / size
    waves_per_side = length / size
    count = int(min(k_max / waves_per_side, size / MIN_PIXELS) * (1 if kind == "fourier" else 2))
    count = max(count, 1)
    if kind == "sine":
        order = np.arange(1, count + 1)
        k, basis = 0.5 * order, np.sin(np.pi * np.outer(order, x))
        key = 2 * order
        if corners:
            basis[:, [0, -1]] = 0.0  # sin(pi m) in floating point is not quite zero, a wall is.
    elif kind == "cosine":
        order = np.arange(count + 1)
        k, key, basis = 0.5 * order, 2 * order, np.cos(np.pi * np.outer(order, x))
    else:
        order = np.concatenate([np.arange(count + 1), np.arange(1, count + 1)])
        is_sine = np.arange(len(order)) > count
        phase = 2.0 * np.pi * np.outer(order, x)
        k, key, basis = 1.0 * order, 2 * order + is_sine, np.where(is_sine[:, None], np.sin(phase), np.cos(phase))
        if corners:
            basis[:, -1] = basis[:, 0]
    parts = (k * waves_per_side).astype(np.float32), key.astype(np.int32), basis.astype(np.float32)
    return tuple(torch.from_numpy(part).to(device) for part in parts)


def _seeds(
    seed: int | Sequence[int] | torch.Tensor, height: int, width: int, boundary: str, device: torch.device | str
) -> torch.Tensor:
    """Checked seeds, int64 [N] on the device."""
    check_boundary(boundary)
    check_integer("height", height, 2)
    check_integer("width", width, 2)
    seed = torch.as_tensor(seed)
    return as_batch("seed", seed, 1 if seed.ndim == 0 else len(seed), device)


def _curl(psi: torch.Tensor) -> torch.Tensor:
    """Cell velocities [N, 2, height, width] from a stream function on the corners [N, height + 1, width + 1]."""
    count, height, width = psi.shape[0], psi.shape[1] - 1, psi.shape[2] - 1
    velocity = psi.new_empty((count, 2, height, width))
    launch(kernels.curl_kernel, (count, height, width), batched=[psi], outputs=[velocity])
    return velocity


def _normalised(velocity: torch.Tensor) -> torch.Tensor:
    """The field with unit rms. One factor for both components: scaling or clamping one alone brings divergence back."""
    count, _, height, _ = velocity.shape
    energy = velocity.new_empty((count, height), dtype=torch.float64)
    launch(kernels.row_energy_kernel, (count, height), batched=[velocity], outputs=[energy])
    launch(kernels.normalise_kernel, (count, height), batched=[energy], outputs=[velocity])
    return velocity
