"""What the interpreter cannot show: that the kernels compile for Hopper as they are meant to."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

CASES = (
    "experts-few-20b-1-16-2-5",
    "experts-many-20b-17-spread",
    "experts-many-20b-100-spread",
    "experts-many-20b-400-spread",
    "experts-many-20b-1023-spread",
    "experts-many-20b-8192",
    "linear-3x2880-5120",
    "qkv_projection-64-64-2",
    "route-20b-17",
    "decode-full-16-gpt-oss",
    "prefill-full-16-gpt-oss",
)

Kernels = dict[tuple[str, str], list[dict[str, Any]]]
"""What was compiled, by case and name of the kernel."""


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    """In a process of its own: here kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.hopper", *CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: Kernels = {}
    for kernel in json.loads(done.stdout):
        found.setdefault((kernel["case"], kernel["kernel"]), []).append(kernel)
    return found


def test_each_case_launches_kernels_of_its_own(kernels: Kernels) -> None:
    assert {case for case, _ in kernels} == set(CASES)


def test_registers_hold_what_kernels_work_on(kernels: Kernels) -> None:
    for name, variants in kernels.items():
        assert all(variant["spills"] == 0 for variant in variants), name


def test_no_product_loses_its_first_operand(kernels: Kernels) -> None:
    for name, variants in kernels.items():
        assert all(variant["overwriting"] == 0 for variant in variants), name


@pytest.mark.parametrize(
    ("rows", "programs"),
    [
        ("17-spread", 4),
        ("100-spread", 3),
        ("400-spread", 3),
        ("1023-spread", 2),
        ("8192", 2),
    ],
)
def test_programs_fit_on_a_multiprocessor(kernels: Kernels, rows: str, programs: int) -> None:
    """Of 64 Ki registers, which warps get in steps of 8 a thread, and 228 KiB of shared memory."""
    for variant in kernels[f"experts-many-20b-{rows}", "_grouped_product"]:
        assert programs * 128 * (-(-variant["registers"] // 8) * 8) <= 2**16
        assert programs * (variant["shared_bytes"] + 1024) <= 228 * 2**10


@pytest.mark.parametrize(
    ("case", "kernel"),
    [
        ("experts-few-20b-1-16-2-5", "_hidden_values"),
        ("experts-few-20b-1-16-2-5", "_outputs"),
        ("experts-many-20b-17-spread", "_grouped_product"),
        ("experts-many-20b-400-spread", "_grouped_product"),
        ("experts-many-20b-1023-spread", "_grouped_product"),
        ("linear-3x2880-5120", "_tensor_core_kernel"),
    ],
)
def test_weights_go_from_registers_to_tensor_cores(
    kernels: Kernels, case: str, kernel: str
) -> None:
    for variant in kernels[case, kernel]:
        assert variant["products_from_shared_memory"] == 0
        assert variant["products_from_registers"] > 0


def test_no_weight_goes_to_another_thread(kernels: Kernels) -> None:
    """After all loads only sums do."""
    (hidden_values,) = kernels["experts-few-20b-1-16-2-5", "_hidden_values"]
    assert hidden_values["barriers"] <= 3
    (linear,) = kernels["linear-3x2880-5120", "_tensor_core_kernel"]
    assert linear["barriers"] <= 6
