"""The experts' sums: the same bits from run to run and at any number of ranks; bad input."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from moeray.kernels import reference, sorted_choices
from moeray.kernels.expert_weights import ExpertWeights
from moeray.kernels.moe import expert_sums
from moeray.kernels.moe_few_rows import FewRowsConfig, experts_few_rows
from moeray.kernels.moe_many_rows import ManyRowsConfig, combined, experts_many_rows
from moeray.kernels.mxfp4_layout import LEAST_SCALE, pack_mxfp4
from moeray.kernels.routing import FEW_ROWS, Routed, route
from moeray.kernels.sorted_choices import sort_choices
from tests.kernels.moe_cases import ALPHA, LIMIT, layer, spread
from tests.kernels.op_cases import Draw

SIZE = (8, 64, 64)
"""Experts, hidden, width."""
FEW, MANY = FewRowsConfig(64, 1), ManyRowsConfig(16, tile=64, chunks=2, stages=2)
KINDS = (FEW, MANY, replace(MANY, float8=True))


def case(device: torch.device, rows: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    draw = Draw.of("moe", device)
    x = draw.normal(rows, SIZE[1], dtype=draw.bfloat16)
    weights = torch.rand((rows, 4), generator=draw.generator).softmax(-1).to(device)
    return x, spread(draw, rows, SIZE[0]), weights, layer(draw, SIZE)


def packed(
    tensors: dict[str, Tensor], rank: int = 0, ranks: int = 1, **changed: Any
) -> ExpertWeights:
    each = SIZE[0] // ranks
    held = {name: tensor[rank * each :][:each] for name, tensor in tensors.items()}
    options = {"first_expert": rank * each, "group_experts": 1, "limit": LIMIT, "alpha": ALPHA}
    return ExpertWeights.pack(**held, **(options | changed))  # type: ignore[arg-type]


def run(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    held: ExpertWeights,
    config: FewRowsConfig | ManyRowsConfig,
) -> Tensor:
    if isinstance(config, FewRowsConfig):
        return experts_few_rows(x, experts, weights, held, config=config)
    return experts_many_rows(x, experts, weights, held, config=config)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("config", KINDS, ids=str)
def test_any_number_of_ranks_gives_the_same_bits(
    device: torch.device, ranks: int, config: FewRowsConfig | ManyRowsConfig
) -> None:
    x, experts, weights, tensors = case(device, 2)

    def sums(held: ExpertWeights) -> Tensor:
        return run(x, experts, weights, held, config)

    shares = torch.stack([sums(packed(tensors, rank, ranks)) for rank in range(ranks)])
    assert torch.equal(reference.tree_sum(shares), sums(packed(tensors)))


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_terms_are_added_in_the_order_of_the_reference(device: torch.device, ranks: int) -> None:
    """Bit for bit, over many orders of magnitude, so that any other order shows."""
    draw = Draw.of("order", device)
    rows, columns = 12, 40
    outputs = draw.normal(rows, 4, columns, dtype=torch.float32)
    outputs *= 10.0 ** draw.integers(-4, 5, *outputs.shape)
    experts = spread(draw, rows, 32)
    weights = torch.rand((rows, 4), generator=draw.generator).to(device)
    for first in range(0, 8, 8 // ranks):
        last = first + 8 // ranks
        want = reference.combine(outputs, experts, weights, group_experts=4, first=first, last=last)
        got = combined(
            outputs.flatten(0, 1), experts, weights, first_group=first, groups=last - first,
            group_experts=4,
        )  # fmt: skip
        assert torch.equal(got, want)


@pytest.mark.parametrize("rows", [1, 9])
def test_every_run_gives_the_same_bits(device: torch.device, rows: int) -> None:
    x, experts, weights, tensors = case(device, rows)
    held = packed(tensors)
    first = expert_sums(x, Routed(experts, weights, None), held)
    assert torch.equal(expert_sums(x, Routed(experts, weights, None), held), first)
    # The last program of a tile counts on it.
    assert not held.tickets(SIZE[1]).any()


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_a_row_that_is_not_a_number_spoils_itself_only(
    device: torch.device, config: FewRowsConfig | ManyRowsConfig
) -> None:
    if device.type == "cpu" and isinstance(config, ManyRowsConfig) and config.float8:
        pytest.skip("the interpreter's float8 has no NaN")
    x, experts, weights, tensors = case(device, 2)
    x[0, 5] = float("nan")
    sums = run(x, experts, weights, packed(tensors), config)
    assert sums[0].isnan().all()
    assert not sums[1].isnan().any()


@pytest.mark.parametrize("config", KINDS, ids=str)
def test_scales_that_are_almost_nothing_are_nothing(
    device: torch.device, config: FewRowsConfig | ManyRowsConfig
) -> None:
    """Where a float16 has no number for them either."""
    x, experts, weights, tensors = case(device, 1)
    for name in ("gate_up_scales", "down_scales"):
        tensors[name] = torch.randint_like(tensors[name], LEAST_SCALE)
    none = tensors | {
        name: torch.zeros_like(tensors[name]) for name in ("gate_up_blocks", "down_blocks")
    }
    sums = run(x, experts, weights, packed(tensors), config)
    torch.testing.assert_close(
        sums, run(x, experts, weights, packed(none), config), atol=1e-5, rtol=1e-3
    )


def test_no_rows_give_no_sums(device: torch.device) -> None:
    x, experts, weights, tensors = case(device, 1)
    got = expert_sums(x[:0], Routed(experts[:0], weights[:0], None), packed(tensors))
    assert got.shape == (0, SIZE[1])
    assert got.dtype == torch.float32
    router = x.new_zeros(16, SIZE[1])
    assert [len(t) for t in route(x[:0], router, router[:, 0], 4)[:2]] == [0, 0]


CHOSEN: dict[str, Callable[[Draw], Tensor]] = {
    "spread": lambda draw: spread(draw, 150, 16),
    "even experts": lambda draw: spread(draw, 150, 16) // 2 * 2,
    "one expert": lambda draw: torch.full((150, 4), 11, device=draw.device),
    "not held": lambda draw: torch.full((150, 4), 12, device=draw.device),
}
"""Choices of 16 experts, some of which may get none."""


@pytest.fixture(params=["one kernel", "two kernels"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two: five blocks of ``CHOSEN``, the last of them not full, four looked at together."""
    few = 0 if request.param == "two kernels" else 10**6
    for name, value in {"FEW_CHOICES": few, "BLOCK": 128, "SUMMED": 4}.items():
        monkeypatch.setattr(sorted_choices, name, value)


@pytest.mark.usefixtures("poisoned", "kernels")
@pytest.mark.parametrize(
    ("chosen", "tile", "extra"),
    [
        *(("spread", tile, extra) for tile, extra in ((4, 0), (4, 2), (64, 0), (16, 8))),
        *((chosen, 8, 4) for chosen in ("even experts", "one expert", "not held")),
    ],
)
def test_sorted_choices_are_all_and_in_order(
    device: torch.device, chosen: str, tile: int, extra: int
) -> None:
    experts = CHOSEN[chosen](Draw.of("sort", device))
    got = sort_choices(experts, first_expert=4, held=8, tile=tile, extra=extra)
    ids = experts.flatten().tolist()
    want = [[c for c, expert in enumerate(ids) if expert == e] for e in range(4, 12)]
    in_order = list(chain.from_iterable(want))
    assert got.choices[: len(in_order)].tolist() == in_order
    tiles = zip(got.experts.tolist(), got.begins.tolist(), got.counts.tolist(), strict=True)
    found: dict[int, list[int]] = {}
    for expert, begin, count in tiles:
        if count:
            own = found.setdefault(expert, [])
            own.extend(got.choices[begin : begin + count].tolist())
            is_last = len(own) == len(want[expert])
            assert count <= tile + extra if is_last else count == tile
    assert [found.get(e, []) for e in range(8)] == want


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("first_expert", "held", "tile", "extra"), [(0, 128, 32, 16), (7, 3, 16, 0)]
)
def test_two_kernels_sort_as_one_does(
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    first_expert: int,
    held: int,
    tile: int,
    extra: int,
) -> None:
    """Tile for tile, with blocks as they are."""
    experts = Draw.of("two", device).integers(0, 128, 1027, 4, dtype=torch.int64)
    assert experts.numel() > sorted_choices.FEW_CHOICES
    options = {"first_expert": first_expert, "held": held, "tile": tile, "extra": extra}
    got = sort_choices(experts, **options)
    monkeypatch.setattr(sorted_choices, "FEW_CHOICES", experts.numel())
    want = sort_choices(experts, **options)
    placed, needed = int(want.counts.sum()), want.counts > 0
    assert torch.equal(got.choices[:placed], want.choices[:placed])
    assert torch.equal(got.counts, want.counts)
    assert torch.equal(got.experts[needed], want.experts[needed])
    assert torch.equal(got.begins[needed], want.begins[needed])


def test_bad_shapes_are_named(device: torch.device) -> None:
    x, experts, weights, tensors = case(device, 2)
    held = packed(tensors)
    with pytest.raises(ValueError, match=r"^x: \[2, 64\] expected"):
        expert_sums(x[:, :32], Routed(experts, weights, None), held)
    with pytest.raises(ValueError, match=r"^weights: "):
        expert_sums(x, Routed(experts, weights[:1], None), held)
    with pytest.raises(ValueError, match=r"^experts: 4 "):
        expert_sums(x, Routed(experts[:, :2], weights[:, :2], None), held)
    with pytest.raises(ValueError, match=r"^gate_up_blocks: experts 1 to 8 "):
        packed(tensors, first_expert=1)
    with pytest.raises(ValueError, match=r"^weight: "):
        route(x, x.new_zeros(16, 32), x.new_zeros(16), 4)
    with pytest.raises(ValueError, match=r"^weight, top_k: "):
        route(x, x.new_zeros(12, 64), x.new_zeros(12), 4)


def test_weights_that_do_not_fit_the_layout_are_refused(device: torch.device) -> None:
    blocks = torch.zeros((2, 64, 2, 16), dtype=torch.uint8, device=device)
    scales = torch.full((2, 64, 2), 120, dtype=torch.uint8, device=device)
    with pytest.raises(ValueError, match=r"^scales: one is above 2\.0"):
        pack_mxfp4(blocks, scales + 9, paired=False)
    with pytest.raises(ValueError, match=r"^blocks: rows of a multiple of 64"):
        pack_mxfp4(blocks[:, :, :1], scales[:, :, :1], paired=False)
    with pytest.raises(ValueError, match=r"^blocks: a multiple of 8 pairs"):
        pack_mxfp4(blocks[:, :8], scales[:, :8], paired=True)
    with pytest.raises(ValueError, match=r"^scales: uint8"):
        pack_mxfp4(blocks, scales[:, :8], paired=True)
    with pytest.raises(ValueError, match=r"^blocks: uint8"):
        pack_mxfp4(blocks.float(), scales, paired=True)


def test_tickets_are_as_many_as_few_rows(device: torch.device) -> None:
    draw = Draw.of("tickets", device)
    x = draw.normal(FEW_ROWS, 64, dtype=draw.bfloat16)
    weight, bias = draw.normal(16, 64, dtype=draw.bfloat16), draw.normal(16, dtype=draw.bfloat16)
    tickets = torch.zeros(FEW_ROWS, dtype=torch.int32, device=device)
    with_tickets = route(x, weight, bias, 4, tickets=tickets)[:2]
    without = route(x, weight, bias, 4)[:2]
    assert all(map(torch.equal, with_tickets, without))
