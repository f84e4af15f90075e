"""Which choices an expert gets: those of many rows in the order of their experts.

For products of many rows with one expert's weights. Few choices take one kernel, in which the
program of an expert looks at all of them twice. More are cut into blocks, which one kernel counts
and a second one places: a block has only to know how many of each expert's the other blocks have.
Results are the same from run to run, because no atomics decide them.
"""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor

FEW_CHOICES: Final = 4096
"""Choices up to which one kernel sorts them."""
BLOCK: Final = 512
"""Of more choices, those of one program: fewer are sorted sooner, but each program reads the counts
of all blocks."""
SUMMED: Final = 64
"""Blocks whose counts a program looks at together."""
_NONE: Final = tl.constexpr(-1)


class SortedChoices(NamedTuple):
    """The choices of held experts in expert order, cut into tiles that each have one expert.

    choices int32 [A]: index r k + j of choice j of row r; the first are those of held experts.
    Tile t holds choices ``begins[t]`` to ``begins[t] + counts[t] - 1`` of expert ``experts[t]`` of
    the held; int32 [T], T from shapes alone; a tile that is not needed has count 0. An expert's
    last tile has what is left.
    """

    choices: Tensor
    experts: Tensor
    begins: Tensor
    counts: Tensor


def sort_choices(
    experts: Tensor, *, first_expert: int, held: int, tile: int, extra: int = 0
) -> SortedChoices:
    """Sorts the choices experts [R, k] int64; held experts are first_expert to + held - 1.

    One expert's choices stay in ascending order. A tile has ``tile`` choices, an expert's last one
    at most ``tile + extra``.
    """
    size = experts.numel()
    most = size // tile + min(held, size)
    device = experts.device
    choices = torch.empty(size, dtype=torch.int32, device=device)
    tiles = [torch.empty(most, dtype=torch.int32, device=device) for _ in range(3)]
    bins = max(16, triton.next_power_of_2(held))
    if size <= FEW_CHOICES:
        _sort[(held,)](
            experts, choices, *tiles, size, most, first_expert, held, tile, extra,
            bins, triton.next_power_of_2(size), num_warps=16 if size > 2048 else 8,
            **dependent_launch(),
        )  # fmt: skip
    else:
        blocks = triton.cdiv(size, BLOCK)
        counts = torch.empty((blocks, bins), dtype=torch.int32, device=device)
        _count[(blocks,)](
            experts, counts, size, first_expert, held, bins, BLOCK, num_warps=4,
            **dependent_launch(),
        )  # fmt: skip
        _place[(blocks + 1,)](
            experts, counts, choices, *tiles, size, blocks, most, first_expert, held, tile, extra,
            bins, BLOCK, SUMMED, num_warps=4, **dependent_launch(),
        )  # fmt: skip
    return SortedChoices(choices, *tiles)


@triton.jit
def _sort(  # type: ignore[no-untyped-def]
    experts_ptr,
    choices_ptr,
    expert_ptr,
    begin_ptr,
    count_ptr,
    size,
    most,
    first_expert,
    held,
    tile,
    extra,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for each held expert: counts all choices, then places its own."""
    let_successor_start()
    wait_for_predecessor()
    own = tl.program_id(0)
    bins = tl.arange(0, BINS)
    counts = tl.zeros((BINS,), tl.int32)
    for start in tl.range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        local = tl.load(experts_ptr + at, mask=at < size, other=_NONE).to(tl.int32) - first_expert
        inside = (at < size) & (local >= 0) & (local < held)
        counts += tl.histogram(tl.where(inside, local, 0), BINS, mask=inside)
    place = tl.sum(tl.where(bins < own, counts, 0))
    begin = place
    for start in tl.range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        local = tl.load(experts_ptr + at, mask=at < size, other=_NONE).to(tl.int32) - first_expert
        mine = ((at < size) & (local == own)).to(tl.int32)
        rank = tl.cumsum(mine) - 1
        tl.store(choices_ptr + place + rank, at, mask=mine == 1)
        place += tl.sum(mine)
    tiles = _tiles(counts, tile, extra)
    _write_tiles(expert_ptr, begin_ptr, count_ptr, own, bins, tiles, begin, place, tile)
    if own == 0:
        for start in tl.range(tl.sum(tiles), most, BINS):
            tl.store(count_ptr + start + bins, 0, mask=start + bins < most)


@triton.jit
def _tiles(counts, tile, extra):  # type: ignore[no-untyped-def]
    """How many tiles each expert's choices take."""
    return (tl.maximum(counts - extra, tl.minimum(counts, 1)) + tile - 1) // tile


@triton.jit
def _write_tiles(  # type: ignore[no-untyped-def]
    expert_ptr, begin_ptr, count_ptr, own, bins, tiles, begin, end, tile
):
    """The tiles of expert ``own``, whose choices are begin to end - 1 of the sorted ones."""
    BINS: tl.constexpr = bins.shape[0]
    first = tl.sum(tl.where(bins < own, tiles, 0))
    number = tl.sum(tl.where(bins == own, tiles, 0))
    for start in tl.range(0, number, BINS):
        t = start + bins
        tl.store(expert_ptr + first + t, own + tl.zeros((BINS,), tl.int32), mask=t < number)
        tl.store(begin_ptr + first + t, begin + t * tile, mask=t < number)
        count = tl.where(t == number - 1, end - begin - t * tile, tile)
        tl.store(count_ptr + first + t, count, mask=t < number)


@triton.jit
def _count(  # type: ignore[no-untyped-def]
    experts_ptr,
    counts_ptr,
    size,
    first_expert,
    held,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts [blocks, BINS] int32: how many choices of a block each held expert has."""
    # In this order, because _place reads the experts before its own wait: they must be there when
    # it starts.
    wait_for_predecessor()
    let_successor_start()
    block = tl.program_id(0)
    local = _held_experts(experts_ptr, block, size, first_expert, held, BINS, BLOCK)
    inside = local < BINS
    counts = tl.histogram(tl.where(inside, local, 0), BINS, mask=inside)
    tl.store(counts_ptr + block * BINS + tl.arange(0, BINS), counts)


@triton.jit
def _place(  # type: ignore[no-untyped-def]
    experts_ptr,
    counts_ptr,
    choices_ptr,
    expert_ptr,
    begin_ptr,
    count_ptr,
    size,
    blocks,
    most,
    first_expert,
    held,
    tile,
    extra,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """One program for each block, which places its choices, and a last one, which cuts tiles."""
    let_successor_start()
    block = tl.program_id(0)
    place = tl.arange(0, BLOCK)
    # By expert, one expert's in ascending order, while _count still counts.
    local = _held_experts(experts_ptr, block, size, first_expert, held, BINS, BLOCK)
    keys = tl.sort(local * BLOCK + place)
    wait_for_predecessor()
    others, before = _sums(counts_ptr, block, blocks, BINS, SUMMED)
    if block == blocks:
        _write_all_tiles(expert_ptr, begin_ptr, count_ptr, others, most, tile, extra)
        return
    # How much further behind in all than in its block a choice of an expert is: behind all of the
    # experts before it, but for those that are in this block too, and behind its own before.
    shifts = tl.cumsum(others) - others + before
    local = keys // BLOCK
    inside = local < BINS
    place += tl.gather(shifts, tl.where(inside, local, 0), 0)
    tl.store(choices_ptr + place, block * BLOCK + keys % BLOCK, mask=inside)


@triton.jit
def _held_experts(  # type: ignore[no-untyped-def]
    experts_ptr, block, size, first_expert, held, BINS: tl.constexpr, BLOCK: tl.constexpr
):
    """Of a block's choices the experts [BLOCK] int32, counted from the first held one; BINS where
    there is no choice, or none of a held expert."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    local = tl.load(experts_ptr + at, mask=at < size, other=_NONE).to(tl.int32) - first_expert
    return tl.where((at < size) & (local >= 0) & (local < held), local, BINS)


@triton.jit
def _sums(counts_ptr, block, blocks, BINS: tl.constexpr, SUMMED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each expert's choices [BINS] int32 in all blocks but ``block``, and in those before it."""
    bins = tl.arange(0, BINS)
    # Both in one number, because for each sum threads wait for one another.
    sums = tl.zeros((BINS,), tl.int64)
    for start in tl.range(0, blocks, SUMMED):
        one = (start + tl.arange(0, SUMMED))[:, None]
        at = counts_ptr + one * BINS + bins[None, :]
        counts = tl.load(at, mask=(one < blocks) & (one != block), other=0).to(tl.int64)
        sums += tl.sum(counts + tl.where(one < block, counts << 32, 0), 0)
    return sums.to(tl.int32), (sums >> 32).to(tl.int32)


@triton.jit
def _write_all_tiles(  # type: ignore[no-untyped-def]
    expert_ptr, begin_ptr, count_ptr, totals, most, tile, extra
):
    """The tiles of all experts, who have ``totals`` [BINS] choices: the first of each, the second
    of each, and so on."""
    BINS: tl.constexpr = totals.shape[0]
    bins = tl.arange(0, BINS)
    tiles = _tiles(totals, tile, extra)
    begins = tl.cumsum(totals) - totals
    firsts = tl.cumsum(tiles) - tiles
    for number in tl.range(0, tl.max(tiles)):
        keep = number < tiles
        done = number * tile
        tl.store(expert_ptr + firsts + number, bins, mask=keep)
        tl.store(begin_ptr + firsts + number, begins + done, mask=keep)
        count = tl.where(number == tiles - 1, totals - done, tile)
        tl.store(count_ptr + firsts + number, count, mask=keep)
    for start in tl.range(tl.sum(tiles), most, BINS):
        tl.store(count_ptr + start + bins, 0, mask=start + bins < most)
