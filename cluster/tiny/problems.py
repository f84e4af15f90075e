"""All tasks of the embedded model, and endless streams of their problems.

A stream is named by its split and its seed and is the same on every machine. Training streams and
held-out ones share neither seeds nor problems (``splits.py``).
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from moeray.cluster.tiny.arithmetic import (
    draw_addition,
    draw_comparison,
    draw_multiplication,
    draw_subtraction,
)
from moeray.cluster.tiny.conversations import draw_conversation
from moeray.cluster.tiny.dates import draw_date, draw_weekday
from moeray.cluster.tiny.identity import draw_identity
from moeray.cluster.tiny.japanese import draw_japanese
from moeray.cluster.tiny.json_answers import draw_json_answer
from moeray.cluster.tiny.lists import (
    draw_copying,
    draw_counting,
    draw_extreme,
    draw_reversing,
    draw_sorting,
    draw_sum,
)
from moeray.cluster.tiny.problem import Problem
from moeray.cluster.tiny.splits import Split, split_of
from moeray.cluster.tiny.tools import draw_tool_problem
from moeray.cluster.tiny.word_problems import draw_word_problem


@dataclass(frozen=True, slots=True)
class Source:
    """A generator of problems, and how often it is drawn from on each side of the split."""

    draw: Callable[[random.Random], Problem]
    held_out: int
    trained: int
    """More where the model needs more practice to get it right."""


SOURCES: Final = (
    Source(draw_addition, 10, 8),
    Source(draw_subtraction, 10, 12),
    Source(draw_multiplication, 14, 10),
    Source(draw_comparison, 4, 5),
    Source(draw_sum, 6, 5),
    Source(draw_word_problem, 10, 8),
    Source(draw_sorting, 5, 24),
    Source(draw_reversing, 3, 3),
    Source(draw_counting, 4, 4),
    Source(draw_copying, 2, 6),
    Source(draw_extreme, 2, 10),
    Source(draw_weekday, 4, 5),
    Source(draw_date, 5, 20),
    Source(draw_conversation, 6, 5),
    Source(draw_tool_problem, 18, 30),
    Source(draw_json_answer, 10, 8),
    Source(draw_identity, 4, 4),
    Source(draw_japanese, 3, 3),
)
"""Arithmetic of many digits weighs most: there thinking decides."""


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """Problems of one side of the split, without end."""
    rng = random.Random(f"{split.value} {seed}")
    trained = split is Split.TRAIN
    weights = [source.trained if trained else source.held_out for source in SOURCES]
    while True:
        (source,) = rng.choices(SOURCES, weights)
        problem = source.draw(rng)
        if split_of(problem.task, problem.key) is split:
            yield problem
