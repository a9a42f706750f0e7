"""Counter-based random numbers: a hash of a seed and counters, the same on every device and in any launch order."""

import warp as wp

wp.set_module_options({"enable_backward": False})

GOLDEN_GAMMA = wp.constant(wp.uint64(0x9E3779B97F4A7C15))
MIX_1 = wp.constant(wp.uint64(0xBF58476D1CE4E5B9))
MIX_2 = wp.constant(wp.uint64(0x94D049BB133111EB))
TWO_PI = wp.constant(6.283185307179586)


@wp.func
def absorb(state: wp.uint64, counter: wp.int32) -> wp.uint64:
    """Hash a counter into a state: step and finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = (state ^ wp.uint64(wp.uint32(counter))) + GOLDEN_GAMMA
    z = (z ^ (z >> wp.uint64(30))) * MIX_1
    z = (z ^ (z >> wp.uint64(27))) * MIX_2
    return z ^ (z >> wp.uint64(31))


@wp.func
def start(seed: wp.int64) -> wp.uint64:
    """Initial state of a seed. It is hashed once, otherwise neighbouring seeds would share numbers."""
    return absorb(wp.uint64(seed), 0)


@wp.func
def uniform(state: wp.uint64) -> wp.float32:
    """A number in (0, 1) from a state: the midpoint of one of 2^23 equal bins, exact in float32."""
    return (wp.float32(state >> wp.uint64(41)) + 0.5) * wp.float32(1.0 / 8388608.0)


@wp.kernel
def normal_kernel(
    seed: wp.array[wp.int64],
    # outputs
    out: wp.array2d[wp.float32],
):
    """Standard normal numbers, one row per seed: the Box-Muller transform of two uniform numbers per element."""
    row, i = wp.tid()
    state = absorb(start(seed[row]), i)
    radius = wp.sqrt(-2.0 * wp.log(uniform(absorb(state, 0))))
    out[row, i] = radius * wp.cos(TWO_PI * uniform(absorb(state, 1)))
