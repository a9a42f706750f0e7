"""Imaging through the turbulent atmosphere, in physical units.

Air of uneven temperature bends light. The structure constant of its refractive index is Cn2(z) at the distance z from the camera.
A camera with the aperture D sees every point of the scene shifted by a random angle, its tilt, and blurred by what is left. After
Fried (1966), Noll (1976) and Tatarskii (1971), with the footprint of the light at z, gamma(z) D wide (gamma = 1 for a plane wave,
1 - z / L for a spherical one):

    r0^(-5/3) = 0.423 (2 pi / lambda)^2 integral of Cn2(z) gamma(z)^(5/3) dz                    Fried parameter
    var(tilt) = 0.182 (lambda / D)^2 (D / r0)^(5/3)                                              on one axis
    T(f)      = T_aperture exp(-3.44 (lambda f / r0)^(5/3) (1 - (lambda f / D)^(1/3)))           after the tilt is taken out

No spectrum of the tilt over the field of view is guessed. The tilt is a sum of waves of the phase with Kolmogorov's spectrum, a
random direction and a random distance z each; each wave gives what the aperture makes of it. So the covariance over the field and
in time is that of the theory, for any profile and down to the longest waves. The waves are drawn as in the sparse spectrum of
Charnotskii (2013): at random inside of the cells of a partition of the spectrum, not on a grid, so that a field has no period.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from lbm_warp.checks import Device, InputError, Integers, as_tensor, check_integer, check_levels, check_number
from lbm_warp.heat import cosines, from_modes, full_precision, to_modes
from lbm_warp.interop import not_traced
from lbm_warp.operator import Operator
from lbm_warp.random import normal
from lbm_warp.turbulence import FieldRequest, requested

# Kolmogorov's constants, exactly: 2 (24/5 Gamma(6/5))^(5/6) = 6.884 = 2 x 3.442, and what follows from it (Noll 1976).
STRUCTURE, PATH, TILT = 3.441939, 0.4233633, 0.1819238
# Share of each of the second-order aberrations (defocus, two of astigmatism) in the variance of the phase without its tilt. The
# transfer function's exponent at which their effect is taken, and how fast it comes, so that its rms is right at small exponents.
SECOND_ORDER = 0.0232 / 0.134
EXPONENT, RATE = 2.5, 0.64
# Waves that make the tilt, and those that make the second-order aberrations; cells of the tables that they are drawn from.
WAVES = {1: 768, 2: 256}
CELLS = 1024
# Steps of two irrational numbers are spread evenly over the unit square (Roberts' R2 sequence).
EVEN = (0.7548776662466927, 0.5698402909980532)
# Limits of what is measured in physical units; a length in nm or mm is far outside.
LIMITS = {"aperture": ("m", 1e-4, 100.0), "path": ("m", 0.01, 1e9), "wavelength": ("m", 1e-8, 1e-3)}
LIMITS |= {"view": ("rad", 1e-9, 1.0), "time": ("s", -1e6, 1e6)}
AROUND = math.pi * (np.arange(64) + 0.5) / 64


@dataclass(frozen=True)
class OpticalTurbulence(Operator):
    """Pictures as a camera sees them through turbulent air: shifted by the tilt field, and blurred.

    Left out: scintillation, and all higher aberrations beyond their mean transfer function and its local strength. This is right
    where scintillation is weak (``rytov`` below about 0.3) and the camera cannot resolve single speckles, D / r0 up to about 10.

    Level k sees k / K of the Cn2: r0^(-5/3) and the variance of the tilt grow linearly with the level, D / r0 as (k / K)^(3/5).
    From level 1 on the camera's aperture blurs, too. The air of a seed is the same at every level, size and time.

    A picture is an angle: its shorter side is ``view`` wide at every number of pixels. It is carried as grey values, without the
    Jacobian of a flow, since air bends light and moves no matter; beyond the borders are mirror images.

    Args:
        d_over_r0: D / r0 at level K, above 0, for the same Cn2 along the whole path. Or give ``cn2``.
        cn2: structure constant of the refractive index [m^(-2/3)]: one number, or at equal steps from the camera to the end of
            the path, linear between them. About 1e-15 at night and 1e-13 above hot ground.
        aperture: diameter D of the lens [m].
        path: length L of the path [m].
        wavelength: of the light [m].
        view: angle of the shorter side of a picture [rad]; that of a pixel times the number of pixels.
        spherical: the scene is at the end of the path. If not, it is far behind the turbulent air (a plane wave), as a star is.
        wind: across the path towards the right [m/s], or its components (v_x, v_y), y down. The air moves without a change.
        time: of the exposure [s]; ``dataclasses.replace(optics, time=t)`` is another frame of the same air.
        outer_scale: of von Karman's spectrum [m], infinite by default. It makes the tilt smaller and is neglected in the rest.
        long_exposure: the mean over all moments instead of one: no shifts, and Fried's long-exposure transfer function.
        levels: K.

    Raises:
        InputError: if a value is out of its range, or values contradict each other.
    """

    d_over_r0: float | None = None
    cn2: float | Sequence[float] | np.ndarray | torch.Tensor | None = None
    aperture: float = 0.1
    path: float = 1000.0
    wavelength: float = 550e-9
    view: float = 1e-3
    spherical: bool = True
    wind: float | tuple[float, float] = 0.0
    time: float = 0.0
    outer_scale: float | None = None
    long_exposure: bool = False
    levels: int = 50

    linear = True

    def __post_init__(self) -> None:
        for name, (unit, low, high) in LIMITS.items():
            check_number(f"{name} [{unit}]", getattr(self, name), low, high)
        check_integer("levels", self.levels, 1)
        for name in ("spherical", "long_exposure"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, got {value!r}")
        if (self.d_over_r0 is None) == (self.cn2 is None):
            raise InputError("the strength is either d_over_r0 or cn2 (which gives r0, with the path): give one of the two")
        if self.d_over_r0 is not None:
            check_number("d_over_r0", self.d_over_r0, 1e-3, 1e3)
        else:
            object.__setattr__(self, "cn2", _numbers("cn2", self.cn2, 0.0, 1e-6))
            if not np.any(self.cn2):
                raise InputError("cn2 must be above 0 somewhere: there is no turbulence; leave the operator out")
        object.__setattr__(self, "wind", _numbers("wind", self.wind, -1e3, 1e3))
        if np.shape(self.wind) not in ((), (2,)):
            raise InputError(f"wind must be one number, towards the right, or two components (v_x, v_y), got {self.wind!r}")
        if self.outer_scale is not None:
            check_number("outer_scale [m]", self.outer_scale, 1e-3)
            if self.r0 > self.outer_scale:
                raise InputError(
                    f"r0, {self.r0:.3g} m, is above the outer scale, {self.outer_scale:g} m: the air has no eddies of that size; "
                    "give stronger turbulence, or leave outer_scale out"
                )

    @property
    def random(self) -> bool:  # type: ignore[override]
        """Whether the seed matters: not in a long exposure."""
        return not self.long_exposure

    @functools.cached_property
    def r0(self) -> float:
        """Fried parameter at level K [m]."""
        if self.d_over_r0 is not None:
            return self.aperture / self.d_over_r0
        return float((PATH * self._wavenumber**2 * self._air[1].sum()) ** -0.6)

    @property
    def strength(self) -> float:
        """D / r0 at level K."""
        return self.aperture / self.r0

    @property
    def tilt_rms(self) -> float:
        """Standard deviation of the tilt on one axis at level K [rad]."""
        return self.wavelength / self.aperture * math.sqrt(TILT * self._kept * self.strength ** (5.0 / 3.0))

    @property
    def rytov(self) -> float:
        """Rytov's variance at level K, that of the log intensity of a point. Above about 0.3 scintillation is not weak."""
        z, weight = self._air
        total = self.r0 ** (-5.0 / 3.0) / (PATH * self._wavenumber**2)
        mean = np.average((z / self._footprint(z)) ** (5.0 / 6.0), weights=weight)
        return float(2.25 * self._wavenumber ** (7.0 / 6.0) * total * mean)

    def transfer_function(self, frequency: torch.Tensor | np.ndarray | float, level: int | None = None) -> torch.Tensor:
        """Mean transfer function of camera and air: of short exposures without their tilt, or of a long one (Fried 1966).

        Args:
            frequency: cycles per radian, an array or tensor of any shape.
            level: 0 to K; K by default.

        Returns:
            float64 of this shape, from 1 at frequency 0 to 0 beyond D / lambda.

        Raises:
            InputError: if the frequency is no such thing, or the level is out of range.
        """
        frequency = as_tensor("frequency", frequency)
        share = self._share(self.levels if level is None else level, 1).to(frequency.device)
        aperture, exponent = self._transfer(frequency.abs())
        return torch.where(share > 0.0, aperture * torch.exp(-share * exponent), 1.0)

    @not_traced
    def tilt(
        self, seed: Integers, height: int, width: int, *, level: Integers | None = None, device: Device = "cpu"
    ) -> torch.Tensor:
        """The tilt field of every seed: the light at pixel x comes from x - tilt(x) of the scene.

        Args:
            seed: one integer, or N of them.
            height, width: size of the picture [pixels], >= 2.
            level: 0 to K, one or N; K by default.
            device: device of the result.

        Returns:
            Pixels, float32 [N, 2, height, width], components (x, y) with x along the width; zero for a long exposure.

        Raises:
            InputError: if a value is out of range.
        """
        ask = requested(seed, height, width, "wall", device)
        share = self._share(self.levels if level is None else level, len(ask.seed)).to(ask.device, torch.float32)
        if self.long_exposure:
            return torch.zeros((len(share), 2, height, width), dtype=torch.float32, device=ask.device)
        rms = self.wavelength / self.aperture * math.sqrt(TILT * self.strength ** (5.0 / 3.0)) / self._pixel(height, width)
        return rms * share.sqrt()[:, None, None, None] * self._aberrations(ask, order=1)

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        u, (height, width) = u0.to(torch.promote_types(u0.dtype, torch.float32)), u0.shape[2:]
        if self.random:
            u = shifted(u, self.tilt(seed, height, width, level=level, device=u.device).to(u))
        f = [cosines(size)[0] / (2.0 * torch.pi * self._pixel(height, width)) for size in (height, width)]
        aperture, exponent = (part.to(u) for part in self._transfer(torch.hypot(f[0][:, None], f[1])))
        exponent = self._share(level, len(u)).to(u)[:, None, None, None] * exponent
        modes = aperture * torch.exp(-exponent) * to_modes(u)
        u = from_modes(modes)
        if self.random:
            # With the sum W of the squares here, the factor at the exponent E is exp(-c W E) (1 + 2 c E)^(3/2) times the mean one.
            # This is above 0, and 1 in the mean. So is 1 + (this at one E, minus 1) (1 - exp(-rate E)), which is a product of a
            # function of the place and one of the frequency.
            squares = self._aberrations(requested(seed, height, width, "wall", u.device), order=2).square().sum(1, keepdim=True)
            strong = SECOND_ORDER * EXPONENT
            sharper = torch.exp(-strong * squares) * (1.0 + 2.0 * strong) ** 1.5 - 1.0
            u = u + sharper.to(u) * from_modes((1.0 - torch.exp(-RATE * exponent)) * modes)
        return u.to(u0.dtype)

    @property
    def _wavenumber(self) -> float:
        return 2.0 * math.pi / self.wavelength

    def _pixel(self, height: int, width: int) -> float:
        """Angle of a pixel [rad]."""
        return self.view / min(height, width)

    def _share(self, level: Integers, count: int) -> torch.Tensor:
        """k / K, the share of the Cn2, float64 [count]."""
        return check_levels(level, count, 0, self.levels).double() / self.levels

    def _footprint(self, z: np.ndarray) -> np.ndarray:
        """gamma(z): width of the light of a point at the distance z, in apertures."""
        return 1.0 - z / self.path if self.spherical else np.ones_like(z)

    @functools.cached_property
    def _air(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances along the path [m], and Cn2 gamma^(5/3) dz there [m^(1/3)] (for ``d_over_r0``, without its unit)."""
        profile = np.atleast_1d(1.0 if self.cn2 is None else self.cn2)
        z = self.path * (np.arange(CELLS) + 0.5) / CELLS
        cn2 = np.interp(z, np.linspace(0.0, self.path, len(profile)), profile)
        return z, cn2 * self._footprint(z) ** (5.0 / 3.0) * self.path / CELLS

    def _drawn(self, order: int, share: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Waves of the phase for numbers in (0, 1): z [m], cycles per metre, energy (less by the outer scale if of the tilt)."""
        z, of_place = _drawn_from(np.linspace(0.0, self.path, CELLS + 1), self._air[1], place)
        size, of_size = _drawn_from(*_sizes(order), share)
        frequency = size / (self.aperture * self._footprint(z))
        lowest = 1.0 / self.outer_scale if self.outer_scale is not None and order == 1 else 0.0
        return z, frequency, of_place * of_size * (1.0 + (lowest / frequency) ** 2) ** (-11.0 / 6.0)

    @functools.cached_property
    def _kept(self) -> float:
        """Variance of the tilt relative to an infinite outer scale."""
        if self.outer_scale is None:
            return 1.0
        middles = (np.arange(CELLS) + 0.5) / CELLS
        return float(self._drawn(1, middles, middles[:, None])[2].mean())

    def _aberrations(self, ask: FieldRequest, order: int) -> torch.Tensor:
        """Aberrations over the field of view in units of their rms without outer scale, float32 [N, F, height, width].

        The last ones are kept: the levels of a trajectory, and the steps of a solver, have one air.
        """
        kept: dict[int, tuple[FieldRequest, torch.Tensor]] = self.__dict__.setdefault("_last_air", {})
        last, field = kept.get(order, (None, torch.empty(0)))
        if last is None or not last.same_as(ask):
            with torch.inference_mode(False):  # a later call may be outside of it
                field = self._waves(ask, order)
            kept[order] = replace(ask, seed=ask.seed.clone()), field
        return field

    def _waves(self, ask: FieldRequest, order: int) -> torch.Tensor:
        """The sum of the waves of the phase that :meth:`_aberrations` gives.

        Of order 1, the tilt along x and y; of order 2, defocus and two of astigmatism. A wave exp(2 pi i f.r) of the phase at z
        is exp(2 pi i f.(r gamma + theta z - wind t)) in the aperture, for a point of the scene in the direction theta.
        """
        count = WAVES[order]
        numbers = torch.special.ndtr(normal(ask.seed, (len(ask.seed), 2, 2 + 2 * WAVES[1]))[:, order - 1].double()).numpy()
        start, inside, phase = numbers[:, :2, None], numbers[:, 2 : 2 + count], numbers[:, -count:]
        number = np.arange(count)
        place, direction = (start + number * np.array(EVEN)[:, None]).swapaxes(0, 1) % 1.0
        z, frequency, energy = self._drawn(order, (number + inside) / count, place)
        angle = 2.0 * np.pi * direction
        way = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        # The mean of cos^2 is 1/2 along a wave, and again 1/2 over its directions for all but the defocus.
        shape = way if order == 1 else np.stack([np.full_like(angle, 0.5**0.5), np.cos(2.0 * angle), np.sin(2.0 * angle)], axis=1)
        wind = self.wind if isinstance(self.wind, tuple) else (self.wind, 0.0)
        turns = phase - frequency * np.einsum("ncj,c->nj", way, wind) * self.time
        pixels = [self._pixel(ask.height, ask.width) * (np.arange(size) + 0.5 - size / 2) for size in (ask.height, ask.width)]
        across = (frequency * z)[:, None] * way
        parts = across, turns, shape * np.sqrt(4.0 * energy / count)[:, None], *pixels
        return _sum(*(torch.from_numpy(part).to(ask.device) for part in parts))

    def _transfer(self, frequency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Transfer function of the aperture, and the exponent of that of the air at level K; of the shape of ``frequency``."""
        x = (self.wavelength / self.aperture * frequency.double()).clamp(max=1.0)
        aperture = 2.0 / torch.pi * (torch.acos(x) - x * (1.0 - x.square()).sqrt())
        tilt_left_out = 1.0 - self._kept if self.long_exposure else 1.0
        exponent = STRUCTURE * self.strength ** (5.0 / 3.0) * x ** (5.0 / 3.0) * (1.0 - tilt_left_out * x ** (1.0 / 3.0))
        return aperture, exponent


def _numbers(name: str, value: Any, low: float, high: float) -> float | tuple[float, ...]:
    """A number or several, checked; several as a tuple, which can be compared and written down."""
    if isinstance(value, torch.Tensor) and value.requires_grad:
        raise InputError(f"the operator gives no gradient in {name}: pass {name}.detach()")
    value = value.tolist() if isinstance(value, np.ndarray | torch.Tensor) else value
    several = value if isinstance(value, tuple | list) else [value]
    for number in several:
        check_number(name, number, low, high)
    numbers = tuple(float(number) for number in several)
    return numbers if several is value else numbers[0]


def shifted(u: torch.Tensor, way: torch.Tensor) -> torch.Tensor:
    """Images [N, C, H, W] at x - way(x) [pixels, N, 2, H, W]: the cubic spline through their pixels and mirror images beyond.

    A cubic B-spline is a mean of linear interpolations at four places (Sigg and Hadwiger 2005).
    """
    ky, kx = (cosines(size)[0].to(u) for size in u.shape[2:])
    knots = from_modes(to_modes(u) / ((2.0 + ky.cos())[:, None] * (2.0 + kx.cos()) / 9.0))
    (height, width), total = u.shape[2:], torch.zeros_like(u)
    rows, columns = (torch.arange(size, device=u.device) for size in (height, width))
    for weight_y, y in _linear_parts(rows[:, None] - way[:, 1]):
        for weight_x, x in _linear_parts(columns - way[:, 0]):
            grid = torch.stack([(2.0 * x + 1.0) / width - 1.0, (2.0 * y + 1.0) / height - 1.0], dim=-1)
            values = functional.grid_sample(knots, grid, padding_mode="reflection", align_corners=False)
            total = total + (weight_y * weight_x)[:, None] * values
    return total


def _linear_parts(x: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """Weights and places of the two linear interpolations that make a cubic B-spline at x."""
    first = x.floor()
    t = x - first
    w0, w1, w3 = (1.0 - t) ** 3 / 6.0, 2.0 / 3.0 - t**2 + t**3 / 2.0, t**3 / 6.0
    left, right = w0 + w1, 1.0 - w0 - w1
    return (left, first - 1.0 + w1 / left), (right, first + 1.0 + w3 / right)


def _sum(across: torch.Tensor, turns: torch.Tensor, amplitude: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Sum of amplitude cos(2 pi (across . (x, y) + turns)), float32 [N, F, H, W].

    Args:
        across: cycles per radian along x and y, float64 [N, 2, J].
        turns: phases, float64 [N, J].
        amplitude: float64 [N, F, J].
        y, x: angles of the rows and of the columns [rad], float64 [H] and [W].
    """
    row = 2.0 * torch.pi * ((across[:, 1] * y[:, None, None] + turns) % 1.0).swapaxes(0, 1)
    column = 2.0 * torch.pi * ((across[:, 0, :, None] * x) % 1.0)
    # cos(a + b) = cos a cos b - sin a sin b: a product of matrices.
    rows = torch.cat([row.cos(), -row.sin()], dim=2).float()
    columns = torch.cat([column.cos(), column.sin()], dim=1).float()
    weights = amplitude.float().repeat(1, 1, 2)
    with full_precision(rows.device):
        return torch.stack([(rows * weight[:, None]) @ columns for weight in weights.unbind(dim=1)], dim=1)


@functools.cache
def _sizes(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Sizes s = D f gamma of waves, [CELLS + 1], and the energy of aberrations of this order between them.

    The aperture turns a wave of size s into 2 J_(n+1)(pi s) / (pi s) of its amplitude in an aberration of order n (Noll 1976);
    the phase has s^(-11/3) of energy for an area of frequencies. Equal steps of s^(1/3) have equal energy at small s and order 1.
    """
    edges = np.linspace(0.0, (40.0 / np.pi) ** (1.0 / 3.0), CELLS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    # J_m(x) / x^m up to a factor, by Poisson's integral.
    response = np.cos(np.pi * middle[:, None] ** 3 * np.cos(AROUND)) @ np.sin(AROUND) ** (2 * order + 2)
    energy = middle ** (6 * order - 6) * response**2
    return edges**3, energy


def _drawn_from(edges: np.ndarray, energy: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers with a density given as energies between edges, for shares in (0, 1), and weights that have the mean 1.

    They are drawn by the root of the energy: many weak waves at the ends of a spectrum, where few strong ones would be seen.
    """
    root = np.sqrt(energy)
    below = np.concatenate([[0.0], root.cumsum()]) / root.sum()
    cell = np.searchsorted(below, share, side="right") - 1
    return np.interp(share, below, edges), root[cell] * root.sum() / energy.sum()
