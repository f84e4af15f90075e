"""The engine's vocabulary: what a request is, before and after the engine.

Plain data without torch, shared by the service (which reads it from engine.proto), the channel
automaton, the scheduler and the engine's loop.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class BodyKind(Enum):
    """What a message body counts as; it decides which token may end it."""

    ANALYSIS = "analysis"
    COMMENTARY = "commentary"
    TOOL_CALL = "tool_call"
    FINAL = "final"


class FinishReason(Enum):
    """Why a request ended."""

    STOP = "stop"
    TOOL_CALL = "tool_call"
    LENGTH = "length"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn. temperature 0 is greedy; top_k 0 is all tokens.

    Penalties and bias act in bodies, on text tokens (ids below FIRST_SPECIAL).
    """

    temperature: float
    top_p: float
    top_k: int
    seed: int
    """An unsigned 64-bit integer: the key of the counter-based generator."""
    min_p: float = 0.0
    """Least probability relative to the likeliest token; 0 is all."""
    repetition_penalty: float = 1.0
    """On tokens of prompt and output: divides positive logits, multiplies negative ones."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens of the output."""
    frequency_penalty: float = 0.0
    """Subtracted from the logits of tokens of the output, for each time."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logit), each id once."""
    top_logprobs: int | None = None
    """Report the log-probability of sampled tokens and of this many likeliest; None: none."""


@dataclass(frozen=True, slots=True)
class Header:
    """One legal header: the tokens after ``<|start|>assistant`` through ``<|message|>``."""

    token_ids: tuple[int, ...]
    kind: BodyKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelRules:
    """Inputs of the channel automaton for one request."""

    turn_opening: tuple[int, ...]
    """The tokens of ``<|start|>assistant``."""
    headers: tuple[Header, ...]
    thinking_budget: int | None = None
    """Hard limit on tokens in analysis bodies over the whole answer; None is no limit."""
    stop_token_ids: frozenset[int] = frozenset()
    """Text tokens that end a final body."""
    ignore_eos: bool = False
    """Never allow <|return|>: a final body goes on until max_output_tokens."""
    min_output_tokens: int = 0
    """<|return|> is illegal, and stop tokens are text, before this many tokens were generated."""


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Names a request inside one engine: the gateway's stream, and the gateway's own key."""

    link: int
    key: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """One request as the engine takes it. Lengths are in tokens."""

    key: RequestKey
    epoch: int
    rank: int
    prompt: tuple[int, ...]
    max_output_tokens: int
    sampling: SamplingParams
    channel_rules: ChannelRules
    priority: int = 0
    cache_salt: str = ""
    """Requests share cached blocks only where their salts are equal."""
    deadline: float | None = None
    """By time.monotonic() of the engine's process; None: none."""


class TokenLogprobs(NamedTuple):
    """How likely one sampled token was, in the model's own distribution: natural logarithms."""

    answer_index: int
    """Of the token in the answer, from 0."""
    logprob: float
    top_token_ids: tuple[int, ...]
    """The likeliest tokens, the likeliest first."""
    top_logprobs: tuple[float, ...]


class TokenRow(NamedTuple):
    """What one request gained in one step: a row of a StepBatch.

    A tuple because the engine makes one for every request in every step, and a frozen dataclass
    takes three times as long to make.
    """

    key: RequestKey
    epoch: int
    first_index: int
    """Index of the first token of this row in the answer, from 0."""
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    failure: str = ""
    cached_tokens: int | None = None
    """Prompt tokens found in the prefix cache; set on the first row, which may hold no token."""
    logprobs: TokenLogprobs | None = None
    """Of the row's sampled token, where asked for; forced tokens have none."""
