"""The weights of an iteration, once for all iterations in the same velocity at the same lattice temperature.

A stencil holds nine weights for every cell, row by row: of the neighbour at (-1, -1), (-1, 0), ..., (1, 1). So the kernels that
iterate need no velocities, and the adjoint is the same kernel with other weights. A tenth number is the source of a background.
"""

import functools

import warp as wp

from lbm_warp.kernels.rules import Neighbours, at_rest, beside, excess, exchanged, fractions, moments, neighbours, returned, scaled


@functools.cache
def send_function(dtype: type, adjoint: bool) -> wp.Function:
    """A function that writes the weights which a cell gives: forward those of the cells that it sends to, else its own.

    ``sent`` are the fractions of the cell. Its ``planes`` are the weights of an image, one below the other, ``height`` rows each.
    """

    @wp.func
    def send(
        sent: wp.types.vector(length=9, dtype=dtype),
        row: Neighbours,
        column: Neighbours,
        height: wp.int32,
        # outputs
        planes: wp.array2d[dtype],
    ):
        for k in range(9):
            if wp.static(adjoint):
                planes[k * height + row.here, column.here] = sent[k]
            else:
                dy = k // 3 - 1
                dx = k % 3 - 1
                plane = 4 + 3 * returned(row, dy) + returned(column, dx)
                planes[plane * height + beside(row, dy), beside(column, dx)] = sent[k]

    return send


@functools.cache
def stencil_kernel(dtype: type, adjoint: bool) -> wp.Kernel:
    """The nine weights at each of some temperatures; one thread a cell."""
    send = send_function(dtype, adjoint)

    @wp.kernel(module="unique", enable_backward=False)
    def weights(
        velocity: wp.array4d[dtype],
        theta: wp.array2d[dtype],
        velocity_per_theta: dtype,
        periodic: wp.bool,
        # outputs
        stencil: wp.array4d[dtype],
    ):
        """The velocity is ``velocity_per_theta`` theta[p, n] times ``velocity`` [cells per iteration].

        The weights are entry p N + n of ``stencil``; none are made for a negative temperature.
        """
        n, y, x = wp.tid()
        height = velocity.shape[2]
        width = velocity.shape[3]
        row = neighbours(y, height, periodic)
        column = neighbours(x, width, periodic)
        m = moments(velocity[n, 0], velocity[n, 1], row, column)
        for p in range(theta.shape[0]):
            here = theta[p, n]
            if here >= dtype(0.0):
                entry = stencil[p * theta.shape[1] + n]
                planes = wp.array(ptr=entry.ptr, shape=(stencil.shape[1] * height, width), dtype=dtype)
                send(fractions(scaled(m, velocity_per_theta * here), here), row, column, height, planes)

    return weights


@functools.cache
def medium_kernel(dtype: type) -> wp.Kernel:
    """Puts the fractions of a medium in the place of those of a fluid at rest; one thread a cell.

    A link takes the same share both ways, so it is no matter whether the weights are those of the adjoint.
    """

    @wp.kernel(module="unique", enable_backward=False)
    def medium(
        theta: wp.array[dtype],
        resistance: wp.array3d[dtype],
        periodic: wp.bool,
        # inputs and outputs
        stencil: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        row = neighbours(y, resistance.shape[1], periodic)
        column = neighbours(x, resistance.shape[2], periodic)
        change = exchanged(resistance[n], row, column, theta[n]) - at_rest(theta[n])
        for k in range(9):
            stencil[n, k, y, x] = stencil[n, k, y, x] + change[k]

    return medium


@functools.cache
def source_kernel(dtype: type) -> wp.Kernel:
    """The source of a background of density ``offset``, the tenth number: what a cell gets in excess of a fluid at rest.

    The weights at rest have the sum one, so only the parts due to the flow are added. Subtracting one from the sum of the weights
    would leave a rounding error, which would act as a source in every iteration.
    """

    @wp.kernel(module="unique", enable_backward=False)
    def source(
        theta: wp.array[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        periodic: wp.bool,
        offset: dtype,
        # outputs
        stencil: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        row = neighbours(y, velocity.shape[2], periodic)
        column = neighbours(x, velocity.shape[3], periodic)
        total = dtype(0.0)
        for j in range(-1, 2):
            for i in range(-1, 2):
                there_y = neighbours(beside(row, j), velocity.shape[2], periodic)
                there_x = neighbours(beside(column, i), velocity.shape[3], periodic)
                m = scaled(moments(velocity[n, 0], velocity[n, 1], there_y, there_x), velocity_per_theta * theta[n])
                sent = excess(m, theta[n])
                direction = 4 + 3 * returned(row, j) + returned(column, i)
                for k in range(9):
                    total += wp.where(k == direction, sent[k], dtype(0.0))
        stencil[n, 9, y, x] = offset * total

    return source
