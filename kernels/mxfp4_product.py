"""Products of sorted rows with MXFP4 weights, in Triton: what the kernels of many rows are made of.

The weights are the first operand of the tensor cores and the rows the second: 64 weight rows fill
an instruction however few rows there are, and weights go from the registers in which they are made.
What they become says what the rows are in: float16 (mxfp4_float16.py) or, faster for up to some 10
rows of an expert, 8-bit floats (mxfp4_float8.py). ``mxfp4_layout.py`` describes the words.
"""

import triton
from triton import language as tl

from moeray.kernels.mxfp4_float8 import blocks_added, e5m2_values, float8_added
from moeray.kernels.mxfp4_float16 import float16_added, float16_weights, settled
from moeray.kernels.mxfp4_numbers import load_factors, load_words


@triton.jit
def product(  # type: ignore[no-untyped-def]
    x_ptr,
    scales_ptr,
    rows,
    some_rows,
    words_ptr,
    factors_ptr,
    n,
    GROWN: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Rows n [BN] of a matrix [N, K] times pieces of rows [BM] of x: for each a float32 [BN, BM].

    ``rows`` is a tuple of pieces, of a power of two each; the weights are made once for all. x are
    the values of ``HalfRows`` or the terms of ``SplitRows`` (pieces of 8 or more), with their
    scales; where there are none, all are GROWN times too great. words_ptr and factors_ptr point to
    the matrix. What ``some_rows``, as ``rows``, leaves out, and rows n from N on, count as 0.
    CHUNKS chunks of 64 values make a load, of which STAGES are under way.
    """
    HALF: tl.constexpr = x_ptr.dtype.element_ty == tl.float16
    WIDTH: tl.constexpr = 16 if HALF else 32
    LOADS: tl.constexpr = (K // 64 + CHUNKS - 1) // CHUNKS
    # Chunks of the last load, which may end early.
    REST: tl.constexpr = K // 64 - (LOADS - 1) * CHUNKS
    some_n = n < N
    bits_ptr = words_ptr if HALF else words_ptr.to(tl.pointer_type(tl.int8))
    words_ptrs = bits_ptr + n[:, None] * WIDTH
    factors_ptrs = factors_ptr + n
    sums = ()
    for piece in tl.static_range(len(rows)):
        sums = sums + (_zeros(n.shape[0], rows[piece].shape[0], HALF),)  # type: ignore[assignment]  # noqa: RUF005
    for load in tl.range(0, LOADS, num_stages=STAGES):
        for part in tl.static_range(CHUNKS):
            chunk = load * CHUNKS + part
            words = load_words(words_ptrs, some_n, chunk, part >= REST, WIDTH, K, N)
            # Of two chunks: with an odd number of them, each is loaded twice.
            if CHUNKS % 2 == 1 or part % 2 == 0:
                factors = load_factors(factors_ptrs, some_n, chunk // 2, K, N)
            weights = float16_weights(words, factors, chunk % 2) if HALF else e5m2_values(words)
            sums = _added(
                sums, weights, factors, x_ptr, rows, some_rows, chunk, part >= REST, HALF, K
            )
        if HALF and CHUNKS == 1:
            sums = _all_settled(sums)
    return _scaled(sums, scales_ptr, rows, some_rows, GROWN, HALF)


@triton.jit
def _zeros(BN: tl.constexpr, BM: tl.constexpr, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    return tl.zeros((BN, BM if HALF else max(16, BM)), tl.float32)


@triton.jit
def _added(  # type: ignore[no-untyped-def]
    sums, weights, factors, x_ptr, rows, some_rows, chunk, early: tl.constexpr, HALF: tl.constexpr,
    K: tl.constexpr,
):  # fmt: skip
    """Each piece's sums plus a chunk's."""
    added = ()
    for piece in tl.static_range(len(rows)):
        own, some = rows[piece], some_rows[piece]
        if HALF:
            acc = float16_added(sums[piece], weights, x_ptr, own, some, chunk, early, K)
        else:
            acc = float8_added(sums[piece], weights, factors, x_ptr, own, some, chunk, early, K)
        added = added + (acc,)  # type: ignore[assignment]  # noqa: RUF005
    return added


@triton.jit
def _all_settled(sums):  # type: ignore[no-untyped-def]
    ended = ()
    for piece in tl.static_range(len(sums)):
        ended = ended + (settled(sums[piece]),)  # type: ignore[assignment]  # noqa: RUF005
    return ended


@triton.jit
def _scaled(  # type: ignore[no-untyped-def]
    sums, scales_ptr, rows, some_rows, GROWN: tl.constexpr, HALF: tl.constexpr
):
    """Each piece's sums [BN, BM], times the rows' scales."""
    scaled = ()
    for piece in tl.static_range(len(rows)):
        if scales_ptr is None:
            scales = 1 / GROWN
        else:
            own = tl.load(scales_ptr + rows[piece], mask=some_rows[piece], other=0.0)
            scales = own[None, :]
        added = sums[piece] if HALF else blocks_added(sums[piece], rows[piece].shape[0])
        scaled = scaled + (added * scales,)  # type: ignore[assignment]  # noqa: RUF005
    return scaled
