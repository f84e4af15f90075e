"""Products of few rows with MXFP4 weights on the tensor cores for 8-bit floats, in Triton.

For up to 32 rows of an expert, where making weights from their words would keep the memory waiting:
a weight becomes an e5m2 number, without its scale, with .6 integer instructions; a bfloat16 takes
1.9 and a product. The rows come as two e4m3 terms (float8.py), which lie under one another, so that
the weights meet both in one product.

The sums over the 32 values of one scale are multiplied by it in float32, so each block needs sums
of its own. The tensor cores make 16 columns at least: with 8 rows, these are the rows' sums over 2
blocks. The second operand then has zeros wherever row and column belong to different blocks.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED
from moeray.kernels.mxfp4_numbers import e2m1, scale


@triton.jit
def split_product(  # type: ignore[no-untyped-def]
    terms_ptr,
    rows,
    some_rows,
    words_ptr,
    factors_ptr,
    n,
    some_n,
    first,
    last,
    K: tl.constexpr,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Weights [BN, K] times rows [BM, K], in part: float32 [BN, BM].

    terms_ptr points to terms as in ``SplitRows``, of which those of ``rows`` [BM] are taken, 8 or
    more; the rest is as for ``mxfp4_product.product``.
    """
    BN: tl.constexpr = n.shape[0]
    BM: tl.constexpr = rows.shape[0]
    BLOCKS: tl.constexpr = max(1, 16 // BM)
    # Chunks of the last load, which may end early.
    REST: tl.constexpr = (K // 64 - 1) % CHUNKS + 1
    acc = tl.zeros((BN, BLOCKS * BM), tl.float32)
    words_ptrs = words_ptr.to(tl.pointer_type(tl.int8)) + n[:, None] * 32
    factors_ptrs = factors_ptr + n
    for load in tl.range(first, last, num_stages=STAGES):
        for part in tl.static_range(CHUNKS):
            chunk = load * CHUNKS + part
            words = _words(words_ptrs, some_n, chunk, part >= REST, K, N)
            if part % 2 == 0:
                factors = _factors(factors_ptrs, some_n, chunk // 2, K, N)
            values = _halves(words)
            block = chunk * 2
            if BLOCKS == 1:
                for half in tl.static_range(2):
                    terms = _terms(terms_ptr, rows, some_rows, block + half, 1, part >= REST, K)
                    scales = scale(factors, (block + half) % 4)[:, None]
                    acc = _added(acc, values[half], terms, scales)
            else:
                terms = _terms(terms_ptr, rows, some_rows, block, BLOCKS, part >= REST, K)
                own = tl.arange(0, BLOCKS * BM)[None, :] // BM + block
                acc = _added(acc, _in_order(values), terms, scale(factors[:, None], own % 4))
    return tl.sum(tl.reshape(acc, (BN, BLOCKS, BM)), 1)


@triton.jit
def _words(  # type: ignore[no-untyped-def]
    words_ptrs, some_n, chunk, early: tl.constexpr, K: tl.constexpr, N: tl.constexpr
):
    """The 32 bytes of a chunk, [BN, 32]; zeros after the rows' last chunk, if they end ``early``.

    words_ptrs [BN, 1] point to the rows' first bytes.
    """
    some = some_n[:, None]
    if early:
        some = some & (chunk < K // 64)
    return tl.load(words_ptrs + (chunk * (32 * N) + tl.arange(0, 32))[None, :], mask=some, other=0)


@triton.jit
def _factors(factors_ptrs, some_n, pair, K: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four scales [BN] of a pair of chunks."""
    return tl.load(factors_ptrs + pair * N, mask=some_n & (pair < (K + 127) // 128), other=0)


@triton.jit
def _terms(  # type: ignore[no-untyped-def]
    terms_ptr,
    rows,
    some_rows,
    block,
    blocks: tl.constexpr,
    early: tl.constexpr,
    K: tl.constexpr,
):
    """Both terms of rows and blocks from ``block`` on, [64 blocks, blocks BM], in a diagonal."""
    BM: tl.constexpr = rows.shape[0]
    at = tl.arange(0, 64 * blocks)[:, None]
    column = tl.arange(0, blocks * BM)
    own = tl.reshape(tl.broadcast_to(rows[None, :], (blocks, BM)), (blocks * BM,))
    some = tl.broadcast_to(some_rows[None, :], (blocks, BM))
    some = tl.reshape(some, (blocks * BM,))[None, :] & (at // 64 == column[None, :] // BM)
    if early:
        some = some & (block * 64 + at < 2 * K)
    at += block * 64
    return tl.load(terms_ptr + own[None, :] * (2 * K) + at, mask=some, other=0.0)


@triton.jit
def _added(acc, values, terms, scales):  # type: ignore[no-untyped-def]
    """acc [BN, C] plus values [BN, K] times both terms [2 K, C], times scales."""
    BN: tl.constexpr = values.shape[0]
    K: tl.constexpr = values.shape[1]
    blocks = tl.reshape(values, (BN, K // 32, 32))
    twice = tl.reshape(tl.permute(tl.join(blocks, blocks), (0, 1, 3, 2)), (BN, 2 * K))
    if INTERPRETED:
        terms = terms.to(tl.float32)
    sums = tl.dot(twice, terms, out_dtype=tl.float32)
    # One instruction also in kernels that must not fuse other products into sums.
    return tl.fma(sums, tl.broadcast_to(scales, acc.shape), acc)


@triton.jit
def _in_order(halves):  # type: ignore[no-untyped-def]
    """A chunk's two blocks, [BN, 32] each, in the order of the row, [BN, 64]."""
    both = tl.join(halves[0], halves[1])
    return tl.reshape(tl.permute(both, (0, 2, 1)), (both.shape[0], 64))


@triton.jit
def _halves(words):  # type: ignore[no-untyped-def]
    """The values of each byte, int8 [BN, 32]: those of both blocks of 32, e5m2 (float32 where
    interpreted), 2**14 times too small.
    """
    if INTERPRETED:
        bits = words.to(tl.int32)
        return e2m1(bits >> 7, bits >> 3) * 2**-14, e2m1(bits >> 6, bits) * 2**-14
    # Four bytes at once: 5 integer instructions for 8 weights.
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b;
        shr.u32 a, $2, 2;
        and.b32 b, $2, 0x80808080;
        and.b32 a, a, 0x0E0E0E0E;
        or.b32 $0, a, b;
        shl.b32 a, $2, 1;
        and.b32 $1, a, 0x8E8E8E8E;
        }
        """,
        "=r,=r,r",
        [words],
        dtype=(tl.float8e5, tl.float8e5),
        is_pure=True,
        pack=4,
    )
