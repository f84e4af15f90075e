"""The gateway's link against a fake engine over loopback: order, epochs, loss, proof."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from moeray.cluster import engine_link
from moeray.cluster.engine_link import EngineLink, EngineLinks
from moeray.cluster.errors import DeadlineExpired, Unavailable
from moeray.cluster.request_stream import RequestStream
from moeray.engine.v1 import engine_pb2

from .fake_engine import TOKEN, FakeEngine, Script, running_engine
from .hang import HANG_S, until

TOKENS = list(range(100, 120))


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    fake = FakeEngine("e1")
    async with running_engine(fake):
        yield fake


@pytest.fixture
async def link(engine: FakeEngine) -> AsyncIterator[EngineLink]:
    link = EngineLink(engine.info(), TOKEN)
    yield link
    await link.close()


def submit(key: int = 1, epoch: int = 1) -> engine_pb2.Submit:
    return engine_pb2.Submit(
        request_key=key, epoch=epoch, prompt_token_ids=[1, 2], max_output_tokens=1000
    )


def row(first: int, *tokens: int, epoch: int = 1, last: bool = False) -> engine_pb2.StepRow:
    reason = engine_pb2.FINISH_REASON_STOP if last else engine_pb2.FINISH_REASON_UNSPECIFIED
    return engine_pb2.StepRow(
        epoch=epoch, first_index=first, token_ids=tokens, finish_reason=reason
    )


async def tokens_of(stream: RequestStream) -> list[int]:
    async with asyncio.timeout(HANG_S):
        return [token async for rows in stream for r in rows for token in r.token_ids]


async def test_tokens_arrive_in_order_and_the_stream_ends(
    engine: FakeEngine, link: EngineLink
) -> None:
    engine.scripts = [Script(TOKENS, cached_tokens=7)]
    stream = await link.submit(submit())
    assert await stream.admission() == 7
    assert await tokens_of(stream) == TOKENS
    stream.close()
    assert link.is_idle and engine.cancelled == []


async def test_many_requests_share_one_stream(engine: FakeEngine, link: EngineLink) -> None:
    engine.scripts = [Script([k, k + 1, k + 2], step_s=0.001) for k in range(50)]
    streams = [await link.submit(submit(key)) for key in range(50)]
    said = await asyncio.gather(*(tokens_of(stream) for stream in streams))
    assert said == [[k, k + 1, k + 2] for k in range(50)]
    assert engine.connections == 1


async def test_rows_that_piled_up_come_together(engine: FakeEngine, link: EngineLink) -> None:
    engine.scripts = [Script(TOKENS)]
    stream = await link.submit(submit())
    await until(lambda: len(engine.acknowledged) > 0)
    rows = await anext(stream)
    assert [token for r in rows for token in r.token_ids] == TOKENS


async def test_batches_are_acknowledged(engine: FakeEngine, link: EngineLink) -> None:
    engine.scripts = [Script(list(range(300)))]
    assert len(await tokens_of(await link.submit(submit()))) == 300
    await until(lambda: engine.acknowledged[-1:] == [300])
    assert engine.acknowledged == sorted(set(engine.acknowledged))
    assert len(engine.acknowledged) < 30


async def test_rows_of_an_older_epoch_are_dropped(engine: FakeEngine, link: EngineLink) -> None:
    rows = [
        row(0, 5, epoch=2),
        row(0, 9, epoch=1),
        row(1, 6, epoch=2),
        row(2, 7, epoch=2, last=True),
    ]
    engine.scripts = [Script([], rows=rows)]
    assert await tokens_of(await link.submit(submit(epoch=2))) == [5, 6, 7]


@pytest.mark.parametrize(
    "rows",
    [
        [row(0, 5), row(2, 6, last=True)],
        [row(0, 5, 6), row(1, 6, last=True)],
        [row(1, 5, last=True)],
        [row(0, 5), row(1, 6, epoch=2, last=True)],
    ],
    ids=["gap", "repeated", "late start", "epoch ahead"],
)
async def test_rows_that_do_not_follow_each_other_end_the_request(
    engine: FakeEngine, link: EngineLink, rows: list[engine_pb2.StepRow]
) -> None:
    engine.scripts = [Script([], rows=rows), Script(TOKENS)]
    stream = await link.submit(submit())
    with pytest.raises(Unavailable, match="tokens were lost"):
        await tokens_of(stream)
    assert await tokens_of(await link.submit(submit(key=2))) == TOKENS


async def test_a_refusal_and_a_failure_are_unavailable(
    engine: FakeEngine, link: EngineLink
) -> None:
    engine.scripts = [Script([], refusal="draining"), Script(TOKENS, fail_after=3)]
    refused = await link.submit(submit())
    with pytest.raises(Unavailable, match="draining"):
        await refused.admission()
    lost = await link.submit(submit(key=2))
    with pytest.raises(Unavailable, match="lost it"):
        await tokens_of(lost)


async def test_admission_comes_with_the_first_row_and_leaves_it_to_be_read(
    engine: FakeEngine, link: EngineLink
) -> None:
    engine.scripts = [
        Script(TOKENS, admits_early=True, cached_tokens=16, hold_after=0),
        Script(TOKENS, admits_early=True, cached_tokens=16),
    ]
    silent = await link.submit(submit())
    early = asyncio.create_task(silent.admission())
    stream = await link.submit(submit(key=2))
    assert await stream.admission() == 16
    assert not early.done(), "taken, but not begun"
    early.cancel()
    assert (await anext(stream))[0].cached_tokens == 16


async def test_a_request_whose_time_ran_out_says_so(engine: FakeEngine, link: EngineLink) -> None:
    engine.scripts = [Script(TOKENS, expire_after=0), Script(TOKENS, expire_after=3)]
    with pytest.raises(DeadlineExpired):
        await (await link.submit(submit())).admission()
    with pytest.raises(DeadlineExpired):
        await tokens_of(await link.submit(submit(key=2)))
    assert engine.cancelled == []


async def test_a_closed_stream_has_no_more_rows(engine: FakeEngine, link: EngineLink) -> None:
    engine.scripts = [Script(TOKENS, hold_after=2)]
    stream = await link.submit(submit())
    await anext(stream)
    stream.close()
    assert await tokens_of(stream) == []


async def test_closing_a_stream_cancels_it_at_the_engine(
    engine: FakeEngine, link: EngineLink
) -> None:
    engine.scripts = [Script(TOKENS, hold_after=2)]
    stream = await link.submit(submit(key=9))
    await anext(stream)
    stream.close()
    stream.close()
    await until(lambda: engine.cancelled == [9])


async def test_when_the_stream_dies_every_request_fails_and_the_link_comes_back(
    engine: FakeEngine, link: EngineLink
) -> None:
    engine.scripts = [
        Script(TOKENS, hold_after=2),
        Script(TOKENS, end_stream_after=2),
        Script(TOKENS),
    ]
    streams = [await link.submit(submit(key)) for key in (1, 2)]
    ends = await asyncio.gather(*(tokens_of(s) for s in streams), return_exceptions=True)
    assert [type(end) for end in ends] == [Unavailable, Unavailable]
    assert link.is_idle
    assert await tokens_of(await link.submit(submit(key=3))) == TOKENS
    assert engine.connections == 2


async def test_a_silent_engine_fails_its_requests_and_the_link_comes_back(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_link, "SILENCE_TICK_S", 0.05)
    engine.is_silent = True
    engine.scripts = [Script(TOKENS, hold_after=2), Script(TOKENS)]
    link = EngineLink(engine.info(), TOKEN)
    with pytest.raises(Unavailable, match=r"it said nothing for 0.7 s"):
        await tokens_of(await link.submit(submit()))
    assert await tokens_of(await link.submit(submit(key=2))) == TOKENS
    assert engine.connections == 2
    await link.close()


async def test_an_engine_that_only_sends_heartbeats_keeps_its_requests(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Beats come every second, and a second is fewer ticks than are too many.
    monkeypatch.setattr(engine_link, "SILENCE_TICK_S", 0.15)
    gate = asyncio.Event()
    engine.scripts = [Script(TOKENS, gate=gate)]
    link = EngineLink(engine.info(), TOKEN)
    stream = await link.submit(submit())
    await asyncio.sleep(3.0)
    gate.set()
    assert await tokens_of(stream) == TOKENS
    assert engine.connections == 1
    await link.close()


async def test_a_batch_out_of_order_breaks_the_link(engine: FakeEngine, link: EngineLink) -> None:
    engine.first_sequence_number = 5
    engine.scripts = [Script(TOKENS)]
    with pytest.raises(Unavailable):
        await tokens_of(await link.submit(submit()))


async def test_an_impostor_gets_no_prompt() -> None:
    impostor = FakeEngine("e1", proof_token=b"guess")
    async with running_engine(impostor):
        link = EngineLink(impostor.info(), TOKEN)
        with pytest.raises(Unavailable):
            await link.submit(submit())
        await link.close()
    assert impostor.submits == []


async def test_a_gateway_without_the_token_is_turned_away(engine: FakeEngine) -> None:
    link = EngineLink(engine.info(), b"another token")
    with pytest.raises(Unavailable):
        await link.submit(submit())
    await link.close()
    assert engine.connections == 0


async def test_an_engine_that_is_not_there_is_unavailable() -> None:
    link = EngineLink(FakeEngine("e1", port=1).info(), TOKEN)
    with pytest.raises(Unavailable):
        await link.submit(submit())
    await link.close()


async def test_a_gateway_that_stood_still_blames_no_engine(engine: FakeEngine) -> None:
    engine.scripts = [Script(TOKENS)]
    link = EngineLink(engine.info(), TOKEN)
    submitting = asyncio.create_task(link.submit(submit()))
    await asyncio.sleep(0)  # it waits for its link, and the link for the engine's proof
    time.sleep(1.5 * engine_link.CONNECT_TIMEOUT_S)
    assert await tokens_of(await submitting) == TOKENS
    assert engine.connections == 1
    await link.close()


async def test_links_follow_the_list_of_engines(engine: FakeEngine) -> None:
    links = EngineLinks(TOKEN)
    engine.scripts = [Script(TOKENS, hold_after=1), Script(TOKENS)]
    waiting = asyncio.create_task(links.submit("e1", submit()))
    await asyncio.sleep(0.01)
    links.update([engine.info()])
    running = await asyncio.wait_for(waiting, HANG_S)
    await anext(running)
    links.update([])
    with pytest.raises(Unavailable, match="not registered"):
        await links.submit("e1", submit(key=2))
    assert running._failure is None, "a request on an engine that left goes on"
    links.update([engine.info()])
    assert await tokens_of(await links.submit("e1", submit(key=3))) == TOKENS
    assert engine.connections == 2 and engine.cancelled == []
    running.close()
    await until(lambda: engine.disconnections == 1)
    await links.close()
    await until(lambda: engine.disconnections == 2)


async def test_closing_the_links_fails_what_still_runs(engine: FakeEngine) -> None:
    links = EngineLinks(TOKEN)
    links.update([engine.info()])
    engine.scripts = [Script(TOKENS, hold_after=1)]
    running = await links.submit("e1", submit())
    await anext(running)
    await links.close()
    with pytest.raises(Unavailable):
        await anext(running)
