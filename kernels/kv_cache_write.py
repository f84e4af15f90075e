"""Keys and values into the pages of a cache, in its dtype: bfloat16, or FP8 with scales."""

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import (
    INTERPRETED,
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
    wide,
)


def write_kv(
    keys: Tensor,
    values: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> None:
    """``reference.write_kv``, with both scales where the caches are float8_e4m3fn, else neither.

    keys and values [R, Hkv, D] may have any stride between rows; caches [blocks, block_tokens, Hkv,
    D] and scales [blocks, block_tokens, Hkv] float32 are contiguous; slots [R] of any integer
    dtype. ValueError names an argument of another shape or dtype.
    """
    if keys.dim() != 3 or keys.stride()[1:] != (keys.shape[2], 1):
        raise ValueError(f"keys: {tuple(keys.shape)}, strides {keys.stride()}")
    if values.shape != keys.shape or values.stride() != keys.stride():
        raise ValueError(f"values: {tuple(values.shape)}, strides {values.stride()}")
    rows, heads, head_dim = keys.shape
    if head_dim & (head_dim - 1):
        raise ValueError(f"keys: heads of {head_dim}, not a power of two")
    if slots.shape != (rows,) or not slots.is_contiguous():
        raise ValueError(f"slots: {tuple(slots.shape)}, not ({rows},)")
    _check_cache("key_cache", key_cache, key_scales, heads, head_dim)
    _check_cache("value_cache", value_cache, value_scales, heads, head_dim)
    if value_cache.shape != key_cache.shape or value_cache.dtype != key_cache.dtype:
        raise ValueError(f"value_cache: {tuple(value_cache.shape)}, {value_cache.dtype}")
    if rows:
        _write[(rows, 2)](
            keys,
            values,
            keys.stride(0),
            key_cache,
            value_cache,
            key_scales,
            value_scales,
            slots,
            HEADS=heads,
            HEADS_PADDED=triton.next_power_of_2(heads),
            HEAD_DIM=head_dim,
            num_warps=1 if heads * head_dim <= 256 else 2,
            **dependent_launch(),
        )


def _check_cache(
    name: str, cache: Tensor, scales: Tensor | None, heads: int, head_dim: int
) -> None:
    if cache.dim() != 4 or cache.shape[2:] != (heads, head_dim) or not cache.is_contiguous():
        raise ValueError(f"{name}: {tuple(cache.shape)} for heads [{heads}, {head_dim}]")
    if (scales is None) == (cache.dtype == torch.float8_e4m3fn):
        raise ValueError(f"{name}: {cache.dtype} {'without' if scales is None else 'with'} scales")
    if scales is None:
        return
    if scales.shape != cache.shape[:3] or scales.dtype != torch.float32:
        raise ValueError(f"{name}: scales {tuple(scales.shape)}, {scales.dtype}")


@triton.jit
def _write(  # type: ignore[no-untyped-def]
    keys_ptr,
    values_ptr,
    row_stride,
    key_cache_ptr,
    value_cache_ptr,
    key_scales_ptr,
    value_scales_ptr,
    slots_ptr,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Program (row, 0 for its keys or 1 for its values)."""
    let_successor_start()
    row = tl.program_id(0)
    wait_for_predecessor()
    slot = tl.load(slots_ptr + row).to(tl.int64)
    row_start = row.to(tl.int64) * row_stride
    if tl.program_id(1) == 0:
        _write_row(
            keys_ptr + row_start,
            key_cache_ptr,
            key_scales_ptr,
            slot,
            HEADS,
            HEADS_PADDED,
            HEAD_DIM,
        )
    else:
        _write_row(
            values_ptr + row_start,
            value_cache_ptr,
            value_scales_ptr,
            slot,
            HEADS,
            HEADS_PADDED,
            HEAD_DIM,
        )


@triton.jit
def _write_row(  # type: ignore[no-untyped-def]
    row_ptr,
    cache_ptr,
    scales_ptr,
    slot,
    HEADS: tl.constexpr,
    HEADS_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    heads = tl.arange(0, HEADS_PADDED)
    own = heads < HEADS
    places = heads[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)
    x = wide(tl.load(row_ptr + places, mask=own[:, None], other=0.0))
    if scales_ptr is not None:
        x = x.to(tl.float32)
        scale = tl.div_rn(tl.max(tl.abs(x), 1), 448.0)
        scale = tl.where(scale > 0, scale, 1.0)
        tl.store(scales_ptr + slot * HEADS + heads, scale, mask=own)
        stored = to_e4m3(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))
    else:
        stored = x.to(cache_ptr.dtype.element_ty)
    tl.store(cache_ptr + slot * (HEADS * HEAD_DIM) + places, stored, mask=own[:, None])


@triton.jit
def to_e4m3(x):  # type: ignore[no-untyped-def]
    """x, float32 of magnitudes up to 448, to the nearest e4m3 value, ties to even."""
    if INTERPRETED:  # whose conversion does not carry what it rounds up into the exponent
        exponents = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, 121)
        step = ((exponents - 3) << 23).to(tl.float32, bitcast=True)
        x = (x / step + 12582912.0 - 12582912.0) * step
    return x.to(tl.float8e4nv)
