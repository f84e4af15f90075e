"""Rows as two e4m3 terms: how near they come, and where each value stands."""

import pytest
import torch
from torch import Tensor

from moeray.kernels.float8 import SplitRows, split_rows
from tests.kernels.op_cases import Draw


def joined(split: SplitRows) -> Tensor:
    """The rows that the terms stand for."""
    blocks = split.terms.float().sum(2)
    # Byte 2 q + j of a block has its value 16 j + q.
    rows = blocks.unflatten(2, (16, 2)).transpose(2, 3).flatten(1)
    return rows * split.scales[:, None]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 3e4, 1e30])
def test_two_terms_hold_a_row(device: torch.device, scale: float) -> None:
    draw = Draw.of("terms", device)
    x = draw.normal(5, 160, scale=scale, dtype=draw.bfloat16)
    x[1, 7] *= 500
    x[2, 1:] = 0
    x[3] = 0
    most = x.abs().amax(1, keepdim=True).float()
    off = (joined(split_rows(x)) - x.float()).abs()
    # A bfloat16's last place of the value, or 18 places below the row's greatest.
    assert (off <= torch.maximum(x.abs().float() * 2**-8, most * 2**-17)).all()
    assert torch.equal(joined(split_rows(x))[3], torch.zeros_like(most.expand(-1, 160)[3]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spoils_its_row_only(device: torch.device, value: float) -> None:
    draw = Draw.of("nan", device)
    x = draw.normal(2, 64, dtype=draw.bfloat16)
    x[0, 3] = value
    rows = joined(split_rows(x))
    assert rows[0].isnan().all()
    assert not rows[1].isnan().any()
