"""The decode path's first op: norm, QKV projection, YaRN's rotation and the paged KV write.

A program owns output features of one head in pairs that rotate together, and reads their weights
whole.
"""

from dataclasses import replace

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.few_rows import (
    load_bias,
    load_rows,
    load_tiles,
    load_vector,
    load_weights,
    row_sums,
    tile_sums,
)
from moeray.kernels.launch import let_successor_start, wait_for_predecessor
from moeray.kernels.linear import LinearConfig, check_few_rows, norm_before, norm_linear
from moeray.kernels.qkv import check_caches, fused_width, qkv_rope_write, rotated


def qkv_projection(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    *,
    query_heads: int,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    config: LinearConfig | None = None,
) -> Tensor:
    """``norm_linear`` and ``qkv_rope_write`` for 1 to 8 rows; returns the queries.

    x [R, H] bfloat16; norm_weight [H]; weight [(Hq + 2 Hkv) D, H] bfloat16; the rest as for those
    two, whose errors it shares. One kernel for one row; for more, one before it for the norm, whose
    rows are rounded to bfloat16. What is projected is rotated before it is rounded. Float8 caches
    take those two ops as they are, because a head's scale needs the whole head, which is more than
    one program's share of the weight. ``config.programs`` is not used: each program makes one block
    of outputs.
    """
    check_few_rows(x, norm_weight, weight, bias)
    check_caches(x.dtype, cosine, sine, key_cache, value_cache, slots, key_scales, value_scales)
    width = fused_width(query_heads, key_cache)
    if weight.shape[0] != width:
        raise ValueError(f"weight: {width} output features, not {weight.shape[0]}")
    if len(slots) != len(x):
        raise ValueError(f"slots: [{len(x)}]")
    if key_scales is not None:
        qkv = norm_linear(x, norm_weight, eps, weight, bias, config=config)
        return qkv_rope_write(
            qkv,
            cosine,
            sine,
            key_cache,
            value_cache,
            slots,
            query_heads=query_heads,
            key_scales=key_scales,
            value_scales=value_scales,
        )
    return _project(
        x, norm_weight, eps, weight, bias, cosine, sine, key_cache, value_cache, slots, config
    )


def _project(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    cosine: Tensor,
    sine: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slots: Tensor,
    config: LinearConfig | None,
) -> Tensor:
    rows, (width, hidden) = len(x), weight.shape
    kv_heads, head_dim = key_cache.shape[2:]
    query_heads = width // head_dim - 2 * kv_heads
    chosen = config or LinearConfig.of(rows, hidden, width)
    chosen = replace(chosen, outputs=max(2, min(chosen.outputs, head_dim)))
    x, gain = norm_before(x, norm_weight, eps, chosen)
    queries = torch.empty(rows, query_heads, head_dim, dtype=x.dtype, device=x.device)
    places = cosine, sine, slots, queries, key_cache, value_cache
    sizes = {"QUERY_HEADS": query_heads, "KV_HEADS": kv_heads, "HALF": head_dim // 2}
    programs = (width // chosen.outputs,)
    if chosen.tensor_cores:
        _tensor_core_kernel[programs](
            x, weight, bias, *places, rows, IN=hidden, **sizes, **chosen.launch()
        )
    else:
        _multiply_add_kernel[programs](
            x, gain, weight, bias, *places, eps, ROWS=rows, IN=hidden, **sizes, **chosen.launch()
        )
    return queries


@triton.jit
def _multiply_add_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    cosine_ptr,
    sine_ptr,
    slots_ptr,
    queries_ptr,
    key_cache_ptr,
    value_cache_ptr,
    eps,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    WIDTH: tl.constexpr = (QUERY_HEADS + 2 * KV_HEADS) * 2 * HALF
    let_successor_start()
    head, pair = _share(OUTPUTS, HALF)
    feature = _features(tl.arange(0, OUTPUTS), OUTPUTS, HALF)
    weights = load_weights(weight_ptr, feature, WIDTH, IN, INPUTS)
    bias = load_bias(bias_ptr, feature, feature < WIDTH)
    gains = load_vector(gain_ptr, IN, INPUTS)
    wait_for_predecessor()
    x, scales = load_rows(x_ptr, gains, eps, ROWS, IN, INPUTS)
    turns = ()
    for r in tl.static_range(ROWS):
        row = r + tl.arange(0, 1)
        turns = turns + _load_turns(cosine_ptr, sine_ptr, slots_ptr, pair, row, ROWS, HALF)
    for r in tl.static_range(ROWS):
        row = r + tl.arange(0, 1)
        sums = row_sums(weights, x, scales, r) + bias
        _place(
            sums[:, None], turns[3 * r], turns[3 * r + 1], turns[3 * r + 2], head, pair, row, ROWS,
            queries_ptr, key_cache_ptr, value_cache_ptr, QUERY_HEADS, KV_HEADS, HALF,
        )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _tensor_core_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    cosine_ptr,
    sine_ptr,
    slots_ptr,
    queries_ptr,
    key_cache_ptr,
    value_cache_ptr,
    rows,
    IN: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    WIDTH: tl.constexpr = (QUERY_HEADS + 2 * KV_HEADS) * 2 * HALF
    let_successor_start()
    head, pair = _share(OUTPUTS, HALF)
    eights = ()
    for start in tl.static_range(0, OUTPUTS, 8):
        eights = eights + (_features(start + tl.arange(0, 8), OUTPUTS, HALF),)  # type: ignore[assignment]  # noqa: RUF005
    tiles = load_tiles(weight_ptr, eights, WIDTH, IN, INPUTS, PARTS)
    feature = _features(tl.arange(0, OUTPUTS), OUTPUTS, HALF)
    bias = load_bias(bias_ptr, feature, feature < WIDTH)
    wait_for_predecessor()
    row = tl.arange(0, 8)
    cosine, sine, slot = _load_turns(cosine_ptr, sine_ptr, slots_ptr, pair, row, rows, HALF)
    sums = tile_sums(tiles, x_ptr, rows, IN, INPUTS, PARTS) + bias[:, None]
    _place(
        sums, cosine, sine, slot, head, pair, row, rows,
        queries_ptr, key_cache_ptr, value_cache_ptr, QUERY_HEADS, KV_HEADS, HALF,
    )  # fmt: skip


@triton.jit
def _share(OUTPUTS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """The program's head, and its pairs of the head."""
    PAIRS: tl.constexpr = OUTPUTS // 2
    first = tl.program_id(0) * PAIRS
    return first // HALF, first % HALF + tl.arange(0, PAIRS)


@triton.jit
def _features(output, OUTPUTS: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """The weight's rows of the program's outputs: its first pair's two halves, then the next's."""
    first = tl.program_id(0) * (OUTPUTS // 2)
    return first // HALF * 2 * HALF + output % 2 * HALF + first % HALF + output // 2


@triton.jit
def _load_turns(  # type: ignore[no-untyped-def]
    cosine_ptr, sine_ptr, slots_ptr, pair, row, rows, HALF: tl.constexpr
):
    """Cosine and sine [PAIRS, ROWS], and the slots of each row."""
    real = row < rows
    at = row[None, :] * HALF + pair[:, None]
    cosine = tl.load(cosine_ptr + at, mask=real[None, :], other=0.0)
    sine = tl.load(sine_ptr + at, mask=real[None, :], other=0.0)
    return cosine, sine, tl.load(slots_ptr + row, mask=real, other=0)


@triton.jit
def _place(  # type: ignore[no-untyped-def]
    sums,
    cosine,
    sine,
    slot,
    head,
    pair,
    row,
    rows,
    queries_ptr,
    key_cache_ptr,
    value_cache_ptr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """sums [2 PAIRS, ROWS], as ``_features`` has them, to where the head belongs."""
    halves = tl.reshape(sums, (pair.shape[0], 2, row.shape[0]))
    first, second = tl.split(tl.permute(halves, (0, 2, 1)))
    column = pair[:, None]
    real = (row < rows)[None, :]
    if head < QUERY_HEADS + KV_HEADS:
        first, second = rotated(first, second, cosine, sine)
    if head < QUERY_HEADS:
        at = queries_ptr + (row * QUERY_HEADS + head)[None, :] * (2 * HALF) + column
    elif head < QUERY_HEADS + KV_HEADS:
        at = key_cache_ptr + (slot * KV_HEADS + head - QUERY_HEADS)[None, :] * (2 * HALF) + column
    else:
        item = slot * KV_HEADS + head - (QUERY_HEADS + KV_HEADS)
        at = value_cache_ptr + item[None, :] * (2 * HALF) + column
    tl.store(at, first.to(queries_ptr.dtype.element_ty), mask=real)
    tl.store(at + HALF, second.to(queries_ptr.dtype.element_ty), mask=real)
