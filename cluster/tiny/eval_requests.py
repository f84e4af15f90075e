"""A problem as requests of the public API: the question, and once a call was made, its result."""

import json
from typing import Final

from moeray.cluster.client import EFFORTS
from moeray.cluster.generation import Channel, Message, ReasoningEffort, Role, Tool
from moeray.cluster.tiny.problem import Problem
from moeray.v1 import inference_pb2 as pb

MAX_OUTPUT_TOKENS: Final = 1024

_ROLES: Final = {
    Role.SYSTEM: pb.ROLE_SYSTEM,
    Role.DEVELOPER: pb.ROLE_DEVELOPER,
    Role.USER: pb.ROLE_USER,
    Role.ASSISTANT: pb.ROLE_ASSISTANT,
    Role.TOOL: pb.ROLE_TOOL,
}
_CHANNELS: Final = {
    Channel.ANALYSIS: pb.CHANNEL_ANALYSIS,
    Channel.COMMENTARY: pb.CHANNEL_COMMENTARY,
    Channel.FINAL: pb.CHANNEL_FINAL,
}


def problem_request(
    problem: Problem, effort: ReasoningEffort, *, thinking_budget: int | None = None
) -> pb.GenerateRequest:
    """The problem's conversation, greedy, with room for ``MAX_OUTPUT_TOKENS``."""
    return pb.GenerateRequest(
        messages=[_message(message) for message in problem.messages],
        tools=[tool_message(tool) for tool in problem.tools],
        reasoning_effort=EFFORTS[effort.value],
        thinking_budget=thinking_budget,
        max_output_tokens=MAX_OUTPUT_TOKENS,
        sampling=pb.Sampling(temperature=0.0),
        current_date=problem.current_date,
    )


def with_result(request: pb.GenerateRequest, answer: pb.Answer, result: str) -> pb.GenerateRequest:
    """``request`` and the one call that ``answer`` made, with what the function gave back.

    The analysis that led to the call stays in the conversation: its turn is not finished.
    """
    (call,) = answer.tool_calls
    continued = pb.GenerateRequest()
    continued.CopyFrom(request)
    if answer.analysis:
        continued.messages.add(
            role=pb.ROLE_ASSISTANT, channel=pb.CHANNEL_ANALYSIS, content=answer.analysis
        )
    continued.messages.add(
        role=pb.ROLE_ASSISTANT,
        channel=pb.CHANNEL_COMMENTARY,
        content=answer.commentary,
        tool_calls=[call],
    )
    continued.messages.add(role=pb.ROLE_TOOL, name=call.name, content=result)
    return continued


def tool_message(tool: Tool) -> pb.Tool:
    """A function's declaration."""
    schema = "" if tool.parameters is None else json_text(tool.parameters)
    return pb.Tool(name=tool.name, description=tool.description, parameters_json_schema=schema)


def question(problem: Problem) -> str:
    """What was asked, to be read: the user's words, or the conversation where there is more."""
    if len(problem.messages) == 1:
        return problem.messages[0].content
    return "\n".join(f"{message.role.value}: {message.content}" for message in problem.messages)


def call_text(name: str, arguments: str) -> str:
    """A call to be read."""
    return f"{name}({arguments})"


def json_text(value: object) -> str:
    """``value`` as JSON in one line."""
    return json.dumps(value, ensure_ascii=False)


def _message(message: Message) -> pb.Message:
    calls = [
        pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments)
        for call in message.tool_calls
    ]
    assistant = message.role is Role.ASSISTANT
    return pb.Message(
        role=_ROLES[message.role],
        content=message.content,
        channel=_CHANNELS[message.channel] if assistant else pb.CHANNEL_UNSPECIFIED,
        name=message.name,
        tool_calls=calls,
    )
