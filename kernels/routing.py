"""Which experts a row goes to: ``route`` is the router, linear layer, top k and softmax."""

from typing import Final, NamedTuple

import torch
import triton
from torch import Tensor
from triton import language as tl

from moeray.kernels.few_rows import load_bias, load_rows, load_weights, row_sums
from moeray.kernels.float8 import FLOAT8_CHOICES, SplitRows, split_row
from moeray.kernels.launch import (
    dependent_launch,
    let_successor_start,
    wait_for_predecessor,
    wide,
)
from moeray.kernels.scaled_rows import HalfRows, half_row

FEW_ROWS: Final = 16
"""Rows up to which each logit is a sum of its own, without tensor cores."""
HALF_ROWS: Final = 2
"""Rows up to which the experts' kernels want them as float16 (moe_few_rows.py)."""
_TILE: Final = 32
"""Of many rows, those of one program."""
_PARTS: Final = 15
_PROGRAMS: Final = 132
"""Of many rows' logits: each row's sum in up to so many parts, as long as there are no more
programs than these, an H200's multiprocessors."""
_CONVERTED: Final = 2
"""Of many rows, those that one program brings into the form that the experts' kernels want."""


class Routed(NamedTuple):
    """What ``route`` says of rows [R, H].

    experts [R, k] int64, best first, equal logits by lowest id; weights [R, k] float32, the softmax
    over those k logits; where H is a multiple of 64, also the rows as the experts' kernels want
    them, who would else make them so: float16 up to ``HALF_ROWS`` and above ``FLOAT8_CHOICES``
    choices an expert, between them two terms each.
    """

    experts: Tensor
    weights: Tensor
    rows: HalfRows | SplitRows | None


def route(
    x: Tensor, weight: Tensor, bias: Tensor, top_k: int, *, tickets: Tensor | None = None
) -> Routed:
    """The k experts of each row of x [R, H], with router weight [E, H] and bias [E].

    x and weight bfloat16, as in the checkpoint: their products are exact in float32, in which they
    are added. k and E are powers of two, E up to 256. ValueError for other shapes.

    ``tickets`` int32 zeros [``FEW_ROWS``], kept between calls on one stream and left zero: with
    them up to FEW_ROWS rows take one kernel, whose last program of a row chooses. Else two.
    """
    experts, (rows, hidden) = weight.shape[0], x.shape
    if hidden != weight.shape[1] or bias.shape != (experts,):
        raise ValueError(f"weight: [{experts}, {hidden}] and bias [{experts}] expected")
    if experts & (experts - 1) or not 16 <= experts <= 256 or top_k & (top_k - 1):
        raise ValueError("weight, top_k: powers of two expected, 16 to 256 experts")
    scaled: HalfRows | SplitRows | None = None
    if rows and hidden % 64 == 0:
        float8 = rows > HALF_ROWS and rows * top_k <= FLOAT8_CHOICES * experts
        scaled = (SplitRows if float8 else HalfRows).empty(rows, hidden, x.device)
    chosen = torch.empty((rows, top_k), dtype=torch.int64, device=x.device)
    weights = torch.empty((rows, top_k), dtype=torch.float32, device=x.device)
    routed = Routed(chosen, weights, scaled)
    if rows > FEW_ROWS:
        _route_many(x, weight, bias, routed)
    elif rows:
        _route_few(x, weight, bias, tickets, routed)
    return routed


def _route_few(
    x: Tensor, weight: Tensor, bias: Tensor, tickets: Tensor | None, routed: Routed
) -> None:
    (rows, hidden), experts, top_k = x.shape, len(weight), routed.experts.shape[1]
    logits = torch.empty((rows, experts), dtype=torch.float32, device=x.device)
    _few_logits[(experts // 4 + 1, rows)](
        x, weight, bias, logits, *routed[:2], *(routed.rows or (None, None)), tickets,
        hidden, experts, 4, top_k, num_warps=4, **dependent_launch(),
    )  # fmt: skip
    if tickets is None:
        _top_k[(rows,)](
            logits, *routed[:2], rows, 1, experts, top_k, 1, num_warps=1, **dependent_launch()
        )


def _route_many(x: Tensor, weight: Tensor, bias: Tensor, routed: Routed) -> None:
    (rows, hidden), experts, top_k = x.shape, len(weight), routed.experts.shape[1]
    tiles = triton.cdiv(rows, _TILE)
    parts = max(1, min(_PARTS, _PROGRAMS // tiles))
    conversions = triton.cdiv(rows, _CONVERTED) if routed.rows else 0
    logits = torch.empty((parts, rows, experts), dtype=torch.float32, device=x.device)
    _many_logits[(tiles * parts + conversions,)](
        x, weight, bias, logits, *(routed.rows or (None, None)), rows, hidden, experts, _TILE,
        parts, _CONVERTED, num_warps=4, **dependent_launch(),
    )  # fmt: skip
    _top_k[(triton.cdiv(rows, 4),)](
        logits, *routed[:2], rows, parts, experts, top_k, 4, num_warps=1, **dependent_launch()
    )


@triton.jit
def _few_logits(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    logits_ptr,
    chosen_ptr,
    weights_ptr,
    scaled_ptr,
    scales_ptr,
    tickets_ptr,
    H: tl.constexpr,
    E: tl.constexpr,
    BE: tl.constexpr,
    TOP_K: tl.constexpr,
):
    """BE logits of one row: the experts' weights once through, without tensor cores.

    One program more than that takes makes the row that the experts' kernels want.
    """
    let_successor_start()
    BLOCK: tl.constexpr = 1024
    row = tl.program_id(1)
    if tl.program_id(0) == E // BE:
        if scaled_ptr is not None:
            wait_for_predecessor()
            _converted(x_ptr, scaled_ptr, scales_ptr, row.to(tl.int64), H)
        return
    expert = tl.program_id(0) * BE + tl.arange(0, BE)
    # No kernel writes the router's weights: they are under way before the rows are there.
    weights = load_weights(weight_ptr, expert, E, H, BLOCK)
    wait_for_predecessor()
    x, scales = load_rows(x_ptr + row * H, (), 0.0, 1, H, BLOCK)
    logits = row_sums(weights, x, scales, 0) + load_bias(bias_ptr, expert, expert < E)
    tl.store(logits_ptr + row * E + expert, logits)
    if tickets_ptr is not None:
        # What this program wrote must be seen by the one that takes the row's last ticket.
        tl.debug_barrier()
        if tl.atomic_add(tickets_ptr + row, 1, sem="acq_rel") == E // BE - 1:
            tl.store(tickets_ptr + row, 0)
            whole = tl.load(logits_ptr + row * E + tl.arange(0, E))[None, :]
            _choose(whole, chosen_ptr, weights_ptr, row + tl.arange(0, 1), TOP_K)


@triton.jit
def _converted(x_ptr, scaled_ptr, scales_ptr, row, H: tl.constexpr):  # type: ignore[no-untyped-def]
    """Row ``row`` of x as the experts' kernels want it, if they do."""
    if scaled_ptr is not None:
        if scaled_ptr.dtype.element_ty == tl.float16:
            half_row(x_ptr, scaled_ptr, scales_ptr, row, H)
        else:
            split_row(x_ptr, scaled_ptr, scales_ptr, row, H)


@triton.jit
def _many_logits(  # type: ignore[no-untyped-def]
    x_ptr,
    weight_ptr,
    bias_ptr,
    logits_ptr,
    scaled_ptr,
    scales_ptr,
    rows,
    H: tl.constexpr,
    E: tl.constexpr,
    BR: tl.constexpr,
    PARTS: tl.constexpr,
    CONVERTED: tl.constexpr,
):
    """All logits of BR rows, on tensor cores: their sums over one of PARTS parts of the inputs.

    Programs beyond those that this takes convert CONVERTED rows each.
    """
    let_successor_start()
    BLOCK: tl.constexpr = 64
    STEPS: tl.constexpr = (H + BLOCK - 1) // BLOCK
    tiles = (rows + BR - 1) // BR
    tile, part = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    wait_for_predecessor()
    if part >= PARTS:
        first = (tl.program_id(0) - tiles * PARTS) * CONVERTED
        for i in tl.static_range(CONVERTED):
            # A row that is not there does the last one's work again.
            row = tl.minimum(first + i, rows - 1).to(tl.int64)
            _converted(x_ptr, scaled_ptr, scales_ptr, row, H)
        return
    expert = tl.arange(0, E)
    row = tile * BR + tl.arange(0, BR)
    some = row < rows
    total = tl.zeros((BR, E), tl.float32)
    for step in tl.range(part * STEPS // PARTS, (part + 1) * STEPS // PARTS, num_stages=4):
        k = step * BLOCK + tl.arange(0, BLOCK)
        keep = some[:, None] & (k < H)[None, :]
        x = wide(tl.load(x_ptr + row[:, None] * H + k[None, :], mask=keep, other=0.0))
        weight_at = weight_ptr + expert[None, :] * H + k[:, None]
        weight = wide(tl.load(weight_at, mask=(k < H)[:, None], other=0.0))
        total = tl.dot(x, weight, total)
    if part == 0:
        total += wide(tl.load(bias_ptr + expert)).to(tl.float32)[None, :]
    at = logits_ptr + (part * rows + row)[:, None] * E + expert[None, :]
    tl.store(at, total, mask=some[:, None])


@triton.jit
def _top_k(  # type: ignore[no-untyped-def]
    logits_ptr,
    chosen_ptr,
    weights_ptr,
    rows,
    PARTS: tl.constexpr,
    E: tl.constexpr,
    TOP_K: tl.constexpr,
    BR: tl.constexpr,
):
    let_successor_start()
    wait_for_predecessor()
    # A row that is not there does the last one's work again.
    row = tl.minimum(tl.program_id(0) * BR + tl.arange(0, BR), rows - 1)
    at = logits_ptr + row[:, None] * E + tl.arange(0, E)[None, :]
    logits = tl.load(at)
    for part in tl.static_range(1, PARTS):
        logits += tl.load(at + part * rows * E)
    _choose(logits, chosen_ptr, weights_ptr, row, TOP_K)


@triton.jit
def _choose(logits, chosen_ptr, weights_ptr, row, TOP_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The experts of rows [BR] and their weights, from the logits [BR, E]."""
    BR: tl.constexpr = logits.shape[0]
    E: tl.constexpr = logits.shape[1]
    expert = tl.arange(0, E)
    slots = tl.arange(0, TOP_K)
    chosen = tl.zeros((BR, TOP_K), tl.int32)
    best = tl.zeros((BR, TOP_K), tl.float32)
    for p in tl.static_range(TOP_K):
        greatest = tl.max(logits, 1)
        first = tl.min(tl.where(logits == greatest[:, None], expert[None, :], E), 1)
        chosen = tl.where(slots[None, :] == p, first[:, None], chosen)
        best = tl.where(slots[None, :] == p, greatest[:, None], best)
        logits = tl.where(expert[None, :] == first[:, None], float("-inf"), logits)
    shares = tl.exp(best - tl.max(best, 1)[:, None])
    # One after another: the order of a sum over the row would depend on how threads share it.
    total = tl.zeros((BR,), tl.float32)
    for p in tl.static_range(TOP_K):
        total += tl.sum(tl.where(slots[None, :] == p, shares, 0.0), 1)
    shares = shares / total[:, None]
    places = row[:, None] * TOP_K + slots[None, :]
    tl.store(chosen_ptr + places, chosen.to(tl.int64))
    tl.store(weights_ptr + places, shares)
