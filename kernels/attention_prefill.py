"""Attention of sequences with any number of rows over a paged cache: prefill, also in chunks.

A program computes a tile of rows of one sequence for one key-value head. The rows' query heads of
that head lie side by side in the tile, so that keys and values are read once for all of them and
few keys at the causal edge are wasted. Online softmax (Milakov and Gimelshein, 2018) in the order
of FlashAttention-2 (Dao, 2023); masks only where a window or the causal edge cuts a tile of keys.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.attention_decode import decode_attention
from moeray.kernels.attention_pages import (
    LOG2_E,
    VALUE_UNIT,
    AttentionShape,
    as_dot_operand,
    cache_slots,
    checked_shape,
    value_weights,
)
from moeray.kernels.launch import (
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
    wide,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillConfig:
    """How the work is cut; every choice computes the same."""

    tile_queries: int
    """Rows times query heads of a key-value head in one tile; a power of two."""
    block_keys: int
    """Keys of one tile."""
    warps: int
    stages: int
    sequences_at_once: int = 256
    """Whose starts a program looks through in one step; a power of two."""


def paged_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    row_starts: Tensor,
    positions: Tensor,
    block_table: Tensor,
    first_blocks: Tensor,
    sinks: Tensor,
    *,
    scale: float,
    window: int | None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    rows_each: int | None = None,
) -> Tensor:
    """``reference.paged_attention``, by the kernel for decoding or the one for prefill.

    rows_each is what the host knows of row_starts, which are on the device: 1 where sequences own
    one row each, or, after the last that does, none (see ``decode_attention``); None where they may
    own any number. ValueError where it is something else.
    """
    if rows_each not in (1, None):
        raise ValueError(f"rows_each: {rows_each}, not 1 or None")
    attend = prefill_attention if rows_each is None else decode_attention
    return attend(
        queries,
        key_cache,
        value_cache,
        row_starts,
        positions,
        block_table,
        first_blocks,
        sinks,
        scale=scale,
        window=window,
        key_scales=key_scales,
        value_scales=value_scales,
    )


def prefill_attention(
    queries: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    row_starts: Tensor,
    positions: Tensor,
    block_table: Tensor,
    first_blocks: Tensor,
    sinks: Tensor,
    *,
    scale: float,
    window: int | None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    config: PrefillConfig | None = None,
) -> Tensor:
    """``reference.paged_attention`` for any rows of each sequence, whose positions ascend by one.

    Arguments, result and errors as of ``reference.paged_attention``, in bfloat16, with a cache in
    bfloat16, or in float8_e4m3fn with key_scales and value_scales. A sequence may own no row.
    ValueError names an argument of another shape or dtype.
    """
    shape = checked_shape(
        queries,
        key_cache,
        value_cache,
        row_starts,
        positions,
        block_table,
        first_blocks,
        sinks,
        scale,
        window,
        key_scales,
        value_scales,
    )
    config = config or prefill_config(shape, window)
    heads_padded = triton.next_power_of_2(shape.group)
    tile_rows = max(1, config.tile_queries // heads_padded)
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if not shape.rows:
        return out
    # Tiles of rows that S sequences, and the padding as one more, can have at most.
    tiles = shape.rows // tile_rows + shape.sequences + 1
    _prefill[(shape.kv_heads, tiles)](
        out,
        queries,
        queries.stride(0),
        key_cache,
        value_cache,
        key_scales,
        value_scales,
        row_starts,
        shape.sequences,
        shape.rows,
        positions,
        block_table,
        block_table.stride(0),
        first_blocks,
        sinks,
        scale * LOG2_E.value,
        WINDOW=window or 0,
        GROUP=shape.group,
        HEADS_PADDED=heads_padded,
        TILE_ROWS=tile_rows,
        KV_HEADS=shape.kv_heads,
        HEAD_DIM=shape.head_dim,
        BLOCK_TOKENS=shape.block_tokens,
        BLOCK_KEYS=config.block_keys,
        SEQUENCES=min(triton.next_power_of_2(shape.sequences + 1), config.sequences_at_once),
        STAGES=config.stages,
        num_warps=config.warps,
        **dependent_launch(),
    )
    return out


def prefill_config(shape: AttentionShape, window: int | None) -> PrefillConfig:
    """From sizes alone."""
    # More of wide heads would not fit the registers.
    tile_queries = 128 if shape.head_dim <= 64 else 64
    return PrefillConfig(tile_queries=tile_queries, block_keys=64, warps=4, stages=3)


@triton.jit
def _owner(  # type: ignore[no-untyped-def]
    tile, row_starts_ptr, sequences, rows, TILE_ROWS: tl.constexpr, SEQUENCES: tl.constexpr
):
    """The sequence that a tile of rows belongs to, its first row and the one behind its last, and
    the tile's place in it.

    Sequence s has the tiles from row_starts[s] // TILE_ROWS + s on: at least as many as it needs
    before the next one's begin. Sequence S is the padding.
    """
    begun = 0
    start = 0
    end = rows
    for first in range(0, sequences + 1, SEQUENCES):
        candidates = first + tl.arange(0, SEQUENCES)
        there = candidates <= sequences
        starts = tl.load(row_starts_ptr + candidates, mask=there, other=0).to(tl.int32)
        begins = there & (starts // TILE_ROWS + candidates <= tile)
        begun += tl.sum(begins.to(tl.int32))
        start = tl.maximum(start, tl.max(tl.where(begins, starts, 0)))
        end = tl.minimum(end, tl.min(tl.where(there & (begins == 0), starts, rows)))
    return begun - 1, start, end, tile - start // TILE_ROWS - (begun - 1)


@triton.jit(do_not_specialize=["sequences", "rows", "table_stride"])
def _prefill(  # type: ignore[no-untyped-def]
    out_ptr,
    queries_ptr,
    query_stride,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    row_starts_ptr,
    sequences,
    rows,
    positions_ptr,
    table_ptr,
    table_stride,
    first_blocks_ptr,
    sinks_ptr,
    scale_log2,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    SEQUENCES: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (kv head, tile of rows), the last tile first: it has the most keys to read."""
    let_successor_start()
    kv_head = tl.program_id(0)
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    lanes = tl.arange(0, TILE_ROWS * HEADS_PADDED)
    heads = lanes % HEADS_PADDED
    dims = tl.arange(0, HEAD_DIM)
    sinks = wide(tl.load(sinks_ptr + kv_head * GROUP + heads, mask=heads < GROUP, other=0.0))
    sinks = sinks.to(tl.float32) * LOG2_E
    wait_for_predecessor()
    sequence, start, end, place = _owner(
        tile, row_starts_ptr, sequences, rows, TILE_ROWS, SEQUENCES
    )
    first_row = start + place * TILE_ROWS
    row = first_row + lanes // HEADS_PADDED
    own = ((row < end) & (heads < GROUP))[:, None]
    in_row = (kv_head * GROUP + heads)[:, None] * HEAD_DIM + dims
    out_ptrs = out_ptr + row.to(tl.int64)[:, None] * (KV_HEADS * GROUP * HEAD_DIM) + in_row
    if (sequence < sequences) & (first_row < end):
        query_ptrs = queries_ptr + row.to(tl.int64)[:, None] * query_stride + in_row
        query = wide(tl.load(query_ptrs, mask=own, other=0.0))
        last_row = tl.minimum(first_row + TILE_ROWS, end) - 1
        before = tl.load(first_blocks_ptr + sequence).to(tl.int32) * BLOCK_TOKENS
        # The last key that each row, the first and the last of them see.
        reach = tl.load(positions_ptr + row, mask=row < end, other=-1).to(tl.int32) - before
        least = tl.load(positions_ptr + first_row).to(tl.int32) - before
        most = tl.load(positions_ptr + last_row).to(tl.int32) - before
        # The sink is there before any key: so the greatest logit is finite from the start.
        peak = tl.maximum(sinks, -1e30)
        total = tl.exp2(sinks - peak)
        mix = tl.zeros([TILE_ROWS * HEADS_PADDED, HEAD_DIM], tl.float32)
        keys_ptr += kv_head * HEAD_DIM
        values_ptr += kv_head * HEAD_DIM
        table_ptr += sequence.to(tl.int64) * table_stride
        edge = 0
        if WINDOW:
            edge = tl.maximum(least - WINDOW + 1, 0)
        else:
            edge = (least + 1) // BLOCK_KEYS * BLOCK_KEYS
            mix, peak, total = _attend_keys(
                query,
                mix,
                peak,
                total,
                keys_ptr,
                values_ptr,
                key_scales_ptr,
                value_scales_ptr,
                table_ptr,
                kv_head,
                0,
                edge,
                reach,
                most,
                scale_log2,
                0,
                KV_HEADS,
                HEAD_DIM,
                BLOCK_TOKENS,
                BLOCK_KEYS,
                False,
                STAGES,
            )
        mix, peak, total = _attend_keys(
            query,
            mix,
            peak,
            total,
            keys_ptr,
            values_ptr,
            key_scales_ptr,
            value_scales_ptr,
            table_ptr,
            kv_head,
            edge,
            most + 1,
            reach,
            most,
            scale_log2,
            WINDOW,
            KV_HEADS,
            HEAD_DIM,
            BLOCK_TOKENS,
            BLOCK_KEYS,
            True,
            STAGES,
        )
        if value_scales_ptr is not None:
            mix *= VALUE_UNIT
        mixed = mix / total[:, None]
        tl.store(out_ptrs, mixed.to(out_ptr.dtype.element_ty), mask=own)
    elif sequence == sequences:
        tl.store(out_ptrs, tl.zeros_like(in_row).to(out_ptr.dtype.element_ty), mask=own)


@triton.jit
def _attend_keys(  # type: ignore[no-untyped-def]
    query,
    mix,
    peak,
    total,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    table_ptr,
    kv_head,
    first_key,
    end_key,
    reach,
    most,
    scale_log2,
    WINDOW: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The online softmax goes on over keys first_key to end_key - 1.

    mix [M, D] is the sum of values by weight, peak [M] the greatest logit, total [M] the sum of
    weights, which are 2 ** (logit - peak). MASKED where some row does not see all of the keys.
    """
    dims = tl.arange(0, HEAD_DIM)
    offsets = tl.arange(0, BLOCK_KEYS)
    for first in tl.range(first_key, end_key, BLOCK_KEYS, num_stages=STAGES):
        keys = first + offsets
        slots = cache_slots(table_ptr, keys, most, BLOCK_TOKENS, MASKED)
        places = slots[:, None] * (KV_HEADS * HEAD_DIM) + dims
        key = as_dot_operand(tl.load(keys_ptr + places))
        if MASKED:
            # A weight of 0 does not silence NaN, which a block's last owner may have left there.
            value = tl.load(values_ptr + places, mask=(keys <= most)[:, None], other=0.0)
        else:
            value = tl.load(values_ptr + places)
        value = as_dot_operand(value)
        products = tl.dot(query.to(key.dtype), key.T)
        if key_scales_ptr is not None:
            products *= tl.load(key_scales_ptr + slots * KV_HEADS + kv_head)
        if MASKED:
            seen = keys <= reach[:, None]
            if WINDOW:
                seen &= keys > reach[:, None] - WINDOW
            products = tl.where(seen, products, -float("inf"))
        higher = tl.maximum(peak, tl.max(products, 1) * scale_log2)
        weights = tl.exp2(products * scale_log2 - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, 1)
        if value_scales_ptr is not None:
            scale_ptrs = value_scales_ptr + slots * KV_HEADS + kv_head
            if MASKED:
                scales = tl.load(scale_ptrs, mask=keys <= most, other=0.0)
            else:
                scales = tl.load(scale_ptrs)
            weights = value_weights(weights, scales)
        mix = tl.dot(weights.to(value.dtype), value, mix * fade[:, None])
        peak = higher
    return mix, peak, total
