"""Stream functions from gradient noise and from Fourier modes, and their discrete curl.

A stream function psi is given on the corners of the cells, [height + 1, width + 1], and is zero on walls. The velocity through a
face of a cell is the difference of psi along the face. The velocity of a cell is the mean over two opposite faces:

    v_x = mean_x (psi[y + 1] - psi[y]),      v_y = -mean_y (psi[x + 1] - psi[x]).

Up to rounding it has no divergence and no flow through walls, whatever psi is.

Where a thread is called a lane, ``lanes`` threads go along a row together: a warp on a GPU, one on a CPU.
"""

import warp as wp

from lbm_warp.kernels.hashing import TWO_PI, absorb, start, uniform

wp.set_module_options({"enable_backward": False})

SQRT_2 = wp.constant(1.4142135623730951)
SQRT_6 = wp.constant(2.449489742783178)


@wp.func
def fade(t: wp.float32) -> wp.float32:
    """Perlin's quintic: from 0 to 1 with zero first and second derivatives at both ends, so the velocity is smooth."""
    return t * t * t * (t * (t * 6.0 - 15.0) + 10.0)


@wp.func_native(
    snippet="""
#if defined(__CUDA_ARCH__)
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
#endif
    return value;
"""
)
def sum_of_lanes(value: wp.float64) -> wp.float64:
    """The sum over the threads of a warp, which all get it; on a CPU a thread works alone."""
    ...


@wp.func
def symmetric(state: wp.uint64, counter: wp.int32) -> wp.float32:
    """A random number in (-1, 1)."""
    return 2.0 * uniform(absorb(state, counter)) - 1.0


@wp.kernel
def noise_nodes_kernel(
    seed: wp.array[wp.int64],
    cells: wp.array2d[wp.int32],
    rate: wp.array[wp.float64],
    time: wp.float64,
    periodic: wp.bool,
    # outputs
    nodes: wp.array3d[wp.float32],
):
    """Value and gradient (d/dx, d/dy) of each octave of noise at its nodes, at one time.

    An octave has ``cells`` (along y, along x, number of its first node), and the time of its noise is ``rate`` times ``time``. The
    noise is a function of (x, y, time), interpolated here along time. On a wall the value is zero and the gradient is normal to
    the wall, so the interpolated noise is zero along the wall.
    """
    n, place = wp.tid()
    octave = wp.int32(cells.shape[0] - 1)
    while place < cells[octave, 2]:
        octave -= 1
    ny = cells[octave, 0]
    nx = cells[octave, 1]
    j = (place - cells[octave, 2]) / (nx + 1)
    i = (place - cells[octave, 2]) % (nx + 1)
    # The last node of a periodic axis is its first node.
    jj = wp.where(periodic, j % ny, j)
    ii = wp.where(periodic, i % nx, i)
    moment = wp.float32(time * rate[octave])
    slab = wp.floor(moment)
    phase = moment - slab
    node = wp.vec3f(0.0, 0.0, 0.0)
    for side in range(2):
        state = absorb(absorb(absorb(absorb(start(seed[n]), octave), jj), ii), wp.int32(slab) + side)
        ahead = phase - wp.float32(side)
        weight = wp.where(side == 0, 1.0 - fade(phase), fade(phase))
        # With gradients sqrt(6) times the values, the variance is the same at the nodes and at the centres of the noise cells.
        value = symmetric(state, 0) + SQRT_6 * symmetric(state, 3) * ahead
        node += weight * wp.vec3f(value, SQRT_6 * symmetric(state, 1), SQRT_6 * symmetric(state, 2))
    if not periodic:
        if i == 0 or i == nx:
            node = wp.vec3f(0.0, node[1], 0.0)
        if j == 0 or j == ny:
            node = wp.vec3f(0.0, 0.0, node[2])
    for part in range(3):
        nodes[n, part, place] = node[part]


@wp.func
def curl(a: wp.float32, b: wp.float32, c: wp.float32, d: wp.float32) -> wp.vec2f:
    """The velocity of a cell from psi on its corners, a and b above c and d."""
    return 0.5 * wp.vec2f((c - a) + (d - b), -((b - a) + (d - c)))


@wp.struct
class Place:
    """A place on an axis of an octave of noise: the node before it, and how far behind this it lies, as a share of a noise cell."""

    node: wp.int32
    behind: wp.float32


@wp.func
def place_of(corner: wp.int32, corners: wp.int32, cells: wp.int32) -> Place:
    """The place of a corner of ``corners`` + 1 on an axis of ``cells`` noise cells."""
    position = wp.float32(corner) / wp.float32(corners) * wp.float32(cells)
    node = wp.min(wp.int32(position), cells - 1)
    return Place(node, position - wp.float32(node))


@wp.func
def blend(low: wp.float32, low_slope: wp.float32, high: wp.float32, high_slope: wp.float32, t: wp.float32) -> wp.float32:
    """The linear extrapolations from two nodes, at the share ``t`` of the way from one to the other."""
    weight = fade(t)
    return (1.0 - weight) * (low + low_slope * t) + weight * (high + high_slope * (t - 1.0))


@wp.func
def along_x(nodes: wp.array2d[wp.float32], left: wp.int32, pitch: wp.int32, t: wp.float32) -> wp.vec4f:
    """Value and d/dx of the noise at both ends of a line through a noise cell: blended along y; ``left`` is its first node."""
    line = wp.vec4f()
    for end in range(2):
        upper = left + end
        lower = upper + pitch
        line[2 * end] = blend(nodes[0, upper], nodes[2, upper], nodes[0, lower], nodes[2, lower], t)
        line[2 * end + 1] = blend(nodes[1, upper], 0.0, nodes[1, lower], 0.0, t)
    return line


@wp.kernel
def curl_noise_kernel(
    nodes: wp.array3d[wp.float32],
    cells: wp.array2d[wp.int32],
    amplitude: wp.array[wp.float32],
    lanes: wp.int32,
    # outputs
    velocity: wp.array4d[wp.float32],
    energy: wp.array2d[wp.float64],
):
    """As :func:`curl_kernel`, where psi is the sum of the octaves of noise, blended along y first and then along x.

    A lane takes a run of cells, so that it computes the corners between two of them once.
    """
    n, y, lane = wp.tid()
    height = velocity.shape[2]
    width = velocity.shape[3]
    first = lane * width / lanes
    last = (lane + 1) * width / lanes
    vx = velocity[n, 0, y]
    vy = velocity[n, 1, y]
    above = wp.vec4f()
    below = wp.vec4f()
    a = wp.float32(0.0)
    c = wp.float32(0.0)
    for octave in range(cells.shape[0]):
        pitch = cells[octave, 1] + 1
        upper = place_of(y, height, cells[octave, 0])
        lower = place_of(y + 1, height, cells[octave, 0])
        node = wp.int32(-1)
        for x in range(first, last + 1):
            place = place_of(x, width, cells[octave, 1])
            if place.node != node:
                node = place.node
                above = along_x(nodes[n], cells[octave, 2] + upper.node * pitch + node, pitch, upper.behind)
                below = along_x(nodes[n], cells[octave, 2] + lower.node * pitch + node, pitch, lower.behind)
            b = amplitude[octave] * blend(above[0], above[1], above[2], above[3], place.behind)
            d = amplitude[octave] * blend(below[0], below[1], below[2], below[3], place.behind)
            if x > first:
                flow = curl(a, b, c, d)
                if octave > 0:
                    flow += wp.vec2f(vx[x - 1], vy[x - 1])
                vx[x - 1] = flow[0]
                vy[x - 1] = flow[1]
            a = b
            c = d
    total = wp.float64(0.0)
    for x in range(first, last):
        flow = wp.vec2f(vx[x], vy[x])
        total += wp.float64(wp.dot(flow, flow))
    energy[n, y] = sum_of_lanes(total)


@wp.kernel
def mode_amplitudes_kernel(
    seed: wp.array[wp.int64],
    component: wp.int32,
    ky: wp.array[wp.float32],
    kx: wp.array[wp.float32],
    key_y: wp.array[wp.int32],
    key_x: wp.array[wp.int32],
    exponent: wp.float32,
    k_min: wp.float32,
    k_max: wp.float32,
    time: wp.float32,
    # outputs
    amplitude: wp.array3d[wp.float32],
):
    """Amplitudes k^exponent cos(phase + omega time) of the modes (q along y, p along x), random phase, omega = 2 pi k^(2/3).

    k is in periods per shorter image side. The amplitude is zero for k = 0 (no velocity) and outside k_min to k_max.
    """
    n, q, p = wp.tid()
    k = wp.sqrt(ky[q] * ky[q] + kx[p] * kx[p])
    value = wp.float32(0.0)
    if k > 0.0 and k >= k_min and k <= k_max:
        state = absorb(absorb(absorb(start(seed[n]), component), key_y[q]), key_x[p])
        phase = TWO_PI * (uniform(state) + wp.pow(k, 2.0 / 3.0) * time)
        value = wp.pow(k, exponent) * wp.cos(phase)
    amplitude[n, q, p] = value


@wp.kernel
def sum_modes_kernel(
    amplitude: wp.array3d[wp.float32],
    basis: wp.array2d[wp.float32],
    # outputs
    field: wp.array3d[wp.float32],
):
    """field[n, j, i] = sum_k amplitude[n, k, j] basis[k, i].

    Applied twice, with the bases along y and x, this turns amplitudes [n, q, p] into a field [n, y, x].
    """
    n, j, i = wp.tid()
    value = wp.float32(0.0)
    for k in range(amplitude.shape[1]):
        value += amplitude[n, k, j] * basis[k, i]
    field[n, j, i] = value


@wp.kernel
def curl_kernel(
    psi: wp.array3d[wp.float32],
    lanes: wp.int32,
    # outputs
    velocity: wp.array4d[wp.float32],
    energy: wp.array2d[wp.float64],
):
    """Velocities (v_x, v_y) of the cells from psi on their corners, and the sum of v_x^2 + v_y^2 over each row."""
    n, y, lane = wp.tid()
    total = wp.float64(0.0)
    for x in range(lane, velocity.shape[3], lanes):
        flow = curl(psi[n, y, x], psi[n, y, x + 1], psi[n, y + 1, x], psi[n, y + 1, x + 1])
        velocity[n, 0, y, x] = flow[0]
        velocity[n, 1, y, x] = flow[1]
        total += wp.float64(wp.dot(flow, flow))
    energy[n, y] = sum_of_lanes(total)


@wp.kernel
def energy_kernel(
    velocity: wp.array4d[wp.float32],
    lanes: wp.int32,
    # outputs
    energy: wp.array2d[wp.float64],
):
    """Sum of v_x^2 + v_y^2 over each row of cells."""
    n, y, lane = wp.tid()
    total = wp.float64(0.0)
    for x in range(lane, velocity.shape[3], lanes):
        total += wp.float64(velocity[n, 0, y, x] * velocity[n, 0, y, x] + velocity[n, 1, y, x] * velocity[n, 1, y, x])
    energy[n, y] = sum_of_lanes(total)


@wp.kernel
def normalise_kernel(
    energy: wp.array2d[wp.float64],
    lanes: wp.int32,
    # outputs
    velocity: wp.array4d[wp.float32],
):
    """Scale every field by one factor, so that the mean of (v_x^2 + v_y^2) / 2 is one."""
    n, y, lane = wp.tid()
    height = velocity.shape[2]
    width = velocity.shape[3]
    total = wp.float64(0.0)
    for row in range(lane, height, lanes):
        total += energy[n, row]
    total = sum_of_lanes(total)
    factor = wp.float32(0.0)
    if total > wp.float64(0.0):
        factor = wp.float32(wp.sqrt(wp.float64(2 * height * width) / total))
    for x in range(lane, width, lanes):
        velocity[n, 0, y, x] = velocity[n, 0, y, x] * factor
        velocity[n, 1, y, x] = velocity[n, 1, y, x] * factor


@wp.kernel
def wave_phases_kernel(
    seed: wp.array[wp.int64],
    # outputs
    phase: wp.array4d[wp.float32],
):
    """Random phases in (0, 1) of the waves of each component, at the indices of the discrete Fourier transform.

    They are functions of the signed numbers of periods along y and x, whatever the size of the transform.
    """
    n, component, y, x = wp.tid()
    ny = wp.where(2 * y < phase.shape[2], y, y - phase.shape[2])
    nx = wp.where(2 * x < phase.shape[3], x, x - phase.shape[3])
    phase[n, component, y, x] = uniform(absorb(absorb(absorb(start(seed[n]), component), ny), nx))
