"""Holds one stream to what it should say: the fault-free answer of the same prompt and seed.

A complete stream equals that answer to the token, to the letter and in its usage; a stream that
failed is a prefix of it and ended with UNAVAILABLE. Everything else is a violation: tokens lost,
repeated, out of order or of another answer, a stream that just stops, anything behind the end.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import grpc

from moeray.v1 import inference_pb2 as pb


class Damage(StrEnum):
    """What can be wrong with a stream."""

    LOSS = "tokens are missing"
    DUPLICATION = "tokens came twice"
    REORDERING = "tokens came in another order"
    MIXING = "tokens of another answer"
    DIVERGENCE = "tokens of no answer"
    TRUNCATION = "ended as if complete, before its end"
    TEXT = "the text is not that of the tokens"
    USAGE = "usage is not that of the answer"
    REASON = "finished for another reason"
    ORDER = "events out of order"
    STATUS = "ended with an unexpected status"
    NO_RETRY_INFO = "UNAVAILABLE without RetryInfo"
    HANG = "said nothing for too long"


@dataclass(frozen=True, slots=True)
class Violation:
    damage: Damage
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a call ended. ``from_server``: the status carries google.rpc details, so a gateway wrote
    it, not this end of a broken connection."""

    code: grpc.StatusCode
    message: str = ""
    from_server: bool = False
    retry_after_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """An answer as a client saw it."""

    token_ids: list[int] = field(default_factory=list)
    text: dict[int, str] = field(default_factory=dict)
    """By channel."""
    usage: pb.Usage | None = None
    finished: int | None = None

    def add(self, event: pb.GenerateResponse) -> None:
        match event.WhichOneof("event"):
            case "delta":
                channel = event.delta.channel
                self.token_ids.extend(event.delta.token_ids)
                self.text[channel] = self.text.get(channel, "") + event.delta.text
            case "usage":
                self.usage = event.usage
            case "finished":
                self.finished = event.finished.reason


class StreamObserver:
    """``others`` are the tokens of all other answers: what may have been mixed in."""

    def __init__(self, expected: Answer, others: frozenset[int]) -> None:
        self.seen = Answer()
        self.engine_id = ""
        self._expected = expected
        self._others = others
        self._order: list[str] = []

    @property
    def has_spoken(self) -> bool:
        return bool(self.seen.token_ids)

    def see(self, event: pb.GenerateResponse) -> None:
        """Take one event of the stream."""
        self._order.append(event.WhichOneof("event") or "nothing")
        self.engine_id = event.started.engine_id or self.engine_id
        self.seen.add(event)

    def end(self, ending: Ending) -> list[Violation]:
        """What was wrong with the stream, now that it has ended."""
        complete = ending.code is grpc.StatusCode.OK
        found = [
            *self._tokens(complete),
            *self._text(complete),
            *self._events(complete),
            *_status(ending),
        ]
        if complete:
            found += self._totals()
        return found

    def hang(self, silent_s: float) -> Violation:
        """The violation of a stream that neither speaks nor ends."""
        return Violation(Damage.HANG, f"after {len(self.seen.token_ids)} tokens: {silent_s:.0f} s")

    def _tokens(self, complete: bool) -> Iterable[Violation]:
        seen, expected = self.seen.token_ids, self._expected.token_ids
        wrong = next((i for i, pair in enumerate(zip(seen, expected, strict=False))
                      if pair[0] != pair[1]), None)  # fmt: skip
        if wrong is None and len(seen) > len(expected):
            wrong = len(expected)
        if wrong is not None:
            damage = _kind_of_damage(seen, expected, wrong, self._others)
            yield Violation(damage, f"at token {wrong} of {len(seen)}: {seen[wrong : wrong + 4]}")
        elif complete and len(seen) < len(expected):
            yield Violation(Damage.TRUNCATION, f"{len(seen)} tokens of {len(expected)}")

    def _text(self, complete: bool) -> Iterable[Violation]:
        for channel, text in self.seen.text.items():
            whole = self._expected.text.get(channel, "")
            if text != (whole if complete else whole[: len(text)]):
                yield Violation(Damage.TEXT, f"channel {channel}: {len(text)} characters")

    def _events(self, complete: bool) -> Iterable[Violation]:
        """started, deltas, usage, finished: nothing before, between or behind."""
        order = self._order
        body = [name for name in order if name in ("delta", "tool_call")]
        whole = ["started", *body, "usage", "finished"]
        if order != (whole if complete else whole[: len(order)]):
            missing_end = complete and order == whole[: len(order)]
            damage = Damage.TRUNCATION if missing_end else Damage.ORDER
            yield Violation(damage, f"ended with {order[-3:]}, started {order.count('started')} x")

    def _totals(self) -> Iterable[Violation]:
        seen, expected = self.seen, self._expected
        if seen.usage is not None and _totals(seen.usage) != _totals(expected.usage):
            yield Violation(Damage.USAGE, f"{_totals(seen.usage)}, not {_totals(expected.usage)}")
        if seen.finished is not None and seen.finished != expected.finished:
            yield Violation(Damage.REASON, f"{seen.finished}, not {expected.finished}")


def _totals(usage: pb.Usage | None) -> dict[str, int]:
    """All of usage but for what the prefix cache held, which depends on the engine."""
    fields = [] if usage is None else usage.ListFields()
    return {name.name: value for name, value in fields if name.name != "cached_tokens"}


def _kind_of_damage(
    seen: Sequence[int], expected: Sequence[int], wrong: int, others: frozenset[int]
) -> Damage:
    """The likeliest story behind the first wrong token; that it is wrong stands already."""
    token, rest = seen[wrong], seen[wrong : wrong + 3]
    if Counter(seen) == Counter(expected[: len(seen)]):
        return Damage.REORDERING
    if token in others and token not in expected:
        return Damage.MIXING
    for start in range(len(expected)):
        if expected[start : start + len(rest)] == rest:
            return Damage.LOSS if start > wrong else Damage.DUPLICATION
    if token in expected[:wrong]:
        return Damage.DUPLICATION
    return Damage.LOSS if token in expected[wrong:] else Damage.DIVERGENCE


def _status(ending: Ending) -> Iterable[Violation]:
    if ending.code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE):
        yield Violation(Damage.STATUS, f"{ending.code.name}: {ending.message}")
    elif (
        ending.code is grpc.StatusCode.UNAVAILABLE
        and ending.from_server
        and ending.retry_after_s is None
    ):
        yield Violation(Damage.NO_RETRY_INFO, ending.message)
