"""Bias and penalties: what they shift, and for whom."""

import numpy as np
import pytest
import torch

from moeray.vocabulary.harmony_tokens import END, FIRST_SPECIAL, VOCABULARY_SIZE
from moeray.worker.penalties import shift_logits, shifts_logits
from tests.worker.sample_rows import Row, adjusted, batch, draw

ROWS = (
    Row(bias={0: 1.5, 7: -np.inf}, penalised={7: 1, 3: 2}, presence_penalty=0.5),
    Row(),
    Row(penalised={1: 0, 2: 1, 5: 9}, repetition_penalty=1.5, frequency_penalty=0.25),
    Row(penalised={1: 4}, presence_penalty=-1.0, frequency_penalty=-0.5),
    Row(bias={9: 100.0}),
)


def test_each_row_is_shifted_by_its_own() -> None:
    rows = batch(ROWS)
    assert shifts_logits(rows).tolist() == [True, False, True, True, True]
    logits = np.random.default_rng(0).normal(0, 3, (5, 10)).astype(np.float32)
    members = np.array([0, 2, 3, 4])
    text = torch.from_numpy(logits[members])
    shift_logits(text, rows, members)
    for shifted, index in zip(text.numpy(), members, strict=True):
        expected = adjusted(logits[index].astype(np.float64), ROWS[index])
        np.testing.assert_allclose(shifted, expected, rtol=1e-6)


def test_positive_logits_are_divided_and_negative_ones_multiplied() -> None:
    rows = batch([Row(penalised={0: 0, 1: 0, 2: 0}, repetition_penalty=2.0)])
    text = torch.tensor([[3.0, -3.0, 0.0, 3.0]])
    shift_logits(text, rows, np.array([0]))
    assert text.tolist() == [[1.5, -6.0, 0.0, 3.0]]


def test_prompt_tokens_feel_the_repetition_penalty_alone() -> None:
    rows = batch([Row(penalised={0: 0, 1: 3}, presence_penalty=1.0, frequency_penalty=0.5)])
    text = torch.zeros((1, 2))
    shift_logits(text, rows, np.array([0]))
    assert text.tolist() == [[0.0, -2.5]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_headers_and_enders_are_not_shifted(temperature: float) -> None:
    shifting = {"bias": {5: -100.0, 6: 100.0}, "penalised": {5: 9}, "frequency_penalty": 2.0}
    header = Row(temperature=temperature, text=False, ids=(5, 6), **shifting)  # type: ignore[arg-type]
    logits = torch.full((2, VOCABULARY_SIZE), -200.0)
    logits[:, 5] = 60.0
    logits[1, 5] = -50.0
    logits[1, END] = 60.0
    body = Row(temperature=temperature, ids=(END,), bias={5: 100.0}, repetition_penalty=2.0)
    assert draw(logits, batch([header, body])).tolist() == [5, END]


def test_greedy_honours_a_bias_that_bans() -> None:
    logits = torch.zeros((2, FIRST_SPECIAL))
    logits[:, 4], logits[:, 8] = 3.0, 2.0
    rows = [Row(temperature=0, bias={4: -np.inf}), Row(temperature=0)]
    assert draw(logits, batch(rows)).tolist() == [8, 4]
