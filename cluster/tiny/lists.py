"""Short lists: sorting, reversing, counting, copying, the largest and the sum."""

import random
from typing import Final

from moeray.cluster.tiny.columns import add_steps, spelled, subtract_steps
from moeray.cluster.tiny.draws import any_date, number, user
from moeray.cluster.tiny.problem import Problem, Reply, Thinking
from moeray.cluster.tiny.words import COMMON, LIST_WORDS

_ASCENDING: Final = (
    "Sort these numbers from smallest to largest: {}",
    "Sort in ascending order: {}",
    "Put these numbers in order: {}",
    "Sort: {}",
)
_DESCENDING: Final = (
    "Sort these numbers from largest to smallest: {}",
    "Sort in descending order: {}",
)
_REVERSE: Final = ("Reverse this list: {}", "Reverse the order of: {}", "Write backwards: {}")
_COUNT: Final = (
    "How many times does {word} appear in this list: {items}",
    "How often does {word} occur in: {items}",
    "Count {word} in this list: {items}",
)
_LENGTH: Final = ("How many items are in this list: {}", "How many words are here: {}")
_COPY: Final = ("Repeat exactly: {}", "Copy this: {}", "Say this again: {}")
_EXTREME: Final = {
    "What is the largest number in this list: {}": max,
    "What is the smallest number in this list: {}": min,
    "Find the maximum of: {}": max,
    "Find the minimum of: {}": min,
}
_SUM: Final = ("Add up: {}", "What is the sum of {}?", "Sum these numbers: {}")


def sorting_thinking(numbers: list[int], *, descending: bool) -> Thinking:
    """Steps pick the next one from what is left; the check picks from the other end."""
    ordered = sorted(numbers, reverse=descending)
    other = "smallest" if descending else "largest"
    back = _selection(numbers, ordered[::-1])
    return Thinking(
        _selection(numbers, ordered),
        f"Check from the {other}:\n{back}\nBackwards: {_joined(ordered)}",
    )


def draw_sorting(rng: random.Random) -> Problem:
    numbers = _distinct_numbers(rng, rng.randint(3, 7))
    descending = rng.random() < 0.35
    return _problem(
        "sorting",
        f"{descending} {_joined(numbers)}",
        rng.choice(_DESCENDING if descending else _ASCENDING).format(_joined(numbers)),
        sorting_thinking(numbers, descending=descending),
        _joined(sorted(numbers, reverse=descending)),
        rng,
    )


def draw_reversing(rng: random.Random) -> Problem:
    items = _items(rng, rng.randint(3, 8))
    backwards = items[::-1]
    count = len(items)
    places = ", ".join(f"{place} {item}" for place, item in enumerate(items, start=1))
    back = ", ".join(f"{count - place} {item}" for place, item in enumerate(backwards))
    return _problem(
        "reversing",
        _joined(items),
        rng.choice(_REVERSE).format(_joined(items)),
        Thinking(
            f"{places}\nFrom {count} down to 1: {back}",
            f"Check: {_numbered(backwards)}\nFrom {count} down to 1: "
            + ", ".join(f"{count - place} {item}" for place, item in enumerate(items))
            + "\nThat is the list as it was given, so it is right.",
        ),
        _joined(backwards),
        rng,
    )


def draw_counting(rng: random.Random) -> Problem:
    if rng.random() < 0.3:
        return _length_problem(rng)
    kinds = rng.sample(LIST_WORDS, rng.randint(2, 4))
    items = [rng.choice(kinds) for _ in range(rng.randint(5, 14))]
    word = rng.choice(kinds)
    count = items.count(word)
    running = _running_count(items, word)
    others = [item for item in items if item != word]
    return _problem(
        "counting",
        f"{word}: {_joined(items)}",
        rng.choice(_COUNT).format(word=word, items=_joined(items)),
        Thinking(
            f"{running}\n{word}: {count}",
            f"Check: all items: {_numbered(items)}\n"
            f"Others: {_numbered(others) if others else 'none'}\n"
            f"{len(items)}-{len(others)}={count}",
        ),
        str(count),
        rng,
    )


def draw_copying(rng: random.Random) -> Problem:
    words = rng.choices(COMMON, k=rng.randint(3, 12))
    text = " ".join(words)
    return _problem(
        "copying",
        text,
        rng.choice(_COPY).format(text),
        Thinking(
            f"{len(words)} words: {text}",
            "Check: "
            + ", ".join(f"{place} {word}" for place, word in enumerate(words, start=1))
            + f"\nThat is {len(words)} words, all there.",
        ),
        text,
        rng,
    )


def draw_extreme(rng: random.Random) -> Problem:
    numbers = _distinct_numbers(rng, rng.randint(3, 8))
    template = rng.choice(list(_EXTREME))
    choose = _EXTREME[template]
    best, running = numbers[0], []
    for value in numbers:
        best = choose(best, value)
        running.append(f"{value}: {best}")
    sign = ">" if choose is max else "<"
    others = [value for value in numbers if value != best]
    return _problem(
        "extremes",
        f"{choose is max} {_joined(numbers)}",
        template.format(_joined(numbers)),
        Thinking(
            "\n".join(running),
            "Check: " + ", ".join(f"{best}{sign}{value}" for value in others) + f"\n{best} it is.",
        ),
        str(best),
        rng,
    )


def draw_sum(rng: random.Random) -> Problem:
    numbers = [number(rng, rng.randint(1, 3)) for _ in range(rng.randint(3, 4))]
    in_a_list = rng.random() < 0.6
    plain = f"What is {' + '.join(map(str, numbers))}?"
    text = rng.choice(_SUM).format(_joined(numbers)) if in_a_list else plain
    total, steps = numbers[0], []
    for value in numbers[1:]:
        steps.append(add_steps(total, value))
        total += value
    rest, back = total, []
    for value in numbers[:0:-1]:
        back.append(subtract_steps(rest, value))
        rest -= value
    return _problem(
        "sums",
        " ".join(map(str, sorted(numbers))),
        text,
        Thinking(
            "\n".join(steps),
            "Check: " + "\n".join(back) + f"\nThat is {spelled(rest)}, so it is right.",
        ),
        str(total),
        rng,
    )


def _length_problem(rng: random.Random) -> Problem:
    items = _items(rng, rng.randint(3, 12))
    count = len(items)
    left = ", ".join(f"{count - place} {item}" for place, item in enumerate(items[::-1]))
    return _problem(
        "counting",
        _joined(items),
        rng.choice(_LENGTH).format(_joined(items)),
        Thinking(
            f"{_numbered(items)}\n{count} items",
            f"Check from the end: {left}\nThe first one is 1, so {count} is right.",
        ),
        str(count),
        rng,
    )


def _problem(
    task: str, key: str, text: str, thinking: Thinking, final: str, rng: random.Random
) -> Problem:
    return Problem(
        task=task,
        key=key,
        messages=user(text),
        current_date=any_date(rng),
        reply=Reply(thinking=thinking, final=final),
    )


def _distinct_numbers(rng: random.Random, count: int) -> list[int]:
    return rng.sample(range(1000 if rng.random() < 0.7 else 100), count)


def _items(rng: random.Random, count: int) -> list[str]:
    if rng.random() < 0.5:
        return [str(value) for value in _distinct_numbers(rng, count)]
    return rng.sample(LIST_WORDS, count)


def _selection(numbers: list[int], ordered: list[int]) -> str:
    """A line for each of ``ordered``: it, and what it was picked from."""
    left = list(numbers)
    lines = []
    for value in ordered:
        lines.append(f"{_joined(left)}: {value}")
        left.remove(value)
    return "\n".join(lines)


def _running_count(items: list[str], word: str) -> str:
    seen, shown = 0, []
    for item in items:
        seen += item == word
        shown.append(f"{item} {seen}" if item == word else item)
    return ", ".join(shown)


def _numbered(items: list[str]) -> str:
    return ", ".join(f"{place} {item}" for place, item in enumerate(items, start=1))


def _joined(items: list[int] | list[str]) -> str:
    return ", ".join(map(str, items))
