"""The experts of one row or two, in two kernels: each chosen expert's bytes are read once.

A program belongs to some weight rows of one chosen expert and works on all rows that chose it; no
sorting comes before. The first kernel makes the hidden values, the second the outputs, and the
program of a tile that comes last adds them up, in the fixed order of ``expert_sums.py``.
"""

from dataclasses import dataclass
from typing import Final

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.expert_sums import tree_of_groups
from moeray.kernels.expert_tile import expert_bias, expert_product, store_hidden
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.float8 import SplitRows, split_rows
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.mxfp4_product import swiglu

MOST_ROWS: Final = 8
"""That these kernels take."""
SORTED_ROWS: Final = 3
"""From which on sorted choices are faster (moe_many_rows.py)."""


@dataclass(frozen=True, slots=True)
class FewRowsConfig:
    """Shapes of programs, by default those measured best on an H200. Weight rows of one program;
    its chunks of 64 values a load; loads under way; programs that share a tile's sum over the
    hidden values."""

    tile: int = 64
    chunks: int = 4
    stages: int = 4
    down_splits: int = 2
    warps: int = 4


_BEST: Final = FewRowsConfig()


def experts_few_rows(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    held: ExpertWeights,
    *,
    split: SplitRows | None = None,
    config: FewRowsConfig = _BEST,
) -> Tensor:
    """``moe.expert_sums`` for at most ``MOST_ROWS`` rows; x [R, H], R at least 1."""
    rows, top_k = experts.shape
    chosen = rows * top_k
    hidden = SplitRows.empty(chosen, held.down.columns, x.device)
    shared = {
        "A": chosen,
        "TOP_K": top_k,
        "CHOSEN": triton.next_power_of_2(chosen),
        "BM": max(2, triton.next_power_of_2(rows)),
        "BN": config.tile,
        "CHUNKS": config.chunks,
        "STAGES": config.stages,
        "num_warps": config.warps,
        **dependent_launch(),
    }
    _hidden_values[(triton.cdiv(held.gate_up.rows, config.tile), chosen)](
        *(split or split_rows(x)),
        experts,
        *held.gate_up,
        held.gate_up_bias,
        *hidden,
        held.first_expert,
        held.gate_up.experts,
        held.gate_up.rows,
        held.gate_up.columns,
        LIMIT=held.limit,
        ALPHA=held.alpha,
        GROWN=held.hidden_growth,
        **shared,
    )
    return _added(experts, weights, hidden, held, config, shared)


def _added(
    experts: Tensor,
    weights: Tensor,
    hidden: SplitRows,
    held: ExpertWeights,
    config: FewRowsConfig,
    shared: dict[str, object],
) -> Tensor:
    rows, chosen = len(experts), experts.numel()
    columns = held.down.rows
    splits = config.down_splits
    device = experts.device
    parts = torch.empty((splits, chosen, columns), dtype=torch.float32, device=device)
    out = torch.empty((rows, columns), dtype=torch.float32, device=device)
    tiles = triton.cdiv(columns, config.tile)
    _outputs[(tiles, chosen, splits)](
        *hidden,
        experts,
        weights,
        *held.down,
        held.down_bias,
        parts,
        out,
        held.tickets(tiles),
        held.first_expert,
        held.down.experts,
        columns,
        held.down.columns,
        SPLITS=splits,
        R=rows,
        GROUP_EXPERTS=held.group_experts,
        GROUPS=held.groups,
        enable_fp_fusion=False,
        **shared,
    )
    return out


@triton.jit
def _assignments(  # type: ignore[no-untyped-def]
    experts_ptr,
    first_expert,
    held,
    A: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
):
    """What the program of the choice program_id(1) works on.

    Returns (the expert among those held, whether the program works at all, choices [BM] of that
    expert, and which of those are any). The first choice of an expert works for all of them.
    """
    slot = tl.program_id(1)
    places = tl.arange(0, BM)
    if TOP_K == A:
        # One row: no expert twice.
        alone = tl.load(experts_ptr + slot).to(tl.int64) - first_expert
        works = (alone >= 0) & (alone < held)
        return alone, works, tl.zeros((BM,), tl.int32) + slot, places < 1
    choices = tl.arange(0, CHOSEN)
    ids = tl.load(experts_ptr + choices, mask=choices < A, other=-1).to(tl.int32)
    own = tl.load(experts_ptr + slot).to(tl.int32)
    same = (ids == own).to(tl.int32)
    earlier = tl.sum(tl.where(choices < slot, same, 0))
    local = own.to(tl.int64) - first_expert
    works = (earlier == 0) & (local >= 0) & (local < held)
    rank = tl.cumsum(same) - 1
    here = (same[:, None] == 1) & (rank[:, None] == places[None, :])
    return local, works, tl.sum(tl.where(here, choices[:, None], 0), 0), places < tl.sum(same)


@triton.jit
def _hidden_values(  # type: ignore[no-untyped-def]
    x_ptr,
    x_scales_ptr,
    experts_ptr,
    words_ptr,
    factors_ptr,
    bias_ptr,
    hidden_ptr,
    hidden_scales_ptr,
    first_expert,
    held,
    N: tl.constexpr,
    K: tl.constexpr,
    A: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    GROWN: tl.constexpr,
):
    let_successor_start()
    wait_for_predecessor()
    expert, works, choices, some = _assignments(
        experts_ptr, first_expert, held, A, TOP_K, CHOSEN, BM
    )
    if works:
        column = tl.program_id(0)
        n = column * BN + tl.arange(0, BN)
        acc = expert_product(
            x_ptr, x_scales_ptr, choices // TOP_K, some,
            words_ptr + expert * (N * (K // 4)),
            factors_ptr + expert * (N * ((K + 127) // 128)),
            n, 0, (K // 64 + CHUNKS - 1) // CHUNKS, K, N, CHUNKS, STAGES,
        )  # fmt: skip
        acc += expert_bias(bias_ptr + expert * N, n, N)
        store_hidden(
            hidden_ptr, hidden_scales_ptr, choices, some, column, swiglu(acc, LIMIT, ALPHA),
            N // 2, GROWN,
        )  # fmt: skip


@triton.jit
def _outputs(  # type: ignore[no-untyped-def]
    hidden_ptr,
    scales_ptr,
    experts_ptr,
    weights_ptr,
    words_ptr,
    factors_ptr,
    bias_ptr,
    parts_ptr,
    out_ptr,
    tickets_ptr,
    first_expert,
    held,
    N: tl.constexpr,
    K: tl.constexpr,
    SPLITS: tl.constexpr,
    R: tl.constexpr,
    GROUP_EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    A: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNKS: tl.constexpr,
    STAGES: tl.constexpr,
):
    let_successor_start()
    wait_for_predecessor()
    tile, split = tl.program_id(0), tl.program_id(2)
    expert, works, choices, some = _assignments(
        experts_ptr, first_expert, held, A, TOP_K, CHOSEN, BM
    )
    n = tile * BN + tl.arange(0, BN)
    if works:
        LOADS: tl.constexpr = (K // 64 + CHUNKS - 1) // CHUNKS
        acc = expert_product(
            hidden_ptr, scales_ptr, choices, some,
            words_ptr + expert * (N * (K // 4)),
            factors_ptr + expert * (N * ((K + 127) // 128)),
            n,
            split * LOADS // SPLITS, (split + 1) * LOADS // SPLITS, K, N, CHUNKS, STAGES,
        )  # fmt: skip
        if split == 0:
            acc += expert_bias(bias_ptr + expert * N, n, N)
        places = parts_ptr + ((split * A + choices) * N)[None, :] + n[:, None]
        tl.store(places, acc, mask=some[None, :] & (n < N)[:, None])
    # All that this program wrote must be seen by the one that takes the last ticket.
    tl.debug_barrier()
    LAST: tl.constexpr = A * SPLITS - 1
    if tl.atomic_add(tickets_ptr + tile, 1, sem="acq_rel") == LAST:
        tl.store(tickets_ptr + tile, 0)
        RP: tl.constexpr = triton.next_power_of_2(R)
        # A row that is not there does the last one's work again.
        rows = tl.minimum(tl.arange(0, RP), R - 1)
        keep = (rows >= 0)[:, None] & (n < N)[None, :]
        sums = tree_of_groups(
            parts_ptr, A * N, SPLITS, experts_ptr, weights_ptr, rows, n, keep, N,
            first_expert // GROUP_EXPERTS, GROUP_EXPERTS, GROUPS,
        )  # fmt: skip
        tl.store(out_ptr + rows[:, None] * N + n[None, :], sums, mask=keep)
