"""The experts' outputs add up in one order, bit for bit, whatever the number of ranks."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeray.kernels import reference as ops

GROUPS = 8


def _case(seed: int, experts_in_all: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs over many orders of magnitude, so that any other order of additions shows."""
    generator = torch.Generator().manual_seed(seed)
    rows, hidden = 40, 24
    outputs = torch.randn(rows, top_k, hidden, generator=generator)
    outputs *= 10.0 ** torch.randint(-4, 5, outputs.shape, generator=generator)
    experts = torch.stack(
        [torch.randperm(experts_in_all, generator=generator)[:top_k] for _ in range(rows)]
    )
    weights = torch.rand(rows, top_k, generator=generator).softmax(-1)
    return outputs, experts, weights


def _by_hand(outputs: Tensor, experts: Tensor, weights: Tensor, each: int) -> NDArray[np.float32]:
    """The rule in scalars: expert order inside a group, then the pairs, the fours, the eight."""
    rows, top_k, hidden = outputs.shape
    sums = np.zeros((GROUPS, rows, hidden), np.float32)
    for row in range(rows):
        for slot in sorted(range(top_k), key=lambda s: int(experts[row, s])):
            term = np.float32(weights[row, slot]) * outputs[row, slot].numpy()
            sums[int(experts[row, slot]) // each, row] += term
    s = sums
    return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))


@pytest.mark.parametrize(("experts_in_all", "top_k"), [(32, 4), (128, 4), (8, 8), (32, 16)])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_same_bits_at_any_number_of_ranks(ranks: int, experts_in_all: int, top_k: int) -> None:
    outputs, experts, weights = _case(ranks, experts_in_all, top_k)
    each, share = experts_in_all // GROUPS, GROUPS // ranks
    parts = []
    for rank in range(ranks):
        first, last = rank * share, (rank + 1) * share
        held = (experts >= first * each) & (experts < last * each)
        parts.append(
            ops.combine(
                outputs * held[..., None],
                experts,
                weights,
                group_experts=each,
                first=first,
                last=last,
            )
        )
    got = ops.tree_sum(torch.stack(parts))
    assert got.dtype == torch.float32
    assert np.array_equal(got.numpy(), _by_hand(outputs, experts, weights, each))


def test_other_orders_differ() -> None:
    """What the test above guards against does happen with these numbers."""
    outputs, experts, weights = _case(0, 32, 4)
    fixed = ops.combine(outputs, experts, weights, group_experts=4, first=0, last=8)
    plain = (outputs * weights[..., None]).sum(1)
    assert not torch.equal(fixed, plain)
    torch.testing.assert_close(fixed, plain, rtol=1e-3, atol=1e-2)


def test_rows_do_not_see_each_other() -> None:
    outputs, experts, weights = _case(3, 32, 4)
    whole = ops.combine(outputs, experts, weights, group_experts=4, first=2, last=4)
    one = ops.combine(outputs[7:8], experts[7:8], weights[7:8], group_experts=4, first=2, last=4)
    assert torch.equal(whole[7:8], one)
