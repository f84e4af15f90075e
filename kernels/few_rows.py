"""What kernels of a few rows and a whole weight are made of: loads that all are under way at once,
and the sums, by multiply-add or on tensor cores.
"""

import triton
from triton import language as tl

from moeray.kernels.launch import INTERPRETED
from moeray.kernels.tile_order import along, in_order, neighbours


@triton.jit
def load_weights(  # type: ignore[no-untyped-def]
    weight_ptr, feature, out_features, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """Whole weight rows [OUTPUTS, INPUTS] each step, all under way at once; zeros outside."""
    start = weight_ptr + feature.to(tl.int64)[:, None] * IN
    real = (feature < out_features)[:, None]
    weights = ()
    for step in tl.static_range(0, IN, INPUTS):
        column = (step + tl.arange(0, INPUTS))[None, :]
        if step + INPUTS <= IN:
            part = tl.load(start + column, mask=real, other=0.0, eviction_policy="evict_first")
        else:
            part = tl.load(
                start + column, mask=real & (column < IN), other=0.0, eviction_policy="evict_first"
            )
        weights = weights + (part,)  # type: ignore[assignment]  # noqa: RUF005
    return weights


@triton.jit
def load_vector(  # type: ignore[no-untyped-def]
    vector_ptr, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """A vector [IN] in steps, as it is stored; nothing where there is none."""
    parts = ()
    if vector_ptr is not None:
        for step in tl.static_range(0, IN, INPUTS):
            column = step + tl.arange(0, INPUTS)
            parts = parts + (tl.load(vector_ptr + column, mask=column < IN, other=0.0),)  # type: ignore[assignment]  # noqa: RUF005
    return parts


@triton.jit
def load_bias(bias_ptr, feature, real):  # type: ignore[no-untyped-def]
    """The features' biases, float32; zeros where there are none."""
    bias = tl.zeros(feature.shape, tl.float32)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + feature, mask=real, other=0.0).to(tl.float32)
    return bias


@triton.jit
def load_rows(  # type: ignore[no-untyped-def]
    x_ptr, gains, eps, ROWS: tl.constexpr, IN: tl.constexpr, INPUTS: tl.constexpr
):
    """Each row's steps, float32, times the gains if any; and each row's RMSNorm scale."""
    x = ()
    scales = ()
    for row in tl.static_range(ROWS):
        parts = load_vector(x_ptr + row * IN, IN, INPUTS)
        squares = tl.zeros((INPUTS,), tl.float32)
        for step in tl.static_range(len(parts)):
            part = parts[step].to(tl.float32)
            if len(gains) > 0:
                squares += part * part
                part *= gains[step].to(tl.float32)
            x = x + (part,)  # type: ignore[assignment]  # noqa: RUF005
        if len(gains) > 0:
            scales = scales + (tl.rsqrt(tl.sum(squares, 0) / IN + eps),)  # type: ignore[assignment]  # noqa: RUF005
    return x, scales


@triton.jit
def row_sums(weights, x, scales, row: tl.constexpr):  # type: ignore[no-untyped-def]
    """One row's outputs [OUTPUTS], float32."""
    products = weights[0].to(tl.float32) * x[row * len(weights)][None, :]
    for step in tl.static_range(1, len(weights)):
        products += weights[step].to(tl.float32) * x[row * len(weights) + step][None, :]
    sums = tl.sum(products, 1)
    if len(scales) > 0:
        sums *= scales[row]
    return sums


@triton.jit
def tile_columns(  # type: ignore[no-untyped-def]
    step: tl.constexpr, INPUTS: tl.constexpr, PARTS: tl.constexpr
):
    """Inputs of a step, of a tile [8, PARTS, INPUTS / PARTS / 32, 32], the same for each of 8 rows.

    As such a tile is dealt (tile_order.py), a warp has one part, and a thread 8 neighbours of one
    row: the same inputs of the weights and of x.
    """
    CHUNKS: tl.constexpr = INPUTS // PARTS // 32
    chunk = along(tl.arange(0, PARTS), 1) * CHUNKS + along(tl.arange(0, CHUNKS), 2)
    column = step + chunk * 32 + neighbours(32)
    return column + along(tl.arange(0, 8), 0) * 0


@triton.jit
def load_tiles(  # type: ignore[no-untyped-def]
    weight_ptr,
    features,
    out_features,
    IN: tl.constexpr,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Whole weight rows for ``tile_sums``, all under way at once.

    features: tuple of [8]; those from out_features on get the last one's weights. Returns a step's
    tiles, one for each eight features, then the next's.
    """
    tiles = ()
    for step in tl.static_range(0, IN, INPUTS):
        column = tile_columns(step, INPUTS, PARTS)
        for i in tl.static_range(len(features)):
            # Not masked: zeros would be put into registers first.
            feature = along(tl.minimum(features[i], out_features - 1), 0)
            tile = load_inside(
                weight_ptr + feature.to(tl.int64) * IN, column, IN, step + INPUTS, "evict_first"
            )
            tiles = tiles + (tile,)  # type: ignore[assignment]  # noqa: RUF005
    return tiles


@triton.jit
def load_inside(  # type: ignore[no-untyped-def]
    pointer, column, IN: tl.constexpr, END: tl.constexpr, EVICT: tl.constexpr
):
    """Values at columns up to END, zeros from IN on."""
    if END <= IN:
        values = tl.load(pointer + column, eviction_policy=EVICT)
    else:
        values = tl.load(pointer + column, mask=column < IN, other=0.0, eviction_policy=EVICT)
    return values


@triton.jit
def _operand(tile):  # type: ignore[no-untyped-def]
    """A tile as an operand of a batched dot, [PARTS, 8, inputs], the first one or transposed.

    Inputs change places so that a thread's are those that the instruction wants from it: no thread
    sends anything to another. The products' order is as good as any, and both operands have it.
    """
    tile = in_order(tile)
    PARTS: tl.constexpr = tile.shape[1]
    CHUNKS: tl.constexpr = tile.shape[2]
    if INTERPRETED:
        tile = tile.to(tl.float32)
    # Of an mma.m16n8k16, thread t of four wants inputs 2 t, 2 t + 1, 2 t + 8, 2 t + 9.
    places = tl.reshape(tile, (8, PARTS, CHUNKS, 4, 2, 2, 2))
    return tl.reshape(tl.permute(places, (1, 0, 2, 4, 5, 3, 6)), (PARTS, 8, CHUNKS * 32))


@triton.jit
def tile_sums(  # type: ignore[no-untyped-def]
    tiles, x_ptr, rows, IN: tl.constexpr, INPUTS: tl.constexpr, PARTS: tl.constexpr
):
    """The outputs of all rows [OUTPUTS, 8], float32, on tensor cores.

    x has ``rows`` rows; from there on the last one comes again. Each warp has its own part of a
    step's inputs (a batch of the dot), so that none repeats what another does; the parts' sums are
    added at the end.
    """
    STEPS: tl.constexpr = (IN + INPUTS - 1) // INPUTS
    EIGHTS: tl.constexpr = len(tiles) // STEPS
    row_ptr = x_ptr + along(tl.minimum(tl.arange(0, 8), rows - 1), 0) * IN
    sums = ()
    for _ in tl.static_range(EIGHTS):
        sums = sums + (tl.zeros((PARTS, 8, 8), tl.float32),)  # type: ignore[assignment]  # noqa: RUF005
    for step in tl.static_range(STEPS):
        column = tile_columns(step * INPUTS, INPUTS, PARTS)
        x = _operand(load_inside(row_ptr, column, IN, (step + 1) * INPUTS, "evict_last"))
        added = ()
        for i in tl.static_range(EIGHTS):
            weights = tl.permute(_operand(tiles[step * EIGHTS + i]), (0, 2, 1))
            added = added + (tl.dot(x, weights, sums[i]),)  # type: ignore[assignment]  # noqa: RUF005
        sums = added
    # All of it in one exchange between the warps.
    return tl.sum(_stacked(sums), 0)


@triton.jit
def _stacked(sums):  # type: ignore[no-untyped-def]
    """One or two of [PARTS, rows, 8] to one [PARTS, 8 or 16 features, rows]."""
    PARTS: tl.constexpr = sums[0].shape[0]
    tl.static_assert(len(sums) <= 2)
    stacked = sums[0][:, :, :, None] if len(sums) == 1 else tl.join(sums[0], sums[1])
    return tl.reshape(tl.permute(stacked, (0, 3, 2, 1)), (PARTS, 8 * len(sums), 8))
