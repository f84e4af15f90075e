"""From projected rows to attention: bias, YaRN's rotation, and the paged KV write, in one kernel.

It follows a matrix product of many rows; for few, ``qkv_projection`` has the product inside as
well. A program holds both halves of what it rotates. The tables come from
``reference.rope_tables``, once a step.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.float8 import E4M3_MOST, to_e4m3
from moeray.kernels.launch import (
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeWriteConfig:
    """How rows are dealt to programs; powers of two."""

    rows: int = 4
    warps: int = 4


def qkv_rope_write(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    query_heads: int,
    bias: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    config: RopeWriteConfig | None = None,
) -> Tensor:
    """Rotates queries and keys, stores keys and values in the paged caches, returns the queries.

    qkv [R, (Hq + 2 Hkv) D] holds the query heads, the key heads, the value heads; ``bias`` of that
    width is added first, if given. cosine and sine [R, D / 2] float32; the halves of D pair up
    (GPT-NeoX order). Caches [blocks, block_tokens, Hkv, D], of qkv's dtype or float8_e4m3fn; slots
    [R] int64 = block * block_tokens + offset; of rows that share a slot any one's elements remain.
    With float8 caches, key_scales and value_scales [blocks, block_tokens, Hkv] float32 take each
    head's greatest magnitude / 448 (1 where all is zero), and the caches the head divided by that.
    D is a power of two; all contiguous. Computed in float32. Returns [R, Hq, D] in qkv's dtype.
    ValueError for what does not fit.
    """
    check_caches(qkv.dtype, cosine, sine, key_cache, value_cache, slots, key_scales, value_scales)
    rows, head_dim = len(slots), key_cache.shape[3]
    width = fused_width(query_heads, key_cache)
    if qkv.shape != (rows, width) or not qkv.is_contiguous():
        raise ValueError(f"qkv: [{rows}, {width}], contiguous")
    if bias is not None and (bias.shape != (width,) or not bias.is_contiguous()):
        raise ValueError(f"bias: [{width}], contiguous")
    queries = torch.empty(rows, query_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    chosen = config or RopeWriteConfig()
    heads = _heads_at_once(query_heads, key_cache.shape[2])
    if rows:
        _rope_write_kernel[(triton.cdiv(rows, chosen.rows), width // head_dim // heads)](
            qkv,
            bias,
            cosine,
            sine,
            slots,
            queries,
            key_cache,
            value_cache,
            key_scales,
            value_scales,
            rows,
            QUERY_HEADS=query_heads,
            KV_HEADS=key_cache.shape[2],
            HALF=head_dim // 2,
            HEADS=heads,
            ROWS=chosen.rows,
            num_warps=chosen.warps,
            **dependent_launch(),
        )
    return queries


def fused_width(query_heads: int, key_cache: Tensor) -> int:
    """Of the fused projection's output."""
    return (query_heads + 2 * key_cache.shape[2]) * key_cache.shape[3]


def _heads_at_once(query_heads: int, kv_heads: int) -> int:
    """A power of two of heads that are all queries, all keys or all values; at most 8."""
    both = query_heads | kv_heads | 8
    return both & -both


def check_caches(
    dtype: torch.dtype,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    """ValueError where rows of ``dtype`` cannot be rotated by these tables or stored in these."""
    if slots.dim() != 1 or slots.dtype != torch.int64 or not slots.is_contiguous():
        raise ValueError("slots: [R], int64, contiguous")
    if key_cache.dim() != 4 or key_cache.shape[3] & (key_cache.shape[3] - 1):
        raise ValueError("key_cache: [blocks, block_tokens, Hkv, D], D a power of two")
    if key_cache.dtype not in (dtype, torch.float8_e4m3fn):
        raise ValueError(f"key_cache: {dtype} or float8_e4m3fn, not {key_cache.dtype}")
    if value_cache.shape != key_cache.shape or value_cache.dtype != key_cache.dtype:
        raise ValueError("value_cache: of key_cache's shape and dtype")
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if not cache.is_contiguous():
            raise ValueError(f"{name}: contiguous")
    table = (len(slots), key_cache.shape[3] // 2)
    for name, values in (("cosine", cosine), ("sine", sine)):
        if values.shape != table or not values.is_contiguous():
            raise ValueError(f"{name}: [R, D / 2], contiguous")
    scaled = key_cache.dtype == torch.float8_e4m3fn
    for name, scales in (("key_scales", key_scales), ("value_scales", value_scales)):
        if (scales is not None) != scaled:
            raise ValueError(f"{name}: with float8_e4m3fn caches, and only with them")
        if scales is not None and (
            scales.shape != key_cache.shape[:3]
            or scales.dtype != torch.float32
            or not scales.is_contiguous()
        ):
            raise ValueError(f"{name}: [blocks, block_tokens, Hkv], float32, contiguous")


@triton.jit
def _rope_write_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr,
    bias_ptr,
    cosine_ptr,
    sine_ptr,
    slots_ptr,
    queries_ptr,
    key_cache_ptr,
    value_cache_ptr,
    key_scales_ptr,
    value_scales_ptr,
    rows,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """ROWS x HEADS heads of one kind, as items [ROWS * HEADS, D / 2] of first and second halves."""
    let_successor_start()
    first_head = tl.program_id(1) * HEADS
    item = tl.arange(0, ROWS * HEADS)
    row = (tl.program_id(0) * ROWS + item // HEADS).to(tl.int64)
    head = first_head + item % HEADS
    real = row < rows
    column = tl.arange(0, HALF)[None, :]
    wait_for_predecessor()
    at = (row * (QUERY_HEADS + 2 * KV_HEADS) + head)[:, None] * (2 * HALF) + column
    first = tl.load(qkv_ptr + at, mask=real[:, None], other=0.0).to(tl.float32)
    second = tl.load(qkv_ptr + at + HALF, mask=real[:, None], other=0.0).to(tl.float32)
    if bias_ptr is not None:
        bias_at = bias_ptr + head[:, None] * (2 * HALF) + column
        first += tl.load(bias_at).to(tl.float32)
        second += tl.load(bias_at + HALF).to(tl.float32)
    slot = tl.load(slots_ptr + row, mask=real, other=0)
    if first_head < QUERY_HEADS + KV_HEADS:
        turn = row[:, None] * HALF + column
        cosine = tl.load(cosine_ptr + turn, mask=real[:, None], other=0.0)
        sine = tl.load(sine_ptr + turn, mask=real[:, None], other=0.0)
        first, second = rotated(first, second, cosine, sine)
    if first_head < QUERY_HEADS:
        to = row * QUERY_HEADS + head
        _store_heads(queries_ptr, None, to, first, second, column, real, HALF)
    elif first_head < QUERY_HEADS + KV_HEADS:
        to = slot * KV_HEADS + head - QUERY_HEADS
        _store_heads(key_cache_ptr, key_scales_ptr, to, first, second, column, real, HALF)
    else:
        to = slot * KV_HEADS + head - (QUERY_HEADS + KV_HEADS)
        _store_heads(value_cache_ptr, value_scales_ptr, to, first, second, column, real, HALF)


@triton.jit
def rotated(first, second, cosine, sine):  # type: ignore[no-untyped-def]
    """Both halves, turned."""
    return first * cosine - second * sine, second * cosine + first * sine


@triton.jit
def _store_heads(  # type: ignore[no-untyped-def]
    out_ptr, scales_ptr, item, first, second, column, real, HALF: tl.constexpr
):
    """Stores heads item [ITEMS] of a tensor [..., D]; with scales, each divided by its own."""
    if scales_ptr is not None:
        most = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        scale = tl.where(most > 0, tl.div_rn(most, tl.full(most.shape, E4M3_MOST, tl.float32)), 1)
        tl.store(scales_ptr + item, scale, mask=real)
        first = to_e4m3(first / scale[:, None])
        second = to_e4m3(second / scale[:, None])
    at = item[:, None] * (2 * HALF) + column
    tl.store(out_ptr + at, first.to(out_ptr.dtype.element_ty), mask=real[:, None])
    tl.store(out_ptr + at + HALF, second.to(out_ptr.dtype.element_ty), mask=real[:, None])
