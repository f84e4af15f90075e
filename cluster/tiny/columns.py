"""Arithmetic written out digit by digit, as in school: the worked steps of most problems.

A tiny model cannot see the digits inside a token (o200k joins up to three), and cannot carry in its
head. So numbers are spelled first, each column is a line of one-digit facts, and the result is
spelled again: "8+9=17" carries 1 into the next line, "1-6+10=5" borrows 1 from it.
"""


def spelled(number: int, width: int = 0) -> str:
    """The digits of ``number`` with spaces between, with leading zeros up to ``width`` digits."""
    return " ".join(str(number).zfill(width))


def add_steps(a: int, b: int) -> str:
    """a + b for a, b >= 0, column by column from the right."""
    width = max(len(str(a)), len(str(b)))
    lines = [f"{spelled(a, width)} + {spelled(b, width)}"]
    carry = 0
    for x, y in _columns(a, b, width):
        total = x + y + carry
        lines.append(f"{x}+{y}{'+1' if carry else ''}={total}")
        carry = total // 10
    return "\n".join([*lines, f"= {spelled(a + b)}"])


def subtract_steps(a: int, b: int) -> str:
    """a - b for a >= b >= 0, column by column from the right."""
    width = len(str(a))
    lines = [f"{spelled(a)} - {spelled(b, width)}"]
    borrow = 0
    for x, y in _columns(a, b, width):
        left = x - borrow - y
        lines.append(f"{x}{'-1' if borrow else ''}-{y}{'+10' if left < 0 else ''}={left % 10}")
        borrow = int(left < 0)
    return "\n".join([*lines, f"= {spelled(a - b)}"])


def multiply_steps(a: int, b: int) -> str:
    """a * b for a, b >= 0: a product for each digit of b, from the right, added up as they come."""
    digits = [int(digit) for digit in reversed(str(b))]
    lines = [f"{spelled(a)} * {spelled(b)}"]
    total = 0
    for place, digit in enumerate(digits):
        if len(digits) > 1:
            lines.append(f"{spelled(a)} * {digit}")
        lines.append(_digit_product(a, digit))
        part = a * digit * 10**place
        if place:
            lines.append(add_steps(total, part))
        total += part
    return "\n".join(lines)


def divide_steps(a: int, digit: int) -> str:
    """a / digit for a one-digit divisor that leaves no remainder, from the left."""
    lines = [f"{spelled(a)} / {digit}"]
    rest = 0
    for figure in str(a):
        part = rest * 10 + int(figure)
        rest = part % digit
        lines.append(f"{part}/{digit}={part // digit} r{rest}")
    return "\n".join([*lines, f"= {spelled(a // digit)}"])


def compare_steps(a: int, b: int) -> str:
    """Which of two different numbers is larger: by length, else by the first digit that differs."""
    lines = [spelled(a), spelled(b)]
    first, second = str(a), str(b)
    if len(first) != len(second):
        sign = "<" if len(first) < len(second) else ">"
        lines.append(f"{len(first)} digits {sign} {len(second)} digits")
        return "\n".join(lines)
    for x, y in zip(first, second, strict=True):
        lines.append(f"{x}{'=' if x == y else '<' if x < y else '>'}{y}")
        if x != y:
            break
    return "\n".join(lines)


def _digit_product(a: int, digit: int) -> str:
    lines = []
    carry = 0
    for figure in reversed(str(a)):
        total = int(figure) * digit + carry
        lines.append(f"{figure}*{digit}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return "\n".join([*lines, f"= {spelled(a * digit)}"])


def _columns(a: int, b: int, width: int) -> list[tuple[int, int]]:
    """Pairs of digits, the ones first."""
    pairs = zip(str(a).zfill(width), str(b).zfill(width), strict=True)
    return [(int(x), int(y)) for x, y in pairs][::-1]
