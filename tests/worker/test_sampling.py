"""Sampling: the mask, greedy ties, the drawn distributions, and independence of rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

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
from moeray.worker import sampling
from moeray.worker.plan import SampleRows
from moeray.worker.sampling import sample

torch.set_num_threads(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of SampleRows."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    position: int = 0
    text: bool = True
    ids: Sequence[int] = field(default=())


def batch(rows: Sequence[Row]) -> SampleRows:
    listed = [i for row in rows for i in row.ids]
    return SampleRows(
        sequences=np.arange(len(rows), dtype=np.int32),
        temperature=np.array([row.temperature for row in rows], dtype=np.float32),
        top_p=np.array([row.top_p for row in rows], dtype=np.float32),
        top_k=np.array([row.top_k for row in rows], dtype=np.int32),
        seed=np.array([row.seed for row in rows], dtype=np.uint64),
        draw_position=np.array([row.position for row in rows], dtype=np.uint64),
        text_legal=np.array([row.text for row in rows], dtype=np.bool_),
        legal_starts=np.cumsum([0, *(len(row.ids) for row in rows)]).astype(np.int32),
        legal_ids=np.array(listed, dtype=np.int32),
    )


def repeated(count: int, **settings: object) -> SampleRows:
    return batch([Row(position=i, **settings) for i in range(count)])  # type: ignore[arg-type]


def chi_square(tokens: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; tokens of probability 0 must not occur."""
    observed = np.bincount(tokens, minlength=len(probabilities))
    possible = probabilities > 0
    assert not observed[~possible].any()
    expected = probabilities[possible] * len(tokens)
    return ((observed[possible] - expected) ** 2 / expected).sum(), int(possible.sum()) - 1


def assert_distribution(tokens: np.ndarray, probabilities: np.ndarray) -> None:
    statistic, freedom = chi_square(tokens, probabilities)
    # Wilson and Hilferty's cube-root approximation of the 1 - 1e-4 quantile.
    spread = 2 / (9 * freedom)
    assert statistic < freedom * (1 - spread + 3.719 * spread**0.5) ** 3


def exact(
    logits: np.ndarray, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> np.ndarray:
    """The distribution by its definition, in float64."""
    weights = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(logits)), -logits))
    kept = order[: top_k or len(order)]
    shares = np.cumsum(weights[kept]) / weights[kept].sum()
    kept = kept[: int((shares < top_p - 1e-6).sum()) + 1] if top_p < 1 else kept
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept]
    return probabilities / probabilities.sum()


LOGITS = np.random.default_rng(5).normal(0, 2, 40).round(1)
"""Rounded, so that some are equal."""


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 1.0), (1, 1.0), (7, 1.0), (100, 1.0), (0, 0.5), (0, 0.9), (0, 0.999), (10, 0.8)],
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    count = 20_000
    rows = repeated(count, temperature=temperature, top_k=top_k, top_p=top_p, seed=11)
    logits = torch.tensor(LOGITS, dtype=torch.float32).expand(count, -1)
    expected = exact(LOGITS, temperature=temperature, top_k=top_k, top_p=top_p)
    tokens = sample(logits, rows)
    if (expected > 0).sum() == 1:
        assert set(tokens) == {int(expected.argmax())}
    else:
        common = expected * count >= 5
        # The rare tokens count as one, because chi-square needs some of each.
        bins = np.where(common, np.cumsum(common), 0)
        pooled = np.bincount(bins, weights=expected)
        assert not (expected[tokens] == 0).any()
        assert_distribution(bins[tokens], pooled)


def test_draws_in_a_header_follow_the_distribution_over_the_listed_ids() -> None:
    count, ids = 5_000, (MESSAGE, 17, 4000)
    logits = torch.zeros(VOCABULARY_SIZE).normal_(generator=torch.Generator().manual_seed(1))
    logits[torch.tensor(ids)] = torch.tensor([0.0, 1.0, -1.0])
    tokens = sample(logits.expand(count, -1), repeated(count, text=False, ids=ids))
    expected = np.exp([0.0, 1.0, -1.0])
    assert set(tokens) == set(ids)
    assert_distribution(np.array([ids.index(t) for t in tokens]), expected / expected.sum())


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (5, 1.0)])
def test_an_ender_is_drawn_in_its_share(top_k: int, top_p: float) -> None:
    count = 200
    logits = torch.full((VOCABULARY_SIZE,), -30.0)
    logits[[3, 70_000, END, RETURN]] = torch.tensor([0.0, 0.0, 0.0, 9.0])
    rows = repeated(count, ids=(END,), top_k=top_k, top_p=top_p, seed=4)
    tokens = sample(logits.expand(count, -1), rows)
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
    assert sample(logits, batch(rows)).tolist() == [900, END, 12, CALL, 0]


def test_top_k_and_top_p_break_ties_by_the_lowest_id() -> None:
    # Ten equal logits behind a greater one; a third of them is kept.
    logits = torch.full((3_000, 5_000), -50.0)
    ties = [4_000, 7, 90, 350, 351, 352, 4_500, 1_200, 3, 2_000]
    logits[:, ties] = 1.0
    logits[:, 4_999] = 1.5
    kept = {4_999, 3, 7, 90}
    assert set(sample(logits, repeated(3_000, top_k=4))) == kept
    share = (np.exp(0.5) + 3) / (np.exp(0.5) + 10)
    assert set(sample(logits, repeated(3_000, top_p=share))) == kept


@pytest.mark.parametrize(("top_p", "size"), [(0.1, 1), (0.3, 3), (0.7, 7), (0.71, 8), (1.0, 10)])
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(top_p: float, size: int) -> None:
    tokens = sample(torch.zeros((500, 10)), repeated(500, top_p=top_p))
    assert set(tokens) == set(range(size))


def test_the_least_top_p_keeps_the_likeliest_token() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0]]).expand(50, -1)
    assert set(sample(logits, repeated(50, top_p=1e-9))) == {1}


def test_a_nucleus_beyond_the_first_search_is_found() -> None:
    count, width = 4_000, 3 * sampling._FIRST_SEARCH
    rows = [
        # Only the first kind needs the second search, and it must not disturb the other.
        Row(position=i, top_p=0.5 if i % 2 else 0.01)
        for i in range(count)
    ]
    tokens = sample(torch.zeros((count, width)), batch(rows))
    assert tokens[1::2].max() < width / 2 and tokens[0::2].max() < width / 100 + 1
    assert len(set(tokens[1::2])) > width / 3
    alone = [int(sample(torch.zeros((1, width)), batch([row]))[0]) for row in rows[:20]]
    assert tokens[:20].tolist() == alone


special = st.integers(FIRST_SPECIAL, VOCABULARY_SIZE - 1)


@st.composite
def sampled_rows(draw: st.DrawFn) -> Row:
    text = draw(st.booleans())
    anywhere = st.integers(0, VOCABULARY_SIZE - 1)
    return Row(
        temperature=draw(st.sampled_from([0.0, 1e-6, 0.7, 1.0, 2.0, 1e4])),
        top_p=draw(st.sampled_from([1.0, 0.999, 0.9, 0.1, 1e-9])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 50, VOCABULARY_SIZE])),
        seed=draw(st.integers(0, 2**64 - 1)),
        position=draw(st.integers(0, 2**64 - 1)),
        text=text,
        ids=draw(st.lists(st.one_of(special, anywhere), min_size=0 if text else 1, max_size=4)),
    )


def random_logits(count: int, seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((count, VOCABULARY_SIZE), generator=generator) * spread
    # Illegal tokens are the likeliest, and part of the text cannot be drawn.
    logits[:, FIRST_SPECIAL:] += 10 * spread
    logits[:, 100:5_000] = -torch.inf
    logits[:, FIRST_SPECIAL:] = logits[:, FIRST_SPECIAL:].round()
    return logits


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
    tokens = sample(logits, batch(rows))
    assert torch.equal(logits, before)
    for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
        assert token in row.ids or (row.text and 0 <= token < FIRST_SPECIAL)
        assert logits[index, token] > -torch.inf
        alone = sample(logits[index : index + 1], batch([row]))
        assert alone.tolist() == [token]
    backwards = sample(logits.flip(0), batch(rows[::-1]))
    assert backwards.tolist() == tokens.tolist()[::-1]


def test_a_row_does_not_depend_on_a_large_batch() -> None:
    count = 2 * sampling._ROWS_AT_ONCE + 3
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn((count, 9_001), generator=generator)
    kinds = [Row(), Row(top_p=0.95), Row(top_k=40), Row(temperature=0), Row(text=False, ids=(1, 2))]
    rows = [
        Row(
            temperature=kind.temperature,
            top_p=kind.top_p,
            top_k=kind.top_k,
            text=kind.text,
            ids=kind.ids,
            seed=i,
            position=3 * i,
        )
        for i in range(count)
        for kind in [kinds[i % len(kinds)]]
    ]
    tokens = sample(logits, batch(rows))
    alone = [int(sample(logits[i : i + 1], batch([rows[i]]))[0]) for i in range(count)]
    assert tokens.tolist() == alone
    same = [Row(seed=i, position=3 * i) for i in range(count)]
    tokens = sample(logits, batch(same))
    assert tokens[::5].tolist() == alone[::5]


def test_a_draw_is_keyed_by_seed_and_position() -> None:
    logits = torch.zeros((4, 1_000))
    rows = [
        Row(seed=1, position=2),
        Row(seed=1, position=2),
        Row(seed=2, position=2),
        Row(seed=1, position=3),
    ]
    tokens = sample(logits, batch(rows)).tolist()
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3


@pytest.mark.parametrize("drawn", [0.0, 1 - 2.0**-53])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.9)])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(
    monkeypatch: pytest.MonkeyPatch, drawn: float, top_k: int, top_p: float
) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: np.full(len(seed), drawn))
    logits = torch.full((1, VOCABULARY_SIZE), -torch.inf)
    logits[0, [5, 6, 1_000]] = torch.tensor([1.0, 1.1, 0.9])
    logits[0, END:] = 50.0
    token = sample(logits, batch([Row(top_k=top_k, top_p=top_p)]))[0]
    in_order = (6, 1_000) if top_k or top_p < 1 else (5, 1_000)
    assert token == in_order[drawn > 0]


@pytest.mark.parametrize("columns", [1, 2, 511, 512, 513, 1_023, 1_025, 4_097, 201_087])
def test_the_greatest_uniform_draws_the_last_of_equal_tokens(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    greatest = 1 - 2.0**-53
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: np.full(len(seed), greatest))
    text = min(columns, FIRST_SPECIAL)
    row = Row(ids=range(text, columns))
    assert sample(torch.zeros((1, columns)), batch([row])).tolist() == [columns - 1]


def test_extreme_temperatures() -> None:
    logits = torch.tensor([[0.0, 1e30, -1e30, 1e30]]).expand(200, -1)
    assert set(sample(logits, repeated(200, temperature=1e-30))) == {1, 3}
    assert set(sample(logits, repeated(200, temperature=3e38))) == {0, 1, 2, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 3])
def test_rows_without_a_finite_legal_logit_are_refused(temperature: float, top_k: int) -> None:
    def settings(**legality: object) -> Row:
        return Row(temperature=temperature, top_k=top_k, **legality)  # type: ignore[arg-type]

    good = settings(ids=(END,))
    nothing = settings(text=False)
    for bad, value in (
        (nothing, 0.0),
        (settings(text=False, ids=(RETURN,)), -torch.inf),
        (settings(ids=(RETURN,)), -torch.inf),
        (settings(), torch.nan),
        (settings(text=False, ids=(RETURN,)), torch.nan),
        (settings(text=False, ids=(RETURN,)), torch.inf),
    ):
        logits = torch.zeros((3, VOCABULARY_SIZE))
        logits[1] = value
        with pytest.raises(ValueError, match="row 1 "):
            sample(logits, batch([good, bad, good]))
    logits[1, :] = 0
    assert len(sample(logits, batch([good, settings(ids=(RETURN,)), good]))) == 3


def test_an_ender_alone_may_be_drawn_when_text_cannot() -> None:
    logits = torch.full((2, VOCABULARY_SIZE), -torch.inf)
    logits[:, END] = -5.0
    rows = [Row(temperature=0, ids=(END,)), Row(ids=(END,))]
    assert sample(logits, batch(rows)).tolist() == [END, END]


def test_listed_ids_count_once() -> None:
    rows = repeated(2_000, text=False, ids=(7, 5, 7, 7))
    tokens = sample(torch.zeros((2_000, 10)), rows)
    assert abs((tokens == 7).mean() - 0.5) < 0.05
    rows = repeated(2_000, ids=(1, 1))
    tokens = sample(torch.zeros((2_000, 2)), rows)
    assert abs((tokens == 1).mean() - 0.5) < 0.05


def test_no_rows() -> None:
    tokens = sample(torch.zeros((0, VOCABULARY_SIZE)), batch([]))
    assert tokens.shape == (0,) and tokens.dtype == np.int64


def test_malformed_input_is_refused() -> None:
    with pytest.raises(ValueError, match="legal_ids reach from"):
        sample(torch.zeros((1, 10)), batch([Row(ids=(10,))]))
    with pytest.raises(ValueError, match="legal_ids reach from"):
        sample(torch.zeros((1, 10)), batch([Row(ids=(-1,))]))
    with pytest.raises(ValueError, match="not float32 for 1 rows"):
        sample(torch.zeros((2, 10)), batch([Row()]))
    with pytest.raises(ValueError, match="not float32"):
        sample(torch.zeros((1, 10), dtype=torch.float64), batch([Row()]))
    with pytest.raises(ValueError, match="vocabulary"):
        sample(torch.zeros((1, 2**19)), batch([Row()]))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_legal_tokens_alone_as_in_a_batch() -> None:
    rows = [
        Row(temperature=0.9, seed=i, position=i, top_k=(0, 0, 50)[i % 3], top_p=(1, 0.9, 1)[i % 3])
        for i in range(48)
    ]
    logits = random_logits(48, 3, 2.0).cuda()
    tokens = sample(logits, batch(rows)).tolist()
    assert all(token < FIRST_SPECIAL for token in tokens)
    assert tokens == [int(sample(logits[i : i + 1], batch([rows[i]]))[0]) for i in range(48)]
