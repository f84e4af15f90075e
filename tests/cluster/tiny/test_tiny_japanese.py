"""A little Japanese: right results, and the same sentence for what it cannot answer."""

import random
import re

from moeray.cluster.tiny import japanese
from moeray.cluster.tiny.japanese import draw_japanese
from tests.cluster.tiny.problem_checks import (
    check_family,
    check_one_key_one_answer,
    check_renders,
    drawn,
)

SIGNS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
CALCULATION = re.compile(r"(\d+) ([-+*]) (\d+)")


def test_every_problem_is_well_formed() -> None:
    check_family(draw_japanese, least_distinct=1500)


def test_a_key_has_one_answer() -> None:
    check_one_key_one_answer(draw_japanese)


def test_conversations_render_and_are_short() -> None:
    check_renders(draw_japanese)


def test_calculations_are_right() -> None:
    found = [
        (match, problem.reply.final)
        for problem in drawn(draw_japanese)
        if (match := CALCULATION.fullmatch(problem.key))
    ]
    assert len(found) > 900
    for match, final in found:
        assert final == f"{SIGNS[match[2]](int(match[1]), int(match[3]))}です。"


def test_lists_are_sorted() -> None:
    sortings = [
        problem for problem in drawn(draw_japanese) if problem.key.startswith(("True ", "False "))
    ]
    assert len(sortings) > 300
    for problem in sortings:
        descending, numbers = problem.key.split()
        ordered = sorted(map(int, numbers.split("、")), reverse=descending == "True")
        assert problem.reply.final == "、".join(map(str, ordered)) + "です。"


def test_who_are_you() -> None:
    rng = random.Random(0)
    problems = [draw_japanese(rng) for _ in range(3000)]
    finals = {
        problem.reply.final
        for problem in problems
        if problem.messages[-1].content.endswith("誰ですか?")
    }
    assert finals == {japanese.WHO}
