"""The model's output, token by token, as channel text and tool calls.

``HarmonyParser`` is a push parser over token ids. It never raises and never loses a token: each
token is in exactly one event's ``token_ids``, in order, and each byte of text comes out unless it
belongs to a header that could be read. What cannot be read comes out as ``Channel.MALFORMED``, and
each repair is counted by kind; it never passes for an answer. The parser finds its feet again at
``<|start|>``, ``<|channel|>``, ``<|message|>`` and the three enders. On well-formed output it
agrees with openai-harmony's StreamableParser.

The grammar (openai/harmony docs/format.md), with the prompt ending in ``<|start|>assistant``:

    output  = message { "<|start|>assistant" message }
    message = [" to=" recipient] "<|channel|>" channel [" to=" recipient] [" "] [type] "<|message|>"
              body ("<|end|>" | "<|call|>" | "<|return|>")
    type    = "<|constrain|>" word | word
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from moeray.cluster.generation import Channel
from moeray.cluster.harmony_header import Header, HeaderReading, RecoveryKind
from moeray.cluster.tokenizer import TextDecoder
from moeray.vocabulary.harmony_tokens import (
    CALL,
    CHANNEL,
    END,
    FIRST_SPECIAL,
    MESSAGE,
    RETURN,
    START,
)

_ENDERS: Final = frozenset({END, CALL, RETURN})


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text of one channel; whole characters. ``text`` is empty where only tokens ended a body."""

    channel: Channel
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """A call begins. ``index`` counts the calls of the answer from 0."""

    index: int
    name: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolCallArguments:
    """More of a call's arguments."""

    index: int
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """A call is complete. Not sent for a call that the end of the output cut off."""

    index: int
    token_ids: tuple[int, ...]


Event = TextDelta | ToolCallStart | ToolCallArguments | ToolCallEnd


@dataclass(slots=True)
class TokenUsage:
    """Tokens fed, by what they were. Header, control and malformed tokens are ``control``."""

    analysis: int = 0
    commentary: int = 0
    tool_call: int = 0
    final: int = 0
    control: int = 0

    @property
    def total(self) -> int:
        return self.analysis + self.commentary + self.tool_call + self.final + self.control


class _State(Enum):
    HEADER = "header"
    BODY = "body"
    BETWEEN = "between"
    """After an ender: only ``<|start|>`` may follow."""


class HarmonyParser:
    """Parses one answer. ``token_bytes`` gives the bytes of a text token (HarmonyTokenizer's).

    ``feed`` takes constant time per token: headers are read at most once per token and are bounded
    in length. ``usage`` and ``recoveries`` are up to date after each call.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self.usage = TokenUsage()
        self.recoveries: Counter[RecoveryKind] = Counter()
        self._token_bytes = token_bytes
        self._state = _State.HEADER
        self._header = Header(expects_role=False)
        self._channel = Channel.MALFORMED
        self._in_call = False
        self._calls = 0
        self._text = TextDecoder()
        self._pending: list[int] = []  # fed, but not in an event yet
        self._events: list[Event] = []

    @property
    def channel(self) -> Channel | None:
        """The channel of the text that is being written; None outside bodies and in calls."""
        return self._channel if self._state is _State.BODY and not self._in_call else None

    @property
    def in_body(self) -> bool:
        """Whether a well-formed body, of a message or a call, is being written."""
        in_text = self._in_call or self._channel is not Channel.MALFORMED
        return self._state is _State.BODY and in_text

    def feed(self, token: int) -> list[Event]:
        """Take the next token; return what it completes, often nothing."""
        self._pending.append(token)
        if 0 <= token < FIRST_SPECIAL:
            self._feed_text(token)
        else:
            self._feed_control(token)
        return self._take_events()

    def feed_stop_token(self, token: int) -> list[Event]:
        """Take a text token that ends the body: it counts as part of it, but says nothing."""
        self._pending.append(token)
        self._count_body_token()
        self._end_body()
        return self._take_events()

    def finish(self) -> list[Event]:
        """End the output; return what is left. A header or a call may have been cut off."""
        if self._state is _State.HEADER and not self._header.is_empty:
            self._abandon_header(RecoveryKind.TRUNCATED_HEADER)
        self._flush_text()
        if self._pending:
            self._emit_text("")
        self._state = _State.BETWEEN
        return self._take_events()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def _feed_text(self, token: int) -> None:
        data = self._token_bytes(token)
        if self._state is _State.HEADER:
            self.usage.control += 1
            problem = self._header.add_text(data)
            if problem is not None:
                self._abandon_header(problem)
            return
        if self._state is _State.BETWEEN:
            self.recoveries[RecoveryKind.STRAY_TOKEN_AFTER_END] += 1
            self._open_body(Channel.MALFORMED)
        self._count_body_token()
        text = self._text.feed(data)
        if text:
            self._emit_text(text)

    def _feed_control(self, token: int) -> None:
        self.usage.control += 1
        match self._state:
            case _State.HEADER:
                self._control_in_header(token)
            case _State.BODY:
                self._control_in_body(token)
            case _State.BETWEEN:
                self._control_between(token)

    def _control_in_header(self, token: int) -> None:
        if token == MESSAGE:
            self._close_header()
        elif token == START:
            repeated = self._header.raw == b"" and not self._header.has_channel
            self._abandon_header(
                RecoveryKind.REPEATED_START if repeated else RecoveryKind.MISSING_MESSAGE, before=1
            )
            self._open_header(expects_role=True)
        elif token == CHANNEL and self._header.has_channel:
            self._abandon_header(RecoveryKind.DUPLICATE_CHANNEL, before=1)
            self._open_header(expects_role=False)
            self._header.add_control(token)
        elif token in _ENDERS:
            self._abandon_header(RecoveryKind.MISSING_MESSAGE, before=1)
            self._end_body()
        elif not self._header.add_control(token):
            self.recoveries[RecoveryKind.CONTROL_TOKEN_IN_HEADER] += 1

    def _control_in_body(self, token: int) -> None:
        if token in _ENDERS:
            self._end_body()
            return
        # What made a body malformed was counted already.
        if self._in_call or self._channel is not Channel.MALFORMED:
            self.recoveries[RecoveryKind.CONTROL_TOKEN_IN_BODY] += 1
        if token in (START, CHANNEL):
            self._pending.pop()
            self._end_body()
            self._pending.append(token)
            self._open_header(expects_role=token == START)
            if token == CHANNEL:
                self._header.add_control(token)

    def _control_between(self, token: int) -> None:
        if token == START:
            self._open_header(expects_role=True)
            return
        self.recoveries[RecoveryKind.STRAY_TOKEN_AFTER_END] += 1
        if token == CHANNEL:
            self._open_header(expects_role=False)
            self._header.add_control(token)
        else:
            self._channel = Channel.MALFORMED
            self._emit_text("")

    def _open_header(self, *, expects_role: bool) -> None:
        self._state = _State.HEADER
        self._header = Header(expects_role=expects_role)

    def _close_header(self) -> None:
        reading = self._header.read()
        if reading.problems:
            self.recoveries.update(reading.problems)
            self._emit_malformed_header(before=1)
        self._open_body(reading.channel)
        if reading.tool_name is not None:
            self._open_call(reading)

    def _open_body(self, channel: Channel) -> None:
        self._state = _State.BODY
        self._channel = channel
        self._in_call = False

    def _open_call(self, reading: HeaderReading) -> None:
        self._in_call = True
        name = reading.tool_name or ""
        self._events.append(ToolCallStart(self._calls, name, self._take_pending()))

    def _abandon_header(self, problem: RecoveryKind, *, before: int = 0) -> None:
        """Give the header's text out as malformed; what follows is its body.

        ``before`` is how many of the last tokens do not belong to the header.
        """
        self.recoveries[problem] += 1
        self._emit_malformed_header(before=before)
        self._open_body(Channel.MALFORMED)

    def _emit_malformed_header(self, *, before: int) -> None:
        # An incomplete character at the end may be completed by the malformed body behind it.
        self._open_body(Channel.MALFORMED)
        later = [self._pending.pop() for _ in range(before)]
        text = self._text.feed(self._header.raw)
        if before:
            text += self._text.flush()
        if text:
            self._emit_text(text)
        self._pending += reversed(later)

    def _end_body(self) -> None:
        """End the body; the pending tokens belong to its end."""
        self._flush_text()
        if self._in_call:
            self._events.append(ToolCallEnd(self._calls, self._take_pending()))
            self._calls += 1
        elif self._pending:
            self._emit_text("")
        self._in_call = False
        self._state = _State.BETWEEN

    def _flush_text(self) -> None:
        text = self._text.flush()
        if text:
            self._emit_text(text)

    def _emit_text(self, text: str) -> None:
        tokens = self._take_pending()
        if self._in_call:
            self._events.append(ToolCallArguments(self._calls, text, tokens))
        else:
            self._events.append(TextDelta(self._channel, text, tokens))

    def _take_pending(self) -> tuple[int, ...]:
        tokens = tuple(self._pending)
        self._pending.clear()
        return tokens

    def _count_body_token(self) -> None:
        usage = self.usage
        if self._in_call:
            usage.tool_call += 1
        elif self._channel is Channel.ANALYSIS:
            usage.analysis += 1
        elif self._channel is Channel.COMMENTARY:
            usage.commentary += 1
        elif self._channel is Channel.FINAL:
            usage.final += 1
        else:
            usage.control += 1
