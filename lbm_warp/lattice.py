"""The lattice: D2Q9, and how the solver walks a schedule on it.

The fast operator uses the D2Q9 lattice with relaxation time 1 and the product-form equilibrium

    f_ij = rho phi_i(u_x) phi_j(u_y),    phi_0(u) = 1 - theta - u^2,    phi_+-(u) = (theta + u^2 +- u) / 2,

whose diffusivity is alpha = theta / 2 in lattice units (one pixel, one iteration). The lattice temperature theta = c_s^2 is free,
so a level between two iterations is read with one partial iteration of exactly the diffusivity that is missing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from lbm_warp.checks import InputError
from lbm_warp.schedule import Schedule

# theta = 1/3: diffusion is fourth-order accurate, what a sharp picture needs.
THETA_SHARP = 1.0 / 3.0
# theta = 1/2: half as many iterations again per unit of blur, and the nine weights see the velocity's divergence as
# mean_y diff_x u_x + mean_x diff_y u_y with (1, 2, 1) / 4 means (and terms in u^2), which is exactly zero for the discrete curl
# of ``turbulence``: a flat picture stays flat. The error in the decay of a wave k is k^2 / 24 of it, harmless once blurred.
THETA_SMOOTH = 1.0 / 2.0
SMOOTH_FROM_SIGMA_PX = 3.0
# Velocity per iteration at the largest peak we plan for. phi_0 >= 0 needs u^2 <= 1 - theta; a Gaussian-like field of unit rms
# stays below 6 on any image (probability 2e-9 a cell), and nothing breaks up to |u| = 1.
MAX_VELOCITY_LU = 0.5
PEAK_TO_RMS = 6.0
# A picture blurred by eight cells has nothing left at the scale of the grid; but the flow must stay resolved as well, and so must
# the noise that a compressible one makes of what it acts on: that is Pe x (offset + 1) strong, and the grid's error in it falls
# with the square of the number of cells. These keep the error to about 0.1/255 rms, 0.6/255 anywhere.
COARSEN_FROM_SIGMA_LU = 8.0
COARSEST_CELLS = 32
CELLS_PER_PECLET = 5.0
CELLS_PER_ROOT_OF_SOURCE = 62.0


@dataclass(frozen=True)
class Grid:
    """One stretch of the march, on cells of ``factor`` x ``factor`` pixels.

    Attributes:
        factor: pixels a cell, a power of two.
        start: sigma^2 at its first iteration [square pixels].
        theta: lattice temperature of the full iterations before and from ``smooth_from`` on.
        smooth_from: index of the first iteration with ``theta[1]``.
        iterations: full iterations until the next, coarser grid takes over; on the last grid, until the last level.
        velocity_per_theta: Peclet number / (2 L in cells): velocity per iteration = this x theta x the field of unit rms.
    """

    factor: int
    start: float
    theta: tuple[float, float]
    smooth_from: int
    iterations: int
    velocity_per_theta: float

    def sigma2(self, iteration: float) -> float:
        """sigma^2 after so many full iterations on this grid [square pixels]."""
        sharp = min(iteration, self.smooth_from)
        return self.start + self.factor**2 * (sharp * self.theta[0] + (iteration - sharp) * self.theta[1])


@dataclass(frozen=True)
class March:
    """A schedule as iterations: full ones of fixed diffusivity, and one partial iteration to read each level.

    The trajectory is marched in full iterations (the anchors) whatever levels are asked for, so levels leave no trace in
    each other: composing the short steps between neighbouring levels instead would be second-order at the grid scale.

    Attributes:
        grids: the stretches of the march, finest first.
        grid: index into ``grids`` of levels 0..K, int64 [K + 1].
        anchor: number of full iterations on that grid before the read-out of levels 0..K, int32 [K + 1].
        partial_theta: lattice temperature of the partial iteration that reads levels 0..K, float64 [K + 1];
            0 where the anchor is the level.
    """

    grids: tuple[Grid, ...]
    grid: np.ndarray
    anchor: np.ndarray
    partial_theta: np.ndarray

    @classmethod
    def plan(
        cls,
        schedule: Schedule,
        peclet: float,
        height: int,
        width: int,
        *,
        source: float = 0.0,
        coarsen: bool = True,
        theta: float | None = None,
    ) -> March:
        """The march for images of ``height`` x ``width`` pixels at Peclet number ``peclet`` >= 0.

        Args:
            schedule: the levels.
            peclet: advection against diffusion, >= 0.
            height, width: size of the images [pixels].
            source: what a compressible flow acts on, background and image; 0 for a flow without divergence.
            coarsen: whether to go on at half the resolution whenever the picture and the flow allow it.
            theta: lattice temperature of all full iterations; what is best if not given.

        Raises:
            InputError: if the flow is too fast for iterations of the given ``theta``.
        """
        # Time in pixel units is sigma^2 = theta factor^2 summed over iterations: alpha t = sigma^2 / 2 with alpha = theta / 2.
        time = schedule.sigma**2
        grid = np.zeros(len(time), dtype=np.int64)
        anchor = np.zeros(len(time), dtype=np.int32)
        partial_theta = np.zeros(len(time))
        grids: list[Grid] = []
        start, factor = 0.0, 1
        while True:
            # u = Pe alpha / L vhat with alpha = theta / 2, all in cells of this grid.
            velocity_per_theta = peclet * factor / (2.0 * min(height, width))
            theta_limit = MAX_VELOCITY_LU / (PEAK_TO_RMS * velocity_per_theta) if peclet > 0.0 else np.inf
            sharp, smooth = (min(best, theta_limit) if theta is None else theta for best in (THETA_SHARP, THETA_SMOOTH))
            if sharp > theta_limit:
                raise InputError(
                    f"at Pe = {peclet:g} on {height} x {width} pixels the flow moves too far an iteration: relaxation times up to "
                    f"{0.5 + 1.5 * theta_limit:.4g} are stable"
                )
            smooth_from = int(np.ceil(SMOOTH_FROM_SIGMA_PX**2 / sharp)) if factor == 1 else 0

            elapsed = np.maximum(time - start, 0.0) / factor**2
            # The tiny excess keeps a level that falls on an anchor, up to rounding, from costing a second read-out iteration.
            sharp_iterations = np.minimum(np.floor(elapsed / sharp * (1.0 + 1e-12)), smooth_from)
            smooth_time = np.maximum(elapsed - smooth_from * sharp, 0.0)
            smooth_iterations = np.floor(smooth_time / smooth * (1.0 + 1e-12))
            reached = time >= start
            grid[reached] = len(grids)
            anchor[reached] = (sharp_iterations + smooth_iterations)[reached]
            partial = np.maximum(elapsed - sharp_iterations * sharp - smooth_iterations * smooth, 0.0)
            partial_theta[reached] = partial[reached]

            cells = min(height, width) // (2 * factor)
            halves = height % (2 * factor) == width % (2 * factor) == 0
            finest = CELLS_PER_ROOT_OF_SOURCE * (peclet * source) ** 0.5
            resolved = cells >= max(COARSEST_CELLS, CELLS_PER_PECLET * peclet, finest)
            leave = ((COARSEN_FROM_SIGMA_LU * factor) ** 2 - start) / factor**2
            iterations = smooth_from + int(np.ceil((leave - smooth_from * sharp) / smooth))
            here = Grid(factor, start, (sharp, smooth), smooth_from, iterations, velocity_per_theta)
            end = here.sigma2(iterations)
            if not (coarsen and halves and resolved and end < time[-1]):
                return cls((*grids, replace(here, iterations=int(anchor[-1]))), grid, anchor, partial_theta)
            grids.append(here)
            start, factor = end, 2 * factor

    @property
    def work(self) -> float:
        """Cell updates to the last level, in units of one iteration on the pixel grid (the read-out not counted)."""
        return sum(grid.iterations / grid.factor**2 for grid in self.grids)


# D2Q9 velocities (x, y) and the product-form weights at theta = 1/3, for the solver with stored populations.
VELOCITIES = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=np.int32)
WEIGHTS = np.prod(np.where(VELOCITIES == 0, 2.0 / 3.0, 1.0 / 6.0), axis=1)
OPPOSITES = np.array([int(np.flatnonzero((VELOCITIES == -v).all(axis=1))[0]) for v in VELOCITIES], dtype=np.int32)
