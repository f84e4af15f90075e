"""Sampling: the mask, greedy ties, the drawn distributions, and independence of rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.vocabulary.harmony_tokens import (
    CALL,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    VOCABULARY_SIZE,
)
from moeray.worker import drawing, sampling
from moeray.worker.plan import Drawn
from moeray.worker.sampling import sample
from tests.worker.sample_rows import Row, batch, draw, follows, repeated

torch.set_num_threads(1)


def test_draws_in_a_header_follow_the_distribution_over_the_listed_ids() -> None:
    count, ids = 5_000, (MESSAGE, 17, 4000)
    logits = torch.zeros(VOCABULARY_SIZE).normal_(generator=torch.Generator().manual_seed(1))
    logits[torch.tensor(ids)] = torch.tensor([0.0, 1.0, -1.0])
    tokens = draw(logits.expand(count, -1), repeated(count, text=False, ids=ids))
    expected = np.exp([0.0, 1.0, -1.0])
    assert set(tokens) == set(ids)
    assert follows(np.array([ids.index(t) for t in tokens]), expected / expected.sum())


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (5, 1.0)])
def test_an_ender_is_drawn_in_its_share(top_k: int, top_p: float) -> None:
    count = 200
    logits = torch.full((VOCABULARY_SIZE,), -30.0)
    logits[[3, 70_000, END, RETURN]] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    rows = repeated(count, ids=(END,), top_k=top_k, top_p=top_p, seed=4)
    tokens = draw(logits.expand(count, -1), rows)
    share = {token: (tokens == token).mean() for token in (3, 70_000, END)}
    assert sum(share.values()) == 1
    assert all(abs(s - 1 / 3) < 0.12 for s in share.values())


def test_greedy_takes_the_lowest_id_on_ties() -> None:
    logits = torch.zeros((5, VOCABULARY_SIZE))
    logits[0, [900, 70_000, END]] = 3.0
    logits[1, [END, RETURN]] = 3.0
    logits[2, [RETURN, 12]] = 3.0
    logits[3, CALL:] = 3.0
    rows = [
        Row(temperature=0, ids=(END,)),
        Row(temperature=0, ids=(END,)),
        Row(temperature=0, text=False, ids=(RETURN, 12, 5)),
        Row(temperature=0, ids=(CALL,)),
        Row(temperature=0),
    ]
    assert draw(logits, batch(rows)).tolist() == [900, END, 12, CALL, 0]


def test_top_k_and_top_p_break_ties_by_the_lowest_id() -> None:
    # Ten equal logits behind a greater one; a third of them is kept.
    logits = torch.full((3_000, 5_000), -50.0)
    ties = [4_000, 7, 90, 350, 351, 352, 4_500, 1_200, 3, 2_000]
    logits[:, ties] = 1.0
    logits[:, 4_999] = 1.5
    kept = {4_999, 3, 7, 90}
    assert set(draw(logits, repeated(3_000, top_k=4))) == kept
    share = (np.exp(0.5) + 3) / (np.exp(0.5) + 10)
    assert set(draw(logits, repeated(3_000, top_p=share))) == kept


@pytest.mark.parametrize(("top_p", "size"), [(0.1, 1), (0.3, 3), (0.7, 7), (0.71, 8), (1.0, 10)])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, size: int) -> None:
    tokens = draw(torch.zeros((500, 10)), repeated(500, top_p=top_p))
    assert set(tokens) == set(range(size))


def test_the_least_top_p_keeps_the_likeliest_token() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0]]).expand(50, -1)
    assert set(draw(logits, repeated(50, top_p=1e-9))) == {1}


def test_small_and_large_nuclei_share_a_batch() -> None:
    count, width = 4_000, 3_072
    rows = [Row(position=i, top_p=0.5 if i % 2 else 0.01) for i in range(count)]
    tokens = draw(torch.zeros((count, width)), batch(rows))
    assert tokens[1::2].max() < width / 2 and tokens[0::2].max() < width / 100 + 1
    assert len(set(tokens[1::2])) > width / 3
    alone = [int(draw(torch.zeros((1, width)), batch([row]))[0]) for row in rows[:20]]
    assert tokens[:20].tolist() == alone


special = st.integers(FIRST_SPECIAL, VOCABULARY_SIZE - 1)


@st.composite
def sampled_rows(pick: st.DrawFn) -> Row:
    text = pick(st.booleans())
    anywhere = st.integers(0, VOCABULARY_SIZE - 1)
    some_text = st.integers(0, 12) | st.integers(0, FIRST_SPECIAL - 1)
    return Row(
        temperature=pick(st.sampled_from([0.0, 1e-6, 0.7, 1.0, 2.0, 1e4])),
        top_p=pick(st.sampled_from([1.0, 0.999, 0.9, 0.1, 1e-9])),
        top_k=pick(st.sampled_from([0, 0, 1, 2, 50, VOCABULARY_SIZE])),
        min_p=pick(st.sampled_from([0.0, 0.0, 1e-6, 0.05, 1.0])),
        repetition_penalty=pick(st.sampled_from([1.0, 0.5, 1.3])),
        presence_penalty=pick(st.sampled_from([0.0, -2.0, 1.5])),
        frequency_penalty=pick(st.sampled_from([0.0, -0.1, 2.0])),
        seed=pick(st.integers(0, 2**64 - 1)),
        position=pick(st.integers(0, 2**64 - 1)),
        top_logprobs=pick(st.sampled_from([None, None, 0, 3, 20])),
        text=text,
        ids=pick(st.lists(st.one_of(special, anywhere), min_size=0 if text else 1, max_size=4)),
        bias=pick(st.dictionaries(some_text, st.floats(-100, 100, width=32), max_size=3)),
        penalised=pick(st.dictionaries(some_text, st.integers(0, 9), max_size=5)),
    )


def random_logits(count: int, seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((count, VOCABULARY_SIZE), generator=generator) * spread
    # Illegal tokens are the likeliest, and part of the text cannot be drawn.
    logits[:, FIRST_SPECIAL:] += 10 * spread
    logits[:, 100:5_000] = -torch.inf
    logits[:, FIRST_SPECIAL:] = logits[:, FIRST_SPECIAL:].round()
    return logits


def assert_same(drawn: Drawn, index: int, alone: Drawn) -> None:
    """Row ``index`` of a batch is to the bit what it is alone."""
    assert (drawn.tokens[index], drawn.sound[index]) == (alone.tokens[0], alone.sound[0])
    assert drawn.logprobs_by_row().get(index) == alone.logprobs_by_row().get(0)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(sampled_rows(), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.0, 1.0, 100.0]),
)
def test_tokens_are_legal_and_rows_independent(rows: list[Row], seed: int, spread: float) -> None:
    logits = random_logits(len(rows), seed, spread)
    for row, values in zip(rows, logits, strict=True):
        values[torch.tensor(row.ids, dtype=torch.int64)] = -1.0
    before = logits.clone()
    drawn = sample(logits, batch(rows))
    assert torch.equal(logits, before)
    for index, (row, token) in enumerate(zip(rows, drawn.tokens.tolist(), strict=True)):
        assert token in row.ids or (row.text and 0 <= token < FIRST_SPECIAL)
        assert logits[index, token] > -torch.inf
        assert_same(drawn, index, sample(logits[index : index + 1], batch([row])))
    backwards = sample(logits.flip(0), batch(rows[::-1]))
    assert backwards.tokens.tolist() == drawn.tokens.tolist()[::-1]


KINDS = (
    Row(),
    Row(top_p=0.95),
    Row(top_k=40),
    Row(min_p=0.01),
    Row(top_p=0.9, min_p=0.02, temperature=0.8),
    Row(temperature=0),
    Row(text=False, ids=(1, 2)),
    Row(penalised={5: 0, 17: 3}, repetition_penalty=1.4, frequency_penalty=0.3),
    Row(temperature=0, bias={8_000: 3.5}),
    Row(temperature=0.6, bias={1: -np.inf}, penalised={2: 1}, presence_penalty=2, top_k=9),
    Row(top_logprobs=4),
)


@pytest.mark.parametrize("logits_at_once", [1, 9_001 * 7, 2**30])
def test_a_row_does_not_depend_on_a_large_batch(
    monkeypatch: pytest.MonkeyPatch, logits_at_once: int
) -> None:
    count = 90
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn((count, 9_001), generator=generator) * 3
    rows = [replace(KINDS[i % len(KINDS)], seed=i, position=3 * i) for i in range(count)]
    alone = [sample(logits[i : i + 1], batch([rows[i]])) for i in range(count)]
    monkeypatch.setattr(sampling, "_LOGITS_AT_ONCE", logits_at_once)
    monkeypatch.setattr(drawing, "_CACHED_LOGITS", logits_at_once)
    drawn = sample(logits, batch(rows))
    for index in range(count):
        assert_same(drawn, index, alone[index])
    plain = [Row(seed=i, position=3 * i) for i in range(count)]
    tokens = draw(logits, batch(plain))[:: len(KINDS)]
    assert tokens.tolist() == drawn.tokens[:: len(KINDS)].tolist()


def test_a_draw_is_keyed_by_seed_and_position() -> None:
    logits = torch.zeros((4, 1_000))
    rows = [
        Row(seed=1, position=2),
        Row(seed=1, position=2),
        Row(seed=2, position=2),
        Row(seed=1, position=3),
    ]
    tokens = draw(logits, batch(rows)).tolist()
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


def give_all_tokens(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """The same random bits for each token: 0 is the least uniform, -1 the greatest."""
    word = bits & 0x7FFF

    def words(keys: torch.Tensor, which: int | torch.Tensor) -> torch.Tensor:
        shape = (len(keys), which) if isinstance(which, int) else which.shape
        return torch.full(shape, -word - 1, dtype=torch.int16)

    monkeypatch.setattr(drawing, "text_words", words)
    monkeypatch.setattr(drawing, "listed_words", words)
    monkeypatch.setattr(drawing, "splitmix64", lambda keys, index: torch.full_like(index, bits))


@pytest.mark.parametrize("bits", [0, -1])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}], ids=str)
def test_the_ends_of_the_unit_interval_draw_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, bits: int, options: dict[str, Any]
) -> None:
    give_all_tokens(monkeypatch, bits)
    logits = torch.full((2, VOCABULARY_SIZE), -torch.inf)
    logits[:, [5, 6, 1_000]] = torch.tensor([1.0, 1.1, 0.9])
    logits[:, END:] = 50.0
    alone = Row(text=False, ids=(CALL,), **options)
    assert draw(logits, batch([Row(**options), alone])).tolist() == [6, CALL]


@pytest.mark.parametrize("bits", [0, 12_345, -1])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 4_097, 201_087])
def test_the_lowest_id_arrives_first_on_ties(
    monkeypatch: pytest.MonkeyPatch, bits: int, columns: int
) -> None:
    give_all_tokens(monkeypatch, bits)
    text = min(columns, FIRST_SPECIAL)
    logits = torch.zeros((2, columns))
    logits[:, : columns // 2] = -torch.inf
    rows = [Row(ids=range(text, columns)), Row(text=False, ids=range(columns - 1, -1, -1))]
    assert draw(logits, batch(rows)).tolist() == [columns // 2, columns // 2]


def test_extreme_temperatures() -> None:
    logits = torch.tensor([[0.0, 1e30, -1e30, 1e30]]).expand(200, -1)
    assert set(draw(logits, repeated(200, temperature=1e-30))) == {1, 3}
    assert set(draw(logits, repeated(200, temperature=3e38))) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"min_p": 0.1}, {"bias": {3: 1.0}}])
def test_a_row_without_a_finite_legal_logit_is_marked_and_harms_no_other(
    temperature: float, options: dict[str, Any]
) -> None:
    def settings(**legality: Any) -> Row:
        return Row(temperature=temperature, top_logprobs=2, **options, **legality)

    good = settings(ids=(END,))
    clean = torch.randn((3, VOCABULARY_SIZE), generator=torch.Generator().manual_seed(3))
    expected = sample(clean, batch([good, good, good]))
    for bad, value in (
        (settings(text=False), 0.0),
        (settings(text=False, ids=(RETURN,)), -torch.inf),
        (settings(ids=(RETURN,)), -torch.inf),
        (settings(), torch.nan),
        (settings(text=False, ids=(RETURN,)), torch.nan),
        (settings(text=False, ids=(RETURN,)), torch.inf),
    ):
        logits = clean.clone()
        logits[1] = value
        drawn = sample(logits, batch([good, bad, good]))
        assert drawn.sound.tolist() == [True, False, True]
        assert drawn.tokens[[0, 2]].tolist() == expected.tokens[[0, 2]].tolist()
        assert 0 <= drawn.tokens[1] < VOCABULARY_SIZE
        logprobs = expected.logprobs_by_row()
        assert drawn.logprobs_by_row() == {0: logprobs[0], 2: logprobs[2]}


def test_an_ender_alone_may_be_drawn_when_text_cannot() -> None:
    logits = torch.full((2, VOCABULARY_SIZE), -torch.inf)
    logits[:, END] = -5.0
    rows = [Row(temperature=0, ids=(END,)), Row(ids=(END,))]
    assert draw(logits, batch(rows)).tolist() == [END, END]


def test_listed_ids_count_once() -> None:
    rows = repeated(2_000, text=False, ids=(7, 5, 7, 7))
    tokens = draw(torch.zeros((2_000, 10)), rows)
    assert abs((tokens == 7).mean() - 0.5) < 0.05
    rows = repeated(2_000, ids=(1, 1))
    tokens = draw(torch.zeros((2_000, 2)), rows)
    assert abs((tokens == 1).mean() - 0.5) < 0.05


def test_no_rows() -> None:
    drawn = sample(torch.zeros((0, VOCABULARY_SIZE)), batch([]))
    assert drawn.tokens.shape == drawn.sound.shape == (0,)
    assert drawn.tokens.dtype == np.int64 and drawn.logprobs_by_row() == {}


def test_malformed_input_is_refused() -> None:
    for token in (10, -1):
        with pytest.raises(ValueError, match="legal_ids reach from"):
            sample(torch.zeros((1, 10)), batch([Row(ids=(token,))]))
        with pytest.raises(ValueError, match="bias_ids reach from"):
            sample(torch.zeros((1, 10)), batch([Row(bias={token: 1.0})]))
        with pytest.raises(ValueError, match="penalised_ids reach from"):
            sample(torch.zeros((1, 10)), batch([Row(penalised={token: 1})]))
    with pytest.raises(ValueError, match="bias_ids reach from"):
        sample(torch.zeros((1, VOCABULARY_SIZE)), batch([Row(bias={END: 1.0})]))
    with pytest.raises(ValueError, match="not float32 for 1 rows"):
        sample(torch.zeros((2, 10)), batch([Row()]))
    with pytest.raises(ValueError, match="not float32"):
        sample(torch.zeros((1, 10), dtype=torch.float64), batch([Row()]))
    with pytest.raises(ValueError, match="vocabulary"):
        sample(torch.zeros((1, 2**19)), batch([Row()]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_it_draws_alone() -> None:
    rows = [replace(KINDS[i % len(KINDS)], seed=i, position=i) for i in range(99)]
    logits = random_logits(len(rows), 3, 2.0).cuda()
    drawn = sample(logits, batch(rows))
    for index, (row, token) in enumerate(zip(rows, drawn.tokens.tolist(), strict=True)):
        assert token in row.ids or (row.text and token < FIRST_SPECIAL)
        assert_same(drawn, index, sample(logits[index : index + 1], batch([row])))
