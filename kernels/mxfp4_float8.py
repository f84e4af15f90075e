"""MXFP4 weights as 8-bit floats, and their products with rows, in Triton: of few rows an expert.

Where making weights from their words would keep the memory waiting: a weight becomes an e5m2
number, without its scale, with .6 integer instructions, where a float16 takes 1.1 and half a
product. The rows come as two e4m3 terms (float8.py), which lie under one another, so that the
weights meet both in one product.

The sums over the 32 values of one scale are multiplied by it in float32, so each block needs sums
of its own. The tensor cores make 16 columns at least: with 8 rows, these are the rows' sums over 2
blocks. The second operand then has zeros wherever row and column belong to different blocks.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED
from moeray.kernels.mxfp4_numbers import e2m1, scale


@triton.jit
def e5m2_values(words):  # type: ignore[no-untyped-def]
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


@triton.jit
def float8_added(  # type: ignore[no-untyped-def]
    acc, values, factors, terms_ptr, rows, some_rows, chunk, early: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """acc [BN, BLOCKS BM] plus a chunk's weights, both blocks [BN, 32], times rows [BM]."""
    BM: tl.constexpr = rows.shape[0]
    BLOCKS: tl.constexpr = acc.shape[1] // BM
    block = chunk * 2
    if BLOCKS == 1:
        for half in tl.static_range(2):
            terms = _terms(terms_ptr, rows, some_rows, block + half, 1, early, K)
            scales = scale(factors, (block + half) % 4)[:, None]
            acc = _added(acc, values[half], terms, scales)
    else:
        terms = _terms(terms_ptr, rows, some_rows, block, BLOCKS, early, K)
        own = tl.arange(0, BLOCKS * BM)[None, :] // BM + block
        acc = _added(acc, _in_order(values), terms, scale(factors[:, None], own % 4))
    return acc


@triton.jit
def blocks_added(sums, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BN, BLOCKS BM] to [BN, BM]; weights 2**14 too small and scales 2**30 too great end here."""
    BLOCKS: tl.constexpr = sums.shape[1] // BM
    return tl.sum(tl.reshape(sums, (sums.shape[0], BLOCKS, BM)), 1) * 2**-16


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
