"""The advection-diffusion iteration: collision and streaming in one weighted sum, one float per cell and channel.

With relaxation time 1 the populations are the equilibrium of the cell they come from, so only the density is stored:

    rho'(x) = sum_c f_c(x - c) rho(x - c),    c = (c_x, c_y) with c_x, c_y in {-1, 0, 1},    sum_c f_c = 1.

The fractions f_c are the equilibrium of unit density at the lattice temperature theta. At rest they are w(c_x) w(c_y) with
w = (theta / 2, 1 - theta, theta / 2). In a velocity u (cells per iteration) that is the same everywhere, the Taylor series of the
exact solution is, up to the second order in time,

    f_c = w(c_x) w(c_y) + w(c_y) d_x(c_x) + w(c_x) d_y(c_y) + c_x c_y u_x u_y / 4,
    d_i(0) = -u_i^2,    d_i(+-1) = (u_i^2 +- u_i) / 2.

Where it varies, three things change. With central differences D over two cells, second differences L and means A = (1, 2, 1) / 4:

  - The path of a cell is curved: u_i becomes u_i + c_i / 2 with c_i = D_x(u_i u_x) + D_y(u_i u_y) - u_i div u, that is
    (u . grad) u.
  - A flat density must stay flat. It gets sum_c f_c(x - c) - 1, the divergence of the flow as the lattice sees it. This is zero
    only if its terms are differences of one kind. So u_i^2 becomes Q_i = A_i u_i^2, u_x u_y becomes S = (A_x + A_y) u_x u_y / 2.
  - As w(c_y) = theta (1, 2, 1) / 2 + (1 - 2 theta) (0, 1, 0), a share 1 - 2 theta of what streams along x is not spread along y.
    It takes A_y u_x and A_y Q_x instead of u_x and Q_x; along y likewise. The c_i / 2 are spread by (1, 2, 1) / 4.

What a flat density gets is then

    -A_y D_x (u_x + c_x / 2) - A_x D_y (u_y + c_y / 2) + (A_y L_x Q_x + A_x L_y Q_y) / 2 + D_x D_y S.

As D D = A L, everything cancels wherever div u = A_y D_x u_x + A_x D_y u_y is zero, at every velocity and every theta. It is zero
for the discrete curl of ``lbm_warp.turbulence``. In a flow that is the same everywhere no f_c is negative if |u_i| <= theta <= 1/2.

The iteration is linear in rho. Its adjoint is a weighted sum too, lambda'(x) = sum_c f_c(x) lambda(x + c), so gradients need no
stored states. ``moments`` and ``fractions`` are the only definitions of the scheme.

In a medium the diffusivity is alpha = a(x) theta / 2 with 0 <= a <= 1. Cells that send at a temperature theta a(x) of their own
solve du/dt = div grad(alpha u). That is div(alpha grad u) and a velocity -grad alpha, which must be added back; a share w a(x) of a
link c then becomes w (a(x) + c . grad a / 2), the share of its middle. So shares at rest become those of the links, the same both
ways (:func:`exchanged`). With the harmonic mean a_e of the two cells beside an edge and a_k of the four around a corner they are

    corner = (theta a_k / 2)^2,    edge = theta a_e / 2 - the corners at its two ends,    middle = 1 - all others.

  - The corners add d_x^2 d_y^2 of the fourth order alone. Without it this is the method of finite volumes, exact for layers along
    an axis; with it, a constant a is the scheme above at theta a. The error is of the second order, (theta a - 3 theta^2 a^2) / 24
    times d_x^4 + d_y^4 and not the same in all directions.
  - A flat density stays flat, a wall (a = 0) takes nothing, and no share is negative for theta <= 1/2, as a_k is at most
    2 a_e, which is enough for a_e <= 1 / (4 theta), and at most 1, which is enough for others.
  - The shares due to the flow stay those of theta, so that they cancel as above: an error of the second order.
"""

from typing import Any

import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.struct
class Neighbours:
    """Indices of a cell and its two neighbours along an axis.

    Beyond a wall lies a ghost cell, the mirror image: the cell itself with its normal velocity negated.
    """

    low: wp.int32
    here: wp.int32
    high: wp.int32
    low_mirrored: wp.bool
    high_mirrored: wp.bool


@wp.func
def neighbours(i: wp.int32, size: wp.int32, periodic: wp.bool) -> Neighbours:
    """Neighbours of cell ``i`` along an axis of ``size`` cells."""
    low = wp.max(i - 1, 0)
    high = wp.min(i + 1, size - 1)
    if periodic:
        low = wp.where(i == 0, size - 1, low)
        high = wp.where(i == size - 1, 0, high)
    return Neighbours(low, i, high, not periodic and i == 0, not periodic and i == size - 1)


@wp.func
def moments(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours):
    """What the fractions need of a flow in a cell: (u_x, u_y, A_y u_x, A_x u_y, c_x, c_y, Q_x, Q_y, A_y Q_x, A_x Q_y, S)."""
    x = vx[row.here, column.here]
    y = vy[row.here, column.here]
    one = type(x)(1.0)
    half = type(x)(0.5)
    quarter = type(x)(0.25)
    # The signs of the components in the mirror images: x at the left and the right, y above and below.
    left = wp.where(column.low_mirrored, -one, one)
    right = wp.where(column.high_mirrored, -one, one)
    above = wp.where(row.low_mirrored, -one, one)
    below = wp.where(row.high_mirrored, -one, one)
    x_left = left * vx[row.here, column.low]
    x_right = right * vx[row.here, column.high]
    x_above = vx[row.low, column.here]
    x_below = vx[row.high, column.here]
    y_left = vy[row.here, column.low]
    y_right = vy[row.here, column.high]
    y_above = above * vy[row.low, column.here]
    y_below = below * vy[row.high, column.here]
    # The two central differences of the divergence, each a mean across.
    slope_x = half * (
        half * (x_right - x_left)
        + quarter * (right * (vx[row.low, column.high] + vx[row.high, column.high]))
        - quarter * (left * (vx[row.low, column.low] + vx[row.high, column.low]))
    )
    slope_y = half * (
        half * (y_below - y_above)
        + quarter * (below * (vy[row.high, column.low] + vy[row.high, column.high]))
        - quarter * (above * (vy[row.low, column.low] + vy[row.low, column.high]))
    )
    divergence = slope_x + slope_y
    two = type(x)(2.0)
    square_x = quarter * (x_left * x_left + two * x * x + x_right * x_right)
    square_y = quarter * (y_above * y_above + two * y * y + y_below * y_below)
    # The same in the cells above and below, and at the left and the right.
    squares_x = quarter * (
        squared(vx[row.low, column.low], vx[row.low, column.here], vx[row.low, column.high])
        + squared(vx[row.high, column.low], vx[row.high, column.here], vx[row.high, column.high])
    )
    squares_y = quarter * (
        squared(vy[row.low, column.low], vy[row.here, column.low], vy[row.high, column.low])
        + squared(vy[row.low, column.high], vy[row.here, column.high], vy[row.high, column.high])
    )
    # u_x u_y beside the cell; a ghost cell has the product of the mirrored components.
    product_left = x_left * y_left
    product_right = x_right * y_right
    product_above = x_above * y_above
    product_below = x_below * y_below
    return wp.vector(
        x,
        y,
        quarter * (x_above + two * x + x_below),
        quarter * (y_left + two * y + y_right),
        half * (x_right * x_right - x_left * x_left + product_below - product_above) - x * divergence,
        half * (y_below * y_below - y_above * y_above + product_right - product_left) - y * divergence,
        square_x,
        square_y,
        half * square_x + squares_x,
        half * square_y + squares_y,
        half * x * y + type(x)(0.125) * (product_left + product_right + product_above + product_below),
    )


@wp.func
def squared(low: Any, here: Any, high: Any):
    """The mean (1, 2, 1) / 4 of squares."""
    return type(low)(0.25) * (low * low + type(low)(2.0) * here * here + high * high)


@wp.func
def scaled(m: Any, scale: Any):
    """The moments of ``scale`` times the velocity."""
    square = scale * scale
    return wp.vector(
        scale * m[0],
        scale * m[1],
        scale * m[2],
        scale * m[3],
        square * m[4],
        square * m[5],
        square * m[6],
        square * m[7],
        square * m[8],
        square * m[9],
        square * m[10],
    )


@wp.func
def excess(m: Any, theta: Any):
    """The parts due to the flow of the fractions f_c, by rows of c; ``m`` are its :func:`moments`."""
    half = type(theta)(0.5)
    quarter = type(theta)(0.25)
    eighth = type(theta)(0.125)
    spread = half * theta
    straight = type(theta)(1.0) - theta - theta
    # What streams to the four corners and to the four sides; even and odd in the velocity.
    corner = half * spread * (m[6] + m[7])
    corner_x = half * (spread * m[0] + eighth * m[4])
    corner_y = half * (spread * m[1] + eighth * m[5])
    product = quarter * m[10]
    side_x = half * straight * m[8] + spread * (m[6] - m[7])
    side_y = half * straight * m[9] + spread * (m[7] - m[6])
    odd_x = half * straight * m[2] + spread * m[0] + eighth * m[4]
    odd_y = half * straight * m[3] + spread * m[1] + eighth * m[5]
    return wp.vector(
        corner - corner_x - corner_y + product,
        side_y - odd_y,
        corner + corner_x - corner_y - product,
        side_x - odd_x,
        -theta * (m[6] + m[7]) - straight * (m[8] + m[9]),
        side_x + odd_x,
        corner - corner_x + corner_y - product,
        side_y + odd_y,
        corner + corner_x + corner_y + product,
    )


@wp.func
def fractions(m: Any, theta: Any):
    """The fractions f_c of a cell's density that stream by c, by rows of c."""
    return excess(m, theta) + at_rest(theta)


@wp.func
def at_rest(theta: Any):
    """The fractions f_c in a fluid at rest, by rows of c."""
    middle = type(theta)(1.0) - theta
    side = type(theta)(0.5) * theta
    corner = side * side
    edge = side * middle
    return wp.vector(corner, edge, corner, edge, middle * middle, edge, corner, edge, corner)


@wp.func
def exchanged(resistance: wp.array2d[Any], row: Neighbours, column: Neighbours, theta: Any):
    """The fractions in a medium at rest, by rows of c; ``resistance`` is 1 / a, infinite in walls."""
    here = resistance[row.here, column.here]
    above = here + resistance[row.low, column.here]
    below = here + resistance[row.high, column.here]
    left = resistance[row.here, column.low]
    right = resistance[row.here, column.high]
    # theta a / 2 at the corners, and on the edges.
    two = type(theta)(2.0)
    above_left = two * theta / (above + left + resistance[row.low, column.low])
    above_right = two * theta / (above + right + resistance[row.low, column.high])
    below_left = two * theta / (below + left + resistance[row.high, column.low])
    below_right = two * theta / (below + right + resistance[row.high, column.high])
    above_left *= above_left
    above_right *= above_right
    below_left *= below_left
    below_right *= below_right
    top = theta / above - above_left - above_right
    bottom = theta / below - below_left - below_right
    west = theta / (here + left) - above_left - below_left
    east = theta / (here + right) - above_right - below_right
    given = above_left + top + above_right + west + east + below_left + bottom + below_right
    return wp.vector(above_left, top, above_right, west, type(theta)(1.0) - given, east, below_left, bottom, below_right)


@wp.func
def beside(neighbour: Neighbours, direction: wp.int32) -> wp.int32:
    """Index of the cell at ``direction`` along an axis."""
    return wp.where(direction < 0, neighbour.low, wp.where(direction > 0, neighbour.high, neighbour.here))


@wp.func
def returned(neighbour: Neighbours, direction: wp.int32) -> wp.int32:
    """Where what a cell sends in ``direction`` comes from, as seen by the cell that gets it.

    It comes from the other side; what a wall sends back comes from the mirror image beyond it.
    """
    if (direction < 0 and neighbour.low_mirrored) or (direction > 0 and neighbour.high_mirrored):
        return direction
    return -direction


@wp.func
def weights(stencil: wp.array2d[Any], pitch: wp.int32, y: wp.int32, x: wp.int32):
    """The nine weights of a cell; each is ``pitch`` rows of ``stencil`` after the one before."""
    return wp.vector(
        stencil[y, x],
        stencil[pitch + y, x],
        stencil[2 * pitch + y, x],
        stencil[3 * pitch + y, x],
        stencil[4 * pitch + y, x],
        stencil[5 * pitch + y, x],
        stencil[6 * pitch + y, x],
        stencil[7 * pitch + y, x],
        stencil[8 * pitch + y, x],
    )


@wp.func
def gather(rho: wp.array2d[Any], w: Any, row: Neighbours, column: Neighbours, shift: wp.int32, source: Any):
    """Weighted sum over the nine neighbours, plus ``source``; ``shift`` is the first row of the channel in ``rho``."""
    low = shift + row.low
    here = shift + row.here
    high = shift + row.high
    return (
        source
        + w[0] * rho[low, column.low]
        + w[1] * rho[low, column.here]
        + w[2] * rho[low, column.high]
        + w[3] * rho[here, column.low]
        + w[4] * rho[here, column.here]
        + w[5] * rho[here, column.high]
        + w[6] * rho[high, column.low]
        + w[7] * rho[high, column.here]
        + w[8] * rho[high, column.high]
    )
