"""Products of few rows with MXFP4 weights as float16 numbers, in Triton: without shared memory.

With so few rows all that counts is that the memory never waits. So a program asks for all its
weights at once, straight to its registers, and only then for the rows. A weight becomes a float16,
without its scale, with 1.1 integer instructions, in the register from which the tensor cores
(mma.m16n8k16) take it; the sum over the 32 values of one scale is multiplied by it in float32.

A load of a warp has eight weight rows: thread 4 g + t has words 4 t to 4 t + 3 of row g's chunk
(mxfp4_layout.py), which have 8 values of either block. The instruction wants certain places of a
block's 32 from it, as Triton arranges them values 4 t to 4 t + 3 of either half. As a sum does not
depend on which values have which place, the thread's own are given these, of the weights and of the
rows alike. Sixteen weight rows are one instruction's.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED, wide
from moeray.kernels.mxfp4_numbers import float16_values, scale
from moeray.kernels.tile_order import along, in_order, neighbours


@triton.jit
def load_tile(  # type: ignore[no-untyped-def]
    words_ptr, factors_ptr, first, K: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Weight rows ``first`` to first + ROWS - 1 of a matrix [N, K], all under way at once, for a
    product with BM rows.

    Each of PARTS warps has fours of chunks of its own, one in each step. Returns two tuples of
    tiles: words int16 [4, 8, PARTS, 4], by step, chunk of the four and eight rows; and factors
    int32 [4, 8, PARTS, 1], by step, pair of chunks and eight rows. With one row a thread needs the
    factors of one of the pairs.
    """
    FOURS: tl.constexpr = (K + 255) // 256
    four = along(tl.arange(0, PARTS), 2)
    row = first + along(tl.arange(0, 8), 1)
    t = along(tl.arange(0, 4), 0)
    pair = four * 2 + (t // 2 if BM == 1 else t * 0)
    words_ptrs = words_ptr + (four * (64 * N) + row * 16 + t * 4 + neighbours(4))
    factors_ptrs = factors_ptr + (pair * N + row)
    words = ()
    factors = ()
    for step in tl.static_range((FOURS + PARTS - 1) // PARTS):
        for chunk in tl.static_range(4):
            some = (four + step * PARTS) * 4 + chunk < K // 64
            for eight in tl.static_range(ROWS // 8):
                at = (step * PARTS * 4 + chunk) * (16 * N) + eight * 128
                part = _loaded(words_ptrs + at, some, (step + 1) * PARTS * 4 > K // 64)
                words = words + (part,)  # type: ignore[assignment]  # noqa: RUF005
        for p in tl.static_range(min(2, BM)):
            some = pair + step * PARTS * 2 + p < (K + 127) // 128
            for eight in tl.static_range(ROWS // 8):
                at = (step * PARTS * 2 + p) * N + eight * 8
                scales = _loaded(factors_ptrs + at, some, (step + 1) * PARTS * 2 > (K + 127) // 128)
                factors = factors + (scales,)  # type: ignore[assignment]  # noqa: RUF005
    # Without it the compiler saves registers by putting loads behind the first products.
    tl.debug_barrier()
    return words, factors


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    x_ptr, rows, STEPS: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr
):
    """What the first STEPS steps of ``tile_product`` want of x, for its ``ahead``."""
    ahead = ()
    for step in tl.static_range(STEPS):
        for group in tl.static_range(BM):
            if step * PARTS * 8 + group * (8 // BM) < K // 32:
                ahead = ahead + (_rows(x_ptr, rows, step, group, K, PARTS, BM),)  # type: ignore[assignment]  # noqa: RUF005
    return ahead


@triton.jit
def tile_product(  # type: ignore[no-untyped-def]
    words, factors, x_ptr, rows, ahead, K: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr
):
    """A tile of ``load_tile`` times BM rows of x [R, K] float16.

    rows [8] are the BM rows, 8 / BM times; ``ahead`` is what ``load_rows`` has loaded of them.
    Returns, by sixteen weight rows, a tuple of float32 [16, BM]. The warps' sums are added at the
    end.
    """
    STEPS: tl.constexpr = ((K + 255) // 256 + PARTS - 1) // PARTS
    SIXTEENS: tl.constexpr = len(words) // STEPS // 8
    sums = ()
    for _ in tl.static_range(SIXTEENS):
        sums = sums + (tl.zeros((PARTS, 16, 8), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for step in tl.static_range(STEPS):
        for group in tl.static_range(BM):
            # Where the rows end before, no warp has these blocks.
            if step * PARTS * 8 + group * (8 // BM) < K // 32:
                if step * BM + group < len(ahead):
                    x = ahead[step * BM + group]
                else:
                    x = _rows(x_ptr, rows, step, group, K, PARTS, BM)
                added = ()
                for s in tl.static_range(SIXTEENS):
                    part = _group_product(words, x, s, step, group, SIXTEENS, K, PARTS, BM)
                    scales = _scales(factors, s, step, group, SIXTEENS, BM)
                    # One instruction also in kernels that must not fuse other products into sums.
                    added = added + (tl.fma(part, scales, sums[s]),)  # type: ignore[assignment]  # noqa: RUF005
                sums = added
    outputs = ()
    for s in tl.static_range(SIXTEENS):
        blocks = tl.reshape(tl.sum(sums[s], 0), (16, 8 // BM, BM))
        # Weights were 2**14 too small and scales 2**30 too great.
        outputs = outputs + (tl.sum(blocks, 1) * 2**-16,)  # type: ignore[assignment]  # noqa: RUF005
    return outputs


@triton.jit
def _loaded(pointers, some, early: tl.constexpr):  # type: ignore[no-untyped-def]
    """A tile, zeros for what is not there, if it ends ``early``."""
    if early:
        tile = tl.load(pointers, mask=some, other=0, eviction_policy="evict_first")
    else:
        tile = tl.load(pointers, eviction_policy="evict_first")
    return in_order(tile)


@triton.jit
def _rows(  # type: ignore[no-untyped-def]
    x_ptr,
    rows,
    step: tl.constexpr,
    group: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
):
    """Of each column's row its block, of a group of 8 / BM: two tiles [4, 8, PARTS, 4], halves."""
    block = along(tl.arange(0, 8), 1) // BM
    k = (along(tl.arange(0, PARTS), 2) * 8 + block) * 32
    x_ptrs = x_ptr + (along(rows, 1) * K + along(tl.arange(0, 4), 0) * 4 + neighbours(4))
    START: tl.constexpr = step * PARTS * 256 + group * (256 // BM)
    if (step + 1) * PARTS * 256 > K:
        # Any values will do where the weights are zeros, but those of another row may be NaN.
        x_ptrs += tl.minimum(k + START, K - 32)
    else:
        x_ptrs = (x_ptrs + k) + START
    return wide(tl.load(x_ptrs)), wide(tl.load(x_ptrs + 16))


@triton.jit
def _group_product(  # type: ignore[no-untyped-def]
    words,
    x,
    s: tl.constexpr,
    step: tl.constexpr,
    group: tl.constexpr,
    SIXTEENS: tl.constexpr,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    BM: tl.constexpr,
):
    """Sixteen weight rows' sums of one group of 8 / BM blocks, a column for each block and row."""
    sums = tl.zeros((PARTS, 16, 8), tl.float32)
    for i in tl.static_range(8 // BM):
        if step * PARTS * 8 + group * (8 // BM) + i < K // 32:
            weights = _first_operand(words, s, step * 8 + group * (8 // BM) + i, SIXTEENS)
            sums = tl.dot(weights, _second_operand(x, i, PARTS, BM), sums)
    return sums


@triton.jit
def _second_operand(x, block: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    """The columns of a block, [PARTS, 32, 8]; zeros in all others."""
    own = along(tl.arange(0, 8), 1) // BM == block
    both = tl.join(in_order(_only(x[0], own, BM)), in_order(_only(x[1], own, BM)))
    places = tl.reshape(both, (4, 8, PARTS, 2, 2, 2))
    return tl.reshape(tl.permute(places, (2, 3, 0, 5, 4, 1)), (PARTS, 32, 8))


@triton.jit
def _only(x, own, BM: tl.constexpr):  # type: ignore[no-untyped-def]
    if BM == 8:
        return x
    if INTERPRETED:
        return tl.where(own, x, 0.0)
    # Two values at once, which are of one column: the second's mask is not looked at.
    return tl.inline_asm_elementwise(
        "and.b32 $0, $1, $2;",
        "=r,r,r,r",
        [x, tl.broadcast_to(tl.where(own, -1, 0), x.shape)],
        dtype=tl.float16,
        is_pure=True,
        pack=2,
    )


@triton.jit
def _first_operand(words, s: tl.constexpr, block: tl.constexpr, SIXTEENS: tl.constexpr):  # type: ignore[no-untyped-def]
    """A block's weights of sixteen rows, [PARTS, 16, 32]."""
    PARTS: tl.constexpr = words[0].shape[2]
    at: tl.constexpr = (block // 2 * SIXTEENS + s) * 2
    # Of both blocks of a chunk, once: the compiler sees that it is asked for the same again.
    upper, lower = float16_values(words[at]), float16_values(words[at + 1])
    FIRST: tl.constexpr = block % 2 * 2
    even = tl.join(upper[FIRST], lower[FIRST])
    odd = tl.join(upper[FIRST + 1], lower[FIRST + 1])
    places = tl.reshape(tl.join(even, odd), (4, 8, PARTS, 2, 2, 2, 2))
    return tl.reshape(tl.permute(places, (2, 5, 1, 3, 0, 6, 4)), (PARTS, 16, 32))


@triton.jit
def _scales(  # type: ignore[no-untyped-def]
    factors,
    s: tl.constexpr,
    step: tl.constexpr,
    group: tl.constexpr,
    SIXTEENS: tl.constexpr,
    BM: tl.constexpr,
):
    """The scales of sixteen rows for a group's columns, [PARTS, 16, 8]."""
    EACH: tl.constexpr = min(2, BM)
    at: tl.constexpr = ((step * EACH + group * EACH // BM) * SIXTEENS + s) * 2
    PARTS: tl.constexpr = factors[0].shape[2]
    rows = tl.join(factors[at], factors[at + 1])[:, :, :, :, :, None]
    column = tl.arange(0, 8).reshape(4, 1, 1, 1, 1, 2)
    scales = scale(rows, (group * (8 // BM) + column // BM) % 4)
    return tl.reshape(tl.permute(scales, (2, 4, 1, 0, 3, 5)), (PARTS, 16, 8))
