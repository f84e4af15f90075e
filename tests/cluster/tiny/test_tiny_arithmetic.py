"""Worked arithmetic: every line is true, and the steps end at the right result."""

import operator
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.tiny.arithmetic import (
    draw_addition,
    draw_comparison,
    draw_multiplication,
    draw_subtraction,
)
from moeray.cluster.tiny.columns import (
    add_steps,
    compare_steps,
    divide_steps,
    multiply_steps,
    subtract_steps,
)
from moeray.cluster.tiny.problem import Problem
from tests.cluster.tiny.worked_lines import assert_true, facts, last_spelled

NUMBERS = st.integers(0, 10**7)
OPERATIONS = {
    "+": operator.add,
    "plus": operator.add,
    "-": operator.sub,
    "minus": operator.sub,
    "*": operator.mul,
    "x": operator.mul,
    "times": operator.mul,
    "\u00d7": operator.mul,
}


def test_an_addition_written_out() -> None:
    assert add_steps(4821, 976) == ("4 8 2 1 + 0 9 7 6\n1+6=7\n2+7=9\n8+9=17\n4+0+1=5\n= 5 7 9 7")


def test_a_subtraction_written_out() -> None:
    assert subtract_steps(503, 78) == "5 0 3 - 0 7 8\n3-8+10=5\n0-1-7+10=2\n5-1-0=4\n= 4 2 5"


def test_a_product_written_out() -> None:
    assert multiply_steps(47, 6) == "4 7 * 6\n7*6=42\n4*6+4=28\n= 2 8 2"


@given(NUMBERS, NUMBERS)
def test_columns_are_true_and_end_at_the_result(a: int, b: int) -> None:
    low, high = sorted((a, b))
    factor = b % 1000
    for steps, result in (
        (add_steps(a, b), a + b),
        (subtract_steps(high, low), high - low),
        (multiply_steps(a, factor), a * factor),
        (divide_steps(a * (b % 9 + 1), b % 9 + 1), a),
    ):
        assert facts(steps)
        assert_true(steps)
        assert last_spelled(steps) == result


@given(NUMBERS, NUMBERS)
def test_a_comparison_ends_at_what_differs(a: int, b: int) -> None:
    if a == b:
        return
    *_, last = compare_steps(a, b).splitlines()
    assert ("<" in last) == (a < b)
    assert (">" in last) == (a > b)


@pytest.mark.parametrize("draw", [draw_addition, draw_subtraction, draw_multiplication])
def test_calculations_are_right(draw: "type[Problem]") -> None:
    for seed in range(500):
        problem = draw(random.Random(seed))
        question = problem.messages[0].content
        found = re.search(r"(\d+) ?(\+|-|\*|x|\u00d7|plus|minus|times) ?(\d+)", question)
        assert found, question
        expected = OPERATIONS[found[2]](int(found[1]), int(found[3]))
        assert problem.reply.final == str(expected)
        assert last_spelled(problem.reply.thinking.steps) == abs(expected)
        for text in (problem.reply.thinking.steps, problem.reply.thinking.check):
            assert_true(text)
        assert problem.reply.thinking.check.endswith("so it is right.")


def test_order_makes_no_new_sum() -> None:
    keys = {draw_addition(random.Random(seed)).key for seed in range(500)}
    assert all(int(a) <= int(b) for a, b in map(str.split, keys))


def test_comparisons_are_right() -> None:
    for seed in range(500):
        problem = draw_comparison(random.Random(seed))
        question = problem.messages[0].content
        a, b = map(int, re.findall(r"\d+", question))
        expected = {
            "larger": str(max(a, b)),
            "smaller": str(min(a, b)),
            "greater": "Yes" if a > b else "No",
            "less": "Yes" if a < b else "No",
        }
        asked = next(word for word in expected if word in question)
        assert problem.reply.final == expected[asked], question
        assert_true(problem.reply.thinking.check)
