"""Several answers as one stream: order, back-pressure, failure, and how it is closed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest

from moeray.cluster.errors import Unavailable
from moeray.cluster.parallel_answers import MAX_QUEUED, answer_seed, merged
from moeray.v1 import inference_pb2 as pb

from .hang import HANG_S, until

STARTED = pb.GenerateResponse(started=pb.Started())
FINISHED = pb.GenerateResponse(finished=pb.Finished())


def text(words: str) -> pb.GenerateResponse:
    return pb.GenerateResponse(delta=pb.Delta(text=words))


class Source:
    """An answer whose events a test gives one by one; None ends it."""

    def __init__(self) -> None:
        self.begun = self.closed = False
        self.given = 0
        self.events: asyncio.Queue[pb.GenerateResponse | Exception | None] = asyncio.Queue()

    async def answer(self) -> AsyncGenerator[pb.GenerateResponse, None]:
        self.begun = True
        try:
            while (event := await self.events.get()) is not None:
                if isinstance(event, Exception):
                    raise event
                self.given += 1
                yield event
        finally:
            self.closed = True

    def say(self, *events: pb.GenerateResponse | Exception | None) -> None:
        for event in events:
            self.events.put_nowait(event)


@pytest.fixture
async def sources() -> list[Source]:
    return [Source() for _ in range(3)]


@pytest.fixture
async def stream(sources: list[Source]) -> AsyncIterator[AsyncGenerator[pb.GenerateResponse, None]]:
    async with asyncio.timeout(HANG_S), aclosing(merged([s.answer() for s in sources])) as events:
        yield events


def words_by_answer(events: list[pb.GenerateResponse]) -> list[str]:
    return ["".join(e.delta.text for e in events if e.answer == i) for i in range(3)]


async def test_events_come_as_they_are_made_each_with_its_answer(
    sources: list[Source], stream: AsyncGenerator[pb.GenerateResponse, None]
) -> None:
    sources[0].say(STARTED, text("a"))
    assert [await anext(stream) for _ in range(2)] == [STARTED, text("a")]
    sources[2].say(STARTED)
    assert (await anext(stream)).answer == 2
    sources[1].say(text("b"), FINISHED, None)
    assert (await anext(stream)).delta.text == "b"
    sources[0].say(text("c"), None)
    sources[2].say(text("d"), None)
    rest = [event async for event in stream]
    assert words_by_answer(rest) == ["c", "", "d"]
    assert all(source.closed for source in sources)


@pytest.mark.parametrize("first_word", [text("a"), FINISHED])
async def test_the_others_wait_until_the_first_speaks(
    sources: list[Source],
    stream: AsyncGenerator[pb.GenerateResponse, None],
    first_word: pb.GenerateResponse,
) -> None:
    sources[0].say(STARTED)
    await anext(stream)
    await asyncio.sleep(0.01)
    assert [source.begun for source in sources] == [True, False, False]
    sources[0].say(first_word)
    await anext(stream)
    await until(lambda: all(source.begun for source in sources))


@pytest.mark.parametrize("failing", [0, 1])
async def test_one_failure_ends_all(
    sources: list[Source], stream: AsyncGenerator[pb.GenerateResponse, None], failing: int
) -> None:
    sources[0].say(text("a"))
    await anext(stream)
    await until(lambda: sources[2].begun)
    sources[failing].say(Unavailable("lost it"))
    with pytest.raises(Unavailable, match="lost it"):
        await anext(stream)
    assert all(source.closed for source in sources)


async def test_a_first_answer_that_fails_silently_leaves_nobody_waiting(
    sources: list[Source], stream: AsyncGenerator[pb.GenerateResponse, None]
) -> None:
    sources[0].say(STARTED, Unavailable("lost it"))
    await anext(stream)
    with pytest.raises(Unavailable):
        await anext(stream)
    assert [source.begun for source in sources] == [True, False, False]


async def test_closing_the_stream_closes_the_answers(sources: list[Source]) -> None:
    stream = merged([source.answer() for source in sources])
    sources[0].say(text("a"))
    await anext(stream)
    await until(lambda: all(source.begun for source in sources))
    await stream.aclose()
    assert all(source.closed for source in sources)


async def test_answers_wait_for_a_slow_client(
    sources: list[Source], stream: AsyncGenerator[pb.GenerateResponse, None]
) -> None:
    many = 10 * MAX_QUEUED
    for source in sources:
        source.say(*[text("x")] * many, None)
    await anext(stream)
    await asyncio.sleep(0.01)
    assert sum(source.given for source in sources) <= MAX_QUEUED + len(sources) + 1
    assert len([event async for event in stream]) == 3 * many - 1


async def test_one_answer_needs_no_queue() -> None:
    source = Source()
    answer = source.answer()
    assert merged([answer]) is answer
    await answer.aclose()


def test_seeds_are_splitmix64() -> None:
    # Outputs for the seed 1234567 as published with the generator's reference code.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [answer_seed(1234567, index) for index in (1, 2, 3)] == published
    assert answer_seed(2**64 - 1, 0) == 2**64 - 1
    assert answer_seed(0, 1) == 0xE220A8397B1DCDAF
