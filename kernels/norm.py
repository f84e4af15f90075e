"""RMSNorm, alone and with the residual sum before it, in one pass over each row.

A row stays in registers between its sum of squares and its scaling, so memory is touched once.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor


@dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """How rows are dealt to programs; powers of two."""

    rows: int
    """That one program takes at once."""
    warps: int

    @classmethod
    def of(cls, rows: int) -> "NormConfig":
        """Few rows: many lanes for each; many: enough bytes in flight from each program."""
        return cls(rows=1, warps=8) if rows <= 1024 else cls(rows=2, warps=8)


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, config: NormConfig | None = None) -> Tensor:
    """Root-mean-square norm (Zhang and Sennrich, 2019) of x [R, H], scaled by weight [H].

    x and weight contiguous, of any floating dtype; sums in float32. Returns [R, H] in x's dtype.
    ValueError for shapes or layouts that do not fit.
    """
    return _launch(x, None, weight, eps, config)[0]


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, config: NormConfig | None = None
) -> tuple[Tensor, Tensor]:
    """``summed`` = x + residual, rounded to x's dtype, and the RMSNorm of that rounded sum.

    x and residual [R, H] contiguous, of one dtype; weight [H]. Returns (normed, summed), both
    [R, H] in x's dtype. ValueError for shapes, dtypes or layouts that do not fit.
    """
    if residual.shape != x.shape or residual.dtype != x.dtype or not residual.is_contiguous():
        raise ValueError("residual: contiguous, of the shape and dtype of x")
    return _launch(x, residual, weight, eps, config)


def _launch(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, config: NormConfig | None
) -> tuple[Tensor, Tensor]:
    if x.dim() != 2 or not x.is_contiguous() or not x.is_floating_point():
        raise ValueError("x: [R, H], contiguous, floating")
    if weight.shape != x.shape[1:] or not weight.is_contiguous():
        raise ValueError("weight: [H], contiguous")
    rows, hidden = x.shape
    normed = torch.empty_like(x)
    summed = x if residual is None else torch.empty_like(x)
    if rows:
        chosen = config or NormConfig.of(rows)
        _norm_kernel[(triton.cdiv(rows, chosen.rows),)](
            x,
            residual,
            weight,
            normed,
            summed,
            rows,
            eps,
            HIDDEN=hidden,
            LANES=triton.next_power_of_2(hidden),
            ROWS=chosen.rows,
            num_warps=chosen.warps,
            **dependent_launch(),
        )
    return normed, summed


@triton.jit
def _norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    summed_ptr,
    rows,
    eps,
    HIDDEN: tl.constexpr,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    let_successor_start()
    column = tl.arange(0, LANES)
    inside = column < HIDDEN
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = row.to(tl.int64)[:, None] * HIDDEN + column[None, :]
    here = (row < rows)[:, None] & inside[None, :]
    wait_for_predecessor()
    x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
    if residual_ptr is not None:
        x += tl.load(residual_ptr + at, mask=here, other=0.0).to(tl.float32)
        rounded = x.to(summed_ptr.dtype.element_ty)
        tl.store(summed_ptr + at, rounded, mask=here)
        x = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / HIDDEN + eps)
    normed = x * scale[:, None] * weight[None, :]
    tl.store(normed_ptr + at, normed.to(normed_ptr.dtype.element_ty), mask=here)
