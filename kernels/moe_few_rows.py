"""The experts of one row or two, in two kernels: each chosen expert's bytes are read once.

A program belongs to some weight rows of one chosen expert and works on all rows that chose it; no
sorting comes before. The first kernel makes the hidden values, the second the outputs, and the
program of a tile that comes last adds them up, in the fixed order of ``expert_sums.py``.

The second kernel's programs start when those of the first leave room, and ask for their weights
before they wait for the hidden values: so the memory is not idle in between.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.expert_sums import tree_of_groups
from moeray.kernels.expert_tile import expert_bias, swiglu
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.launch import dependent_launch, let_successor_start, wait_for_predecessor
from moeray.kernels.mxfp4_half import load_rows, load_tile, tile_product
from moeray.kernels.scaled_rows import HALF_MOST, HalfRows, half_rows


@dataclass(frozen=True, slots=True)
class FewRowsConfig:
    """Shapes of programs: weight rows of one, 16, 32 or 64; its warps, among which each row's
    values are dealt; and for how many of its steps the first kernel asks for the rows before the
    weights, so that products begin with the first weights and not after the last."""

    tile: int = 16
    warps: int = 2
    ahead: int = 0


def config_for(rows: int) -> FewRowsConfig:
    """The configuration measured best on an H200."""
    return FewRowsConfig(ahead=5 if rows == 1 else 4)


def experts_few_rows(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    held: ExpertWeights,
    *,
    halves: HalfRows | None = None,
    config: FewRowsConfig | None = None,
) -> Tensor:
    """``moe.expert_sums`` for 1 to 8 rows; x [R, H]. From 3 on, sorted choices are faster
    (moe_many_rows.py)."""
    rows, top_k = experts.shape
    config = config or config_for(rows)
    chosen = rows * top_k
    columns = held.down.rows
    hidden = torch.empty((chosen, held.down.columns), dtype=torch.float16, device=x.device)
    parts = torch.empty((chosen, columns), dtype=torch.float32, device=x.device)
    out = torch.empty((rows, columns), dtype=torch.float32, device=x.device)
    shared = {
        "R": rows,
        "A": chosen,
        "TOP_K": top_k,
        "CHOSEN": triton.next_power_of_2(chosen),
        "BM": triton.next_power_of_2(rows),
        "BN": config.tile,
        "PARTS": config.warps,
        "GROWN": held.hidden_growth(HALF_MOST),
        "num_warps": config.warps,
        **dependent_launch(),
    }
    _hidden_values[(held.gate_up.rows // config.tile, chosen)](
        *(halves or half_rows(x)),
        experts,
        *held.gate_up,
        held.gate_up_bias,
        hidden,
        held.first_expert,
        held.gate_up.experts,
        held.gate_up.rows,
        held.gate_up.columns,
        LIMIT=held.limit,
        ALPHA=held.alpha,
        AHEAD=config.ahead,
        **shared,
    )
    tiles = columns // config.tile
    _outputs[(tiles, chosen)](
        hidden,
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
    R: tl.constexpr,
    A: tl.constexpr,
    CHOSEN: tl.constexpr,
):
    """What the program of the choice program_id(1) works on.

    Returns (the expert among those held, whether the program works at all, how many choices that
    expert has, and of each choice [CHOSEN] its place among them, or -1). The first choice of an
    expert works for all of them.
    """
    slot = tl.program_id(1)
    choices = tl.arange(0, CHOSEN)
    # Not by way of the L1, which the kernel before may have left as it was.
    own = tl.load(experts_ptr + slot, cache_modifier=".cg").to(tl.int64)
    local = own - first_expert
    works = (local >= 0) & (local < held)
    if R == 1:
        return local, works, 1, tl.where(choices == slot, 0, -1)
    ids = tl.load(experts_ptr + choices, mask=choices < A, other=-1, cache_modifier=".cg")
    same = (ids == own).to(tl.int32)
    earlier = tl.sum(tl.where(choices < slot, same, 0))
    places = tl.where(same == 1, tl.cumsum(same) - 1, -1)
    return local, works & (earlier == 0), tl.sum(same), places


@triton.jit
def _choices(places, BM: tl.constexpr, CHOSEN: tl.constexpr):  # type: ignore[no-untyped-def]
    """An expert's choices [BM], the first one again where it has no more."""
    choices = tl.arange(0, CHOSEN)
    first = tl.sum(tl.where(places == 0, choices, 0))
    own = places[:, None] == tl.arange(0, BM)[None, :]
    return first + tl.sum(tl.where(own, choices[:, None] - first, 0), 0)


@triton.jit
def _columns(choices):  # type: ignore[no-untyped-def]
    """Choices [BM] for the columns of a product, [8]."""
    BM: tl.constexpr = choices.shape[0]
    return tl.reshape(tl.broadcast_to(choices[None, :], (8 // BM, BM)), (8,))


@triton.jit
def _hidden_values(  # type: ignore[no-untyped-def]
    x_ptr,
    x_scales_ptr,
    experts_ptr,
    words_ptr,
    factors_ptr,
    bias_ptr,
    hidden_ptr,
    first_expert,
    held,
    N: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    A: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
    LIMIT: tl.constexpr,
    ALPHA: tl.constexpr,
    AHEAD: tl.constexpr,
    GROWN: tl.constexpr,
):
    wait_for_predecessor()
    # Only now: what the router wrote, the successor reads before this kernel has ended.
    let_successor_start()
    expert, works, count, places = _assignments(experts_ptr, first_expert, held, R, A, CHOSEN)
    if works:
        first = tl.program_id(0) * BN
        choices = _choices(places, BM, CHOSEN)
        rows = choices // TOP_K
        ahead = load_rows(x_ptr, _columns(rows), AHEAD, K, PARTS, BM)
        words, factors = load_tile(
            words_ptr + expert * (N * (K // 4)), factors_ptr + expert * (N * ((K + 127) // 128)),
            first, K, N, BN, PARTS, BM,
        )  # fmt: skip
        sums = tile_product(words, factors, x_ptr, _columns(rows), ahead, K, PARTS, BM)
        scales = tl.load(x_scales_ptr + rows)[None, :]
        some = tl.arange(0, BM) < count
        for s in tl.static_range(BN // 16):
            bias = expert_bias(bias_ptr + expert * N, first + s * 16 + tl.arange(0, 16), N)
            hidden = swiglu(sums[s] * scales + bias, LIMIT, ALPHA) * GROWN
            j = first // 2 + s * 8 + tl.arange(0, 8)[:, None]
            at = hidden_ptr + choices[None, :] * (N // 2) + j
            tl.store(at, hidden.to(tl.float16), mask=some[None, :] & (j >= 0))


@triton.jit
def _outputs(  # type: ignore[no-untyped-def]
    hidden_ptr,
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
    R: tl.constexpr,
    GROUP_EXPERTS: tl.constexpr,
    GROUPS: tl.constexpr,
    A: tl.constexpr,
    TOP_K: tl.constexpr,
    CHOSEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    PARTS: tl.constexpr,
    GROWN: tl.constexpr,
):
    let_successor_start()
    tile = tl.program_id(0)
    n = tile * BN + tl.arange(0, BN)
    expert, works, count, places = _assignments(experts_ptr, first_expert, held, R, A, CHOSEN)
    if works:
        words, factors = load_tile(
            words_ptr + expert * (N * (K // 4)), factors_ptr + expert * (N * ((K + 127) // 128)),
            tile * BN, K, N, BN, PARTS, BM,
        )  # fmt: skip
        choices = _choices(places, BM, CHOSEN)
        wait_for_predecessor()
        sums = tile_product(words, factors, hidden_ptr, _columns(choices), (), K, PARTS, BM)
        some = tl.arange(0, BM) < count
        for s in tl.static_range(BN // 16):
            own = tile * BN + s * 16 + tl.arange(0, 16)
            acc = sums[s] * (1 / GROWN) + expert_bias(bias_ptr + expert * N, own, N)
            at = parts_ptr + choices[None, :] * N + own[:, None]
            tl.store(at, acc, mask=some[None, :] & (own >= 0)[:, None])
    else:
        wait_for_predecessor()
    # All that this program wrote must be seen by the one that takes the last ticket.
    tl.debug_barrier()
    if tl.atomic_add(tickets_ptr + tile, 1, sem="acq_rel") == A - 1:
        tl.store(tickets_ptr + tile, 0)
        RP: tl.constexpr = triton.next_power_of_2(R)
        # A row that is not there does the last one's work again.
        rows = tl.minimum(tl.arange(0, RP), R - 1)
        keep = (rows >= 0)[:, None] & (n < N)[None, :]
        sums = tree_of_groups(
            parts_ptr, experts_ptr, weights_ptr, rows, n, keep, N,
            first_expert // GROUP_EXPERTS, GROUP_EXPERTS, GROUPS,
        )  # fmt: skip
        tl.store(out_ptr + rows[:, None] * N + n[None, :], sums, mask=keep)
