"""The decode path's first kernel: norm, QKV projection, YaRN's rotation and the paged KV write.

A program owns output features of one head in pairs that rotate together, and reads their weights
whole.
"""

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.few_rows import (
    load_bias,
    load_rows,
    load_vector,
    load_weights,
    request_weights,
    row_sums,
    tensor_core_sums,
)
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.linear import LinearConfig, check_few_rows, norm_linear
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
    """``norm_linear`` and ``qkv_rope_write`` for 1 to 8 rows, in one kernel; returns the queries.

    x [R, H] bfloat16; norm_weight [H]; weight [(Hq + 2 Hkv) D, H] bfloat16; the rest as for those
    two, whose errors it shares. Float8 caches take two kernels, because a head's scale needs the
    whole head, which is more than one program's share of the weight. ``config.programs`` is not
    used: each program makes one block of outputs.
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
    outputs = max(2, min(chosen.outputs, head_dim))
    queries = torch.empty(rows, query_heads, head_dim, dtype=x.dtype, device=x.device)
    _projection_kernel[(width // outputs,)](
        x,
        norm_weight,
        weight,
        bias,
        cosine,
        sine,
        slots,
        queries,
        key_cache,
        value_cache,
        eps,
        ROWS=rows,
        IN=hidden,
        QUERY_HEADS=query_heads,
        KV_HEADS=kv_heads,
        HALF=head_dim // 2,
        OUTPUTS=outputs,
        INPUTS=chosen.inputs,
        PARTS=chosen.warps if chosen.tensor_cores else 0,
        STAGES=chosen.stages,
        num_warps=chosen.warps,
        **dependent_launch(),
    )
    return queries


@triton.jit
def _projection_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    norm_ptr,
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
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """OUTPUTS features of one head: some of its first half, then their partners in its second.

    PARTS 0 multiplies and adds row by row; else tensor cores take all rows at once.
    """
    PAIRS: tl.constexpr = OUTPUTS // 2
    WIDTH: tl.constexpr = (QUERY_HEADS + 2 * KV_HEADS) * 2 * HALF
    let_successor_start()
    first_pair = tl.program_id(0) * PAIRS
    head = first_pair // HALF
    pair = first_pair % HALF + tl.arange(0, PAIRS)
    output = tl.arange(0, OUTPUTS)
    feature = head * 2 * HALF + (output // PAIRS) * HALF + first_pair % HALF + output % PAIRS
    bias = load_bias(bias_ptr, feature, feature < WIDTH)
    if PARTS:
        request_weights(weight_ptr, feature, WIDTH, IN)
        wait_for_predecessor()
        row = tl.arange(0, 8)
        cosine, sine, slot = _load_turns(cosine_ptr, sine_ptr, slots_ptr, pair, row, ROWS, HALF)
        sums = tensor_core_sums(
            x_ptr, norm_ptr, weight_ptr, feature, WIDTH, eps, ROWS, IN, INPUTS, PARTS, STAGES
        )
        _place(
            sums + bias[:, None],
            cosine,
            sine,
            slot,
            head,
            pair,
            row,
            queries_ptr,
            key_cache_ptr,
            value_cache_ptr,
            ROWS,
            QUERY_HEADS,
            KV_HEADS,
            HALF,
        )
    else:
        weights = load_weights(weight_ptr, feature, WIDTH, IN, INPUTS)
        gains = load_vector(norm_ptr, IN, INPUTS)
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
                sums[:, None],
                turns[3 * r],
                turns[3 * r + 1],
                turns[3 * r + 2],
                head,
                pair,
                row,
                queries_ptr,
                key_cache_ptr,
                value_cache_ptr,
                ROWS,
                QUERY_HEADS,
                KV_HEADS,
                HALF,
            )


@triton.jit
def _load_turns(  # type: ignore[no-untyped-def]
    cosine_ptr, sine_ptr, slots_ptr, pair, row, ROWS: tl.constexpr, HALF: tl.constexpr
):
    """Cosine and sine [PAIRS, rows], and the rows' slots."""
    real = row < ROWS
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
    queries_ptr,
    key_cache_ptr,
    value_cache_ptr,
    ROWS: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    """sums [2 * PAIRS, rows] to where the head belongs."""
    PAIRS: tl.constexpr = pair.shape[0]
    halves = tl.permute(tl.reshape(sums, (2, PAIRS, row.shape[0])), (1, 2, 0))
    first, second = tl.split(halves)
    column = pair[:, None]
    real = (row < ROWS)[None, :]
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
