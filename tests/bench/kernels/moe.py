"""The MoE layer: router, experts and weighted sum, from the normed rows to their sum.

Routing is that of random rows by random router weights, close to uniform; the distinct experts that
a call hits on average are noted with each figure, and the floor counts their bytes only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.moe import expert_sums
from moeray.kernels.routing import FEW_ROWS, Routed, route
from tests.bench.kernels import triton_kernels_peer as peer
from tests.bench.kernels.benchmark import Benchmark
from tests.bench.kernels.models import MODELS, Dimensions
from tests.bench.kernels.timing import Call

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
LIMIT, ALPHA = 7.0, 1.702
COPIES = 2
INPUTS = 12
"""Rows of each call are others than the last call's, and so are their experts."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer's weights as a checkpoint has them, on the GPU."""

    model: Dimensions
    router: Tensor
    router_bias: Tensor
    tickets: Tensor
    gate_up: tuple[Tensor, Tensor, Tensor]
    down: tuple[Tensor, Tensor, Tensor]

    @classmethod
    def random(cls, model: Dimensions, seed: int) -> "Layer":
        generator = torch.Generator("cuda").manual_seed(seed)

        def linear(outputs: int, inputs: int) -> tuple[Tensor, Tensor, Tensor]:
            blocks = (model.experts, outputs, inputs // 32, 16)
            bias = torch.randn((model.experts, outputs), device="cuda", generator=generator)
            return (
                _bytes(0, 256, blocks, generator),
                _bytes(118, 122, blocks[:3], generator),
                bias.bfloat16(),
            )

        router = torch.randn((model.experts, model.hidden), device="cuda", generator=generator)
        return cls(
            model=model,
            router=router.bfloat16(),
            router_bias=torch.zeros(model.experts, device="cuda", dtype=torch.bfloat16),
            tickets=torch.zeros(FEW_ROWS, device="cuda", dtype=torch.int32),
            gate_up=linear(2 * model.width, model.hidden),
            down=linear(model.hidden, model.width),
        )

    def packed(self) -> ExpertWeights:
        return ExpertWeights.pack(
            *self.gate_up,
            *self.down,
            first_expert=0,
            group_experts=self.model.experts // 8,
            limit=LIMIT,
            alpha=ALPHA,
        )


def benchmarks() -> Iterator[Benchmark]:
    for model in MODELS:
        layers = [Layer.random(model, seed) for seed in range(COPIES)]
        held = [layer.packed() for layer in layers]
        theirs = [_peer(layer) for layer in layers] if peer.available() else None
        for rows in ROWS:
            yield benchmark(model, layers, held, rows, theirs)


def benchmark(
    model: Dimensions,
    layers: Sequence[Layer],
    held: Sequence[ExpertWeights],
    rows: int,
    theirs: Sequence[Callable[[Tensor], Tensor]] | None,
) -> Benchmark:
    """One row of the table; ``held`` are the layers' weights packed, ``theirs`` a peer's calls."""
    inputs = rows_of(model, rows)
    distinct = sum(_distinct(layers[0], x) for x in inputs) / len(inputs)
    weights = 3 * model.width * model.hidden
    biases = 2 * (2 * model.width + model.hidden)
    router = 2 * model.experts * model.hidden
    return Benchmark(
        op="moe_layer",
        model=model.name,
        rows=rows,
        bytes=int(distinct * (weights * 17 / 32 + biases) + router + rows * model.hidden * 6),
        flops=2 * rows * model.top_k * weights,
        prepare=lambda: [
            partial(layer_sums, layers[i % COPIES], held[i % COPIES], x)
            for i, x in enumerate(inputs)
        ],
        peer="triton_kernels",
        prepare_peer=_calls(theirs, inputs) if theirs else None,
        note=f"{distinct:.1f} experts",
    )


def rows_of(model: Dimensions, rows: int) -> list[Tensor]:
    generator = torch.Generator("cuda").manual_seed(rows)
    shape = (INPUTS if rows < 1024 else COPIES, rows, model.hidden)
    return list(torch.randn(shape, device="cuda", generator=generator).bfloat16())


def routed(layer: Layer, x: Tensor) -> Routed:
    return route(x, layer.router, layer.router_bias, layer.model.top_k, tickets=layer.tickets)


def layer_sums(layer: Layer, held: ExpertWeights, x: Tensor) -> Tensor:
    return expert_sums(x, routed(layer, x), held)


def _calls(
    theirs: Sequence[Callable[[Tensor], Tensor]], inputs: Sequence[Tensor]
) -> Callable[[], Sequence[Call]]:
    return lambda: [partial(theirs[i % COPIES], x) for i, x in enumerate(inputs)]


def _peer(layer: Layer) -> Callable[[Tensor], Tensor]:
    return peer.moe_layer(
        layer.gate_up,
        layer.down,
        (layer.router, layer.router_bias),
        top_k=layer.model.top_k,
        limit=LIMIT,
        alpha=ALPHA,
    )


def _distinct(layer: Layer, x: Tensor) -> int:
    return len(routed(layer, x).experts.unique())


def _bytes(low: int, high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(low, high, shape, device="cuda", dtype=torch.uint8, generator=generator)
