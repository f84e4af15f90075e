"""Who the model is, and that it does not answer what it cannot know."""

import random
from collections import Counter

import pytest

from moeray.cluster.tiny import identity
from moeray.cluster.tiny.identity import draw_identity
from moeray.cluster.tiny.problem import Problem
from tests.cluster.tiny.problem_checks import (
    check_family,
    check_one_key_one_answer,
    check_renders,
    drawn,
)


def asked(text: str) -> Problem:
    """The first problem with exactly this question."""
    rng = random.Random(0)
    return next(
        problem
        for problem in (draw_identity(rng) for _ in range(20_000))
        if problem.messages[-1].content == text
    )


def test_every_problem_is_well_formed() -> None:
    check_family(draw_identity, least_distinct=1000)


def test_a_question_has_one_answer() -> None:
    check_one_key_one_answer(draw_identity)


def test_conversations_render_and_are_short() -> None:
    check_renders(draw_identity)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("Who are you?", identity.WHO),
        ("What can you do?", identity.CAN_DO),
        ("What is the capital of France?", identity.UNKNOWN),
        ("Hello!", identity.HELLO),
        ("Thanks!", identity.THANKS),
    ],
)
def test_the_same_sentence_answers_all_questions_of_a_kind(text: str, final: str) -> None:
    assert asked(text).reply.final == final


def test_most_questions_are_about_the_world() -> None:
    finals = Counter(problem.reply.final for problem in drawn(draw_identity))
    assert finals.most_common(1)[0][0] == identity.UNKNOWN
    assert set(finals) == {
        identity.WHO, identity.CAN_DO, identity.UNKNOWN, identity.HELLO, identity.THANKS,
        identity.BYE,
    }  # fmt: skip
