"""Questions of many wordings that have one answer, in any language."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moeray.cluster.tiny.problem import Thinking


@dataclass(frozen=True, slots=True)
class Talk:
    """One answer, and the wordings that ask for it."""

    up_to: float
    """Of a number drawn from 0 to 1: where this kind ends and the next begins."""
    forms: tuple[str, ...]
    thinking: Thinking
    final: str
    opened: bool = False
    """Whether other words may come before the question."""


def draw_talk(
    rng: random.Random,
    kinds: Sequence[Talk],
    openings: Sequence[str],
    fill: Callable[[str], str],
) -> tuple[str, Talk]:
    """A question, its form filled by ``fill``, and what it asks for."""
    drawn = rng.random()
    kind = next(kind for kind in kinds if drawn < kind.up_to)
    text = fill(rng.choice(kind.forms))
    return (rng.choice(openings) + text if kind.opened else text), kind
