"""The textbook lattice Boltzmann kernels: nine stored populations per cell, streaming, then collision.

    f_i(x + c_i, t + 1) = f_i^eq + R (f_i - f_i^eq),    f_i^eq = rho phi(c_ix, u_x) phi(c_iy, u_y),    rho = sum_i f_i

for the advection-diffusion equation of the density rho in a given velocity field u. A collision relaxes the non-equilibrium part
f_i - f_i^eq by the linear map R: ``bgk``, ``trt`` or ``central_moments``, each a function of nine registers. All multiply the flux,
the first moment of the non-equilibrium part, by 1 - 1 / tau. It sets the diffusivity alpha = (tau - 1/2) / 3. At tau = 1 all have
R = 0 and are the scheme of the fast solver.

The order of the populations is by rows, i = 3 (c_y + 1) + c_x + 1, so the opposite of i is 8 - i.
"""

import warp as wp

vec9 = wp.types.vector(length=9, dtype=wp.float32)

wp.set_module_options({"enable_backward": False})

# c_s^2 = 1/3, rounded to a multiple of 2^-24: in float32, 1 - theta is then exact, and the nine weights at rest have the sum 1.
# With the float32 nearest to 1/3 the sum is 7e-8 too small, which is a loss of mass of 7e-5 in 1,000 iterations.
THETA = wp.constant(5592406 / 2**24)
BGK = wp.constant(0)
TRT = wp.constant(1)
CENTRAL_MOMENTS = wp.constant(2)


@wp.func
def phi(u: wp.float32, theta: wp.float32) -> wp.vec3:
    """Three populations along an axis, for c = -1, 0, 1, with the moments sum (c - u)^a phi = 1, 0, theta for a = 0, 1, 2."""
    return wp.vec3(0.5 * (theta + u * u - u), 1.0 - theta - u * u, 0.5 * (theta + u * u + u))


@wp.func
def dphi_du(u: wp.float32) -> wp.vec3:
    """Three populations along an axis, for c = -1, 0, 1, with the moments sum (c - u)^a dphi_du = 0, 1, 0 for a = 0, 1, 2."""
    return wp.vec3(u - 0.5, -2.0 * u, u + 0.5)


@wp.func
def product(along_y: wp.vec3, along_x: wp.vec3) -> vec9:
    """Nine populations from three along each axis; their moments are products of the moments along the axes."""
    f = vec9()
    for i in range(9):
        f[i] = along_y[i // 3] * along_x[i % 3]
    return f


@wp.func
def unit_equilibrium(ux: wp.float32, uy: wp.float32) -> vec9:
    """The equilibrium of unit density, f_i^eq / rho."""
    return product(phi(uy, THETA), phi(ux, THETA))


@wp.func
def density(f: vec9) -> wp.float32:
    """The zeroth moment."""
    return f[0] + f[1] + f[2] + f[3] + f[4] + f[5] + f[6] + f[7] + f[8]


@wp.func
def bgk(f_neq: vec9, factor: wp.float32) -> vec9:
    """One relaxation time (Bhatnagar, Gross and Krook 1954): R d = factor d."""
    return factor * f_neq


@wp.func
def trt(f_neq: vec9, even_factor: wp.float32, odd_factor: wp.float32) -> vec9:
    """Two relaxation times (Ginzburg, Adv. Water Resour. 28, 1171, 2005), for the even and the odd part of opposite populations.

    R d = even_factor d^+ + odd_factor d^-,  d_i^+- = (d_i +- d_opposite(i)) / 2. The flux is odd, so the odd time is tau.
    """
    relaxed = vec9()
    for i in range(9):
        even = 0.5 * (f_neq[i] + f_neq[8 - i])
        odd = 0.5 * (f_neq[i] - f_neq[8 - i])
        relaxed[i] = even_factor * even + odd_factor * odd
    return relaxed


@wp.func
def central_moments(f_neq: vec9, ux: wp.float32, uy: wp.float32, factor: wp.float32) -> vec9:
    """Relax the two first central moments and set the higher ones to equilibrium: the collision of the paper Beyond Blur.

    Central moments are those in the frame of the flow, k_ab = sum_i (c_x - u_x)^a (c_y - u_y)^b f_i (Geier, Greiner and Korvink,
    Phys. Rev. E 73, 066705, 2006; this basis: De Rosis, Phys. Rev. E 95, 013310, 2017). In equilibrium k_ab = rho kappa_a kappa_b,
    kappa = (1, 0, theta). The non-equilibrium part d has no density; its k_10 = sum_i c_x d_i and k_01 = sum_i c_y d_i are
    multiplied by ``factor``, the other seven moments are set to zero. Moments of a product are products of moments, so the
    populations with k_10 = 1 and no other moment are dphi_du(u_x), of moments (0, 1, 0), times phi(u_y) at theta = 0, of moments
    (1, 0, 0).
    """
    k_10 = f_neq[2] + f_neq[5] + f_neq[8] - f_neq[0] - f_neq[3] - f_neq[6]
    k_01 = f_neq[6] + f_neq[7] + f_neq[8] - f_neq[0] - f_neq[1] - f_neq[2]
    return product(phi(uy, 0.0), factor * k_10 * dphi_du(ux)) + product(factor * k_01 * dphi_du(uy), phi(ux, 0.0))


@wp.func
def relax(
    collision: wp.int32, f_neq: vec9, ux: wp.float32, uy: wp.float32, even_factor: wp.float32, odd_factor: wp.float32
) -> vec9:
    """The non-equilibrium part after a collision."""
    if collision == TRT:
        return trt(f_neq, even_factor, odd_factor)
    if collision == CENTRAL_MOMENTS:
        return central_moments(f_neq, ux, uy, odd_factor)
    return bgk(f_neq, odd_factor)


@wp.struct
class Neighbour:
    """A neighbour of a cell along an axis. Beyond a wall it is the mirror image of the cell itself, with ``sign`` -1."""

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
    """The equilibrium population ``i`` of a neighbour; in a mirror image the normal velocity is negated."""
    ux = wp.float32(column.sign) * vx[row.index, column.index]
    uy = wp.float32(row.sign) * vy[row.index, column.index]
    return rho[row.index, column.index] * phi(ux, THETA)[i % 3] * phi(uy, THETA)[i // 3]


@wp.kernel
def start_kernel(
    rho: wp.array4d[wp.float32],
    velocity: wp.array4d[wp.float32],
    collision: wp.int32,
    factor: wp.float32,
    periodic: wp.bool,
    # outputs
    f: wp.array4d[wp.float32],
):
    """Populations after the collision at t = 0; one thread per cell and channel; f is [N, 9 C, H, W].

    Chapman-Enskog expansion: to first order in the gradients, a collision removes from the non-equilibrium part d what streaming
    adds, (I - R) d_i = -g_i with g_i = (d/dt + c_i . grad) f_i^eq. If R multiplies by 1 - 1 / tau, then R d = (1 - tau) g after the
    collision: ``relax`` applied to g with ``factor`` = 1 - tau. With ``factor`` = 0 this is the equilibrium.

    In g, d/dt rho = -div(rho u) = -sum_i c_i . grad f_i^eq, and the gradients are central differences along c_i. The even part of
    TRT has no flux and starts from equilibrium: near tau = 1/2 its relaxation time is too long for the expansion.
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
    unit = unit_equilibrium(ux, uy)
    g -= density(g) * unit
    after = rho[n, c, y, x] * unit + relax(collision, g, ux, uy, 0.0, factor)
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
    even_factor: wp.float32,
    odd_factor: wp.float32,
    periodic: wp.bool,
    source: wp.array4d[wp.float32],
    # outputs
    target: wp.array4d[wp.float32],
):
    """Stream nine populations to a cell and collide them.

    At a wall a population is reflected: it comes from the mirror image, with the normal component of c_i negated.
    """
    streamed = vec9()
    for i in range(9):
        cy = i // 3 - 1
        cx = i % 3 - 1
        row = neighbour(y, -cy, source.shape[2], periodic)
        column = neighbour(x, -cx, source.shape[3], periodic)
        streamed[i] = source[n, 9 * c + 3 * (row.sign * cy + 1) + column.sign * cx + 1, row.index, column.index]
    ux = velocity[n, 0, y, x]
    uy = velocity[n, 1, y, x]
    equilibrium = density(streamed) * unit_equilibrium(ux, uy)
    after = equilibrium + relax(collision, streamed - equilibrium, ux, uy, even_factor, odd_factor)
    for i in range(9):
        target[n, 9 * c + i, y, x] = after[i]


@wp.kernel
def stream_collide_kernel(
    count: wp.array[wp.int32],
    velocity: wp.array4d[wp.float32],
    collision: wp.int32,
    even_factor: wp.float32,
    odd_factor: wp.float32,
    periodic: wp.bool,
    step: wp.int32,
    # inputs and outputs
    a: wp.array4d[wp.float32],
    b: wp.array4d[wp.float32],
):
    """Iteration ``step`` of the count[n] iterations of image n, between two buffers; one thread per cell and channel.

    The populations, [N, 9 C, H, W], start in ``b`` if count[n] is odd, otherwise in ``a``; they end in ``a``.
    """
    n, c, y, x = wp.tid()
    left = count[n] - step
    if left <= 0:
        return
    if left % 2 == 0:
        stream_collide(n, c, y, x, velocity, collision, even_factor, odd_factor, periodic, a, b)
    else:
        stream_collide(n, c, y, x, velocity, collision, even_factor, odd_factor, periodic, b, a)


@wp.kernel
def collide_kernel(
    f: wp.array2d[wp.float32],
    velocity: wp.array2d[wp.float32],
    collision: wp.int32,
    even_factor: wp.float32,
    odd_factor: wp.float32,
    # outputs
    after: wp.array2d[wp.float32],
):
    """The collision alone, for tests; one thread per cell; f is [cells, 9], velocity is [cells, 2]."""
    n = wp.tid()
    before = vec9()
    for i in range(9):
        before[i] = f[n, i]
    equilibrium = density(before) * unit_equilibrium(velocity[n, 0], velocity[n, 1])
    relaxed = relax(collision, before - equilibrium, velocity[n, 0], velocity[n, 1], even_factor, odd_factor)
    for i in range(9):
        after[n, i] = equilibrium[i] + relaxed[i]
