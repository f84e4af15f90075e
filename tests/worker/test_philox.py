"""Philox against Random123's vectors, and the keys made from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.worker.philox import draw_keys, philox4x32

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


def test_keys_are_the_words_of_the_block() -> None:
    zero = np.zeros(1, dtype=np.uint64)
    keys = draw_keys(zero, zero).view(np.uint64)
    assert keys.tolist() == [[0xE169C58D6627E8D5, 0x9B00DBD8BC57AC4C]]


def test_keys_use_all_bits_of_seed_and_position() -> None:
    base = np.uint64(0x0123456789ABCDEF)
    flipped = np.array([base ^ np.uint64(1 << bit) for bit in range(64)], dtype=np.uint64)
    fixed = np.full(64, base, dtype=np.uint64)
    reference = draw_keys(fixed[:1], fixed[:1])
    keys = np.concatenate((draw_keys(flipped, fixed), draw_keys(fixed, flipped), reference))
    assert all(len(set(column.tolist())) == 129 for column in keys.T)


@given(st.lists(st.tuples(words64, words64), min_size=1, max_size=8))
def test_keys_do_not_depend_on_the_batch(pairs: list[tuple[int, int]]) -> None:
    seed, position = np.array(pairs, dtype=np.uint64).T
    alone = [draw_keys(seed[i : i + 1], position[i : i + 1])[0].tolist() for i in range(len(pairs))]
    assert draw_keys(seed, position).tolist() == alone


def test_no_keys() -> None:
    none = np.zeros(0, dtype=np.uint64)
    assert draw_keys(none, none).shape == (0, 2)
