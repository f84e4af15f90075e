"""OpenAI's triton_kernels as a peer of the MoE layer, in the copy that vLLM 0.24's wheel holds.

(The package of that name on PyPI is something else.) The calls are those that vLLM makes of it for
gpt-oss on Hopper: swizzled values and scales, no split along K.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "triton_kernels"


@cache
def available() -> bool:
    """Whether vLLM's wheel is installed; makes ``triton_kernels`` importable."""
    vllm = find_spec("vllm")
    if vllm is None or not vllm.submodule_search_locations:
        return False
    (folder,) = vllm.submodule_search_locations
    package = Path(folder) / "third_party" / NAME
    if NAME not in sys.modules:
        spec = spec_from_file_location(
            NAME, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
    return True


def moe_layer(
    gate_up: tuple[Tensor, Tensor, Tensor],
    down: tuple[Tensor, Tensor, Tensor],
    router: tuple[Tensor, Tensor],
    *,
    top_k: int,
    limit: float,
    alpha: float,
) -> Callable[[Tensor], Tensor]:
    """A layer over a checkpoint's (blocks, scales, bias) of both products, as a function of x."""
    ogs = _module("matmul_ogs")
    routing = _module("routing").routing
    act = ogs.FusedActivation(
        ogs.FnSpecs("swiglu", _module("swiglu").swiglu_fn, ("alpha", "limit")), (alpha, limit), 2
    )
    first, second = _weight(*gate_up), _weight(*down)

    def layer(x: Tensor) -> Tensor:
        data, gather, scatter = routing(F.linear(x, *router), top_k)
        hidden = ogs.matmul_ogs(
            x,
            first[0],
            first[1],
            data,
            gather_indx=gather,
            precision_config=first[2],
            fused_activation=act,
        )
        return ogs.matmul_ogs(  # type: ignore[no-any-return]
            hidden,
            second[0],
            second[1],
            data,
            scatter_indx=scatter,
            precision_config=second[2],
            gammas=data.gate_scal,
        )

    return layer


def _weight(blocks: Tensor, scales: Tensor, bias: Tensor) -> tuple[Any, Tensor, Any]:
    tensor, layout = _module("tensor"), _module("tensor_details.layout")
    _module("matmul_ogs_details.opt_flags").update_opt_flags_constraints({"split_k": 1})
    value_layout, value_options = layout.make_default_matmul_mxfp4_w_layout(mx_axis=1)
    scale_layout, scale_options = layout.make_default_matmul_mxfp4_w_scale_layout(
        mx_axis=1, num_warps=8
    )
    values = tensor.wrap_torch_tensor(blocks.flatten(-2).transpose(1, 2), dtype=tensor.FP4)
    values = tensor.convert_layout(values, value_layout, **value_options)
    shared = tensor.wrap_torch_tensor(scales.transpose(1, 2))
    shared = tensor.convert_layout(shared, scale_layout, **scale_options)
    precision = _module("matmul_ogs").PrecisionConfig(weight_scale=shared)
    return values, bias.to(torch.float32), precision


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{NAME}.{name}")
