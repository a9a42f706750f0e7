"""The iterations on a GPU, one launch each with one thread a cell: for float64, small images and partial iterations.

``lbm_warp.kernels.onchip`` does the many iterations of larger float32 images.
"""

import functools

import warp as wp

from lbm_warp.kernels.rules import gather, neighbours, weights


@functools.cache
def iterate_kernel(dtype: type, background: bool) -> wp.Kernel:
    """One of ``count[n]`` iterations of image n, for images of any shape.

    The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``.

    Args:
        dtype: of the images.
        background: whether the stencils have a source.
    """

    @wp.func
    def update_cell(
        n: wp.int32,
        y: wp.int32,
        x: wp.int32,
        stencil: wp.array4d[dtype],
        periodic: wp.bool,
        source: wp.array4d[dtype],
        # outputs
        target: wp.array4d[dtype],
    ):
        row = neighbours(y, source.shape[2], periodic)
        column = neighbours(x, source.shape[3], periodic)
        height = source.shape[2]
        planes = wp.array(ptr=stencil[n].ptr, shape=(stencil.shape[1] * height, source.shape[3]), dtype=dtype)
        w = weights(planes, height, y, x)
        extra = dtype(0.0)
        if wp.static(background):
            extra = planes[9 * height + y, x]
        for c in range(source.shape[1]):
            target[n, c, y, x] = gather(source[n, c], w, row, column, 0, extra)

    @wp.kernel(module="unique", enable_backward=False)
    def iterate(
        count: wp.array[wp.int32],
        stencil: wp.array4d[dtype],
        periodic: wp.bool,
        step: wp.int32,
        # inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """Iteration number ``step``."""
        n, y, x = wp.tid()
        left = count[n] - step
        if left <= 0:
            return
        if left % 2 == 0:
            update_cell(n, y, x, stencil, periodic, a, b)
        else:
            update_cell(n, y, x, stencil, periodic, b, a)

    return iterate
