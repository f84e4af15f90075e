"""Times of linear layers of few rows by configuration: what ``LinearConfig.of`` comes from.

``python -m tests.bench.kernels.linear_sweep [--rows 1 2 8] [--layers qkv projection]``, beside
cuBLAS, which has the product alone. What differs from torch is reported and not timed.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moeray.kernels import fused_reference
from moeray.kernels.linear import LinearConfig, linear, norm_linear
from moeray.kernels.qkv_projection import qkv_projection
from tests.bench.kernels.dense import EPS, HIDDEN, QKV, QUERY_HEADS, VOCABULARY, caches, normal
from tests.bench.kernels.timing import Call, copies_for, fastest, microseconds


def _multiply_add(
    outputs: int, inputs: int, warps: int, registers: int | None = None, programs: int | None = None
) -> LinearConfig:
    return LinearConfig(
        tensor_cores=False,
        outputs=outputs,
        inputs=inputs,
        warps=warps,
        registers=registers,
        programs=programs,
    )


def _tensor_cores(outputs: int, warps: int, registers: int) -> LinearConfig:
    return LinearConfig(
        tensor_cores=True, outputs=outputs, inputs=32 * warps, warps=warps, registers=registers
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A linear layer of the models."""

    op: Callable[..., Tensor]
    inputs: int
    outputs: int
    candidates: tuple[LinearConfig, ...]

    def configs(self, rows: int) -> Iterator[LinearConfig]:
        for config in self.candidates:
            if rows == 2 or config.tensor_cores == (rows > 2):
                yield config

    def arguments(self, rows: int) -> dict[str, Any]:
        """All but the weight."""
        given: dict[str, Any] = {"x": normal(rows, self.inputs)}
        if self.op is not linear:
            given |= {"norm_weight": normal(self.inputs), "eps": EPS}
        if self.outputs == VOCABULARY:
            return {**given, "out_dtype": torch.float32}
        given["bias"] = normal(self.outputs)
        if self.op is linear:
            given["residual"] = normal(rows, self.outputs)
        if self.op is qkv_projection:
            names = ("cosine", "sine", "key_cache", "value_cache", "slots")
            given |= {**dict(zip(names, caches(rows), strict=True)), "query_heads": QUERY_HEADS}
        return given

    def truth(self, weight: Tensor, given: dict[str, Any]) -> Tensor:
        """Float32, from the same bfloat16 values."""
        reference: Callable[..., Tensor] = getattr(fused_reference, self.op.__name__)
        wide = {
            name: value.float() if name != "slots" and isinstance(value, Tensor) else value
            for name, value in given.items()
        }
        return reference(weight=weight.float(), **wide)


OF_QKV = (
    _multiply_add(4, 1024, 4),
    _multiply_add(2, 1024, 4),
    _tensor_cores(8, 16, 64),
    _tensor_cores(8, 4, 128),
)
OF_UNEMBEDDING = (
    _multiply_add(4, 1024, 4, 96, 132 * 30),
    _multiply_add(4, 1024, 4, 96, 132 * 5),
    _tensor_cores(16, 8, 128),
    _tensor_cores(8, 8, 80),
)
LAYERS = {
    "qkv": Layer(op=linear, inputs=HIDDEN, outputs=QKV, candidates=OF_QKV),
    "norm-qkv": Layer(op=norm_linear, inputs=HIDDEN, outputs=QKV, candidates=OF_QKV),
    "projection": Layer(op=qkv_projection, inputs=HIDDEN, outputs=QKV, candidates=OF_QKV),
    "output": Layer(
        op=linear,
        inputs=4096,
        outputs=HIDDEN,
        candidates=(
            _multiply_add(4, 2048, 8),
            _tensor_cores(8, 4, 168),
            _tensor_cores(8, 8, 80),
        ),
    ),
    "unembedding": Layer(op=linear, inputs=HIDDEN, outputs=VOCABULARY, candidates=OF_UNEMBEDDING),
    "norm-unembedding": Layer(
        op=norm_linear, inputs=HIDDEN, outputs=VOCABULARY, candidates=OF_UNEMBEDDING
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 3, 8])
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    options = parser.parse_args()
    for name in options.layers:
        _report(name, LAYERS[name], options.rows)


def _report(name: str, layer: Layer, all_rows: Sequence[int]) -> None:
    copies = copies_for(2 * layer.inputs * layer.outputs)
    weights = [normal(layer.outputs, layer.inputs) for _ in range(copies)]
    for rows in all_rows:
        given = layer.arguments(rows)
        truth = layer.truth(weights[0], given)

        def calls(config: LinearConfig, given: dict[str, Any] = given) -> list[Call]:
            return [partial(layer.op, weight=weight, config=config, **given) for weight in weights]

        right = [
            config for config in layer.configs(rows) if _is_right(calls(config)[0], truth, config)
        ]
        peer = microseconds(
            [partial(F.linear, given["x"], weight, given.get("bias")) for weight in weights]
        )
        print(f"{name}, {rows}: cuBLAS {peer:.1f} us", flush=True)
        for time, config in fastest(right, calls):
            print(f"  {time:8.1f} us {_short(config)}", flush=True)


def _is_right(call: Call, truth: Tensor, config: LinearConfig) -> bool:
    """Whether a call's result is the truth but for bfloat16's roundings."""
    try:
        torch.testing.assert_close(call(), truth, rtol=2e-2, atol=1.0, check_dtype=False)
    except AssertionError as error:
        print(f"  WRONG: {_short(config)}: {error}", flush=True)
        return False
    except Exception as error:  # does not fit, does not compile: the others are still wanted
        print(f"  {type(error).__name__}: {_short(config)}", flush=True)
        return False
    return True


def _short(config: LinearConfig) -> str:
    kind = "tensor cores" if config.tensor_cores else "multiply-add"
    return (
        f"{kind}, outputs {config.outputs}, inputs {config.inputs}, warps {config.warps}, "
        f"registers {config.registers}, programs {config.programs}"
    )


if __name__ == "__main__":
    main()
