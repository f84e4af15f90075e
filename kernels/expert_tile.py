"""What the kernels of few and of many rows share: a tile of an expert's outputs, and where its
hidden values go, in Triton.
"""

import triton
from triton import language as tl

from moeray.kernels.float8 import store_terms
from moeray.kernels.launch import wide
from moeray.kernels.mxfp4_float8 import split_product
from moeray.kernels.mxfp4_product import product


@triton.jit
def expert_product(  # type: ignore[no-untyped-def]
    x_ptr,
    scales_ptr,
    rows,
    some,
    words_ptr,
    factors_ptr,
    n,
    first,
    last,
    K: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Weight rows n [BN] of one expert times ``rows`` [BM] of x: float32 [BN, BM].

    x are bfloat16 rows, or the terms of ``SplitRows`` with their scales. ``first`` and ``last`` as
    for ``mxfp4_product.product``.
    """
    if scales_ptr is None:
        sums = product(
            x_ptr, rows, some, words_ptr, factors_ptr, n, n < N, first, last, K, N, CHUNKS, STAGES
        )
    else:
        sums = split_product(
            x_ptr, rows, some, words_ptr, factors_ptr, n, n < N, first, last, K, N, CHUNKS, STAGES
        )
        sums *= tl.load(scales_ptr + rows, mask=some, other=0.0)[None, :]
    return sums


@triton.jit
def expert_bias(bias_ptr, n, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The biases of weight rows n [BN] of one expert: float32 [BN, 1]."""
    return wide(tl.load(bias_ptr + n, mask=n < N, other=0.0)).to(tl.float32)[:, None]


@triton.jit
def store_hidden(  # type: ignore[no-untyped-def]
    out_ptr,
    scales_ptr,
    choices,
    some,
    column,
    hidden,
    WIDTH: tl.constexpr,
    GROWN: tl.constexpr,
):
    """Tile ``column`` of the hidden values [BJ, BM] of choices [BM], as bfloat16 rows or as terms.

    GROWN, a power of two, makes the greatest possible one fit an e4m3.
    """
    BJ: tl.constexpr = hidden.shape[0]
    j = column * BJ + tl.arange(0, BJ)
    keep = some[None, :] & (j < WIDTH)[:, None]
    if scales_ptr is None:
        at = out_ptr + choices[None, :] * WIDTH + j[:, None]
        tl.store(at, hidden.to(out_ptr.dtype.element_ty), mask=keep)
    else:
        store_terms(out_ptr + choices[None, :] * (2 * WIDTH), j[:, None], hidden * GROWN, keep)
        if column == 0:
            shrunk = tl.full(choices.shape, 1 / GROWN, tl.float32)
            tl.store(scales_ptr + choices, shrunk, mask=some)
