"""Linear layers of a few rows: the weight is streamed once, at the memory's speed.

A program owns a few output features and has all their weights under way to its registers before it
waits for x; no sum is split over programs, and results are the same from run to run. Two kernels:
multiply-add for one or two rows, tensor cores for more. With one row, multiply-add takes the
RMSNorm of its input along, as no weight waits for it: gains are applied to the row as it is read,
its scale to the sums. With more, each program would norm them all again (12.4 us instead of 9.5 for
two rows and the QKV's weight, 357 instead of 267 for three and the unembedding's), so the norm is a
kernel of its own, during which the weights are under way.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.few_rows import (
    load_bias,
    load_rows,
    load_tiles,
    load_vector,
    load_weights,
    row_sums,
    tile_sums,
)
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.norm import rms_norm

MOST_ROWS: Final = 8
"""Of an input; above, a matrix product (cuBLAS) reads the weight as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearConfig:
    """How a weight is dealt to programs. ``outputs``, ``inputs``, ``warps``: powers of two."""

    tensor_cores: bool
    outputs: int
    """Output features that a program makes at once; with tensor cores 8 or 16."""
    inputs: int
    """Input features in one step; all steps' weights are in registers at once. With tensor cores
    a multiple of 32 for each warp."""
    warps: int
    registers: int | None = None
    """Of a thread, at most, and as many as the compiler may use to have loads under way at once.
    Fewer let more programs share an SM."""
    programs: int | None = None
    """With multiply-add at most so many, each taking blocks of outputs in turn. None, and with
    tensor cores: one for each block."""

    @classmethod
    def of(cls, rows: int, in_features: int, out_features: int) -> "LinearConfig":
        """What was the fastest on an H200 (tests.bench.kernels.linear_sweep), in us by rows:

        unembedding, 2880 to 201088: 257 (1), 267 to 270 (2 to 8); cuBLAS 278 to 281
        QKV, 2880 to 5120: 8.6 (1), 9.5 (2), 10.1, 10.3, 10.9 (3, 4, 8); cuBLAS 10.0 to 10.4
        output projection, 4096 to 2880: 7.2 (1), 7.6 to 8.1 (2 to 8); cuBLAS 11.1
        """
        many = out_features >= 2**15
        # All programs' weights fit an H200's registers, 3 programs to each of 132 SMs.
        at_once = out_features <= 8 * 3 * 132
        if rows == 1 or (rows == 2 and not many and not at_once):
            return cls._multiply_add(rows, in_features, many=many)
        if many:
            return cls._tensor_cores(in_features, *((16, 8, 128) if rows <= 4 else (8, 8, 80)))
        # Few warps and many loads each; where programs follow each other, many warps, which
        # shorten what is left to do after a program's weights have come.
        return cls._tensor_cores(in_features, *((8, 4, 168) if at_once else (8, 16, 64)))

    @classmethod
    def _multiply_add(cls, rows: int, in_features: int, *, many: bool) -> "LinearConfig":
        width = triton.next_power_of_2(in_features)
        inputs = min(1024 if in_features % 2048 else 2048, width)
        return cls(
            tensor_cores=False,
            outputs=4 // rows,
            inputs=inputs,
            warps=max(1, inputs // 256),
            # Left to itself, the compiler saves some and puts loads behind the first products.
            registers=96 if many else None,
            programs=132 * 30 if many else None,
        )

    @classmethod
    def _tensor_cores(
        cls, in_features: int, outputs: int, warps: int, registers: int
    ) -> "LinearConfig":
        warps = max(1, min(warps, triton.next_power_of_2(in_features) // 32))
        weights = outputs // 2 * triton.cdiv(in_features, 32 * warps)
        return cls(
            tensor_cores=True,
            outputs=outputs,
            inputs=32 * warps,
            warps=warps,
            registers=registers if weights + 32 <= registers else None,
        )

    def launch(self) -> dict[str, Any]:
        """Kernel arguments and launch options."""
        own = {"PARTS": self.warps} if self.tensor_cores else {}
        return {
            "OUTPUTS": self.outputs,
            "INPUTS": self.inputs,
            "num_warps": self.warps,
            "maxnreg": self.registers,
            **own,
            **dependent_launch(),
        }


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
    check_few_rows(x, None, weight, bias)
    shape = (len(x), weight.shape[0])
    if residual is not None and (residual.shape != shape or not residual.is_contiguous()):
        raise ValueError("residual: [R, out], contiguous")
    chosen = config or LinearConfig.of(len(x), *reversed(weight.shape))
    return _launch(x, None, 0.0, weight, bias, residual, out_dtype, chosen)


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
    """``linear`` of the RMSNorm of x, norm_weight [in] being its gain.

    Shapes, dtypes and errors as for ``linear``. With more than one row, or on tensor cores, the
    normed rows are rounded to bfloat16 in between, as ``rms_norm`` and ``linear`` would; one row
    with multiply-add takes one kernel and is not rounded before the sums.
    """
    check_few_rows(x, norm_weight, weight, bias)
    chosen = config or LinearConfig.of(len(x), *reversed(weight.shape))
    x, gain = norm_before(x, norm_weight, eps, chosen)
    return _launch(x, gain, eps, weight, bias, None, out_dtype, chosen)


def norm_before(
    x: Tensor, norm_weight: Tensor, eps: float, config: LinearConfig
) -> tuple[Tensor, Tensor | None]:
    """The input and the gain for a kernel of that config: the normed rows and none, unless the
    kernel norms its one row itself.
    """
    if len(x) == 1 and not config.tensor_cores:
        return x, norm_weight
    return rms_norm(x, norm_weight, eps), None


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
    gain: Tensor | None,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    config: LinearConfig,
) -> Tensor:
    rows, (out_features, in_features) = len(x), weight.shape
    out = torch.empty(rows, out_features, dtype=out_dtype or x.dtype, device=x.device)
    blocks = triton.cdiv(out_features, config.outputs)
    if config.tensor_cores:
        _tensor_core_kernel[(blocks,)](
            x, weight, bias, residual, out, out_features, rows, IN=in_features, **config.launch()
        )
        return out
    programs = min(blocks, config.programs or blocks)
    _multiply_add_kernel[(programs,)](
        x,
        gain,
        weight,
        bias,
        residual,
        out,
        eps,
        out_features,
        ROWS=rows,
        IN=in_features,
        IN_TURN=programs < blocks,
        **config.launch(),
    )
    return out


@triton.jit
def _multiply_add_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    gain_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    eps,
    out_features,
    ROWS: tl.constexpr,
    IN: tl.constexpr,
    IN_TURN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    let_successor_start()
    block = tl.program_id(0)
    feature = block * OUTPUTS + tl.arange(0, OUTPUTS)
    weights = load_weights(weight_ptr, feature, out_features, IN, INPUTS)
    bias = load_bias(bias_ptr, feature, feature < out_features)
    gains = load_vector(gain_ptr, IN, INPUTS)
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


@triton.jit(do_not_specialize=["rows"])
def _tensor_core_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    out_ptr,
    out_features,
    rows,
    IN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    PARTS: tl.constexpr,
):
    let_successor_start()
    first = tl.program_id(0) * OUTPUTS
    eights = ()
    for start in tl.static_range(0, OUTPUTS, 8):
        eights = eights + (first + start + tl.arange(0, 8),)  # type: ignore[assignment]  # noqa: RUF005
    tiles = load_tiles(weight_ptr, eights, out_features, IN, INPUTS, PARTS)
    feature = first + tl.arange(0, OUTPUTS)
    bias = load_bias(bias_ptr, feature, feature < out_features)
    wait_for_predecessor()
    row = tl.arange(0, 8)[None, :]
    at = row * out_features + feature[:, None]
    real = (feature < out_features)[:, None] & (row < rows)
    added = _with_residual(bias[:, None], residual_ptr, at, real)
    sums = tile_sums(tiles, x_ptr, rows, IN, INPUTS, PARTS)
    tl.store(out_ptr + at, (sums + added).to(out_ptr.dtype.element_ty), mask=real)
