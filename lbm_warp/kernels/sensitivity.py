"""The derivative of an iteration with respect to the displacements: see ``lbm_warp.sensitivity``."""

import functools
from typing import Any

import warp as wp

from lbm_warp.kernels.rules import gather, neighbours, phi_minus, phi_plus, phi_zero

wp.set_module_options({"enable_backward": False})


@wp.func
def derived_weights(ux: Any, uy: Any, theta: Any):
    """d/du_x of the fractions of a cell's density that stream to its nine neighbours, row by row."""
    half = type(ux)(0.5)
    low = ux - half
    here = -(ux + ux)
    high = ux + half
    return wp.vector(
        phi_minus(uy, theta) * low,
        phi_minus(uy, theta) * here,
        phi_minus(uy, theta) * high,
        phi_zero(uy, theta) * low,
        phi_zero(uy, theta) * here,
        phi_zero(uy, theta) * high,
        phi_plus(uy, theta) * low,
        phi_plus(uy, theta) * here,
        phi_plus(uy, theta) * high,
    )


@functools.cache
def displacement_gradient_kernel(dtype: type) -> wp.Kernel:
    """Adds to the gradient of the displacements; one thread a cell."""

    @wp.kernel(module="unique", enable_backward=False)
    def displacement_gradient(
        theta: wp.array[dtype],
        velocity: wp.array4d[dtype],
        u: wp.array4d[dtype],
        w: wp.array4d[dtype],
        velocity_per_theta: dtype,
        offset: dtype,
        periodic: wp.bool,
        # inputs and outputs
        gradient: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        temperature = theta[n]
        if temperature == dtype(0.0):
            return
        row = neighbours(y, u.shape[2], periodic)
        column = neighbours(x, u.shape[3], periodic)
        ux = velocity_per_theta * temperature * velocity[n, 0, y, x]
        uy = velocity_per_theta * temperature * velocity[n, 1, y, x]
        along_x = derived_weights(ux, uy, temperature)
        # With x and y exchanged this is d/du_y; the neighbours are exchanged back.
        swapped = derived_weights(uy, ux, temperature)
        along_y = wp.vector(
            swapped[0], swapped[3], swapped[6], swapped[1], swapped[4], swapped[7], swapped[2], swapped[5], swapped[8]
        )
        sum_x = dtype(0.0)
        sum_y = dtype(0.0)
        for c in range(u.shape[1]):
            density = u[n, c, y, x] + offset
            sum_x += density * gather(w[n, c], along_x, row, column, 0, dtype(0.0))
            sum_y += density * gather(w[n, c], along_y, row, column, 0, dtype(0.0))
        gradient[n, 0, y, x] = gradient[n, 0, y, x] + temperature * sum_x
        gradient[n, 1, y, x] = gradient[n, 1, y, x] + temperature * sum_y

    return displacement_gradient
