"""The iterations on a GPU, one launch each with one thread a cell: for float64, small images and partial iterations.

``lbm_warp.kernels.onchip`` does the many iterations of larger float32 images.
"""

import functools

import warp as wp

from lbm_warp.kernels.rules import adjoint_weights, divergence_source, forward_weights, gather, neighbours


@functools.cache
def iterate_kernel(dtype: type, adjoint: bool, background: bool) -> wp.Kernel:
    """One of the full iterations first[n] to stop[n] - 1 of image n, for images of any shape.

    The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``.

    Args:
        dtype: of the images.
        adjoint: transposed iterations, in reverse order.
        background: whether the offset is not zero.
    """
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
    def iterate(
        first: wp.array[wp.int32],
        stop: wp.array[wp.int32],
        theta: wp.array2d[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        smooth_from: wp.int32,
        offset: dtype,
        periodic: wp.bool,
        step: wp.int32,
        # inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """Iteration number ``step``, counted from first[n]; ``theta`` [N, 2] as for the CPU."""
        n, y, x = wp.tid()
        left = stop[n] - first[n] - step
        if left <= 0:
            return
        iteration = first[n] + step
        if wp.static(adjoint):
            iteration = first[n] + left - 1
        temperature = wp.where(iteration < smooth_from, theta[n, 0], theta[n, 1])
        scale = velocity_per_theta * temperature
        if left % 2 == 0:
            update_cell(n, y, x, velocity, scale, temperature, offset, periodic, a, b)
        else:
            update_cell(n, y, x, velocity, scale, temperature, offset, periodic, b, a)

    return iterate
