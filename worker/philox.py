"""Philox4x32-10, the counter-based generator behind sampling.

It gives each drawn position of a request a key of its own, from which ``splitmix.py`` makes its
tokens' random bits. A key depends on seed and position alone, so a request that is computed again,
elsewhere or in another batch, draws with the same numbers.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; test
vectors in Random123's kat_vectors.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROUNDS: Final = 10
_MULTIPLIER_0: Final = np.uint64(0xD2511F53)
_MULTIPLIER_2: Final = np.uint64(0xCD9E8D57)
# The golden ratio and sqrt(3) - 1: what the key grows by in each round.
_WEYL_0: Final = np.uint64(0x9E3779B9)
_WEYL_1: Final = np.uint64(0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_WORD: Final = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32: four random words for each counter.

    counter [K, 4] and key [K, 2], least significant word first; returns [K, 4].
    """
    # Words in 64 bits, because a round needs the high halves of its products.
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key.astype(np.uint64).T
    for _ in range(_ROUNDS):
        product_0, product_2 = _MULTIPLIER_0 * c0, _MULTIPLIER_2 * c2
        c0, c2 = (product_2 >> _WORD) ^ c1 ^ k0, (product_0 >> _WORD) ^ c3 ^ k1
        c1, c3 = product_2 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return np.stack((c0, c1, c2, c3), axis=1).astype(np.uint32)


def draw_keys(seed: NDArray[np.uint64], position: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Two keys of 64 random bits, as int64, for each (seed, position): [K] and [K] to [K, 2].

    The seed is the key, the position the low 64 bits of the counter; words 0 and 2 of the block
    are the low halves.
    """
    key = np.stack((seed & _LOW, seed >> _WORD), axis=1).astype(np.uint32)
    counter = np.zeros((len(position), 4), dtype=np.uint32)
    counter[:, 0] = position & _LOW
    counter[:, 1] = position >> _WORD
    words = philox4x32(counter, key).astype(np.uint64)
    return (words[:, 1::2] << _WORD | words[:, ::2]).view(np.int64)
