"""The iterations on a GPU, on chip: a block takes a piece of an image through many of them in its shared memory.

A piece is one channel of a whole image, or a part of it. A thread owns some cells of a column and keeps their weights in registers.
A ring of ghost cells surrounds the piece: beyond a wall the mirror image, on a periodic image the opposite side. At an inner edge
the ghost cells hold nothing of use, so the outermost cells become wrong, one more with every iteration. So pieces overlap: each has
a halo as wide as a launch has iterations, which is not written back.

The same source runs on a CPU with ``wp.config.enable_cpu_blocks``, which is how it is tested without a device.
"""

import functools

import warp as wp

# Cells of a thread, one below the other.
ROWS = 8
cells_of_thread = wp.types.vector(length=ROWS, dtype=wp.float32)
weights_of_thread = wp.types.vector(length=9 * ROWS, dtype=wp.float32)
# Threads of a block, and its memory in cells: twice a piece with its ring, as 2 x 66 x 66 for 64 x 64 cells.
THREADS = 512
MEMORY = 8976


@wp.func_native(snippet="WP_TILE_SYNC();")
def synchronise():
    """Wait for all threads of the block."""
    ...


@wp.func_native(
    snippet=f"""
#if defined(__CUDA_ARCH__)
    __shared__ float memory[{MEMORY}];
#else
    static float memory[{MEMORY}];
#endif
    return (wp::uint64)memory;
"""
)
def shared_memory() -> wp.uint64:
    """Address of the memory of the block."""
    ...


@wp.func_native(snippet="return ((const float*)memory)[i];")
def read(memory: wp.uint64, i: wp.int32) -> wp.float32:
    """A number in the memory of the block. (An array would allow negative indices, which costs four instructions.)"""
    ...


@wp.func_native(snippet="((float*)memory)[i] = value;")
def write(memory: wp.uint64, i: wp.int32, value: wp.float32):
    """Set a number in the memory of the block."""
    ...


@wp.func
def wrapped(i: wp.int32, size: wp.int32) -> wp.int32:
    """A cell of a periodic axis by a number that may lie up to ``size`` cells outside."""
    i = wp.where(i < 0, i + size, i)
    return wp.where(i >= size, i - size, i)


@wp.func_native(
    snippet="""
#if defined(__CUDA_ARCH__)
    asm volatile("" : "+r"(i));
#endif
    return i;
"""
)
def kept(i: wp.int32) -> wp.int32:
    """The same number, which the compiler then keeps in a register: it must not compute it anew in every iteration."""
    ...


@wp.func
def own_from(piece: wp.int32, pieces: wp.int32, own: wp.int32, halo: wp.int32, size: wp.int32, periodic: wp.bool) -> wp.int32:
    """The first cell along an axis that a piece writes back: it writes ``own`` cells, and those of its halo at a wall."""
    first = piece * own + wp.where(periodic or piece == 0, 0, halo)
    return wp.where(piece == pieces, size, wp.min(first, size))


@wp.struct
class Column:
    """The cells of a thread in the memory, and where their copies among the ghost cells lie, from the cell itself."""

    place: wp.int32
    pitch: wp.int32
    has_cells: wp.bool
    at_side: wp.bool
    at_top: wp.bool
    at_bottom: wp.bool
    to_side_ghost: wp.int32
    to_top_ghost: wp.int32
    to_bottom_ghost: wp.int32


@wp.func
def write_with_ghosts(memory: wp.uint64, start: wp.int32, column: Column, value: cells_of_thread):
    """Write a number for each cell of a thread, and into the ghost cells that are copies of it."""
    if not column.has_cells:
        return
    first = start + column.place
    last = first + (ROWS - 1) * column.pitch
    for r in range(ROWS):
        write(memory, first + r * column.pitch, value[r])
    if column.at_side:
        for r in range(ROWS):
            write(memory, first + r * column.pitch + column.to_side_ghost, value[r])
    if column.at_top:
        write(memory, first + column.to_top_ghost, value[0])
        if column.at_side:
            write(memory, first + column.to_top_ghost + column.to_side_ghost, value[0])
    if column.at_bottom:
        write(memory, last + column.to_bottom_ghost, value[ROWS - 1])
        if column.at_side:
            write(memory, last + column.to_bottom_ghost + column.to_side_ghost, value[ROWS - 1])


@functools.cache
def advance_kernel(background: bool) -> wp.Kernel:
    """``count[n]`` iterations of image n; ``background``: the stencils have a source."""

    @wp.kernel(
        module="unique", enable_backward=False, grid_stride=False, launch_bounds=(THREADS, 1), module_options={"max_unroll": 16}
    )
    def advance(
        count: wp.array[wp.int32],
        stencil: wp.array4d[wp.float32],
        periodic: wp.bool,
        down: wp.int32,
        across: wp.int32,
        rows: wp.int32,
        columns: wp.int32,
        halo_y: wp.int32,
        halo_x: wp.int32,
        most: wp.int32,
        launch: wp.int32,
        # inputs and outputs
        a: wp.array4d[wp.float32],
        b: wp.array4d[wp.float32],
    ):
        """Iterations ``launch`` x ``most`` and up to ``most`` - 1 further ones; for float32.

        An image needs some number of launches. Its state starts in ``b`` if that is odd, otherwise in ``a``; it ends in ``a``.
        The pieces, ``down`` x ``across`` of them, have ``rows`` x ``columns`` cells; blocks are numbered by image, channel, and
        row and column of the piece.
        """
        block, thread = wp.tid()
        channels = a.shape[1]
        height = a.shape[2]
        width = a.shape[3]
        i = block % across
        j = (block / across) % down
        c = (block / (across * down)) % channels
        n = block / (across * down * channels)

        done = launch * most
        if done >= count[n]:
            return
        steps = wp.min(count[n] - done, most)
        launches_left = (count[n] - done - 1) / most + 1

        # On a periodic axis a piece may begin before the image or end beyond it.
        own_rows = rows - 2 * halo_y
        own_columns = columns - 2 * halo_x
        y0 = wp.where(periodic, j * own_rows - halo_y, wp.min(j * own_rows, height - rows))
        x0 = wp.where(periodic, i * own_columns - halo_x, wp.min(i * own_columns, width - columns))
        pitch = kept(columns + 2)
        ring = kept((rows + 2) * pitch)
        wraps_y = periodic and rows == height
        wraps_x = periodic and columns == width

        x = thread % columns
        # The last threads of a column may share cells with those before them, which compute the same; a thread without cells of its
        # own computes along, and writes nothing.
        group = thread / columns
        has_cells = group * ROWS < rows
        top = wp.where(has_cells, wp.min(group * ROWS, rows - ROWS), 0)
        memory = shared_memory()
        corner = top * pitch + x
        here = wrapped(x0 + x, width)
        column = Column(
            corner + pitch + 1,
            pitch,
            has_cells,
            x == 0 or x == columns - 1,
            top == 0,
            top + ROWS == rows,
            kept(wp.where(x == 0, wp.where(wraps_x, columns, -1), wp.where(wraps_x, -columns, 1))),
            kept(wp.where(wraps_y, rows, -1) * pitch),
            kept(wp.where(wraps_y, -rows, 1) * pitch),
        )

        value = cells_of_thread()
        weights = weights_of_thread()
        extra = cells_of_thread()
        for r in range(ROWS):
            y = wrapped(y0 + top + r, height)
            if launches_left % 2 == 0:
                value[r] = a[n, c, y, here]
            else:
                value[r] = b[n, c, y, here]
            for k in range(9):
                weights[9 * r + k] = stencil[n, k, y, here]
            if wp.static(background):
                extra[r] = stencil[n, 9, y, here]
        for step in range(steps):
            # The state, with its ghost cells, into one half of the memory.
            place = (step % 2) * ring
            write_with_ghosts(memory, place, column, value)
            synchronise()
            place += corner
            # The three rows around a cell move down with it, so that a thread reads every cell once.
            high_left = read(memory, place)
            high = read(memory, place + 1)
            high_right = read(memory, place + 2)
            place += pitch
            left = read(memory, place)
            centre = read(memory, place + 1)
            right = read(memory, place + 2)
            for r in range(ROWS):
                place += pitch
                low_left = read(memory, place)
                low = read(memory, place + 1)
                low_right = read(memory, place + 2)
                value[r] = (
                    extra[r]
                    + weights[9 * r] * high_left
                    + weights[9 * r + 1] * high
                    + weights[9 * r + 2] * high_right
                    + weights[9 * r + 3] * left
                    + weights[9 * r + 4] * centre
                    + weights[9 * r + 5] * right
                    + weights[9 * r + 6] * low_left
                    + weights[9 * r + 7] * low
                    + weights[9 * r + 8] * low_right
                )
                high_left = left
                high = centre
                high_right = right
                left = low_left
                centre = low
                right = low_right

        # The piece without its halo.
        own_y0 = own_from(j, down, own_rows, halo_y, height, periodic)
        own_y1 = own_from(j + 1, down, own_rows, halo_y, height, periodic)
        own_x0 = own_from(i, across, own_columns, halo_x, width, periodic)
        own_x1 = own_from(i + 1, across, own_columns, halo_x, width, periodic)
        for r in range(ROWS):
            y = y0 + top + r
            if has_cells and y >= own_y0 and y < own_y1 and x0 + x >= own_x0 and x0 + x < own_x1:
                if launches_left % 2 == 0:
                    b[n, c, y, x0 + x] = value[r]
                else:
                    a[n, c, y, x0 + x] = value[r]

    return advance
