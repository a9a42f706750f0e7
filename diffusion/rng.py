"""Counter-based seeds: every random number of a run is a function of the run's seed, the name of a stream and an index.

Resuming a run therefore needs no stored random state, and results do not depend on batches, workers or devices.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

from lbm_warp.checks import Integers, as_integers

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def seeds(seed: Integers, stream: str, index: Integers = 0) -> torch.Tensor:
    """Independent 63-bit seeds.

    Args:
        seed: the run's seed, or one seed for each image.
        stream: purpose of the seeds; streams of different names are independent.
        index: index within the stream, one or many; broadcast against ``seed``.

    Returns:
        int64 tensor on the CPU, of the broadcast shape (at least one entry), each >= 0.

    Raises:
        InputError: if seed or index are not integers, or do not fit int64.
    """
    base, place = (as_integers(name, value).cpu().numpy().astype(np.uint64) for name, value in (("seed", seed), ("index", index)))
    with np.errstate(over="ignore"):
        state = _mix(np.atleast_1d(base) + _GOLDEN_GAMMA)
        state = _mix((state ^ np.uint64(zlib.crc32(stream.encode()))) + _GOLDEN_GAMMA)
        state = _mix((state ^ place) + _GOLDEN_GAMMA)
    return torch.from_numpy((state >> np.uint64(1)).astype(np.int64))


def uniform(seed: Integers, stream: str, index: Integers = 0) -> torch.Tensor:
    """Uniform numbers from 0 to 1 (1 excluded), float64; arguments as for :func:`seeds`."""
    # The 53 bits of a float64's mantissa.
    return (seeds(seed, stream, index) >> 10).double() * 2.0**-53


def below(limit: int, seed: Integers, stream: str, index: Integers = 0) -> torch.Tensor:
    """Uniform integers from 0 to ``limit`` - 1, int64; arguments as for :func:`seeds`. The bias is below limit / 2^63."""
    return seeds(seed, stream, index) % limit
