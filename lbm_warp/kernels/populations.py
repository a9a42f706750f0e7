"""The textbook lattice Boltzmann kernels: nine stored populations a cell, stream, then collide.

    f_i(x + c_i, t + 1) = f_i^eq + R (f_i - f_i^eq),    f_i^eq = rho phi(c_ix, u_x) phi(c_iy, u_y),    rho = sum_i f_i

for the advection-diffusion equation of the density rho in a given velocity field u. What is left of the departure from
equilibrium, R, is the collision: ``bgk``, ``trt`` or ``central_moments``, each a function of nine registers. They agree in the
flux, the first moment of the departure, which they multiply by 1 - 1 / tau; it sets the diffusivity alpha = (tau - 1/2) / 3.
At tau = 1 nothing is left of any departure and the three are one scheme, the one that the fast operator solves.

The order of the populations is that of ``lbm_warp.lattice.VELOCITIES``, rows first: i = 3 (c_y + 1) + c_x + 1, so the opposite
of i is 8 - i.
"""

import warp as wp

from lbm_warp.kernels.advection_diffusion import phi_minus, phi_plus, phi_zero, vec9

wp.set_module_options({"enable_backward": False})

# c_s^2 = 1/3, rounded to a multiple of 2^-24 for which, in float32, 1 - theta is exact and the nine shares at rest add up to
# exactly 1. For the float32 nearest to 1/3 they fall short by 7e-8: in 1,000 iterations that is mass one could measure.
THETA = wp.constant(5592406 / 2**24)
BGK = wp.constant(0)
TRT = wp.constant(1)
CENTRAL_MOMENTS = wp.constant(2)


@wp.func
def phi(u: wp.float32, theta: wp.float32) -> wp.vec3:
    """Populations along an axis, for c = -1, 0, 1, with the moments sum (c - u)^a phi = 1, 0, theta for a = 0, 1, 2."""
    return wp.vec3(phi_minus(u, theta), phi_zero(u, theta), phi_plus(u, theta))


@wp.func
def dphi_du(u: wp.float32) -> wp.vec3:
    """Populations along an axis, for c = -1, 0, 1, with the moments sum (c - u)^a dphi_du = 0, 1, 0 for a = 0, 1, 2."""
    return wp.vec3(u - 0.5, -2.0 * u, u + 0.5)


@wp.func
def product(along_y: wp.vec3, along_x: wp.vec3) -> vec9:
    """Nine populations from three along each axis; their moments are the products of the moments along the axes."""
    return vec9(
        along_y[0] * along_x[0],
        along_y[0] * along_x[1],
        along_y[0] * along_x[2],
        along_y[1] * along_x[0],
        along_y[1] * along_x[1],
        along_y[1] * along_x[2],
        along_y[2] * along_x[0],
        along_y[2] * along_x[1],
        along_y[2] * along_x[2],
    )


@wp.func
def shares(ux: wp.float32, uy: wp.float32) -> vec9:
    """The equilibrium of unit density, f_i^eq / rho."""
    return product(phi(uy, THETA), phi(ux, THETA))


@wp.func
def density(f: vec9) -> wp.float32:
    """The zeroth moment."""
    return f[0] + f[1] + f[2] + f[3] + f[4] + f[5] + f[6] + f[7] + f[8]


@wp.func
def bgk(departure: vec9, keep: wp.float32) -> vec9:
    """One relaxation time for all (Bhatnagar, Gross and Krook 1954): R d = keep d."""
    return keep * departure


@wp.func
def trt(departure: vec9, keep_even: wp.float32, keep_odd: wp.float32) -> vec9:
    """Two relaxation times (Ginzburg, Adv. Water Resour. 28, 1171, 2005), one for each half of every pair of opposites.

    R d = keep_even d^+ + keep_odd d^-,  d_i^+- = (d_i +- d_opposite(i)) / 2. The flux is odd, so the odd time is tau.
    """
    kept = vec9()
    for i in range(9):
        even = 0.5 * (departure[i] + departure[8 - i])
        odd = 0.5 * (departure[i] - departure[8 - i])
        kept[i] = keep_even * even + keep_odd * odd
    return kept


@wp.func
def central_moments(departure: vec9, ux: wp.float32, uy: wp.float32, keep: wp.float32) -> vec9:
    """Relax the two first central moments, set all above to equilibrium: the collision of the paper Beyond Blur.

    Collisions on the moments seen by someone who moves along, k_ab = sum_i (c_x - u_x)^a (c_y - u_y)^b f_i, go back to Geier,
    Greiner and Korvink (Phys. Rev. E 73, 066705, 2006); this basis is that of De Rosis (Phys. Rev. E 95, 013310, 2017). In
    equilibrium k_ab = rho kappa_a kappa_b with kappa = (1, 0, theta): the first moments are zero. Of a departure, which holds no
    density, k_10 = sum_i c_x d_i and k_01 = sum_i c_y d_i survive, times keep, and the other seven vanish. As moments of
    products are products of moments, the populations with k_10 = 1 and no other are dphi_du(u_x), of moments (0, 1, 0), times
    phi(u_y) at theta = 0, of moments (1, 0, 0).
    """
    k_10 = departure[2] + departure[5] + departure[8] - departure[0] - departure[3] - departure[6]
    k_01 = departure[6] + departure[7] + departure[8] - departure[0] - departure[1] - departure[2]
    return product(phi(uy, 0.0), keep * k_10 * dphi_du(ux)) + product(keep * k_01 * dphi_du(uy), phi(ux, 0.0))


@wp.func
def relax(
    collision: wp.int32, departure: vec9, ux: wp.float32, uy: wp.float32, keep_even: wp.float32, keep_odd: wp.float32
) -> vec9:
    """What a collision leaves of a departure from equilibrium."""
    if collision == TRT:
        return trt(departure, keep_even, keep_odd)
    if collision == CENTRAL_MOMENTS:
        return central_moments(departure, ux, uy, keep_odd)
    return bgk(departure, keep_odd)


@wp.struct
class Neighbour:
    """A cell beside another along an axis. Beyond a wall lies the mirror image of the cell itself: ``sign`` is -1 there."""

    index: wp.int32
    sign: wp.int32


@wp.func
def neighbour(i: wp.int32, step: wp.int32, size: wp.int32, periodic: wp.bool) -> Neighbour:
    """The cell ``step`` (-1, 0 or 1) from cell ``i`` along an axis of ``size`` cells."""
    j = i + step
    if j >= 0 and j < size:
        return Neighbour(j, 1)
    if periodic:
        return Neighbour(j - step * size, 1)
    return Neighbour(i, -1)


@wp.func
def equilibrium_beside(
    rho: wp.array2d[wp.float32],
    vx: wp.array2d[wp.float32],
    vy: wp.array2d[wp.float32],
    i: wp.int32,
    row: Neighbour,
    column: Neighbour,
) -> wp.float32:
    """The equilibrium population ``i`` of a neighbour; in a mirror image the velocity across the wall is reversed."""
    ux = wp.float32(column.sign) * vx[row.index, column.index]
    uy = wp.float32(row.sign) * vy[row.index, column.index]
    return rho[row.index, column.index] * phi(ux, THETA)[i % 3] * phi(uy, THETA)[i // 3]


@wp.kernel
def start_kernel(
    rho: wp.array4d[wp.float32],
    velocity: wp.array4d[wp.float32],
    collision: wp.int32,
    keep: wp.float32,
    periodic: wp.bool,
    # outputs
    f: wp.array4d[wp.float32],
):
    """Populations after the collision at t = 0; one thread a cell and channel; f is [N, 9 C, H, W].

    Chapman and Enskog: to first order in the gradients, what a collision takes from the departure d is what streaming added,
    (I - R) d_i = -g_i with g_i = (d/dt + c_i . grad) f_i^eq. Where R multiplies by 1 - 1 / tau, R d = (1 - tau) g is left after
    the collision: ``relax`` applied to g with keep = 1 - tau. With keep = 0 this is the plain equilibrium.

    In g, d/dt rho = -div(rho u) = -sum_i c_i . grad f_i^eq, and the gradients are central differences along c_i. The even part
    of TRT, which carries no flux, starts from equilibrium: its time is so long when tau is near 1/2 that the expansion fails.
    """
    n, c, y, x = wp.tid()
    height = rho.shape[2]
    width = rho.shape[3]
    g = vec9()
    for i in range(9):
        cy = i // 3 - 1
        cx = i % 3 - 1
        ahead = equilibrium_beside(
            rho[n, c], velocity[n, 0], velocity[n, 1], i, neighbour(y, cy, height, periodic), neighbour(x, cx, width, periodic)
        )
        behind = equilibrium_beside(
            rho[n, c], velocity[n, 0], velocity[n, 1], i, neighbour(y, -cy, height, periodic), neighbour(x, -cx, width, periodic)
        )
        g[i] = 0.5 * (ahead - behind)
    ux = velocity[n, 0, y, x]
    uy = velocity[n, 1, y, x]
    share = shares(ux, uy)
    g -= density(g) * share
    after = rho[n, c, y, x] * share + relax(collision, g, ux, uy, 0.0, keep)
    for i in range(9):
        f[n, 9 * c + i, y, x] = after[i]


@wp.func
def stream_collide(
    n: wp.int32,
    c: wp.int32,
    y: wp.int32,
    x: wp.int32,
    velocity: wp.array4d[wp.float32],
    collision: wp.int32,
    keep_even: wp.float32,
    keep_odd: wp.float32,
    periodic: wp.bool,
    source: wp.array4d[wp.float32],
    # outputs
    target: wp.array4d[wp.float32],
):
    """Pull the nine populations that arrive at a cell, collide them.

    On a wall a population comes back mirrored: from the cell beside it, with the velocity across the wall reversed.
    """
    arrived = vec9()
    for i in range(9):
        cy = i // 3 - 1
        cx = i % 3 - 1
        row = neighbour(y, -cy, source.shape[2], periodic)
        column = neighbour(x, -cx, source.shape[3], periodic)
        arrived[i] = source[n, 9 * c + 3 * (row.sign * cy + 1) + column.sign * cx + 1, row.index, column.index]
    ux = velocity[n, 0, y, x]
    uy = velocity[n, 1, y, x]
    equilibrium = density(arrived) * shares(ux, uy)
    after = equilibrium + relax(collision, arrived - equilibrium, ux, uy, keep_even, keep_odd)
    for i in range(9):
        target[n, 9 * c + i, y, x] = after[i]


@wp.kernel
def stream_collide_kernel(
    count: wp.array[wp.int32],
    velocity: wp.array4d[wp.float32],
    collision: wp.int32,
    keep_even: wp.float32,
    keep_odd: wp.float32,
    periodic: wp.bool,
    step: wp.int32,
    # in turn inputs and outputs
    a: wp.array4d[wp.float32],
    b: wp.array4d[wp.float32],
):
    """Iteration number ``step`` of the count[n] that image n has to take between two buffers; one thread a cell and channel.

    The populations, [N, 9 C, H, W], begin in ``b`` if their number is odd and always end in ``a``.
    """
    n, c, y, x = wp.tid()
    left = count[n] - step
    if left <= 0:
        return
    if left % 2 == 0:
        stream_collide(n, c, y, x, velocity, collision, keep_even, keep_odd, periodic, a, b)
    else:
        stream_collide(n, c, y, x, velocity, collision, keep_even, keep_odd, periodic, b, a)


@wp.kernel
def collide_kernel(
    f: wp.array2d[wp.float32],
    velocity: wp.array2d[wp.float32],
    collision: wp.int32,
    keep_even: wp.float32,
    keep_odd: wp.float32,
    # outputs
    after: wp.array2d[wp.float32],
):
    """The collision alone, for tests; one thread a cell; f is [cells, 9], velocity is [cells, 2]."""
    n = wp.tid()
    before = vec9()
    for i in range(9):
        before[i] = f[n, i]
    equilibrium = density(before) * shares(velocity[n, 0], velocity[n, 1])
    departure = before - equilibrium
    kept = relax(collision, departure, velocity[n, 0], velocity[n, 1], keep_even, keep_odd)
    for i in range(9):
        after[n, i] = equilibrium[i] + kept[i]
