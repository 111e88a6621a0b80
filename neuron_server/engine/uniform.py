"""Counter-based randomness: the number behind a token depends on (seed, index of the token) and nothing else.

No generator state exists, so the same seed gives the same text whatever the neighbours are, and a request
that is resumed elsewhere goes on with exactly the draws it would have had.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# The finaliser of splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def uniform(seeds: Sequence[int], indices: Sequence[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, index) pair; seeds 0 .. 2**64-1, indices from 0.

    The seed is mixed first, so neighbouring seeds (1, 2, 3 ...) are no nearer than any others; the index then
    walks splitmix64's own sequence from there. 53 bits are used, all a float64 in [0, 1) can hold evenly.
    """
    start = _mix(np.array(seeds, dtype=np.uint64))  # (n,)
    steps = np.array(indices, dtype=np.uint64) + np.uint64(1)  # (n,)
    bits = _mix(start + steps * _GAMMA)  # (n,) wraps around, as meant
    numbers: npt.NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # (n,)
    return numbers


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    z ^= z >> np.uint64(31)
    return z
