"""Several turns: a question that goes on from the last answer, and one after unrelated turns."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from moeray.cluster.generation import Channel, Message, Role
from moeray.cluster.tiny.arithmetic import (
    add_thinking,
    draw_addition,
    draw_comparison,
    draw_multiplication,
    draw_subtraction,
    subtract_thinking,
)
from moeray.cluster.tiny.dates import draw_date, draw_weekday
from moeray.cluster.tiny.draws import number
from moeray.cluster.tiny.lists import draw_counting, draw_extreme, draw_reversing, draw_sorting
from moeray.cluster.tiny.problem import Problem, Reply, Thinking
from moeray.cluster.tiny.word_problems import draw_word_problem

_MORE: Final = ("Add {} to that.", "And plus {}?", "Now add {}.", "What if you add {}?")
_LESS: Final = ("Subtract {} from that.", "And minus {}?", "Now take away {}.")
_WITH_NUMBERS: Final = (draw_addition, draw_subtraction, draw_multiplication, draw_word_problem)
_UNRELATED: Final[tuple[Callable[[random.Random], Problem], ...]] = (
    draw_addition,
    draw_subtraction,
    draw_multiplication,
    draw_comparison,
    draw_sorting,
    draw_reversing,
    draw_counting,
    draw_extreme,
    draw_weekday,
    draw_date,
    draw_word_problem,
)


def draw_conversation(rng: random.Random) -> Problem:
    """Half of them go on from the last answer, half ask something new."""
    return _continued(rng) if rng.random() < 0.6 else _after_others(rng)


def _continued(rng: random.Random) -> Problem:
    first = rng.choice(_WITH_NUMBERS)(rng)
    while (before := int(first.reply.final)) < 0:
        first = rng.choice(_WITH_NUMBERS)(rng)
    change = number(rng, rng.randint(1, 4))
    if rng.random() < 0.5:
        text, result = rng.choice(_MORE).format(change), before + change
        thinking = add_thinking(before, change)
    else:
        text, result = rng.choice(_LESS).format(change), before - change
        thinking = subtract_thinking(before, change)
    return Problem(
        task="conversations",
        key=f"{first.key} | {result}",
        messages=(*_finished(first), Message(role=Role.USER, content=text)),
        current_date=first.current_date,
        reply=Reply(
            thinking=Thinking(f"That is {before}.\n{thinking.steps}", thinking.check),
            final=str(result),
        ),
    )


def _after_others(rng: random.Random) -> Problem:
    problem = rng.choice(_UNRELATED)(rng)
    earlier: list[Message] = []
    for _ in range(rng.randint(1, 2)):
        earlier.extend(_finished(rng.choice(_UNRELATED)(rng)))
    # The same key as alone: what is held out alone is held out in company.
    return replace(problem, messages=(*earlier, *problem.messages))


def _finished(problem: Problem) -> tuple[Message, ...]:
    answer = Message(role=Role.ASSISTANT, content=problem.reply.final, channel=Channel.FINAL)
    return (*problem.messages, answer)
