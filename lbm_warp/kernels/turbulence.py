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


@wp.kernel
def noise_kernel(
    nodes: wp.array3d[wp.float32],
    cells: wp.array2d[wp.int32],
    amplitude: wp.array[wp.float32],
    # outputs
    psi: wp.array3d[wp.float32],
):
    """The sum of the octaves of noise: blends of the linear extrapolations from the four nodes around a corner."""
    n, y, x = wp.tid()
    total = wp.float32(0.0)
    for octave in range(cells.shape[0]):
        ny = cells[octave, 0]
        nx = cells[octave, 1]
        py = wp.float32(y) / wp.float32(psi.shape[1] - 1) * wp.float32(ny)
        px = wp.float32(x) / wp.float32(psi.shape[2] - 1) * wp.float32(nx)
        j = wp.min(wp.int32(py), ny - 1)
        i = wp.min(wp.int32(px), nx - 1)
        fy = py - wp.float32(j)
        fx = px - wp.float32(i)
        value = wp.float32(0.0)
        for dj in range(2):
            for di in range(2):
                wy = wp.where(dj == 0, 1.0 - fade(fy), fade(fy))
                wx = wp.where(di == 0, 1.0 - fade(fx), fade(fx))
                place = cells[octave, 2] + (j + dj) * (nx + 1) + i + di
                extrapolated = (
                    nodes[n, 0, place] + nodes[n, 1, place] * (fx - wp.float32(di)) + nodes[n, 2, place] * (fy - wp.float32(dj))
                )
                value += wy * wx * extrapolated
        total += amplitude[octave] * value
    psi[n, y, x] = total


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
        a = psi[n, y, x]
        b = psi[n, y, x + 1]
        c = psi[n, y + 1, x]
        d = psi[n, y + 1, x + 1]
        vx = 0.5 * ((c - a) + (d - b))
        vy = -0.5 * ((b - a) + (d - c))
        velocity[n, 0, y, x] = vx
        velocity[n, 1, y, x] = vy
        total += wp.float64(vx * vx + vy * vy)
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
