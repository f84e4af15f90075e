"""Rows in numbers of few bits: each is brought to a fixed magnitude by a power of two, so that what
the numbers can hold is used, and that power is kept beside it.
"""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import (
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
    wide,
)

HALF_MOST: Final = torch.finfo(torch.float16).max
"""The greatest float16."""


class HalfRows(NamedTuple):
    """Rows [R, K] as float16 products take them: row r is values[r] * scales[r].

    values float16 [R, K], a row's greatest between 2**14 and 2**15: a bfloat16 stays what it was
    down to 2**-31 of that. scales float32 [R], powers of two, or NaN for a row that has a value
    that is not finite.
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> "HalfRows":
        values = torch.empty((rows, columns), dtype=torch.float16, device=device)
        return cls(values, torch.empty(rows, dtype=torch.float32, device=device))


def half_rows(x: Tensor) -> HalfRows:
    """x [R, K] bfloat16 as float16."""
    rows, columns = x.shape
    halves = HalfRows.empty(rows, columns, x.device)
    if rows:
        _half_rows[(rows,)](x, *halves, columns, num_warps=4, **dependent_launch())
    return halves


@triton.jit
def _half_rows(x_ptr, values_ptr, scales_ptr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    let_successor_start()
    wait_for_predecessor()
    half_row(x_ptr, values_ptr, scales_ptr, tl.program_id(0).to(tl.int64), K)


@triton.jit
def half_row(x_ptr, values_ptr, scales_ptr, row, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row ``row`` of x [R, K] as float16."""
    k = tl.arange(0, triton.next_power_of_2(K))
    x = scaled_row(x_ptr, scales_ptr, row, k, 14, K)
    tl.store(values_ptr + row * K + k, x.to(tl.float16), mask=k < K)


@triton.jit
def scaled_row(x_ptr, scales_ptr, row, k, EXPONENT: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Values k, all of a row of x [R, K], the greatest brought between 2**EXPONENT and twice that:
    float32. What they were divided by is stored in ``scales_ptr``."""
    x = wide(tl.load(x_ptr + row * K + k, mask=k < K, other=0.0)).to(tl.float32)
    greatest = tl.max((x.to(tl.int32, bitcast=True) >> 23) & 255, 0)
    exponent = tl.minimum(tl.maximum(greatest, EXPONENT + 1), 253)
    scale = ((exponent - EXPONENT) << 23).to(tl.float32, bitcast=True)
    # What is not finite has no such numbers: it makes all that comes of its row NaN.
    tl.store(scales_ptr + row, tl.where(greatest == 255, float("nan"), scale))
    return x * ((254 + EXPONENT - exponent) << 23).to(tl.float32, bitcast=True)
