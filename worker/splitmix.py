"""SplitMix64 over tensors: random bits for each token of each row.

A token's bits depend on its row's key and its id alone, whatever the device and the other tokens.

Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, with the
constants of Stafford's variant 13, as in Vigna's splitmix64.c. It passes BigCrush. Keys are random
64-bit numbers (``philox.py``), so that two rows' parts of its one sequence do not overlap.
"""

from typing import Final

import torch
from torch import Tensor

_GOLDEN: Final = 0x9E3779B97F4A7C15 - 2**64
_FIRST: Final = (30, 0xBF58476D1CE4E5B9 - 2**64)
_SECOND: Final = (27, 0x94D049BB133111EB - 2**64)
_LAST: Final = (31, 1)


def splitmix64(keys: Tensor, index: Tensor) -> Tensor:
    """Output ``index``, from 0, of the generator with the state ``keys``: 64 bits as int64.

    keys and index are int64 and broadcast; sums and products wrap round.
    """
    bits = torch.add(keys + _GOLDEN, index, alpha=_GOLDEN)
    moved = torch.empty_like(bits)
    for shift, multiplier in (_FIRST, _SECOND, _LAST):
        # The mask makes the shift a logical one.
        torch.bitwise_right_shift(bits, shift, out=moved)
        bits.bitwise_xor_(moved.bitwise_and_(2 ** (64 - shift) - 1))
        if multiplier != 1:
            bits.mul_(multiplier)
    return bits


def text_words(keys: Tensor, count: int) -> Tensor:
    """16 bits for the token ids 0 to count - 1: keys int64 [N], returns int16 [N, count].

    One output serves four tokens, so that a vocabulary costs a quarter.
    """
    index = torch.arange((count + 3) // 4, device=keys.device)
    return splitmix64(keys[:, None], index).view(torch.int16)[:, :count]


def listed_words(keys: Tensor, ids: Tensor) -> Tensor:
    """The same 16 bits for each of ``ids``: keys int64 [N], ids int64 [N, L]; int16 [N, L]."""
    words = splitmix64(keys[:, None], ids >> 2).view(torch.int16).view(*ids.shape, 4)
    return words.gather(2, (ids & 3)[:, :, None])[:, :, 0]
