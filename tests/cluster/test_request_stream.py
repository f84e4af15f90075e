"""Rows wait for company, but never the first token, the end, or a failure; all by a given clock."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from moeray.cluster.engine_link import EngineLink
from moeray.cluster.errors import Unavailable
from moeray.cluster.request_stream import RequestStream
from moeray.engine.v1 import engine_pb2

from .fake_engine import TOKEN, FakeEngine, Script, running_engine
from .hang import HANG_S

FLUSH_S = 0.02


class Stream(RequestStream):
    """One whose cancellations are counted."""

    def __init__(self) -> None:
        super().__init__(1, 1, flush_s=FLUSH_S, forget=self.note)
        self.cancelled: list[bool] = []

    def note(self, stream: RequestStream, *, cancel: bool) -> None:
        assert stream is self
        self.cancelled.append(cancel)

    def take(self, first: int, count: int, now: float, *, last: bool = False) -> bool:
        reason = engine_pb2.FINISH_REASON_STOP if last else engine_pb2.FINISH_REASON_UNSPECIFIED
        row = engine_pb2.StepRow(
            epoch=1,
            first_index=first,
            token_ids=range(first, first + count),
            finish_reason=reason,
            cached_tokens=0,
        )
        return self.take_row(row, now)

    async def now_readable(self) -> list[int]:
        """The tokens that can be read without waiting."""
        reading = asyncio.ensure_future(anext(self))
        for _ in range(5):
            await asyncio.sleep(0)
        if not reading.done():
            reading.cancel()
            return []
        return [token for row in reading.result() for token in row.token_ids]


async def test_rows_wait_for_company() -> None:
    stream = Stream()
    assert stream.take(0, 1, now=10.0)
    assert await stream.now_readable() == [0]
    assert not stream.take(1, 1, now=10.005)
    assert not stream.take(2, 1, now=10.010)
    assert await stream.now_readable() == []
    assert stream.take(3, 1, now=10.021)
    assert await stream.now_readable() == [1, 2, 3]
    assert stream.flush_at == pytest.approx(10.041)


async def test_the_first_token_waits_for_nobody() -> None:
    stream = Stream()
    assert stream.take(0, 0, now=10.0)
    assert await stream.admission() == 0
    assert await stream.now_readable() == []
    assert stream.take(0, 2, now=10.001)
    assert await stream.now_readable() == [0, 1]


async def test_the_end_and_a_failure_wait_for_nobody() -> None:
    stream = Stream()
    assert stream.take(0, 1, now=10.0)
    assert await stream.now_readable() == [0]
    assert not stream.take(1, 1, now=10.001)
    assert stream.take(2, 1, now=10.002, last=True)
    assert await stream.now_readable() == [1, 2]
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    lost = Stream()
    assert lost.take(0, 1, now=10.0)
    assert await lost.now_readable() == [0]
    assert lost.take(5, 1, now=10.001), "a gap"
    with pytest.raises(Unavailable, match="tokens were lost"):
        await anext(lost)
    assert lost.cancelled == [True]


async def test_held_rows_are_handed_out_when_they_are_due() -> None:
    stream = Stream()
    assert stream.take(0, 1, now=10.0)
    assert await stream.now_readable() == [0]
    assert not stream.take(1, 1, now=10.001)
    stream.flush(now=10.02)
    assert await stream.now_readable() == [1]


async def test_a_flush_of_rows_that_were_read_before_ends_nothing() -> None:
    stream = Stream()
    assert stream.take(0, 1, now=10.0)
    assert not stream.take(1, 1, now=10.001)
    assert await stream.now_readable() == [0, 1], "a slow reader takes what is held as well"
    stream.flush(now=10.02)
    assert await stream.now_readable() == []
    assert stream.take(2, 1, now=10.03, last=True)
    assert await stream.now_readable() == [2]


@pytest.fixture
async def link_and_engine() -> AsyncIterator[tuple[EngineLink, FakeEngine]]:
    engine = FakeEngine("e1")
    async with running_engine(engine):
        link = EngineLink(engine.info(), TOKEN, flush_s=FLUSH_S)
        yield link, engine
        await link.close()


async def test_the_link_flushes_what_no_later_row_does(
    link_and_engine: tuple[EngineLink, FakeEngine],
) -> None:
    link, engine = link_and_engine
    engine.scripts = [Script([1, 2, 3, 4], step_s=0.001), Script([5, 6, 7, 8], hold_after=3)]
    streams = [
        await link.submit(engine_pb2.Submit(request_key=key, epoch=1, max_output_tokens=99))
        for key in (0, 1)
    ]
    async with asyncio.timeout(HANG_S):
        said = [token async for rows in streams[0] for r in rows for token in r.token_ids]
        assert said == [1, 2, 3, 4]
        open_ended: list[int] = []
        while len(open_ended) < 3:
            open_ended += [t for row in await anext(streams[1]) for t in row.token_ids]
    assert open_ended == [5, 6, 7]
    streams[1].close()
