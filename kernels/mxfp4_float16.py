"""MXFP4 weights as float16 numbers, and their products with rows, in Triton: of many rows.

The weights become float16 in the registers from which the tensor cores (wgmma) take them as their
first operand, with 1.1 integer instructions and half a product each.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED, wide
from moeray.kernels.mxfp4_numbers import float16_values, rotated_left


@triton.jit
def float16_weights(words, factors, odd):  # type: ignore[no-untyped-def]
    """The four values of each word of a chunk [BN, 16]: four such tensors, float16 (float32 where
    interpreted). factors int32 [BN], each with the scales of two chunks; of the first unless
    ``odd``: one of the first two values, then one of the others.
    """
    own = rotated_left(factors, odd * 16)
    low = _repeated(rotated_left(own, 8))
    high = _repeated(own)
    values = float16_values(words)
    return (
        _times(values[0], low), _times(values[1], low),
        _times(values[2], high), _times(values[3], high),
    )  # fmt: skip


@triton.jit
def _times(values, scales):  # type: ignore[no-untyped-def]
    if INTERPRETED:
        return values * scales
    # Two at once.
    return tl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;",
        "=r,r,r",
        [values, scales],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def _repeated(factors):  # type: ignore[no-untyped-def]
    """Of factors [BN] the scale in its place for a bfloat16, times 2**14, for each of 16 words:
    float16 (float32 where interpreted) [BN, 16]."""
    # Of an exponent from 112 to 143, the last 5 bits, one of them turned, are a float16's.
    exponents = (factors & 0xF80) ^ 0x800
    if INTERPRETED:
        scales = tl.where(exponents > 0, tl.exp2((exponents >> 7).to(tl.float32) - 15), 0.0)
    else:
        scales = (exponents << 3).to(tl.int16).to(tl.float16, bitcast=True)
    return tl.broadcast_to(scales[:, None], (factors.shape[0], 16))


@triton.jit
def float16_added(  # type: ignore[no-untyped-def]
    acc, weights, x_ptr, rows, some_rows, chunk, early: tl.constexpr, K: tl.constexpr
):  # fmt: skip
    """acc [BN, BM] plus a chunk's weights, as ``float16_weights`` makes them, times rows [BM] of
    x [R, K] float16."""
    k = tl.arange(0, 64)[:, None]
    some = some_rows[None, :]
    if early:
        some = some & (chunk * 64 + k < K)
    x = tl.load((x_ptr + rows * K)[None, :] + k + chunk * 64, mask=some, other=0.0)
    # All values in one product, which overlaps with the making of the next weights.
    return tl.dot(_in_order(weights), wide(x), acc)


@triton.jit
def _in_order(values):  # type: ignore[no-untyped-def]
    """The words' four values [BN, 16] in the order of the row, [BN, 64].

    Every value stays in the register it is in: the first operand of the tensor cores repeats its
    pattern of threads each 16 values.
    """
    fours = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
    BN: tl.constexpr = values[0].shape[0]
    return tl.reshape(tl.permute(tl.reshape(fours, (BN, 16, 4)), (0, 2, 1)), (BN, 64))
