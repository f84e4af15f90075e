"""What is right: replies by text or by JSON value, calls by name and arguments, turns together."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.tiny.problem import Reply
from moeray.cluster.tiny.scoring import (
    Score,
    normalised,
    parse_arguments,
    parse_json,
    same_value,
    score_call,
    score_reply,
)
from moeray.v1 import inference_pb2 as pb

from .problem_samples import CLOCK, THINKING, WEATHER, json_problem, weather_problem

WEATHER_PROBLEM = weather_problem(3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def said(final: str) -> pb.Answer:
    answer = pb.Answer(final=final)
    answer.usage.reasoning_tokens, answer.usage.output_tokens = 7, 20
    answer.finished.reason = pb.FINISH_REASON_STOP
    return answer


def called(*calls: tuple[str, str], final: str = "") -> pb.Answer:
    answer = said(final)
    answer.finished.reason = pb.FINISH_REASON_TOOL_CALL
    for name, arguments in calls:
        answer.tool_calls.add(id="c", name=name, arguments=arguments)
    return answer


def reply(final: str) -> Reply:
    return Reply(thinking=THINKING, final=final)


@pytest.mark.parametrize(
    ("expected", "final", "right"),
    [
        ("42", "42", True),
        ("42", " 42.\n", True),
        ("42.", "42", True),
        ("It is 4 km.", "It  is\n4 km", True),
        ("42", "42..", False),
        ("42", "-42", False),
        ("42", "The result is 42", False),
        ("Yes", "yes", False),
        ("はい。", "はい", True),
        ("3.5", "35", False),
        ("42", "", False),
    ],
)
def test_text_replies(expected: str, final: str, right: bool) -> None:
    assert score_reply(reply(expected), said(final)).correct is right


@pytest.mark.parametrize(
    ("final", "right"),
    [
        ('{"value": 3, "big": false}', True),
        ('{"big":false,"value":3.0}', True),
        ('{"value": 3, "big": 0}', False),
        ('{"value": 3}', False),
        ('{"value": 4, "big": false}', False),
        ('{"value": "3", "big": false}', False),
        ('{"value": 3, "big": false} ok', False),
        ('{"value": NaN, "big": false}', False),
        ("[" * 100_000, False),
        ("null", False),
        ("", False),
    ],
)
def test_json_replies(final: str, right: bool) -> None:
    assert score_reply(json_problem(3).reply, said(final)).correct is right


def test_a_call_where_a_reply_is_due_is_wrong_and_no_final() -> None:
    score = score_reply(reply("42"), called(("get_time", "{}")))
    assert (score.correct, score.final_not_empty) == (False, False)
    assert not score_reply(reply("42"), called(("get_time", "{}"), final="42")).correct


@pytest.mark.parametrize(
    ("calls", "valid", "right"),
    [
        ([("get_weather", '{"city": "Paris", "days": 3}')], True, True),
        ([("get_weather", '{"days": 3.0, "city": "Paris"}')], True, True),
        ([("get_weather", '{"city": "Paris"}')], True, False),
        ([("get_weather", '{"city": "Rome", "days": 3}')], True, False),
        ([("get_weather", '{"days": 3}')], False, False),
        ([("get_weather", '{"city": "Paris", "days": "3"}')], False, False),
        ([("get_weather", '{"city": "Paris", "days": 3')], False, False),
        ([("get_weather", '["Paris", 3]')], False, False),
        ([("get_time", "{}")], True, False),
        ([("get_time", "3")], False, False),
        ([("get_rain", '{"city": "Paris", "days": 3}')], False, False),
        ([("get_weather", '{"city": "Paris", "days": 3}')] * 2, False, False),
        ([], False, False),
    ],
)
def test_calls(calls: list[tuple[str, str]], valid: bool, right: bool) -> None:
    assert WEATHER_PROBLEM.call is not None
    score = score_call(WEATHER_PROBLEM.call, WEATHER_PROBLEM.tools, called(*calls))
    assert (score.parsed_and_valid, score.right_call, score.correct) == (valid, right, right)
    assert score.final_not_empty is bool(calls)


def test_a_reply_instead_of_a_call_is_wrong_but_not_empty() -> None:
    assert WEATHER_PROBLEM.call is not None
    score = score_call(WEATHER_PROBLEM.call, WEATHER_PROBLEM.tools, said("It rains."))
    assert (score.correct, score.final_not_empty, score.finish_reason) == (False, True, "stop")


def test_two_turns_are_right_together_and_their_tokens_add_up() -> None:
    assert WEATHER_PROBLEM.call is not None
    arguments = json.dumps(WEATHER_PROBLEM.call.arguments)
    first = score_call(
        WEATHER_PROBLEM.call, WEATHER_PROBLEM.tools, called(("get_weather", arguments))
    )
    second = score_reply(WEATHER_PROBLEM.reply, said("It is 21 degrees"))
    assert first.followed_by(second) == Score(
        correct=True,
        parsed_and_valid=True,
        right_call=True,
        final_not_empty=True,
        analysis_tokens=14,
        output_tokens=40,
        finish_reason="stop",
    )
    wrong = first.followed_by(score_reply(WEATHER_PROBLEM.reply, said("")))
    assert (wrong.correct, wrong.right_call, wrong.final_not_empty) == (False, True, False)


def test_arguments_are_those_of_the_function_that_was_named() -> None:
    made = pb.ToolCall(name="get_time", arguments='{"zone": "UTC"}')
    assert parse_arguments(made, (WEATHER, CLOCK)) == {"zone": "UTC"}
    assert parse_arguments(made, (WEATHER,)) is None


@given(json_values)
def test_a_value_is_the_same_as_itself_through_json(value: object) -> None:
    assert same_value(value, json.loads(json.dumps(value)))
    assert not same_value(value, [value])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [(1, 1.0, True), (1, True, False), (0.0, False, False), ([1], [1, 1], False), ("1", 1, False)],
)
def test_numbers_are_equal_by_value_and_are_no_booleans(
    one: object, other: object, same: bool
) -> None:
    assert same_value(one, other) is same_value({"k": one}, {"k": other}) is same


@given(st.text(max_size=20))
def test_normalising_leaves_single_spaces_and_no_margins(text: str) -> None:
    found = normalised(text)
    assert found == " ".join(found.split())
    assert normalised(f" {found}.") == found


def test_json_must_be_of_its_schema() -> None:
    assert parse_json("3", {"type": "integer"}) == 3
    assert parse_json('"3"', {"type": "integer"}) is None
