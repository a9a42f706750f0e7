"""Counter-based random numbers: a hash of (seed, counters), the same on every device and in every launch order."""

import warp as wp

wp.set_module_options({"enable_backward": False})

GOLDEN_GAMMA = wp.constant(wp.uint64(0x9E3779B97F4A7C15))
MIX_1 = wp.constant(wp.uint64(0xBF58476D1CE4E5B9))
MIX_2 = wp.constant(wp.uint64(0x94D049BB133111EB))
TWO_PI = wp.constant(6.283185307179586)


@wp.func
def absorb(state: wp.uint64, counter: wp.int32) -> wp.uint64:
    """Mix one counter into a hash state: SplitMix64's step and finaliser (Steele, Lea and Flood 2014)."""
    z = (state ^ wp.uint64(wp.uint32(counter))) + GOLDEN_GAMMA
    z = (z ^ (z >> wp.uint64(30))) * MIX_1
    z = (z ^ (z >> wp.uint64(27))) * MIX_2
    return z ^ (z >> wp.uint64(31))


@wp.func
def start(seed: wp.int64) -> wp.uint64:
    """Hash state of a seed before its first counter: mixed once, or neighbouring seeds would share numbers."""
    return absorb(wp.uint64(seed), 0)


@wp.func
def uniform(state: wp.uint64) -> wp.float32:
    """The hash as a number in (0, 1): the middles of 2^23 equal bins, which float32 holds exactly."""
    return (wp.float32(state >> wp.uint64(41)) + 0.5) * wp.float32(1.0 / 8388608.0)


@wp.kernel
def normal_kernel(
    seed: wp.array[wp.int64],
    # outputs
    out: wp.array2d[wp.float32],
):
    """Standard normal numbers, one row a seed: the Box-Muller transform of two hashes per element."""
    row, i = wp.tid()
    state = absorb(start(seed[row]), i)
    radius = wp.sqrt(-2.0 * wp.log(uniform(absorb(state, 0))))
    out[row, i] = radius * wp.cos(TWO_PI * uniform(absorb(state, 1)))
