"""Rows to sample, and the exact distribution that their draws must follow, for tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moeray.worker.plan import SampleRows
from moeray.worker.sampling import sample

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of SampleRows."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    position: int = 0
    top_logprobs: int | None = None
    text: bool = True
    ids: Sequence[int] = ()
    bias: Mapping[int, float] = field(default_factory=dict)
    penalised: Mapping[int, int] = field(default_factory=dict)
    """Output count by token; 0 is of the prompt alone."""


def batch(rows: Sequence[Row]) -> SampleRows:
    def column(name: str, dtype: type[np.generic]) -> Any:
        return np.array([getattr(row, name) for row in rows], dtype)

    def starts(name: str) -> Any:
        return np.cumsum([0, *(len(getattr(row, name)) for row in rows)]).astype(np.int32)

    bias = [pair for row in rows for pair in row.bias.items()]
    penalised = [pair for row in rows for pair in row.penalised.items()]
    return SampleRows(
        sequences=np.arange(len(rows), dtype=np.int32),
        temperature=column("temperature", np.float32),
        top_p=column("top_p", np.float32),
        top_k=column("top_k", np.int32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        presence_penalty=column("presence_penalty", np.float32),
        frequency_penalty=column("frequency_penalty", np.float32),
        seed=column("seed", np.uint64),
        draw_position=column("position", np.uint64),
        wants_logprobs=np.array([row.top_logprobs is not None for row in rows], np.bool_),
        top_logprobs=np.array([row.top_logprobs or 0 for row in rows], np.int32),
        text_legal=column("text", np.bool_),
        legal_starts=starts("ids"),
        legal_ids=np.array([i for row in rows for i in row.ids], np.int32),
        bias_starts=starts("bias"),
        bias_ids=np.array([token for token, _ in bias], np.int32),
        bias=np.array([value for _, value in bias], np.float32),
        penalised_starts=starts("penalised"),
        penalised_ids=np.array([token for token, _ in penalised], np.int32),
        output_counts=np.array([count for _, count in penalised], np.int32),
    )


def repeated(count: int, **settings: Any) -> SampleRows:
    """One row, at draw positions 0 to count - 1."""
    return batch([Row(position=i, **settings) for i in range(count)])


def draw(logits: torch.Tensor, rows: SampleRows) -> NDArray[np.int64]:
    """The tokens, all of which must be sound."""
    drawn = sample(logits, rows)
    assert drawn.sound.all()
    return drawn.tokens


def adjusted(logits: Float64, row: Row) -> Float64:
    """Bias and penalties by their definition."""
    result = logits.astype(np.float64).copy()
    for token, value in row.bias.items():
        result[token] += value
    for token, count in row.penalised.items():
        positive = result[token] > 0
        result[token] *= 1 / row.repetition_penalty if positive else row.repetition_penalty
        result[token] -= row.frequency_penalty * count + row.presence_penalty * (count > 0)
    return result


def exact(logits: Float64, row: Row) -> Float64:
    """The distribution of a row in a body over all of its text, by its definition in float64.

    Shares that miss top_p or min_p by less than float32 resolves count as reaching it.
    """
    scaled = adjusted(logits, row) / row.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.lexsort((np.arange(len(weights)), -weights))
    kept = order[: row.top_k or len(order)]
    if row.top_p < 1:
        shares = np.cumsum(weights[kept]) / weights[kept].sum()
        kept = kept[: int((shares < row.top_p - 1e-6).sum()) + 1]
    kept = kept[weights[kept] >= row.min_p * (1 - 1e-6)]
    probabilities = np.zeros_like(weights)
    probabilities[kept] = weights[kept]
    return probabilities / probabilities.sum()


def follows(tokens: NDArray[np.int64], probabilities: Float64) -> bool:
    """Whether Pearson's chi-square test accepts the draws at a significance of 1e-4.

    Tokens expected fewer than 5 times count as one, or with the next rarest where even they are
    too rare; a token of probability 0 is never accepted.
    """
    observed = np.bincount(tokens, minlength=len(probabilities)).astype(np.float64)
    if observed[probabilities == 0].any():
        return False
    order = np.argsort(probabilities)
    expected = probabilities[order] * len(tokens)
    # Bins from the rarest up: one is full when 5 are expected in it.
    bins, size, number = np.zeros(len(order), np.int64), 0.0, 0
    for index, value in enumerate(expected):
        if size >= 5:
            size, number = 0.0, number + 1
        bins[index] = number
        size += value
    if size < 5 and number:
        bins[bins == number] = number - 1
    pooled = np.bincount(bins, weights=expected)
    statistic = ((np.bincount(bins, weights=observed[order]) - pooled) ** 2 / pooled).sum()
    freedom = len(pooled) - 1
    if freedom == 0:
        return True
    # Wilson and Hilferty's cube-root approximation of the 1 - 1e-4 quantile.
    spread = 2 / (9 * freedom)
    return bool(statistic < freedom * (1 - spread + 3.719 * spread**0.5) ** 3)
