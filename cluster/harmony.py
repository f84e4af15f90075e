"""Requests to Harmony prompts, and the headers that the answer may use.

openai-harmony lays the conversation out; the words in it are ours to encode. Every text of a client
is hidden behind a placeholder while the library works, then put back as plain text and encoded by
the model's own tokenizer. So text cannot become a control token, a long word costs no more than a
short one, and a checkpoint's own vocabulary is honoured.

Chain of thought: an analysis message is dropped once a final message follows it, that is when its
turn is finished, and kept in the turn in progress, tool calls and all (openai/harmony
docs/format.md). The library's own rule keeps the analysis of finished turns as soon as the last
assistant message is a tool call, so it is switched off.
"""

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

import openai_harmony as oh

from moeray.cluster.generation import Channel, GenerationRequest, Message, ReasoningEffort, Role
from moeray.cluster.generation import Tool as FunctionTool
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.engine.v1 import engine_pb2
from moeray.vocabulary.harmony_tokens import FIRST_SPECIAL

FUNCTIONS: Final = "functions."
TURN_OPENING: Final = "<|start|>assistant"

_LONG_TEXT: Final = 200  # characters of a tool's texts that the library may see at once
_EFFORTS: Final = {
    ReasoningEffort.LOW: oh.ReasoningEffort.LOW,
    ReasoningEffort.MEDIUM: oh.ReasoningEffort.MEDIUM,
    ReasoningEffort.HIGH: oh.ReasoningEffort.HIGH,
}


class HarmonyRenderer:
    """Renders requests with one tokenizer. Keeps no state, so threads may share it.

    Rendering costs milliseconds, part of them with the interpreter locked: keep it off event loops.
    """

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._tokenizer = tokenizer
        self._turn_opening = tokenizer.encode_with_specials(TURN_OPENING)

    def render(self, request: GenerationRequest) -> list[int]:
        """The prompt's token ids; they end in ``<|start|>assistant``."""
        hidden = _HiddenTexts()
        messages = [_system_message(request)]
        if (developer := _developer_message(request, hidden)) is not None:
            messages.append(developer)
        for message in without_finished_analysis(request.messages):
            messages.extend(_conversation_messages(message, hidden))
        skeleton = self._tokenizer.harmony.render_conversation_for_completion(
            oh.Conversation.from_messages(messages),
            oh.Role.ASSISTANT,
            oh.RenderConversationConfig(auto_drop_analysis=False),
        )
        return self._encode_again(skeleton, hidden)

    def channel_rules(self, request: GenerationRequest) -> engine_pb2.ChannelRules:
        """The headers that the engine may sample for ``request``, and what may end its bodies."""
        headers = [
            engine_pb2.Header(token_ids=self._tokenizer.encode_with_specials(text), kind=kind)
            for text, kind in _legal_headers(request.tools)
        ]
        rules = engine_pb2.ChannelRules(
            turn_opening=self._turn_opening,
            headers=headers,
            stop_token_ids=sorted(request.stop_token_ids),
            ignore_eos=request.ignore_eos,
            min_output_tokens=request.min_output_tokens,
        )
        if request.thinking_budget is not None:
            rules.thinking_budget = request.thinking_budget
        return rules

    def tool_problem(self, tool: FunctionTool) -> str | None:
        """Why openai-harmony cannot lay out ``tool``; None when it can."""
        content = oh.DeveloperContent.new().with_function_tools(
            [_tool_description(tool, _HiddenTexts())]
        )
        message = oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)
        try:
            self._tokenizer.harmony.render(message)
        except Exception as error:
            return str(error)
        except BaseException as error:
            # A panic of the Rust library arrives as a BaseException of its own.
            if type(error).__name__ != "PanicException":
                raise
            return str(error)
        return None

    def _encode_again(self, skeleton: list[int], hidden: "_HiddenTexts") -> list[int]:
        tokens: list[int] = []
        for special, run in groupby(skeleton, key=lambda token: token >= FIRST_SPECIAL):
            if special:
                tokens.extend(run)
            else:
                text = hidden.reveal(self._tokenizer.harmony.decode_utf8(list(run)))
                tokens.extend(self._tokenizer.encode(text))
        return tokens


def _legal_headers(
    tools: Iterable[FunctionTool],
) -> Iterator[tuple[str, "engine_pb2.BodyKind.ValueType"]]:
    yield "<|channel|>analysis<|message|>", engine_pb2.BODY_KIND_ANALYSIS
    yield "<|channel|>final<|message|>", engine_pb2.BODY_KIND_FINAL
    names = [tool.name for tool in tools]
    if names:
        yield "<|channel|>commentary<|message|>", engine_pb2.BODY_KIND_COMMENTARY
    for name in names:
        recipient = f" to={FUNCTIONS}{name}"
        for content_type in (" <|constrain|>json", "<|constrain|>json", ""):
            for header in (
                f"{recipient}<|channel|>commentary{content_type}<|message|>",
                f"<|channel|>commentary{recipient}{content_type}<|message|>",
            ):
                yield header, engine_pb2.BODY_KIND_TOOL_CALL


def without_finished_analysis(messages: tuple[Message, ...]) -> Iterator[Message]:
    """Drops the analysis of the turns that a final message has finished."""
    last_final = max(
        (
            index
            for index, message in enumerate(messages)
            if message.role is Role.ASSISTANT
            and message.channel is Channel.FINAL
            and message.content
        ),
        default=0,
    )
    for index, message in enumerate(messages):
        if index >= last_final or message.channel is not Channel.ANALYSIS:
            yield message
        elif message.tool_calls:
            yield Message(
                role=message.role,
                content="",
                channel=message.channel,
                tool_calls=message.tool_calls,
            )


def _system_message(request: GenerationRequest) -> oh.Message:
    content = (
        oh.SystemContent.new()
        .with_reasoning_effort(_EFFORTS[request.reasoning_effort])
        .with_conversation_start_date(request.current_date)
    )
    return oh.Message.from_role_and_content(oh.Role.SYSTEM, content)


def _developer_message(request: GenerationRequest, hidden: "_HiddenTexts") -> oh.Message | None:
    instructions = "\n\n".join(
        message.content
        for message in request.messages
        if message.role in (Role.DEVELOPER, Role.SYSTEM)
    )
    if not instructions and not request.tools:
        return None
    content = oh.DeveloperContent.new()
    if instructions:
        content = content.with_instructions(hidden.hide(instructions))
    if request.tools:
        content = content.with_function_tools(
            [_tool_description(tool, hidden) for tool in request.tools]
        )
    return oh.Message.from_role_and_content(oh.Role.DEVELOPER, content)


def _conversation_messages(message: Message, hidden: "_HiddenTexts") -> Iterator[oh.Message]:
    if message.role is Role.USER:
        yield oh.Message.from_role_and_content(oh.Role.USER, hidden.hide(message.content))
    elif message.role is Role.TOOL:
        author = oh.Author.new(oh.Role.TOOL, FUNCTIONS + message.name)
        result = oh.Message.from_author_and_content(author, hidden.hide(message.content))
        yield result.with_recipient("assistant").with_channel("commentary")
    elif message.role is Role.ASSISTANT:
        if message.content:
            said = oh.Message.from_role_and_content(oh.Role.ASSISTANT, hidden.hide(message.content))
            yield said.with_channel(message.channel.value)
        for call in message.tool_calls:
            called = oh.Message.from_role_and_content(
                oh.Role.ASSISTANT, hidden.hide(call.arguments)
            )
            yield (
                called.with_channel("commentary")
                .with_recipient(FUNCTIONS + call.name)
                .with_content_type("<|constrain|>json")
            )


def _tool_description(tool: FunctionTool, hidden: "_HiddenTexts") -> oh.ToolDescription:
    parameters = None if tool.parameters is None else hidden.hide_schema(tool.parameters)
    return oh.ToolDescription.new(tool.name, hidden.hide_lines(tool.description), parameters)


class _HiddenTexts:
    """Placeholders for the texts of one prompt.

    The nonce keeps a client from writing a placeholder that would be taken for one of ours.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []
        nonce = secrets.token_hex(8)
        self._marker = f"@{nonce}:%d@"
        # A default that is no string is shown as JSON; its placeholder stands in a list.
        self._pattern = re.compile(rf'\["@{nonce}:(\d+)@"\]|@{nonce}:(\d+)@')

    def hide(self, text: str) -> str:
        self._texts.append(text)
        return self._marker % (len(self._texts) - 1)

    def hide_lines(self, text: str) -> str:
        """Hide long lines; the library comments a description line by line."""
        *lines, last = text.split("\n")
        # The library takes "\r\n" for a line's end too.
        shown = [*(line.removesuffix("\r") for line in lines), last]
        return "\n".join(self._hide_long(line) for line in shown)

    def hide_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """Hide the long texts of a JSON schema wherever the library shows them."""
        return {keyword: self._hide_keyword(keyword, value) for keyword, value in schema.items()}

    def reveal(self, text: str) -> str:
        return self._pattern.sub(lambda match: self._texts[int(match[1] or match[2])], text)

    def _hide_keyword(self, keyword: str, value: Any) -> Any:
        if keyword == "properties" and isinstance(value, dict):
            return {name: self._hide_node(schema) for name, schema in value.items()}
        if keyword == "default" and not isinstance(value, str):
            shown = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
            return [self.hide(shown)] if len(shown) > _LONG_TEXT else value
        return value if keyword == "required" else self._hide_node(value)

    def _hide_node(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.hide_schema(value)
        if isinstance(value, list):
            return [self._hide_node(item) for item in value]
        return self._hide_long(value) if isinstance(value, str) else value

    def _hide_long(self, text: str) -> str:
        return self.hide(text) if len(text) > _LONG_TEXT else text
