"""Words are single tokens wherever they stand, so that copying them is token to token."""

from collections import Counter

import pytest

from moeray.cluster.tiny import words
from tests.cluster.tiny.problem_checks import tokenizer

LISTS = {
    name: value
    for name, value in vars(words).items()
    if name.isupper() and isinstance(value, tuple)
}
PROPER = {"CITIES", "NAMES", "COUNTRIES", "LANGUAGES", "WEEKDAYS"}


@pytest.mark.parametrize("name", LISTS)
def test_every_word_is_one_token_alone_and_after_a_space(name: str) -> None:
    encode = tokenizer().encode
    long = [word for word in LISTS[name] if len(encode(word)) != 1 or len(encode(f" {word}")) != 1]
    assert not long


@pytest.mark.parametrize("name", LISTS)
def test_words_are_distinct_and_only_proper_names_have_capitals(name: str) -> None:
    assert max(Counter(LISTS[name]).values()) == 1
    assert all(word[0].isupper() is (name in PROPER) for word in LISTS[name])


def test_there_are_enough_words() -> None:
    assert len(words.COMMON) > 850
    assert len({word for name in LISTS for word in LISTS[name]} - set(words.COMMON)) > 250
