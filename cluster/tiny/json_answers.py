"""Problems whose answer is JSON of a given schema.

The schema stands in the user's message, or in a developer message as a response format. Values are
copied from a sentence or worked out of two numbers.
"""

import json
import random
from collections.abc import Mapping
from typing import Any, Final

from moeray.cluster.generation import Message, Role
from moeray.cluster.tiny.columns import add_steps, subtract_steps
from moeray.cluster.tiny.draws import any_date
from moeray.cluster.tiny.problem import Problem, Reply, Thinking
from moeray.cluster.tiny.words import (
    ANIMALS,
    CITIES,
    COLOURS,
    COMMON,
    FOODS,
    FRUITS,
    ITEMS,
    NAMES,
    OBJECTS,
)

_TYPES: Final = {str: "string", int: "integer", bool: "boolean", float: "number"}
_ASK: Final = (
    "Answer as JSON with this schema: {}",
    "Answer in JSON with this schema: {}",
    "Give JSON of this schema: {}",
    "Reply with JSON only. The schema: {}",
    "JSON schema: {}",
)
_FORMAT: Final = "Answer in JSON.\n\n# Response Formats\n\n## answer\n\n{}"
_EXTRACT: Final = ("{}", "{}", "Extract the fields: {}", "Read this: {}", "Text: {}")
_FACTS: Final = (
    "{name} is {age} years old and lives in {city}.",
    "{name} lives in {city} and is {age} years old.",
    "{name} has a {color} {object} and {count} {items}.",
    "{name} bought a {object} for {price} in {city}.",
    "{name} sold {count} {items} in {city}.",
    "The {animal} of {name} is {color} and {age} years old.",
    "{name} eats {food} and drinks {drink} in {city}.",
    "My name is {name}. I live in {city}. I am {age} years old.",
    "The {object} is {color} and costs {price}.",
    "In {city} {name} saw {count} {items} and a {animal}.",
    "{name} ordered {count} {items} and a {color} {object}.",
    "The code of the {color} {object} is {code}.",
    "{name} has a {animal} and a {object}. The {animal} is {age} years old.",
    "A {fruit} costs {price} in {city}.",
    "Order {code} is for {name} in {city}: {count} {items}.",
)
_DRINKS: Final = ("milk", "tea", "coffee", "juice", "water", "wine")
_LISTS: Final = {
    "name": NAMES,
    "city": CITIES,
    "color": COLOURS,
    "object": OBJECTS,
    "items": ITEMS,
    "animal": ANIMALS,
    "food": FOODS,
    "drink": _DRINKS,
    "fruit": FRUITS,
}
_NUMBERS: Final = {"age": 100, "count": 100, "price": 1000, "code": 10000}
_KEY_NAMES: Final = ("item", "name", "thing", "kind")
_COUNT_NAMES: Final = ("count", "number", "amount", "quantity")
_TWO_NUMBERS: Final = (
    "The numbers are {} and {}.",
    "Take {} and {}.",
    "Compare {} and {}.",
    "The first is {} and the second is {}.",
)
_SUMS: Final = ("sum", "total", "result")
_DIFFERENCES: Final = ("difference", "distance", "gap")


def draw_json_answer(rng: random.Random) -> Problem:
    """Any problem whose answer is JSON."""
    kind = rng.random()
    if kind < 0.45:
        return draw_extraction(rng)
    return draw_json_list(rng) if kind < 0.7 else draw_json_numbers(rng)


def draw_extraction(rng: random.Random) -> Problem:
    """Fields of a sentence, any of them, in any order; or named values in a list."""
    if rng.random() < 0.3:
        return _named_values(rng)
    template = rng.choice(_FACTS)
    values = {kind: rng.choice(choices) for kind, choices in _LISTS.items()}
    numbers = {kind: rng.randrange(1, most) for kind, most in _NUMBERS.items()}
    facts: dict[str, Any] = {
        kind: value for kind, value in (values | numbers).items() if f"{{{kind}}}" in template
    }
    text = template.format(**facts)
    names = rng.sample(list(facts), rng.randint(1, len(facts)))
    answer = {name: facts[name] for name in names}
    back = [f"{name} {facts[name]}" for name in facts]
    return _problem(
        rng, "extraction", rng.choice(_EXTRACT).format(text), ", ".join(back), answer,
        _object_schema(answer), f"Check: the text says {', '.join(back)}.",
    )  # fmt: skip


def draw_json_list(rng: random.Random) -> Problem:
    """A list of named numbers as an array of objects, an array of words or one object."""
    things = rng.sample(ITEMS + NAMES, rng.randint(2, 4))
    counts = [rng.randrange(1, 100) for _ in things]
    pairs = list(zip(things, counts, strict=True))
    form = rng.choice(("{} {}", "{}: {}", "{} = {}"))
    text = ", ".join(form.format(thing, count) for thing, count in pairs)
    backwards = ", ".join(f"{thing} {count}" for thing, count in reversed(pairs))
    steps = "\n".join(f"{thing}: {count}" for thing, count in pairs)
    check = (
        f"Check from the end: {backwards}.\n"
        f"These are {len(pairs)} things, all are in the answer, none twice."
    )
    field = rng.choice(("items", "list", "values", "things", "result"))
    kind = rng.random()
    answer: dict[str, Any]
    if kind < 0.4:
        answer = {str(thing): count for thing, count in pairs}
        schema = _object_schema(answer)
    elif kind < 0.75:
        name, number = rng.choice(_KEY_NAMES), rng.choice(_COUNT_NAMES)
        answer = {field: [{name: thing, number: count} for thing, count in pairs]}
        schema = _array_schema(field, _object_schema(answer[field][0]))
    else:
        answer = {field: list(things)}
        schema = _array_schema(field, {"type": "string"})
    return _problem(rng, "JSON list", text, backwards, answer, schema, check, steps)


def draw_json_numbers(rng: random.Random) -> Problem:
    """What two numbers up to 99 make: sum, difference, the larger, and what is true of them."""
    a, b = rng.sample(range(100), 2)
    larger, smaller = max(a, b), min(a, b)
    total, difference = rng.choice(_SUMS), rng.choice(_DIFFERENCES)
    facts: dict[str, Any] = {
        total: a + b,
        difference: larger - smaller,
        "larger": larger,
        "smaller": smaller,
        "is_larger": a > b,
        "is_smaller": a < b,
        "first": a,
        "second": b,
    }
    answer = {name: facts[name] for name in rng.sample(list(facts), rng.randint(1, 4))}
    work, back = [f"{a}{'>' if a > b else '<'}{b}"], [f"{b}{'<' if a > b else '>'}{a}"]
    if total in answer:
        work.append(add_steps(a, b))
        back.append(subtract_steps(a + b, b))
    if difference in answer:
        work.append(subtract_steps(larger, smaller))
        back.append(add_steps(larger - smaller, smaller))
    back.append(f"first {a}, second {b}, larger {larger}, smaller {smaller}")
    named = [f"{name}: {_shown(value)}" for name, value in answer.items()]
    return _problem(
        rng, "JSON numbers", rng.choice(_TWO_NUMBERS).format(a, b), f"{a} {b}", answer,
        _object_schema(answer), "Check: " + "\n".join([*back, *reversed(named)]),
        "\n".join([*work, *named]),
    )  # fmt: skip


def _named_values(rng: random.Random) -> Problem:
    """Properties with names of no meaning: only the text says what they are."""
    names = rng.sample(COMMON, rng.randint(2, 4))
    drawn = (
        lambda: rng.randrange(1000),
        lambda: rng.choice(COMMON),
        lambda: rng.choice(NAMES),
        lambda: rng.choice(CITIES),
        lambda: rng.random() < 0.5,
    )
    values: dict[str, Any] = {name: rng.choice(drawn)() for name in names}
    form = rng.choice(("{} is {}", "the {} is {}", "{}: {}", "{} = {}", "{} {}"))
    text = ", ".join(form.format(name, _shown(value)) for name, value in values.items())
    asked = rng.sample(names, rng.randint(1, len(names)))
    answer = {name: values[name] for name in asked}
    back = ", ".join(f"{name} {_shown(value)}" for name, value in values.items())
    return _problem(
        rng, "extraction", f"{text}.", back, answer, _object_schema(answer),
        f"Check: the text says {back}.",
    )  # fmt: skip


def _problem(
    rng: random.Random,
    task: str,
    text: str,
    content: str,
    answer: dict[str, Any],
    schema: dict[str, Any],
    check: str,
    steps: str = "",
) -> Problem:
    steps = steps or "\n".join(f"{name}: {_shown(value)}" for name, value in answer.items())
    return Problem(
        task=task,
        key=f"{content} {json.dumps(answer)}",
        messages=_messages(rng, text, schema),
        current_date=any_date(rng),
        reply=Reply(
            thinking=Thinking(
                f"The answer is JSON.\n{steps}", f"{check}\nThe schema: {_fields(schema)}."
            ),
            final=json.dumps(answer, ensure_ascii=False, separators=(",", ":")),
            schema=schema,
        ),
    )


def _messages(rng: random.Random, text: str, schema: dict[str, Any]) -> tuple[Message, ...]:
    shown = {
        keyword: value
        for keyword, value in schema.items()
        if keyword != "additionalProperties" or rng.random() < 0.7
    }
    if rng.random() < 0.5:
        compact = json.dumps(shown, separators=(",", ":"))
        return (
            Message(role=Role.DEVELOPER, content=_FORMAT.format(compact)),
            Message(role=Role.USER, content=text),
        )
    spelled = json.dumps(shown, separators=(",", ":") if rng.random() < 0.7 else None)
    ask = rng.choice(_ASK).format(spelled)
    parts = (text, ask) if rng.random() < 0.8 else (ask, text)
    return (Message(role=Role.USER, content=rng.choice(("\n", " ", "\n\n")).join(parts)),)


def _object_schema(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": _TYPES[type(value)]} for name, value in answer.items()},
        "required": list(answer),
        "additionalProperties": False,
    }


def _array_schema(name: str, items: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "array", "items": items}},
        "required": [name],
        "additionalProperties": False,
    }


def _fields(schema: dict[str, Any]) -> str:
    """The schema in a few words: name string, age integer."""
    if schema["type"] == "array":
        return f"array of {_fields(schema['items'])}"
    if schema["type"] != "object":
        return str(schema["type"])
    return ", ".join(f"{name} {_fields(field)}" for name, field in schema["properties"].items())


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
