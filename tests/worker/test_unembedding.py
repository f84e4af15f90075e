"""The unembedding with its repeated rows computed once is the whole one."""

import pytest
import torch
from torch.nn import functional as F

from moeray.worker.unembedding import Unembedding


@pytest.mark.parametrize("distinct", [0, 1, 7, 30, 49, 50])
def test_logits_are_those_of_the_whole_matrix(distinct: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16).repeat(51, 1)
    chosen = torch.randperm(50)[:distinct]
    weight[chosen] = torch.randn(distinct, 16)
    unembedding = Unembedding.of(weight)
    hidden = torch.randn(5, 16)
    torch.testing.assert_close(unembedding(hidden), F.linear(hidden, weight), rtol=1e-5, atol=1e-5)
    # The last row repeats, so it is stored once where most rows are like it.
    assert len(unembedding.rows) == (distinct + 1 if 2 * distinct <= 51 else 51)


def test_logits_are_float32_in_any_model() -> None:
    weight = torch.zeros(6, 4, dtype=torch.bfloat16)
    assert Unembedding.of(weight)(torch.zeros(2, 4, dtype=torch.bfloat16)).dtype is torch.float32
