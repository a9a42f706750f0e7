"""Travelling waves: the compressible, moving turbulence of the published process, and images on a background in it.

The velocity is a sum of waves with random phases. The response of a flat background to a weak field is known in closed form, wave
by wave, so the noise that the flow makes of a background needs no lattice. Facts about the published field, in words: *Beyond Blur*
(Gruszczynski et al., ICCV 2025) and its public research code.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from lbm_warp.advection_diffusion import AdvectionDiffusion
from lbm_warp.checks import Device, Integers, as_batch, as_images, check_number, check_object
from lbm_warp.interop import launch
from lbm_warp.kernels.turbulence import wave_phases_kernel
from lbm_warp.operator import Operator
from lbm_warp.planner import DEFAULT_SCHEME
from lbm_warp.schedule import Schedule
from lbm_warp.turbulence import FieldRequest, Turbulence, requested

# The image is carried by the mean field of a few intervals. At Pe = 0.1 the flow changes an image by up to 0.05/255 rms at a wave
# speed of 98, and 0.12/255 at 12. With 8 intervals on a grid the error of this is up to 0.024/255; without this limit, 0.003/255.
SCHEME = replace(DEFAULT_SCHEME, updates_per_grid=8)


@dataclass(frozen=True)
class TravellingWaves(Turbulence):
    """Turbulence of waves that all travel at one speed, as in the published research code.

    Each component of the velocity is a sum of all waves with whole numbers of periods along both sides, up to the limit of the
    grid. A wave of m periods per shorter side has the amplitude m^(-5/3) and a random phase, and moves in its own direction. The
    field is periodic, with sources and sinks.

    Every wave is a function of the seed and its numbers of periods, the same at every resolution. The rms of a component is one in
    the mean over time and seeds; opposite waves make it vary. (The research code divides by the standard deviation of each moment.)
    """

    bounded = True

    def field(self, ask: FieldRequest) -> torch.Tensor:
        """As :meth:`lbm_warp.Turbulence.field`, the mean over ``ask.span``.

        The waves travel one shorter side in one unit of ``ask.time``. The field is periodic whatever the boundary of the image.
        """
        _, _, m, amplitude = _waves(ask.height, ask.width, ask.device)
        return _sum(amplitude * torch.sinc(m * ask.span).float() * _unit(m * ask.time) * _phasors(ask))

    def response(self, seed: Integers, height: int, width: int, peclet: float, speed: float, fourier: torch.Tensor) -> torch.Tensor:
        """What the flow makes of a flat density of one: the density minus one, to first order in the Peclet number.

        With the wave vector k, the velocity v_k exp(i omega t) and omega = |k| W, the density of a wave is

            r_k = -i k.v_k (exp(i omega t) - exp(-alpha k^2 t)) / (alpha k^2 + i omega).

        The terms left out are of the order of r^2. At the published speed of the waves they are at most 0.4 % of r (rms) at
        Pe = 0.1, and 2 % at Pe = 1.

        Args:
            seed, height, width: as for :meth:`velocity`.
            peclet: Peclet number of the velocity.
            speed: W L / alpha, the speed W of the waves without unit, >= 0.
            fourier: time as a Fourier number alpha t / L^2, float64 [N], one for each seed; its device is that of the result.

        Returns:
            float32 [N, 1, height, width].
        """
        phasors = _phasors(requested(seed, height, width, "periodic", fourier.device))
        my, mx, m, amplitude = _waves(height, width, fourier.device)
        fourier = fourier[:, None, None]
        # k = 2 pi m / L; common factors of alpha and L cancel.
        growth = _unit(m * speed * fourier) - torch.exp(-((2.0 * torch.pi * m) ** 2) * fourier).float()
        # At m = 0 the amplitude is zero.
        rate = torch.where(m > 0.0, 2.0 * torch.pi * m**2 + 1j * m * speed, 1.0).to(growth.dtype)
        source = -1j * peclet * (mx.float() * phasors[:, 0] + my.float() * phasors[:, 1])
        return _sum(amplitude * growth / rate * source)[:, None]


class WaveAdvectionDiffusion(Operator):
    """Images on a background in travelling waves, up to the levels of a schedule: the published process of *Beyond Blur*.

        u_k = T_k(u_0 - m) + m + (c + m) r_k

    Exactly, the density u_0 + c goes through advection-diffusion, and c is taken away again. The equation is linear, so the mean m
    of each channel can be counted to the background. What the flow makes of a background is :meth:`TravellingWaves.response`. What
    is left of the image is carried and blurred by :class:`AdvectionDiffusion` in the mean field of a few intervals of time.

    Results have the dtype of the images and are differentiable in them. Images do not affect each other.

    Args:
        schedule: blur width of every level.
        peclet: Peclet number V L / alpha of the rms V of a velocity component, >= 0. The closed form holds for r_k much below one.
        wave_speed: speed W of the waves as W L / alpha, >= 0; L is the shorter side. Zero is a frozen field. The published value is
            98.3 for L = 128 px (10^-3 L in an iteration of alpha = 1/6 px^2); at another size, the research code has
            0.006 (L / px)^2.
        offset: density c of the background; 9.5 in the published process, -1e6 to 1e6.
        boundary: boundary of the image, ``wall`` or ``periodic``. The field and its noise are periodic.
        transport: whether the flow carries the image too. If not, the image is only blurred.

    Attributes:
        boundary: boundary of the field, ``periodic``.

    Raises:
        InputError: if a value is out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        peclet: float,
        wave_speed: float,
        offset: float = 0.0,
        boundary: str = "wall",
        transport: bool = True,
    ) -> None:
        check_object("schedule", schedule, Schedule)
        check_number("peclet", peclet, 0.0)
        check_number("wave_speed", wave_speed, 0.0)
        check_number("offset", offset, -1e6, 1e6)
        self.schedule, self.levels, self.peclet, self.wave_speed, self.offset = (
            schedule,
            schedule.levels,
            float(peclet),
            float(wave_speed),
            float(offset),
        )
        self.waves = TravellingWaves()
        carried = transport and peclet > 0.0
        self.image = AdvectionDiffusion(
            schedule,
            peclet=peclet if carried else 0.0,
            turbulence=self.waves,
            boundary=boundary,
            turbulence_time=wave_speed / peclet if carried else 0.0,
            scheme=SCHEME,
        )
        self.boundary = "periodic"
        self.linear, self.random, self.moving = offset == 0.0 or peclet == 0.0, peclet > 0.0, peclet * wave_speed > 0.0
        self.diagonal = peclet == 0.0 and self.image.diagonal

    @property
    def solver(self) -> str:
        """The method for the image, ``heat kernel`` or ``lattice``."""
        return self.image.solver

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return self.at(u0, (level,), seed)[0]

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean = _mean(u0)
        images = self.image.at(u0 - mean, levels, seed)
        return tuple(self._on_background(u0, mean, image, level, seed) for image, level in zip(images, levels, strict=True))

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`Operator.trajectory`, in one pass."""
        u0 = as_images(u0).detach()
        mean = _mean(u0)
        for level, image in self.image.trajectory(u0 - mean, seed):
            yield level, self._on_background(u0, mean, image, level, seed)

    def velocity(self, seed: Integers, height: int, width: int, device: Device = "cpu", sigma: float = 0.0) -> torch.Tensor:
        """As :meth:`AdvectionDiffusion.velocity`, without a mean over time."""
        time = self.wave_speed * 0.5 * (sigma / min(height, width)) ** 2
        return self.waves.velocity(seed, height, width, device=device, time=time)

    def iterations(self, height: int, width: int) -> np.ndarray:
        return self.image.iterations(height, width)

    def _on_background(
        self, u0: torch.Tensor, mean: torch.Tensor, image: torch.Tensor, level: Integers, seed: Integers
    ) -> torch.Tensor:
        """The image at its level, with its mean and what the flow has made of mean and background."""
        count, _, height, width = u0.shape
        fourier = torch.from_numpy(self.schedule.fourier(min(height, width)))[as_batch("level", level, count)]
        fourier = fourier.to(u0.device, non_blocking=True)
        response = self.waves.response(as_batch("seed", seed, count), height, width, self.peclet, self.wave_speed, fourier)
        result = image + mean + (self.offset + mean) * response.to(mean.dtype)
        # The clean image itself at level 0, bit for bit.
        return torch.where(fourier[:, None, None, None] == 0.0, u0, result.to(u0.dtype))


def _mean(u0: torch.Tensor) -> torch.Tensor:
    """Mean of every channel, float32 or float64 [N, C, 1, 1]; added up row by row, which is the same in every batch."""
    mean = u0.mean(dim=3, keepdim=True, dtype=torch.float64).mean(dim=2, keepdim=True)
    return mean.to(torch.promote_types(u0.dtype, torch.float32))


def _phasors(ask: FieldRequest) -> torch.Tensor:
    """exp(i phase) of every wave of both components (x, y), complex64 [N, 2, height, width]."""
    return _phasors_of(tuple(ask.seed.tolist()), ask.height, ask.width, ask.device)


# A batch needs its phases for several moments.
@functools.lru_cache(maxsize=1)
def _phasors_of(seeds: tuple[int, ...], height: int, width: int, device: torch.device) -> torch.Tensor:
    phase = torch.empty((len(seeds), 2, height, width), dtype=torch.float32, device=device)
    launch(wave_phases_kernel, phase.shape, batched=[as_batch("seed", seeds, len(seeds), device)], outputs=[phase])
    return _unit(phase)


def _unit(turns: torch.Tensor) -> torch.Tensor:
    """exp(2 pi i turns), complex64; turns are float64 if there may be many."""
    angle = (2.0 * torch.pi * (turns % 1.0)).float()
    return torch.polar(torch.ones_like(angle), angle)


def _sum(waves: torch.Tensor) -> torch.Tensor:
    """Real part of the sum of waves [..., height, width] at the pixels, from the indices of the discrete Fourier transform."""
    return torch.fft.ifft2(waves, norm="forward").real.contiguous()


@functools.lru_cache(maxsize=32)
def _waves(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The waves at the indices of the discrete Fourier transform.

    Returns:
        m_y, m_x and m = hypot(m_y, m_x), periods per shorter side along y, along x and along the wave, float64, which broadcast to
        [height, width]; amplitude, complex64 [height, width]: m^(-5/3) times a factor for unit rms, and the phase of the centres
        of the pixels.
    """
    length = min(height, width)
    fy, fx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    fy = fy[:, None]
    m = length * torch.hypot(fy, fx)
    # Two pixels per period are left out: on the pixels such a wave has no slope.
    amplitude = torch.where((m > 0.0) & (fy > -0.5) & (fx > -0.5), m, torch.inf) ** (-5.0 / 3.0)
    # The mean of the square of a wave's real part is half its amplitude's.
    # Images of 2 x 2 pixels have no other waves.
    amplitude = (amplitude / (0.5 * amplitude.square().sum()).sqrt().clamp_min(1e-30)).float() * _unit(0.5 * (fy + fx))
    return tuple(part.to(device) for part in (length * fy, length * fx, m, amplitude))
