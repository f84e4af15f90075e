"""Prompt and answer must fit the context together."""

import pytest

from moeray.cluster.errors import InvalidRequest
from moeray.cluster.generation import GenerationRequest, Message, Role, SamplingParams
from moeray.cluster.validation import check_length


def length(prompt_tokens: int, asked: int | None, least: int = 0, **limits: int) -> int:
    request = GenerationRequest(
        model="",
        messages=(Message(role=Role.USER, content="Hi"),),
        sampling=SamplingParams(seed=0),
        max_output_tokens=asked,
        min_output_tokens=least,
        current_date="2025-11-01",
    )
    defaults = {
        "context_length": 1000,
        "max_sequence_tokens": 800,
        "default_max_output_tokens": 200,
    }
    return check_length(prompt_tokens, request, **(defaults | limits))


def test_lengths_that_fit() -> None:
    assert length(100, None) == 200
    assert length(100, 700) == 700
    assert length(700, None) == 100
    assert length(784, None) == 16
    assert length(784, 16) == 16
    assert length(984, None, max_sequence_tokens=5000) == 16
    assert length(100, None, least=200) == 200


@pytest.mark.parametrize(
    ("prompt", "asked", "least", "path", "numbers"),
    [
        (785, None, 0, "messages", ["785", "800", "16"]),
        (5000, 16, 0, "messages", ["5000", "800"]),
        (100, 701, 0, "max_output_tokens", ["701", "700", "100", "800"]),
        (100, None, 201, "min_output_tokens", ["201", "200"]),
        (780, None, 21, "min_output_tokens", ["21", "20"]),
    ],
)
def test_lengths_that_do_not_fit_are_refused_with_both_numbers(
    prompt: int, asked: int | None, least: int, path: str, numbers: list[str]
) -> None:
    with pytest.raises(InvalidRequest) as error:
        length(prompt, asked, least)
    (violation,) = error.value.violations
    assert violation.field == path
    for number in numbers:
        assert number in violation.description
