"""Worked lists: what is asked, done again in one line of Python."""

import random
import re
from collections.abc import Callable

import pytest

from moeray.cluster.tiny.lists import (
    draw_copying,
    draw_counting,
    draw_extreme,
    draw_reversing,
    draw_sorting,
    draw_sum,
)
from moeray.cluster.tiny.problem import Problem
from tests.cluster.tiny.worked_lines import assert_true


def _list_of(question: str) -> list[str]:
    return question.split(": ")[-1].split(", ")


def _sorted(question: str) -> str:
    down = "descending" in question or "largest to smallest" in question
    return ", ".join(sorted(_list_of(question), key=int, reverse=down))


def _reversed(question: str) -> str:
    return ", ".join(_list_of(question)[::-1])


def _counted(question: str) -> str:
    asked = question.split(": ")[0]
    items = _list_of(question)
    word = re.search(r"(?:times does|often does|Count) (\S+)", asked)
    return str(items.count(word[1]) if word else len(items))


def _extreme(question: str) -> str:
    largest = "largest" in question or "maximum" in question
    return str((max if largest else min)(map(int, _list_of(question))))


@pytest.mark.parametrize(
    ("draw", "solve"),
    [
        (draw_sorting, _sorted),
        (draw_reversing, _reversed),
        (draw_extreme, _extreme),
        (draw_copying, lambda question: question.split(": ")[1]),
    ],
)
def test_lists_are_right(
    draw: Callable[[random.Random], Problem], solve: Callable[[str], str]
) -> None:
    for seed in range(300):
        problem = draw(random.Random(seed))
        assert problem.reply.final == solve(problem.messages[0].content)


def test_counts_are_right() -> None:
    for seed in range(300):
        problem = draw_counting(random.Random(seed))
        question = problem.messages[0].content
        assert problem.reply.final == _counted(question), question
        assert_true(problem.reply.thinking.check)


def test_sums_are_right() -> None:
    for seed in range(300):
        problem = draw_sum(random.Random(seed))
        numbers = [int(word) for word in problem.messages[0].content.replace(",", " ").replace(
            "?", " ").split() if word.isdigit()]  # fmt: skip
        assert problem.reply.final == str(sum(numbers))
        assert_true(problem.reply.thinking.steps)
        assert_true(problem.reply.thinking.check)
