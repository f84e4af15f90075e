"""JSON answers follow their schema, which the prompt shows, and hold what the text says."""

import json
import random

import pytest

from moeray.cluster.generation import Role
from moeray.cluster.tiny.json_answers import (
    draw_extraction,
    draw_json_answer,
    draw_json_list,
    draw_json_numbers,
)
from moeray.cluster.tiny.problem import Problem
from tests.cluster.tiny.problem_checks import (
    Draw,
    check_family,
    check_one_key_one_answer,
    check_renders,
    drawn,
)

FAMILIES = (draw_extraction, draw_json_list, draw_json_numbers)


def shown_schema(problem: Problem) -> dict[str, object]:
    """The schema as it stands in the prompt."""
    text = problem.messages[0].content
    start = text.index('{"type"')
    schema: dict[str, object] = json.JSONDecoder().raw_decode(text[start:])[0]
    return schema


@pytest.mark.parametrize("draw", FAMILIES)
def test_every_problem_is_well_formed(draw: Draw) -> None:
    check_family(draw, least_distinct=1900)


@pytest.mark.parametrize("draw", FAMILIES)
def test_a_key_has_one_answer(draw: Draw) -> None:
    check_one_key_one_answer(draw)


def test_conversations_render_and_are_short() -> None:
    check_renders(draw_json_answer)


def test_the_prompt_shows_the_schema() -> None:
    for problem in drawn(draw_json_answer):
        assert problem.reply.schema is not None
        closed = shown_schema(problem) | {"additionalProperties": False}
        assert closed == problem.reply.schema


def test_half_of_the_schemas_are_response_formats() -> None:
    opened = [
        problem.messages[0].content.startswith("Answer in JSON.\n\n# Response Formats\n\n## answer")
        for problem in drawn(draw_json_answer)
        if problem.messages[0].role is Role.DEVELOPER
    ]
    assert all(opened)
    assert 0.4 < len(opened) / len(drawn(draw_json_answer)) < 0.6


def test_extracted_values_stand_in_the_text() -> None:
    for problem in drawn(draw_extraction):
        text = problem.messages[-1].content
        for value in json.loads(problem.reply.final).values():
            assert json.dumps(value).strip('"') in text


def test_a_problem_spelled_out() -> None:
    problem = draw_json_numbers(random.Random(4))
    assert problem.messages[0].content == (
        "The numbers are 30 and 38.\n\nAnswer as JSON with this schema: "
        '{"type": "object", "properties": {"second": {"type": "integer"}, '
        '"gap": {"type": "integer"}, "sum": {"type": "integer"}, '
        '"is_smaller": {"type": "boolean"}}, '
        '"required": ["second", "gap", "sum", "is_smaller"], "additionalProperties": false}'
    )
    assert problem.reply.thinking.steps.startswith("The answer is JSON.\n30<38\n3 0 + 3 8\n")
    assert problem.reply.thinking.steps.endswith("second: 38\ngap: 8\nsum: 68\nis_smaller: true")
    assert problem.reply.final == '{"second":38,"gap":8,"sum":68,"is_smaller":true}'
