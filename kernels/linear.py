"""Linear layers of a few rows: the weight is streamed once, at the memory's speed.

A program owns a few output features and reads their weights whole, so no sum is split over programs
and results are the same from run to run. Two kernels: multiply-add with everything in registers for
one or two rows, tensor cores (rows padded to ``tl.dot``'s least) for more. Both can
take the RMSNorm of their input along: its gain is applied to the rows as they are read, its scale
to the sums, so that no weight waits for it.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.few_rows import (
    load_bias,
    load_rows,
    load_vector,
    load_weights,
    request_weights,
    row_sums,
    tensor_core_sums,
)
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor

MOST_ROWS: Final = 8
"""Of an input; above, a matrix product (cuBLAS) reads the weight as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """How a weight is dealt to programs. ``outputs``, ``inputs``, ``warps``: powers of two."""

    tensor_cores: bool
    outputs: int
    """Output features that a program makes at once."""
    inputs: int
    """Input features in one step. Multiply-add: all steps' weights are in registers at once."""
    warps: int
    stages: int = 1
    """Steps that are under way at once, with tensor cores."""
    programs: int | None = None
    """At most so many, each taking blocks of outputs in turn; None: one for each block. For
    multiply-add only."""

    @classmethod
    def of(cls, rows: int, in_features: int, out_features: int) -> "LinearConfig":
        """What to run for these sizes."""
        width = triton.next_power_of_2(in_features)
        many = out_features >= 2**15
        if rows > 2:
            # Every program reads all rows of x from the L2: with 16 outputs half as many bytes as
            # of weights, at 8 rows.
            if in_features % 512 == 0 and not many:
                return cls(tensor_cores=True, outputs=32, inputs=512, warps=8, stages=4)
            return cls(
                tensor_cores=True,
                outputs=32 if many else 16,
                inputs=max(128, min(256, width)),
                warps=4,
                stages=4 if many else 5,
            )
        inputs = min(1024 if in_features % 2048 else 2048, width)
        return cls(
            tensor_cores=False,
            outputs=4 // rows if many else 4,
            inputs=inputs,
            warps=max(1, inputs // 256),
            programs=132 * 5 if many else None,
        )


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    config: LinearConfig | None = None,
) -> Tensor:
    """x weight^T + bias + residual for few rows.

    x [R, in] and weight [out, in] bfloat16, contiguous, 1 <= R <= ``MOST_ROWS``; in a multiple of
    8; bias [out]; residual [R, out]. Products and sums are float32, the result is rounded once.
    Returns [R, out] in ``out_dtype``, by default x's. ValueError for what does not fit.
    """
    return _launch(x, None, 0.0, weight, bias, residual, out_dtype, config)


def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_dtype: torch.dtype | None = None,
    config: LinearConfig | None = None,
) -> Tensor:
    """``linear`` of the RMSNorm of x, norm_weight [in] being its gain, in one kernel.

    Shapes, dtypes and errors as for ``linear``. The normed row is not rounded in between with one
    or two rows; with more, x times the gain is rounded to bfloat16, and the norm's scale is
    applied to the float32 sums.
    """
    return _launch(x, norm_weight, eps, weight, bias, None, out_dtype, config)


def check_few_rows(
    x: Tensor, norm_weight: Tensor | None, weight: Tensor, bias: Tensor | None
) -> None:
    """ValueError where a linear layer of few rows cannot take these."""
    if x.dim() != 2 or x.dtype != torch.bfloat16 or not x.is_contiguous():
        raise ValueError("x: [R, in], bfloat16, contiguous")
    if not 1 <= x.shape[0] <= MOST_ROWS:
        raise ValueError(f"x: 1 to {MOST_ROWS} rows, not {x.shape[0]}")
    if weight.dim() != 2 or weight.dtype != torch.bfloat16 or not weight.is_contiguous():
        raise ValueError("weight: [out, in], bfloat16, contiguous")
    out_features, in_features = weight.shape
    if x.shape[1] != in_features or in_features % 8:
        raise ValueError(f"weight: in is {in_features}, which must be x's and a multiple of 8")
    if norm_weight is not None and (
        norm_weight.shape != (in_features,) or not norm_weight.is_contiguous()
    ):
        raise ValueError("norm_weight: [in], contiguous")
    if bias is not None and (bias.shape != (out_features,) or not bias.is_contiguous()):
        raise ValueError("bias: [out], contiguous")


def _launch(
    x: Tensor,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    config: LinearConfig | None,
) -> Tensor:
    check_few_rows(x, norm_weight, weight, bias)
    rows, (out_features, in_features) = x.shape[0], weight.shape
    if residual is not None and (
        residual.shape != (rows, out_features) or not residual.is_contiguous()
    ):
        raise ValueError("residual: [R, out], contiguous")
    out = torch.empty(rows, out_features, dtype=out_dtype or x.dtype, device=x.device)
    chosen = config or LinearConfig.of(rows, in_features, out_features)
    blocks = triton.cdiv(out_features, chosen.outputs)
    programs = blocks if chosen.tensor_cores else min(blocks, chosen.programs or blocks)
    kernel = _tensor_core_kernel if chosen.tensor_cores else _multiply_add_kernel
    kernel[(programs,)](
        x,
        norm_weight,
        weight,
        bias,
        residual,
        out,
        eps,
        out_features,
        ROWS=rows,
        IN=in_features,
        OUTPUTS=chosen.outputs,
        INPUTS=chosen.inputs,
        **_way(chosen, programs < blocks),
        num_warps=chosen.warps,
        **dependent_launch(),
    )
    return out


def _way(config: LinearConfig, in_turn: bool) -> dict[str, int | bool]:
    """What only one of the two kernels takes."""
    if config.tensor_cores:
        return {"PARTS": config.warps, "STAGES": config.stages}
    return {"IN_TURN": in_turn}


@triton.jit
def _multiply_add_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    eps,
    out_features,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IN_TURN: tl.constexpr,
):
    let_successor_start()
    block = tl.program_id(0)
    feature = block * OUTPUTS + tl.arange(0, OUTPUTS)
    weights = load_weights(weight_ptr, feature, out_features, IN, INPUTS)
    bias = load_bias(bias_ptr, feature, feature < out_features)
    gains = load_vector(norm_ptr, IN, INPUTS)
    wait_for_predecessor()
    x, scales = load_rows(x_ptr, gains, eps, ROWS, IN, INPUTS)
    _finish_rows(weights, x, scales, bias, feature, residual_ptr, out_ptr, out_features, ROWS)
    if IN_TURN:
        for turn in range(
            block + tl.num_programs(0), tl.cdiv(out_features, OUTPUTS), tl.num_programs(0)
        ):
            feature = turn * OUTPUTS + tl.arange(0, OUTPUTS)
            weights = load_weights(weight_ptr, feature, out_features, IN, INPUTS)
            bias = load_bias(bias_ptr, feature, feature < out_features)
            _finish_rows(
                weights, x, scales, bias, feature, residual_ptr, out_ptr, out_features, ROWS
            )


@triton.jit
def _finish_rows(  # type: ignore[no-untyped-def]
    weights,
    x,
    scales,
    bias,
    feature,
    residual_ptr,
    out_ptr,
    out_features,
    ROWS: tl.constexpr,
):
    real = feature < out_features
    added = ()
    for row in tl.static_range(ROWS):
        residual = _with_residual(bias, residual_ptr, row * out_features + feature, real)
        added = added + (residual,)  # type: ignore[assignment]  # noqa: RUF005
    for row in tl.static_range(ROWS):
        sums = row_sums(weights, x, scales, row) + added[row]
        at = row * out_features + feature
        tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=real)


@triton.jit
def _with_residual(bias, residual_ptr, at, real):  # type: ignore[no-untyped-def]
    """What is added to the sums; loaded before them, so that nothing waits for it."""
    added = bias
    if residual_ptr is not None:
        added += tl.load(residual_ptr + at, mask=real, other=0.0).to(tl.float32)
    return added


@triton.jit
def _tensor_core_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    norm_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    eps,
    out_features,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_successor_start()
    feature = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    request_weights(weight_ptr, feature, out_features, IN)
    bias = load_bias(bias_ptr, feature, feature < out_features)[:, None]
    row = tl.arange(0, 8)[None, :]
    at = row * out_features + feature[:, None]
    real = (feature < out_features)[:, None] & (row < ROWS)
    wait_for_predecessor()
    added = _with_residual(bias, residual_ptr, at, real)
    sums = tensor_core_sums(
        x_ptr, norm_ptr, weight_ptr, feature, out_features, eps, ROWS, IN, INPUTS, PARTS, STAGES
    )
    tl.store(out_ptr + at, (sums + added).to(out_ptr.dtype.element_ty), mask=real)
