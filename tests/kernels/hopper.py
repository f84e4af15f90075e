"""Compiles what ops launch for Hopper, on a machine without a GPU, and says what came out.

``python -m tests.kernels.hopper [NAME ...]`` without TRITON_INTERPRET: the cases of ``test_ops.py``
whose names begin so, by default all of full size. Prints a JSON list with, for each kernel that no
case before has launched with these types and constants, its registers, instructions and barriers,
what it spilled, and where its tensor-core instructions have their first operands.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from moeray.kernels import attention_decode
from tests.kernels.op_cases import Draw
from tests.kernels.pending_products import overwriting
from tests.kernels.test_ops import CASES

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPROCESSORS = 132
"""Of an H200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel, compiled; counts are of instructions but for registers and bytes."""

    case: str
    kernel: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    spills: int
    barriers: int
    products_from_registers: int
    products_from_shared_memory: int
    overwriting: int
    """That write what a product still reads."""


class Hopper:
    """A driver that knows its chip, and has none."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Zeros(Draw):
    """Tensors of the right shapes and dtypes, whose memory nobody touches."""

    @property
    def bfloat16(self) -> torch.dtype:
        return torch.bfloat16

    def normal(
        self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def integers(
        self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32
    ) -> Tensor:
        return torch.zeros(shape, dtype=dtype)


@contextmanager
def compiling() -> Iterator[dict[str, tuple[str, CompiledKernel]]]:
    """Inside it launches compile and do nothing else: kernel names and kernels, by hash."""
    launched: dict[str, tuple[str, CompiledKernel]] = {}
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, **options: Any) -> CompiledKernel:
        kernel = run(self, *arguments, **options | {"warmup": True})
        launched[kernel.hash] = self.fn.__name__, kernel
        return kernel

    driver.set_active(Hopper())
    with (
        patch.object(JITFunction, "run", compile_only),
        patch.object(attention_decode, "_multiprocessors", lambda device: MULTIPROCESSORS),
    ):
        yield launched


def compiled(prefixes: tuple[str, ...]) -> Iterator[Compiled]:
    draw = Zeros.of("", torch.device("cpu"))
    chosen = [
        case for case in CASES if (case.name.startswith(prefixes) if prefixes else case.full_size)
    ]
    with compiling() as launched:
        for case in chosen:
            known = len(launched)
            case.op(**case.arguments(draw))
            for name, kernel in list(launched.values())[known:]:
                yield _described(case.name, name, kernel)


def _described(case: str, name: str, kernel: CompiledKernel) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    from_shared_memory = len(re.findall(r"GMMA\.\S+ R\d+, gdesc", code))
    return Compiled(
        case=case,
        kernel=name,
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_bytes=kernel.metadata.shared,
        instructions=len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", code, re.MULTILINE)),
        spills=len(re.findall(r"\b(?:LDL|STL)\b", code)),
        barriers=len(re.findall(r"\bBAR\.", code)),
        products_from_registers=len(re.findall(r"(?:GMMA\.\S+ R\d+, R\d+, gdesc|HMMA)", code)),
        products_from_shared_memory=from_shared_memory,
        overwriting=len(overwriting(code)),
    )


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="how names of cases begin")
    names = tuple(parser.parse_args().names)
    print(json.dumps([asdict(kernel) for kernel in compiled(names)], indent=1))


if __name__ == "__main__":
    main()
