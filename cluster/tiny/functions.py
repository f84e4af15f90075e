"""Made-up functions for the embedded model to call: their declarations and arguments for them.

A function is a verb and a noun, find_train, with up to four parameters of the simple types of JSON
Schema. Arguments are such that they can be copied from prose, token by token.
"""

import random
from dataclasses import dataclass
from typing import Any, Final

from moeray.cluster.generation import Tool
from moeray.cluster.tiny import words

Value = str | int | float | bool

ENUM: Final = "enum"
_TYPES: Final = ("string", "string", "string", "integer", "integer", "number", "boolean", ENUM)
_CHOICES: Final = {
    "size": ("small", "medium", "large"),
    "level": ("low", "medium", "high"),
    "direction": ("north", "south", "east", "west"),
    "class": ("first", "second", "business"),
    "payment": ("cash", "card"),
    "period": ("daily", "weekly", "monthly"),
    "order": ("asc", "desc"),
    "status": ("open", "closed"),
    "access": ("public", "private"),
    "side": ("left", "right"),
    "speed": ("slow", "fast"),
    "color": ("red", "green", "blue", "black", "white"),
    "unit": ("metric", "imperial"),
    "difficulty": ("easy", "hard"),
}
_PEOPLE: Final = (
    "name",
    "user",
    "author",
    "owner",
    "guest",
    "customer",
    "host",
    "driver",
    "sender",
)
_STRINGS: Final = {
    "city": words.CITIES,
    "location": words.CITIES,
    "place": words.CITIES,
    "country": words.COUNTRIES,
    "color": words.COLOURS,
    "animal": words.ANIMALS,
    "fruit": words.FRUITS,
    "food": words.FOODS,
    "item": words.OBJECTS,
    "product": words.OBJECTS,
    "date": (),
    "time": (),
    **dict.fromkeys(_PEOPLE, words.NAMES),
}
_TEXTS: Final = ("title", "subject", "topic", "text", "message", "note")
_ANY_WORD: Final = words.COMMON + words.CITIES + words.NAMES


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    kind: str
    """A type of JSON Schema, or ENUM."""
    required: bool
    choices: tuple[str, ...] = ()
    """Of an ENUM."""
    description: str = ""

    def schema(self) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "string" if self.kind == ENUM else self.kind}
        if self.choices:
            schema["enum"] = list(self.choices)
        if self.description:
            schema["description"] = self.description
        return schema

    @property
    def shown_type(self) -> str:
        """The type as the rendered prompt shows it: an integer is a number there."""
        return "number" if self.kind == "integer" else self.kind


@dataclass(frozen=True, slots=True)
class Function:
    verb: str
    noun: str
    parameters: tuple[Parameter, ...]
    description: str = ""

    @property
    def name(self) -> str:
        return f"{self.verb}_{self.noun}" if self.noun else self.verb

    def tool(self) -> Tool:
        schema = {
            "type": "object",
            "properties": {parameter.name: parameter.schema() for parameter in self.parameters},
            "required": [parameter.name for parameter in self.parameters if parameter.required],
        }
        return Tool(self.name, self.description, schema)


def draw_function(rng: random.Random, verb: str = "", noun: str = "") -> Function:
    """A function with one to four parameters, the first of them required."""
    verb = verb or rng.choice(words.VERBS)
    noun = noun or rng.choice(words.NOUNS)
    while noun == verb:
        noun = rng.choice(words.NOUNS)
    parameters: dict[str, Parameter] = {}
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4))):
        parameter = _draw_parameter(rng, required=not parameters or rng.random() < 0.6)
        parameters.setdefault(parameter.name, parameter)
    description = f"{verb.capitalize()} {a_or_an(noun)}." if rng.random() < 0.4 else ""
    return Function(verb, noun, tuple(parameters.values()), description)


def draw_functions(rng: random.Random, wanted: Function, most: int) -> list[Function]:
    """``wanted`` among up to ``most`` made-up functions, some with its verb or its noun."""
    functions = {wanted.name: wanted}
    for _ in range(rng.randint(0, most)):
        kin = rng.random()
        verb = wanted.verb if kin < 0.3 else ""
        noun = wanted.noun if 0.3 <= kin < 0.6 else ""
        other = draw_function(rng, verb, noun)
        functions.setdefault(other.name, other)
    shuffled = list(functions.values())
    rng.shuffle(shuffled)
    return shuffled


def draw_arguments(rng: random.Random, function: Function) -> dict[str, Value]:
    """Values for all required parameters and for half of the others, in the schema's order."""
    return {
        parameter.name: draw_value(rng, parameter)
        for parameter in function.parameters
        if parameter.required or rng.random() < 0.5
    }


def draw_value(rng: random.Random, parameter: Parameter) -> Value:
    match parameter.kind:
        case "integer":
            return rng.randrange(10 ** rng.randint(1, 4))
        case "number":
            return (rng.randrange(100) * 10 + rng.randrange(1, 10)) / 10
        case "boolean":
            return rng.random() < 0.5
        case "enum":
            return rng.choice(parameter.choices)
        case _:
            return _draw_string(rng, parameter.name)


def shown(value: Value) -> str:
    """A value in prose, spelled as in JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def a_or_an(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' or noun == 'umbrella' else 'a'} {noun}"


def _draw_parameter(rng: random.Random, *, required: bool) -> Parameter:
    kind = rng.choice(_TYPES)
    choices: tuple[str, ...] = ()
    match kind:
        case "string":
            name = rng.choice((*words.STRING_PARAMETERS, "date", "time"))
        case "integer":
            name = rng.choice(words.INTEGER_PARAMETERS)
        case "number":
            name = rng.choice(words.NUMBER_PARAMETERS)
        case "boolean":
            name = rng.choice(words.BOOLEAN_PARAMETERS)
        case _:
            name = rng.choice(tuple(_CHOICES))
            choices = _CHOICES[name]
            if rng.random() < 0.4:
                choices = tuple(rng.sample(words.COMMON, rng.randint(2, 4)))
    description = f"The {name}." if rng.random() < 0.15 else ""
    return Parameter(name, kind, required, choices, description)


def _draw_string(rng: random.Random, name: str) -> str:
    if name == "date":
        return f"20{rng.randrange(20, 40)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}"
    if name == "time":
        return f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    if name in _TEXTS and rng.random() < 0.4:
        return " ".join(rng.sample(words.COMMON, 2))
    if name in _STRINGS and rng.random() < 0.7:
        return rng.choice(_STRINGS[name])
    return rng.choice(_ANY_WORD)
