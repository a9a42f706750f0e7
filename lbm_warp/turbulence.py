"""Turbulent velocity fields with a Kolmogorov spectrum, one independent field per seed.

Kolmogorov's E(k) ~ k^(-5/3) sets the amplitudes: |v| ~ k^(-1/3) per octave of noise, and in two dimensions |psi_k|^2 ~ k^(-14/3)
per mode of the stream function. A field is a function of x / L and of its seed: it is the same flow at every resolution, in every
batch and, up to rounding, on every device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from lbm_warp.checks import (
    Device,
    InputError,
    Integers,
    as_batch,
    as_device,
    as_floats,
    as_integers,
    check_boundary,
    check_integer,
    check_number,
)
from lbm_warp.interop import lanes, launch
from lbm_warp.kernels import turbulence as kernels
from lbm_warp.planner import DEFAULT_SCHEME

# A mode or noise cell is at least this wide [pixels].
MIN_PIXELS = 4
MOST_CELLS = 2**31


@dataclass(frozen=True, eq=False)
class FieldRequest:
    """Which velocity fields :meth:`Turbulence.field` is asked for.

    Attributes:
        seed: int64 [N], where the caller has them.
        height, width: size of the fields [pixels].
        boundary: ``wall`` or ``periodic``.
        device: device of the fields.
        time, span: as for :meth:`Turbulence.velocity`.
    """

    seed: torch.Tensor
    height: int
    width: int
    boundary: str
    device: torch.device
    time: float = 0.0
    span: float = 0.0

    def same_as(self, other: FieldRequest) -> bool:
        """Whether both ask for the same fields."""
        mine, its = (
            (ask.height, ask.width, ask.boundary, ask.device, ask.time, ask.span, ask.seed.device) for ask in (self, other)
        )
        return mine == its and torch.equal(self.seed, other.seed)

    @functools.cached_property
    def seeds(self) -> torch.Tensor:
        """The seeds on the device of the fields, int64 [N]."""
        return as_batch("seed", self.seed, len(self.seed), self.device)


class Turbulence:
    """A generator of velocity fields. Subclass it and write :meth:`field`.

    A steady field that needs a gradient gets one from :class:`lbm_warp.AdvectionDiffusion`.

    Attributes:
        compressible: whether the fields may have divergence; those without are used on coarser grids sooner.
        random: whether the seed matters.
        bounded: whether the fields are known to be finite and at most 6 V, so that :meth:`velocity` need not look, which waits for
            the device.
    """

    compressible: bool = True
    random: bool = True
    bounded: bool = False

    def field(self, ask: FieldRequest) -> torch.Tensor:
        """Velocity fields in units of V, the rms of one component: floating-point [N, 2, height, width], or [1, 2, height, width]
        for all seeds; components (v_x, v_y) with x along the width."""
        raise InputError(f"{type(self).__name__} needs a method field(ask) that gives the velocity fields")

    def velocity(
        self,
        seed: Integers,
        height: int,
        width: int,
        *,
        boundary: str = "wall",
        device: Device = "cpu",
        time: float = 0.0,
        span: float = 0.0,
    ) -> torch.Tensor:
        """Velocity fields in units of V, the rms of one component.

        Args:
            seed: one integer, or N of them.
            height, width: size of the field [pixels], >= 2.
            boundary: ``wall`` (no flow through the border) or ``periodic``.
            device: device of the result.
            time: time in a flow that changes, in turnover times L / V of an eddy as large as the image.
            span: length of an interval around ``time``, same unit, over which :class:`TravellingWaves` take the mean. The other
                generators give the field at its middle.

        Returns:
            Floating-point [N, 2, height, width], components (v_x, v_y) with x along the width. The generators of this module give
            float32 and scale every field to unit rms: the mean of (v_x^2 + v_y^2) / 2 is one.

        Raises:
            InputError: if a value is out of range, or :meth:`field` gives no such fields.
        """
        ask = requested(seed, height, width, boundary, device, time, span)
        field = self.field(ask)
        name, shape = f"the velocity of {type(self).__name__}", [len(ask.seed), 2, height, width]
        if not isinstance(field, torch.Tensor) or not field.is_floating_point():
            raise InputError(f"{name} must be a floating-point tensor, got {getattr(field, 'dtype', type(field).__name__)}")
        if list(field.shape) not in (shape, [1, *shape[1:]]):
            raise InputError(f"{name} has shape {list(field.shape)}, the images need {shape} or {[1, *shape[1:]]}")
        if not self.bounded:
            check_bounded(name, field)
        return field.to(ask.device).expand(shape).contiguous()


@dataclass(frozen=True)
class CurlNoise(Turbulence):
    """Divergence-free turbulence: the curl of octaves of gradient noise (Bridson, Houriham and Nordenstam 2007).

    Args:
        octaves: number of octaves, >= 1; the cells of each are half as wide as those of the one before. After the first, octaves
            with cells below four pixels are left out.
        cells: noise cells along the shorter image side in the first octave, >= 1. The largest eddies measure about L / cells.

    Raises:
        InputError: if a value is out of range.
    """

    octaves: int = 4
    cells: int = 2

    # Amplitude of psi from octave to octave: |v| ~ k^(-1/3) and psi ~ v / k.
    GAIN: ClassVar[float] = 2.0 ** (-4.0 / 3.0)
    compressible = False
    bounded = True

    def __post_init__(self) -> None:
        check_integer("octaves", self.octaves, 1)
        check_integer("cells", self.cells, 1, 4096)

    def field(self, ask: FieldRequest) -> torch.Tensor:
        """As :meth:`Turbulence.field`, without divergence."""
        seeds, height, width = ask.seeds, ask.height, ask.width
        cells, amplitude, rate, count = _octaves(self, height, width, seeds.device)
        nodes = amplitude.new_empty((len(seeds), 3, count))
        velocity, energy = _empty(nodes, height, width)
        threads = lanes(nodes.device)
        inputs = [cells, rate, ask.time, ask.boundary == "periodic"]
        launch(kernels.noise_nodes_kernel, (len(seeds), count), batched=[seeds], inputs=inputs, outputs=[nodes])
        inputs, work = [cells, amplitude, threads], velocity.numel() * len(cells)
        size = (*energy.shape, threads)
        launch(kernels.curl_noise_kernel, size, batched=[nodes], inputs=inputs, outputs=[velocity, energy], work=work)
        return _normalised(velocity, energy)


@dataclass(frozen=True)
class SpectralTurbulence(Turbulence):
    """Turbulence as a sum of Fourier modes with random phases.

    Args:
        compressible: ``False`` is the curl of a stream function with |psi_k| ~ k^(-7/3), so E(k) ~ k^(-5/3). ``True`` draws both
            components independently with |v_k| ~ k^(-5/3), like the research code published with *Beyond Blur*. Such a field has
            sources and sinks; with the operator's ``offset`` they add structured noise to the image.
        k_max: largest wavenumber [periods per shorter image side], >= 1. Modes with a period below four pixels are left out.
        k_min: smallest wavenumber, same unit, >= 0 and below ``k_max``. Between walls the lowest mode has half a period per side.

    Raises:
        InputError: if a value is out of range.
    """

    compressible: bool = False
    k_max: float = 16.0
    k_min: float = 0.0

    bounded = True

    def __post_init__(self) -> None:
        check_number("k_max", self.k_max, 1.0)
        check_number("k_min", self.k_min, 0.0, 0.999 * self.k_max)

    def field(self, ask: FieldRequest) -> torch.Tensor:
        periodic = ask.boundary == "periodic"
        if not self.compressible:
            return _flow(self._sum_of_modes(ask, 0, ("fourier", "fourier") if periodic else ("sine", "sine")))
        # Between walls the normal component consists of sines, the tangential one of cosines.
        kinds_of = [("fourier", "fourier")] * 2 if periodic else [("cosine", "sine"), ("sine", "cosine")]
        components = [self._sum_of_modes(ask, i, kinds) for i, kinds in enumerate(kinds_of)]
        velocity = torch.stack(components, dim=1)
        energy, threads = velocity.new_empty((len(velocity), ask.height), dtype=torch.float64), lanes(velocity.device)
        launch(kernels.energy_kernel, (*energy.shape, threads), batched=[velocity], inputs=[threads], outputs=[energy])
        return _normalised(velocity, energy)

    def _sum_of_modes(self, ask: FieldRequest, component: int, kinds: tuple[str, str]) -> torch.Tensor:
        """Sum of modes of these kinds along (y, x): a velocity component [N, height, width], or psi [N, height + 1, width + 1]."""
        seeds, size, exponent = ask.seeds, (ask.height, ask.width), -5.0 / 3.0 if self.compressible else -7.0 / 3.0
        (ky, key_y, basis_y), (kx, key_x, basis_x) = (
            _modes(kinds[axis], size[axis], min(size), self.k_max, not self.compressible, seeds.device) for axis in range(2)
        )
        count = len(seeds)
        amplitude = basis_y.new_empty((count, len(ky), len(kx)))
        columns = basis_y.new_empty((count, len(kx), basis_y.shape[1]))
        field = basis_y.new_empty((count, basis_y.shape[1], basis_x.shape[1]))
        inputs = [component, ky, kx, key_y, key_x, exponent, self.k_min, self.k_max, ask.time]
        launch(kernels.mode_amplitudes_kernel, amplitude.shape, batched=[seeds], inputs=inputs, outputs=[amplitude])
        launch(kernels.sum_modes_kernel, columns.shape, batched=[amplitude], inputs=[basis_y], outputs=[columns])
        launch(kernels.sum_modes_kernel, field.shape, batched=[columns], inputs=[basis_x], outputs=[field])
        return field


@dataclass(frozen=True, eq=False)
class GivenVelocity(Turbulence):
    """Given velocity fields, one per image or one for all images, whatever the seeds and the time.

    Args:
        given: (v_x, v_y) in units of V, x along the width, floating-point [N, 2, H, W] or [1, 2, H, W]. The Peclet number is that
            of V; it is the Peclet number of the field if the field has unit rms.
        project: remove the part with divergence first (:func:`solenoidal`).

    Raises:
        InputError: if the field has the wrong shape or dtype, holds NaN or infinity, or has a component above 6 V, the limit that
            iterations are planned for.
    """

    given: torch.Tensor
    project: bool = False

    random = False
    bounded = True

    @property
    def compressible(self) -> bool:  # type: ignore[override]
        """Whether the fields may have divergence."""
        return not self.project

    def __post_init__(self) -> None:
        check_bounded("a velocity", as_floats("a velocity", self.given, "N, 2, H, W"))

    def field(self, ask: FieldRequest) -> torch.Tensor:
        given = self.given.to(ask.device)
        return solenoidal(given, ask.boundary) if self.project else given


class Remembering(Turbulence):
    """The fields of another generator, of which the last ones are kept: for many calls with the same seeds, as a sampler makes.

    Args:
        generator: gives the same fields for the same request; those that need a gradient are not kept.
    """

    def __init__(self, generator: Turbulence) -> None:
        self.generator = generator
        self.compressible, self.random, self.bounded = generator.compressible, generator.random, generator.bounded
        self._last: tuple[FieldRequest, torch.Tensor] | None = None

    def field(self, ask: FieldRequest) -> torch.Tensor:
        last = self._last
        if last is not None and last[0].same_as(ask):
            return last[1]
        graded = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(graded):  # a later call may be outside of inference mode
            field = self.generator.field(ask)
        self._last = None if field.requires_grad else (replace(ask, seed=ask.seed.clone()), field)
        return field


def solenoidal(velocity: torch.Tensor, boundary: str = "wall") -> torch.Tensor:
    """Helmholtz projection: the part of a velocity field without divergence and without flow through walls.

    The divergence is that of the lattice, mean_y diff_x v_x + mean_x diff_y v_y on the corners of the cells. For a periodic field,
    or one continued by mirror images beyond the walls, it is a_x v_x + a_y v_y in Fourier space. The projection removes the
    component of v along the complex conjugate of (a_x, a_y).

    Args:
        velocity: (v_x, v_y), any unit, floating-point [N, 2, H, W].
        boundary: ``wall`` or ``periodic``.

    Returns:
        A tensor of the same shape and dtype. A field without divergence is unchanged up to rounding.

    Raises:
        InputError: if it is no such tensor, or ``boundary`` is neither.
    """
    check_boundary(boundary)
    velocity = as_floats("a velocity", velocity, "N, 2, H, W")
    height, width = velocity.shape[2:]
    spectrum, a, size = _divergence(velocity, boundary)
    along = (a * spectrum).sum(dim=1) / size
    spectrum = spectrum - a.conj() * along[:, None]
    return torch.fft.ifft2(spectrum).real[..., :height, :width].to(velocity.dtype).contiguous()


def stream_function(velocity: torch.Tensor, boundary: str) -> torch.Tensor:
    """The stream function of the part of a velocity field without divergence, on the corners of the cells; its mean is zero.

    In Fourier space the field of psi is (a_y, -a_x) psi, with the factors of :func:`solenoidal`. :func:`curl` is the way back, but
    for the mean of a periodic field.

    Args:
        velocity: [N, 2, H, W].
        boundary: ``wall``, where psi is zero on the border, or ``periodic``.

    Returns:
        float64 [N, H + 1, W + 1].
    """
    height, width = velocity.shape[2:]
    spectrum, a, size = _divergence(velocity, boundary)
    psi = torch.fft.ifft2((a[1].conj() * spectrum[:, 0] - a[0].conj() * spectrum[:, 1]) / size).real
    return functional.pad(psi, (0, 1, 0, 1), mode="circular")[:, : height + 1, : width + 1]


def curl(psi: torch.Tensor) -> torch.Tensor:
    """Velocities of the cells, [N, 2, H, W], from a stream function on their corners, [N, H + 1, W + 1]: without divergence."""
    down, up = psi[:, 1:, 1:] - psi[:, :-1, :-1], psi[:, 1:, :-1] - psi[:, :-1, 1:]  # along the two diagonals of a cell
    return torch.stack([up + down, up - down], dim=1) / 2


def _divergence(velocity: torch.Tensor, boundary: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The spectrum of a period of a velocity field [N, 2, h, w], the factors a_x and a_y of its divergence [2, h, w], and the sum
    of their squares [h, w]. It is set to 1 where it is 0: the mean and the checkerboard mode have no divergence on the lattice."""
    field = _periodic(velocity.double(), boundary)
    step_y, step_x = (
        torch.exp(2j * torch.pi * torch.fft.fftfreq(n, dtype=torch.float64, device=field.device)) for n in field.shape[2:]
    )
    a = torch.stack([(step_y[:, None] + 1) * (step_x - 1), (step_y[:, None] - 1) * (step_x + 1)]) / 2
    size = a.abs().square().sum(dim=0)
    return torch.fft.fft2(field), a, torch.where(size > 1e-24, size, 1.0)


def energy_spectrum(velocity: torch.Tensor, boundary: str = "wall") -> tuple[torch.Tensor, torch.Tensor]:
    """Energy of a flow by wavenumber.

    Args:
        velocity: (v_x, v_y), any unit, floating-point [N, 2, H, W].
        boundary: ``wall`` (the field continues in its mirror images) or ``periodic``.

    Returns:
        ``(k, E)``, float64 [K] each on the CPU: wavenumbers 1, 2, ... up to half the shorter side [periods per shorter side], and
        the energy (v_x^2 + v_y^2) / 2 between k - 1/2 and k + 1/2, the mean over the N fields. The sum over all k is the mean
        energy of a cell, without the mean flow and the wavenumbers beyond half the shorter side.

    Raises:
        InputError: if it is no such tensor, or ``boundary`` is neither.
    """
    check_boundary(boundary)
    field = _periodic(as_floats("a velocity", velocity, "N, 2, H, W").double(), boundary)
    cells = field.shape[2] * field.shape[3]
    energy = torch.fft.fft2(field).abs().square().sum(dim=1).mean(dim=0) / (2.0 * cells**2)
    length = min(velocity.shape[2:])
    ky, kx = (length * torch.fft.fftfreq(n, dtype=torch.float64, device=field.device) for n in field.shape[2:])
    ring = torch.hypot(ky[:, None], kx[None]).add(0.5).long()
    total = energy.new_zeros(int(ring.max()) + 1).index_add_(0, ring.flatten(), energy.flatten())
    k = torch.arange(1, length // 2 + 1, device="cpu")
    return k.double(), total[k.to(total.device)].cpu()


def _periodic(velocity: torch.Tensor, boundary: str) -> torch.Tensor:
    """One period of the field: the field itself or, between walls, the field and its mirror images [N, 2, 2 H, 2 W]."""
    if boundary == "periodic":
        return velocity
    signs = velocity.new_tensor([-1.0, 1.0])[:, None, None]
    velocity = torch.cat([velocity, velocity.flip(3) * signs], dim=3)
    return torch.cat([velocity, velocity.flip(2) * -signs], dim=2)


@functools.lru_cache(maxsize=64)
def _octaves(
    noise: CurlNoise, height: int, width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """The octaves of noise that an image has room for.

    Returns:
        Noise cells along y and x, and the number of the octave's first node, int32 [O, 3]; amplitudes of psi, float32 [O]; how fast
        their time goes, float64 [O]; and the number of nodes of them all.
    """
    cells, rates, nodes, length = [], [], 0, min(height, width)
    for octave in range(noise.octaves):
        count = noise.cells * 2**octave
        if octave > 0 and count * MIN_PIXELS > length:
            break
        # Whole cells along both axes: walls run through nodes of the noise, and periodic sides match.
        ny, nx = round(count * height / length), round(count * width / length)
        cells.append((ny, nx, nodes))
        rates.append(count ** (2.0 / 3.0))
        nodes += (ny + 1) * (nx + 1)
    amplitudes = [noise.GAIN**octave for octave in range(len(cells))]
    return (
        torch.tensor(cells, dtype=torch.int32, device=device),
        torch.tensor(amplitudes, dtype=torch.float32, device=device),
        torch.tensor(rates, dtype=torch.float64, device=device),
        nodes,
    )


@functools.lru_cache(maxsize=64)
def _modes(kind: str, size: int, length: int, k_max: float, corners: bool, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Modes along an axis of ``size`` cells at its corners or centres; ``length`` is the shorter side of the image [cells].

    ``sine`` modes vanish on the walls, ``cosine`` modes have zero slope there; both have multiples of half a period per side.
    ``fourier`` modes have whole periods.

    Returns:
        Wavenumbers [periods per shorter side], float32 [M]; keys for the random numbers, int32 [M]; values, float32 [M, positions].
    """
    x = np.arange(size + 1) / size if corners else (np.arange(size) + 0.5) / size
    count = max(1, int(min(k_max / (length / size), size / MIN_PIXELS) * (1 if kind == "fourier" else 2)))
    if kind == "sine":
        order = np.arange(1, count + 1)
        k, key, basis = 0.5 * order, 2 * order, np.sin(np.pi * np.outer(order, x))
        if corners:
            basis[:, [0, -1]] = 0.0  # sin(pi m) is not exactly zero in floating point.
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
    parts = (k * (length / size)).astype(np.float32), key.astype(np.int32), basis.astype(np.float32)
    return tuple(torch.from_numpy(part).to(device) for part in parts)


def requested(
    seed: Integers, height: int, width: int, boundary: str, device: Device = "cpu", time: float = 0.0, span: float = 0.0
) -> FieldRequest:
    """The arguments of :meth:`Turbulence.velocity`, checked."""
    check_boundary(boundary)
    check_integer("height", height, 2)
    check_integer("width", width, 2)
    if height * width > MOST_CELLS:
        raise InputError(f"a velocity field of {height:,} x {width:,} cells is too large, at most {MOST_CELLS:,} are made")
    seeds = torch.atleast_1d(as_integers("seed", seed))
    if seeds.ndim > 1 or not len(seeds):
        raise InputError(f"seed must be one integer or several, got shape {list(seeds.shape)}")
    return FieldRequest(seeds, height, width, boundary, as_device(device), time, span)


def check_bounded(name: str, field: torch.Tensor) -> None:
    """Raise InputError unless a velocity is finite and within the limit that iterations are planned for."""
    peak = field.detach().abs().max().item()
    if not peak <= (limit := DEFAULT_SCHEME.peak_to_rms):
        raise InputError(
            f"{name} must be finite and at most {limit:g} V in each component, got {peak:g} V: "
            "divide it by its rms and multiply the Peclet number by it"
        )


def _flow(psi: torch.Tensor) -> torch.Tensor:
    """Velocities of the cells, [N, 2, height, width], from a stream function on their corners, [N, height + 1, width + 1]."""
    velocity, energy = _empty(psi, psi.shape[1] - 1, psi.shape[2] - 1)
    threads = lanes(psi.device)
    launch(kernels.curl_kernel, (*energy.shape, threads), batched=[psi], inputs=[threads], outputs=[velocity, energy])
    return _normalised(velocity, energy)


def _empty(source: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for a velocity and the sum of its squares over each row, for every entry of ``source``."""
    count = len(source)
    return source.new_empty((count, 2, height, width)), source.new_empty((count, height), dtype=torch.float64)


def _normalised(velocity: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """The field scaled in place to unit rms. Both components get one factor: two factors would bring back divergence."""
    count, height = energy.shape
    threads = lanes(velocity.device)
    launch(kernels.normalise_kernel, (count, height, threads), batched=[energy], inputs=[threads], outputs=[velocity])
    return velocity
