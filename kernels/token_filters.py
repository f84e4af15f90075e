"""top_k, top_p and min_p of token selection: which tokens are surely kept, surely dropped, or open.

Tokens are ranked by value (``token_race.value_of``), equal ones by lowest id; top_k and top_p keep
the first of that order. From the histogram of a row's logits follow two bins: tokens above the
higher one are surely kept, tokens below the lower one surely dropped, and those from one to the
other are open. A count decides top_k's bin. top_p's follows from the masses of the bins, which lie
between their counts times the weights of their borders. Values are rounded, so tokens of
neighbouring bins may be equal, which is why both bins are one further out.
"""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.token_race import BINS, BINS_PER_UNIT, finite_or

LEAST_TEMPERATURE: Final = tl.constexpr(1e-30)
"""Below it the inverse is not finite; so cold, all but the greatest logits have no weight."""
TOLERANCE: Final = tl.constexpr(2.0**-20)
"""top_p, min_p and the weights are float32; what misses a limit by their rounding reaches it."""
_UNITS: Final = tl.constexpr(2.0**44)
"""Of weight 1, the likeliest token's."""
_SLACK: Final = tl.constexpr(1e-3)
"""More than float32 rounds off weights and their sums, as a share."""
_UNITS_LOST: Final = tl.constexpr(1e-7)
"""More than all tokens' weights lose when they are made integers."""
_SUMS_LOST: Final = tl.constexpr(1e-5)
"""More than the sums over bins are off, as a share of all: a few dozen roundings of float32."""
_LEAST_HEAD: Final = tl.constexpr(2.0)
"""So that the histogram has bins where it is cold."""


class Filters(NamedTuple):
    """[N] each; None where no row has any."""

    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None

    @property
    def cut(self) -> bool:
        """Whether a row may have top_k or top_p."""
        return self.top_k is not None or self.top_p is not None

    @property
    def any(self) -> bool:
        return self.cut or self.min_p is not None


class RowStates(NamedTuple):
    """What the kernels hand on, of N rows in T tiles; None where no row has filters."""

    tiles: tuple[Tensor, Tensor, Tensor | None]
    """Keys of the greatest logits and ids of the winners, int32 [N, T]; and, relative to a tile's
    greatest, the weights that are in no bin, float32 [N, T]."""
    histogram: Tensor | None
    """int32 [N, BINS]."""
    rows: Tensor | None
    """int32 [N, 4]: 1 for a row to be read again, lowest and highest open bin, open tokens."""
    sums: Tensor | None
    """int64 [N, 3]: number and mass of the tokens surely kept, mass of all."""
    listed: Tensor | None
    """int32 [N, L]: the open tokens, in any order."""

    @classmethod
    def of(
        cls, rows: int, tiles: int, filters: Filters, listed: int, device: torch.device
    ) -> "RowStates":
        def new(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        keys, tokens = new(rows, tiles), new(rows, tiles)
        if not filters.any:
            return cls((keys, tokens, None), None, None, None, None)
        tails, histogram = None, None
        if filters.cut:
            tails = new(rows, tiles, dtype=torch.float32)
            histogram = torch.zeros((rows, BINS.value), dtype=torch.int32, device=device)
        return cls(
            (keys, tokens, tails),
            histogram,
            new(rows, 4),
            new(rows, 3, dtype=torch.int64),
            new(rows, listed),
        )


@triton.jit
def limits_of(top_k_ptr, top_p_ptr, row, vocabulary):  # type: ignore[no-untyped-def]
    """The row's top_k and top_p: the vocabulary and 1 where off."""
    top_k = vocabulary
    if top_k_ptr is not None:
        top_k = tl.load(top_k_ptr + row)
        top_k = tl.where((top_k <= 0) | (top_k > vocabulary), vocabulary, top_k)
    top_p = tl.full((), 1.0, tl.float32)
    if top_p_ptr is not None:
        top_p = tl.load(top_p_ptr + row)
    return top_k, top_p


@triton.jit
def is_cut(top_k_ptr, top_p_ptr, row, vocabulary):  # type: ignore[no-untyped-def]
    """Whether the row has top_k or top_p."""
    top_k, top_p = limits_of(top_k_ptr, top_p_ptr, row, vocabulary)
    return (top_k < vocabulary) | (top_p < 1.0)


@triton.jit
def least_value(min_p_ptr, row):  # type: ignore[no-untyped-def]
    """What a token's value must reach for min_p, float32; -inf where off."""
    least = tl.full((), -float("inf"), tl.float32)
    if min_p_ptr is not None:
        share = tl.load(min_p_ptr + row) * (1 - TOLERANCE)
        # In float64, so that the rounded logarithm is the nearest.
        logarithm = tl.log(tl.maximum(share, 1e-37).to(tl.float64)).to(tl.float32)
        least = tl.where(share > 0, logarithm, -float("inf"))
    return least


@triton.jit
def head_of(greatest, temperature, HEAD: tl.constexpr):  # type: ignore[no-untyped-def]
    """The least logit that the histogram counts: not greater where ``greatest`` is not."""
    return greatest - tl.maximum(HEAD * temperature, _LEAST_HEAD)


@triton.jit
def tail_mass(tile_keys, tails, greatest, temperature):  # type: ignore[no-untyped-def]
    """The weights outside the histogram, relative to the row's greatest, of tiles whose own
    greatest logits are ``tile_keys`` as floats."""
    weight = tl.exp((finite_or(tile_keys, greatest) - greatest) / temperature)
    return tl.sum(tails * weight)


@triton.jit
def open_bins(  # type: ignore[no-untyped-def]
    histogram_ptr, tail, greatest, temperature, top_k, top_p, vocabulary, HEAD: tl.constexpr
):
    """The lowest and the highest bin whose tokens may be on either side of top_k's and top_p's end.

    histogram_ptr is the row's; ``tail`` the weights that it leaves out. Bins are complete down to
    the one that holds ``head_of``; where an end can be below, all bins from there on are open.
    """
    place = tl.arange(0, BINS)  # from the highest bin down
    count = tl.load(histogram_ptr + BINS - 1 - place)
    lower = (-place + (BINS // 2 - 1)).to(tl.float32) * (1.0 / BINS_PER_UNIT)
    whole = (lower >= head_of(greatest, temperature, HEAD)) & (place < BINS - 1)
    complete = tl.sum(whole.to(tl.int32))
    # The end bins hold what is beyond: up to the greatest, down to no weight.
    upper = tl.where(place == 0, greatest, tl.minimum(lower + 1.0 / BINS_PER_UNIT, greatest))
    least = tl.exp((tl.minimum(lower, greatest) - greatest) / temperature)
    least = tl.where(place == BINS - 1, 0.0, least) * (count * (1 - _SLACK))
    most = tl.exp((upper - greatest) / temperature) * (count * (1 + _SLACK))
    end = complete + BINS
    start = end
    counts = tl.cumsum(count, 0)
    if top_k < vocabulary:
        end = tl.min(tl.where(whole & (counts >= top_k), place, complete))
        start = end
    if top_p < 1.0:
        share = tl.maximum(top_p - TOLERANCE, 0.0)
        # Of all that top_k kept, at least and at most.
        all_least = tl.sum(tl.where(place < end, least, 0.0))
        all_most = tl.sum(tl.where((place <= end) | (end == complete), most, 0.0))
        all_least += tl.where(end > complete, tail * (1 - _SLACK), 0.0)
        all_most += tl.where(end >= complete, tail * (1 + _SLACK), 0.0)
        first_least, first_most = tl.cumsum(least, 0), tl.cumsum(most, 0)
        rest_least = tl.maximum(all_least - first_least, 0.0)
        rest_most = tl.maximum(all_most - first_most, 0.0)
        # A share s is reached where (1 - s) times what is there reaches s times what is not.
        lost = all_most * _SUMS_LOST + _UNITS_LOST
        may = (1 - share) * first_most + lost >= share * rest_least
        # The likeliest alone weighs 1.
        first_least = tl.where(counts > 0, tl.maximum(first_least, 1 - _SLACK), first_least)
        must = (1 - share) * first_least >= share * rest_most + lost
        start = tl.minimum(start, tl.min(tl.where(whole & may, place, complete)))
        if end > complete:
            end = tl.min(tl.where(whole & must, place, complete))
    lowest = tl.where(end >= complete, 0, tl.maximum(-end + (BINS - 2), 0))
    return lowest, tl.minimum(-start + BINS, BINS - 1)


@triton.jit
def units_of(value):  # type: ignore[no-untyped-def]
    """The weights of values as integers: float32's nearest, then cut off."""
    weight = tl.exp(value.to(tl.float64)).to(tl.float32)
    return (weight.to(tl.float64) * _UNITS).to(tl.int64)
