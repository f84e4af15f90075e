"""Attention of decoding sequences, one row each, over a paged cache: split-KV.

The cache is read once, which is all that decoding costs. The keys of a sequence are cut into
splits so that every multiprocessor has some; the query heads of one key-value head share what is
read (grouped-query attention; Ainslie et al., 2023). Each program runs the online softmax (Milakov
and Gimelshein, 2018; FlashAttention, Dao et al., 2022) over its split, and the last one of a
sequence's head to finish adds up the splits and the sink (FlashDecoding; Dao et al., 2023).
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

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

_PROGRAMS_PER_MULTIPROCESSOR = 2
_SPLIT_KEYS = 1024
"""Of long contexts, where there is enough else to do: a program's start costs nothing then."""
_MOST_SPLITS = 32
_MOST_SPLITS_OF_MANY = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeConfig:
    """How the work is cut; every choice computes the same."""

    block_keys: int
    """Keys of one tile."""
    splits: int
    """The most splits of one sequence."""
    least_tiles: int
    """Tiles that a split has at least, where there are as many."""
    warps: int
    stages: int


def decode_attention(
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
    counters: Tensor | None = None,
    config: DecodeConfig | None = None,
) -> Tensor:
    """``reference.paged_attention`` where sequence s < row_starts[S] owns row s and no other.

    Sequences from there on own none, and rows from there on give zeros: a batch padded to a
    captured size is one. Arguments, result and errors otherwise as of
    ``reference.paged_attention``, in bfloat16, with a cache in bfloat16, or in float8_e4m3fn with
    key_scales and value_scales. ValueError names an argument of another shape or dtype.

    counters: int32 [R * Hkv] or more zeros, which are zeros again when the op has ended, so that
    one tensor serves all calls of a stream; without it each call clears its own.
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
    config = config or decode_config(shape, window, _multiprocessors(queries.device))
    units = shape.rows * shape.kv_heads
    if counters is None:
        counters = torch.zeros(units, dtype=torch.int32, device=queries.device)
    elif counters.dtype != torch.int32 or counters.numel() < units:
        raise ValueError(f"counters: {counters.numel()} of {counters.dtype}, not {units} int32")
    out = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    if not shape.rows:
        return out
    parts, head_dim = units * config.splits * shape.group, shape.head_dim
    mixes = torch.empty(parts, head_dim, dtype=torch.float32, device=queries.device)
    peaks, sums = torch.empty(2, parts, dtype=torch.float32, device=queries.device)
    _decode[(shape.kv_heads, shape.rows, config.splits)](
        out,
        mixes,
        peaks,
        sums,
        counters,
        queries,
        queries.stride(0),
        key_cache,
        value_cache,
        key_scales,
        value_scales,
        row_starts,
        shape.sequences,
        positions,
        block_table,
        block_table.stride(0),
        first_blocks,
        sinks,
        scale * LOG2_E.value,
        config.splits,
        WINDOW=window or 0,
        GROUP=shape.group,
        HEADS_PADDED=max(16, triton.next_power_of_2(shape.group)),
        KV_HEADS=shape.kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_TOKENS=shape.block_tokens,
        BLOCK_KEYS=config.block_keys,
        LEAST_TILES=config.least_tiles,
        SPLITS_AT_ONCE=min(16, triton.next_power_of_2(config.splits)),
        STAGES=config.stages,
        num_warps=config.warps,
        **dependent_launch(),
    )
    return out


def decode_config(shape: AttentionShape, window: int | None, multiprocessors: int) -> DecodeConfig:
    """From sizes alone: lengths are known to the device only."""
    keys = shape.columns * shape.block_tokens
    if window is not None:
        keys = min(keys, window)
    block_keys = 128 if keys > 64 else 64
    units = max(1, shape.rows * shape.kv_heads)
    to_fill = min(triton.cdiv(_PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, units), _MOST_SPLITS)
    to_balance = min(keys // (2 * _SPLIT_KEYS), _MOST_SPLITS_OF_MANY)
    least_keys = _SPLIT_KEYS if to_balance > to_fill else block_keys
    return DecodeConfig(
        block_keys=block_keys,
        splits=max(1, min(max(to_fill, to_balance), triton.cdiv(keys, least_keys))),
        least_tiles=least_keys // block_keys,
        warps=4,
        stages=5 if keys > block_keys else 3,
    )


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit(do_not_specialize=["sequences", "table_stride", "splits"])
def _decode(  # type: ignore[no-untyped-def]
    out_ptr,
    mixes_ptr,
    peaks_ptr,
    sums_ptr,
    counters_ptr,
    queries_ptr,
    query_stride,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    row_starts_ptr,
    sequences,
    positions_ptr,
    table_ptr,
    table_stride,
    first_blocks_ptr,
    sinks_ptr,
    scale_log2,
    splits,
    WINDOW: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    LEAST_TILES: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (kv head, row, split)."""
    let_successor_start()
    kv_head = tl.program_id(0)
    row = tl.program_id(1)
    split = tl.program_id(2)
    heads = tl.arange(0, HEADS_PADDED)
    dims = tl.arange(0, HEAD_DIM)
    sinks = wide(tl.load(sinks_ptr + kv_head * GROUP + heads, mask=heads < GROUP, other=0.0))
    sinks = sinks.to(tl.float32) * LOG2_E
    out_ptrs = (
        out_ptr
        + (row.to(tl.int64) * KV_HEADS + kv_head) * (GROUP * HEAD_DIM)
        + heads[:, None] * HEAD_DIM
        + dims
    )
    own = (heads < GROUP)[:, None] & (dims >= 0)
    wait_for_predecessor()
    # Three loads in one go, before any of them decides something.
    owned = tl.load(row_starts_ptr + sequences)
    position = tl.load(positions_ptr + row).to(tl.int32)
    before = tl.load(first_blocks_ptr + row, mask=row < sequences, other=0).to(tl.int32)
    if row < owned:
        before *= BLOCK_TOKENS
        last_key = position - before
        first_key = tl.maximum(last_key - WINDOW + 1, 0) if WINDOW else 0
        tiles = (last_key - first_key) // BLOCK_KEYS + 1
        split_tiles = tl.maximum((tiles + splits - 1) // splits, LEAST_TILES)
        used = (tiles + split_tiles - 1) // split_tiles
        if split < used:
            first_tile = split * split_tiles
            mix, peak, total = _attend_split(
                queries_ptr + row.to(tl.int64) * query_stride + kv_head * (GROUP * HEAD_DIM),
                keys_ptr + kv_head * HEAD_DIM,
                values_ptr + kv_head * HEAD_DIM,
                key_scales_ptr,
                value_scales_ptr,
                table_ptr + row.to(tl.int64) * table_stride,
                kv_head,
                first_key + first_tile * BLOCK_KEYS,
                tl.minimum(first_tile + split_tiles, tiles) - first_tile,
                last_key,
                scale_log2,
                GROUP,
                HEADS_PADDED,
                KV_HEADS,
                HEAD_DIM,
                BLOCK_TOKENS,
                BLOCK_KEYS,
                STAGES,
            )
            unit = row * KV_HEADS + kv_head
            last_to_finish = used == 1
            if used > 1:
                part = (unit.to(tl.int64) * splits + split) * GROUP + heads
                tl.store(mixes_ptr + part[:, None] * HEAD_DIM + dims, mix, mask=own)
                tl.store(peaks_ptr + part, peak, mask=heads < GROUP)
                tl.store(sums_ptr + part, total, mask=heads < GROUP)
                # All threads' stores come before the one thread's release.
                tl.debug_barrier()
                finished = tl.atomic_add(counters_ptr + unit, 1, sem="acq_rel", scope="gpu")
                last_to_finish = finished == used - 1
                if last_to_finish:
                    tl.store(counters_ptr + unit, 0)
                    mix, peak, total = _sum_splits(
                        mixes_ptr,
                        peaks_ptr,
                        sums_ptr,
                        unit.to(tl.int64) * splits,
                        used,
                        GROUP,
                        HEADS_PADDED,
                        HEAD_DIM,
                        SPLITS_AT_ONCE,
                    )
            if last_to_finish:
                total += tl.exp2(sinks - peak)
                mixed = mix / total[:, None]
                tl.store(out_ptrs, mixed.to(out_ptr.dtype.element_ty), mask=own)
    elif split == 0:
        nothing = tl.zeros([HEADS_PADDED, HEAD_DIM], out_ptr.dtype.element_ty)
        tl.store(out_ptrs, nothing, mask=own)


@triton.jit
def _attend_split(  # type: ignore[no-untyped-def]
    query_ptr,
    keys_ptr,
    values_ptr,
    key_scales_ptr,
    value_scales_ptr,
    table_ptr,
    kv_head,
    start,
    tiles,
    last_key,
    scale_log2,
    GROUP: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The online softmax of one split: (sum of values by weight [heads, D], greatest logit
    [heads], sum of weights [heads]), weights being 2 ** (logit - greatest).
    """
    heads = tl.arange(0, HEADS_PADDED)
    dims = tl.arange(0, HEAD_DIM)
    offsets = tl.arange(0, BLOCK_KEYS)
    query_ptrs = query_ptr + heads[:, None] * HEAD_DIM + dims
    query = wide(tl.load(query_ptrs, mask=(heads < GROUP)[:, None], other=0.0))
    mix = tl.zeros([HEADS_PADDED, HEAD_DIM], tl.float32)
    peak = tl.full([HEADS_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([HEADS_PADDED], tl.float32)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        keys = start + tile * BLOCK_KEYS + offsets
        seen = keys <= last_key
        slots = cache_slots(table_ptr, keys, last_key, BLOCK_TOKENS, True)
        places = slots[:, None] * (KV_HEADS * HEAD_DIM) + dims
        key = as_dot_operand(tl.load(keys_ptr + places))
        # A weight of 0 does not silence NaN, which a block's last owner may have left there.
        value = as_dot_operand(tl.load(values_ptr + places, mask=seen[:, None], other=0.0))
        logits = tl.dot(query.to(key.dtype), key.T) * scale_log2
        if key_scales_ptr is not None:
            scale_places = slots * KV_HEADS + kv_head
            logits *= tl.load(key_scales_ptr + scale_places)
        logits = tl.where(seen, logits, -float("inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(weights, 1)
        if value_scales_ptr is not None:
            scales = tl.load(value_scales_ptr + scale_places, mask=seen, other=0.0)
            weights = value_weights(weights, scales)
        mix = tl.dot(weights.to(value.dtype), value, mix * fade[:, None])
        peak = higher
    if value_scales_ptr is not None:
        mix *= VALUE_UNIT
    return mix, peak, total


@triton.jit
def _sum_splits(  # type: ignore[no-untyped-def]
    mixes_ptr,
    peaks_ptr,
    sums_ptr,
    first_split,
    used,
    GROUP: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLITS_AT_ONCE: tl.constexpr,
):
    """The splits' results as if they had been one, in the order of the splits."""
    heads = tl.arange(0, HEADS_PADDED)
    dims = tl.arange(0, HEAD_DIM)
    mix = tl.zeros([HEADS_PADDED, HEAD_DIM], tl.float32)
    peak = tl.full([HEADS_PADDED], -float("inf"), tl.float32)
    total = tl.zeros([HEADS_PADDED], tl.float32)
    for first in range(0, used, SPLITS_AT_ONCE):
        chosen = first + tl.arange(0, SPLITS_AT_ONCE)
        parts = (first_split + chosen)[:, None] * GROUP + heads
        there = (chosen < used)[:, None] & (heads < GROUP)
        # Past the first-level cache: other multiprocessors wrote them.
        nothing = tl.where(heads < GROUP, -1e30, 0.0)[None, :]
        peaks = tl.load(peaks_ptr + parts, mask=there, other=nothing, cache_modifier=".cg")
        sums = tl.load(sums_ptr + parts, mask=there, other=0.0, cache_modifier=".cg")
        mixes = tl.load(
            mixes_ptr + parts[:, :, None] * HEAD_DIM + dims,
            mask=there[:, :, None],
            other=0.0,
            cache_modifier=".cg",
        )
        higher = tl.maximum(peak, tl.max(peaks, 0))
        fades = tl.exp2(peaks - higher)
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(sums * fades, 0)
        mix = mix * fade[:, None] + tl.sum(mixes * fades[:, :, None], 0)
        peak = higher
    return mix, peak, total
