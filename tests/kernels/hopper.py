"""Compiles kernels for Hopper, on a machine without a GPU, and says what came out.

Run as ``python -m tests.kernels.hopper`` without TRITON_INTERPRET: prints a JSON object with, for
each kernel, its registers, what it spilled, and its tensor-core instructions.
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moeray.kernels.linear import _tensor_core_kernel
from moeray.kernels.moe_few_rows import _hidden_values
from moeray.kernels.moe_many_rows import _grouped_product

HOPPER = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    "x_ptr": "*fp8e4nv",
    "x_scales_ptr": "*fp32",
    "scales_ptr": "*fp32",
    "experts_ptr": "*i64",
    "words_ptr": "*i16",
    "factors_ptr": "*i32",
    "bias_ptr": "*bf16",
    "hidden_ptr": "*fp16",
    "out_ptr": "*fp8e4nv",
    "out_scales_ptr": "*fp32",
    "choices_ptr": "*i32",
    "expert_ptr": "*i32",
    "begin_ptr": "*i32",
    "count_ptr": "*i32",
    "first_expert": "i32",
    "held": "i32",
    "weight_ptr": "*bf16",
    "out_features": "i32",
    "rows": "i32",
}
BFLOAT16 = {"x_ptr": "*bf16", "out_ptr": "*bf16"}
FLOAT16 = {"x_ptr": "*fp16"}
SHARED = {"N": 5760, "K": 2880, "LIMIT": 7.0, "ALPHA": 1.702, "GROWN": 8.0}
FEW = SHARED | {"A": 4, "TOP_K": 4, "CHOSEN": 4, "R": 1, "BM": 1, "BN": 16, "PARTS": 2}
MANY = SHARED | {"DIVIDE": 4, "GATED": True, "BN": 128}
NO_SCALES = {"scales_ptr": None, "out_scales_ptr": None}
LINEAR = {"IN": 2880, "OUTPUTS": 8, "INPUTS": 128, "PARTS": 4}
NO_VECTORS = {"bias_ptr": None, "residual_ptr": None}
KERNELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "few rows": (_hidden_values, FEW, 2),
    "16 rows": (_grouped_product, MANY | {"BM": 16, "LEAST": 8, "CHUNKS": 2, "STAGES": 4}, 4),
    "256 rows": (
        _grouped_product,
        MANY | NO_SCALES | {"BM": 256, "LEAST": 64, "CHUNKS": 2, "STAGES": 3},
        8,
    ),
    "linear": (_tensor_core_kernel, LINEAR | NO_VECTORS, 4),
}
"""Kernel, constants, warps."""


def compiled(kernel: Any, constants: dict[str, Any], warps: int) -> dict[str, int]:
    float8 = kernel is _grouped_product and "scales_ptr" not in constants
    types = TYPES | (FLOAT16 if kernel is _hidden_values else {} if float8 else BFLOAT16)
    signature = {
        name: "constexpr" if name in constants else types[name] for name in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": warps, "launch_pdl": True}
    cubin = triton.compile(source, target=HOPPER, options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "spills": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "from registers": len(re.findall(r"(?:GMMA\.\S+ R\d+, R\d+, gdesc|HMMA)", code)),
        "barriers": len(re.findall(r"\bBAR\.", code)),
        "from shared memory": len(re.findall(r"GMMA\.\S+ R\d+, gdesc", code)),
    }


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


if __name__ == "__main__":
    print(json.dumps({name: compiled(*kernel) for name, kernel in KERNELS.items()}))
