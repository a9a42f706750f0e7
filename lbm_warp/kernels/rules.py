"""The fast advection-diffusion iteration: collision and streaming in one gather, one float per cell and channel.

With relaxation time 1 the populations are the equilibrium of the cell they come from, so only the density is stored:

    rho'(x) = sum_ij  phi_i(u_x(x - c_ij)) phi_j(u_y(x - c_ij)) rho(x - c_ij).

This is linear in rho, and the weights depend on the velocity alone. So the adjoint is a gather too, with the weights of the cell
itself, lambda'(x) = sum_ij phi_i(u_x(x)) phi_j(u_y(x)) lambda(x + c_ij), and gradients need no stored states.

``forward_weights`` and ``adjoint_weights`` are the only definitions of these weights; the kernels for CPUs and for GPUs use them.
"""

from typing import Any

import warp as wp

wp.set_module_options({"enable_backward": False})

vec9 = wp.types.vector(length=9, dtype=wp.float32)


@wp.func
def phi_minus(u: Any, theta: Any):
    """Fraction of a cell's density that streams one cell in the negative direction of an axis."""
    return type(u)(0.5) * (theta + u * u - u)


@wp.func
def phi_zero(u: Any, theta: Any):
    """Fraction of a cell's density that does not stream along an axis."""
    return type(u)(1.0) - theta - u * u


@wp.func
def phi_plus(u: Any, theta: Any):
    """Fraction of a cell's density that streams one cell in the positive direction of an axis."""
    return type(u)(0.5) * (theta + u * u + u)


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
def forward_weights(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """Fractions of the densities of the nine neighbours, row by row, that stream to a cell.

    The velocity is ``scale`` v [cells per iteration].
    """
    low_y = wp.where(row.low_mirrored, -scale, scale)
    high_y = wp.where(row.high_mirrored, -scale, scale)
    low_x = wp.where(column.low_mirrored, -scale, scale)
    high_x = wp.where(column.high_mirrored, -scale, scale)
    return wp.vector(
        phi_plus(low_y * vy[row.low, column.low], theta) * phi_plus(low_x * vx[row.low, column.low], theta),
        phi_plus(low_y * vy[row.low, column.here], theta) * phi_zero(scale * vx[row.low, column.here], theta),
        phi_plus(low_y * vy[row.low, column.high], theta) * phi_minus(high_x * vx[row.low, column.high], theta),
        phi_zero(scale * vy[row.here, column.low], theta) * phi_plus(low_x * vx[row.here, column.low], theta),
        phi_zero(scale * vy[row.here, column.here], theta) * phi_zero(scale * vx[row.here, column.here], theta),
        phi_zero(scale * vy[row.here, column.high], theta) * phi_minus(high_x * vx[row.here, column.high], theta),
        phi_minus(high_y * vy[row.high, column.low], theta) * phi_plus(low_x * vx[row.high, column.low], theta),
        phi_minus(high_y * vy[row.high, column.here], theta) * phi_zero(scale * vx[row.high, column.here], theta),
        phi_minus(high_y * vy[row.high, column.high], theta) * phi_minus(high_x * vx[row.high, column.high], theta),
    )


@wp.func
def outflow(ux: Any, uy: Any, theta: Any):
    """Fractions of a cell's density that stream to its nine neighbours, row by row; the velocity in cells per iteration."""
    return wp.vector(
        phi_minus(uy, theta) * phi_minus(ux, theta),
        phi_minus(uy, theta) * phi_zero(ux, theta),
        phi_minus(uy, theta) * phi_plus(ux, theta),
        phi_zero(uy, theta) * phi_minus(ux, theta),
        phi_zero(uy, theta) * phi_zero(ux, theta),
        phi_zero(uy, theta) * phi_plus(ux, theta),
        phi_plus(uy, theta) * phi_minus(ux, theta),
        phi_plus(uy, theta) * phi_zero(ux, theta),
        phi_plus(uy, theta) * phi_plus(ux, theta),
    )


@wp.func
def adjoint_weights(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """The outflow of a cell, whose velocity is ``scale`` v; a ghost cell stands for the cell itself."""
    return outflow(scale * vx[row.here, column.here], scale * vy[row.here, column.here], theta)


@wp.func
def drift(direction: wp.int32, u: Any):
    """The part of phi due to the velocity, phi(u) - phi(0)."""
    if direction == 0:
        return -u * u
    return type(u)(0.5) * (u * u + type(u)(direction) * u)


@wp.func
def rest(direction: wp.int32, theta: Any):
    """phi of a fluid at rest."""
    if direction == 0:
        return type(theta)(1.0) - theta
    return type(theta)(0.5) * theta


@wp.func
def excess(dy: wp.int32, dx: wp.int32, ux: Any, uy: Any, theta: Any):
    """The part due to the velocity of the fraction of a cell's density that streams by (dx, dy)."""
    drift_x = drift(dx, ux)
    drift_y = drift(dy, uy)
    return rest(dy, theta) * drift_x + drift_y * (rest(dx, theta) + drift_x)


@wp.func
def divergence_source(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """Change of a background of density one: the sum of the forward weights minus one, the divergence of the flow on the lattice.

    The weights at rest have the sum one, so only the parts due to the velocity are added. Subtracting one from the sum would leave
    a rounding error, which would act as a source in every iteration.
    """
    total = type(theta)(0.0)
    for j in range(3):
        y = wp.where(j == 0, row.low, wp.where(j == 1, row.here, row.high))
        scale_y = wp.where((j == 0 and row.low_mirrored) or (j == 2 and row.high_mirrored), -scale, scale)
        for i in range(3):
            x = wp.where(i == 0, column.low, wp.where(i == 1, column.here, column.high))
            scale_x = wp.where((i == 0 and column.low_mirrored) or (i == 2 and column.high_mirrored), -scale, scale)
            # The density of a neighbour on the low side streams in the positive direction.
            total += excess(1 - j, 1 - i, scale_x * vx[y, x], scale_y * vy[y, x], theta)
    return total


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
