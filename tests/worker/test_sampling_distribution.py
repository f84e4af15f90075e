"""Draws follow the exact distribution, and the test that says so rejects wrong ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from tests.worker.sample_rows import Float64, Row, batch, draw, exact, follows

torch.set_num_threads(1)

LOGITS = np.random.default_rng(5).normal(0, 2, 40).round(1)
"""Rounded, so that some are equal."""
BIAS = {3: 2.5, 17: -1.0, 30: -np.inf, 39: 1.5}
PENALISED = {0: 1, 3: 0, 5: 2, 8: 7, 12: 0, 39: 1}
LIKELIEST = int(LOGITS.argmax())


def draws(logits: Float64, row: Row, count: int) -> np.ndarray:
    """Tokens at ``count`` positions, of as many seeds."""
    rows = [replace(row, seed=11 + i % 7, position=i) for i in range(count)]
    values = torch.tensor(logits, dtype=torch.float32).expand(count, -1)
    return draw(values, batch(rows))


TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 100},
    {"top_p": 0.5},
    {"top_p": 0.9},
    {"top_p": 0.999},
    {"min_p": 0.02},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"top_k": 10, "top_p": 0.8},
    {"top_k": 12, "min_p": 0.1},
    {"top_p": 0.95, "min_p": 0.05},
    {"top_k": 9, "top_p": 0.97, "min_p": 0.2},
]
SHIFTS: list[dict[str, Any]] = [
    {},
    {"bias": BIAS},
    {"penalised": PENALISED, "repetition_penalty": 1.7},
    {"penalised": PENALISED, "repetition_penalty": 0.6},
    {"penalised": PENALISED, "presence_penalty": 1.2},
    {"penalised": PENALISED, "frequency_penalty": -0.4},
    {
        "bias": BIAS,
        "penalised": PENALISED | {LIKELIEST: 3},
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
    },
]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("truncation", TRUNCATIONS, ids=str)
def test_draws_follow_the_distribution(temperature: float, truncation: dict[str, Any]) -> None:
    row = Row(temperature=temperature, **truncation)
    assert follows(draws(LOGITS, row, 8_000), exact(LOGITS, row))


@pytest.mark.parametrize("shift", SHIFTS[1:], ids=str)
@pytest.mark.parametrize("others", [{}, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02}], ids=str)
def test_shifted_draws_follow_the_distribution(shift: dict[str, Any], others: Any) -> None:
    row = Row(**shift, **others)
    assert follows(draws(LOGITS, row, 8_000), exact(LOGITS, row))


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_greedy_takes_the_likeliest_of_the_shifted(shift: dict[str, Any]) -> None:
    row = Row(**shift)
    expected = int(exact(LOGITS, row).argmax())
    assert set(draws(LOGITS, replace(row, temperature=0), 3)) == {expected}


@pytest.mark.parametrize(
    "options",
    [{}, {"top_p": 0.7, "temperature": 0.8}, {"min_p": 0.1, "bias": {150_000: 6.0}}],
    ids=str,
)
def test_draws_from_the_whole_vocabulary_follow_the_distribution(options: dict[str, Any]) -> None:
    # Few tokens share most of the mass, so that a few draws tell them apart.
    logits = np.random.default_rng(6).normal(0, 1, VOCABULARY_SIZE)
    logits[[5, 600, 70_000, 150_000, 199_997]] += 14
    row = Row(**options)
    expected = exact(logits[:199_998], row)
    assert follows(draws(logits, row, 300), expected)


def top_p_off_by_one(logits: Float64, row: Row) -> Float64:
    expected = exact(logits, row)
    without = np.where(expected == expected[expected > 0].min(), 0, expected)
    return without / without.sum()


def min_p_before_temperature(logits: Float64, row: Row) -> Float64:
    kept = logits >= logits.max() + np.log(row.min_p)
    weights = np.where(kept, np.exp(logits / row.temperature), 0)
    return weights / weights.sum()


def min_p_of_one(logits: Float64, row: Row) -> Float64:
    """As though min_p were a probability, not a ratio."""
    expected = exact(logits, replace(row, min_p=0))
    kept = np.where(expected >= row.min_p, expected, 0)
    return kept / kept.sum()


def temperature_ignored(logits: Float64, row: Row) -> Float64:
    return exact(logits, replace(row, temperature=1))


def min_p_before_top_p(logits: Float64, row: Row) -> Float64:
    first = exact(logits, replace(row, top_p=1))
    order = np.argsort(-first, kind="stable")
    kept = order[: int((np.cumsum(first[order]) < row.top_p).sum()) + 1]
    weights = np.zeros_like(first)
    weights[kept] = first[kept]
    return weights / weights.sum()


def prompt_counts_as_output(logits: Float64, row: Row) -> Float64:
    counts = {token: count + 1 for token, count in row.penalised.items()}
    return exact(logits, replace(row, penalised=counts))


def penalty_always_divides(logits: Float64, row: Row) -> Float64:
    shifted = logits.copy()
    shifted[list(row.penalised)] /= row.repetition_penalty
    return exact(shifted, Row())


def penalties_before_bias(logits: Float64, row: Row) -> Float64:
    shifted = logits.copy()
    for token in row.penalised:
        shifted[token] *= row.repetition_penalty ** (-1 if shifted[token] > 0 else 1)
    return exact(shifted, Row(bias=row.bias))


@pytest.mark.parametrize(
    ("wrong", "row"),
    [
        (top_p_off_by_one, Row(top_p=0.9)),
        (top_p_off_by_one, Row(top_k=7)),
        (min_p_before_temperature, Row(min_p=0.1, temperature=2.0)),
        (min_p_of_one, Row(min_p=0.1)),
        (temperature_ignored, Row(temperature=0.9)),
        (min_p_before_top_p, Row(top_p=0.8, min_p=0.2)),
        (prompt_counts_as_output, Row(penalised=PENALISED, presence_penalty=1.2)),
        (prompt_counts_as_output, Row(penalised=PENALISED, frequency_penalty=-0.4)),
        (penalty_always_divides, Row(penalised=PENALISED, repetition_penalty=1.7)),
        (penalties_before_bias, Row(bias=BIAS, penalised={3: 0, 39: 0}, repetition_penalty=1.7)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_distributions_are_rejected(
    wrong: Callable[[Float64, Row], Float64], row: Row
) -> None:
    expected = exact(LOGITS, row)
    assert abs(expected.sum() - 1) < 1e-9
    drawn = np.random.default_rng(1).choice(len(LOGITS), 8_000, p=wrong(LOGITS, row))
    assert not follows(drawn, expected)
    right = np.random.default_rng(1).choice(len(LOGITS), 8_000, p=expected)
    assert follows(right, expected)
