"""Rows as float16 and a power of two, and the rows that the router makes."""

import pytest
import torch
from torch import Tensor

from moeray.kernels.float8 import split_rows
from moeray.kernels.routing import HALF_ROWS, route
from moeray.kernels.scaled_rows import HalfRows, half_rows
from tests.kernels.op_cases import Draw


def joined(halves: HalfRows) -> Tensor:
    """float64 [R, K]."""
    return halves.values.double() * halves.scales[:, None].double()


def test_bfloat16_stays_what_it_was(device: torch.device) -> None:
    draw = Draw.of("halves", device)
    x = draw.normal(5, 192, dtype=draw.bfloat16)
    x[1] *= 2**20
    x[2] *= 2**-100
    x[3] = 0
    x[4, 7] = 3000
    x = x.bfloat16()
    halves = half_rows(x.to(draw.bfloat16))
    most = x.abs().amax(1, keepdim=True).double()
    exact = (x.abs() >= most * 2**-31) | (x == 0)
    assert exact.any(1).all()
    assert torch.equal(joined(halves)[exact], x.double()[exact])
    assert (torch.frexp(halves.scales)[0].abs() == 0.5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_spoils_its_row_only(device: torch.device, value: float) -> None:
    draw = Draw.of("nan", device)
    x = draw.normal(2, 64, dtype=draw.bfloat16)
    x[0, 3] = value
    rows = joined(half_rows(x))
    assert rows[0].isnan().all()
    assert not rows[1].isnan().any()


@pytest.mark.parametrize("rows", [1, 2, 3, 17, 40, 41])
def test_the_router_makes_the_rows_that_experts_want(device: torch.device, rows: int) -> None:
    draw = Draw.of("router", device)
    x = draw.normal(rows, 192, dtype=draw.bfloat16)
    router = draw.normal(16, 192, dtype=draw.bfloat16)
    made = route(x, router, router[:, 0].contiguous(), 4).rows
    # 40 rows are 10 choices an expert.
    alone = split_rows(x) if HALF_ROWS < rows <= 40 else half_rows(x)
    assert made is not None
    assert type(made) is type(alone)
    assert torch.equal(made[0].view(torch.uint8), alone[0].view(torch.uint8))
    assert torch.equal(made.scales, alone.scales)


def test_rows_of_no_whole_chunks_are_left_alone(device: torch.device) -> None:
    """No packed weights could take them."""
    draw = Draw.of("odd", device)
    router = draw.normal(16, 72, dtype=draw.bfloat16)
    x = draw.normal(2, 72, dtype=draw.bfloat16)
    assert route(x, router, router[:, 0].contiguous(), 4).rows is None
