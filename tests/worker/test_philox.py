"""Philox against Random123's vectors, and the uniform draws made from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.worker.philox import philox4x32, uniform

# Random123, tests/kat_vectors: counter, key, output of philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]
words64 = st.integers(0, 2**64 - 1)


def words(text: str) -> np.ndarray:
    return np.array([int(word, 16) for word in text.split()], dtype=np.uint32)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, output: str) -> None:
    assert (philox4x32(words(counter)[None], words(key)[None]) == words(output)).all()


def test_rows_are_independent() -> None:
    counters = np.stack([words(c) for c, _, _ in KNOWN_ANSWERS])
    keys = np.stack([words(k) for _, k, _ in KNOWN_ANSWERS])
    expected = np.stack([words(o) for _, _, o in KNOWN_ANSWERS])
    assert (philox4x32(counters, keys) == expected).all()


def test_uniform_takes_the_high_53_bits_of_the_first_two_words() -> None:
    zero = np.zeros(1, dtype=np.uint64)
    assert uniform(zero, zero)[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def test_uniform_uses_all_bits_of_seed_and_position() -> None:
    base = np.uint64(0x0123456789ABCDEF)
    flipped = np.array([base ^ np.uint64(1 << bit) for bit in range(64)], dtype=np.uint64)
    fixed = np.full(64, base, dtype=np.uint64)
    reference = uniform(fixed[:1], fixed[:1])[0]
    draws = np.concatenate((uniform(flipped, fixed), uniform(fixed, flipped), [reference]))
    assert len(set(draws.tolist())) == 129


@given(st.lists(st.tuples(words64, words64), min_size=1, max_size=8))
def test_uniform_lies_in_the_unit_interval_whatever_the_batch(pairs: list[tuple[int, int]]) -> None:
    seed, position = np.array(pairs, dtype=np.uint64).T
    draws = uniform(seed, position)
    assert ((draws >= 0) & (draws < 1)).all()
    alone = [uniform(seed[i : i + 1], position[i : i + 1])[0] for i in range(len(pairs))]
    assert draws.tolist() == alone


def test_uniform_is_uniform_over_positions_and_over_seeds() -> None:
    count, bins = 64_000, 64
    ramp = np.arange(count, dtype=np.uint64)
    fixed = np.full(count, 7, dtype=np.uint64)
    for draws in (uniform(fixed, ramp), uniform(ramp, fixed)):
        observed, _ = np.histogram(draws, bins=bins, range=(0, 1))
        expected = count / bins
        chi_square = ((observed - expected) ** 2 / expected).sum()
        # The 1e-4 quantiles of chi-square with 63 degrees of freedom.
        assert 29 < chi_square < 114


def test_empty_batch() -> None:
    none = np.zeros(0, dtype=np.uint64)
    assert uniform(none, none).shape == (0,)
