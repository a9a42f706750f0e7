"""The iterations on a CPU: one thread takes an image, or a tile of its rows, through many of them.

The data of a thread stays in the cache of its core, and the channels share the nine weights. A row is computed in pieces of a
constant number of cells, which LLVM turns into vector instructions; the last piece overlaps the one before it. So one compiled
kernel serves images of every size.
"""

import functools
from collections.abc import Callable

import warp as wp

from lbm_warp.kernels.rules import (
    Neighbours,
    beside,
    fractions,
    gather,
    moments,
    neighbours,
    returned,
    scaled,
    weights,
)
from lbm_warp.kernels.stencil import send_function

# Cells of a piece of a row. Long ones are faster; short ones leave less to compute twice.
LONG, SHORT = 32, 16


@functools.cache
def advance_kernel(dtype: type, background: bool, channels: int) -> wp.Kernel:
    """``count[n]`` iterations of image n between two buffers.

    The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``.

    Args:
        dtype: of the images.
        background: whether the stencils have a source.
        channels: number of channels; the loop over them is unrolled.
    """

    @wp.struct
    class Iteration:
        source: wp.array2d[dtype]
        stencil: wp.array2d[dtype]
        target: wp.array2d[dtype]

    @wp.func
    def update_cell(on: Iteration, height: wp.int32, row: Neighbours, column: Neighbours):
        w = weights(on.stencil, height, row.here, column.here)
        extra = dtype(0.0)
        if wp.static(background):
            extra = on.stencil[9 * height + row.here, column.here]
        for c in range(channels):
            on.target[c * height + row.here, column.here] = gather(on.source, w, row, column, c * height, extra)

    def piece_of(length: int) -> Callable:
        @wp.func
        def update_piece(on: Iteration, height: wp.int32, row: Neighbours, first: wp.int32):
            rho = from_before(on.source, first)
            planes = from_before(on.stencil, first)
            out = wp.zeros(shape=wp.static(channels * length), dtype=dtype)
            for i in range(length):
                column = Neighbours(i, i + 1, i + 2, False, False)
                w = weights(planes, height, row.here, i + 1)
                extra = dtype(0.0)
                if wp.static(background):
                    extra = planes[9 * height + row.here, i + 1]
                for c in range(channels):
                    out[c * length + i] = gather(rho, w, row, column, c * height, extra)
            for c in range(channels):
                for i in range(length):
                    on.target[c * height + row.here, first + i] = out[c * length + i]

        return update_piece

    from_before = arrays_from_before(dtype)
    update_row = along_a_row(Iteration, update_cell, piece_of)

    # Unroll the loop over channels, but not those along a row.
    @wp.kernel(module="unique", enable_backward=False, module_options={"max_unroll": channels})
    def advance(
        tile: wp.array2d[wp.int32],
        count: wp.array[wp.int32],
        stencil: wp.array4d[dtype],
        periodic: wp.bool,
        begin: wp.int32,
        end: wp.int32,
        # inputs and outputs
        a: wp.array4d[dtype],
        b: wp.array4d[dtype],
    ):
        """Iterations ``begin`` to ``end`` - 1; ``tile`` is int32 [T, 5]: see ``stepping.tile_rows``."""
        t = wp.tid()
        n = tile[t, 0]
        height = a.shape[2]
        width = a.shape[3]
        planes = wp.array(ptr=stencil[n].ptr, shape=(stencil.shape[1] * height, width), dtype=dtype)
        state = wp.array(ptr=a[n].ptr, shape=(channels * height, width), dtype=dtype)
        scratch = wp.array(ptr=b[n].ptr, shape=(channels * height, width), dtype=dtype)
        for step in range(begin, wp.min(end, count[n])):
            on = Iteration(state, planes, scratch)
            if (count[n] - step) % 2 == 1:
                on = Iteration(scratch, planes, state)
            top = tile[t, 1] + (step - begin) * tile[t, 3]
            bottom = tile[t, 2] + (step - begin) * tile[t, 4]
            for y in range(top, bottom):
                update_row(on, (y + height) % height, height, width, periodic)

    return advance


@functools.cache
def stencil_kernel(dtype: type, adjoint: bool) -> wp.Kernel:
    """As ``lbm_warp.kernels.stencil.stencil_kernel`` at one temperature, with one thread a row."""

    @wp.struct
    class Weights:
        vx: wp.array2d[dtype]
        vy: wp.array2d[dtype]
        planes: wp.array2d[dtype]
        scale: dtype
        theta: dtype

    @wp.func
    def update_cell(on: Weights, height: wp.int32, row: Neighbours, column: Neighbours):
        sent = fractions(scaled(moments(on.vx, on.vy, row, column), on.scale), on.theta)
        send(sent, row, column, height, on.planes)

    def piece_of(length: int) -> Callable:
        @wp.func
        def update_piece(on: Weights, height: wp.int32, row: Neighbours, first: wp.int32):
            vx = from_before(on.vx, first)
            vy = from_before(on.vy, first)
            out = wp.zeros(shape=wp.static(9 * length), dtype=dtype)
            for i in range(length):
                column = Neighbours(i, i + 1, i + 2, False, False)
                sent = fractions(scaled(moments(vx, vy, row, column), on.scale), on.theta)
                for k in range(9):
                    out[k * length + i] = sent[k]
            for k in range(9):
                dy = k // 3 - 1
                dx = k % 3 - 1
                if wp.static(adjoint):
                    for i in range(length):
                        on.planes[k * height + row.here, first + i] = out[k * length + i]
                else:
                    line = (4 + 3 * returned(row, dy) - dx) * height + beside(row, dy)
                    for i in range(length):
                        on.planes[line, first + dx + i] = out[k * length + i]

        return update_piece

    send, from_before = send_function(dtype, adjoint), arrays_from_before(dtype)
    update_row = along_a_row(Weights, update_cell, piece_of)

    @wp.kernel(module="unique", enable_backward=False, module_options={"max_unroll": 9})
    def build(
        theta: wp.array[dtype],
        velocity: wp.array4d[dtype],
        velocity_per_theta: dtype,
        periodic: wp.bool,
        # outputs
        stencil: wp.array4d[dtype],
    ):
        n, y = wp.tid()
        height = velocity.shape[2]
        width = velocity.shape[3]
        planes = wp.array(ptr=stencil[n].ptr, shape=(stencil.shape[1] * height, width), dtype=dtype)
        on = Weights(velocity[n, 0], velocity[n, 1], planes, velocity_per_theta * theta[n], theta[n])
        update_row(on, y, height, width, periodic)

    return build


@functools.cache
def arrays_from_before(dtype: type) -> wp.Function:
    """A function that gives an array which begins one column before ``first``.

    With indices from a constant range LLVM then knows that neighbours in a row are neighbours in memory.
    """
    size = wp.constant(4 if dtype == wp.float32 else 8)

    @wp.func
    def from_before(values: wp.array2d[dtype], first: wp.int32) -> wp.array2d[dtype]:
        shift = wp.uint64(first - 1) * wp.uint64(size)
        return wp.array(ptr=values.ptr + shift, shape=(values.shape[0], values.shape[1]), dtype=dtype)

    return from_before


def along_a_row(work: type, update_cell: wp.Function, piece_of: Callable) -> wp.Function:
    """A function that does some ``work`` in all cells of a row: in long and short pieces of it, and in single cells."""
    long_piece, short_piece = piece_of(LONG), piece_of(SHORT)

    @wp.func
    def update_row(on: work, y: wp.int32, height: wp.int32, width: wp.int32, periodic: wp.bool):
        right = width - 1
        row = neighbours(y, height, periodic)
        x = wp.int32(1)
        while x + LONG <= right:
            long_piece(on, height, row, x)
            x += LONG
        if right > SHORT:
            while x < right:
                short_piece(on, height, row, wp.min(x, right - SHORT))
                x += SHORT
        # The two ends, and all cells of a narrow image.
        while x < right:
            update_cell(on, height, row, neighbours(x, right + 1, periodic))
            x += 1
        for end in range(2):
            update_cell(on, height, row, neighbours(end * right, right + 1, periodic))

    return update_row
