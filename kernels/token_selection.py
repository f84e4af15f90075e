"""Greedy and sampled token selection on the device, rows of every kind in one call.

The draw is an exponential race: each token arrives at a time that its weight and its own random
bits give (``random_bits.py``, ``token_race.py``), and the first to arrive is drawn. What a filter
drops does not move the others' times, so the race of all legal tokens is run first, in one pass
over the logits, and for most rows it is also the last: its winner stands unless a filter drops it.

1. ``_scan_tiles``: a program for each tile of each row. The tile's greatest logit, its race, and
   for rows with top_k or top_p a histogram of the logits near the greatest.
2. ``_decide_rows``: a program for each row. The winner of all tiles; and the bins of the histogram
   in which top_k and top_p can end. A winner above them stands.
3. ``token_rescan.py``, two kernels: rows whose winner may have been dropped are read once more.

Everything is decided on the device; the launches are the same for all inputs of a shape. Only
integers are added up by atomics, and floating sums bound but do not decide: the same call gives
the same tokens. Winners are computed in float64 from float32 values, as one rounding each of
(logit - greatest) and its division by the temperature leaves them; inside a tile the tile's
greatest stands for the row's, so a token may differ from the reference's only where the two first
arrivals lie within float32 rounding of one another.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.random_bits import load_keys
from moeray.kernels.token_filters import (
    LEAST_TEMPERATURE,
    Filters,
    RowStates,
    head_of,
    is_cut,
    least_value,
    limits_of,
    open_bins,
    tail_mass,
)
from moeray.kernels.token_race import (
    BINS,
    LOWEST_KEY,
    NO_TOKEN,
    bin_of,
    finite_or,
    first_of_tile,
    first_of_winners,
    float_of,
    greatest_of,
    key_of,
    legal_logits,
    tile_of,
    value_of,
)
from moeray.kernels.token_rescan import finish_rows

MOST_TOKENS: Final = 2**19 - 1
"""The greatest vocabulary: so many weights' sum an int64 holds."""
_MOST_TILES: Final = 1024


@dataclass(frozen=True, slots=True)
class SelectionConfig:
    """Shapes of programs. A scanning program has ``rounds`` times 4 logits for each of its threads;
    ``head`` is how far below the greatest, in temperatures, the histogram reaches; ``listed`` how
    many tokens of a row can be between those surely kept and those surely dropped before a row is
    read as a whole instead."""

    rounds: int = 4
    warps: int = 4
    head: float = 16.0
    listed: int = 2**15

    @property
    def lanes(self) -> int:
        return 32 * self.warps

    @property
    def tile(self) -> int:
        """Tokens of a program."""
        return self.rounds * self.lanes * 4


def config_for(rows: int, vocabulary: int) -> SelectionConfig:
    """Small tiles for few rows, so that every multiprocessor has one."""
    if vocabulary <= 1024:
        return SelectionConfig(rounds=1, warps=1)
    return SelectionConfig(rounds=2 if rows <= 4 else 4)


class Selected(NamedTuple):
    """What ``select_tokens`` returns."""

    tokens: Tensor
    """[N] int64."""
    greatest: Tensor
    """[N] float32: each row's greatest legal logit. Where it is not finite, the row's token means
    nothing: no token is legal, or a legal logit is NaN or infinite."""


def select_tokens(
    logits: Tensor,
    keys: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor | None = None,
    top_p: Tensor | None = None,
    min_p: Tensor | None = None,
    mask: Tensor | None = None,
    config: SelectionConfig | None = None,
) -> Selected:
    """One token of each row of logits [N, V] float32, without a host round trip.

    keys [N, 2] int64: each row's random bits, as of (seed, position). temperature [N] float32: 0
    takes the greatest logit, the lowest id on ties; otherwise the logits are divided by it. Then
    the top_k [N] int32 likeliest tokens are kept (0, or V and more: all; of equal ones the lowest
    ids), of these the smallest set of likeliest ones whose share reaches top_p [N] float32 (1: all;
    ties by lowest id, one at least), of these the ones at least min_p [N] float32 times as likely
    as the likeliest (0: all), and one is drawn by an exponential race. A filter that is None is off
    for all rows, and costs nothing. mask [N, ceil(V / 32)] int32: bit t % 32 of word t // 32 is set
    where token t is legal; without it all are.

    top_p's shares are sums of integer weights in units of 2**-44, and a share or weight that misses
    top_p or min_p by 2**-20 of it reaches it. Rows with top_p, top_k or min_p are read twice at
    most; where thousands of logits are equal, or lie beyond +-128, they take longer.

    Source: the Gumbel-max theorem (Yellott, 1977; Maddison, Tarlow, Minka, "A* Sampling", 2014);
    min_p: Nguyen et al., "Turning Up the Heat", 2024; the order of filters is Hugging Face's.
    ValueError for other shapes, dtypes or vocabularies above 2**19 - 1.
    """
    filters = Filters(top_k, top_p, min_p)
    _check(logits, keys, temperature, filters, mask)
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    greatest = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if not rows:
        return Selected(tokens, greatest)
    config = config or config_for(rows, vocabulary)
    tiles = triton.cdiv(vocabulary, config.tile)
    if tiles > _MOST_TILES:
        raise ValueError(f"config: {tiles} tiles of {config.tile} are more than {_MOST_TILES}")
    given = (logits, mask, keys, temperature)
    states = RowStates.of(rows, tiles, filters, config.listed, logits.device)
    shape = {"ROUNDS": config.rounds, "LANES": config.lanes, "num_warps": config.warps}
    _scan_tiles[(tiles, rows)](
        *given,
        *filters[:2],
        *states.tiles,
        states.histogram,
        vocabulary,
        HEAD=config.head,
        **shape,
        **dependent_launch(),
    )
    _decide_rows[(rows,)](
        *given,
        *filters,
        *states.tiles,
        states.histogram,
        states.rows,
        states.sums,
        tokens,
        greatest,
        vocabulary,
        tiles,
        HEAD=config.head,
        TILES=triton.next_power_of_2(tiles),
        num_warps=8 if filters.cut else 4,
        **dependent_launch(),
    )
    if filters.any:
        finish_rows(*given, filters, states, tokens, greatest, shape)
    return Selected(tokens, greatest)


def _check(
    logits: Tensor, keys: Tensor, temperature: Tensor, filters: Filters, mask: Tensor | None
) -> None:
    if logits.dim() != 2 or not 0 < logits.shape[1] <= MOST_TOKENS:
        raise ValueError(f"logits: {tuple(logits.shape)} is not [N, V], V from 1 to {MOST_TOKENS}")
    rows, vocabulary = logits.shape
    for name, tensor, dtype, shape in (
        ("logits", logits, torch.float32, (rows, vocabulary)),
        ("keys", keys, torch.int64, (rows, 2)),
        ("temperature", temperature, torch.float32, (rows,)),
        ("top_k", filters.top_k, torch.int32, (rows,)),
        ("top_p", filters.top_p, torch.float32, (rows,)),
        ("min_p", filters.min_p, torch.float32, (rows,)),
        ("mask", mask, torch.int32, (rows, triton.cdiv(vocabulary, 32))),
    ):
        if tensor is None:
            continue
        if tensor.dtype != dtype or tensor.shape != shape:
            own = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{name}: {own} is not {dtype} {list(shape)}")
        if not tensor.is_contiguous() or tensor.device != logits.device:
            raise ValueError(f"{name} is not contiguous, or not on {logits.device}")


@triton.jit
def _scan_tiles(  # type: ignore[no-untyped-def]
    logits_ptr,
    mask_ptr,
    keys_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    tile_keys_ptr,
    tile_tokens_ptr,
    tile_tails_ptr,
    histogram_ptr,
    vocabulary,
    HEAD: tl.constexpr,
    ROUNDS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Of each tile [tiles, N]: the key of its greatest logit; the token that is first, by logit
    where the row is greedy, else by arrival; and the weights that the histogram leaves out."""
    let_successor_start()
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    four, token = tile_of(tile, ROUNDS, LANES)
    logits_ptr += row * vocabulary
    if mask_ptr is not None:
        mask_ptr += row * ((vocabulary + 31) // 32)
    wait_for_predecessor()
    temperature = tl.load(temperature_ptr + row)
    x = legal_logits(logits_ptr, mask_ptr, four, token, vocabulary)
    greatest = greatest_of(x)
    place = row * tl.num_programs(0) + tile
    tl.store(tile_keys_ptr + place, key_of(greatest))
    first = tl.full((), NO_TOKEN, tl.int32)
    if temperature == 0:
        first = tl.min(tl.where(x == greatest, token, NO_TOKEN))
    elif tl.abs(greatest) < float("inf"):
        temperature = tl.maximum(temperature, LEAST_TEMPERATURE)
        high_key, low_key = load_keys(keys_ptr, row)
        first = first_of_tile(x, four, token, logits_ptr, greatest, temperature, high_key, low_key)
        if histogram_ptr is not None:  # noqa: SIM102 - known when compiled
            if is_cut(top_k_ptr, top_p_ptr, row, vocabulary):
                in_head = x >= head_of(greatest, temperature, HEAD)
                counts_ptr = histogram_ptr + row * BINS + bin_of(x)
                tl.atomic_add(counts_ptr, 1, mask=in_head, sem="relaxed")
                weight = tl.exp(tl.where(in_head, -float("inf"), x - greatest) / temperature)
                tl.store(tile_tails_ptr + place, tl.sum(weight))
    elif tile_tails_ptr is not None:
        tl.store(tile_tails_ptr + place, 0.0)
    tl.store(tile_tokens_ptr + place, first)


@triton.jit
def _decide_rows(  # type: ignore[no-untyped-def]
    logits_ptr,
    mask_ptr,
    keys_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    tile_keys_ptr,
    tile_tokens_ptr,
    tile_tails_ptr,
    histogram_ptr,
    rows_ptr,
    sums_ptr,
    tokens_ptr,
    greatest_ptr,
    vocabulary,
    tiles,
    HEAD: tl.constexpr,
    TILES: tl.constexpr,
):
    """Of each row [N]: its greatest logit, its token, and whether that has to be seen again."""
    let_successor_start()
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, TILES)
    here = place < tiles
    place = row * tiles + place
    wait_for_predecessor()
    temperature = tl.load(temperature_ptr + row)
    key = tl.load(tile_keys_ptr + place, mask=here, other=LOWEST_KEY)
    token = tl.load(tile_tokens_ptr + place, mask=here, other=NO_TOKEN)
    row_key = tl.max(key)
    tl.store(greatest_ptr + row, float_of(row_key))
    undecided = 0
    if temperature == 0:
        first = tl.min(tl.where(key == row_key, token, NO_TOKEN))
        first = tl.where(first < NO_TOKEN, first, 0)
        tl.store(tokens_ptr + row, first.to(tl.int64))
    else:
        greatest = finite_or(float_of(row_key), 0.0)
        temperature = tl.maximum(temperature, LEAST_TEMPERATURE)
        high_key, low_key = load_keys(keys_ptr, row)
        logits_ptr += row * vocabulary
        _, first = first_of_winners(token, logits_ptr, greatest, temperature, high_key, low_key)
        first = tl.where(first < NO_TOKEN, first, 0)
        tl.store(tokens_ptr + row, first.to(tl.int64))
        if rows_ptr is not None:
            lowest, highest = 0, -1
            if histogram_ptr is not None:
                top_k, top_p = limits_of(top_k_ptr, top_p_ptr, row, vocabulary)
                if (top_k < vocabulary) | (top_p < 1.0):
                    tails = tl.load(tile_tails_ptr + place, mask=here, other=0.0)
                    tail = tail_mass(float_of(key), tails, greatest, temperature)
                    lowest, highest = open_bins(
                        histogram_ptr + row * BINS,
                        tail,
                        greatest,
                        temperature,
                        top_k,
                        top_p,
                        vocabulary,
                        HEAD,
                    )
            x = finite_or(tl.load(logits_ptr + first), greatest)
            likely = value_of(x, greatest, temperature) >= least_value(min_p_ptr, row)
            undecided = 1 - (likely & (bin_of(x) > highest)).to(tl.int32)
            if undecided:
                tl.store(rows_ptr + 4 * row + 1, lowest)
                tl.store(rows_ptr + 4 * row + 2, highest)
                tl.store(rows_ptr + 4 * row + 3, 0)
                for i in tl.static_range(3):
                    tl.store(sums_ptr + 3 * row + i, 0)
    if rows_ptr is not None:
        tl.store(rows_ptr + 4 * row, undecided)
