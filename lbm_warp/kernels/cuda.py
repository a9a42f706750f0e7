"""The iterations on a GPU: one thread a cell, one launch an iteration, launches replayed as graphs.

The arguments of a recorded launch are fixed. So the kernel reads the addresses of its tensors, and the numbers of the scheme, from
memory, and one graph serves every call for images of one size.
"""

import functools
from typing import NamedTuple

import warp as wp

from lbm_warp.kernels.rules import adjoint_weights, divergence_source, forward_weights, gather, neighbours


class Kernels(NamedTuple):
    """The kernels for one dtype and direction.

    A launch of ``advance`` is one of the full iterations first[n] to stop[n] - 1 of image n, for the adjoint in reverse order,
    between two buffers. The state starts in ``b`` if their number is odd, otherwise in ``a``; it ends in ``a``. ``read_out`` is
    one iteration from ``a`` to ``b`` with lattice temperature theta[n].
    """

    advance: wp.Kernel
    read_out: wp.Kernel


@functools.cache
def kernels(dtype: type, adjoint: bool, background: bool) -> Kernels:
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
        periodic: wp.bool,
        index: wp.int32,
    ):
        """``call`` holds addresses and the number of steps done: see ``interop.launch_repeatedly``.

        The addresses are those of first, stop, velocity, a, b, and of the numbers velocity_per_theta, both lattice temperatures,
        the iteration from which the second holds, and the offset.
        """
        n, y, x = wp.tid()
        first = wp.array(ptr=wp.uint64(call[0]), shape=(n + 1,), dtype=wp.int32)
        stop = wp.array(ptr=wp.uint64(call[1]), shape=(n + 1,), dtype=wp.int32)
        step = wp.int32(call[6]) + index
        left = stop[n] - first[n] - step
        if left <= 0:
            return
        velocity = wp.array(ptr=wp.uint64(call[2]), shape=(n + 1, 2, height, width), dtype=dtype)
        a = wp.array(ptr=wp.uint64(call[3]), shape=(n + 1, channels, height, width), dtype=dtype)
        b = wp.array(ptr=wp.uint64(call[4]), shape=(n + 1, channels, height, width), dtype=dtype)
        numbers = wp.array(ptr=wp.uint64(call[5]), shape=(5,), dtype=dtype)
        iteration = first[n] + step
        if wp.static(adjoint):
            iteration = first[n] + left - 1
        theta = wp.where(dtype(iteration) < numbers[3], numbers[1], numbers[2])
        if left % 2 == 0:
            update_cell(n, y, x, velocity, numbers[0] * theta, theta, numbers[4], periodic, a, b)
        else:
            update_cell(n, y, x, velocity, numbers[0] * theta, theta, numbers[4], periodic, b, a)

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
