"""The open tokens of a row: those whose bins do not say whether token selection keeps them.

A row's ``listing`` is a tuple: places (how many tokens to look at), whether those are listed, the
lowest and the highest open bin, and pointers to the row's logits, to its mask or None, and to its
list; the greatest logit and the temperature. The list has no order, and needs none: ranks are
unique, and sums are of integers.
"""

from typing import Final

import triton
from triton import language as tl

from moeray.kernels.token_filters import units_of
from moeray.kernels.token_race import NO_TOKEN, bin_of, finite_or, score_of, value_of

LAST_RANK: Final = tl.constexpr(2**52)
_RANK_IDS: Final = tl.constexpr(2**20)


@triton.jit
def rank_of(value, token):  # type: ignore[no-untyped-def]
    """Unique int64 ranks, the likeliest token's least. Values are not above 0."""
    magnitude = value.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return magnitude.to(tl.int64) * _RANK_IDS + token


@triton.jit
def open_tokens(start, listing, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A chunk [CHUNK] of open tokens from place ``start`` on: whether there is one, logits, ids,
    values and ranks. Where the list overflowed, places are ids, and the bins say what is open."""
    places, is_listed, lowest, highest, logits_ptr, mask_ptr, listed_ptr, greatest, temperature = (
        listing
    )
    token = start + tl.arange(0, CHUNK)
    here = token < places
    token = tl.where(is_listed, tl.load(listed_ptr + token, mask=here & is_listed, other=0), token)
    x = tl.load(logits_ptr + token, mask=here, other=-float("inf"))
    if mask_ptr is not None:
        word = tl.load(mask_ptr + (token >> 5), mask=here, other=0)
        here = here & (((word >> (token & 31)) & 1) == 1)
    x = finite_or(tl.where(here, x, -float("inf")), -float("inf"))
    bins = bin_of(x)
    here = here & (bins >= lowest) & (bins <= highest) & (x > -float("inf"))
    value = value_of(x, greatest, temperature)
    return here, x, token, value, rank_of(value, token)


@triton.jit
def first_open(  # type: ignore[no-untyped-def]
    bound, least, high_key, low_key, listing, CHUNK: tl.constexpr
):
    """Score and id of the open token that arrives first, of ranks below ``bound`` and values from
    ``least`` on; infinity and NO_TOKEN where there is none."""
    best = tl.full((), float("inf"), tl.float64)
    winner = tl.full((), NO_TOKEN, tl.int32)
    greatest, temperature = listing[7], listing[8]
    for start in range(0, listing[0], CHUNK):
        here, x, token, value, rank = open_tokens(start, listing, CHUNK)
        score = score_of(x, token, greatest, temperature, high_key, low_key)
        score = tl.where(here & (rank < bound) & (value >= least), score, float("inf"))
        earliest = tl.min(score)
        token = tl.where((score == earliest) & (score < float("inf")), token, NO_TOKEN)
        first = tl.min(token)
        winner = tl.where(earliest == best, tl.minimum(winner, first), winner)
        winner = tl.where(earliest < best, first, winner)
        best = tl.minimum(best, earliest)
    return best, winner


@triton.jit
def better_than(bound, listing, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Number and mass, int64, of the open tokens of ranks below ``bound``."""
    number = tl.full((), 0, tl.int64)
    mass = tl.full((), 0, tl.int64)
    for start in range(0, listing[0], CHUNK):
        here, _, _, value, rank = open_tokens(start, listing, CHUNK)
        better = here & (rank < bound)
        number += tl.sum(better.to(tl.int64))
        mass += tl.sum(tl.where(better, units_of(value), 0))
    return number, mass


@triton.jit
def first_ranks_mass(wanted, listing, CHUNK: tl.constexpr):  # type: ignore[no-untyped-def]
    """The mass of the ``wanted`` best of the open tokens, or of all where those are fewer."""
    low, high = tl.full((), 0, tl.int64), tl.full((), LAST_RANK, tl.int64)
    found = tl.full((), -1, tl.int64)
    mass = tl.full((), 0, tl.int64)
    while (low < high) & (found != wanted):
        middle = (low + high) >> 1
        found, mass = better_than(middle + 1, listing, CHUNK)
        low = tl.where(found < wanted, middle + 1, low)
        high = tl.where(found < wanted, high, middle)
    return mass
