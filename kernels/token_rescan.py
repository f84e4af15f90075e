"""The second reading of token selection: rows whose winner a filter may have dropped.

The tokens that are surely kept race once more, and the open ones are listed (``token_filters.py``
says which those are). Then the open ones are taken as they arrive, as long as that is before all
surely kept ones, and of each its place is asked: the number and the integer mass of the tokens of
a better rank. A token that is dropped so drops all behind it, which is about half of what was open.
"""

from typing import Any, Final

import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.random_bits import load_keys
from moeray.kernels.token_filters import (
    LEAST_TEMPERATURE,
    TOLERANCE,
    Filters,
    RowStates,
    least_value,
    limits_of,
    units_of,
)
from moeray.kernels.token_open import (
    LAST_RANK,
    better_than,
    first_open,
    first_ranks_mass,
    rank_of,
)
from moeray.kernels.token_race import (
    NO_TOKEN,
    bin_of,
    finite_or,
    first_of_tile,
    first_of_winners,
    legal_logits,
    tile_of,
    value_of,
)

_ALL_MASS: Final = tl.constexpr(2**62)
_CHUNK: Final = 1024


def finish_rows(
    logits: Tensor,
    mask: Tensor | None,
    keys: Tensor,
    temperature: Tensor,
    filters: Filters,
    states: RowStates,
    tokens: Tensor,
    greatest: Tensor,
    shape: dict[str, Any],
) -> None:
    """Reads again the rows that ``open_bins`` left undecided, and overwrites their ``tokens``."""
    (rows, vocabulary), tiles = logits.shape, states.tiles[0].shape[1]
    assert states.listed is not None
    given = (logits, mask, keys, temperature, *filters, greatest, states.tiles[1])
    kept = (states.rows, states.sums, states.listed)
    _rescan_tiles[(tiles, rows)](
        *given, *kept, vocabulary, LISTED=states.listed.shape[1], **shape, **dependent_launch()
    )
    _finish_rows[(rows,)](
        *given,
        *kept,
        tokens,
        vocabulary,
        tiles,
        LISTED=states.listed.shape[1],
        TILES=triton.next_power_of_2(tiles),
        CHUNK=_CHUNK,
        num_warps=4,
        **dependent_launch(),
    )


@triton.jit
def _rescan_tiles(  # type: ignore[no-untyped-def]
    logits_ptr,
    mask_ptr,
    keys_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    greatest_ptr,
    tile_tokens_ptr,
    rows_ptr,
    sums_ptr,
    listed_ptr,
    vocabulary,
    LISTED: tl.constexpr,
    ROUNDS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Of each tile [tiles, N] of undecided rows: the first of the surely kept; and the open ones
    listed, and the row's sums."""
    let_successor_start()
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wait_for_predecessor()
    if tl.load(rows_ptr + 4 * row) != 0:
        four, token = tile_of(tile, ROUNDS, LANES)
        logits_ptr += row * vocabulary
        if mask_ptr is not None:
            mask_ptr += row * ((vocabulary + 31) // 32)
        temperature = tl.maximum(tl.load(temperature_ptr + row), LEAST_TEMPERATURE)
        greatest = finite_or(tl.load(greatest_ptr + row), 0.0)
        x = legal_logits(logits_ptr, mask_ptr, four, token, vocabulary)
        x = finite_or(x, -float("inf"))
        value = value_of(x, greatest, temperature)
        bins = bin_of(x)
        lowest, highest = tl.load(rows_ptr + 4 * row + 1), tl.load(rows_ptr + 4 * row + 2)
        above = bins > highest
        if highest >= 0:
            is_open = (bins >= lowest) & (bins <= highest) & (x > -float("inf"))
            counter_ptr = rows_ptr + 4 * row + 3
            slot = tl.atomic_add(counter_ptr + token * 0, 1, mask=is_open, sem="relaxed")
            fits = is_open & (slot < LISTED)
            tl.store(listed_ptr + row * LISTED + slot, token, mask=fits)
            units = units_of(value)
            mass = tl.sum(tl.where(above, units, 0))
            tl.atomic_add(sums_ptr + 3 * row, tl.sum(above.to(tl.int64)), sem="relaxed")
            tl.atomic_add(sums_ptr + 3 * row + 1, mass, sem="relaxed")
            tl.atomic_add(sums_ptr + 3 * row + 2, tl.sum(units), sem="relaxed")
        x = tl.where(above & (value >= least_value(min_p_ptr, row)), x, -float("inf"))
        high_key, low_key = load_keys(keys_ptr, row)
        base = finite_or(tl.max(x), 0.0)
        first = first_of_tile(x, four, token, logits_ptr, base, temperature, high_key, low_key)
        tl.store(tile_tokens_ptr + row * tl.num_programs(0) + tile, first)


@triton.jit
def _finish_rows(  # type: ignore[no-untyped-def]
    logits_ptr,
    mask_ptr,
    keys_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    greatest_ptr,
    tile_tokens_ptr,
    rows_ptr,
    sums_ptr,
    listed_ptr,
    tokens_ptr,
    vocabulary,
    tiles,
    LISTED: tl.constexpr,
    TILES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The token of each undecided row, into ``tokens`` [N]."""
    let_successor_start()
    row = tl.program_id(0).to(tl.int64)
    wait_for_predecessor()
    if tl.load(rows_ptr + 4 * row) != 0:
        logits_ptr += row * vocabulary
        if mask_ptr is not None:
            mask_ptr += row * ((vocabulary + 31) // 32)
        listed_ptr += row * LISTED
        temperature = tl.maximum(tl.load(temperature_ptr + row), LEAST_TEMPERATURE)
        greatest = finite_or(tl.load(greatest_ptr + row), 0.0)
        high_key, low_key = load_keys(keys_ptr, row)
        place = tl.arange(0, TILES)
        kept = tl.load(tile_tokens_ptr + row * tiles + place, mask=place < tiles, other=NO_TOKEN)
        kept_score, chosen = first_of_winners(
            kept, logits_ptr, greatest, temperature, high_key, low_key
        )
        lowest, highest = tl.load(rows_ptr + 4 * row + 1), tl.load(rows_ptr + 4 * row + 2)
        places = tl.load(rows_ptr + 4 * row + 3)
        is_listed = places <= LISTED
        places = tl.where(is_listed, places, vocabulary)
        listing = (
            places, is_listed, lowest, highest, logits_ptr, mask_ptr, listed_ptr, greatest,
            temperature,
        )  # fmt: skip
        number = tl.load(sums_ptr + 3 * row)
        mass = tl.load(sums_ptr + 3 * row + 1)
        top_k, top_p = limits_of(top_k_ptr, top_p_ptr, row, vocabulary)
        least = least_value(min_p_ptr, row)
        needed = tl.full((), _ALL_MASS, tl.int64)
        if top_p < 1.0:
            total = tl.load(sums_ptr + 3 * row + 2)
            if top_k < vocabulary:
                total = mass + first_ranks_mass(top_k - number, listing, CHUNK)
            needed = tl.ceil((top_p.to(tl.float64) - TOLERANCE) * total.to(tl.float64))
            needed = needed.to(tl.int64)
        bound = tl.full((), LAST_RANK, tl.int64)
        searching = places > 0
        while searching:
            score, token = first_open(bound, least, high_key, low_key, listing, CHUNK)
            earlier = (score < kept_score) | ((score == kept_score) & (token < chosen))
            searching = earlier & (token < NO_TOKEN)
            if searching:
                value = value_of(tl.load(logits_ptr + token), greatest, temperature)
                bound = rank_of(value, token)
                others, others_mass = better_than(bound, listing, CHUNK)
                others += number
                stays = (others < top_k) & ((others_mass + mass < needed) | (others == 0))
                chosen = tl.where(stays, token, chosen)
                searching = ~stays
        chosen = tl.where(chosen < NO_TOKEN, chosen, 0)
        tl.store(tokens_ptr + row, chosen.to(tl.int64))
