"""Sums, differences, products and comparisons of numbers of many digits.

The steps go by columns; the check goes back by the inverse operation, or multiplies the other way
round.
"""

import random
from typing import Final

from moeray.cluster.tiny.columns import (
    add_steps,
    compare_steps,
    divide_steps,
    multiply_steps,
    spelled,
    subtract_steps,
)
from moeray.cluster.tiny.draws import any_date, number, user
from moeray.cluster.tiny.problem import Problem, Reply, Thinking

_ASK: Final = ("What is {}?", "Compute {}.", "{} =", "Calculate {}.", "How much is {}?", "{}")
_PLUS: Final = ("{} + {}", "{}+{}", "{} plus {}")
_MINUS: Final = ("{} - {}", "{}-{}", "{} minus {}")
_TIMES: Final = ("{} * {}", "{} x {}", "{} times {}", "{}*{}", "{} \u00d7 {}")
_SHAPES: Final = ((2, 1), (3, 1), (4, 1), (2, 2), (3, 2))
"""Digits of the factors."""


def add_thinking(a: int, b: int) -> Thinking:
    """a + b, and back: the sum less b."""
    back = subtract_steps(a + b, b)
    return Thinking(add_steps(a, b), f"Check: {back}\nThat is {spelled(a)}, so it is right.")


def subtract_thinking(a: int, b: int) -> Thinking:
    """a - b, and back: the difference and the lesser of the two. A result may be negative."""
    high, low = max(a, b), min(a, b)
    opening = "" if a >= b else "The second is larger: minus.\n"
    back = add_steps(high - low, low)
    return Thinking(
        opening + subtract_steps(high, low),
        f"Check: {back}\nThat is {spelled(high)}, so it is right.",
    )


def multiply_thinking(a: int, b: int) -> Thinking:
    """a * b, and back: divided by a factor of one digit, else multiplied the other way round."""
    if b < 10:
        back, shown = divide_steps(a * b, b), a
    else:
        back, shown = multiply_steps(b, a), a * b
    return Thinking(
        multiply_steps(a, b), f"Check: {back}\nThat is {spelled(shown)}, so it is right."
    )


def draw_addition(rng: random.Random) -> Problem:
    a, b = number(rng, rng.randint(1, 6)), number(rng, rng.randint(1, 6))
    return _calculation(rng, "addition", _PLUS, a, b, a + b, add_thinking(a, b))


def draw_subtraction(rng: random.Random) -> Problem:
    a, b = number(rng, rng.randint(1, 6)), number(rng, rng.randint(1, 6))
    if rng.random() < 0.7:
        a, b = max(a, b), min(a, b)
    return _calculation(rng, "subtraction", _MINUS, a, b, a - b, subtract_thinking(a, b))


def draw_multiplication(rng: random.Random) -> Problem:
    of_a, of_b = rng.choice(_SHAPES)
    a = number(rng, of_a)
    b = rng.randrange(2, 10) if of_b == 1 else number(rng, of_b)
    # Products are worked out along the shorter factor, wherever it stands in the question.
    shown = (b, a) if rng.random() < 0.3 else (a, b)
    return _calculation(rng, "multiplication", _TIMES, *shown, a * b, multiply_thinking(a, b))


def draw_comparison(rng: random.Random) -> Problem:
    digits = rng.randint(2, 6)
    a = number(rng, digits)
    b = a
    while b == a:
        shared = rng.randint(0, digits)
        tail = 10 ** (digits - shared)
        b = (
            a - a % tail + rng.randrange(tail)
            if rng.random() < 0.8
            else number(rng, rng.randint(1, 6))
        )
    larger, smaller = max(a, b), min(a, b)
    texts = {
        f"Which is larger, {a} or {b}?": str(larger),
        f"Which number is smaller, {a} or {b}?": str(smaller),
        f"Is {a} greater than {b}?": "Yes" if a > b else "No",
        f"Is {a} less than {b}?": "Yes" if a < b else "No",
        f"What is the larger of {a} and {b}?": str(larger),
    }
    text, final = rng.choice(list(texts.items()))
    back = subtract_steps(larger, smaller)
    return Problem(
        task="comparison",
        key=f"{smaller} {larger}",
        messages=user(text),
        current_date=any_date(rng),
        reply=Reply(
            thinking=Thinking(
                compare_steps(a, b),
                f"Check: {back}\nThat is above 0, so {spelled(larger)} is larger.",
            ),
            final=final,
        ),
    )


def _calculation(
    rng: random.Random,
    task: str,
    forms: tuple[str, ...],
    a: int,
    b: int,
    result: int,
    thinking: Thinking,
) -> Problem:
    text = rng.choice(_ASK).format(rng.choice(forms).format(a, b))
    # 3 + 5 and 5 + 3 are one problem.
    first, second = (a, b) if task == "subtraction" else sorted((a, b))
    return Problem(
        task=task,
        key=f"{first} {second}",
        messages=user(text),
        current_date=any_date(rng),
        reply=Reply(thinking=thinking, final=str(result)),
    )
