"""Whether an answer is right: a function call by name and arguments, a reply by its final text.

Pure functions over ``moeray.v1.Answer`` messages. How the model thinks never matters; what was
asked for is compared exactly, but for white space and one last period.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from jsonschema import Draft202012Validator

from moeray.cluster.generation import Tool
from moeray.cluster.tiny.problem import Call, Reply
from moeray.v1 import inference_pb2 as pb

_WHITE_SPACE: Final = re.compile(r"\s+")
_PERIODS: Final = (".", "。")


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What one answer is worth; of a problem with a function call, its two answers together."""

    correct: bool
    parsed_and_valid: bool | None
    """The call is one, is JSON, and fits the schema of the function it names. None: none is due."""
    right_call: bool | None
    """It is also the function and the arguments that were asked for. None: none is due."""
    final_not_empty: bool
    """The final channel has text; an answer may end in a call instead, and what follows the
    function's result is looked at then."""
    analysis_tokens: int
    output_tokens: int
    finish_reason: str
    """``stop``, ``tool_call`` or ``length``."""

    def followed_by(self, reply: "Score") -> "Score":
        """Of a call and, once it had its result, the ``reply`` that ends the turn."""
        return Score(
            correct=self.correct and reply.correct,
            parsed_and_valid=self.parsed_and_valid,
            right_call=self.right_call,
            final_not_empty=self.final_not_empty and reply.final_not_empty,
            analysis_tokens=self.analysis_tokens + reply.analysis_tokens,
            output_tokens=self.output_tokens + reply.output_tokens,
            finish_reason=reply.finish_reason,
        )


def score_reply(reply: Reply, answer: pb.Answer) -> Score:
    """Score an answer that should end in the final channel."""
    correct = not answer.tool_calls and _is_right_text(reply, answer.final)
    return _score(answer, correct=correct, final_not_empty=bool(answer.final.strip()))


def score_unasked_call(answer: pb.Answer) -> Score:
    """Score an answer that called a function where none was due: wrong, whatever follows it."""
    return _score(answer, correct=False, final_not_empty=True)


def score_call(call: Call, tools: Sequence[Tool], answer: pb.Answer) -> Score:
    """Score an answer that should be exactly one call of one of ``tools``."""
    valid = right = False
    if len(answer.tool_calls) == 1:
        (made,) = answer.tool_calls
        arguments = parse_arguments(made, tools)
        valid = arguments is not None
        right = valid and made.name == call.name and same_value(arguments, call.arguments)
    return _score(
        answer,
        correct=right,
        parsed_and_valid=valid,
        right_call=right,
        final_not_empty=bool(answer.tool_calls or answer.final.strip()),
    )


def parse_arguments(made: pb.ToolCall, tools: Sequence[Tool]) -> dict[str, Any] | None:
    """The arguments of a call; None where they are no JSON, or not what the function takes."""
    tool = next((tool for tool in tools if tool.name == made.name), None)
    if tool is None:
        return None
    arguments = parse_json(made.arguments, tool.parameters or {"type": "object"})
    return arguments if isinstance(arguments, dict) else None


def parse_json(text: str, schema: dict[str, Any]) -> Any:
    """The value of ``text``; None where it is no JSON or not of ``schema`` (JSON Schema 2020-12).

    A text of ``null`` gives None too: no schema here asks for it.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if Draft202012Validator(schema).is_valid(value) else None


def same_value(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are one number, true is no number, the order of keys is free."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_value(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    return isinstance(one, bool) is isinstance(other, bool) and bool(one == other)


def normalised(text: str) -> str:
    """``text`` with single spaces, stripped, and without one last period."""
    single = _WHITE_SPACE.sub(" ", text).strip()
    return single[:-1].rstrip() if single.endswith(_PERIODS) else single


def finish_reason(answer: pb.Answer) -> str:
    """Why the answer ended, in lower case."""
    name = pb.FinishReason.Name(answer.finished.reason)
    return name.removeprefix("FINISH_REASON_").lower()


def _is_right_text(reply: Reply, final: str) -> bool:
    if reply.schema is None:
        return normalised(final) == normalised(reply.final)
    value = parse_json(final, reply.schema)
    return value is not None and same_value(value, json.loads(reply.final))


def _score(
    answer: pb.Answer,
    *,
    correct: bool,
    final_not_empty: bool,
    parsed_and_valid: bool | None = None,
    right_call: bool | None = None,
) -> Score:
    return Score(
        correct=correct,
        parsed_and_valid=parsed_and_valid,
        right_call=right_call,
        final_not_empty=final_not_empty,
        analysis_tokens=answer.usage.reasoning_tokens,
        output_tokens=answer.usage.output_tokens,
        finish_reason=finish_reason(answer),
    )


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
