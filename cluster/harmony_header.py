"""One message header of the model's output: collected token by token, then read.

A header is what stands between ``<|start|>`` and ``<|message|>``. The prompt ends in
``<|start|>assistant``, so the first header of an answer lacks its role, and so does one that begins
at a bare ``<|channel|>``.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from moeray.cluster.generation import Channel
from moeray.vocabulary.harmony_tokens import CHANNEL, CONSTRAIN

# The longest legal header names a tool of 64 characters, a token each at worst.
_MAX_TOKENS: Final = 128
_ROLE: Final = b"assistant"
_TO: Final = "to="
_FUNCTIONS: Final = "functions."
_TOOL_NAME: Final = re.compile(r"[!-~]+")
_ROLES: Final = frozenset({"all", "assistant", "developer", "system", "tool", "user"})
_CHANNELS: Final = {
    "analysis": Channel.ANALYSIS,
    "commentary": Channel.COMMENTARY,
    "final": Channel.FINAL,
}


class RecoveryKind(Enum):
    """What was wrong where the parser found its feet again."""

    REPEATED_START = "repeated_start"
    """``<|start|>`` where a header had just begun."""
    MISSING_ROLE = "missing_role"
    UNKNOWN_ROLE = "unknown_role"
    """A role other than assistant."""
    MISSING_CHANNEL = "missing_channel"
    UNKNOWN_CHANNEL = "unknown_channel"
    DUPLICATE_CHANNEL = "duplicate_channel"
    DUPLICATE_RECIPIENT = "duplicate_recipient"
    UNKNOWN_RECIPIENT = "unknown_recipient"
    """A recipient that cannot be a tool."""
    SURPLUS_HEADER_TEXT = "surplus_header_text"
    MISSING_MESSAGE = "missing_message"
    """The header ended without ``<|message|>``."""
    OVERLONG_HEADER = "overlong_header"
    TRUNCATED_HEADER = "truncated_header"
    """The output ended inside a header."""
    CONTROL_TOKEN_IN_HEADER = "control_token_in_header"
    CONTROL_TOKEN_IN_BODY = "control_token_in_body"
    STRAY_TOKEN_AFTER_END = "stray_token_after_end"
    """Something other than ``<|start|>`` after a message's end."""


@dataclass(frozen=True, slots=True)
class HeaderReading:
    """What a header says. ``tool_name`` is set for tool calls; a good header has no problems."""

    channel: Channel
    tool_name: str | None
    problems: tuple[RecoveryKind, ...]


class Header:
    """A header as it arrives. Text and markers are kept apart, so text cannot pose as a marker."""

    def __init__(self, *, expects_role: bool) -> None:
        self._expects_role = expects_role
        self._tokens = 0
        self._opening = bytearray()  # before any marker: the role and, maybe, a recipient
        self._channel: bytearray | None = None  # text behind <|channel|>
        self._constraint: bytearray | None = None  # text behind <|constrain|>
        self._type_is_early = False
        self._section = self._opening
        self._raw = bytearray()

    @property
    def is_empty(self) -> bool:
        """Nothing came yet, and nothing was due."""
        return not self._tokens and not self._expects_role

    @property
    def has_channel(self) -> bool:
        return self._channel is not None

    @property
    def raw(self) -> bytes:
        """All text of the header but for the role, which is structure."""
        return bytes(self._raw[len(self._opening) - len(self._opening_after_role()) :])

    def add_text(self, data: bytes) -> RecoveryKind | None:
        """Add a text token; the problem, if this cannot become a header any more."""
        self._tokens += 1
        self._section += data
        self._raw += data
        if self._tokens > _MAX_TOKENS:
            return RecoveryKind.OVERLONG_HEADER
        return self._opening_problem() if self._section is self._opening else None

    def add_control(self, token: int) -> bool:
        """Add a control token; False if it has no place here."""
        self._tokens += 1
        if token == CHANNEL and self._channel is None:
            self._section = self._channel = bytearray()
            self._type_is_early = self._constraint is not None
            return True
        if token == CONSTRAIN and self._constraint is None:
            self._section = self._constraint = bytearray()
            return True
        return False

    def read(self) -> HeaderReading:
        """Read the header, once ``<|message|>`` has come."""
        problems: list[RecoveryKind] = []
        channel, behind_channel = self._read_channel(problems)
        opening, role_is_known = self._read_role(problems)
        # What <|constrain|> touches is the type.
        behind_type = re.sub(r"^\S+", "", _text(self._constraint or b""))
        words = [*opening.split(), *behind_channel, *behind_type.split()]
        recipients = [word.removeprefix(_TO) for word in words if word.startswith(_TO)]
        tool_name = _read_recipient(recipients, problems)
        if not role_is_known or (recipients and tool_name is None):
            channel, tool_name = Channel.MALFORMED, None
        # Behind the recipient one bare word may stand for the type.
        if recipients and self._constraint is None and not words[-1].startswith(_TO):
            words.pop()
        if len(words) > len(recipients) or behind_type.strip() or self._type_is_early:
            problems.append(RecoveryKind.SURPLUS_HEADER_TEXT)
        return HeaderReading(channel, tool_name, tuple(problems))

    def _read_role(self, problems: list[RecoveryKind]) -> tuple[str, bool]:
        """The text behind the role, and whether the role is the assistant's, or missing."""
        if not self._expects_role or self._opening.startswith(_ROLE):
            return _text(self._opening_after_role()), True
        if not self._opening:
            problems.append(RecoveryKind.MISSING_ROLE)
            return "", True
        problems.append(RecoveryKind.UNKNOWN_ROLE)
        return "", False

    def _read_channel(self, problems: list[RecoveryKind]) -> tuple[Channel, list[str]]:
        text = _text(self._channel or b"")
        words = text.split()
        if not words or text[0].isspace():
            problems.append(RecoveryKind.MISSING_CHANNEL)
            return Channel.MALFORMED, words
        name, *rest = words
        if name not in _CHANNELS:
            problems.append(RecoveryKind.UNKNOWN_CHANNEL)
        return _CHANNELS.get(name, Channel.MALFORMED), rest

    def _opening_after_role(self) -> bytes:
        return bytes(self._opening.removeprefix(_ROLE) if self._expects_role else self._opening)

    def _opening_problem(self) -> RecoveryKind | None:
        if self._expects_role and not self._opening.startswith(_ROLE):
            begun = _ROLE.startswith(bytes(self._opening))
            return None if begun else RecoveryKind.UNKNOWN_ROLE
        text = _text(self._opening_after_role()).lstrip()
        could_be_recipient = _TO.startswith(text) or text.startswith(_TO)
        return None if could_be_recipient else RecoveryKind.MISSING_CHANNEL


def _text(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace")


def _read_recipient(recipients: list[str], problems: list[RecoveryKind]) -> str | None:
    """The tool's name; None where no tool, or not one tool, is named."""
    if not recipients:
        return None
    if len(recipients) > 1:
        problems.append(RecoveryKind.DUPLICATE_RECIPIENT)
        if len(set(recipients)) > 1:
            return None
    name = recipients[0].removeprefix(_FUNCTIONS)
    if not _TOOL_NAME.fullmatch(name) or recipients[0] in _ROLES:
        problems.append(RecoveryKind.UNKNOWN_RECIPIENT)
        return None
    return name
