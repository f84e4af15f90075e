"""The experts of many rows: sorted choices, two grouped products, and the weighted sum.

A program makes one tile of an expert's outputs for up to ``rows`` of the choices that the expert
got, or a few more (``extra``); where fewer are left over, it is a product of fewer rows. Weights
stay in FP4 until they are in the registers of the tensor cores (mxfp4_product.py). Nothing depends
on the order in which programs run, so results are bitwise repeatable.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.expert_sums import tree_of_groups
from moeray.kernels.expert_tile import expert_bias, store_hidden, swiglu
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.float8 import (
    E4M3_MOST,
    FLOAT8_CHOICES,
    SplitRows,
    empty_terms,
    split_rows,
)
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.mxfp4_layout import Mxfp4Weight
from moeray.kernels.mxfp4_product import product
from moeray.kernels.scaled_rows import HALF_MOST, HalfRows, half_rows
from moeray.kernels.sorted_choices import SortedChoices, sort_choices

_COMBINED_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class ManyRowsConfig:
    """Shapes of programs."""

    rows: int
    """Choices of one, as long as its expert has so many."""
    tile: int
    """Its weight rows."""
    chunks: int
    """Of 64 values, that it loads at once."""
    stages: int
    """Loads under way."""
    warps: int = 4
    least: int = 256
    """The fewest choices that a smaller product has, of a half and a quarter of ``rows``, for what
    is left of an expert's choices."""
    extra: int = 0
    """Choices that an expert's last program takes beyond ``rows``, with the weights that it has
    made already; a power of two."""
    float8: bool = False
    """Whether products are of 8-bit floats."""
    registers: int | None = None
    """The most of a thread, where more programs are to fit on a multiprocessor."""


def config_for(choices: int, experts: int) -> ManyRowsConfig:
    """The configuration measured best on an H200, for so many choices among all experts."""
    each = choices / experts
    if choices <= 16:
        # So few tiles that four programs on a multiprocessor would leave a second round almost
        # empty: three of them, with more loads under way.
        return ManyRowsConfig(16, tile=128, chunks=4, stages=3, least=8, float8=True)
    if each <= FLOAT8_CHOICES:
        return ManyRowsConfig(16, tile=128, chunks=2, stages=4, least=8, float8=True)
    if each <= 45:
        return ManyRowsConfig(32, tile=128, chunks=2, stages=3, least=16, extra=16, registers=168)
    if each <= 90:
        return ManyRowsConfig(64, tile=128, chunks=1, stages=4, least=16, extra=16, registers=168)
    if each <= 200:
        # A second program for a few more choices costs more than products that run on would gain.
        return ManyRowsConfig(128, tile=128, chunks=1, stages=4, least=32, extra=16)
    return ManyRowsConfig(128, tile=128, chunks=2, stages=3, least=32)


def experts_many_rows(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    held: ExpertWeights,
    *,
    scaled: HalfRows | SplitRows | None = None,
    config: ManyRowsConfig | None = None,
) -> Tensor:
    """``moe.expert_sums`` for any number of rows; x [R, H], R at least 1.

    ``scaled`` are the same rows as the kernels want them, if somebody has made them already; not
    looked at where the configuration wants the other kind.
    """
    choices = experts.numel()
    config = config or config_for(choices, held.group_experts * 8)
    tiles = sort_choices(
        experts,
        first_expert=held.first_expert,
        held=held.gate_up.experts,
        tile=config.rows,
        extra=config.extra,
    )
    outputs = torch.empty((choices, held.down.rows), dtype=x.dtype, device=x.device)
    width = held.down.columns
    rows: HalfRows | SplitRows
    if config.float8:
        rows = scaled if isinstance(scaled, SplitRows) else split_rows(x)
        hidden = empty_terms(choices, width, x.device)
    else:
        rows = scaled if isinstance(scaled, HalfRows) else half_rows(x)
        hidden = torch.empty((choices, width), dtype=torch.float16, device=x.device)
    _gate_up(rows, held, hidden, tiles, config, experts.shape[1])
    _down(hidden, held, outputs, tiles, config)
    return combined(
        outputs,
        experts,
        weights,
        first_group=held.first_expert // held.group_experts,
        groups=held.groups,
        group_experts=held.group_experts,
    )


def _gate_up(
    rows: HalfRows | SplitRows,
    held: ExpertWeights,
    hidden: Tensor,
    tiles: SortedChoices,
    config: ManyRowsConfig,
    top_k: int,
) -> None:
    """hidden[c] = SwiGLU of row c // top_k through gate and up of the expert of choice c, as
    float16 or in two terms, GROWN times too great."""
    values, scales = rows
    _grouped(
        values, scales, held.gate_up, held.gate_up_bias, hidden, held, tiles, config,
        DIVIDE=top_k, GATED=True, LIMIT=held.limit, ALPHA=held.alpha,
    )  # fmt: skip


def _down(
    hidden: Tensor,
    held: ExpertWeights,
    outputs: Tensor,
    tiles: SortedChoices,
    config: ManyRowsConfig,
) -> None:
    """outputs[c] = hidden[c] through down of the expert of choice c."""
    _grouped(
        hidden, None, held.down, held.down_bias, outputs, held, tiles, config,
        DIVIDE=1, GATED=False, LIMIT=0.0, ALPHA=0.0,
    )  # fmt: skip


def _grouped(
    values: Tensor,
    scales: Tensor | None,
    weight: Mxfp4Weight,
    bias: Tensor,
    out: Tensor,
    held: ExpertWeights,
    tiles: SortedChoices,
    config: ManyRowsConfig,
    **constants: float,
) -> None:
    columns = triton.cdiv(weight.rows, config.tile)
    _grouped_product[(columns * len(tiles.counts),)](
        values,
        scales,
        *weight,
        bias,
        out,
        *tiles,
        N=weight.rows,
        K=weight.columns,
        GROWN=held.hidden_growth(E4M3_MOST.value if config.float8 else HALF_MOST),
        BM=config.rows,
        EXTRA=config.extra,
        LEAST=min(config.least, config.rows),
        BN=config.tile,
        CHUNKS=config.chunks,
        STAGES=config.stages,
        **constants,
        num_warps=config.warps,
        maxnreg=config.registers,
        **dependent_launch(),
    )


@triton.jit
def _grouped_product(  # type: ignore[no-untyped-def]
    x_ptr,
    scales_ptr,
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
    GROWN: tl.constexpr,
    BM: tl.constexpr,
    EXTRA: tl.constexpr,
    LEAST: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Neighbouring programs share a tile of choices and go through an expert's weight rows."""
    let_successor_start()
    wait_for_predecessor()
    COLUMNS: tl.constexpr = (N + BN - 1) // BN
    number, column = tl.program_id(0) // COLUMNS, tl.program_id(0) % COLUMNS
    # All three at once, because each load takes its time before the first weights can come.
    count = tl.load(count_ptr + number)
    begin = tl.load(begin_ptr + number)
    expert = tl.load(expert_ptr + number).to(tl.int64)
    if count == 0:
        return
    choices_ptr += begin
    words_ptr += expert * (N * (K // 4))
    factors_ptr += expert * (N * ((K + 127) // 128))
    bias_ptr += expert * N
    tile = (
        x_ptr, scales_ptr, words_ptr, factors_ptr, bias_ptr, out_ptr, choices_ptr,
        count, column,
    )  # fmt: skip
    # The last tile of an expert is seldom full.
    HALF: tl.constexpr = BM // 2 if BM // 2 >= LEAST else BM
    QUARTER: tl.constexpr = BM // 4 if BM // 4 >= LEAST else HALF
    if QUARTER < HALF:  # noqa: SIM102 - decided when the kernel is compiled
        if count <= QUARTER:
            _tile(tile, N, K, DIVIDE, GATED, LIMIT, ALPHA, GROWN, QUARTER, 0, BN, CHUNKS, STAGES)
            return
    if HALF < BM:  # noqa: SIM102
        if count <= HALF:
            _tile(tile, N, K, DIVIDE, GATED, LIMIT, ALPHA, GROWN, HALF, 0, BN, CHUNKS, STAGES)
            return
    if EXTRA:  # noqa: SIM102
        if count > BM:
            _tile(tile, N, K, DIVIDE, GATED, LIMIT, ALPHA, GROWN, BM, EXTRA, BN, CHUNKS, STAGES)
            return
    _tile(tile, N, K, DIVIDE, GATED, LIMIT, ALPHA, GROWN, BM, 0, BN, CHUNKS, STAGES)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    tile,
    N: tl.constexpr,
    K: tl.constexpr,
    DIVIDE: tl.constexpr,
    GATED: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    GROWN: tl.constexpr,
    BM: tl.constexpr,
    EXTRA: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Weight rows ``column`` BN and on of one expert, for ``count`` choices, at most BM + EXTRA.

    ``tile``: pointers to x and its scales, to the expert's words, factors and biases, to the
    outputs, to the tile's choices; count and column.
    """
    x_ptr, scales_ptr, words_ptr, factors_ptr, bias_ptr = tile[:5]
    out_ptr, choices_ptr, count, column = tile[5:]
    choices, rows, there = _pieces(choices_ptr, count, DIVIDE, BM, EXTRA)
    n = column * BN + tl.arange(0, BN)
    sums = product(
        x_ptr, scales_ptr, rows, there, words_ptr, factors_ptr, n, GROWN, K, N, CHUNKS, STAGES
    )
    bias = expert_bias(bias_ptr, n, N)
    for piece in tl.static_range(len(rows)):
        acc = sums[piece] + bias
        if GATED:
            store_hidden(
                out_ptr, choices[piece], there[piece], column, swiglu(acc, LIMIT, ALPHA),
                N // 2, GROWN,
            )  # fmt: skip
        else:
            keep = there[piece][None, :] & (n < N)[:, None]
            at = out_ptr + choices[piece][None, :] * N + n[:, None]
            tl.store(at, acc.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _pieces(  # type: ignore[no-untyped-def]
    choices_ptr, count, DIVIDE: tl.constexpr, BM: tl.constexpr, EXTRA: tl.constexpr
):
    """A tile's choices in one or two pieces, [BM] and [EXTRA]; their rows; which of them it has."""
    choices, some = _piece(choices_ptr, count, 0, BM)
    pieces, rows, there = (choices,), (choices // DIVIDE,), (some,)
    if EXTRA:
        choices, some = _piece(choices_ptr, count, BM, EXTRA)
        pieces, rows, there = pieces + (choices,), rows + (choices // DIVIDE,), there + (some,)  # type: ignore[assignment]  # noqa: RUF005
    return pieces, rows, there


@triton.jit
def _piece(choices_ptr, count, begin, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    places = begin + tl.arange(0, SIZE)
    some = places < count
    return tl.load(choices_ptr + places, mask=some, other=0).to(tl.int64), some


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
        outputs_ptr, experts_ptr, weights_ptr, row, n, some, N,
        first_group, GROUP_EXPERTS, GROUPS,
    )  # fmt: skip
    tl.store(sums_ptr + row[:, None] * N + n[None, :], sums, mask=some)
