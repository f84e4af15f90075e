"""Cases of the router, of MXFP4 layouts and of the experts' sums."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from moeray.kernels import reference
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.moe_few_rows import FewRowsConfig, experts_few_rows
from moeray.kernels.moe_few_rows import config_for as few_config
from moeray.kernels.moe_many_rows import ManyRowsConfig, experts_many_rows
from moeray.kernels.mxfp4_layout import pack_mxfp4, unpack_mxfp4
from moeray.kernels.routing import FEW_ROWS, route
from tests.kernels.op_cases import Draw, OpCase, Outputs

LIMIT, ALPHA = 0.7, 1.702
"""A limit that the values here do reach."""
TOP_K = 4
SIZES = {"20b": (32, 2880, 2880), "120b": (128, 2880, 2880), "tiny": (16, 192, 192)}
SMALL = (8, 128, 64)
"""Experts, hidden, width for the interpreter: gpt-oss's in small, with a rest of no whole load."""

Experts = Callable[[Draw, int, int], Tensor]


def spread(draw: Draw, rows: int, experts: int) -> Tensor:
    """Each row chooses at random."""
    chosen = [draw.permutation(experts)[:TOP_K] for _ in range(min(rows, 64))]
    return torch.stack([chosen[row % len(chosen)] for row in range(rows)])


def same(draw: Draw, rows: int, experts: int) -> Tensor:
    """All rows choose the same experts, and all others are empty."""
    return draw.permutation(experts)[:TOP_K].expand(rows, -1).contiguous()


def crowded(draw: Draw, rows: int, experts: int) -> Tensor:
    """One expert gets every row, the others few."""
    chosen = spread(draw, rows, experts - 1) + 1
    chosen[:, 2] = 0
    return chosen


def layer(draw: Draw, size: tuple[int, int, int], held: slice = slice(None)) -> dict[str, Tensor]:
    """A layer's tensors as a checkpoint has them; ``held`` of its experts."""
    experts, hidden, width = size
    wanted = len(range(*held.indices(experts)))

    def linear(name: str, outputs: int, inputs: int) -> dict[str, Tensor]:
        shape = (wanted, outputs, inputs // 32)
        return {
            f"{name}_blocks": draw.integers(0, 256, *shape, 16, dtype=torch.uint8),
            f"{name}_scales": draw.integers(116, 122, *shape, dtype=torch.uint8),
            f"{name}_bias": draw.normal(wanted, outputs),
        }

    return linear("gate_up", 2 * width, hidden) | linear("down", hidden, width)


def experts_case(
    name: str,
    size: tuple[int, int, int],
    rows: int,
    config: FewRowsConfig | ManyRowsConfig | None,
    chosen: Experts = spread,
    *,
    held: slice = slice(None),
    full_size: bool = False,
) -> OpCase:
    experts_in_all, hidden, _ = size
    first, last, _ = held.indices(experts_in_all)
    few = isinstance(config, FewRowsConfig)

    def arguments(draw: Draw) -> dict[str, Any]:
        weights = torch.rand((rows, TOP_K), generator=draw.generator).softmax(-1)
        return {
            "x": draw.normal(rows, hidden, dtype=draw.bfloat16),
            "experts": chosen(draw, rows, experts_in_all),
            "weights": weights.to(draw.device),
            **layer(draw, size, held),
        }

    def op(x: Tensor, experts: Tensor, weights: Tensor, **tensors: Tensor) -> Outputs:
        packed = ExpertWeights.pack(
            **tensors,
            first_expert=first,
            group_experts=experts_in_all // 8,
            limit=LIMIT,
            alpha=ALPHA,
        )
        run: Any = experts_few_rows if few else experts_many_rows
        return run(x, experts, weights, packed, config=config)  # type: ignore[no-any-return]

    def truth(x: Tensor, experts: Tensor, weights: Tensor, **tensors: Tensor) -> Outputs:
        outputs = reference.expert_outputs(
            x, experts, **tensors, first_expert=first, limit=LIMIT, alpha=ALPHA
        )
        each = experts_in_all // 8
        return reference.combine(
            outputs, experts, weights, group_experts=each, first=first // each, last=last // each
        )

    kind = "few" if few else "many"
    return OpCase(
        name=f"experts-{kind}-{name}",
        op=op,
        reference=truth,
        arguments=arguments,
        full_size=full_size,
    )


def route_case(
    name: str,
    experts: int,
    hidden: int,
    rows: int,
    *,
    with_tickets: bool = False,
    full_size: bool = False,
) -> OpCase:
    def op(x: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
        tickets = x.new_zeros(FEW_ROWS, dtype=torch.int32) if with_tickets else None
        outputs = route(x, weight, bias, TOP_K, tickets=tickets)[:2]
        assert tickets is None or not tickets.any()
        return outputs

    def truth(x: Tensor, weight: Tensor, bias: Tensor) -> Outputs:
        return reference.route(x, weight, bias, TOP_K)

    return OpCase(
        name=f"route-{name}",
        op=op,
        reference=truth,
        arguments=lambda draw: {
            "x": draw.normal(rows, hidden, dtype=draw.bfloat16),
            "weight": draw.normal(experts, hidden, scale=hidden**-0.5, dtype=draw.bfloat16),
            "bias": draw.normal(experts, dtype=draw.bfloat16),
        },
        # An expert's id is right or far off.
        error=1e-4,
        full_size=full_size,
    )


def pack_case(size: tuple[int, int, int], paired: bool, full_size: bool = False) -> OpCase:
    """Packed and back: the same bits."""

    def op(blocks: Tensor, scales: Tensor) -> Outputs:
        return unpack_mxfp4(pack_mxfp4(blocks, scales, paired=paired), paired=paired)

    def arguments(draw: Draw) -> dict[str, Any]:
        tensors = layer(draw, size)
        name = "gate_up" if paired else "down"
        return {"blocks": tensors[f"{name}_blocks"], "scales": tensors[f"{name}_scales"]}

    return OpCase(
        name=f"pack-{size[0]}-{'pairs' if paired else 'rows'}",
        op=op,
        reference=lambda blocks, scales: (blocks, scales),
        arguments=arguments,
        error=0,
        full_size=full_size,
    )


FEW, MANY = FewRowsConfig(32, 1), ManyRowsConfig(16, tile=64, chunks=2, stages=2)
LEFT_OVER = ManyRowsConfig(32, tile=64, chunks=2, stages=2, least=8)
FLOAT8 = replace(LEFT_OVER, float8=True)
EXTRA = replace(LEFT_OVER, chunks=1, extra=16)
CASES = (
    pack_case((2, 128, 64), paired=True),
    pack_case((2, 128, 64), paired=False),
    pack_case(SIZES["20b"], paired=True, full_size=True),
    route_case("one-row", 16, 192, 1),
    route_case("tickets", 16, 192, 3, with_tickets=True),
    route_case("odd-hidden", 32, 72, 5),
    route_case("many-rows", 16, 192, 33),
    *(
        route_case(f"{model}-{rows}", experts, hidden, rows, with_tickets=rows < 16, full_size=True)
        for model, (experts, hidden, _) in SIZES.items()
        for rows in (1, 15, 16, 17, 1000)
    ),
    experts_case("one-row", (8, 64, 64), 1, FEW),
    experts_case("spread", (8, 64, 64), 2, FEW),
    experts_case("same", (8, 64, 64), 3, FEW, same),
    experts_case("eight", (8, 64, 64), 8, FewRowsConfig(64, 4), same),
    experts_case("crowded", (8, 64, 64), 4, FewRowsConfig(64, 1), crowded),
    experts_case("four-warps", (8, 64, 320), 1, FewRowsConfig(64, 4)),
    experts_case("last-steps", (8, 320, 64), 1, FewRowsConfig(64, 1)),
    experts_case("ahead", (8, 320, 64), 2, FewRowsConfig(32, 1, ahead=1)),
    experts_case("all-ahead", (8, 320, 64), 1, FewRowsConfig(16, 1, ahead=6)),
    experts_case("half-held", (8, 64, 64), 2, FEW, held=slice(4, 8)),
    experts_case("one-row", SMALL, 1, MANY),
    experts_case("spread", (8, 192, 64), 5, MANY),
    experts_case("same", SMALL, 17, MANY, same),
    experts_case("crowded", (8, 64, 64), 18, MANY, crowded),
    experts_case("quarter-held", SMALL, 9, MANY, held=slice(2, 4)),
    experts_case("float8", (8, 192, 64), 17, FLOAT8, crowded),
    experts_case("float8-left-over", SMALL, 37, FLOAT8, same),
    experts_case("left-over", SMALL, 41, LEFT_OVER, same),
    experts_case("float8-extra", SMALL, 37, replace(FLOAT8, extra=8), same),
    experts_case("extra", SMALL, 41, EXTRA, same),
    experts_case("extra-not-full", (8, 192, 64), 61, EXTRA, crowded),
    experts_case("three-chunks", (8, 320, 64), 9, replace(EXTRA, rows=16, chunks=3), same),
    *(
        experts_case(f"{model}-{rows}-{config.tile}-{config.warps}-{config.ahead}", size, rows,
                     config, chosen, full_size=True)
        for model, size in SIZES.items()
        for rows, config, chosen in (
            (1, few_config(1), spread), (1, FewRowsConfig(64, 4), spread),
            (2, few_config(2), spread), (2, FewRowsConfig(32, 4), same),
            (3, FewRowsConfig(16, 1), crowded), (8, FewRowsConfig(16, 8), same),
        )
    ),
    *(
        experts_case(f"{model}-{rows}-{kind.__name__}", size, rows, config, kind, full_size=True)
        for model, size in SIZES.items()
        for rows, config in (
            # None: what is measured best for so many, another for almost each.
            (3, None), (17, None), (100, None), (250, None), (400, None), (1023, None),
            (9, ManyRowsConfig(8, 64, 2, 4, float8=True)),
            (18, ManyRowsConfig(16, 64, 4, 3)),
            (401, ManyRowsConfig(32, 128, 1, 4, least=8, extra=8)),
            (1022, ManyRowsConfig(128, 128, 1, 4, least=32, extra=32)),
            (1021, ManyRowsConfig(256, 128, 2, 3, warps=8, least=64)),
        )
        for kind in (spread, crowded)
    ),
    *(
        experts_case(f"{model}-{rows}", SIZES[model], rows, None, full_size=True)
        for model, rows in (("20b", 4096), ("20b", 8192), ("120b", 8192))
    ),
    experts_case("120b-300-held", SIZES["120b"], 300, None, held=slice(64, 96), full_size=True),
)  # fmt: skip
