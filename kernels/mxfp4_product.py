"""Products of bfloat16 rows with MXFP4 weights, in Triton: what the MoE kernels are made of.

The weights are the first operand of the tensor cores and the rows the second: 64 weight rows fill
an instruction however few rows there are, and the weights become bfloat16 in the registers from
which the instruction takes them. ``mxfp4_layout.py`` describes the words.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED, wide
from moeray.kernels.mxfp4_numbers import e2m1


@triton.jit
def product(  # type: ignore[no-untyped-def]
    x_ptr,
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
    """Weights [BN, K] times rows [BM, K] of x, in part: float32 [BN, BM].

    Of x [R, K] those of ``rows`` [BM] are taken; words_ptr and factors_ptr point to the beginnings
    of a matrix, whose rows are n [BN]; what ``some_rows`` or ``some_n`` leaves out counts as 0.
    Loads ``first`` to ``last`` - 1 are made, of CHUNKS chunks of 64 values each (an even number);
    STAGES of them are under way.
    """
    acc = tl.zeros((n.shape[0], rows.shape[0]), tl.float32)
    at = tl.arange(0, 16 * CHUNKS)
    words_ptrs = words_ptr + n[:, None] * 16 + (at // 16 * (16 * N) + at % 16)[None, :]
    PAIRS: tl.constexpr = CHUNKS // 2
    pairs = tl.arange(0, PAIRS)
    factors_ptrs = factors_ptr + pairs[None, :] * N + n[:, None]
    # One product of all of a load's values overlaps with the next load's conversion. Four products
    # that each take a quarter need fewer registers: faster where programs are many and small.
    IN_ORDER: tl.constexpr = acc.shape[1] >= 128 or acc.shape[1] == 8
    k = tl.arange(0, 64 * CHUNKS) if IN_ORDER else at // 16 * 64 + at % 16
    x_ptrs = (x_ptr + rows * K)[None, :] + k[:, None]
    for load in tl.range(first, last, num_stages=STAGES):
        # Where a row is no multiple of a load, the last one ends early.
        some_words = some_n[:, None]
        some_factors = some_n[:, None]
        some_k = some_rows[None, :]
        if K // 64 % CHUNKS:
            some_words = some_words & (load * (16 * CHUNKS) + at < K // 4)[None, :]
            some_factors = some_factors & (load * PAIRS + pairs < (K + 127) // 128)[None, :]
            some_k = some_k & (load * (64 * CHUNKS) + k < K)[:, None]
        words = tl.load(words_ptrs + load * (16 * CHUNKS * N), mask=some_words, other=0)
        factors = tl.load(factors_ptrs + load * (PAIRS * N), mask=some_factors, other=0)
        values = weights(words, factors)
        if IN_ORDER:
            x = tl.load(x_ptrs + load * (64 * CHUNKS), mask=some_k, other=0.0)
            acc = tl.dot(in_order(values), wide(x), acc)
        else:
            for i in tl.static_range(4):
                places = x_ptrs + load * (64 * CHUNKS) + i * 16
                acc = tl.dot(values[i], wide(tl.load(places, mask=some_k, other=0.0)), acc)
    return acc


@triton.jit
def _repeated(even, odd):  # type: ignore[no-untyped-def]
    """Factors, one for each word: those of even and of odd chunks, int32 [BN, C / 2] each, a
    bfloat16's exponents in their place among other bits, to [BN, 16 C].
    """
    BN: tl.constexpr = even.shape[0]
    C: tl.constexpr = even.shape[1] * 2
    exponents = tl.reshape(tl.join(even & 0x7F80, odd & 0x7F80), (BN, C))
    if INTERPRETED:
        # What a word's bits give is 2**126 times too small on a GPU, and right here.
        factors = tl.exp2((exponents >> 7).to(tl.float32) - 253)
    else:
        factors = exponents.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return tl.reshape(tl.broadcast_to(factors[:, :, None], (BN, C, 16)), (BN, C * 16))


@triton.jit
def weights(words, factors):  # type: ignore[no-untyped-def]
    """The four values of each word: four tensors of the words' shape [BN, 16 C], bfloat16 (float32
    where interpreted). factors int32 [BN, C / 2], of two chunks each: a scale of the first two
    values and one of the others, for either chunk.
    """
    # 2**126 instead of the 2**14 that is in the scales.
    factors += 0x38383838
    low = _repeated((factors << 8) | ((factors >> 24) & 0x80), factors >> 8)
    high = _repeated(factors, factors >> 16)
    if INTERPRETED:
        bits = words.to(tl.int32)
        w0 = e2m1(bits >> 7, bits >> 3) * low
        w1 = e2m1(bits >> 15, bits >> 11) * low
        w2 = e2m1(bits >> 6, bits) * high
        w3 = e2m1(bits >> 14, bits >> 8) * high
        return w0, w1, w2, w3
    # Two words at once: 15 integer instructions and 4 products for 8 weights.
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 a, b, c, d, e;
        shl.b32 a, $4, 8;
        shl.b32 e, $4, 3;
        and.b32 a, a, 0x80008000;
        and.b32 e, e, 0x01C001C0;
        or.b32 a, a, e;
        shr.u32 e, $4, 5;
        and.b32 b, $4, 0x80008000;
        and.b32 e, e, 0x01C001C0;
        or.b32 b, b, e;
        shl.b32 c, $4, 9;
        shl.b32 e, $4, 6;
        and.b32 c, c, 0x80008000;
        and.b32 e, e, 0x01C001C0;
        or.b32 c, c, e;
        shl.b32 d, $4, 1;
        shr.u32 e, $4, 2;
        and.b32 d, d, 0x80008000;
        and.b32 e, e, 0x01C001C0;
        or.b32 d, d, e;
        mul.rn.bf16x2 $0, a, $5;
        mul.rn.bf16x2 $1, b, $5;
        mul.rn.bf16x2 $2, c, $6;
        mul.rn.bf16x2 $3, d, $6;
        }
        """,
        "=r,=r,=r,=r,r,r,r",
        [words, low, high],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def in_order(values):  # type: ignore[no-untyped-def]
    """The words' four values [BN, 16 C] in the order of the row, [BN, 64 C].

    Every value stays in the register it is in: the first operand of the tensor cores repeats its
    pattern of threads each 16 values.
    """
    BN: tl.constexpr = values[0].shape[0]
    C: tl.constexpr = values[0].shape[1] // 16
    fours = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
    ordered = tl.permute(tl.reshape(fours, (BN, C, 16, 4)), (0, 1, 3, 2))
    return tl.reshape(ordered, (BN, C * 64))


@triton.jit
def swiglu(gate_up, LIMIT: tl.constexpr, ALPHA: tl.constexpr):  # type: ignore[no-untyped-def]
    """gpt-oss's clamped SwiGLU of [BN, BM] float32, rows in eights of gates and ups: [BN / 2, BM].

    ``reference.clamped_swiglu`` has the formula.
    """
    BN: tl.constexpr = gate_up.shape[0]
    BM: tl.constexpr = gate_up.shape[1]
    eights = tl.reshape(gate_up, (BN // 16, 2, 8, BM))
    gate, up = tl.split(tl.permute(eights, (0, 2, 3, 1)))
    ALL: tl.constexpr = tl.PropagateNan.ALL
    gate = tl.minimum(tl.reshape(gate, (BN // 2, BM)), LIMIT, propagate_nan=ALL)
    up = tl.clamp(tl.reshape(up, (BN // 2, BM)), -LIMIT, LIMIT, propagate_nan=ALL)
    return gate * tl.sigmoid(ALPHA * gate) * (up + 1)
