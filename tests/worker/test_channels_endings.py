"""How a final body may end: stop tokens, the least length, and ends that are ignored."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from moeray.vocabulary.harmony_tokens import CALL, END, FIRST_SPECIAL, RETURN
from moeray.worker.channels import ChannelAutomaton, Legal
from moeray.worker.request import BodyKind, FinishReason
from tests.worker.harmony_rules import encode, rules

TEXT = 1234
ANALYSIS = encode("<|channel|>analysis<|message|>")
FINAL = encode("<|channel|>final<|message|>")
OPENING = encode("<|start|>assistant")
WEATHER = encode("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>")


def accept_all(follower: ChannelAutomaton, tokens: Iterable[int]) -> None:
    for token in tokens:
        follower.accept(token)


def in_final(limit: int = 100, **options: Any) -> ChannelAutomaton:
    """An automaton at the start of its final body, the answer's fourth token."""
    declared = replace(rules(thinking_budget=0), **options)
    follower = ChannelAutomaton(declared, max_output_tokens=limit)
    accept_all(follower, FINAL)
    return follower


def test_a_stop_token_ends_a_final_body_and_counts() -> None:
    follower = in_final(stop_token_ids=frozenset({7}))
    accept_all(follower, [TEXT, TEXT, 7])
    assert follower.finish_reason is FinishReason.STOP
    assert follower.body_tokens(BodyKind.FINAL) == 3
    assert follower.produced_tokens == len(FINAL) + 3
    assert follower.legal() == Legal(False, ())


def test_a_final_body_does_not_begin_with_a_stop_token() -> None:
    follower = in_final(stop_token_ids=frozenset({9, 7}))
    assert follower.legal() == Legal(True, (), (7, 9))
    with pytest.raises(ValueError, match="token 7 is illegal here: a final body begins with it"):
        follower.accept(7)
    assert follower.legal() == Legal(True, (), (7, 9))
    assert follower.produced_tokens == len(FINAL)
    follower.accept(TEXT)
    assert follower.legal() == Legal(True, (RETURN,))
    follower.accept(7)
    assert follower.finish_reason is FinishReason.STOP


def test_a_stop_token_that_is_the_last_one_stops() -> None:
    follower = in_final(limit=5, stop_token_ids=frozenset({7}))
    accept_all(follower, [TEXT, 7])
    assert follower.finish_reason is FinishReason.STOP


def test_a_stop_token_is_text_in_other_bodies() -> None:
    declared = replace(rules(tools=("weather",)), stop_token_ids=frozenset({7}))
    follower = ChannelAutomaton(declared, max_output_tokens=300)
    accept_all(follower, [*ANALYSIS, 7, 7, END, *OPENING, *WEATHER, 7, 7, CALL])
    assert follower.finish_reason is FinishReason.TOOL_CALL
    assert follower.body_tokens(BodyKind.TOOL_CALL) == 2


def test_before_the_least_length_stop_tokens_are_text_and_nothing_returns() -> None:
    follower = in_final(stop_token_ids=frozenset({7}), min_output_tokens=len(FINAL) + 2)
    for _ in range(2):
        assert follower.legal() == Legal(True, ())
        with pytest.raises(ValueError, match="in a body of kind final"):
            follower.accept(RETURN)
        follower.accept(7)
    assert follower.legal() == Legal(True, (RETURN,))
    follower.accept(7)
    assert follower.finish_reason is FinishReason.STOP


def test_the_least_length_counts_headers_and_analysis() -> None:
    declared = replace(rules(), min_output_tokens=len(ANALYSIS) + 5 + len(OPENING) + len(FINAL))
    follower = ChannelAutomaton(declared, max_output_tokens=300)
    accept_all(follower, [*ANALYSIS, TEXT, TEXT, TEXT, TEXT, END, *OPENING, *FINAL, TEXT])
    assert follower.legal() == Legal(True, (RETURN,))


def test_a_tool_call_may_end_before_the_least_length() -> None:
    declared = replace(rules(tools=("weather",)), min_output_tokens=200)
    follower = ChannelAutomaton(declared, max_output_tokens=300)
    accept_all(follower, [*WEATHER, TEXT, CALL])
    assert follower.finish_reason is FinishReason.TOOL_CALL


def test_ignore_eos_leaves_a_final_body_its_limit_and_its_stop_tokens() -> None:
    follower = in_final(limit=10, ignore_eos=True)
    for _ in range(7):
        assert follower.legal() == Legal(True, ())
        follower.accept(TEXT)
    assert follower.finish_reason is FinishReason.LENGTH
    follower = in_final(ignore_eos=True, stop_token_ids=frozenset({7}))
    accept_all(follower, [TEXT, 7])
    assert follower.finish_reason is FinishReason.STOP


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"min_output_tokens": 101}, "min_output_tokens is 101"),
        ({"min_output_tokens": -1}, "min_output_tokens is -1"),
        ({"stop_token_ids": frozenset({FIRST_SPECIAL})}, "stop_token_ids"),
        ({"stop_token_ids": frozenset({-1})}, "stop_token_ids"),
    ],
)
def test_contradicting_ends_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        in_final(**options)
