"""The observer passes faithful streams and catches every kind of damage that is planted."""

from collections.abc import Callable

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.v1 import inference_pb2 as pb
from tests.chaos.observer import Answer, Damage, Ending, StreamObserver, Violation

TOKENS = [*range(100, 140)]
OTHERS = frozenset(range(500, 560))
OK = Ending(code=grpc.StatusCode.OK)
LOST = Ending(code=grpc.StatusCode.UNAVAILABLE, from_server=True, retry_after_s=1.0)

Events = list[pb.GenerateResponse]


def delta(token: int) -> pb.GenerateResponse:
    body = pb.Delta(channel=pb.CHANNEL_FINAL, text=f"{token} ", token_ids=[token])
    return pb.GenerateResponse(delta=body)


def started() -> pb.GenerateResponse:
    return pb.GenerateResponse(started=pb.Started(engine_id="e1"))


def usage(output: int, cached: int = 0) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        usage=pb.Usage(prompt_tokens=9, output_tokens=output, cached_tokens=cached)
    )


def finished(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_LENGTH) -> pb.GenerateResponse:
    return pb.GenerateResponse(finished=pb.Finished(reason=reason))


def faithful() -> Events:
    return [started(), *map(delta, TOKENS), usage(len(TOKENS)), finished()]


def expected() -> Answer:
    answer = Answer()
    for event in faithful():
        answer.add(event)
    return answer


def judged(events: Events, ending: Ending) -> list[Violation]:
    observer = StreamObserver(expected(), OTHERS)
    for event in events:
        observer.see(event)
    return observer.end(ending)


def test_a_faithful_stream_passes() -> None:
    assert judged(faithful(), OK) == []
    cached = [*faithful()[:-2], usage(len(TOKENS), cached=8), finished()]
    assert judged(cached, OK) == []


@given(st.integers(0, len(TOKENS) + 1))
def test_a_failed_stream_is_a_prefix(events: int) -> None:
    assert judged(faithful()[:events], LOST) == []
    dead_gateway = Ending(code=grpc.StatusCode.UNAVAILABLE, message="Socket closed")
    assert judged(faithful()[:events], dead_gateway) == []


def with_tokens(change: Callable[[Events, int], object]) -> Callable[[Events, int], Events]:
    """A mutant that changes the list of deltas at ``at``."""

    def mutant(events: Events, at: int) -> Events:
        body = events[1:-2]
        change(body, at)
        return [events[0], *body, *events[-2:]]

    return mutant


def swap(body: Events, at: int) -> None:
    body[at], body[at + 1] = body[at + 1], body[at]


MUTANTS: dict[str, tuple[Callable[[Events, int], Events], Damage]] = {
    "a token is lost": (with_tokens(lambda body, at: body.pop(at)), Damage.LOSS),
    "tokens are lost": (with_tokens(lambda body, at: body.__delitem__(slice(at, at + 4))),
                        Damage.LOSS),
    "a token is repeated": (with_tokens(lambda body, at: body.insert(at, body[at])),
                            Damage.DUPLICATION),
    "a batch is repeated": (with_tokens(lambda body, at: body.__setitem__(
                                slice(at, at), body[at - 3 : at])), Damage.DUPLICATION),
    "two are swapped": (with_tokens(swap), Damage.REORDERING),
    "a token is another stream's": (with_tokens(lambda body, at: body.__setitem__(at, delta(517))),
                                    Damage.MIXING),
    "a token is mixed in": (with_tokens(lambda body, at: body.insert(at, delta(517))),
                            Damage.MIXING),
    "a token is nobody's": (with_tokens(lambda body, at: body.__setitem__(at, delta(7))),
                            Damage.DIVERGENCE),
    "the rest is gone": (lambda events, at: [*events[: at + 1], *events[-2:]], Damage.TRUNCATION),
    "it just stops": (lambda events, at: events[: at + 1], Damage.TRUNCATION),
    "no finished": (lambda events, at: events[:-1], Damage.TRUNCATION),
    "started again": (lambda events, at: [*events[:at], started(), *events[at:]], Damage.ORDER),
    "never started": (lambda events, at: events[1:], Damage.ORDER),
    "words after the end": (lambda events, at: [*events, delta(TOKENS[-1])], Damage.ORDER),
    "two ends": (lambda events, at: [*events, finished()], Damage.ORDER),
    "usage of fewer": (lambda events, at: [*events[:-2], usage(at), finished()], Damage.USAGE),
    "another reason": (lambda events, at: [*events[:-1], finished(pb.FINISH_REASON_STOP)],
                       Damage.REASON),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
@given(at=st.integers(3, len(TOKENS) - 6))
def test_planted_damage_in_a_complete_stream_is_caught(name: str, at: int) -> None:
    mutant, damage = MUTANTS[name]
    assert damage in {violation.damage for violation in judged(mutant(faithful(), at), OK)}


@pytest.mark.parametrize(
    "name", [name for name, (_, damage) in MUTANTS.items() if damage.name in (
        "LOSS", "DUPLICATION", "REORDERING", "MIXING", "DIVERGENCE")]
)  # fmt: skip
def test_planted_damage_in_a_failed_stream_is_caught(name: str) -> None:
    mutant, _ = MUTANTS[name]
    assert judged(mutant(faithful(), 5)[:20], LOST)


def test_text_that_is_not_the_tokens_is_caught() -> None:
    events = faithful()
    events[4].delta.text = "other words "
    assert {violation.damage for violation in judged(events, OK)} == {Damage.TEXT}


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        (Ending(code=grpc.StatusCode.INTERNAL, from_server=True), Damage.STATUS),
        (Ending(code=grpc.StatusCode.CANCELLED), Damage.STATUS),
        (Ending(code=grpc.StatusCode.DEADLINE_EXCEEDED), Damage.STATUS),
        (Ending(code=grpc.StatusCode.UNAVAILABLE, from_server=True), Damage.NO_RETRY_INFO),
    ],
)
def test_other_ends_are_caught(ending: Ending, damage: Damage) -> None:
    assert [violation.damage for violation in judged(faithful()[:9], ending)] == [damage]


def test_a_hang_is_told_with_what_was_said() -> None:
    observer = StreamObserver(expected(), OTHERS)
    for event in faithful()[:6]:
        observer.see(event)
    assert observer.hang(30.0) == Violation(Damage.HANG, "after 5 tokens: 30 s")
