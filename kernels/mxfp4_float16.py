"""MXFP4 weights as float16 numbers, and their products with rows, in Triton: of many rows.

The weights become float16 in the registers from which the tensor cores (wgmma) take them as their
first operand, with 1.1 integer instructions and half a product each.

A product runs while its program goes on, and reads those registers until it ends. With one product
in an iteration, Triton (to 3.7) and ptxas (before 13.3) let the next weights overwrite what is
still read (triton-lang/triton issue 9433): it must be ``settled``. With two, Triton waits for the
first, and so for all before it; the second runs on while the next iteration's first weights are
made, in other registers. ``tests/kernels/pending_products.py`` looks whether machine code keeps to
that.
"""

from typing import Final

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED, wide
from moeray.kernels.mxfp4_numbers import float16_values, rotated_left

_TIMES: Final = """
{{
.reg .b16 lower, upper;
.reg .b32 twice;
mov.b32 {{lower, upper}}, $2;
mov.b32 twice, {{{half}, {half}}};
mul.rn.f16x2 $0, $1, twice;
}}
"""
_TIMES_LOWER: Final = tl.constexpr(_TIMES.format(half="lower"))
_TIMES_UPPER: Final = tl.constexpr(_TIMES.format(half="upper"))


@triton.jit
def float16_weights(words, factors, odd):  # type: ignore[no-untyped-def]
    """The four values of each word of a chunk [BN, 16]: four such tensors, float16 (float32 where
    interpreted). factors int32 [BN], each with the scales of two chunks; of the first unless
    ``odd``.
    """
    both = rotated_left(factors, odd * 24) & 0x7C007C00
    scales = tl.broadcast_to(both[:, None], words.shape)
    values = float16_values(words)
    # The first two are of the chunk's first block, the others of its second.
    return (
        _times(values[0], scales, False), _times(values[1], scales, False),
        _times(values[2], scales, True), _times(values[3], scales, True),
    )  # fmt: skip


@triton.jit
def _times(values, scales, UPPER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values times the float16 in the lower or upper half of an int32."""
    if INTERPRETED:
        half = scales >> 16 if UPPER else scales
        return values * half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    # Two at once, which are of one row: the first's scale is both's.
    return tl.inline_asm_elementwise(
        _TIMES_UPPER if UPPER else _TIMES_LOWER,
        "=r,r,r,r",
        [values, scales],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


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
    return tl.dot(_in_order(weights), wide(x), acc)


@triton.jit
def settled(sums):  # type: ignore[no-untyped-def]
    """The same sums, once their products have ended."""
    if INTERPRETED:
        return sums
    # No instruction, but a use of the sums, for which Triton waits.
    return tl.inline_asm_elementwise(
        "// $0", "=f,0", [sums], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _in_order(values):  # type: ignore[no-untyped-def]
    """The words' four values [BN, 16] in the order of the row, [BN, 64].

    Every value stays in the register it is in: the first operand of the tensor cores repeats its
    pattern of threads each 16 values.
    """
    fours = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
    BN: tl.constexpr = values[0].shape[0]
    return tl.reshape(tl.permute(tl.reshape(fours, (BN, 16, 4)), (0, 2, 1)), (BN, 64))
