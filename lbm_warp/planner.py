"""The plan of a trajectory: the lattice iterations that lead from the clean image to every level of a schedule.

The fast solver uses the D2Q9 lattice with relaxation time 1 (``lbm_warp.kernels.rules``). Its diffusivity is alpha = theta / 2 in
lattice units (one cell, one iteration). The lattice temperature theta = c_s^2 is free, so a level between two iterations is read
out by one partial iteration with exactly the diffusivity that is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lbm_warp.checks import InputError
from lbm_warp.schedule import Schedule


@dataclass(frozen=True)
class Scheme:
    """The numbers of the scheme.

    An image is coarsened once it has nothing left at the scale of the grid, but the flow must stay resolved, and so must the noise
    that a compressible flow makes of its source (background and image). This noise is proportional to Pe x source, and its error
    falls with the square of the number of cells. With the defaults the error is at most 0.13/255 rms and 0.9/255 anywhere.

    Attributes:
        theta_sharp: lattice temperature while the image is sharp. At 1/3 diffusion is fourth-order accurate.
        theta_smooth: lattice temperature once the image is smooth. 1/2 takes a third fewer iterations than 1/3. A mode of
            wavenumber k decays too fast by a fraction k^2 / 24, which is negligible in a smooth image.
        smooth_from_sigma_px: blur width from which an image is smooth [pixels].
        max_velocity_lu: largest velocity component [cells per iteration]. The scheme is stable up to 0.5 and somewhat beyond.
        peak_to_rms: largest velocity component in units of its rms. A Gaussian field exceeds 6 with probability 2e-9 per cell.
        coarsen_from_sigma_lu: blur width from which an image is coarsened [cells].
        min_cells: the shorter side of a coarser grid has at least this many cells,
        min_cells_per_peclet: at least this many x Pe,
        min_cells_per_root_source: and at least this many x sqrt(Pe x source).
        updates_per_turnover: updates of a velocity that changes in time, per turnover time of an eddy as large as the image,
        updates_per_grid: but not more than this on one grid.
    """

    theta_sharp: float = 1.0 / 3.0
    theta_smooth: float = 1.0 / 2.0
    smooth_from_sigma_px: float = 3.0
    max_velocity_lu: float = 0.5
    peak_to_rms: float = 6.0
    coarsen_from_sigma_lu: float = 4.0
    min_cells: int = 32
    min_cells_per_peclet: float = 5.0
    min_cells_per_root_source: float = 62.0
    updates_per_turnover: int = 64
    updates_per_grid: float = np.inf


DEFAULT_SCHEME = Scheme()
# Widest blur, in longer sides of the images: 3e-9 are left of the slowest mode, and the iterations grow with its square.
WIDEST = 2.0
# Most iterations on a grid: days.
MOST_ITERATIONS = 10**9


def check_widest(sigma: float, height: int, width: int) -> None:
    """Raise InputError if a blur width [pixels] is more than :data:`WIDEST` longer sides of images of this size [pixels]."""
    if sigma > (most := WIDEST * max(height, width)):
        flat = "where nothing but the mean is left of an image"
        raise InputError(f"sigma_max must be at most {WIDEST:g} longer sides = {most:g} px, {flat}, got {sigma:g} px")


@dataclass(frozen=True)
class Grid:
    """The iterations on one grid, with cells of ``factor`` x ``factor`` pixels.

    Attributes:
        factor: side of a cell [pixels], a power of two.
        start: sigma^2 at the first iteration [square pixels].
        theta: lattice temperature of the full iterations before ``smooth_from``, and of the others.
        smooth_from: index of the first iteration with ``theta[1]``.
        iterations: number of full iterations; the image then goes to the next coarser grid or, on the last grid, to level K.
        velocity_per_theta: Pe / (2 L), L in cells. The velocity of an iteration is this x its theta x the field of unit rms.
    """

    factor: int
    start: float
    theta: tuple[float, float]
    smooth_from: int
    iterations: int
    velocity_per_theta: float

    def sigma2(self, iteration: float) -> float:
        """sigma^2 after this many full iterations on this grid [square pixels]."""
        sharp = min(iteration, self.smooth_from)
        return self.start + self.factor**2 * (sharp * self.theta[0] + (iteration - sharp) * self.theta[1])


@dataclass(frozen=True)
class Plan:
    """A schedule as lattice iterations: full iterations of fixed diffusivity, and one partial iteration to read out each level.

    The full iterations do not depend on the levels. Short steps from level to level would only be second-order at the scale of
    the grid.

    Attributes:
        grids: the grids of the trajectory, finest first.
        level_grid: index into ``grids`` for levels 0..K, int64 [K + 1].
        level_iterations: full iterations on that grid before levels 0..K are read out, int32 [K + 1].
        level_theta: lattice temperature of the partial iteration that reads out levels 0..K, float64 [K + 1]; 0 if none is needed.
    """

    grids: tuple[Grid, ...]
    level_grid: np.ndarray
    level_iterations: np.ndarray
    level_theta: np.ndarray

    @classmethod
    def build(
        cls,
        schedule: Schedule,
        peclet: float,
        height: int,
        width: int,
        *,
        source: float = 0.0,
        coarsen: bool = True,
        theta: float | None = None,
        scheme: Scheme = DEFAULT_SCHEME,
    ) -> Plan:
        """The plan for images of ``height`` x ``width`` pixels.

        Args:
            schedule: blur widths of the levels.
            peclet: Peclet number, >= 0.
            height, width: size of the images [pixels].
            source: the density a compressible flow acts on, background and image; 0 for a flow without divergence.
            coarsen: continue on coarser grids where image and flow allow it.
            theta: one lattice temperature for all full iterations, instead of the scheme's two.
            scheme: the numbers of the scheme.

        Raises:
            InputError: if the flow is too fast for the given ``theta``, the blur wider than :data:`WIDEST` allows, or
                there are more than a billion iterations on a grid.
        """
        check_widest(schedule.sigma[-1], height, width)
        length = min(height, width)
        # Iterations add theta factor^2 each to sigma^2, because alpha t = sigma^2 / 2 and alpha = theta / 2.
        variance = schedule.sigma**2
        level_grid = np.zeros(len(variance), dtype=np.int64)
        level_iterations = np.zeros(len(variance), dtype=np.int32)
        level_theta = np.zeros(len(variance))
        grids: list[Grid] = []
        start, factor = 0.0, 1
        while True:
            # u = Pe alpha / L vhat with alpha = theta / 2, in cells of this grid.
            velocity_per_theta = peclet * factor / (2.0 * length)
            theta_limit = scheme.max_velocity_lu / (scheme.peak_to_rms * velocity_per_theta) if peclet > 0.0 else np.inf
            if theta is not None and theta > theta_limit:
                raise InputError(
                    f"at Pe = {peclet:g} on {height} x {width} pixels the flow moves too far per iteration: relaxation_time must "
                    f"be at most {0.5 + 1.5 * theta_limit:.4g}"
                )
            sharp, smooth = (
                min(best, theta_limit) if theta is None else theta for best in (scheme.theta_sharp, scheme.theta_smooth)
            )
            smooth_from = int(np.ceil(scheme.smooth_from_sigma_px**2 / sharp)) if factor == 1 else 0

            elapsed = np.maximum(variance - start, 0.0) / factor**2
            # The factor 1 + 1e-12: a level that needs no partial iteration must not get one by rounding.
            sharp_iterations = np.minimum(np.floor(elapsed / sharp * (1.0 + 1e-12)), smooth_from)
            smooth_iterations = np.floor(np.maximum(elapsed - smooth_from * sharp, 0.0) / smooth * (1.0 + 1e-12))
            remaining = np.maximum(elapsed - sharp_iterations * sharp - smooth_iterations * smooth, 0.0)
            if (needed := sharp_iterations[-1] + smooth_iterations[-1]) > MOST_ITERATIONS:
                bound = f"more than {MOST_ITERATIONS:,}; lower the Peclet number or the blur"
                raise InputError(f"Pe = {peclet:g} on {height} x {width} pixels takes {needed:.2g} iterations, {bound}")
            reached = variance >= start
            level_grid[reached] = len(grids)
            level_iterations[reached] = (sharp_iterations + smooth_iterations)[reached]
            level_theta[reached] = remaining[reached]

            leave = ((scheme.coarsen_from_sigma_lu * factor) ** 2 - start) / factor**2
            iterations = smooth_from + int(np.ceil((leave - smooth_from * sharp) / smooth))
            grid = Grid(factor, start, (sharp, smooth), smooth_from, iterations, velocity_per_theta)
            end = grid.sigma2(iterations)
            divisible = height % (2 * factor) == width % (2 * factor) == 0
            resolved = length // (2 * factor) >= max(
                scheme.min_cells,
                scheme.min_cells_per_peclet * peclet,
                scheme.min_cells_per_root_source * (peclet * source) ** 0.5,
            )
            if not (coarsen and divisible and resolved and end < variance[-1]):
                last = replace(grid, iterations=int(level_iterations[-1]))
                return cls((*grids, last), level_grid, level_iterations, level_theta)
            grids.append(grid)
            start, factor = end, 2 * factor

    def temperatures(self, level: np.ndarray) -> np.ndarray:
        """Lattice temperatures of the iterations of images on their way to some levels.

        Args:
            level: int64 [levels, N]; the levels of an image do not fall from one to the next.

        Returns:
            float64 [grids, 2 + levels, N]: of the full iterations with ``theta[0]`` and ``theta[1]``, and of the partial one to
            each level, 0 if none is needed; -1 for an image without such iterations on the grid.
        """
        on, grid = self.level_grid[level], np.arange(len(self.grids))[:, None]
        theta, smooth_from, iterations = (
            np.array([getattr(grid, name) for grid in self.grids]) for name in ("theta", "smooth_from", "iterations")
        )
        here = np.where(on[-1] == grid, self.level_iterations[level[-1]], 0)
        most = np.where(on[-1] > grid, iterations[:, None], here)
        sharp, smooth = np.minimum(most, smooth_from[:, None]) > 0, most > smooth_from[:, None]
        full = np.where(np.stack([sharp, smooth], axis=1), theta[:, :, None], -1.0)
        return np.concatenate([full, np.where(on == grid[:, None], self.level_theta[level], -1.0)], axis=1)

    @property
    def iterations(self) -> np.ndarray:
        """Lattice iterations from the clean image to levels 0..K, float64 [K + 1], in units of one iteration on the pixel grid.

        An iteration on a coarser grid counts by its number of cells, a partial iteration as a full one.
        """
        cells = np.array([grid.factor**-2.0 for grid in self.grids])
        before = np.concatenate([[0.0], np.cumsum(cells * [grid.iterations for grid in self.grids])])
        return before[self.level_grid] + cells[self.level_grid] * (self.level_iterations + (self.level_theta > 0.0))
