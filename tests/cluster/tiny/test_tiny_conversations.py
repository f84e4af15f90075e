"""Word problems and conversations: the stories' own numbers give the answer."""

import random
import re

from moeray.cluster.generation import Role
from moeray.cluster.tiny.conversations import draw_conversation
from moeray.cluster.tiny.word_problems import draw_word_problem
from tests.cluster.tiny.worked_lines import assert_true, last_spelled

STORIES = {
    r"has (\d+) \w+\. \w+ \w+ (\d+) .*(?:away|loses) (\d+)": lambda a, b, c: a + b - c,
    r"has (\d+) boxes with (\d+) .* (\d+) \w+\. How many": lambda a, b, c: a * b - c,
    r"has (\d+) \w+ and buys (\d+) more.*How many": None,
    r"costs (\d+) yen\. \w+ buys (\d+) of them and pays (\d+)": lambda a, b, c: c - a * b,
}


def test_word_problems_are_right() -> None:
    matched = set()
    for seed in range(400):
        problem = draw_word_problem(random.Random(seed))
        text, final = problem.messages[0].content, int(problem.reply.final)
        pattern, found = next(
            (pattern, found) for pattern in STORIES if (found := re.search(pattern, text))
        )
        matched.add(pattern)
        numbers = [int(each) for each in found.groups()]
        solve = STORIES[pattern]
        if solve is None:  # shared among friends whose number the steps name
            assert sum(numbers) % final == 0
        else:
            assert final == solve(*numbers), text
        thinking = problem.reply.thinking
        assert last_spelled(thinking.steps) == final
        assert_true(thinking.steps)
        assert_true(thinking.check)
    assert matched == set(STORIES)


def test_conversations_go_on_from_the_last_answer() -> None:
    continued = 0
    for seed in range(400):
        problem = draw_conversation(random.Random(seed))
        roles = [message.role for message in problem.messages]
        assert roles[0] is Role.USER
        assert roles == [Role.USER, Role.ASSISTANT] * (len(roles) // 2) + [Role.USER]
        assert_true(problem.reply.thinking.steps)
        if problem.task != "conversations":
            continue
        continued += 1
        before = int(problem.messages[-2].content)
        change = int(re.search(r"\d+", problem.messages[-1].content)[0])
        less = re.search("ubtract|minus|take", problem.messages[-1].content)
        assert int(problem.reply.final) == before + (-change if less else change)
    assert 150 < continued < 350
