"""The fast advection-diffusion iteration: collide and stream in one gather, one float per cell and channel.

With relaxation time 1 the populations are the equilibrium of their source cell, so nothing but the density needs storing:

    rho'(x) = sum_ij  phi_i(u_x(x - c_ij)) phi_j(u_y(x - c_ij)) rho(x - c_ij).

``weights`` is the only statement of this rule. The CUDA kernel runs one thread a cell; the CPU kernel runs one thread an image
and all of its iterations, with the image's shape compiled in, which is what lets LLVM vectorise along a row.
"""

import functools

import warp as wp

wp.set_module_options({"enable_backward": False})

vec9 = wp.types.vector(length=9, dtype=wp.float32)


@wp.func
def phi_minus(u: wp.float32, theta: wp.float32) -> wp.float32:
    """Share of a cell's density that streams one cell in the negative direction of an axis."""
    return 0.5 * (theta + u * u - u)


@wp.func
def phi_zero(u: wp.float32, theta: wp.float32) -> wp.float32:
    """Share of a cell's density that stays where it is along an axis."""
    return 1.0 - theta - u * u


@wp.func
def phi_plus(u: wp.float32, theta: wp.float32) -> wp.float32:
    """Share of a cell's density that streams one cell in the positive direction of an axis."""
    return 0.5 * (theta + u * u + u)


@wp.struct
class Neighbours:
    """The three rows or columns around a cell, and the factors on the velocity there.

    A mirror wall's ghost cell is the cell itself with its normal velocity negated; a periodic neighbour wraps around.
    """

    low: wp.int32
    here: wp.int32
    high: wp.int32
    low_scale: wp.float32
    high_scale: wp.float32


@wp.func
def neighbours(i: wp.int32, size: wp.int32, periodic: wp.bool, scale: wp.float32) -> Neighbours:
    """Neighbours of cell ``i`` along an axis of ``size`` cells; ``scale`` turns the field into velocity per iteration."""
    low = wp.max(i - 1, 0)
    high = wp.min(i + 1, size - 1)
    low_scale = scale
    high_scale = scale
    if periodic:
        low = wp.where(i == 0, size - 1, low)
        high = wp.where(i == size - 1, 0, high)
    else:
        low_scale = wp.where(i == 0, -scale, scale)
        high_scale = wp.where(i == size - 1, -scale, scale)
    return Neighbours(low, i, high, low_scale, high_scale)


@wp.func
def weights(
    vx: wp.array2d[wp.float32],
    vy: wp.array2d[wp.float32],
    row: Neighbours,
    column: Neighbours,
    scale: wp.float32,
    theta: wp.float32,
) -> vec9:
    """What the nine neighbours (row by row) hand to a cell, per unit of their density."""
    return vec9(
        phi_plus(row.low_scale * vy[row.low, column.low], theta) * phi_plus(column.low_scale * vx[row.low, column.low], theta),
        phi_plus(row.low_scale * vy[row.low, column.here], theta) * phi_zero(scale * vx[row.low, column.here], theta),
        phi_plus(row.low_scale * vy[row.low, column.high], theta) * phi_minus(column.high_scale * vx[row.low, column.high], theta),
        phi_zero(scale * vy[row.here, column.low], theta) * phi_plus(column.low_scale * vx[row.here, column.low], theta),
        phi_zero(scale * vy[row.here, column.here], theta) * phi_zero(scale * vx[row.here, column.here], theta),
        phi_zero(scale * vy[row.here, column.high], theta) * phi_minus(column.high_scale * vx[row.here, column.high], theta),
        phi_minus(row.high_scale * vy[row.high, column.low], theta) * phi_plus(column.low_scale * vx[row.high, column.low], theta),
        phi_minus(row.high_scale * vy[row.high, column.here], theta) * phi_zero(scale * vx[row.high, column.here], theta),
        phi_minus(row.high_scale * vy[row.high, column.high], theta)
        * phi_minus(column.high_scale * vx[row.high, column.high], theta),
    )


@wp.func
def total(w: vec9) -> wp.float32:
    """The sum of the nine weights: 1 minus the divergence the lattice sees."""
    return w[0] + w[1] + w[2] + w[3] + w[4] + w[5] + w[6] + w[7] + w[8]


@wp.func
def gather(
    rho: wp.array2d[wp.float32], w: vec9, row: Neighbours, column: Neighbours, shift: wp.int32, source: wp.float32
) -> wp.float32:
    """The density that arrives in a cell, plus ``source``. ``shift`` is the first row of the channel in ``rho``."""
    low = row.low + shift
    here = row.here + shift
    high = row.high + shift
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


@wp.func
def update_cell(
    n: wp.int32,
    y: wp.int32,
    x: wp.int32,
    velocity: wp.array4d[wp.float32],
    velocity_per_theta: wp.float32,
    theta: wp.float32,
    offset: wp.float32,
    periodic: wp.bool,
    source: wp.array4d[wp.float32],
    # outputs
    target: wp.array4d[wp.float32],
):
    """One iteration of one cell, all channels. ``offset`` feels the flow only where the lattice sees it diverge."""
    scale = velocity_per_theta * theta
    row = neighbours(y, source.shape[2], periodic, scale)
    column = neighbours(x, source.shape[3], periodic, scale)
    w = weights(velocity[n, 0], velocity[n, 1], row, column, scale, theta)
    divergence_source = offset * (total(w) - 1.0)
    for c in range(source.shape[1]):
        target[n, c, y, x] = gather(source[n, c], w, row, column, 0, divergence_source)


@wp.kernel
def advance_kernel(
    iteration: wp.int32,
    first: wp.array[wp.int32],
    stop: wp.array[wp.int32],
    velocity: wp.array4d[wp.float32],
    velocity_per_theta: wp.float32,
    theta: wp.float32,
    offset: wp.float32,
    periodic: wp.bool,
    source: wp.array4d[wp.float32],
    # outputs
    target: wp.array4d[wp.float32],
):
    """One full iteration, one thread a cell, of every image with first[n] <= iteration < stop[n]."""
    n, y, x = wp.tid()
    if iteration >= first[n] and iteration < stop[n]:
        update_cell(n, y, x, velocity, velocity_per_theta, theta, offset, periodic, source, target)


@wp.kernel
def read_kernel(
    anchor: wp.array[wp.int32],
    partial_theta: wp.array[wp.float32],
    velocity: wp.array4d[wp.float32],
    velocity_per_theta: wp.float32,
    offset: wp.float32,
    periodic: wp.bool,
    even: wp.array4d[wp.float32],
    odd: wp.array4d[wp.float32],
    # outputs
    out: wp.array4d[wp.float32],
):
    """The partial iteration that reads a level from its anchor, one thread a cell. Even anchors lie in ``even``."""
    n, y, x = wp.tid()
    if anchor[n] % 2 == 0:
        update_cell(n, y, x, velocity, velocity_per_theta, partial_theta[n], offset, periodic, even, out)
    else:
        update_cell(n, y, x, velocity, velocity_per_theta, partial_theta[n], offset, periodic, odd, out)


@functools.cache
def cpu_kernels(channels: int, height: int, width: int, periodic: bool) -> tuple[wp.Kernel, wp.Kernel]:
    """The CPU kernels (march, read) for images of one shape, one thread an image.

    ``march`` takes each image through all of its full iterations, so it stays in the cache of its core; ``read`` is
    :func:`read_kernel`. What makes them fast: rows of a length known to the compiler, the nine weights shared by the channels, and
    addresses simple enough for LLVM to prove that a row's output does not overlap its input (one choice between two buffers is).
    """
    rows = channels * height
    right = width - 1

    @wp.func
    def sweep_row(
        source: wp.array2d[wp.float32],
        vx: wp.array2d[wp.float32],
        vy: wp.array2d[wp.float32],
        row: Neighbours,
        scale: wp.float32,
        theta: wp.float32,
        offset: wp.float32,
        # outputs
        target: wp.array2d[wp.float32],
    ):
        # The two ends of the row look for their neighbours; the loop between them is free of branches.
        for end in range(2):
            column = neighbours(end * right, width, periodic, scale)
            w = weights(vx, vy, row, column, scale, theta)
            divergence_source = offset * (total(w) - 1.0)
            for c in range(channels):
                target[c * height + row.here, end * right] = gather(source, w, row, column, c * height, divergence_source)
        for x in range(1, right):
            column = Neighbours(x - 1, x, x + 1, scale, scale)
            w = weights(vx, vy, row, column, scale, theta)
            divergence_source = offset * (total(w) - 1.0)
            for c in range(channels):
                target[c * height + row.here, x] = gather(source, w, row, column, c * height, divergence_source)

    # Unroll over the channels and the ends of a row, never along the row: that loop is LLVM's to vectorise.
    options = {"max_unroll": max(channels, 2)}

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def march(
        first: wp.array[wp.int32],
        stop: wp.array[wp.int32],
        velocity: wp.array4d[wp.float32],
        velocity_per_theta: wp.float32,
        sharp_theta: wp.float32,
        smooth_theta: wp.float32,
        smooth_from: wp.int32,
        offset: wp.float32,
        # in turn inputs and outputs
        even: wp.array4d[wp.float32],
        odd: wp.array4d[wp.float32],
    ):
        n = wp.tid()
        vx = wp.array(ptr=velocity[n, 0].ptr, shape=(height, width), dtype=wp.float32)
        vy = wp.array(ptr=velocity[n, 1].ptr, shape=(height, width), dtype=wp.float32)
        a = wp.array(ptr=even[n].ptr, shape=(rows, width), dtype=wp.float32)
        b = wp.array(ptr=odd[n].ptr, shape=(rows, width), dtype=wp.float32)
        for iteration in range(first[n], stop[n]):
            theta = wp.where(iteration < smooth_from, sharp_theta, smooth_theta)
            scale = velocity_per_theta * theta
            if iteration % 2 == 0:
                for y in range(height):
                    sweep_row(a, vx, vy, neighbours(y, height, periodic, scale), scale, theta, offset, b)
            else:
                for y in range(height):
                    sweep_row(b, vx, vy, neighbours(y, height, periodic, scale), scale, theta, offset, a)

    @wp.kernel(module="unique", enable_backward=False, module_options=options)
    def read(
        anchor: wp.array[wp.int32],
        partial_theta: wp.array[wp.float32],
        velocity: wp.array4d[wp.float32],
        velocity_per_theta: wp.float32,
        offset: wp.float32,
        even: wp.array4d[wp.float32],
        odd: wp.array4d[wp.float32],
        # outputs
        out: wp.array4d[wp.float32],
    ):
        n = wp.tid()
        vx = wp.array(ptr=velocity[n, 0].ptr, shape=(height, width), dtype=wp.float32)
        vy = wp.array(ptr=velocity[n, 1].ptr, shape=(height, width), dtype=wp.float32)
        a = wp.array(ptr=even[n].ptr, shape=(rows, width), dtype=wp.float32)
        b = wp.array(ptr=odd[n].ptr, shape=(rows, width), dtype=wp.float32)
        target = wp.array(ptr=out[n].ptr, shape=(rows, width), dtype=wp.float32)
        theta = partial_theta[n]
        scale = velocity_per_theta * theta
        if anchor[n] % 2 == 0:
            for y in range(height):
                sweep_row(a, vx, vy, neighbours(y, height, periodic, scale), scale, theta, offset, target)
        else:
            for y in range(height):
                sweep_row(b, vx, vy, neighbours(y, height, periodic, scale), scale, theta, offset, target)

    return march, read
