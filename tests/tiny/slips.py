"""First tries that went wrong, for the check at high effort to find.

One digit is taken wrongly on the way, and the steps go on from there. The check goes back with the
numbers of the question, ends elsewhere, says so, and the steps are done again. Only what follows
the mistake is to be learned, never the mistake.
"""

import re
from dataclasses import dataclass
from random import Random

from moeray.cluster.tiny.columns import (
    add_steps,
    divide_steps,
    multiply_steps,
    spelled,
    subtract_steps,
)
from moeray.cluster.tiny.problem import Thinking

SLIPPING_TASKS = ("addition", "subtraction", "multiplication")
_HEADER = re.compile(r"^(\d(?: \d)*) ([+*-]) (\d(?: \d)*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Slip:
    """The analysis in two parts: up to the wrong result, and from the check to the right one."""

    wrong: str
    mended: str


def drawn_slip(thinking: Thinking, random: Random) -> Slip | None:
    """A first try at ``thinking``, whose steps are one calculation, that goes wrong; None where
    the digit drawn leaves nothing to go back from.
    """
    header = _HEADER.search(thinking.steps)
    if header is None:
        return None
    a, b = (int(header[group].replace(" ", "")) for group in (1, 3))
    taken = _with_another_digit(a, random)
    match header[2]:
        case "+":
            steps, result = add_steps(taken, b), taken + b
            back, expected, got = subtract_steps(result, b), a, taken
        case "-" if taken >= b:
            steps, result = subtract_steps(taken, b), taken - b
            back, expected, got = add_steps(result, b), a, taken
        case "*" if b < 10:
            steps, result = multiply_steps(taken, b), taken * b
            back, expected, got = divide_steps(result, b), a, taken
        case "*":
            steps, result = multiply_steps(taken, b), taken * b
            back, expected, got = multiply_steps(b, a), result, a * b
        case _:
            return None
    opening = thinking.steps[: header.start()]
    return Slip(
        f"{opening}{steps}\n",
        f"Check: {back}\nThat is {spelled(got)}, not {spelled(expected)}, so it is wrong. Again:\n"
        f"{thinking.steps}",
    )


def _with_another_digit(number: int, random: Random) -> int:
    """``number`` with one digit changed; as many digits as before."""
    digits = [int(digit) for digit in str(number)]
    place = random.randrange(len(digits))
    least = 1 if place == 0 and len(digits) > 1 else 0
    digits[place] = random.choice([d for d in range(least, 10) if d != digits[place]])
    return int("".join(map(str, digits)))
