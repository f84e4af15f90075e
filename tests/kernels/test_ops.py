"""Every kernel against its reference: one test, on the GPU also at full size, else interpreted."""

import pytest
import torch

from tests.kernels import attention_cases, dense_cases, moe_cases, token_cases
from tests.kernels.op_cases import OpCase

CASES: tuple[OpCase, ...] = (
    *attention_cases.CASES,
    *dense_cases.CASES,
    *moe_cases.CASES,
    *token_cases.CASES,
)
FULL_SIZE = [
    pytest.param(case, marks=pytest.mark.gpu) if case.full_size else case for case in CASES
]


@pytest.mark.parametrize("case", FULL_SIZE, ids=str)
@pytest.mark.usefixtures("poisoned")
def test_op_equals_reference(case: OpCase, device: torch.device) -> None:
    if case.full_size and device.type == "cpu":
        pytest.skip("at full size on a GPU only")
    case.check(device)
