"""The experts of many rows: sorted choices, two grouped products, and the weighted sum.

A program makes one tile of an expert's outputs for up to ``rows`` of the choices that the expert
got. Weights stay in FP4 until they are in the registers of the tensor cores (mxfp4_product.py).
Nothing depends on the order in which programs run, so results are bitwise repeatable.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.expert_sums import tree_of_groups
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.launch import (
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
    wide,
)
from moeray.kernels.mxfp4_layout import Mxfp4Weight
from moeray.kernels.mxfp4_product import product, swiglu
from moeray.kernels.routing import SortedChoices, sort_choices

_COMBINED_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class ManyRowsConfig:
    """Shapes of programs: choices and weight rows of one program, its chunks of 64 values a load,
    loads under way, warps, and the most registers of a thread, where more programs are to fit."""

    rows: int
    tile: int
    chunks: int
    stages: int
    warps: int
    registers: int | None = None


def config_for(choices_per_expert: float) -> ManyRowsConfig:
    """The configuration measured best on an H200."""
    if choices_per_expert <= 8:
        return ManyRowsConfig(rows=16, tile=64, chunks=4, stages=3, warps=4)
    if choices_per_expert <= 20:
        return ManyRowsConfig(rows=32, tile=128, chunks=2, stages=4, warps=4)
    if choices_per_expert <= 48:
        return ManyRowsConfig(rows=64, tile=128, chunks=2, stages=3, warps=4)
    if choices_per_expert <= 700:
        return ManyRowsConfig(rows=128, tile=128, chunks=2, stages=3, warps=4)
    return ManyRowsConfig(rows=256, tile=128, chunks=2, stages=3, warps=8)


def experts_many_rows(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    held: ExpertWeights,
    *,
    config: ManyRowsConfig | None = None,
) -> Tensor:
    """``moe.expert_sums`` for any number of rows; x [R, H], R at least 1."""
    choices = experts.numel()
    config = config or config_for(choices / (held.group_experts * 8))
    tiles = sort_choices(
        experts, first_expert=held.first_expert, held=held.gate_up.experts, tile=config.rows
    )
    hidden = torch.empty((choices, held.down.columns), dtype=x.dtype, device=x.device)
    outputs = torch.empty((choices, held.down.rows), dtype=x.dtype, device=x.device)
    top_k = experts.shape[1]
    _grouped(
        x, held.gate_up, held.gate_up_bias, hidden, tiles, config, divide=top_k,
        limit=held.limit, alpha=held.alpha,
    )  # fmt: skip
    _grouped(hidden, held.down, held.down_bias, outputs, tiles, config, divide=1)
    return combined(
        outputs,
        experts,
        weights,
        first_group=held.first_expert // held.group_experts,
        groups=held.groups,
        group_experts=held.group_experts,
    )


def _grouped(
    x: Tensor,
    weight: Mxfp4Weight,
    bias: Tensor,
    out: Tensor,
    tiles: SortedChoices,
    config: ManyRowsConfig,
    *,
    divide: int,
    limit: float | None = None,
    alpha: float = 0.0,
) -> None:
    """out[c] = x[c // divide] through the expert of choice c; SwiGLU behind it if ``limit``."""
    columns = triton.cdiv(weight.rows, config.tile)
    _grouped_product[(columns * len(tiles.counts),)](
        x,
        *weight,
        bias,
        out,
        *tiles,
        N=weight.rows,
        K=weight.columns,
        DIVIDE=divide,
        GATED=limit is not None,
        LIMIT=limit or 0.0,
        ALPHA=alpha,
        BM=config.rows,
        BN=config.tile,
        CHUNKS=config.chunks,
        STAGES=config.stages,
        num_warps=config.warps,
        maxnreg=config.registers,
        **dependent_launch(),
    )


@triton.jit
def _grouped_product(  # type: ignore[no-untyped-def]
    x_ptr,
    words_ptr,
    factors_ptr,
    bias_ptr,
    out_ptr,
    choices_ptr,
    expert_ptr,
    begin_ptr,
    count_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    DIVIDE: tl.constexpr,
    GATED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Neighbouring programs share a tile of choices and go through an expert's weight rows."""
    let_successor_start()
    wait_for_predecessor()
    COLUMNS: tl.constexpr = (N + BN - 1) // BN
    tile, column = tl.program_id(0) // COLUMNS, tl.program_id(0) % COLUMNS
    # All three at once, because each load takes its time before the first weights can come.
    count = tl.load(count_ptr + tile)
    begin = tl.load(begin_ptr + tile)
    expert = tl.load(expert_ptr + tile).to(tl.int64)
    if count == 0:
        return
    places = tl.arange(0, BM)
    some = places < count
    choices = tl.load(choices_ptr + begin + places, mask=some, other=0)
    choices = choices.to(tl.int64)
    n = column * BN + tl.arange(0, BN)
    some_n = n < N
    acc = product(
        x_ptr + choices // DIVIDE * K,
        some,
        words_ptr + expert * (N * (K // 4)),
        factors_ptr + expert * (N * ((K + 127) // 128)),
        n,
        some_n,
        tl.zeros((BN, BM), tl.float32),
        0,
        (K // 64 + CHUNKS - 1) // CHUNKS,
        K,
        N,
        CHUNKS,
        STAGES,
    )
    acc += wide(tl.load(bias_ptr + expert * N + n, mask=some_n)).to(tl.float32)[:, None]
    if GATED:
        own = column * (BN // 2) + tl.arange(0, BN // 2)
        keep = some[None, :] & (own < N // 2)[:, None]
        at = out_ptr + choices[None, :] * (N // 2) + own[:, None]
        tl.store(at, swiglu(acc, LIMIT, ALPHA).to(out_ptr.dtype.element_ty), mask=keep)
    else:
        keep = some[None, :] & (n < N)[:, None]
        at = out_ptr + choices[None, :] * N + n[:, None]
        tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=keep)


def combined(
    outputs: Tensor,
    experts: Tensor,
    weights: Tensor,
    *,
    first_group: int,
    groups: int,
    group_experts: int,
) -> Tensor:
    """``reference.combine`` of outputs [4 R, H], choice after choice: [R, H] float32.

    Outputs of experts outside of groups first_group to first_group + groups - 1 are not read.
    """
    rows = len(experts)
    columns = outputs.shape[1]
    sums = torch.empty((rows, columns), dtype=torch.float32, device=outputs.device)
    block = min(_COMBINED_COLUMNS, triton.next_power_of_2(columns))
    _combine[(rows, triton.cdiv(columns, block))](
        outputs, experts, weights, sums, first_group, columns, group_experts, groups, block,
        enable_fp_fusion=False, **dependent_launch(),
    )  # fmt: skip
    return sums


@triton.jit
def _combine(  # type: ignore[no-untyped-def]
    outputs_ptr,
    experts_ptr,
    weights_ptr,
    sums_ptr,
    first_group,
    N: tl.constexpr,
    GROUP_EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    let_successor_start()
    wait_for_predecessor()
    row = tl.program_id(0) + tl.arange(0, 1)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    some = (row >= 0)[:, None] & (n < N)[None, :]
    sums = tree_of_groups(
        outputs_ptr, 0, 1, experts_ptr, weights_ptr, row, n, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    tl.store(sums_ptr + row[:, None] * N + n[None, :], sums, mask=some)
