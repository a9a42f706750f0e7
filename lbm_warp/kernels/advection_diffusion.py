"""The fast advection-diffusion iteration: collide and stream in one gather, one float per cell and channel.

With relaxation time 1 the populations are the equilibrium of their source cell, so nothing but the density needs storing:

    rho'(x) = sum_ij  phi_i(u_x(x - c_ij)) phi_j(u_y(x - c_ij)) rho(x - c_ij).

It is linear in rho with weights that depend on the velocity alone, so its adjoint is a gather too, with the weights of the cell
itself, lambda'(x) = sum_ij phi_i(u_x(x)) phi_j(u_y(x)) lambda(x + c_ij): gradients need no stored states.

``arrivals`` and ``departures`` are the only statements of these rules. The CUDA kernels run one thread a cell; the CPU kernels run
one thread an image, or a band of its rows, and many iterations, with the image's shape compiled in, which is what lets LLVM
vectorise along a row.
"""

import functools
from typing import Any, NamedTuple

import warp as wp

wp.set_module_options({"enable_backward": False})

vec9 = wp.types.vector(length=9, dtype=wp.float32)


@wp.func
def phi_minus(u: Any, theta: Any):
    """Share of a cell's density that streams one cell in the negative direction of an axis."""
    return type(u)(0.5) * (theta + u * u - u)


@wp.func
def phi_zero(u: Any, theta: Any):
    """Share of a cell's density that stays where it is along an axis."""
    return type(u)(1.0) - theta - u * u


@wp.func
def phi_plus(u: Any, theta: Any):
    """Share of a cell's density that streams one cell in the positive direction of an axis."""
    return type(u)(0.5) * (theta + u * u + u)


@wp.struct
class Neighbours:
    """The three rows or columns around a cell.

    Beyond a mirror wall lies a ghost cell: the cell itself with its normal velocity negated. A periodic neighbour wraps around.
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
def arrivals(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """What the nine neighbours (row by row) hand to a cell, per unit of their density; ``scale`` v is the velocity an iteration."""
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
def departures(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """What a cell hands to its nine neighbours (row by row), per unit of its density; what meets a wall comes back to the cell."""
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
    """The part of a share phi that is due to the velocity: phi(u) - phi(0)."""
    if direction == 0:
        return -u * u
    return type(u)(0.5) * (u * u + type(u)(direction) * u)


@wp.func
def rest(direction: wp.int32, theta: Any):
    """The share phi of a fluid at rest."""
    if direction == 0:
        return type(theta)(1.0) - theta
    return type(theta)(0.5) * theta


@wp.func
def divergence_source(vx: wp.array2d[Any], vy: wp.array2d[Any], row: Neighbours, column: Neighbours, scale: Any, theta: Any):
    """What a background of density one adds to a cell: the sum of its arrivals minus one, where the lattice sees the flow diverge.

    Shares at rest add up to one, so only the parts due to the velocity are summed. Subtracting one from a rounded sum instead
    would leave a source of the size of the rounding, thousands of iterations over.
    """
    total = type(theta)(0.0)
    for j in range(3):
        y = wp.where(j == 0, row.low, wp.where(j == 1, row.here, row.high))
        scale_y = wp.where((j == 0 and row.low_mirrored) or (j == 2 and row.high_mirrored), -scale, scale)
        for i in range(3):
            x = wp.where(i == 0, column.low, wp.where(i == 1, column.here, column.high))
            scale_x = wp.where((i == 0 and column.low_mirrored) or (i == 2 and column.high_mirrored), -scale, scale)
            # A neighbour on the low side arrives by moving in the positive direction.
            drift_y = drift(1 - j, scale_y * vy[y, x])
            drift_x = drift(1 - i, scale_x * vx[y, x])
            total += rest(1 - j, theta) * drift_x + drift_y * (rest(1 - i, theta) + drift_x)
    return total


@wp.func
def gather(rho: wp.array2d[Any], w: Any, row: Neighbours, column: Neighbours, shift: wp.int32, source: Any):
    """Weighted sum over the nine neighbours, plus ``source``. ``shift`` is the first row of the channel in ``rho``."""
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
    """The kernels for one kind of number, device and direction.

    ``march`` takes image n through its full iterations first[n] to stop[n] (or back, for the adjoint) between two buffers; its
    state begins in ``b`` if their number is odd and always ends in ``a``. ``read`` is one iteration of temperature theta[n] from
    ``a`` to ``b``. The CUDA ``march`` is one iteration, one thread a cell; the CPU ``march`` is many, one thread a job (an image or
    a band of it).
    """

    march: wp.Kernel
    read: wp.Kernel


@functools.cache
def cuda_kernels(dtype: type, adjoint: bool, background: bool) -> Kernels:
    """Kernels with one thread a cell, for images of any shape; ``background`` says whether the offset is other than zero."""
    rule = departures if adjoint else arrivals

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
    def march(
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
        ahead: wp.int32,
    ):
        """``call`` holds the addresses of first, stop, velocity, a and b, and the number of steps behind: see ``repeated``."""
        n, y, x = wp.tid()
        first = wp.array(ptr=wp.uint64(call[0]), shape=(n + 1,), dtype=wp.int32)
        stop = wp.array(ptr=wp.uint64(call[1]), shape=(n + 1,), dtype=wp.int32)
        step = wp.int32(call[5]) + ahead
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
    def read(
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

    return Kernels(march, read)


@wp.kernel(module="unique", enable_backward=False)
def advance_kernel(
    steps: wp.int32,
    # in turn input and output
    call: wp.array[wp.int64],
):
    """Count the steps that a call of ``march`` has behind it."""
    call[5] += wp.int64(steps)


@functools.cache
def cpu_kernels(dtype: type, adjoint: bool, background: bool, periodic: bool, channels: int, height: int, width: int) -> Kernels:
    """Kernels with one thread an image or a band of its rows, for images of one shape.

    What makes them fast: what a thread works on stays in the cache of its core, rows have a length known to the compiler, the
    channels share the nine weights, and addresses are simple enough for LLVM to prove that a row's output does not overlap its
    input.
    """
    rule = departures if adjoint else arrivals
    rows = channels * height
    right = width - 1
    # Unroll over the channels and the neighbours, never along the row: that loop is LLVM's to vectorise.
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
    def sweep_row(
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
        # The two ends of the row look for their neighbours; the loop between them is free of branches.
        for end in range(2):
            update_cell(source, vx, vy, row, neighbours(end * right, width, periodic), scale, theta, offset, target)
        for x in range(1, right):
            update_cell(source, vx, vy, row, Neighbours(x - 1, x, x + 1, False, False), scale, theta, offset, target)

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def march(
        job: wp.array2d[wp.int32],
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
        # in turn inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """A job is (image, top, bottom, top's growth, bottom's growth): a band of rows whose edges move with each iteration."""
        number = wp.tid()
        n = job[number, 0]
        top = job[number, 1]
        bottom = job[number, 2]
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
            low = top + (step - begin) * job[number, 3]
            band = bottom + (step - begin) * job[number, 4] - low
            # All rows, of which the band's are picked: a range that is not constant would make the loop five times slower,
            # because LLVM does not see through it.
            if (count - step) % 2 == 0:
                for y in range(height):
                    if (y - low + height) % height < band:
                        sweep_row(state, vx, vy, y, scale, theta, offset, scratch)
            else:
                for y in range(height):
                    if (y - low + height) % height < band:
                        sweep_row(scratch, vx, vy, y, scale, theta, offset, state)

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def read(
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
            sweep_row(state, vx, vy, y, velocity_per_theta * theta[n], theta[n], offset, result)

    return Kernels(march, read)
