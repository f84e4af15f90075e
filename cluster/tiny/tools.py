"""Problems with declared functions: which one to call, with what arguments, or that none fits."""

import json
import random
from collections.abc import Mapping
from typing import Final

from moeray.cluster.tiny.arithmetic import add_thinking, subtract_thinking
from moeray.cluster.tiny.calls import call_problem, draw_json, messages
from moeray.cluster.tiny.draws import any_date
from moeray.cluster.tiny.functions import (
    Function,
    Parameter,
    Value,
    a_or_an,
    draw_arguments,
    draw_function,
    draw_functions,
    draw_value,
    shown,
)
from moeray.cluster.tiny.identity import draw_identity
from moeray.cluster.tiny.lookups import draw_calculator, draw_lookup
from moeray.cluster.tiny.problem import Problem, Reply, Thinking

_EXPLICIT: Final = (
    "Call {name} with {given}.",
    "Use {name} with {given}.",
    "Please call {name} with {given}.",
    "Run {name}: {given}.",
    "{name}: {given}",
    "Call the function {name} with {given}.",
)
_FREE: Final = (
    "Please {verb} {a_noun}: {given}.",
    "Please {verb} the {noun} with {given}.",
    "{Verb} {a_noun} with {given}.",
    "{Verb} the {noun}: {given}.",
    "I want to {verb} the {noun}. {told}",
    "I want to {verb} {a_noun}. {told}",
    "Can you {verb} {a_noun}? {told}",
    "Could you {verb} the {noun} with {given}?",
    "I need to {verb} {a_noun}: {given}.",
    "I would like to {verb} {a_noun} with {given}.",
)
_PAIRS: Final = ("{} {}", "{} {}", "{} = {}", "{}: {}")
_ERRORS: Final = ("not found", "full", "closed", "not allowed", "busy", "too late", "no access")
_RESULT_FIELDS: Final = (
    Parameter("id", "integer", required=True),
    Parameter("price", "integer", required=True),
    Parameter("count", "integer", required=True),
    Parameter("number", "integer", required=True),
    Parameter("name", "string", required=True),
    Parameter("code", "integer", required=True),
    Parameter("time", "string", required=True),
    Parameter("city", "string", required=True),
    Parameter("color", "string", required=True),
    Parameter("weight", "number", required=True),
    Parameter("total", "number", required=True),
    Parameter("date", "string", required=True),
)


def draw_tool_problem(rng: random.Random) -> Problem:
    """Any problem with declared functions."""
    kind = rng.random()
    if kind < 0.45:
        return draw_function_call(rng)
    if kind < 0.65:
        return draw_lookup(rng)
    return draw_calculator(rng) if kind < 0.8 else draw_no_call(rng)


def draw_function_call(rng: random.Random) -> Problem:
    """A call of one of up to three made-up functions."""
    function = draw_function(rng)
    arguments = draw_arguments(rng, function)
    functions = draw_functions(rng, function, 2)
    result, final = _draw_result(rng)
    text, told = _request(rng, function, arguments)
    # One call is one problem, in whatever order the user names its arguments.
    key = f"{function.name} {json.dumps(arguments)}"
    return call_problem(rng, "function call", function, told, functions, text, result, final, key)


def draw_no_call(rng: random.Random) -> Problem:
    """Functions are declared and none of them is needed, or none fits."""
    wanted = draw_function(rng)
    functions = draw_functions(rng, wanted, 2)
    names = " ".join(function.name for function in functions)
    kind = rng.random()
    if kind < 0.35:
        a, b = rng.randrange(1000), rng.randrange(1000)
        key, text, reply = _small_sum(rng, a, b)
    elif kind < 0.65:
        asked = draw_identity(rng)
        key, text, reply = asked.key, asked.messages[-1].content, asked.reply
    else:
        missing = draw_function(rng)
        while missing.name in names.split():
            missing = draw_function(rng)
        given = draw_arguments(rng, missing)
        key = f"{missing.name} {json.dumps(given)}"
        text, _ = _request(rng, missing, given)
        reply = _nothing_fits(missing, functions)
    return Problem(
        task="no call",
        key=f"{names} {key}",
        messages=messages(rng, text),
        tools=tuple(function.tool() for function in functions),
        current_date=any_date(rng),
        reply=reply,
    )


def _draw_result(rng: random.Random) -> tuple[str, str]:
    """What a made-up function answers, and how to say it."""
    kind = rng.random()
    if kind < 0.1:
        error = rng.choice(_ERRORS)
        return draw_json(rng, {"error": error}), f"It failed: {error}."
    drawn = rng.sample(_RESULT_FIELDS, rng.choice((1, 1, 2)))
    fields = {field.name: draw_value(rng, field) for field in drawn}
    said = " and ".join(f"the {name} is {shown(value)}" for name, value in fields.items())
    sentence = f"{said[0].upper()}{said[1:]}."
    if kind < 0.25:
        return draw_json(rng, {"status": "ok"}), "Done."
    if kind < 0.7:
        return draw_json(rng, {"status": "ok", **fields}), f"Done. {sentence}"
    return draw_json(rng, fields), sentence


def _request(
    rng: random.Random, function: Function, arguments: Mapping[str, Value]
) -> tuple[str, dict[str, Value]]:
    """The user's words for a call, and the arguments in the order in which they name them."""
    order = list(arguments)
    rng.shuffle(order)
    told = {name: arguments[name] for name in order}
    pairs = [(name, shown(value)) for name, value in told.items()]
    pair = rng.choice(_PAIRS)
    given = [pair.format(name, value) for name, value in pairs]
    facts = [f"the {name} is {value}" for name, value in pairs]
    if rng.random() < 0.5:
        sentences = " ".join(_sentence(fact) for fact in facts)
    else:
        sentences = _sentence(_listed(facts))
    template = rng.choice(_EXPLICIT if rng.random() < 0.4 else _FREE)
    text = template.format(
        name=function.name,
        verb=function.verb,
        Verb=function.verb.capitalize(),
        noun=function.noun,
        a_noun=a_or_an(function.noun),
        given=_listed(given) if rng.random() < 0.6 else ", ".join(given),
        told=sentences,
    )
    return text, told


def _small_sum(rng: random.Random, a: int, b: int) -> tuple[str, str, Reply]:
    a, b = max(a, b), min(a, b)
    ask = rng.choice(("What is {}?", "How much is {}?", "Compute {}.", "{} ="))
    if rng.random() < 0.5:
        thinking, result, sign = add_thinking(a, b), a + b, "+"
    else:
        thinking, result, sign = subtract_thinking(a, b), a - b, "-"
    sum_text = f"{a} {sign} {b}"
    return sum_text, ask.format(sum_text), Reply(thinking=thinking, final=str(result))


def _nothing_fits(missing: Function, functions: list[Function]) -> Reply:
    names = [function.name for function in functions]
    return Reply(
        thinking=Thinking(
            f"To {missing.verb} {a_or_an(missing.noun)} I would need {missing.name}.\n"
            f"Declared: {', '.join(names)}.",
            "Check: "
            + ".\n".join(f"{name} is not {missing.name}" for name in names)
            + f".\nNothing is declared to {missing.verb} {a_or_an(missing.noun)}, so I say so.",
            brief=f"{missing.name} is not declared.",
        ),
        final=f"I have no function to {missing.verb} {a_or_an(missing.noun)}.",
    )


def _listed(parts: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
