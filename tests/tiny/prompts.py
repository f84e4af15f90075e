"""Prompts in Harmony, fast: token for token what ``HarmonyRenderer`` makes.

Training renders some thousand prompts a second on each core, where the renderer manages some
hundred. Only the system and the developer message go through it, once for each kind; the words in
them that vary are put in afterwards.
"""

import json
from collections.abc import Iterable, Iterator
from functools import lru_cache

from moeray.cluster.generation import (
    GenerationRequest,
    Message,
    ReasoningEffort,
    Role,
    SamplingParams,
    Tool,
)
from moeray.cluster.harmony import HarmonyRenderer, without_finished_analysis
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.vocabulary.harmony_tokens import END

_DATE = "2001-01-01"
_INSTRUCTIONS = "@instructions@"


class PromptWriter:
    """Renders prompts with one tokenizer, keeping what does not change from prompt to prompt."""

    def __init__(self, tokenizer: HarmonyTokenizer) -> None:
        self._encode = tokenizer.encoding.encode_ordinary
        self._encode_with_specials = lru_cache(4096)(tokenizer.encode_with_specials)
        self._decode = tokenizer.encoding.decode
        self._renderer = HarmonyRenderer(tokenizer)
        self._system_text = lru_cache(64)(self._render_system)
        self._developer_text = lru_cache(4096)(self._render_developer)
        self._system = lru_cache(20_000)(self._encode_system)
        self._tools: dict[str, Tool] = {}

    def pieces(
        self,
        messages: Iterable[Message],
        tools: tuple[Tool, ...],
        effort: ReasoningEffort,
        current_date: str,
    ) -> Iterator[tuple[list[int], bool]]:
        """The prompt in pieces: token ids, and whether they are text of a user."""
        yield self._system(effort, current_date, bool(tools)), False
        messages = tuple(messages)
        said = [m.content for m in messages if m.role in (Role.DEVELOPER, Role.SYSTEM)]
        if said or tools:
            keys = tuple(self._tool_key(tool) for tool in tools)
            yield self._developer("\n\n".join(said), keys), False
        for message in without_finished_analysis(messages):
            yield from self._message(message)
        yield self._encode_with_specials("<|start|>assistant"), False

    def prompt(
        self,
        messages: Iterable[Message],
        tools: tuple[Tool, ...],
        effort: ReasoningEffort,
        current_date: str,
    ) -> list[int]:
        """The prompt's token ids; they end in ``<|start|>assistant``."""
        pieces = self.pieces(messages, tools, effort, current_date)
        return [token for tokens, _ in pieces for token in tokens]

    def call_header(self, name: str) -> list[int]:
        """The header of a call of the function ``name``, after ``<|start|>assistant``."""
        return self._encode_with_specials(
            f" to=functions.{name}<|channel|>commentary <|constrain|>json<|message|>"
        )

    def _message(self, message: Message) -> Iterator[tuple[list[int], bool]]:
        special, plain = self._encode_with_specials, self._encode
        match message.role:
            case Role.USER:
                yield special("<|start|>user<|message|>"), False
                yield plain(message.content), True
                yield [END], False
            case Role.TOOL:
                name = f"<|start|>functions.{message.name} to=assistant"
                yield special(f"{name}<|channel|>commentary<|message|>"), False
                yield [*plain(message.content), END], False
            case Role.ASSISTANT:
                if message.content:
                    channel = message.channel.value
                    yield special(f"<|start|>assistant<|channel|>{channel}<|message|>"), False
                    yield [*plain(message.content), END], False
                for call in message.tool_calls:
                    yield special("<|start|>assistant"), False
                    yield self.call_header(call.name), False
                    yield plain(call.arguments), False
                    yield special("<|call|>"), False

    def _encode_system(self, effort: ReasoningEffort, date: str, tools: bool) -> list[int]:
        text = self._system_text(effort, tools).replace(_DATE, date)
        return self._message_tokens("system", text)

    def _developer(self, instructions: str, keys: tuple[str, ...]) -> list[int]:
        text = self._developer_text(bool(instructions), keys)
        return self._message_tokens("developer", text.replace(_INSTRUCTIONS, instructions, 1))

    def _message_tokens(self, role: str, text: str) -> list[int]:
        return [
            *self._encode_with_specials(f"<|start|>{role}<|message|>"),
            *self._encode(text),
            END,
        ]

    def _tool_key(self, tool: Tool) -> str:
        key = json.dumps([tool.name, tool.description, tool.parameters])
        self._tools.setdefault(key, tool)
        return key

    def _render_system(self, effort: ReasoningEffort, tools: bool) -> str:
        shown = (Tool("shown", "", None),) if tools else ()
        return self._rendered_texts((), shown, effort)[0]

    def _render_developer(self, instructed: bool, keys: tuple[str, ...]) -> str:
        messages = (Message(role=Role.SYSTEM, content=_INSTRUCTIONS),) if instructed else ()
        tools = tuple(self._tools[key] for key in keys)
        return self._rendered_texts(messages, tools, ReasoningEffort.LOW)[1]

    def _rendered_texts(
        self, messages: tuple[Message, ...], tools: tuple[Tool, ...], effort: ReasoningEffort
    ) -> list[str]:
        """The bodies of the prompt's messages, as the gateway's renderer writes them."""
        request = GenerationRequest(
            model="",
            messages=messages,
            tools=tools,
            reasoning_effort=effort,
            sampling=SamplingParams(seed=0),
            current_date=_DATE,
        )
        prompt = self._decode(self._renderer.render(request))
        return [part.partition("<|message|>")[2] for part in prompt.split("<|end|>")[:-1]]
