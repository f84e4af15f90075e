"""A tile of an expert's outputs, in Triton: its biases, gpt-oss's SwiGLU, and where hidden values
go.
"""

import triton
from triton import language as tl

from moeray.kernels.float8 import store_terms
from moeray.kernels.launch import wide


@triton.jit
def expert_bias(bias_ptr, n, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The biases of weight rows n [BN] of one expert: float32 [BN, 1]."""
    return wide(tl.load(bias_ptr + n, mask=n < N, other=0.0)).to(tl.float32)[:, None]


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


@triton.jit
def store_hidden(  # type: ignore[no-untyped-def]
    out_ptr,
    choices,
    some,
    column,
    hidden,
    WIDTH: tl.constexpr,
    GROWN: tl.constexpr,
):
    """Tile ``column`` of the hidden values [BJ, BM] of choices [BM], as float16 or in two terms.

    GROWN, a power of two, makes the greatest possible one fit the numbers.
    """
    BJ: tl.constexpr = hidden.shape[0]
    j = column * BJ + tl.arange(0, BJ)
    keep = some[None, :] & (j < WIDTH)[:, None]
    if out_ptr.dtype.element_ty == tl.float16:
        at = out_ptr + choices[None, :] * WIDTH + j[:, None]
        tl.store(at, (hidden * GROWN).to(tl.float16), mask=keep)
    else:
        store_terms(out_ptr + choices[None, :] * (2 * WIDTH), j[:, None], hidden * GROWN, keep)
