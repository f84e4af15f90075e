"""What kernels of a few rows and a whole weight are made of: loads that all are under way at once,
and the sums, by multiply-add or on tensor cores.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED


@triton.jit
def load_weights(  # type: ignore[no-untyped-def]
    weight_ptr, feature, out_features, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """Whole weight rows [OUTPUTS, INPUTS] each step, all under way at once; zeros outside."""
    start = weight_ptr + feature.to(tl.int64)[:, None] * IN
    real = (feature < out_features)[:, None]
    weights = ()
    for step in tl.static_range(0, IN, INPUTS):
        column = (step + tl.arange(0, INPUTS))[None, :]
        if step + INPUTS <= IN:
            part = tl.load(start + column, mask=real, other=0.0, eviction_policy="evict_first")
        else:
            part = tl.load(
                start + column, mask=real & (column < IN), other=0.0, eviction_policy="evict_first"
            )
        weights = weights + (part,)  # type: ignore[assignment]  # noqa: RUF005
    return weights


@triton.jit
def load_vector(  # type: ignore[no-untyped-def]
    vector_ptr, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """A vector [IN] in steps, as it is stored; nothing where there is none."""
    parts = ()
    if vector_ptr is not None:
        for step in tl.static_range(0, IN, INPUTS):
            column = step + tl.arange(0, INPUTS)
            parts = parts + (tl.load(vector_ptr + column, mask=column < IN, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
    return parts


@triton.jit
def load_bias(bias_ptr, feature, real):  # type: ignore[no-untyped-def]
    """The features' biases, float32; zeros where there are none."""
    bias = tl.zeros(feature.shape, tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + feature, mask=real, other=0.0).to(tl.float32)
    return bias


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    x_ptr, gains, eps, ROWS: tl.constexpr, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """Each row's steps, float32, times the gains if any; and each row's RMSNorm scale."""
    x = ()
    scales = ()
    for row in tl.static_range(ROWS):
        parts = load_vector(x_ptr + row * IN, IN, INPUTS)
        squares = tl.zeros((INPUTS,), tl.float32)
        for step in tl.static_range(len(parts)):
            part = parts[step].to(tl.float32)
            if len(gains) > 0:
                squares += part * part
                part *= gains[step].to(tl.float32)
            x = x + (part,)  # type: ignore[assignment]  # noqa: RUF005
        if len(gains) > 0:
            scales = scales + (tl.rsqrt(tl.sum(squares, 0) / IN + eps),)  # type: ignore[assignment]  # noqa: RUF005
    return x, scales


@triton.jit
def row_sums(weights, x, scales, row: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row's outputs [OUTPUTS], float32."""
    products = weights[0].to(tl.float32) * x[row * len(weights)][None, :]
    for step in tl.static_range(1, len(weights)):
        products += weights[step].to(tl.float32) * x[row * len(weights) + step][None, :]
    sums = tl.sum(products, 1)
    if len(scales) > 0:
        sums *= scales[row]
    return sums


@triton.jit
def request_weights(  # type: ignore[no-untyped-def]
    weight_ptr, feature, out_features, IN: tl.constexpr
):
    """Has the features' weight rows brought to the L2, and waits for nothing."""
    LINE: tl.constexpr = 64
    LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(IN, LINE))
    if not INTERPRETED:
        column = tl.minimum(tl.arange(0, LINES) * LINE, IN - 8)
        row = tl.minimum(feature, out_features - 1).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [weight_ptr + row[:, None] * IN + column[None, :]],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def tensor_core_sums(  # type: ignore[no-untyped-def]
    x_ptr,
    norm_ptr,
    weight_ptr,
    feature,
    out_features,
    eps,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The outputs of all rows [OUTPUTS, 8], float32; zeros in rows from ROWS on.

    Each warp has its own part of a step's inputs (a batch of the dot), so that none repeats what
    another does; the parts' sums are added at the end.
    """
    EACH: tl.constexpr = INPUTS // PARTS
    OUTPUTS: tl.constexpr = feature.shape[0]
    column = tl.arange(0, PARTS)[:, None] * EACH + tl.arange(0, EACH)[None, :]
    row = tl.arange(0, 8)[None, None, :]
    weight_at = weight_ptr + feature.to(tl.int64)[None, :, None] * IN + column[:, None, :]
    x_at = x_ptr + row * IN + column[:, :, None]
    real = (feature < out_features)[None, :, None]
    sums = tl.zeros((PARTS, OUTPUTS, 8), tl.float32)
    squares = tl.zeros((PARTS, EACH, 8), tl.float32)
    for step in tl.range(0, IN, INPUTS, num_stages=STAGES):
        inside = column + step < IN
        weights = tl.load(weight_at + step, mask=real & inside[:, None, :], other=0.0)
        x = tl.load(x_at + step, mask=inside[:, :, None] & (row < ROWS), other=0.0)
        if norm_ptr is not None:
            gain = tl.load(norm_ptr + column + step, mask=inside, other=0.0).to(tl.float32)
            x32 = x.to(tl.float32)
            squares += x32 * x32
            x = (x32 * gain[:, :, None]).to(tl.float32 if INTERPRETED else tl.bfloat16)
        if INTERPRETED:
            sums += tl.dot(weights.to(tl.float32), x.to(tl.float32))
        else:
            sums = tl.dot(weights, x, sums)
    total = tl.sum(sums, 0)
    if norm_ptr is not None:
        total *= tl.rsqrt(tl.sum(tl.sum(squares, 0), 0) / IN + eps)[None, :]
    return total
