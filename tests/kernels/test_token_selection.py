"""Token selection against the worker's draw, which it must repeat; and what no reference shows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from moeray.kernels import token_reference
from moeray.kernels.token_selection import Selected, select_tokens
from moeray.worker.drawing import TOLERANCE, Draws, draw
from moeray.worker.splitmix import splitmix64
from tests.kernels.op_cases import Draw
from tests.kernels.token_cases import MIXED, SMALL, random_keys, rows_of

CPU = torch.device("cpu")
ROUNDING = 2.0**-20
"""Arrivals closer than that, as a share, may come in either order: weights are float32."""


def drawn(given: dict[str, Any]) -> Tensor:
    """The tokens that the worker draws, of rows that are not greedy."""
    logits, text = given["logits"], given["logits"].shape[1] - 3
    min_p = given.get("min_p")
    draws = Draws(
        keys=given["keys"],
        temperature=given["temperature"],
        top_k=None if "top_k" not in given else given["top_k"].long(),
        top_p=given.get("top_p"),
        log_min_p=None if min_p is None else (min_p * (1 - TOLERANCE)).log(),
    )
    ids = torch.arange(text, text + 3).expand(len(logits), 3)
    return draw(logits[:, :text], logits[:, text:], ids, draws)[0]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"top_k": (1, 5, 50)},
        {"top_p": (0.9, 0.5, 0.99)},
        {"min_p": (0.05, 0.5)},
        {"top_k": (3, 50), "top_p": (0.9, 0.5, 0.99), "min_p": (0.05, 0.2, 0.001)},
    ],
    ids=str,
)
def test_reference_draws_as_the_worker(filters: dict[str, Any]) -> None:
    rows, vocabulary = 3000, 403
    temperature = (1.0, 0.5, 1.7)
    given = rows_of(rows, vocabulary, temperature=temperature, **filters)(
        Draw.of(str(filters), CPU)
    )
    given.pop("config")
    tokens, _ = token_reference.select_tokens(**given)
    worker = drawn(given)
    differ = (tokens != worker).nonzero()[:, 0]
    # Which rows may differ is asked of the arrivals alone, not of who is right; and they are rare,
    # so that a bug in either cannot pass as rounding.
    assert len(differ) <= 1
    value = given["logits"].double() / given["temperature"].double()[:, None]
    arrival = token_reference.exponentials(given["keys"], vocabulary) / value.exp()
    own, other = (arrival.gather(1, ids[:, None])[:, 0] for ids in (tokens, worker))
    assert ((own - other).abs() <= ROUNDING * own)[differ].all()


def test_splitmix_is_the_workers() -> None:
    keys = random_keys(Draw.of("splitmix", CPU), 50)
    index = torch.arange(-3, 4097)
    ours = token_reference.splitmix64(keys[:, :1], index)
    assert torch.equal(ours, splitmix64(keys[:, :1], index))


def test_kernels_draw_as_the_worker(device: torch.device) -> None:
    given = rows_of(6, 403, top_p=(0.9, 0.5), top_k=(0, 20, 3))(Draw.of("worker", device))
    on_cpu = {name: value.cpu() for name, value in given.items() if name != "config"}
    on_cpu["top_k"] = on_cpu["top_k"].where(on_cpu["top_k"] > 0, 403)
    assert torch.equal(select_tokens(**given).tokens.cpu(), drawn(on_cpu))


def test_unsound_rows_are_marked_and_cost_the_others_nothing(device: torch.device) -> None:
    given = rows_of(5, 259, masked=True, temperature=(1.0, 0.0), top_p=(0.9,))(
        Draw.of("unsound", device)
    )
    sound = select_tokens(**given)
    given["logits"][0, :] = torch.nan
    given["mask"][1] = 0
    given["logits"][2, 7], given["mask"][2, 0] = torch.inf, -1
    given["logits"][3, 258], given["mask"][3, 8] = torch.nan, 4
    got = select_tokens(**given)
    assert got.greatest.isfinite().tolist() == [False] * 4 + [True]
    assert ((got.tokens >= 0) & (got.tokens < 259)).all()
    assert got.tokens[4] == sound.tokens[4]


def test_illegal_nan_is_no_harm(device: torch.device) -> None:
    given = rows_of(2, 130, masked=True, top_p=(0.9,))(Draw.of("illegal", device))
    given["mask"][:, 1] = 0
    sound = select_tokens(**given)
    given["logits"][:, 32:64] = torch.nan
    assert_same(select_tokens(**given), sound)


def test_the_same_from_run_to_run_and_alone(device: torch.device) -> None:
    """Lists are made in any order, and a row's token depends on no other row."""
    given = rows_of(4, 300, step=0.5, **MIXED)(Draw.of("repeat", device))
    first = select_tokens(**given)
    assert_same(select_tokens(**given), first)
    last = {name: value[3:] for name, value in given.items() if name != "config"}
    assert select_tokens(**last, config=SMALL).tokens[0] == first.tokens[3]


def assert_same(got: Selected, want: Selected) -> None:
    assert torch.equal(got.tokens, want.tokens)
    assert torch.equal(got.greatest, want.greatest)


def test_no_rows(device: torch.device) -> None:
    empty = torch.empty(0, 40, device=device)
    keys = torch.empty(0, 2, dtype=torch.int64, device=device)
    got = select_tokens(empty, keys, temperature=torch.empty(0, device=device))
    assert got.tokens.shape == got.greatest.shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", torch.zeros(2, 40, dtype=torch.bfloat16)),
        ("logits", torch.zeros(2, 0)),
        ("logits", torch.zeros(1, 1).expand(2, 2**19)),
        ("keys", torch.zeros(2, 2, dtype=torch.int32)),
        ("temperature", torch.zeros(3)),
        ("top_k", torch.zeros(2, dtype=torch.int64)),
        ("top_p", torch.zeros(2, dtype=torch.float64)),
        ("min_p", torch.zeros(2, 1)),
        ("mask", torch.zeros(2, 1, dtype=torch.int32)),
        ("logits", torch.zeros(40, 2).T),
    ],
)
def test_bad_input_is_named(name: str, value: Tensor) -> None:
    given = {
        "logits": torch.zeros(2, 40),
        "keys": torch.zeros(2, 2, dtype=torch.int64),
        "temperature": torch.ones(2),
    }
    with pytest.raises(ValueError, match=name):
        select_tokens(**(given | {name: value}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_in_a_cuda_graph(device: torch.device) -> None:
    """Captured once, it follows new values of every tensor."""
    given = rows_of(8, 5003, config=None, **MIXED)(Draw.of("graph", device))
    select_tokens(**given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = select_tokens(**given)
    fresh = rows_of(8, 5003, config=None, **MIXED)(Draw.of("other", device))
    for name, value in fresh.items():
        if isinstance(value, Tensor):
            given[name].copy_(value.roll(1, 0))
    graph.replay()
    assert_same(select_tokens(**given), captured)
