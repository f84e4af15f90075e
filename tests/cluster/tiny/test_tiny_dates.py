"""Worked dates against Python's calendar."""

import random
import re
from datetime import date, timedelta

from moeray.cluster.tiny.dates import draw_date, draw_weekday
from tests.cluster.tiny.worked_lines import assert_true


def test_weekdays_are_right_in_both_ways() -> None:
    for seed in range(1000):
        problem = draw_weekday(random.Random(seed))
        question = problem.messages[0].content
        shown = re.search(r"\d{4}-\d\d-\d\d", question)
        day = date.fromisoformat(shown[0] if shown else problem.current_date)
        assert problem.reply.final == f"{day:%A}"
        thinking = problem.reply.thinking
        assert thinking.steps.endswith(f": {day:%A}")
        assert thinking.check.endswith(f": {day:%A}, so it is right.")
        assert_true(thinking.steps)
        assert_true(thinking.check)


def test_dates_are_right() -> None:
    seen = set()
    for seed in range(1000):
        problem = draw_date(random.Random(seed))
        question, final = problem.messages[0].content, problem.reply.final
        dates = [date.fromisoformat(found) for found in re.findall(r"\d{4}-\d\d-\d\d", question)]
        days = [int(found) for found in re.findall(r"(\d+) days", question)]
        kind = "before" if "before" in question else "after" if days else "between"
        if not dates:
            kind, expected = "today", problem.current_date
        elif kind == "before":
            expected = str(dates[0] - timedelta(days=days[0]))
        elif kind == "after":
            expected = str(dates[0] + timedelta(days=days[0]))
        else:
            expected = str(abs((dates[1] - dates[0]).days))
        seen.add(kind)
        assert final == expected, question
        assert_true(problem.reply.thinking.steps)
        assert_true(problem.reply.thinking.check)
    assert seen == {"before", "after", "between", "today"}
