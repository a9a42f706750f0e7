"""The lattice: D2Q9, and how the solver walks a schedule on it.

The fast operator uses the D2Q9 lattice with relaxation time 1 and the product-form equilibrium

    f_ij = rho phi_i(u_x) phi_j(u_y),    phi_0(u) = 1 - theta - u^2,    phi_+-(u) = (theta + u^2 +- u) / 2,

whose diffusivity is alpha = theta / 2 in lattice units (one pixel, one iteration). The lattice temperature theta = c_s^2 is free,
so a level between two iterations is read with one partial iteration of exactly the diffusivity that is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lbm_warp.schedule import Schedule

# theta = 1/3: diffusion is fourth-order accurate, what a sharp picture needs.
THETA_SHARP = 1.0 / 3.0
# theta = 1/2: half as many iterations again per unit of blur, and the nine weights see the velocity's divergence as
# mean_y diff_x u_x + mean_x diff_y u_y with (1, 2, 1) / 4 means, which is exactly zero for the discrete curl of
# ``turbulence``: a flat picture stays flat. The error in the decay of a wave k is k^2 / 24 of it, harmless once blurred.
THETA_SMOOTH = 1.0 / 2.0
SMOOTH_FROM_SIGMA_PX = 3.0
# Velocity per iteration at the largest peak we plan for. phi_0 >= 0 needs u^2 <= 1 - theta; a Gaussian-like field of unit rms
# stays below 6 on any image (probability 2e-9 a cell), and nothing breaks up to |u| = 1.
MAX_VELOCITY_LU = 0.5
PEAK_TO_RMS = 6.0


@dataclass(frozen=True)
class March:
    """A schedule as iterations: full ones of fixed diffusivity, and one partial iteration to read each level.

    The trajectory is marched in full iterations (the anchors) whatever levels are asked for, so levels leave no trace in
    each other: composing the short steps between neighbouring levels instead would be second-order at the grid scale.

    Attributes:
        theta: lattice temperature of the full iterations before and from ``smooth_from`` on.
        smooth_from: index of the first iteration with ``theta[1]``.
        anchor: number of full iterations before the read-out of levels 0..K, int32 [K + 1].
        partial_theta: lattice temperature of the partial iteration that reads levels 0..K, float64 [K + 1];
            0 where the anchor is the level.
        velocity_per_theta: Peclet number / (2 L): velocity per iteration [pixels] = this x theta x the field of unit rms.
    """

    theta: tuple[float, float]
    smooth_from: int
    anchor: np.ndarray
    partial_theta: np.ndarray
    velocity_per_theta: float

    @classmethod
    def plan(cls, schedule: Schedule, peclet: float, length: int) -> March:
        """The march for an image whose shorter side has ``length`` pixels, at Peclet number ``peclet`` >= 0."""
        # u = Pe alpha / L vhat with alpha = theta / 2.
        velocity_per_theta = peclet / (2.0 * length)
        theta_limit = MAX_VELOCITY_LU / (PEAK_TO_RMS * velocity_per_theta) if peclet > 0.0 else np.inf
        sharp, smooth = min(THETA_SHARP, theta_limit), min(THETA_SMOOTH, theta_limit)

        # Time in lattice units is theta summed over iterations: alpha t = sigma^2 / 2 with alpha = theta / 2.
        time = schedule.sigma**2
        smooth_from = int(np.ceil(SMOOTH_FROM_SIGMA_PX**2 / sharp))
        # The tiny excess keeps a level that falls on an anchor, up to rounding, from costing a second read-out iteration.
        sharp_iterations = np.minimum(np.floor(time / sharp * (1.0 + 1e-12)), smooth_from)
        smooth_iterations = np.floor(np.maximum(time - smooth_from * sharp, 0.0) / smooth * (1.0 + 1e-12))
        partial = np.maximum(time - sharp_iterations * sharp - smooth_iterations * smooth, 0.0)
        return cls(
            theta=(sharp, smooth),
            smooth_from=smooth_from,
            anchor=(sharp_iterations + smooth_iterations).astype(np.int32),
            partial_theta=partial,
            velocity_per_theta=velocity_per_theta,
        )


# D2Q9 velocities (x, y) and the product-form weights at theta = 1/3, for the solver with stored populations.
VELOCITIES = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)], dtype=np.int32)
WEIGHTS = np.prod(np.where(VELOCITIES == 0, 2.0 / 3.0, 1.0 / 6.0), axis=1)
OPPOSITES = np.array([int(np.flatnonzero((VELOCITIES == -v).all(axis=1))[0]) for v in VELOCITIES], dtype=np.int32)
