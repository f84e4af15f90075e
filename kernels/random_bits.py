"""Random bits of single tokens, and when tokens arrive in a race: jit helpers.

The public contract: a row has two keys of 64 bits. Output i of SplitMix64 (Steele, Lea, Flood,
OOPSLA 2014, with the constants of Stafford's variant 13) with a key as its state is
``splitmix64(key, i)``. A token's uniform has 51 bits: the high 14 are of the first key, whose
output ``token // 4`` has 16 bits for each of four tokens, the lowest token's lowest: bits 1 to 14
of them, complemented. The next 36 are the low ones of the second key's output ``token``. The last
is a 1, so that the uniform is the middle of its part of (0, 1). The token's exponential variable is
``-log(1 - uniform)``, and with a weight w it arrives at that divided by w.
``token_reference.py`` says the same in plain torch.
"""

from typing import Final

import triton
from triton import language as tl

_GOLDEN: Final = tl.constexpr(0x9E3779B97F4A7C15)
_FIRST: Final = tl.constexpr(0xBF58476D1CE4E5B9)
_SECOND: Final = tl.constexpr(0x94D049BB133111EB)
_LOW_BITS: Final = tl.constexpr(2**36 - 1)
_LOW_PART: Final = tl.constexpr(2.0**-36)
_HIGH_PART: Final = tl.constexpr(2.0**-14)


@triton.jit
def splitmix64(key, index):  # type: ignore[no-untyped-def]
    """Output ``index`` (any integers) of the state ``key`` (uint64): uint64, sums wrap round."""
    bits = key + (index.to(tl.uint64) + tl.full((), 1, tl.uint64)) * tl.full((), _GOLDEN, tl.uint64)
    bits = (bits ^ (bits >> 30)) * tl.full((), _FIRST, tl.uint64)
    bits = (bits ^ (bits >> 27)) * tl.full((), _SECOND, tl.uint64)
    return bits ^ (bits >> 31)


@triton.jit
def twice_high_bits(four, lane):  # type: ignore[no-untyped-def]
    """Twice the 14 high bits of token 4 i + lane, int32, from output i of the first key."""
    return ~(four >> (lane * 16).to(tl.uint64)).to(tl.int32) & 0x7FFE


@triton.jit
def exponential(high_key, low_key, token):  # type: ignore[no-untyped-def]
    """Each token's exponential variable, float64."""
    high = twice_high_bits(splitmix64(high_key, token >> 2), token & 3) >> 1
    low = splitmix64(low_key, token) & tl.full((), _LOW_BITS, tl.uint64)
    uniform = (high + (low.to(tl.int64).to(tl.float64) + 0.5) * _LOW_PART) * _HIGH_PART
    # 1 - uniform has no more bits than a float64 holds: nothing is lost where both are small.
    return -tl.log(1.0 - uniform)


@triton.jit
def load_keys(keys_ptr, row):  # type: ignore[no-untyped-def]
    """The two keys of a row of int64 [N, 2], as uint64."""
    high = tl.load(keys_ptr + 2 * row).to(tl.uint64, bitcast=True)
    return high, tl.load(keys_ptr + 2 * row + 1).to(tl.uint64, bitcast=True)
