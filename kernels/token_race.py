"""The race of a tile of tokens, and how logits are ordered: jit helpers of token selection.

A token of value v = (logit - greatest) / temperature and of exponential variable E arrives at
E / exp(v); its score here is log(E) - v, in float64, which orders tokens in the same way and never
overflows. Computing it for every token would cost more than reading the logits, so a tile's tokens
are screened: of E's uniform the first 14 bits b are known, and as E is at least its uniform,

    log2(E / exp(v)) >= log2(b) - 14 - v log2(e)

Only tokens whose bound is below the best score so far are computed: two or three of a tile, all
columns of the tile at once. So the winner is the one that float64 for all would give.

Shapes: a tile is [ROUNDS, LANES, 4], of consecutive tokens, where one 64-bit output serves the last
dimension and each thread of the program has a lane.
"""

from typing import Final

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED
from moeray.kernels.random_bits import exponential, splitmix64, twice_high_bits

NO_TOKEN: Final = tl.constexpr(2**30)
"""Above all ids: the least of some ids is NO_TOKEN where there are none."""
LOWEST_KEY: Final = tl.constexpr(-(2**31))
_NAN_KEY: Final = tl.constexpr(2**31 - 1)
_INFINITE_KEY: Final = tl.constexpr(0x7F800000)
_LOG2_E: Final = tl.constexpr(1.4426950408889634)
_SLACK: Final = tl.constexpr(15 + 0.001)
"""The screening's logarithms are of 2 b, and rounded to float32 while they are below 50."""
_LEAST_BITS: Final = tl.constexpr(1e-30)
"""For b = 0, whose logarithm is not finite: below all that a float64 holds of E."""
BINS: Final = tl.constexpr(4096)
"""Of logits, from the lowest to the highest; the end bins hold what is beyond."""
BINS_PER_UNIT: Final = tl.constexpr(16)


@triton.jit
def tile_of(tile, ROUNDS: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """The fours [ROUNDS, LANES] of a tile and its tokens [ROUNDS, LANES, 4], int32."""
    four = tile * ROUNDS * LANES + tl.arange(0, ROUNDS)[:, None] * LANES
    four = four + tl.arange(0, LANES)[None, :]
    return four, four[:, :, None] * 4 + tl.arange(0, 4)[None, None, :]


@triton.jit
def legal_logits(logits_ptr, mask_ptr, four, token, vocabulary):  # type: ignore[no-untyped-def]
    """A tile's logits, -inf where illegal; the pointers are the row's, mask_ptr may be None."""
    x = tl.load(logits_ptr + token, mask=token < vocabulary, other=-float("inf"))
    if mask_ptr is not None:
        word = tl.load(mask_ptr + (four >> 3), mask=four * 4 < vocabulary, other=0)
        bits = (word >> ((four & 7) * 4))[:, :, None]
        legal = bits >> tl.arange(0, 4)[None, None, :] & 1
        x = tl.where(legal == 1, x, -float("inf"))
    return x


@triton.jit
def key_of(x):  # type: ignore[no-untyped-def]
    """int32 keys in the order of float32 x: zeros are equal, NaN is above all."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return tl.where(x != x, _NAN_KEY, bits ^ ((bits >> 31) & 0x7FFFFFFF))


@triton.jit
def float_of(key):  # type: ignore[no-untyped-def]
    """What ``key_of`` made a key of; NaN of its key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def greatest_of(x):  # type: ignore[no-untyped-def]
    """The greatest of all x, NaN where there is one."""
    if INTERPRETED:
        return float_of(tl.max(key_of(x)))
    return tl.reduce(x, None, _greater)


@triton.jit
def _greater(a, b):  # type: ignore[no-untyped-def]
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def finite_or(x, other):  # type: ignore[no-untyped-def]
    """x, and ``other`` where x is not finite."""
    return tl.where(tl.abs(x) < float("inf"), x, other)


@triton.jit
def value_of(x, greatest, temperature):  # type: ignore[no-untyped-def]
    """(x - greatest) / temperature, in float32, each step rounded once; x may be -inf."""
    shifted = x - greatest
    return tl.div_rn(shifted, tl.zeros_like(shifted) + temperature)


@triton.jit
def score_of(x, token, greatest, temperature, high_key, low_key):  # type: ignore[no-untyped-def]
    """log(E) - v in float64 of tokens with logits x: the least arrives first."""
    e = exponential(high_key, low_key, token)
    return tl.log(e) - value_of(x, greatest, temperature).to(tl.float64)


@triton.jit
def bin_of(x):  # type: ignore[no-untyped-def]
    """The bin of each logit, int32: never lower for a greater logit. NaN is not allowed."""
    place = tl.floor(x * BINS_PER_UNIT) + BINS // 2
    return tl.minimum(tl.maximum(place, 0.0), BINS - 1.0).to(tl.int32)


@triton.jit
def first_of_tile(  # type: ignore[no-untyped-def]
    x, four, token, logits_ptr, greatest, temperature, high_key, low_key
):
    """The id of the tile's token that arrives first, NO_TOKEN where all x are -inf.

    x are the logits that take part, none NaN or above ``greatest``, which may be any finite number;
    the row's logits_ptr is read again for the few that are computed.
    """
    output = splitmix64(high_key, four)
    bits = twice_high_bits(output[:, :, None], tl.arange(0, 4)[None, None, :])
    per_logit = tl.full((), _LOG2_E, tl.float32) / temperature
    waiting = _log2(tl.maximum(bits.to(tl.float32), _LEAST_BITS)) + (greatest - x) * per_logit
    least = _least_of_columns(waiting)
    best = tl.full((), float("inf"), tl.float64)
    winner = tl.full((), NO_TOKEN, tl.int32)
    limit = tl.full((), 3e38, tl.float32)
    while tl.min(least) < limit:
        own = _least_of_columns(tl.where(waiting == least[None, :, None], token, NO_TOKEN))
        promising = least < limit
        logit = tl.load(logits_ptr + own, mask=promising, other=-float("inf"))
        score = score_of(logit, own, greatest, temperature, high_key, low_key)
        earliest = tl.min(score)
        first = tl.min(tl.where(score == earliest, own, NO_TOKEN))
        winner = tl.where(earliest == best, tl.minimum(winner, first), winner)
        winner = tl.where(earliest < best, first, winner)
        best = tl.minimum(best, earliest)
        limit = (best * _LOG2_E).to(tl.float32) + _SLACK
        waiting = tl.where(token == own[None, :, None], float("inf"), waiting)
        least = _least_of_columns(waiting)
    return winner


@triton.jit
def _log2(x):  # type: ignore[no-untyped-def]
    """Of normal numbers, to 2**-22, in one instruction."""
    if INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _least_of_columns(x):  # type: ignore[no-untyped-def]
    """[ROUNDS, LANES, 4] to [LANES]."""
    return tl.min(tl.min(x, axis=2), axis=0)


@triton.jit
def first_of_winners(token, logits_ptr, greatest, temperature, high_key, low_key):  # type: ignore[no-untyped-def]
    """The least score and the id, the lowest on ties, of some tokens [n]; NO_TOKEN among them takes
    no part, and is the id where all are."""
    x = tl.load(logits_ptr + token, mask=token < NO_TOKEN, other=-float("inf"))
    score = score_of(finite_or(x, -float("inf")), token, greatest, temperature, high_key, low_key)
    best = tl.min(score)
    return best, tl.min(tl.where(score == best, token, NO_TOKEN))
