"""The iterations on a CPU: one thread takes an image, or a tile of its rows, through many of them.

The data of a thread stays in the cache of its core, and the channels share the nine weights. A row is computed in pieces of a
constant number of cells, which LLVM turns into vector instructions; the last piece overlaps the one before it. So one compiled
kernel serves images of every size.
"""

import functools
from collections.abc import Callable

import warp as wp

from lbm_warp.kernels.rules import Neighbours, adjoint_weights, divergence_source, forward_weights, gather, neighbours

# Cells of a piece of a row. Long ones are faster; short ones leave less to compute twice.
LONG, SHORT = 32, 8


@functools.cache
def advance_kernel(dtype: type, adjoint: bool, background: bool, channels: int) -> wp.Kernel:
    """Full iterations first[n] to stop[n] - 1 of image n, for the adjoint in reverse order, between two buffers.

    The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``.

    Args:
        dtype: of the images.
        adjoint: transposed iterations.
        background: whether the offset is not zero.
        channels: number of channels; the loop over them is unrolled.
    """
    rule = adjoint_weights if adjoint else forward_weights
    size = wp.constant(4 if dtype == wp.float32 else 8)

    @wp.func
    def update_cell(
        source: wp.array2d[dtype],
        vx: wp.array2d[dtype],
        vy: wp.array2d[dtype],
        height: wp.int32,
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

    def piece_of(length: int) -> Callable:
        @wp.func
        def update_piece(
            source: wp.array2d[dtype],
            vx: wp.array2d[dtype],
            vy: wp.array2d[dtype],
            height: wp.int32,
            row: Neighbours,
            first: wp.int32,
            scale: dtype,
            theta: dtype,
            offset: dtype,
            # outputs
            target: wp.array2d[dtype],
        ):
            # Arrays that begin one cell before the piece: with indices from a constant range LLVM knows that neighbours in a row
            # are neighbours in memory. The results go to an array of their own first, which overlaps nothing.
            shift = wp.uint64(first - 1) * wp.uint64(size)
            width = vx.shape[1]
            rho = wp.array(ptr=source.ptr + shift, shape=(channels * height, width), dtype=dtype)
            ux = wp.array(ptr=vx.ptr + shift, shape=(height, width), dtype=dtype)
            uy = wp.array(ptr=vy.ptr + shift, shape=(height, width), dtype=dtype)
            out = wp.zeros(shape=wp.static(channels * length), dtype=dtype)
            for i in range(length):
                column = Neighbours(i, i + 1, i + 2, False, False)
                w = rule(ux, uy, row, column, scale, theta)
                extra = dtype(0.0)
                if wp.static(background):
                    extra = offset * divergence_source(ux, uy, row, column, scale, theta)
                for c in range(channels):
                    out[c * length + i] = gather(rho, w, row, column, c * height, extra)
            for c in range(channels):
                for i in range(length):
                    target[c * height + row.here, first + i] = out[c * length + i]

        return update_piece

    long_piece, short_piece = piece_of(LONG), piece_of(SHORT)

    @wp.func
    def update_row(
        source: wp.array2d[dtype],
        vx: wp.array2d[dtype],
        vy: wp.array2d[dtype],
        y: wp.int32,
        periodic: wp.bool,
        scale: dtype,
        theta: dtype,
        offset: dtype,
        # outputs
        target: wp.array2d[dtype],
    ):
        height = vx.shape[0]
        right = vx.shape[1] - 1
        row = neighbours(y, height, periodic)
        x = wp.int32(1)
        while x + LONG <= right:
            long_piece(source, vx, vy, height, row, x, scale, theta, offset, target)
            x += LONG
        if right > SHORT:
            while x < right:
                short_piece(source, vx, vy, height, row, wp.min(x, right - SHORT), scale, theta, offset, target)
                x += SHORT
        # The two ends, and all cells of a narrow image.
        while x < right:
            update_cell(source, vx, vy, height, row, neighbours(x, right + 1, periodic), scale, theta, offset, target)
            x += 1
        for end in range(2):
            update_cell(source, vx, vy, height, row, neighbours(end * right, right + 1, periodic), scale, theta, offset, target)

    # Unroll the loops over channels and neighbours, but not those along a row.
    @wp.kernel(module="unique", enable_backward=False, module_options={"max_unroll": max(channels, 3)})
    def advance(
        tile: wp.array2d[wp.int32],
        first: wp.array[wp.int32],
        stop: wp.array[wp.int32],
        theta: wp.array2d[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        smooth_from: wp.int32,
        offset: dtype,
        periodic: wp.bool,
        begin: wp.int32,
        end: wp.int32,
        # inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """Iterations ``begin`` to ``end`` - 1, counted from first[n].

        ``tile`` is int32 [T, 5]: see ``stepping.tile_rows``. ``theta`` [N, 2] holds the lattice temperatures of the iterations
        before ``smooth_from`` and of the others.
        """
        t = wp.tid()
        n = tile[t, 0]
        height = a.shape[2]
        width = a.shape[3]
        vx = wp.array(ptr=velocity[n, 0].ptr, shape=(height, width), dtype=dtype)
        vy = wp.array(ptr=velocity[n, 1].ptr, shape=(height, width), dtype=dtype)
        state = wp.array(ptr=a[n].ptr, shape=(channels * height, width), dtype=dtype)
        scratch = wp.array(ptr=b[n].ptr, shape=(channels * height, width), dtype=dtype)
        count = stop[n] - first[n]
        for step in range(begin, wp.min(end, count)):
            iteration = first[n] + step
            if wp.static(adjoint):
                iteration = stop[n] - 1 - step
            temperature = wp.where(iteration < smooth_from, theta[n, 0], theta[n, 1])
            scale = velocity_per_theta * temperature
            top = tile[t, 1] + (step - begin) * tile[t, 3]
            bottom = tile[t, 2] + (step - begin) * tile[t, 4]
            for y in range(top, bottom):
                here = (y + height) % height
                if (count - step) % 2 == 0:
                    update_row(state, vx, vy, here, periodic, scale, temperature, offset, scratch)
                else:
                    update_row(scratch, vx, vy, here, periodic, scale, temperature, offset, state)

    return advance
