"""Log-probabilities: of the model's own distribution, whatever the draw was made from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.vocabulary.harmony_tokens import END, FIRST_SPECIAL, VOCABULARY_SIZE
from moeray.worker.plan import Drawn
from moeray.worker.sampling import sample
from tests.worker.sample_rows import Row, batch

torch.set_num_threads(1)


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    return torch.log_softmax(logits.to(torch.float64), 1).numpy()


def check(logits: torch.Tensor, rows: list[Row], drawn: Drawn) -> None:
    expected = log_softmax(logits)
    by_row = drawn.logprobs_by_row()
    asked = {i for i, row in enumerate(rows) if row.text and row.top_logprobs is not None}
    assert set(by_row) == asked
    for index, (logprob, top_ids, top_logprobs) in by_row.items():
        exact = expected[index]
        assert logprob == pytest.approx(exact[drawn.tokens[index]], abs=2e-6, rel=1e-6)
        best = np.lexsort((np.arange(len(exact)), -logits[index].numpy()))
        assert list(top_ids) == best[: rows[index].top_logprobs].tolist()
        np.testing.assert_allclose(top_logprobs, exact[list(top_ids)], atol=2e-6, rtol=1e-6)


def test_they_are_of_the_raw_logits_over_the_whole_vocabulary() -> None:
    logits = torch.randn((5, VOCABULARY_SIZE), generator=torch.Generator().manual_seed(0)) * 3
    # What is illegal in a body is the likeliest, and counts all the same.
    logits[:, FIRST_SPECIAL + 3] = 20.0
    rows = [
        Row(top_logprobs=5),
        Row(temperature=0, top_logprobs=0, ids=(END,)),
        Row(temperature=0.2, top_k=1, top_logprobs=20, bias={9: 90.0}, penalised={9: 5}),
        Row(text=False, ids=(5,), top_logprobs=3),
        Row(),
    ]
    drawn = sample(logits, batch(rows))
    assert drawn.tokens[2] == 9
    check(logits, rows, drawn)
    assert drawn.logprobs_by_row()[0].top_ids[0] == FIRST_SPECIAL + 3
    assert drawn.logprobs_by_row()[1].top_ids == ()


def test_an_ender_has_its_log_probability() -> None:
    logits = torch.zeros((1, VOCABULARY_SIZE))
    logits[0, END] = 12.0
    rows = [Row(temperature=0, ids=(END,), top_logprobs=1)]
    drawn = sample(logits, batch(rows))
    assert drawn.tokens.tolist() == [END]
    check(logits, rows, drawn)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    tops=st.lists(st.sampled_from([None, 0, 1, 2, 7, 20]), min_size=1, max_size=5),
    width=st.integers(1, 60),
    steps=st.sampled_from([1, 4, 1000]),
)
def test_ties_are_ordered_by_the_lowest_id(
    seed: int, tops: list[int | None], width: int, steps: int
) -> None:
    source = np.random.default_rng(seed)
    values = source.integers(-steps, steps + 1, (len(tops), width)) / steps
    # Zeros of both signs are equal, and -inf is a value like others.
    values = np.where(source.random(values.shape) < 0.2, -0.0, values)
    values[:, 1:] = np.where(source.random((len(tops), width - 1)) < 0.1, -np.inf, values[:, 1:])
    logits = torch.tensor(values, dtype=torch.float32)
    rows = [Row(top_logprobs=top) for top in tops]
    check(logits, rows, sample(logits, batch(rows)))


def test_many_rows_have_what_each_has_alone() -> None:
    logits = torch.randn((70, 300), generator=torch.Generator().manual_seed(1))
    rows = [Row(seed=i, top_logprobs=(None, 3, 0, 9)[i % 4]) for i in range(70)]
    drawn = sample(logits, batch(rows))
    check(logits, rows, drawn)
    for index in range(70):
        alone = sample(logits[index : index + 1], batch([rows[index]]))
        assert alone.logprobs_by_row().get(0) == drawn.logprobs_by_row().get(index)
