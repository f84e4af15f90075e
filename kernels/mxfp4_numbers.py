"""MXFP4's numbers as the kernels' products read them, in Triton; ``mxfp4_layout.py`` says where
their bits are.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED


@triton.jit
def e2m1(sign, magnitude):  # type: ignore[no-untyped-def]
    """The value of an e2m1 number: bit 0 of ``sign``, bits 2 to 0 of ``magnitude``."""
    # As bits of a float32 it is 2**126 times too small, be it normal or not.
    bits = ((sign & 1) << 31) | ((magnitude & 7) << 22)
    return bits.to(tl.float32, bitcast=True) * 2.0**126


@triton.jit
def scale(factors, i):  # type: ignore[no-untyped-def]
    """Scale i of the four in a word, times 2**14, float32."""
    bits = _rotated_left(factors, 24 - i * 8)
    return (bits & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _rotated_left(word, bits):  # type: ignore[no-untyped-def]
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
