"""The fast advection-diffusion iteration: collision and streaming in one gather, one float per cell and channel.

With relaxation time 1 the populations are the equilibrium of the cell they come from, so only the density is stored:

    rho'(x) = sum_ij  phi_i(u_x(x - c_ij)) phi_j(u_y(x - c_ij)) rho(x - c_ij).

This is linear in rho, and the weights depend on the velocity alone. So the adjoint is a gather too, with the weights of the cell
itself, lambda'(x) = sum_ij phi_i(u_x(x)) phi_j(u_y(x)) lambda(x + c_ij), and gradients need no stored states.

``forward_weights`` and ``adjoint_weights`` are the only definitions of these weights. The CUDA kernels use one thread per cell. The
CPU kernels use one thread per image, or per tile of its rows, for many iterations; the shape of the image is a compile-time
constant, so that LLVM vectorises along the rows.
"""

import functools
from typing import Any, NamedTuple

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
def adjoint_weights(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """Fractions of a cell's density that stream to its nine neighbours, row by row; a ghost cell stands for the cell itself."""
    ux = scale * vx[row.here, column.here]
    uy = scale * vy[row.here, column.here]
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
            drift_y = drift(1 - j, scale_y * vy[y, x])
            drift_x = drift(1 - i, scale_x * vx[y, x])
            total += rest(1 - j, theta) * drift_x + drift_y * (rest(1 - i, theta) + drift_x)
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


class Kernels(NamedTuple):
    """The kernels for one dtype, device and direction.

    ``advance`` computes the full iterations first[n] to stop[n] - 1 of image n, for the adjoint in reverse order, between two
    buffers. The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``. On CUDA a launch is one
    iteration with one thread per cell, on the CPU many iterations with one thread per tile (an image or some of its rows).
    ``read_out`` is one iteration from ``a`` to ``b`` with lattice temperature theta[n].
    """

    advance: wp.Kernel
    read_out: wp.Kernel


@functools.cache
def cuda_kernels(dtype: type, adjoint: bool, background: bool) -> Kernels:
    """Kernels with one thread per cell, for images of any shape; ``background``: the offset is not zero."""
    rule = adjoint_weights if adjoint else forward_weights

    @wp.func
    def update_cell(
        n: wp.int32,
        y: wp.int32,
        x: wp.int32,
        velocity: wp.array4d[dtype],
        scale: dtype,
        theta: dtype,
        offset: dtype,
        periodic: wp.bool,
        source: wp.array4d[dtype],
        # outputs
        target: wp.array4d[dtype],
    ):
        row = neighbours(y, source.shape[2], periodic)
        column = neighbours(x, source.shape[3], periodic)
        w = rule(velocity[n, 0], velocity[n, 1], row, column, scale, theta)
        extra = dtype(0.0)
        if wp.static(background):
            extra = offset * divergence_source(velocity[n, 0], velocity[n, 1], row, column, scale, theta)
        for c in range(source.shape[1]):
            target[n, c, y, x] = gather(source[n, c], w, row, column, 0, extra)

    @wp.kernel(module="unique", enable_backward=False)
    def advance(
        call: wp.array[wp.int64],
        channels: wp.int32,
        height: wp.int32,
        width: wp.int32,
        velocity_per_theta: dtype,
        sharp_theta: dtype,
        smooth_theta: dtype,
        smooth_from: wp.int32,
        offset: dtype,
        periodic: wp.bool,
        index: wp.int32,
    ):
        """``call`` holds the addresses of first, stop, velocity, a and b, and the number of steps done: see launch_repeatedly."""
        n, y, x = wp.tid()
        first = wp.array(ptr=wp.uint64(call[0]), shape=(n + 1,), dtype=wp.int32)
        stop = wp.array(ptr=wp.uint64(call[1]), shape=(n + 1,), dtype=wp.int32)
        step = wp.int32(call[5]) + index
        left = stop[n] - first[n] - step
        if left <= 0:
            return
        velocity = wp.array(ptr=wp.uint64(call[2]), shape=(n + 1, 2, height, width), dtype=dtype)
        a = wp.array(ptr=wp.uint64(call[3]), shape=(n + 1, channels, height, width), dtype=dtype)
        b = wp.array(ptr=wp.uint64(call[4]), shape=(n + 1, channels, height, width), dtype=dtype)
        iteration = first[n] + step
        if wp.static(adjoint):
            iteration = first[n] + left - 1
        theta = wp.where(iteration < smooth_from, sharp_theta, smooth_theta)
        if left % 2 == 0:
            update_cell(n, y, x, velocity, velocity_per_theta * theta, theta, offset, periodic, a, b)
        else:
            update_cell(n, y, x, velocity, velocity_per_theta * theta, theta, offset, periodic, b, a)

    @wp.kernel(module="unique", enable_backward=False)
    def read_out(
        theta: wp.array[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        offset: dtype,
        periodic: wp.bool,
        # outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        n, y, x = wp.tid()
        update_cell(n, y, x, velocity, velocity_per_theta * theta[n], theta[n], offset, periodic, a, b)

    return Kernels(advance, read_out)


@wp.kernel(module="unique", enable_backward=False)
def count_steps_kernel(
    steps: wp.int32,
    # input and output
    call: wp.array[wp.int64],
):
    """Add to the number of steps done in ``call``."""
    call[5] += wp.int64(steps)


@functools.cache
def cpu_kernels(dtype: type, adjoint: bool, background: bool, periodic: bool, channels: int, height: int, width: int) -> Kernels:
    """Kernels with one thread per image or tile of rows, for images of one shape.

    They are fast because the data of a thread stays in the cache of its core, the length of a row is a compile-time constant, the
    channels share the nine weights, and LLVM can prove that the output of a row does not overlap its input.
    """
    rule = adjoint_weights if adjoint else forward_weights
    rows = channels * height
    right = width - 1
    # Unroll the loops over channels and neighbours, but not the loop along a row, which LLVM vectorises.
    options = {"max_unroll": max(channels, 3)}

    @wp.func
    def update_cell(
        source: wp.array2d[dtype],
        vx: wp.array2d[dtype],
        vy: wp.array2d[dtype],
        row: Neighbours,
        column: Neighbours,
        scale: dtype,
        theta: dtype,
        offset: dtype,
        # outputs
        target: wp.array2d[dtype],
    ):
        w = rule(vx, vy, row, column, scale, theta)
        extra = dtype(0.0)
        if wp.static(background):
            extra = offset * divergence_source(vx, vy, row, column, scale, theta)
        for c in range(channels):
            target[c * height + row.here, column.here] = gather(source, w, row, column, c * height, extra)

    @wp.func
    def update_row(
        source: wp.array2d[dtype],
        vx: wp.array2d[dtype],
        vy: wp.array2d[dtype],
        y: wp.int32,
        scale: dtype,
        theta: dtype,
        offset: dtype,
        # outputs
        target: wp.array2d[dtype],
    ):
        row = neighbours(y, height, periodic)
        # The two ends are apart, so that the loop over the other cells has no branches.
        for end in range(2):
            update_cell(source, vx, vy, row, neighbours(end * right, width, periodic), scale, theta, offset, target)
        for x in range(1, right):
            update_cell(source, vx, vy, row, Neighbours(x - 1, x, x + 1, False, False), scale, theta, offset, target)

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def advance(
        tile: wp.array2d[wp.int32],
        first: wp.array[wp.int32],
        stop: wp.array[wp.int32],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        sharp_theta: dtype,
        smooth_theta: dtype,
        smooth_from: wp.int32,
        offset: dtype,
        begin: wp.int32,
        end: wp.int32,
        # inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """Iterations ``begin`` to ``end`` - 1, counted from first[n]; for the columns of ``tile`` see ``stepping.tile_rows``."""
        t = wp.tid()
        n = tile[t, 0]
        top = tile[t, 1]
        bottom = tile[t, 2]
        vx = wp.array(ptr=velocity[n, 0].ptr, shape=(height, width), dtype=dtype)
        vy = wp.array(ptr=velocity[n, 1].ptr, shape=(height, width), dtype=dtype)
        state = wp.array(ptr=a[n].ptr, shape=(rows, width), dtype=dtype)
        scratch = wp.array(ptr=b[n].ptr, shape=(rows, width), dtype=dtype)
        count = stop[n] - first[n]
        for step in range(begin, wp.min(end, count)):
            iteration = first[n] + step
            if wp.static(adjoint):
                iteration = stop[n] - 1 - step
            theta = wp.where(iteration < smooth_from, sharp_theta, smooth_theta)
            scale = velocity_per_theta * theta
            low = top + (step - begin) * tile[t, 3]
            rows_now = bottom + (step - begin) * tile[t, 4] - low
            # A loop over all rows that skips those outside the tile: with a range that is not a compile-time constant LLVM makes a
            # loop five times slower.
            if (count - step) % 2 == 0:
                for y in range(height):
                    if (y - low + height) % height < rows_now:
                        update_row(state, vx, vy, y, scale, theta, offset, scratch)
            else:
                for y in range(height):
                    if (y - low + height) % height < rows_now:
                        update_row(scratch, vx, vy, y, scale, theta, offset, state)

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def read_out(
        theta: wp.array[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        offset: dtype,
        # outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        n = wp.tid()
        vx = wp.array(ptr=velocity[n, 0].ptr, shape=(height, width), dtype=dtype)
        vy = wp.array(ptr=velocity[n, 1].ptr, shape=(height, width), dtype=dtype)
        state = wp.array(ptr=a[n].ptr, shape=(rows, width), dtype=dtype)
        result = wp.array(ptr=b[n].ptr, shape=(rows, width), dtype=dtype)
        for y in range(height):
            update_row(state, vx, vy, y, velocity_per_theta * theta[n], theta[n], offset, result)

    return Kernels(advance, read_out)
