"""Stop strings against a naive search over all the text so far, for random texts cut at random."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.generation import Channel
from moeray.cluster.harmony_parser import TextDelta
from moeray.cluster.stop_strings import StopFilter, StopMatch, StopMatcher, StopStrings

# Two letters make overlaps likely.
strings = st.lists(st.text("ab🙂", min_size=1, max_size=5), min_size=1, max_size=4)
pieces = st.lists(st.text("ab🙂", max_size=6), max_size=12)


def naive_match(text: str, stops: list[str]) -> StopMatch | None:
    """The match that starts first, the longest of these."""
    found = [(start, -len(stop), stop) for stop in stops if (start := text.find(stop)) >= 0]
    if not found:
        return None
    start, _, stop = min(found)
    return StopMatch(stop, len(text) - start)


def naive_held(text: str, stops: list[str]) -> int:
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )


@given(strings, pieces)
def test_the_matcher_finds_what_a_search_of_all_the_text_finds(
    stops: list[str], parts: list[str]
) -> None:
    matcher = StopMatcher(StopStrings(stops))
    text = ""
    for part in parts:
        text += part
        match = matcher.feed(part)
        assert match == naive_match(text, stops)
        if match is not None:
            break
        assert matcher.held == naive_held(text, stops)


@given(strings, pieces)
def test_the_filter_sends_all_that_is_surely_not_of_a_stop_string(
    stops: list[str], parts: list[str]
) -> None:
    held_back = StopFilter(StopStrings(stops))
    text = sent = ""
    tokens: list[int] = []
    for number, part in enumerate(parts):
        text += part
        for delta in held_back.feed(TextDelta(Channel.FINAL, part, (2 * number, 2 * number + 1))):
            sent += delta.text
            tokens += delta.token_ids
        if held_back.matched is not None:
            match = naive_match(text, stops)
            assert match is not None
            assert (held_back.matched, sent) == (match.string, text[: -match.characters])
            assert tokens == list(range(2 * number + 2)), "a token is missing"
            return
        assert sent == text[: len(text) - naive_held(text, stops)]
    for delta in held_back.flush():
        sent += delta.text
        tokens += delta.token_ids
    assert sent == text
    assert tokens == list(range(2 * len(parts)))
    assert held_back.flush() == []


@pytest.mark.parametrize(
    ("stops", "parts", "match"),
    [
        (["ab", "abc"], ["abc"], StopMatch("abc", 3)),
        (["ab", "abc"], ["ab", "c"], StopMatch("ab", 2)),
        (["bc", "abcd"], ["abcde"], StopMatch("abcd", 5)),
        (["bc", "abcd"], ["abc", "d"], StopMatch("bc", 2)),
        (["aab"], ["aa", "ab"], StopMatch("aab", 3)),
        (["b", "b"], ["ab"], StopMatch("b", 1)),
    ],
    ids=["longest", "first complete", "earliest", "earliest complete", "overlap", "repeated"],
)
def test_which_match_counts(stops: list[str], parts: list[str], match: StopMatch) -> None:
    matcher = StopMatcher(StopStrings(stops))
    found = (matcher.feed(part) for part in parts)
    assert next(each for each in found if each is not None) == match


def test_a_token_goes_out_with_the_first_of_its_characters() -> None:
    held_back = StopFilter(StopStrings(["END"]))
    assert held_back.feed(TextDelta(Channel.FINAL, "say E", (1,))) == [
        TextDelta(Channel.FINAL, "say ", (1,))
    ]
    assert held_back.feed(TextDelta(Channel.FINAL, "N", (2,))) == []
    assert held_back.feed(TextDelta(Channel.FINAL, "o", (3,))) == [
        TextDelta(Channel.FINAL, "E", ()),
        TextDelta(Channel.FINAL, "N", (2,)),
        TextDelta(Channel.FINAL, "o", (3,)),
    ]


def test_tokens_without_text_wait_behind_held_text() -> None:
    held_back = StopFilter(StopStrings(["END"]))
    assert held_back.feed(TextDelta(Channel.FINAL, "E", (1,))) == []
    assert held_back.feed(TextDelta(Channel.FINAL, "", (2,))) == []
    assert [delta.token_ids for delta in held_back.flush()] == [(1,), (2,)]


def test_a_new_message_does_not_go_on_with_the_last() -> None:
    held_back = StopFilter(StopStrings(["END"]))
    held_back.feed(TextDelta(Channel.FINAL, "EN", (1,)))
    held_back.flush()
    held_back.feed(TextDelta(Channel.FINAL, "D", (2,)))
    assert held_back.matched is None


def test_long_texts_that_almost_match_take_linear_work() -> None:
    class Counting(dict[str, int]):
        looked_up = 0

        def __contains__(self, key: object) -> bool:
            Counting.looked_up += 1
            return super().__contains__(key)

    strings = StopStrings(["a" * 255 + "b"])
    strings.next = [Counting(edges) for edges in strings.next]
    matcher = StopMatcher(strings)
    for _ in range(40):
        matcher.feed("a" * 254 + "c")
    assert Counting.looked_up < 3 * 40 * 255
