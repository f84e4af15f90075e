"""A validated request, as everything behind the validator sees it.

``validation.py`` makes these from the public protos and refuses what is wrong; nothing further in
checks again.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Role(Enum):
    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Channel(Enum):
    """Where the model writes. MALFORMED is text whose header could not be read."""

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    FINAL = "final"
    MALFORMED = "malformed"


class ReasoningEffort(Enum):
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call the model made; ``arguments`` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    role: Role
    content: str
    channel: Channel = Channel.FINAL
    """Where an assistant message was written."""
    name: str = ""
    """The tool's name, for Role.TOOL."""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str
    parameters: dict[str, Any] | None
    """JSON Schema of type "object"; None is no parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """As in engine.proto: every field set. ``seed`` is an unsigned 64-bit integer."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, bias), each id once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request that is known to be good, but for what only its rendered length can show."""

    model: str
    """Empty: the only model served."""
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    reasoning_effort: ReasoningEffort = ReasoningEffort.MEDIUM
    thinking_budget: int | None = None
    sampling: SamplingParams
    max_output_tokens: int | None = None
    """None: what the server allows."""
    priority: int = 0
    conversation_id: str = ""
    current_date: str
    """YYYY-MM-DD."""
    include_token_ids: bool = False
    stop: tuple[str, ...] = ()
    """Strings that end the final message."""
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_output_tokens: int = 0
    n: int = 1
    """How many answers."""
    top_logprobs: int | None = None
    """None: no log-probabilities."""
    cache_salt: str = ""
