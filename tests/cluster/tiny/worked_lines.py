"""Reads worked solutions as a stranger would: every sum in them must be true."""

import re

_FACT = re.compile(r"(?<![\w.])([\d+*/-]*\d[+*/-]\d[\d+*/-]*)=(-?\d+)(?: r(\d+))?")


def facts(text: str) -> list[tuple[str, int, int]]:
    """(expression, result, remainder) of every calculation in ``text``."""
    return [(found[1], int(found[2]), int(found[3] or 0)) for found in _FACT.finditer(text)]


def assert_true(text: str) -> None:
    """Every calculation in ``text`` holds."""
    for expression, result, rest in facts(text):
        if "/" in expression:
            divided, divisor = map(int, expression.split("/"))
            assert divmod(divided, divisor) == (result, rest), expression
        else:
            # 04 + 3 and the like: leading zeros do not make Python numbers.
            plain = re.sub(r"(?<!\d)0+(?=\d)", "", expression)
            assert eval(plain) == result, expression


def last_spelled(text: str) -> int:
    """The number behind the last line that starts with "= "."""
    line = [line for line in text.splitlines() if line.startswith("= ")][-1]
    return int(line.removeprefix("= ").replace(" ", ""))
