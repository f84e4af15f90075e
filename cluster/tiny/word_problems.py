"""Small word problems: two or three steps about things that people have, buy, give and pack."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moeray.cluster.tiny.columns import (
    add_steps,
    divide_steps,
    multiply_steps,
    spelled,
    subtract_steps,
)
from moeray.cluster.tiny.draws import any_date, user
from moeray.cluster.tiny.problem import Problem, Reply, Thinking
from moeray.cluster.tiny.words import ITEMS, NAMES

_HAVE_LEFT: Final = (
    "How many {thing} does {name} have now?",
    "How many {thing} does {name} have left?",
)


@dataclass(frozen=True, slots=True)
class _Story:
    """A question, its numbers' worked steps, the way back, and the result."""

    text: str
    steps: tuple[str, ...]
    back: tuple[str, ...]
    shown: int
    """What the way back ends at."""
    result: int
    key: str


def draw_word_problem(rng: random.Random) -> Problem:
    name, thing = rng.choice(NAMES), rng.choice(ITEMS)
    story = rng.choice(_STORIES)(rng, name, thing)
    check = "\n".join(story.back)
    return Problem(
        task="word problems",
        key=story.key,
        messages=user(story.text),
        current_date=any_date(rng),
        reply=Reply(
            thinking=Thinking(
                "\n".join(story.steps),
                f"Check: {check}\nThat is {spelled(story.shown)}, so it is right.",
            ),
            final=str(story.result),
        ),
    )


def _bought_and_gave(rng: random.Random, name: str, thing: str) -> _Story:
    has, buys = rng.randint(5, 999), rng.randint(2, 500)
    gives = rng.randint(1, has + buys - 1)
    start = f"{name} has {has} {thing}."
    verb = rng.choice(("buys", "finds", "gets"))
    if rng.random() < 0.5:
        middle = f"{name} {verb} {buys} more and gives away {gives}."
    else:
        middle = f"{name} {verb} {buys} {thing} and then loses {gives}."
    total = has + buys
    return _Story(
        f"{start} {middle} {rng.choice(_HAVE_LEFT).format(thing=thing, name=name)}",
        (add_steps(has, buys), subtract_steps(total, gives)),
        (add_steps(total - gives, gives), subtract_steps(total, buys)),
        has,
        total - gives,
        f"{has}+{buys}-{gives}",
    )


def _boxes(rng: random.Random, name: str, thing: str) -> _Story:
    boxes, each = rng.randint(11, 99), rng.randint(2, 9)
    eaten = rng.randint(1, boxes * each - 1)
    text = (
        f"{name} has {boxes} boxes with {each} {thing} in each box."
        f" {name} {rng.choice(('sells', 'gives away', 'loses'))} {eaten} {thing}."
        f" How many {thing} are left?"
    )
    total = boxes * each
    return _Story(
        text,
        (multiply_steps(boxes, each), subtract_steps(total, eaten)),
        (add_steps(total - eaten, eaten), divide_steps(total, each)),
        boxes,
        total - eaten,
        f"{boxes}*{each}-{eaten}",
    )


def _shared(rng: random.Random, name: str, thing: str) -> _Story:
    people, each = rng.randint(2, 9), rng.randint(11, 199)
    total = people * each
    first = rng.randint(1, total - 1)
    text = (
        f"{name} has {first} {thing} and buys {total - first} more."
        f" {name} shares all {thing} equally among {people} friends."
        f" How many {thing} does each friend get?"
    )
    return _Story(
        text,
        (add_steps(first, total - first), divide_steps(total, people)),
        (multiply_steps(each, people), subtract_steps(total, total - first)),
        first,
        each,
        f"({first}+{total - first})/{people}",
    )


def _price(rng: random.Random, name: str, thing: str) -> _Story:
    price, count = rng.randint(11, 499), rng.randint(2, 9)
    cost = price * count
    paid = cost + rng.randint(1, 500)
    text = (
        f"One of the {thing} costs {price} yen. {name} buys {count} of them and pays"
        f" {paid} yen. How much change does {name} get?"
    )
    return _Story(
        text,
        (multiply_steps(price, count), subtract_steps(paid, cost)),
        (add_steps(paid - cost, cost), divide_steps(cost, count)),
        price,
        paid - cost,
        f"{paid}-{price}*{count}",
    )


_STORIES: Final[tuple[Callable[[random.Random, str, str], _Story], ...]] = (
    _bought_and_gave,
    _boxes,
    _shared,
    _price,
)
