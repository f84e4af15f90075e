"""The turns of a problem with a function call: the call, what comes back, and the answer.

The thinking before a call names the function and its arguments; the check goes through the declared
parameters. At low effort one line is left of it. The thinking after it reads the result; the check
reads call and result again.
"""

import json
import random
from collections.abc import Mapping
from typing import Final

from moeray.cluster.generation import Message, Role
from moeray.cluster.tiny.draws import any_date
from moeray.cluster.tiny.functions import Function, Value, shown
from moeray.cluster.tiny.problem import Call, Problem, Reply, Thinking

_DEVELOPER: Final = (
    "You are a helpful assistant.",
    "Be brief.",
    "Use the functions when they fit.",
    "You help with functions.",
    "Answer in one sentence.",
    "Call a function if one fits the request.",
    "You are an assistant with tools.",
)


def call_problem(
    rng: random.Random,
    task: str,
    function: Function,
    arguments: dict[str, Value],
    functions: list[Function],
    text: str,
    result: str,
    final: str,
    key: str = "",
) -> Problem:
    """The problem of calling ``function`` once and telling what came back.

    It is the same problem whenever it is the same call, unless a ``key`` says otherwise.
    """
    return Problem(
        task=task,
        key=key or f"{function.name} {json.dumps(arguments)}",
        messages=messages(rng, text),
        tools=tuple(declared.tool() for declared in functions),
        current_date=any_date(rng),
        call=Call(
            thinking=call_thinking(function, arguments),
            name=function.name,
            arguments=dict(arguments),
            result=result,
        ),
        reply=Reply(thinking=result_thinking(function, arguments, result), final=final),
    )


def call_thinking(function: Function, arguments: Mapping[str, Value]) -> Thinking:
    """Which function and which arguments; the check goes by the declaration."""
    lines = [f"{function.name} fits the request."]
    lines += [f"{name}: {shown(value)}" for name, value in arguments.items()]
    declared = ", ".join(
        f"{parameter.name} {parameter.shown_type}" for parameter in function.parameters
    )
    checks = [f"Check: {function.name}({declared})."]
    for parameter in function.parameters:
        if parameter.name in arguments:
            value = shown(arguments[parameter.name])
            checks.append(f"{parameter.name} given: {value}, {parameter.shown_type}")
        else:
            checks.append(f"{parameter.name} not given, optional")
    return Thinking(
        "\n".join(lines),
        "\n".join([*checks, "All required are given."]),
        brief=f"{function.name} is declared.",
    )


def result_thinking(function: Function, arguments: Mapping[str, Value], result: str) -> Thinking:
    """What came back, read once; the check reads the call and the result again."""
    fields = json.loads(result)
    if not isinstance(fields, dict):
        fields = {"value": result}
    said = ", ".join(f"{name} {shown(value)}" for name, value in fields.items())
    given = ", ".join(f"{name} {shown(value)}" for name, value in arguments.items())
    return Thinking(
        f"The result of {function.name}: {said}.",
        f"Check: {function.name} was called with {given}.\nIt came back with {said}.\n"
        "The answer says just that.",
    )


def draw_json(rng: random.Random, fields: Mapping[str, Value]) -> str:
    """A function's result: compact in most functions, with spaces in others."""
    return json.dumps(fields, separators=(",", ":") if rng.random() < 0.6 else None)


def messages(rng: random.Random, text: str) -> tuple[Message, ...]:
    """The user's message, sometimes after a developer's."""
    asked = Message(role=Role.USER, content=text)
    if rng.random() < 0.3:
        return (Message(role=Role.DEVELOPER, content=rng.choice(_DEVELOPER)), asked)
    return (asked,)
