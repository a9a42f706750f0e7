"""The derivatives of an iteration with respect to the moments of the flow, and of these with respect to the velocity.

See ``lbm_warp.sensitivity``.
"""

import functools

import warp as wp

from lbm_warp.kernels.rules import beside, moments, neighbours, scaled


@functools.cache
def moment_gradient_kernel(dtype: type) -> wp.Kernel:
    """Adds what one iteration adds to the gradient of the moments; one thread a cell.

    The moments are those of the displacement q = u / theta, the first four of which are multiplied by theta and the others by
    theta^2. A fraction f_c is linear in them, and has the gradient (rho + offset)(x) w(x + c).
    """

    @wp.kernel(module="unique", enable_backward=False)
    def moment_gradient(
        theta: wp.array[dtype],
        u: wp.array4d[dtype],
        w: wp.array4d[dtype],
        offset: dtype,
        periodic: wp.bool,
        # inputs and outputs
        gradient: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        if theta[n] == dtype(0.0):
            return
        row = neighbours(y, u.shape[2], periodic)
        column = neighbours(x, u.shape[3], periodic)
        f = wp.vector(dtype(0.0), length=9)
        for c in range(u.shape[1]):
            density = u[n, c, y, x] + offset
            for k in range(9):
                f[k] += density * w[n, c, beside(row, k // 3 - 1), beside(column, k % 3 - 1)]
        # Differences and sums of opposite directions, across the cell and through it.
        difference_x = f[2] - f[0] + f[8] - f[6]
        difference_y = f[6] - f[0] + f[8] - f[2]
        odd_x = f[5] - f[3]
        odd_y = f[7] - f[1]
        even_x = f[3] + f[5]
        even_y = f[1] + f[7]
        corners = f[0] + f[2] + f[6] + f[8]
        half = dtype(0.5)
        quarter = dtype(0.25)
        eighth = dtype(0.125)
        spread = half * theta[n]
        straight = dtype(1.0) - theta[n] - theta[n]
        even = half * spread * corners - theta[n] * f[4]
        of_moments = wp.vector(
            half * spread * difference_x + spread * odd_x,
            half * spread * difference_y + spread * odd_y,
            half * straight * odd_x,
            half * straight * odd_y,
            eighth * (half * difference_x + odd_x),
            eighth * (half * difference_y + odd_y),
            even + spread * (even_x - even_y),
            even + spread * (even_y - even_x),
            straight * (half * even_x - f[4]),
            straight * (half * even_y - f[4]),
            quarter * (f[0] - f[2] - f[6] + f[8]),
        )
        of_moments = scaled(of_moments, theta[n])
        for k in range(11):
            gradient[n, k, y, x] = gradient[n, k, y, x] + of_moments[k]

    return moment_gradient


@functools.cache
def moments_kernel(dtype: type) -> wp.Kernel:
    """The moments [N, 11, H, W] of a velocity [N, 2, H, W]; only its derivative, which Warp makes, is used."""

    @wp.kernel(module="unique", enable_backward=True)
    def of_velocity(
        velocity: wp.array4d[dtype],
        periodic: wp.bool,
        # outputs
        result: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        row = neighbours(y, velocity.shape[2], periodic)
        column = neighbours(x, velocity.shape[3], periodic)
        m = moments(velocity[n, 0], velocity[n, 1], row, column)
        for k in range(11):
            result[n, k, y, x] = m[k]

    return of_velocity
