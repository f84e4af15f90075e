"""The streams of problems: the same everywhere, and held-out ones never among the trained."""

import random
from itertools import islice

import pytest

from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.problems import SOURCES, problems
from moeray.cluster.tiny.splits import Split, split_of


def _drawn(split: Split, seed: int, count: int) -> list[Problem]:
    return list(islice(problems(split, seed), count))


def _content(problem: Problem) -> tuple[str, str]:
    return problem.task, problem.key


def _prompt(problem: Problem) -> str:
    return repr((problem.messages, problem.tools, problem.current_date))


@pytest.fixture(scope="module")
def held_out() -> list[Problem]:
    return _drawn(Split.HELD_OUT, 0, 1000)


@pytest.fixture(scope="module")
def trained() -> list[Problem]:
    return [problem for seed in range(8) for problem in _drawn(Split.TRAIN, seed, 1500)]


def test_no_held_out_problem_is_ever_trained(
    held_out: list[Problem], trained: list[Problem]
) -> None:
    # What decides is the problem's own content, so no seed and no order of drawing can mix them.
    for problem in held_out:
        assert split_of(problem.task, problem.key) is Split.HELD_OUT
    for problem in trained:
        assert split_of(problem.task, problem.key) is Split.TRAIN
    assert not {*map(_content, held_out)} & {*map(_content, trained)}
    # Nor does a prompt occur on both sides, whatever the keys say.
    assert not {*map(_prompt, held_out)} & {*map(_prompt, trained)}


def test_wording_does_not_change_the_side() -> None:
    # The same sums drawn with other words, dates and tool declarations keep their key.
    for source in SOURCES:
        one, other = (source.draw(random.Random(7)) for _ in range(2))
        assert _content(one) == _content(other)
    assert split_of("addition", "12 34") is split_of("addition", "12 34")
    sides = [split_of("addition", f"{a} {b}") for a in range(60) for b in range(a, 60)]
    share = sides.count(Split.HELD_OUT) / len(sides)
    assert 0.04 < share < 0.09


def test_a_stream_is_its_seed() -> None:
    assert _drawn(Split.TRAIN, 5, 60) == _drawn(Split.TRAIN, 5, 60)
    assert _drawn(Split.TRAIN, 5, 60) != _drawn(Split.TRAIN, 6, 60)
    assert _drawn(Split.TRAIN, 5, 60) != _drawn(Split.HELD_OUT, 5, 60)


def test_every_source_is_drawn_on_both_sides(
    held_out: list[Problem], trained: list[Problem]
) -> None:
    assert {problem.task for problem in held_out} == {problem.task for problem in trained}


def test_more_effort_thinks_more(held_out: list[Problem]) -> None:
    for problem in held_out:
        turns = filter(None, (problem.call, problem.reply))
        for thinking in (turn.thinking for turn in turns):
            low, medium, high = (len(thinking.at(effort)) for effort in ReasoningEffort)
            assert low < medium < high
            assert thinking.at(ReasoningEffort.HIGH).startswith(thinking.steps)
