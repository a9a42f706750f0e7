"""The iterations on a GPU, on chip: a block takes a piece of an image through many of them in its shared memory.

A piece is one channel of a whole image, or a part of it. A thread owns some cells of a column and keeps their weights in registers.
A ring of ghost cells surrounds the piece: beyond a wall the mirror image, on a periodic image the opposite side. At an inner edge
the ghost cells hold nothing of use, so the outermost cells become wrong, one more with every iteration. So pieces overlap: each has
a halo as wide as a launch has iterations, which is not written back.

The images follow a program, int32 [S, 2 + N]. For each of S runs of iterations with the same weights it has the entry of the first
image in the stencils, that in the parts (those of other images follow), and the number of iterations of every image up to its end.
A run of one partial iteration writes the state into the parts, and the image goes on from the state before. The entries of other
runs in the parts are negative.

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
    asm volatile("{ .reg .u32 zero; mov.u32 zero, %%tid.z; add.u32 %0, %0, zero; }" : "+r"(i));
#endif
    return i;
"""
)
def kept(i: wp.int32) -> wp.int32:
    """The same number, which the compiler then keeps in a register: it must not compute or copy it anew in every iteration.

    The compiler does not know that threads have no third index. So the number seems to differ among them.
    """
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


@wp.func_native(
    snippet="""
#if defined(__CUDA_ARCH__)
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
#endif
    return block;
"""
)
def block_again(block: wp.int32) -> wp.int32:
    """The number of the block, asked of the device: what follows from it then takes no register in the iterations before."""
    ...


@wp.func_native(
    snippet="""
#if defined(__CUDA_ARCH__)
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
#endif
    return thread;
"""
)
def thread_again(thread: wp.int32) -> wp.int32:
    """The number of the thread, as :func:`block_again`."""
    ...


@wp.struct
class Cut:
    """The batch, and how its images are cut: see ``stepping.Pieces``."""

    channels: wp.int32
    height: wp.int32
    width: wp.int32
    periodic: wp.bool
    down: wp.int32
    across: wp.int32
    rows: wp.int32
    columns: wp.int32
    halo_y: wp.int32
    halo_x: wp.int32


@wp.struct
class Cells:
    """The cells of a thread.

    Image and channel; whether it has cells of its own; where the first one is in the piece and in the image, or beyond it on a
    periodic axis; and which of them, from ``begin`` to ``end`` - 1, the piece writes back.
    """

    n: wp.int32
    c: wp.int32
    has_cells: wp.bool
    top: wp.int32
    side: wp.int32
    y: wp.int32
    x: wp.int32
    begin: wp.int32
    end: wp.int32


@wp.func
def cells_of(block: wp.int32, thread: wp.int32, cut: Cut) -> Cells:
    """Blocks are numbered by image, channel, and row and column of the piece.

    The last threads of a column may share cells with those before them, which compute the same; a thread without cells of its own
    computes along, and writes nothing.
    """
    image = block / (cut.across * cut.down)
    j = (block / cut.across) % cut.down
    i = block % cut.across
    group = thread / cut.columns
    has_cells = group * ROWS < cut.rows
    top = wp.where(has_cells, wp.min(group * ROWS, cut.rows - ROWS), 0)
    side = thread % cut.columns
    # On a periodic axis a piece may begin before the image or end beyond it.
    own_rows = cut.rows - 2 * cut.halo_y
    own_columns = cut.columns - 2 * cut.halo_x
    y = top + wp.where(cut.periodic, j * own_rows - cut.halo_y, wp.min(j * own_rows, cut.height - cut.rows))
    x = side + wp.where(cut.periodic, i * own_columns - cut.halo_x, wp.min(i * own_columns, cut.width - cut.columns))
    begin = own_from(j, cut.down, own_rows, cut.halo_y, cut.height, cut.periodic) - y
    end = own_from(j + 1, cut.down, own_rows, cut.halo_y, cut.height, cut.periodic) - y
    left = own_from(i, cut.across, own_columns, cut.halo_x, cut.width, cut.periodic)
    right = own_from(i + 1, cut.across, own_columns, cut.halo_x, cut.width, cut.periodic)
    end = wp.where(has_cells and x >= left and x < right, end, 0)
    return Cells(image / cut.channels, image % cut.channels, has_cells, top, side, y, x, begin, end)


@wp.func
def write_own(cells: Cells, value: cells_of_thread, n: wp.int32, target: wp.array4d[wp.float32]):
    """Write a number for each cell of a thread that its piece writes back."""
    for r in range(ROWS):
        if r >= cells.begin and r < cells.end:
            target[n, cells.c, cells.y + r, cells.x] = value[r]


@functools.cache
def advance_kernel(background: bool) -> wp.Kernel:
    """The iterations of a program for every image; ``background``: the stencils have a source."""

    @wp.kernel(
        module="unique", enable_backward=False, grid_stride=False, launch_bounds=(THREADS, 1), module_options={"max_unroll": 16}
    )
    def advance(
        program: wp.array2d[wp.int32],
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
        # outputs
        parts: wp.array4d[wp.float32],
    ):
        """Iterations ``launch`` x ``most`` and up to ``most`` - 1 further ones; for float32.

        An image needs some number of launches. Its state starts in ``b`` if that is odd, otherwise in ``a``; it ends in ``a``.
        The pieces, ``down`` x ``across`` of them, have ``rows`` x ``columns`` cells.
        """
        block, thread = wp.tid()
        height = a.shape[2]
        width = a.shape[3]
        cut = Cut(a.shape[1], height, width, periodic, down, across, rows, columns, halo_y, halo_x)
        cells = cells_of(block, thread, cut)
        n = cells.n
        total = program[program.shape[0] - 1, 2 + n]
        done = launch * most
        if done >= total:
            return
        launches_left = (total - done - 1) / most + 1

        pitch = kept(columns + 2)
        ring = kept((rows + 2) * pitch)
        wraps_y = periodic and rows == height
        wraps_x = periodic and columns == width
        memory = shared_memory()
        corner = cells.top * pitch + cells.side
        column = Column(
            corner + pitch + 1,
            pitch,
            cells.has_cells,
            cells.side == 0 or cells.side == columns - 1,
            cells.top == 0,
            cells.top + ROWS == rows,
            kept(wp.where(cells.side == 0, wp.where(wraps_x, columns, -1), wp.where(wraps_x, -columns, 1))),
            kept(wp.where(wraps_y, rows, -1) * pitch),
            kept(wp.where(wraps_y, -rows, 1) * pitch),
        )

        value = cells_of_thread()
        weights = weights_of_thread()
        extra = cells_of_thread()
        x = wrapped(cells.x, width)
        for r in range(ROWS):
            y = wrapped(cells.y + r, height)
            if launches_left % 2 == 0:
                value[r] = a[n, cells.c, y, x]
            else:
                value[r] = b[n, cells.c, y, x]
        half = wp.int32(0)
        for run in range(program.shape[0]):
            stop = wp.min(program[run, 2 + n], (launch + 1) * most)
            if stop > done:
                entry = program[run, 0] + n
                cells = cells_of(block_again(block), thread_again(thread), cut)
                x = wrapped(cells.x, width)
                for r in range(ROWS):
                    y = wrapped(cells.y + r, height)
                    for k in range(9):
                        weights[9 * r + k] = stencil[entry, k, y, x]
                    if wp.static(background):
                        extra[r] = stencil[entry, 9, y, x]
                for _ in range(done, stop):
                    # The state, with its ghost cells, into the other half of the memory.
                    half = ring - half
                    write_with_ghosts(memory, half, column, value)
                    synchronise()
                    place = half + corner
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
                done = stop
                part = program[run, 1] + n
                if part >= 0:
                    cells = cells_of(block_again(block), thread_again(thread), cut)
                    write_own(cells, value, part, parts)
                    for r in range(ROWS):
                        value[r] = read(memory, half + column.place + r * pitch)

        cells = cells_of(block_again(block), thread_again(thread), cut)
        if launches_left % 2 == 0:
            write_own(cells, value, n, b)
        else:
            write_own(cells, value, n, a)

    return advance
