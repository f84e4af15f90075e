"""The race behind draws: against one run in full, under noise, and with filters."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from moeray.vocabulary.harmony_tokens import END, FIRST_SPECIAL, VOCABULARY_SIZE
from moeray.worker.philox import draw_keys
from tests.worker.sample_rows import Float64, Row, batch, draw

torch.set_num_threads(1)

Float32 = np.ndarray[Any, np.dtype[np.float32]]
NOISE = 1e-6


def mixed(keys: np.ndarray, index: np.ndarray) -> np.ndarray:
    """SplitMix64 in unsigned integers: output ``index`` of each key."""
    bits = keys + (index + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, multiplier in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(multiplier)
    return bits ^ (bits >> np.uint64(31))


def exponentials(seed: int, position: int, count: int) -> Float64:
    """E of the ids 0 to count - 1 in one row: by its definition, for all of them."""
    high, low = draw_keys(*np.array([[seed], [position]], np.uint64))[0].view(np.uint64)
    ids = np.arange(count, dtype=np.uint64)
    words = mixed(high, ids >> np.uint64(2)) >> (ids & np.uint64(3)) * np.uint64(16)
    # A word's 14 bits count down, because it is read as a negative number.
    part = (2**15 - 1 - (words & np.uint64(0x7FFF)).astype(np.int64)) // 2
    fine = (mixed(low, ids) & np.uint64(2**36 - 1)).astype(np.float64) + 0.5
    return -np.log1p(-(part + fine * 2.0**-36) / 2**14)


def raced(logits: Float32, row: Row) -> int:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / row.temperature)
    return int((weights / exponentials(row.seed, row.position, len(logits))).argmax())


def inverted(logits: Float32, row: Row) -> int:
    """The draw by inverse CDF, exact for the logits it is given."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / row.temperature)
    uniform = np.random.default_rng([row.seed, row.position]).random()
    mass = weights.cumsum()
    return int(np.searchsorted(mass, uniform * mass[-1], side="right"))


def by_sample(logits: Float32, row: Row) -> int:
    return int(draw(torch.from_numpy(logits)[None], batch([row]))[0])


def text_logits(spread: float, peak: float = 0.0) -> Float32:
    """Logits of the whole vocabulary, of which special tokens are never drawn."""
    logits = np.random.default_rng(8).normal(0, spread, VOCABULARY_SIZE)
    logits[[77, 150_001]] += peak
    logits[FIRST_SPECIAL:] = -np.inf
    return logits.astype(np.float32)


FLAT, MODEL_LIKE, PEAKED = text_logits(0.05), text_logits(2.5), text_logits(1.0, peak=14.0)


@pytest.mark.parametrize("logits", [FLAT, MODEL_LIKE, PEAKED], ids=["flat", "model", "peaked"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_a_draw_is_the_first_of_all_tokens(logits: Float32, temperature: float) -> None:
    rows = [Row(seed=5, position=i, temperature=temperature) for i in range(12)]
    tokens = draw(torch.from_numpy(logits).expand(len(rows), -1), batch(rows))
    assert tokens.tolist() == [raced(logits, row) for row in rows]


def test_a_draw_among_few_tokens_is_the_first_of_them() -> None:
    logits = np.random.default_rng(9).normal(0, 1, 7).astype(np.float32)
    rows = [Row(seed=i % 3, position=i) for i in range(2_000)]
    tokens = draw(torch.from_numpy(logits).expand(len(rows), -1), batch(rows))
    assert tokens.tolist() == [raced(logits, row) for row in rows]
    listed = [replace(row, text=False, ids=range(6, -1, -1)) for row in rows]
    again = draw(torch.from_numpy(logits).expand(len(rows), -1), batch(listed))
    assert again.tolist() == tokens.tolist()


def moved(choose: Callable[[Float32, Row], int], logits: Float32, count: int) -> int:
    """How many of ``count`` draws move when each logit is off by some 1e-6 of itself."""
    source = np.random.default_rng(10)
    found = 0
    for i in range(count):
        noise = 1 + NOISE * source.standard_normal(len(logits))
        noisy = (logits * noise).astype(np.float32)
        row = Row(seed=1 + i % 5, position=i)
        found += choose(logits, row) != choose(noisy, row)
    return found


@pytest.mark.parametrize("logits", [FLAT, MODEL_LIKE, PEAKED], ids=["flat", "model", "peaked"])
def test_noise_in_the_logits_moves_no_draw(logits: Float32) -> None:
    assert moved(by_sample, logits, 250) == 0


@pytest.mark.parametrize("logits", [MODEL_LIKE, PEAKED], ids=["model", "peaked"])
def test_noise_in_the_logits_would_move_draws_by_inverse_cdf(logits: Float32) -> None:
    assert moved(inverted, logits, 250) > 2


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40},
        {"top_p": 0.9},
        {"min_p": 0.02},
        {"top_k": 400, "top_p": 0.95, "min_p": 0.001},
    ],
    ids=str,
)
def test_a_filter_that_keeps_the_winner_does_not_change_the_draw(options: dict[str, Any]) -> None:
    logits = torch.from_numpy(np.random.default_rng(3).normal(0, 2.5, 3_000).astype(np.float32))
    plain = [Row(seed=2, position=i, temperature=0.8) for i in range(1_500)]
    filtered = [replace(row, **options) for row in plain]
    before = draw(logits.expand(len(plain), -1), batch(plain))
    after = draw(logits.expand(len(plain), -1), batch(filtered))
    kept = np.isin(before, after)
    # Tokens that the filter drops win now and then, and all that it keeps, or nearly, are seen.
    assert 0.3 < kept.mean() < 1
    assert (before == after)[kept].all()
    assert not np.isin(before[~kept], after).any()


def test_draws_at_neighbouring_positions_and_seeds_are_independent() -> None:
    count, width = 40_000, 5
    logits = torch.zeros(width).expand(count, -1)
    by_position = draw(logits, batch([Row(seed=9, position=i) for i in range(count)]))
    by_seed = draw(logits, batch([Row(seed=i, position=9) for i in range(count)]))
    for tokens in (by_position, by_seed):
        for lag in (1, 2, 7):
            pairs = np.bincount(tokens[lag:] * width + tokens[:-lag], minlength=width**2)
            expected = (count - lag) / width**2
            # The 1e-4 quantiles of chi-square with 24 degrees of freedom.
            assert 5 < ((pairs - expected) ** 2 / expected).sum() < 60


def test_company_and_layout_do_not_move_a_draw() -> None:
    logits = torch.from_numpy(np.stack([MODEL_LIKE] * 5))
    logits[:, END] = 9.0
    own = Row(seed=6, position=40, temperature=0.9, ids=(END,))
    alone = by_sample(logits[0].numpy(), own)
    company = [
        Row(seed=6, position=41, top_p=0.8),
        replace(own, seed=7),
        Row(temperature=0),
        replace(own, top_k=100_000),
    ]
    for place in range(5):
        rows = [*company[:place], own, *company[place:]]
        assert draw(logits, batch(rows))[place] == alone
