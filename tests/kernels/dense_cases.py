"""Cases of what surrounds attention and experts: norms, linear layers of few rows, QKV."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moeray.kernels import fused_reference, linear, norm, qkv, qkv_projection, reference
from moeray.kernels.launch import INTERPRETED
from moeray.kernels.linear import LinearConfig
from moeray.kernels.norm import NormConfig
from moeray.kernels.qkv import RopeWriteConfig
from tests.kernels.op_cases import BFLOAT16_ERROR, Draw, OpCase, Outputs

EPS = 1e-5
FLOAT8_ERROR = 3e-2
"""What bfloat16's error costs where it moves a value to a neighbour among float8's."""
CUT_ERROR = 1e-2
"""What it costs that Triton's interpreter cuts off, twice, what bfloat16 should round."""
MULTIPLY_ADD = LinearConfig(tensor_cores=False, outputs=4, inputs=64, warps=4, programs=3)
ALL_AT_ONCE = LinearConfig(tensor_cores=False, outputs=16, inputs=256, warps=4)
EIGHT_OUTPUTS = LinearConfig(tensor_cores=True, outputs=8, inputs=64, warps=2)
TENSOR_CORES = LinearConfig(tensor_cores=True, outputs=16, inputs=128, warps=4)
ONE_WARP = LinearConfig(tensor_cores=True, outputs=16, inputs=64, warps=1, registers=128)


def _norm_cases(rows: int, hidden: int, config: NormConfig | None = None) -> list[OpCase]:
    def arguments(draw: Draw) -> dict[str, Any]:
        x = draw.normal(rows, hidden)
        return {"x": x, "weight": draw.normal(hidden), "eps": EPS}

    def with_residual(draw: Draw) -> dict[str, Any]:
        return {**arguments(draw), "residual": draw.normal(rows, hidden, scale=30.0)}

    size = {"full_size": hidden > 192}
    name = f"{rows}x{hidden}{'-' + str(config.rows) if config else ''}"
    return [
        OpCase(
            name=f"rms_norm-{name}",
            op=partial(norm.rms_norm, config=config),
            reference=reference.rms_norm,
            arguments=arguments,
            **size,
        ),
        OpCase(
            name=f"add_rms_norm-{name}",
            op=partial(norm.add_rms_norm, config=config),
            reference=fused_reference.add_rms_norm,
            arguments=with_residual,
            **size,
        ),
    ]


def _linear_cases(
    rows: int,
    in_features: int,
    out_features: int,
    config: LinearConfig | None = None,
    *,
    wide: bool = False,
    bare: bool = False,
) -> list[OpCase]:
    """``wide``: float32 outputs; ``bare``: without bias and residual."""

    def common(draw: Draw) -> dict[str, Any]:
        return {
            "x": draw.normal(rows, in_features),
            "weight": draw.normal(out_features, in_features, scale=in_features**-0.5),
            "bias": None if bare else draw.normal(out_features),
            "out_dtype": torch.float32 if wide else draw.bfloat16,
        }

    def plain(draw: Draw) -> dict[str, Any]:
        residual = None if bare else draw.normal(rows, out_features)
        return {**common(draw), "residual": residual}

    def normed(draw: Draw) -> dict[str, Any]:
        # Far from norm 1, so that the scale matters.
        given = common(draw)
        gain = draw.normal(in_features)
        return {**given, "x": given["x"] * 40, "norm_weight": gain, "eps": EPS}

    kind = "" if config is None else "-dot" if config.tensor_cores else "-fma"
    name = f"{rows}x{in_features}-{out_features}{kind}{'-bare' if bare else ''}"
    size = {"full_size": in_features > 192}
    return [
        OpCase(
            name=f"linear-{name}",
            op=partial(linear.linear, config=config),
            reference=fused_reference.linear,
            arguments=plain,
            **size,
        ),
        OpCase(
            name=f"norm_linear-{name}",
            op=partial(linear.norm_linear, config=config),
            reference=fused_reference.norm_linear,
            arguments=normed,
            **size,
        ),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Dimensions of attention."""

    hidden: int
    queries: int
    kv: int
    dim: int

    @property
    def width(self) -> int:
        return (self.queries + 2 * self.kv) * self.dim


TINY = Heads(hidden=192, queries=8, kv=4, dim=32)
ODD = Heads(hidden=72, queries=6, kv=2, dim=16)
GPT_OSS = Heads(hidden=2880, queries=64, kv=8, dim=64)


def cache_arguments(draw: Draw, heads: Heads, rows: int, *, float8: bool) -> dict[str, Any]:
    """Tables and caches, and distinct slots in no order; every other slot holds something else."""
    block_tokens = 16
    blocks = 2 + rows // 8
    slots = draw.permutation(blocks * block_tokens)[:rows]
    inverse = torch.rand(heads.dim // 2, generator=draw.generator).to(draw.device)
    cosine, sine = reference.rope_tables(draw.integers(0, 4000, rows), inverse, 1.25)
    dtype = torch.float8_e4m3fn if float8 else torch.bfloat16
    shape = (blocks, block_tokens, heads.kv, heads.dim)
    given = {
        "cosine": cosine,
        "sine": sine,
        "key_cache": draw.normal(*shape, dtype=dtype),
        "value_cache": draw.normal(*shape, dtype=dtype),
        "slots": slots,
        "query_heads": heads.queries,
    }
    if float8:
        for name in ("key_scales", "value_scales"):
            given[name] = draw.normal(*shape[:3], dtype=torch.float32)
    return given


def _written(op: Callable[..., Tensor]) -> Callable[..., Outputs]:
    """Returns also what it wrote into the caches, then what it left there."""

    def called(**arguments: Any) -> Outputs:
        queries = op(**arguments)
        slots = arguments["slots"]
        written: list[Tensor] = []
        left: list[Tensor] = []
        for name in ("key_cache", "value_cache", "key_scales", "value_scales"):
            if arguments.get(name) is not None:
                rows = arguments[name].flatten(0, 1).double()
                others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
                others[slots] = False
                written.append(rows[slots])
                left.append(rows[others])
        return (queries, *written, *left)

    return called


def _rope_write_case(
    heads: Heads, rows: int, *, bias: bool, float8: bool = False, at_once: int = 4
) -> OpCase:
    def arguments(draw: Draw) -> dict[str, Any]:
        qkv_rows = draw.normal(rows, heads.width)
        # A head of zeros has the scale 1.
        qkv_rows[:1, -heads.dim :] = 0
        return {
            "qkv": qkv_rows,
            "bias": draw.normal(heads.width) if bias else None,
            **cache_arguments(draw, heads, rows, float8=float8),
        }

    config = RopeWriteConfig(rows=at_once)
    return OpCase(
        name=f"qkv_rope_write-{heads.queries}-{heads.dim}-{rows}{'-bias' if bias else ''}"
        f"{'-float8' if float8 else ''}",
        op=_written(partial(qkv.qkv_rope_write, config=config)),
        reference=_written(fused_reference.qkv_rope_write),
        arguments=arguments,
        full_size=heads is GPT_OSS,
        **({"error": FLOAT8_ERROR} if float8 else {}),
    )


def _projection_case(
    heads: Heads, rows: int, config: LinearConfig | None = None, *, float8: bool = False
) -> OpCase:
    def arguments(draw: Draw) -> dict[str, Any]:
        return {
            "x": draw.normal(rows, heads.hidden, scale=40.0),
            "norm_weight": draw.normal(heads.hidden),
            "eps": EPS,
            "weight": draw.normal(heads.width, heads.hidden, scale=heads.hidden**-0.5),
            "bias": draw.normal(heads.width),
            **cache_arguments(draw, heads, rows, float8=float8),
        }

    error = CUT_ERROR if INTERPRETED.value and rows > 1 else BFLOAT16_ERROR
    kind = "" if config is None else "-dot" if config.tensor_cores else "-fma"
    return OpCase(
        name=f"qkv_projection-{heads.queries}-{heads.dim}-{rows}{kind}"
        f"{'-float8' if float8 else ''}",
        op=_written(partial(qkv_projection.qkv_projection, config=config)),
        reference=_written(fused_reference.qkv_projection),
        arguments=arguments,
        full_size=heads is GPT_OSS,
        error=FLOAT8_ERROR if float8 else error,
    )


CASES: tuple[OpCase, ...] = (
    *_norm_cases(1, 192),
    *_norm_cases(5, 33, NormConfig(rows=2, warps=4)),
    *(case for rows in (1, 8, 257, 1025, 8192) for case in _norm_cases(rows, 2880)),
    *_linear_cases(1, 192, 50),
    *_linear_cases(1, 184, 33, MULTIPLY_ADD),
    *_linear_cases(2, 184, 33, MULTIPLY_ADD),
    *_linear_cases(1, 72, 7, TENSOR_CORES, bare=True),
    *_linear_cases(2, 184, 33),
    *_linear_cases(3, 96, 40, wide=True),
    *_linear_cases(8, 184, 33, TENSOR_CORES),
    *_linear_cases(5, 104, 41, EIGHT_OUTPUTS),
    *_linear_cases(2, 96, 24, ONE_WARP),
    *_linear_cases(4, 8, 9, ONE_WARP, bare=True),
    *_linear_cases(7, 192, 48),
    *_linear_cases(8, 40, 23),
    *(case for rows in range(1, 9) for case in _linear_cases(rows, 2880, 5120)),
    *(case for rows in (1, 2, 5, 8) for case in _linear_cases(rows, 4096, 2880)),
    *_linear_cases(2, 4104, 3173),
    *_linear_cases(8, 2888, 5124),
    *_linear_cases(1, 2880, 201088, wide=True, bare=True),
    *(
        case
        for rows in (2, 4, 8)
        for case in _linear_cases(rows, 2880, 2**15 + 8, wide=True, bare=True)
    ),
    _rope_write_case(TINY, 5, bias=True),
    _rope_write_case(ODD, 3, bias=False, at_once=2),
    _rope_write_case(TINY, 3, bias=False, float8=True),
    *(_rope_write_case(GPT_OSS, rows, bias=True) for rows in (1, 8, 1023, 8192)),
    *(_rope_write_case(GPT_OSS, rows, bias=False, float8=True) for rows in (1, 77)),
    _projection_case(TINY, 1, ALL_AT_ONCE),
    _projection_case(ODD, 2, ALL_AT_ONCE),
    _projection_case(ODD, 3, TENSOR_CORES),
    _projection_case(ODD, 8, EIGHT_OUTPUTS),
    _projection_case(TINY, 2),
    _projection_case(ODD, 2, TENSOR_CORES, float8=True),
    _projection_case(TINY, 8),
    *(_projection_case(GPT_OSS, rows) for rows in (1, 2, 3, 8)),
    *(_projection_case(GPT_OSS, rows, float8=True) for rows in (1, 8)),
)
