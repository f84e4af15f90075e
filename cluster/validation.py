"""The one gate for requests: from the public proto to a GenerationRequest, or all its errors.

Both protocols pass through here, and nothing behind checks again. Every field is bounded, each
violation names its field's path, and what this version cannot honour is refused.
"""

import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Final, Literal

from moeray.cluster.generation import (
    Channel,
    GenerationRequest,
    Message,
    ReasoningEffort,
    Role,
    Tool,
    ToolCall,
)
from moeray.cluster.sampling_rules import (
    check_alternatives,
    check_endings,
    check_least_output,
    read_sampling,
)
from moeray.cluster.tool_schema import SchemaProblem, parse_parameters
from moeray.cluster.violations import Violations
from moeray.v1 import inference_pb2

MIN_OUTPUT_TOKENS: Final = 16
MAX_MESSAGES: Final = 4096
MAX_TOOLS: Final = 128
MAX_TOOL_CALLS: Final = 128
MAX_TOOLS_CHARACTERS: Final = 262_144
MAX_DESCRIPTION_CHARACTERS: Final = 32_768
MAX_THINKING_BUDGET: Final = 131_072
MAX_PRIORITY: Final = 100
MAX_ID_CHARACTERS: Final = 128

_SCHEMAS_KEPT: Final = 512
_TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOOL_NAME_RULE: Final = "must be 1 to 64 letters, digits, '_', '-' and '.'"
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_NOT_SUPPORTED: Final = "not supported in this version"

_ROLES: Final = {
    inference_pb2.ROLE_SYSTEM: Role.SYSTEM,
    inference_pb2.ROLE_DEVELOPER: Role.DEVELOPER,
    inference_pb2.ROLE_USER: Role.USER,
    inference_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    inference_pb2.ROLE_TOOL: Role.TOOL,
}
_CHANNELS: Final = {
    inference_pb2.CHANNEL_ANALYSIS: Channel.ANALYSIS,
    inference_pb2.CHANNEL_COMMENTARY: Channel.COMMENTARY,
    inference_pb2.CHANNEL_FINAL: Channel.FINAL,
}
_EFFORTS: Final = {
    inference_pb2.REASONING_EFFORT_UNSPECIFIED: ReasoningEffort.MEDIUM,
    inference_pb2.REASONING_EFFORT_LOW: ReasoningEffort.LOW,
    inference_pb2.REASONING_EFFORT_MEDIUM: ReasoningEffort.MEDIUM,
    inference_pb2.REASONING_EFFORT_HIGH: ReasoningEffort.HIGH,
}

OptionalField = Literal["thinking_budget", "max_output_tokens", "top_logprobs"]
ToolCheck = Callable[[Tool], str | None]
"""Why a tool cannot be laid out in a prompt, or None: HarmonyRenderer.tool_problem."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def random_seed() -> int:
    return secrets.randbits(64)


class Validator:
    """Validates requests. Threads may share it.

    Checking tools is the slow part, up to a second for the largest: call it off event loops. Tools
    seen before cost nothing.
    """

    def __init__(
        self,
        tool_check: ToolCheck,
        *,
        clock: Callable[[], datetime] = utc_now,
        seed_source: Callable[[], int] = random_seed,
    ) -> None:
        self._clock = clock
        self._seed_source = seed_source

        @lru_cache(maxsize=_SCHEMAS_KEPT)
        def make_tool(name: str, description: str, schema: str) -> Tool | SchemaProblem:
            return _make_tool(name, description, schema, tool_check)

        self._make_tool = make_tool

    def validate(self, request: inference_pb2.GenerateRequest) -> GenerationRequest:
        """Raises InvalidRequest with all violations."""
        found = Violations()
        if request.HasField("response_format"):
            found.add("response_format", _NOT_SUPPORTED)
        for name in ("model", "conversation_id", "cache_salt"):
            found.limit(name, len(getattr(request, name)), MAX_ID_CHARACTERS, "characters")
        tools = self._tools(request, found)
        messages = _messages(request, found)
        sampling = read_sampling(request.sampling, self._seed_source, found)
        effort = _EFFORTS.get(request.reasoning_effort)
        if effort is None:
            found.add("reasoning_effort", f"{request.reasoning_effort} is not a reasoning effort")
        _check_numbers(request, found)
        check_endings(request, found)
        check_alternatives(request, found)
        current_date = self._current_date(request, found)
        found.raise_any()
        return GenerationRequest(
            model=request.model,
            messages=tuple(messages),
            tools=tuple(tools),
            reasoning_effort=effort or ReasoningEffort.MEDIUM,
            thinking_budget=_optional(request, "thinking_budget"),
            sampling=sampling,
            max_output_tokens=_optional(request, "max_output_tokens"),
            priority=request.priority,
            conversation_id=request.conversation_id,
            current_date=current_date,
            include_token_ids=request.include_token_ids,
            stop=tuple(request.stop),
            stop_token_ids=frozenset(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            min_output_tokens=request.min_output_tokens,
            n=request.n if request.HasField("n") else 1,
            top_logprobs=_optional(request, "top_logprobs"),
            cache_salt=request.cache_salt,
        )

    def _tools(self, request: inference_pb2.GenerateRequest, found: Violations) -> list[Tool]:
        size = sum(
            len(tool.description) + len(tool.parameters_json_schema) for tool in request.tools
        )
        # Too many or too large to look at each.
        if not found.limit("tools", len(request.tools), MAX_TOOLS, "tools"):
            return []
        if not found.limit("tools", size, MAX_TOOLS_CHARACTERS, "characters"):
            return []
        tools = []
        names: set[str] = set()
        for index, tool in enumerate(request.tools):
            path = f"tools[{index}]"
            if not _TOOL_NAME.fullmatch(tool.name):
                found.add(f"{path}.name", _TOOL_NAME_RULE)
                continue
            if tool.name in names:
                found.add(f"{path}.name", f"another tool is named {tool.name!r}")
            names.add(tool.name)
            found.limit(
                f"{path}.description",
                len(tool.description),
                MAX_DESCRIPTION_CHARACTERS,
                "characters",
            )
            made = self._make_tool(tool.name, tool.description, tool.parameters_json_schema)
            if isinstance(made, Tool):
                tools.append(made)
            else:
                found.add(f"{path}.parameters_json_schema", str(made))
        return tools

    def _current_date(self, request: inference_pb2.GenerateRequest, found: Violations) -> str:
        if not request.current_date:
            return self._clock().date().isoformat()
        try:
            if not _DATE.fullmatch(request.current_date):
                raise ValueError
            date.fromisoformat(request.current_date)
        except ValueError:
            found.add("current_date", "must be a date, YYYY-MM-DD")
        return request.current_date


def check_length(
    prompt_tokens: int,
    request: GenerationRequest,
    *,
    context_length: int,
    max_sequence_tokens: int,
    default_max_output_tokens: int,
) -> int:
    """The limit on generated tokens to use, once the prompt is rendered.

    Prompt and output share ``max_sequence_tokens``, never more than ``context_length``. Raises
    InvalidRequest on ``messages`` when fewer than MIN_OUTPUT_TOKENS remain, and on
    ``max_output_tokens`` and ``min_output_tokens`` when they ask for more than what remains.
    """
    limit = min(context_length, max_sequence_tokens)
    room = limit - prompt_tokens
    found = Violations()
    if room < MIN_OUTPUT_TOKENS:
        found.add(
            "messages",
            f"the prompt has {prompt_tokens} tokens and the context holds {limit}, of which "
            f"{MIN_OUTPUT_TOKENS} must remain for the answer",
        )
    elif request.max_output_tokens is not None and request.max_output_tokens > room:
        found.add(
            "max_output_tokens",
            f"{request.max_output_tokens} tokens asked for, {room} remain: the prompt has "
            f"{prompt_tokens} and the context holds {limit}",
        )
    found.raise_any()
    if request.max_output_tokens is not None:
        return request.max_output_tokens
    most = min(default_max_output_tokens, room)
    check_least_output(request.min_output_tokens, most, found)
    found.raise_any()
    return most


def _make_tool(
    name: str, description: str, schema: str, tool_check: ToolCheck
) -> Tool | SchemaProblem:
    try:
        tool = Tool(name, description, parse_parameters(schema) if schema else None)
    except SchemaProblem as problem:
        return problem
    problem_text = tool_check(tool)
    return SchemaProblem(f"cannot be rendered: {problem_text}") if problem_text else tool


def _optional(request: inference_pb2.GenerateRequest, name: OptionalField) -> int | None:
    return getattr(request, name) if request.HasField(name) else None


def _check_numbers(request: inference_pb2.GenerateRequest, found: Violations) -> None:
    found.limit("thinking_budget", request.thinking_budget, MAX_THINKING_BUDGET, "tokens")
    if request.HasField("max_output_tokens") and request.max_output_tokens < MIN_OUTPUT_TOKENS:
        found.add(
            "max_output_tokens",
            f"{request.max_output_tokens} tokens, at least {MIN_OUTPUT_TOKENS} are needed",
        )
    if abs(request.priority) > MAX_PRIORITY:
        found.add("priority", f"{request.priority} is not from -{MAX_PRIORITY} to {MAX_PRIORITY}")


def _messages(request: inference_pb2.GenerateRequest, found: Violations) -> list[Message]:
    if not request.messages:
        found.add("messages", "at least one message is needed")
        return []
    if not found.limit("messages", len(request.messages), MAX_MESSAGES, "messages"):
        return []
    reader = _MessageReader(found, tool_names={tool.name for tool in request.tools})
    messages = [reader.read(index, message) for index, message in enumerate(request.messages)]
    last = len(request.messages) - 1
    if request.messages[last].role not in (inference_pb2.ROLE_USER, inference_pb2.ROLE_TOOL):
        found.add(f"messages[{last}].role", "the last message must be from the user or a tool")
    return messages


@dataclass(slots=True)
class _MessageReader:
    """Reads messages in order; a tool's result may answer a call of an earlier message."""

    found: Violations
    tool_names: set[str]
    call_ids: set[str] = field(default_factory=set)

    def read(self, index: int, message: inference_pb2.Message) -> Message:
        path = f"messages[{index}]"
        role = _ROLES.get(message.role)
        if role is None:
            self.found.add(f"{path}.role", f"{message.role} is not a role")
        if not message.content and not (role is Role.ASSISTANT and message.tool_calls):
            self.found.add(f"{path}.content", "must not be empty")
        channel = self._channel(path, message, role)
        self._check_name(path, message, role)
        return Message(
            role=role or Role.USER,
            content=message.content,
            channel=channel,
            name=message.name,
            tool_calls=self._tool_calls(path, message, role),
        )

    def _channel(self, path: str, message: inference_pb2.Message, role: Role | None) -> Channel:
        if message.channel == inference_pb2.CHANNEL_UNSPECIFIED:
            # What an assistant says beside its calls is a preamble to them.
            return Channel.COMMENTARY if message.tool_calls else Channel.FINAL
        channel = _CHANNELS.get(message.channel)
        if channel is None:
            self.found.add(f"{path}.channel", f"{message.channel} is not a channel")
        elif role not in (Role.ASSISTANT, None):
            self.found.add(f"{path}.channel", "only messages of the assistant have a channel")
        return channel or Channel.FINAL

    def _check_name(self, path: str, message: inference_pb2.Message, role: Role | None) -> None:
        if role is not Role.TOOL:
            if message.name and role is not None:
                self.found.add(f"{path}.name", "only messages of tools have a name")
        elif not _TOOL_NAME.fullmatch(message.name):
            self.found.add(f"{path}.name", f"the tool that answered: {_TOOL_NAME_RULE}")
        elif message.name not in self.tool_names:
            self.found.add(
                f"{path}.name",
                f"{message.name!r} is neither a tool nor called by an earlier message",
            )

    def _tool_calls(
        self, path: str, message: inference_pb2.Message, role: Role | None
    ) -> tuple[ToolCall, ...]:
        if message.tool_calls and role not in (Role.ASSISTANT, None):
            self.found.add(f"{path}.tool_calls", "only messages of the assistant have tool calls")
        if not self.found.limit(
            f"{path}.tool_calls", len(message.tool_calls), MAX_TOOL_CALLS, "calls"
        ):
            return ()
        for index, call in enumerate(message.tool_calls):
            self._check_call(f"{path}.tool_calls[{index}]", call)
        return tuple(ToolCall(call.id, call.name, call.arguments) for call in message.tool_calls)

    def _check_call(self, path: str, call: inference_pb2.ToolCall) -> None:
        if not call.id:
            self.found.add(f"{path}.id", "must not be empty")
        elif call.id in self.call_ids:
            self.found.add(f"{path}.id", "another call has this id")
        self.found.limit(f"{path}.id", len(call.id), MAX_ID_CHARACTERS, "characters")
        self.call_ids.add(call.id)
        if _TOOL_NAME.fullmatch(call.name):
            self.tool_names.add(call.name)
        else:
            self.found.add(f"{path}.name", _TOOL_NAME_RULE)
