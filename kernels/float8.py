"""Numbers of 8 bits: rounding to e4m3, and a row as the sum of two such terms.

Tensor cores of 8-bit floats take an MXFP4 weight after few instructions, and bfloat16 rows as two
terms: the nearest e4m3 value and what is left, in e4m3 again. Together they have the 8 bits of a
bfloat16, down to 2**-17 of the row's greatest value.
"""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import (
    INTERPRETED,
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
)
from moeray.kernels.scaled_rows import scaled_row

E4M3_MOST: Final = tl.constexpr(448.0)
"""The greatest magnitude."""
FLOAT8_CHOICES: Final = 10
"""Choices an expert up to which products with its weights are faster in 8-bit floats."""


class SplitRows(NamedTuple):
    """Rows [R, K] as ``mxfp4_float8.py`` takes them: row r is (first + second) * scales[r].

    terms float8_e4m3fn [R, K / 32, 2, 32]: of a block of 32 values first and second terms, each in
    the order of the weights' bytes (``place_in_block``); scales float32 [R], powers of two, or NaN
    for a row that has a value that is not finite.
    """

    terms: Tensor
    scales: Tensor

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> "SplitRows":
        scales = torch.empty(rows, dtype=torch.float32, device=device)
        return cls(empty_terms(rows, columns, device), scales)


def empty_terms(rows: int, columns: int, device: torch.device) -> Tensor:
    """For the terms of ``SplitRows``."""
    return torch.empty((rows, columns // 32, 2, 32), dtype=torch.float8_e4m3fn, device=device)


def split_rows(x: Tensor) -> SplitRows:
    """x [R, K] bfloat16, K a multiple of 32, in two terms."""
    rows, columns = x.shape
    split = SplitRows.empty(rows, columns, x.device)
    if rows:
        _split_rows[(rows,)](x, *split, columns, num_warps=4, **dependent_launch())
    return split


@triton.jit
def _split_rows(x_ptr, terms_ptr, scales_ptr, K: tl.constexpr):  # type: ignore[no-untyped-def]
    let_successor_start()
    wait_for_predecessor()
    split_row(x_ptr, terms_ptr, scales_ptr, tl.program_id(0).to(tl.int64), K)


@triton.jit
def split_row(x_ptr, terms_ptr, scales_ptr, row, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row ``row`` of x [R, K] in two terms, its greatest value brought between 128 and 256."""
    k = tl.arange(0, triton.next_power_of_2(K))
    x = scaled_row(x_ptr, scales_ptr, row, k, 7, K)
    store_terms(terms_ptr + row * (2 * K), k, x, k < K)


@triton.jit
def store_terms(terms_ptr, k, x, some):  # type: ignore[no-untyped-def]
    """Both terms of x, float32 of magnitudes up to 448, as values k of the rows at terms_ptr."""
    first = to_e4m3(x)
    second = to_e4m3(x - first.to(tl.float32))
    at = terms_ptr + (k // 32) * 64 + place_in_block(k % 32)
    tl.store(at, first, mask=some)
    tl.store(at + 32, second, mask=some)


@triton.jit
def place_in_block(k):  # type: ignore[no-untyped-def]
    """Where value k of a block of 32 stands: a word's low byte has one of the first 16 and its
    high byte the one 16 on (mxfp4_layout.py)."""
    return (k % 16) * 2 + k // 16


@triton.jit
def to_e4m3(x):  # type: ignore[no-untyped-def]
    """x, float32 of magnitudes up to 448, to the nearest e4m3 value, ties to even."""
    if INTERPRETED:  # whose conversion does not carry what it rounds up into the exponent
        exponents = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, 121)
        step = ((exponents - 3) << 23).to(tl.float32, bitcast=True)
        x = (x / step + 12582912.0 - 12582912.0) * step
    return x.to(tl.float8e4nv)
