"""MXFP4's numbers as the kernels' products read them, in Triton; ``mxfp4_layout.py`` says where
their bits are.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED


@triton.jit
def load_words(  # type: ignore[no-untyped-def]
    words_ptrs, some_n, chunk, early: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr,
    N: tl.constexpr,
):  # fmt: skip
    """A chunk of rows of a matrix [N, K], [BN, WIDTH]: 16 words, or 32 bytes; zeros after the last
    chunk, if the rows end ``early``.

    words_ptrs [BN, 1] point to the rows' first.
    """
    some = some_n[:, None]
    if early:
        some = some & (chunk < K // 64)
    at = words_ptrs + (chunk * (WIDTH * N) + tl.arange(0, WIDTH))[None, :]
    return tl.load(at, mask=some, other=0)


@triton.jit
def load_factors(factors_ptrs, some_n, pair, K: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The four scales [BN] of a pair of chunks."""
    return tl.load(factors_ptrs + pair * N, mask=some_n & (pair < (K + 127) // 128), other=0)


@triton.jit
def e2m1(sign, magnitude):  # type: ignore[no-untyped-def]
    """The value of an e2m1 number: bit 0 of ``sign``, bits 2 to 0 of ``magnitude``."""
    # As bits of a float32 it is 2**126 times too small, be it normal or not.
    bits = ((sign & 1) << 31) | ((magnitude & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 2.0**126


@triton.jit
def float16_values(words):  # type: ignore[no-untyped-def]
    """The four values of each word, without their scale: tensors of the words' shape, float16
    (float32 where interpreted), 2**14 times too small."""
    if INTERPRETED:
        bits = words.to(tl.int32)
        w0 = e2m1(bits >> 7, bits >> 3)
        w1 = e2m1(bits >> 15, bits >> 11)
        w2 = e2m1(bits >> 6, bits)
        w3 = e2m1(bits >> 14, bits >> 8)
        return w0 * 2**-14, w1 * 2**-14, w2 * 2**-14, w3 * 2**-14
    # Two words at once: 9 integer instructions for 8 weights.
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b;
        shr.u32 a, $4, 2;
        and.b32 b, $4, 0x80808080;
        and.b32 a, a, 0x0E0E0E0E;
        or.b32 a, a, b;
        prmt.b32 $0, a, 0, 0x2404;
        and.b32 $1, a, 0xFF00FF00;
        shl.b32 a, $4, 9;
        and.b32 $2, a, 0x8E008E00;
        shl.b32 a, $4, 1;
        and.b32 $3, a, 0x8E008E00;
        }
        """,
        "=r,=r,=r,=r,r",
        [words],
        dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def scale(factors, i):  # type: ignore[no-untyped-def]
    """Scale i of the four in a word, times 2**30, float32."""
    bits = rotated_left(factors, (13 - i % 2 * 16 - i // 2 * 8) & 31)
    return (bits & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def rotated_left(word, bits):  # type: ignore[no-untyped-def]
    """int32, by ``bits`` of its 32."""
    if INTERPRETED:
        wide = word.to(tl.uint32, bitcast=True).to(tl.uint64)
        return ((wide << bits) | (wide >> (32 - bits))).to(tl.uint32).to(tl.int32, bitcast=True)
    return tl.inline_asm_elementwise(
        "shf.l.wrap.b32 $0, $1, $1, $2;",
        "=r,r,r",
        [word, bits],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )
