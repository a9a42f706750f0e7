"""Transfer between a grid and one of half its resolution: see ``lbm_warp.grids``.

A thread takes a run of coarse cells along a row, and keeps what they share: a whole row on a CPU, one cell on a GPU.
"""

import functools
from typing import Any, NamedTuple

import warp as wp

wp.set_module_options({"enable_backward": False})


@wp.func
def inside(i: wp.int32, size: wp.int32, periodic: wp.bool) -> wp.int32:
    """The cell that cell ``i`` of an axis is a copy of: one at the opposite end, or the mirror image beyond a wall."""
    while i < 0 or i >= size:
        if periodic:
            i = wp.where(i < 0, i + size, i - size)
        else:
            i = wp.where(i < 0, -1, 2 * size - 1) - i
    return i


@wp.func
def mirrored(i: wp.int32, size: wp.int32, periodic: wp.bool) -> wp.bool:
    """Whether cell ``i`` of an axis lies beyond a wall, where the velocity normal to the wall has the other sign."""
    return not periodic and (i < 0 or i >= size)


@wp.func
def halves(two_low: Any, low: Any, here: Any, high: Any, two_high: Any):
    """The means over the two halves of the middle one of five cells."""
    slope = (type(here)(22.0) * (high - low) - type(here)(3.0) * (two_high - two_low)) / type(here)(128.0)
    return wp.vector(here - slope, here + slope)


@wp.func
def joined(two_low: Any, low: Any, here: Any, high: Any, two_high: Any):
    """The transpose of :func:`halves`: what the middle cell gets from the halves of the five."""
    near = (low[1] - low[0]) - (high[1] - high[0])
    far = (two_low[1] - two_low[0]) - (two_high[1] - two_high[0])
    return here[0] + here[1] + (type(near)(22.0) * near - type(near)(3.0) * far) / type(near)(128.0)


# Indices of five rows of the coarser grid, and of their halves on the finer one.
five_rows = wp.types.vector(length=5, dtype=wp.int32)
five_pairs = wp.types.vector(length=10, dtype=wp.int32)


class Transfers(NamedTuple):
    """The kernels for one dtype: see the functions of these names in ``lbm_warp.grids``; ``restrict`` is its ``coarsen``."""

    restrict: wp.Kernel
    restrict_transposed: wp.Kernel
    prolong: wp.Kernel
    prolong_transposed: wp.Kernel
    restrict_velocity_transposed: wp.Kernel


@functools.cache
def transfers(dtype: type) -> Transfers:
    """The kernels for images [N, height, width] and velocities [N, 2, height, width] of this dtype, in one module."""
    kernel = functools.partial(wp.kernel, module=f"{__name__}.{dtype.__name__}", enable_backward=False)

    @wp.func
    def sums_of_column(v: wp.array3d[dtype], y: wp.int32, x: wp.int32, periodic: wp.bool):
        """Sums of the two components over the four fine cells of a coarse one in fine column ``x``: see ``restrict_velocity``."""
        height = v.shape[1]
        i = inside(x, v.shape[2], periodic)
        above = inside(2 * y - 1, height, periodic)
        below = inside(2 * y + 2, height, periodic)
        across = v[0, above, i] + dtype(3.0) * (v[0, 2 * y, i] + v[0, 2 * y + 1, i]) + v[0, below, i]
        along = v[1, 2 * y, i] + v[1, 2 * y + 1, i]
        along += wp.where(mirrored(2 * y - 1, height, periodic), -v[1, above, i], v[1, above, i])
        along += wp.where(mirrored(2 * y + 2, height, periodic), -v[1, below, i], v[1, below, i])
        return wp.vector(wp.where(mirrored(x, v.shape[2], periodic), -across, across), along)

    @kernel
    def restrict(
        images: wp.array4d[dtype],
        velocities: wp.array4d[dtype],
        periodic: wp.bool,
        run: wp.int32,
        # outputs
        coarse_images: wp.array4d[dtype],
        coarse_velocities: wp.array4d[dtype],
    ):
        n, y, part = wp.tid()
        first_x = part * run
        end = wp.min(first_x + run, coarse_images.shape[3])
        for c in range(coarse_images.shape[1]):
            upper = images[n, c, 2 * y]
            lower = images[n, c, 2 * y + 1]
            means = coarse_images[n, c, y]
            for x in range(first_x, end):
                means[x] = (upper[2 * x] + upper[2 * x + 1] + lower[2 * x] + lower[2 * x + 1]) / dtype(4.0)
        if n < velocities.shape[0]:
            v = velocities[n]
            first = sums_of_column(v, y, 2 * first_x - 1, periodic)
            second = sums_of_column(v, y, 2 * first_x, periodic)
            for x in range(first_x, end):
                third = sums_of_column(v, y, 2 * x + 1, periodic)
                fourth = sums_of_column(v, y, 2 * x + 2, periodic)
                coarse_velocities[n, 0, y, x] = (first[0] + second[0] + third[0] + fourth[0]) / dtype(32.0)
                coarse_velocities[n, 1, y, x] = (first[1] + dtype(3.0) * (second[1] + third[1]) + fourth[1]) / dtype(32.0)
                first = third
                second = fourth

    @kernel
    def restrict_transposed(
        coarse: wp.array3d[dtype],
        run: wp.int32,
        # outputs
        fine: wp.array3d[dtype],
    ):
        n, y, part = wp.tid()
        for x in range(part * run, wp.min((part + 1) * run, coarse.shape[2])):
            for k in range(4):
                fine[n, 2 * y + k // 2, 2 * x + k % 2] = coarse[n, y, x] / dtype(4.0)

    def along_a_row(name: str, rows_beside: wp.Function, column_of: wp.Function, write: wp.Function) -> wp.Kernel:
        """The kernel that writes for every coarse cell what five columns of it and beside it give."""

        @functools.partial(kernel, name=name)
        def pass_along(
            source: wp.array3d[dtype],
            periodic: wp.bool,
            run: wp.int32,
            # outputs
            target: wp.array3d[dtype],
        ):
            n, y, part = wp.tid()
            values = source[n]
            rows = rows_beside(y, values.shape[0], periodic)
            x = part * run
            two_left = column_of(values, rows, x - 2, periodic)
            left = column_of(values, rows, x - 1, periodic)
            here = column_of(values, rows, x, periodic)
            right = column_of(values, rows, x + 1, periodic)
            while x < wp.min((part + 1) * run, wp.min(values.shape[1], target.shape[2])):
                two_right = column_of(values, rows, x + 2, periodic)
                write(target[n], y, x, two_left, left, here, right, two_right)
                two_left = left
                left = here
                here = right
                right = two_right
                x += 1

        return pass_along

    @wp.func
    def five_beside(y: wp.int32, height: wp.int32, periodic: wp.bool) -> five_rows:
        rows = five_rows()
        for k in range(5):
            rows[k] = inside(y - 2 + k, height, periodic)
        return rows

    @wp.func
    def halves_of_column(u: wp.array2d[dtype], rows: five_rows, x: wp.int32, periodic: wp.bool):
        """The upper and the lower half of the middle one of five cells, one below the other."""
        i = inside(x, u.shape[1], periodic)
        return halves(u[rows[0], i], u[rows[1], i], u[rows[2], i], u[rows[3], i], u[rows[4], i])

    @wp.func
    def write_quarters(
        fine: wp.array2d[dtype], y: wp.int32, x: wp.int32, two_left: Any, left: Any, here: Any, right: Any, two_right: Any
    ):
        for k in range(2):
            quarters = halves(two_left[k], left[k], here[k], right[k], two_right[k])
            fine[2 * y + k, 2 * x] = quarters[0]
            fine[2 * y + k, 2 * x + 1] = quarters[1]

    @wp.func
    def pairs_beside(y: wp.int32, height: wp.int32, periodic: wp.bool) -> five_pairs:
        rows = five_pairs()
        for k in range(10):
            rows[k] = inside(2 * y - 4 + k, height, periodic)
        return rows

    @wp.func
    def joined_in_column(w: wp.array2d[dtype], rows: five_pairs, x: wp.int32) -> dtype:
        """What a coarse row gets in fine column ``x``."""
        return joined(
            wp.vector(w[rows[0], x], w[rows[1], x]),
            wp.vector(w[rows[2], x], w[rows[3], x]),
            wp.vector(w[rows[4], x], w[rows[5], x]),
            wp.vector(w[rows[6], x], w[rows[7], x]),
            wp.vector(w[rows[8], x], w[rows[9], x]),
        )

    @wp.func
    def joined_columns(w: wp.array2d[dtype], rows: five_pairs, x: wp.int32, periodic: wp.bool):
        """The halves, left and right, of a coarse cell."""
        left = joined_in_column(w, rows, inside(2 * x, w.shape[1], periodic))
        right = joined_in_column(w, rows, inside(2 * x + 1, w.shape[1], periodic))
        return wp.vector(left, right)

    @wp.func
    def write_joined(
        coarse: wp.array2d[dtype], y: wp.int32, x: wp.int32, two_left: Any, left: Any, here: Any, right: Any, two_right: Any
    ):
        coarse[y, x] = joined(two_left, left, here, right, two_right)

    prolong = along_a_row("prolong", five_beside, halves_of_column, write_quarters)
    prolong_transposed = along_a_row("prolong_transposed", pairs_beside, joined_columns, write_joined)

    @kernel
    def restrict_velocity_transposed(
        coarse: wp.array4d[dtype],
        periodic: wp.bool,
        run: wp.int32,
        # outputs
        fine: wp.array4d[dtype],
    ):
        n, y, part = wp.tid()
        height = coarse.shape[2]
        width = coarse.shape[3]
        for x in range(part * run, wp.min((part + 1) * run, width)):
            for k in range(4):
                # The next cell on the side of the fine one.
                row = y + 2 * (k // 2) - 1
                column = x + 2 * (k % 2) - 1
                j = inside(row, height, periodic)
                i = inside(column, width, periodic)
                beside = dtype(3.0) * coarse[n, 0, y, i] + coarse[n, 0, j, i]
                across = dtype(3.0) * coarse[n, 1, j, x] + coarse[n, 1, j, i]
                vx = dtype(3.0) * coarse[n, 0, y, x] + coarse[n, 0, j, x]
                vy = dtype(3.0) * coarse[n, 1, y, x] + coarse[n, 1, y, i]
                vx += wp.where(mirrored(column, width, periodic), -beside, beside)
                vy += wp.where(mirrored(row, height, periodic), -across, across)
                fine[n, 0, 2 * y + k // 2, 2 * x + k % 2] = vx / dtype(32.0)
                fine[n, 1, 2 * y + k // 2, 2 * x + k % 2] = vy / dtype(32.0)

    return Transfers(restrict, restrict_transposed, prolong, prolong_transposed, restrict_velocity_transposed)
