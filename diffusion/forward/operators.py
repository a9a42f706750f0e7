"""Operators A_k: what the levels of a process make of an image, without contrast and noise. They hold numbers alone, for any size.

A researcher's own operator is a frozen dataclass with a number of levels and one method:

    @dataclass(frozen=True)
    class Masking(Operator):
        levels: int = 50
        linear = True

        def apply(self, u0, level, seed):
            columns = torch.arange(u0.shape[3]) * self.levels >= level[:, None] * u0.shape[3]
            return u0 * columns[:, None, None].to(u0)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

import lbm_warp
from diffusion.forward.scales import share
from diffusion.size import Size
from lbm_warp import CurlNoise, Schedule, SpectralTurbulence, Turbulence
from lbm_warp.checks import Device, InputError, Integers, check_boundary, check_integer, check_number
from lbm_warp.heat import cosines, from_modes, to_modes
from lbm_warp.schedule import MOST_LEVELS
from lbm_warp.turbulence import Remembering

# The generators of velocity fields, by the names that command lines have for them.
TURBULENCE: dict[str, Turbulence] = {
    "curl-noise": CurlNoise(),
    "spectral": SpectralTurbulence(),
    "compressible": SpectralTurbulence(compressible=True),
}
Solver = lbm_warp.AdvectionDiffusion | lbm_warp.WaveAdvectionDiffusion
# Blur width below which a level is not told from the clean image [pixels].
LEAST = 0.5
# Steps of the time, at most, over which a derivative is taken.
STEPS = 200


class Operator(lbm_warp.Operator):
    """Base class of the operators of forward processes: :class:`lbm_warp.Operator`, and what training and sampling ask beside.

    Attributes:
        levels: K; level K is the most corrupted one.
        linear: A(a u + b w) = a A(u) + b A(w), for the same seed.
        random: whether the seed matters.
        diagonal: whether A multiplies every cosine mode by a factor (:meth:`transfer`).
        unchanged: whether every level is the clean image.
        invertible: whether no mode is lost, so that :meth:`invert` can be asked.
        told_channels: channels of what a network may be told (:meth:`told`); 0 if there is nothing.
        peclet: advection against diffusion, 0 without a flow.
        moving: whether the flow changes in time.
        transport: whether the flow carries the image; without that an operator is a control.
        field_boundary: boundary of the velocity field, ``wall`` or ``periodic``.
    """

    transport: bool = True
    field_boundary: str = "wall"
    unchanged: bool = False
    invertible: bool = False
    told_channels: int = 0

    def check(self, size: Size) -> None:
        """Raise InputError if the operator does not work on images of this size."""

    def still(self) -> Operator:
        """The operator without what its seed draws; itself by default."""
        return self

    def in_one_flow(self) -> Operator:
        """The operator for many calls with the same seeds, as a sampler makes: a flow that does not change is made once; itself by
        default."""
        return self

    def widths(self, size: Size) -> np.ndarray:
        """Blur widths of levels 0..K [pixels], float64 [K + 1]; zeros for an operator that does not blur."""
        return np.zeros(self.levels + 1)

    def stretch(self, level: int, below: int, size: Size) -> float:
        """How many steps to the next level one step from ``level`` to ``below`` is worth, to first order."""
        return float(level - below)

    def transfer(self, level: Integers, size: Size) -> torch.Tensor:
        """Factor of every cosine mode at levels, float64 [N, 1, H, W], or [1, 1, H, W] for one; for diagonal operators."""
        if self.diagonal:
            raise InputError(f"{type(self).__name__} is diagonal and needs a method transfer(level, size), factors of the modes")
        raise InputError(f"{type(self).__name__} does not multiply cosine modes by factors: it is not diagonal")

    def transfer_rate(self, level: Integers, size: Size) -> tuple[torch.Tensor, torch.Tensor]:
        """:meth:`transfer` at levels 1 to K, and its derivative as in :meth:`rate`; for diagonal operators."""
        return _rate(
            lambda *levels: tuple(self.transfer(one, size) for one in levels), torch.as_tensor(level).reshape(-1), self.levels
        )

    def invert(self, y: torch.Tensor, level: Integers) -> torch.Tensor:
        """The image [N, C, H, W] whose level is y; for invertible operators."""
        return from_modes(to_modes(y) / self.transfer(level, Size(*y.shape[2:])).to(y))

    def rate(self, u0: torch.Tensor, level: Integers, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A_k(u0) at levels 1 to K, and its derivative in the time t = 1 - k / K, which runs from noise to image.

        By differences of three levels of one trajectory, of second order in their distance: 1 / K, or about 1 / 200 where there are
        more levels, because a lattice makes whole iterations, and where their number changes two neighbouring levels differ by an
        error of its own. They are central, and one-sided at the ends. Level 0 is not among them: a schedule of blur may begin with
        a jump.

        Args:
            u0: images, [N, C, H, W].
            level: 1 to K, one for all or int64 [N] on the CPU.
            seed: int64 [N] on the CPU.

        Raises:
            InputError: if there are fewer than three levels.
        """
        return _rate(lambda *levels: self.at(u0, levels, seed), torch.as_tensor(level).expand(len(u0)), self.levels)

    def told(self, level: Integers, seed: Integers, size: Size, device: Device) -> torch.Tensor:
        """What a network may be told beside the image, values around 0, float32 [N, told_channels, H, W]."""
        raise InputError(f"{type(self).__name__} has nothing to tell a network beside the image")

    def velocity(
        self, seed: Integers, height: int, width: int, device: Device = "cpu", sigma: float = 0.0, span: float = 0.0
    ) -> torch.Tensor:
        """Its velocity fields at a blur width [pixels], float32 [N, 2, height, width]; for operators with a flow."""
        raise InputError(f"{type(self).__name__} has no flow")

    def describe(self) -> str:
        """What sets it apart, in two lines."""
        return f"{type(self).__name__}\n{self.levels:,} levels"


@dataclass(frozen=True)
class Identity(Operator):
    """Every level is the clean image: a process with neither blur nor flow."""

    levels: int = 60
    """Number of levels K; level K is the most corrupted one."""
    linear = diagonal = invertible = unchanged = True
    solver = "identity"

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, 1, MOST_LEVELS)

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        return u0

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The images themselves, for every level."""
        return (u0,) * len(levels)

    def transfer(self, level: Integers, size: Size) -> torch.Tensor:
        """As :meth:`Operator.transfer`: ones."""
        return torch.ones((torch.as_tensor(level).numel(), 1, *size), dtype=torch.float64)

    def invert(self, y: torch.Tensor, level: Integers) -> torch.Tensor:
        return y

    def rate(self, u0: torch.Tensor, level: Integers, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`Operator.rate`: nothing changes."""
        return u0, torch.zeros_like(u0)

    def describe(self) -> str:
        return "no flow\nno blur"


@dataclass(frozen=True)
class Blur:
    """How the blur width grows with the level. Subclass it and write :meth:`widths`."""

    sigma_max: float = 0.5
    """Blur width of level K [image sides]."""

    def widths(self, t: np.ndarray, shorter: int) -> np.ndarray:
        """Blur widths of levels 1..K [pixels], rising, float64 [K].

        Args:
            t: the level as a share k / K of all, float64 [K].
            shorter: shorter side of the images [pixels].
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method widths(t, shorter)")

    def of_levels(self, levels: int, shorter: int) -> np.ndarray:
        """Blur widths of levels 0..K [pixels], float64 [K + 1].

        Raises:
            InputError: if the last is too small to be seen at this size, or larger than 100 sides.
        """
        least, last = getattr(self, "sigma_min", LEAST), self.sigma_max * shorter
        check_number("sigma_min", least, 1e-6)
        check_number("sigma_max", self.sigma_max, 0.0, 100.0)
        if not last >= least:
            got = f"got {last:g} px = {self.sigma_max:g} x {shorter} px"
            raise InputError(f"sigma_max must be at least sigma_min = {least:g} px, {got}")
        return np.concatenate([[0.0], self.widths(np.arange(1, levels + 1) / levels, shorter)])


@dataclass(frozen=True)
class Geometric(Blur):
    """Logarithmically spaced widths: inverse heat dissipation (Rissanen et al. 2023, section 3.1)."""

    sigma_min: float = 0.5
    """Blur width of level 1 [pixels]."""

    def widths(self, t: np.ndarray, shorter: int) -> np.ndarray:
        return self.sigma_min * (self.sigma_max * shorter / self.sigma_min) ** share(t)


@dataclass(frozen=True)
class Sine(Blur):
    """A squared sine of the level: blurring diffusion (Hoogeboom and Salimans 2023, appendix A)."""

    def widths(self, t: np.ndarray, shorter: int) -> np.ndarray:
        return self.sigma_max * shorter * np.sin(0.5 * np.pi * t) ** 2


@dataclass(frozen=True)
class Truncated(Blur):
    """Widths of blurs one after another, as in cold diffusion's generation (Bansal et al. 2022; public code, 128 px): step k of 300
    has a kernel of 27 pixels and standard deviation exp(0.01 k), so the kernel is cut off. The variances add up."""

    def widths(self, t: np.ndarray, shorter: int) -> np.ndarray:
        pixel, step = np.arange(-13, 14), np.exp(0.01 * np.arange(300))[:, None]
        kernel = np.exp(-0.5 * (pixel / step) ** 2)
        variance = np.cumsum((kernel * pixel**2).sum(axis=1) / kernel.sum(axis=1))
        return self.sigma_max * shorter * np.sqrt(np.interp(300.0 * t, np.arange(301), [0.0, *variance / variance[-1]]))


@dataclass(frozen=True)
class _Blurring(Operator):
    """What operators that blur have in common."""

    peclet: float = 0.0
    """Peclet number Pe = V L / alpha, advection against diffusion, >= 0."""
    offset: float = 0.0
    """Background c that the flow acts on, A(u + c) - c; it matters for compressible flows only."""
    transport: bool = True
    """Whether the flow transports the image. If not, the image is only blurred, and the flow acts on the background alone:
    A_0(u) + A(c) - c, the same structured noise without transport. With waves, c includes the mean of the image."""
    boundary: Literal["wall", "periodic"] = "wall"
    """Boundary condition of the image, wall or periodic."""
    blur: Blur = Geometric()
    """How the blur width grows with the level."""
    levels: int = 200
    """Number of levels K; level K is the most corrupted one."""

    def __post_init__(self) -> None:
        check_number("peclet", self.peclet, 0, 10**6)
        check_boundary(self.boundary)
        check_integer("levels", self.levels, 1, MOST_LEVELS)
        if not isinstance(self.blur, Blur):
            raise InputError(f"blur must be a diffusion.Blur (subclass it), got {type(self.blur).__name__}")

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the seed matters: there is a flow."""
        return self.peclet > 0.0

    @property
    def linear(self) -> bool:  # type: ignore[override]
        """Whether the operator is linear: it has no background."""
        return self.peclet == 0.0 or self.offset == 0.0

    @property
    def diagonal(self) -> bool:  # type: ignore[override]
        """Whether it multiplies every cosine mode by a factor: there is no flow, and the boundary is a wall."""
        return self.peclet == 0.0 and self.boundary == "wall"

    @property
    def field_boundary(self) -> str:  # type: ignore[override]
        """Boundary of the velocity field: that of the image."""
        return self.boundary

    def check(self, size: Size) -> None:
        self.iterations(*size)

    def widths(self, size: Size) -> np.ndarray:
        return self.blur.of_levels(self.levels, size.shorter)

    def stretch(self, level: int, below: int, size: Size) -> float:
        """As :meth:`Operator.stretch`: under blur alone a cosine mode obeys du / d log(sigma) = -kappa^2 sigma^2 u."""
        sigma = self.widths(size)
        return float(np.log(sigma[level] / sigma[below]) / np.log(sigma[level] / sigma[level - 1]))

    @functools.cached_property
    def _solvers(self) -> dict[int, Solver]:
        return {}

    def solver_at(self, size: Size) -> Solver:
        """The solver for images of this size."""
        if size.shorter not in self._solvers:
            self._solvers[size.shorter] = self.build(Schedule(self.blur.of_levels(self.levels, size.shorter)))
        return self._solvers[size.shorter]

    def build(self, schedule: Schedule) -> Solver:
        """The solver for blur widths in pixels."""
        raise NotImplementedError

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return self.at(u0, (level,), seed)[0]

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.solver_at(Size(*u0.shape[2:])).at(u0, levels, seed)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`lbm_warp.Operator.trajectory`, in one pass."""
        return self.solver_at(Size(*u0.shape[2:])).trajectory(u0, seed)

    def iterations(self, height: int, width: int) -> np.ndarray:
        return self.solver_at(Size(height, width)).iterations(height, width)

    def velocity(
        self, seed: Integers, height: int, width: int, device: Device = "cpu", sigma: float = 0.0, span: float = 0.0
    ) -> torch.Tensor:
        return self.solver_at(Size(height, width)).velocity(seed, height, width, device, sigma)


@dataclass(frozen=True)
class FlowAndBlur(_Blurring):
    """Images carried by a turbulent flow while they blur: advection-diffusion (:class:`lbm_warp.AdvectionDiffusion`)."""

    turbulence: Turbulence = CurlNoise()
    """Generator of the velocity field."""
    turbulence_time: float = 0.0
    """Rate of change of the flow, >= 0: 0 is a frozen flow; at 1 an eddy as large as the image turns over in its own time."""
    blur_floor: float = 0.0
    """Floor d of the blur, 0 to 1: (1 - d) A_k + d, so no mode of the image is lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("turbulence time", self.turbulence_time, 0.0)
        check_number("blur floor", self.blur_floor, 0.0, 1.0)
        if not isinstance(self.turbulence, Turbulence) or getattr(self.turbulence, "__hash__", None) is None:
            kind = type(self.turbulence).__name__
            raise InputError(f"turbulence must be a lbm_warp.Turbulence that can be hashed (a frozen dataclass), got {kind}")

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the seed matters: there is a flow that depends on it."""
        return self.peclet > 0.0 and self.turbulence.random

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Whether the flow changes in time."""
        return self.peclet > 0.0 and self.turbulence_time > 0.0

    @property
    def invertible(self) -> bool:  # type: ignore[override]
        """Whether no mode is lost: there is a floor, and no flow."""
        return self.diagonal and self.blur_floor > 0.0

    @property
    def told_channels(self) -> int:  # type: ignore[override]
        """Two of a frozen flow: how far it has carried the image."""
        return 0 if self.moving else 2

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.transport:
            images = super().at(u0, levels, seed)
        else:
            blurred = replace(self.still(), blur_floor=0.0).at(u0, levels, seed)
            noise = super().at(torch.zeros_like(u0), levels, seed)
            images = tuple(one + other for one, other in zip(blurred, noise, strict=True))
        return tuple(self._floored(u, u0) for u in images)

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """As :meth:`lbm_warp.Operator.trajectory`, in one pass."""
        if self.transport:
            yield from ((level, self._floored(u, u0)) for level, u in super().trajectory(u0, seed))
            return
        noises = super().trajectory(torch.zeros_like(u0), seed)
        blurs = replace(self.still(), blur_floor=0.0).trajectory(u0, seed)
        for (level, blurred), (_, noise) in zip(blurs, noises, strict=True):
            yield level, self._floored(blurred + noise, u0)

    def _floored(self, u: torch.Tensor, u0: torch.Tensor) -> torch.Tensor:
        return torch.lerp(u, u0, self.blur_floor) if self.blur_floor > 0.0 else u

    def build(self, schedule: Schedule) -> lbm_warp.AdvectionDiffusion:
        return lbm_warp.AdvectionDiffusion(
            schedule,
            peclet=self.peclet,
            turbulence=self.turbulence,
            boundary=self.boundary,
            offset=self.offset,
            turbulence_time=self.turbulence_time,
        )

    def still(self) -> FlowAndBlur:
        """As :meth:`Operator.still`: the blur alone."""
        return FlowAndBlur(boundary=self.boundary, blur=self.blur, levels=self.levels, blur_floor=self.blur_floor)

    def in_one_flow(self) -> FlowAndBlur:
        """As :meth:`Operator.in_one_flow`: it keeps the last velocity field."""
        return replace(self, turbulence=Remembering(self.turbulence)) if self.random and not self.moving else self

    def transfer(self, level: Integers, size: Size) -> torch.Tensor:
        """As :meth:`Operator.transfer`, (1 - d) exp(-kappa^2 sigma_k^2 / 2) + d with the floor d of the blur."""
        ky, kx = (cosines(side)[0] for side in size)
        widths = torch.from_numpy(self.widths(size))[torch.as_tensor(level).reshape(-1)][:, None, None, None]
        factor = torch.exp(-0.5 * widths.square() * (ky.square()[:, None] + kx.square()))
        return torch.lerp(factor, torch.ones_like(factor), self.blur_floor)

    def told(self, level: Integers, seed: Integers, size: Size, device: Device) -> torch.Tensor:
        """How far the flow has carried the image: at t = sigma_k^2 / (2 alpha) V t v = Pe sigma_k^2 / (2 L) v pixels."""
        velocity = self.turbulence.velocity(seed, *size, boundary=self.boundary, device=device)
        carried = torch.from_numpy(self.peclet * self.widths(size) ** 2 / (2.0 * size.shorter))[torch.as_tensor(level).reshape(-1)]
        return carried.to(velocity)[:, None, None, None] * velocity

    def describe(self) -> str:
        names = (name for name, turbulence in TURBULENCE.items() if turbulence == self.turbulence)
        flow = f"Pe = {self.peclet:g}, {next(names, type(self.turbulence).__name__)}" if self.peclet > 0.0 else "no flow"
        return f"{flow}\nblur to {self.blur.sigma_max:g} L"


@dataclass(frozen=True)
class Waves(_Blurring):
    """Images on a background in travelling waves, as published (:class:`lbm_warp.WaveAdvectionDiffusion`)."""

    wave_speed: float = 0.0
    """Speed W of the waves as W L / alpha, >= 0; L is the image side. Published: 98.3 at 128 px."""
    field_boundary = "periodic"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("wave speed", self.wave_speed, 0.0)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Whether the waves move."""
        return self.peclet > 0.0 and self.wave_speed > 0.0

    def build(self, schedule: Schedule) -> lbm_warp.WaveAdvectionDiffusion:
        return lbm_warp.WaveAdvectionDiffusion(
            schedule,
            peclet=self.peclet,
            wave_speed=self.wave_speed,
            offset=self.offset,
            boundary=self.boundary,
            transport=self.transport,
        )

    def still(self) -> FlowAndBlur:
        """As :meth:`Operator.still`: the blur alone."""
        return FlowAndBlur(boundary=self.boundary, blur=self.blur, levels=self.levels)

    def transfer(self, level: Integers, size: Size) -> torch.Tensor:
        return self.still().transfer(level, size)

    def describe(self) -> str:
        flow = f"Pe = {self.peclet:g}, waves" if self.peclet > 0.0 else "no flow"
        return f"{flow}\nblur to {self.blur.sigma_max:g} L"


def _rate(at: Callable[..., tuple[torch.Tensor, ...]], level: torch.Tensor, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [N, ...] at levels int64 [N], 1 to K, and their derivatives in t = 1 - k / K, as :meth:`Operator.rate` says."""
    if levels < 3:
        raise InputError(f"a derivative in time needs at least 3 levels, got {levels}")
    step = max(1, levels // STEPS)
    # Which of three levels the own one is: the middle one, near the ends the lowest or the highest; and the weights of the three.
    own = 1 - (level <= step).long() + (level > levels - step).long()
    weights = torch.tensor([[-1.5, 2.0, -0.5], [-0.5, 0.0, 0.5], [0.5, -2.0, 1.5]], dtype=torch.float64)[own] * (-levels / step)
    three = torch.stack(at(*(level + step * (place - own) for place in range(3))))
    weights = weights.T.to(three.device, three.dtype, non_blocking=True)[:, :, None, None, None]
    values = three[own.to(three.device, non_blocking=True), torch.arange(three.shape[1], device=three.device)]
    return values, (weights * three).sum(dim=0)
