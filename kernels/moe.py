"""The mixture of experts of one layer: what rows get from the experts that a rank holds."""

import torch
from torch import Tensor

from moeray.kernels import moe_few_rows, moe_many_rows
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.routing import HALF_ROWS, Routed
from moeray.kernels.scaled_rows import HalfRows


def expert_sums(x: Tensor, routed: Routed, held: ExpertWeights) -> Tensor:
    """The weighted sum of each row's experts, of those held: [R, H] float32.

    x [R, H] bfloat16; ``routed`` is what ``routing.route`` said of it, with gpt-oss's four experts
    a row, ids among all E. With all experts held it is the layer's output. With some it is a
    subtree sum in the fixed order of ``reference.combine``, so that ``reference.tree_sum`` over the
    ranks' sums has the same bits at any number of ranks. Bitwise the same from run to run.

    Raises ValueError for shapes that do not fit one another.
    """
    experts, weights, scaled = routed
    rows, top_k = experts.shape
    if x.shape != (rows, held.gate_up.columns):
        raise ValueError(f"x: [{rows}, {held.gate_up.columns}] expected, not {tuple(x.shape)}")
    if weights.shape != experts.shape:
        raise ValueError(f"weights: {tuple(experts.shape)} expected, not {tuple(weights.shape)}")
    if top_k != 4:
        raise ValueError(f"experts: 4 of each row expected, not {top_k}")
    if rows == 0:
        return x.new_empty(x.shape, dtype=torch.float32)
    if rows <= HALF_ROWS:
        halves = scaled if isinstance(scaled, HalfRows) else None
        return moe_few_rows.experts_few_rows(x, experts, weights, held, halves=halves)
    return moe_many_rows.experts_many_rows(x, experts, weights, held, scaled=scaled)
