"""The textbook lattice Boltzmann kernel: nine stored populations a cell, stream, then collide (BGK).

    f_i(x + c_i, t + 1) = f_i(x, t) - (f_i(x, t) - f_i^eq(rho, u)) / tau

for the advection-diffusion equation of the density rho = sum_i f_i in a given velocity field u. The diffusivity is
alpha = c_s^2 (tau - 1/2) with c_s^2 = 1/3. The equilibrium is the product form that the fast operator uses; at tau = 1 the two
solve the same equation, iteration for iteration.
"""

import warp as wp

from lbm_warp.kernels.advection_diffusion import phi_minus, phi_plus, phi_zero, vec9

wp.set_module_options({"enable_backward": False})

THETA = wp.constant(1.0 / 3.0)


@wp.func
def phi(direction: wp.int32, u: wp.float32) -> wp.float32:
    """Equilibrium share of direction -1, 0 or 1 along an axis at c_s^2 = 1/3."""
    if direction < 0:
        return phi_minus(u, THETA)
    if direction > 0:
        return phi_plus(u, THETA)
    return phi_zero(u, THETA)


@wp.func
def population(cy: wp.int32, cx: wp.int32) -> wp.int32:
    """Index of the population that moves by (cy, cx): rows first, as in ``lbm_warp.lattice.VELOCITIES``."""
    return 3 * (cy + 1) + cx + 1


@wp.kernel
def equilibrium_kernel(
    rho: wp.array4d[wp.float32],
    velocity: wp.array4d[wp.float32],
    # outputs
    f: wp.array4d[wp.float32],
):
    """Populations in equilibrium: f_i = rho phi(c_x, u_x) phi(c_y, u_y); one thread a cell and channel; f is [N, 9 C, H, W]."""
    n, c, y, x = wp.tid()
    for i in range(9):
        share = phi(i % 3 - 1, velocity[n, 0, y, x]) * phi(i // 3 - 1, velocity[n, 1, y, x])
        f[n, 9 * c + i, y, x] = rho[n, c, y, x] * share


@wp.kernel
def stream_collide_kernel(
    f: wp.array4d[wp.float32],
    velocity: wp.array4d[wp.float32],
    tau: wp.float32,
    periodic: wp.bool,
    # outputs
    rho: wp.array4d[wp.float32],
    f_next: wp.array4d[wp.float32],
):
    """One iteration: pull the nine populations that arrive, relax them; one thread a cell and channel.

    On a wall a population comes back mirrored: from the cell beside it, with the velocity across the wall reversed.
    """
    n, c, y, x = wp.tid()
    height = rho.shape[2]
    width = rho.shape[3]
    total = wp.float32(0.0)
    arrived = vec9()
    for i in range(9):
        cy = i // 3 - 1
        cx = i % 3 - 1
        ys = y - cy
        xs = x - cx
        if periodic:
            ys = (ys + height) % height
            xs = (xs + width) % width
        else:
            if ys < 0 or ys >= height:
                ys = y
                cy = -cy
            if xs < 0 or xs >= width:
                xs = x
                cx = -cx
        arrived[i] = f[n, 9 * c + population(cy, cx), ys, xs]
        total += arrived[i]
    rho[n, c, y, x] = total
    for i in range(9):
        share = phi(i % 3 - 1, velocity[n, 0, y, x]) * phi(i // 3 - 1, velocity[n, 1, y, x])
        f_next[n, 9 * c + i, y, x] = arrived[i] - (arrived[i] - total * share) / tau
