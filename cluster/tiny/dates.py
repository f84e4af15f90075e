"""Dates and weekdays of 2000 to 2099.

A weekday comes from year, month and day numbers modulo 7; the check takes Conway's Doomsday rule.
Sources: Zeller (1882) for the month numbers; J. H. Conway, "Tomorrow is the Day After Doomsday".
"""

import calendar
import random
from datetime import date, timedelta
from typing import Final

from moeray.cluster.tiny.draws import any_date, user
from moeray.cluster.tiny.problem import Problem, Reply, Thinking

WEEKDAYS: Final = (
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
)
_MONTH_NUMBERS: Final = (0, 3, 3, 6, 1, 4, 6, 2, 5, 0, 3, 5)
"""Days before the month in a common year, modulo 7."""
_SUNDAY_IS_0: Final = 6
"""What the sum of year, month and day numbers lacks for Sundays of 2000 to 2099 to come to 0."""
_DOOMSDAYS: Final = (3, 28, 14, 4, 9, 6, 11, 8, 5, 10, 7, 12)
"""A day of each month that falls on the year's doomsday; January and February one later in leap
years."""
_WEEKDAY: Final = (
    "What day of the week is {}?",
    "Which weekday is {}?",
    "What weekday was or will be {}?",
    "On which day of the week does {} fall?",
)
_LATER: Final = (
    "What date is {days} days after {start}?",
    "Which date comes {days} days after {start}?",
)
_EARLIER: Final = ("What date is {days} days before {start}?",)
_BETWEEN: Final = (
    "How many days are there from {start} to {end}?",
    "How many days after {start} is {end}?",
)


def weekday_name(day: date) -> str:
    return WEEKDAYS[day.isoweekday() % 7]


def draw_weekday(rng: random.Random) -> Problem:
    """The weekday of a given date, or of today as the system message has it."""
    day = _any_day(rng)
    today = rng.random() < 0.25
    text = rng.choice(_WEEKDAY).format(day)
    if today:
        text = rng.choice(("What day of the week is it today?", "Which weekday is today?"))
    return Problem(
        task="weekdays",
        key=str(day),
        messages=user(text),
        current_date=str(day) if today else any_date(rng),
        reply=Reply(
            thinking=Thinking(_weekday_steps(day), _doomsday_steps(day)), final=weekday_name(day)
        ),
    )


def draw_date(rng: random.Random) -> Problem:
    """A date some days before or after another, the days between two, or today's own."""
    kind = rng.choices(("later", "earlier", "between", "today"), (4, 3, 3, 1))[0]
    start = _any_day(rng)
    end = start + timedelta(days=rng.randint(1, 75))
    days = (end - start).days
    forward, backward = _forward(start, end), _backward(start, end)
    shown = any_date(rng)
    match kind:
        case "later":
            text, final = rng.choice(_LATER).format(days=days, start=start), str(end)
            thinking = Thinking(forward, f"Check back: {backward}\nThat is right.")
        case "earlier":
            text, final = rng.choice(_EARLIER).format(days=days, start=end), str(start)
            thinking = Thinking(backward, f"Check forward: {forward}\nThat is right.")
        case "between":
            text, final = rng.choice(_BETWEEN).format(start=start, end=end), str(days)
            thinking = Thinking(_days_between(start, end), f"Check: {forward}\nThat is right.")
        case _:
            shown = str(start)
            text, final = rng.choice(("What is today's date?", "What date is it today?")), shown
            thinking = Thinking(
                f"Current date: {start}",
                f"Check: year {start.year}, month {start.month}, day {start.day}\nThat is {start}.",
            )
    key = f"{start} {end}" if kind != "today" else shown
    return Problem(
        task="dates",
        key=key,
        messages=user(text),
        current_date=shown,
        reply=Reply(thinking=thinking, final=final),
    )


def _any_day(rng: random.Random) -> date:
    year = rng.randrange(2000, 2100) if rng.random() < 0.6 else rng.randrange(2015, 2035)
    return date(year, 1, 1) + timedelta(days=rng.randrange(365))


def _weekday_steps(day: date) -> str:
    year, month = day.year % 100, day.month
    lines = [f"year {year}: {year}+{year // 4}={year + year // 4}"]
    total = year + year // 4
    code = _MONTH_NUMBERS[month - 1] + _SUNDAY_IS_0
    if calendar.isleap(day.year) and month <= 2:
        code -= 1
        lines.append(f"month {month}, leap year: {code}")
    else:
        lines.append(f"month {month}: {code}")
    lines.append(f"{total}+{code}={total + code}")
    total += code
    lines.append(f"{total}+{day.day}={total + day.day}")
    total += day.day
    lines.append(f"{total}-{total // 7 * 7}={total % 7}: {WEEKDAYS[total % 7]}")
    return "\n".join(lines)


def _doomsday_steps(day: date) -> str:
    year, month = day.year % 100, day.month
    total = 2 + year + year // 4
    doomsday = total % 7
    known = _DOOMSDAYS[month - 1]
    leap = calendar.isleap(day.year)
    if leap and month <= 2:
        known += 1
    apart = day.day - known
    shift = apart % 7
    return "\n".join(
        [
            f"Check: doomsday of {year}: 2+{year}+{year // 4}={total}",
            f"{total}-{total // 7 * 7}={doomsday}: {WEEKDAYS[doomsday]}",
            f"month {month}{', leap year' if leap and month <= 2 else ''}: day {known}",
            f"{day.day}-{known}={apart}",
            f"{apart}{'+' if apart < shift else '-'}{abs(apart - shift)}={shift}",
            f"{doomsday}+{shift}={doomsday + shift}",
            f"{doomsday + shift}-{(doomsday + shift) // 7 * 7}={(doomsday + shift) % 7}:"
            f" {weekday_name(day)}, so it is right.",
        ]
    )


def _forward(start: date, end: date) -> str:
    """From ``start`` on, month by month, to ``end``."""
    days = (end - start).days
    total = start.day + days
    lines = [f"{start.day}+{days}={total}"]
    month = start.replace(day=1)
    while total > (length := _length(month)):
        lines.append(f"{_month_name(month)} has {length}: {total}-{length}={total - length}")
        total -= length
        month = _next_month(month)
    lines.append(f"{_month_name(month)} has {_length(month)}: {end}")
    return "\n".join(lines)


def _backward(start: date, end: date) -> str:
    """From ``end`` back, month by month, to ``start``."""
    days = (end - start).days
    total = end.day - days
    lines = [f"{end.day}-{days}={total}"]
    month = end.replace(day=1)
    while total < 1:
        month = (month - timedelta(days=1)).replace(day=1)
        length = _length(month)
        lines.append(f"{_month_name(month)} has {length}: {total}+{length}={total + length}")
        total += length
    lines.append(f"above 0: {start}")
    return "\n".join(lines)


def _days_between(start: date, end: date) -> str:
    month = start.replace(day=1)
    if (start.year, start.month) == (end.year, end.month):
        return f"same month: {end.day}-{start.day}={end.day - start.day}"
    total = _length(month) - start.day
    lines = [f"{_month_name(month)} has {_length(month)}: {_length(month)}-{start.day}={total}"]
    month = _next_month(month)
    while (month.year, month.month) != (end.year, end.month):
        lines.append(
            f"{_month_name(month)} has {_length(month)}: {total}+{_length(month)}="
            f"{total + _length(month)}"
        )
        total += _length(month)
        month = _next_month(month)
    lines.append(f"{_month_name(month)} {end.day}: {total}+{end.day}={total + end.day}")
    return "\n".join(lines)


def _length(month: date) -> int:
    return calendar.monthrange(month.year, month.month)[1]


def _month_name(month: date) -> str:
    return f"{month.year}-{month.month:02}"


def _next_month(month: date) -> date:
    return (month + timedelta(days=31)).replace(day=1)
