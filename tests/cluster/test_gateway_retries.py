"""What a lost try costs: another one elsewhere, or the answer once it has begun."""

import asyncio

import grpc
import pytest

from moeray.cluster import engine_link
from moeray.v1 import inference_pb2 as pb

from .fake_engine import FakeEngine, Script, running_engine
from .free_port import free_port
from .hang import HANG_S, until
from .running_gateway import (
    ANSWER,
    RunningGateway,
    ask,
    failure,
    fields_of,
    running_gateway,
    text_of,
)

FINAL = "It is four, naïvely: 🙂."


async def answered(gateway: RunningGateway) -> str:
    request = pb.CompleteRequest(generation=ask())
    return str((await gateway.stub.Complete(request, timeout=HANG_S)).answers[0].final)


async def test_an_engine_that_dies_in_an_answer_ends_it_as_unavailable() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, end_stream_after=8)])
    async with running_gateway(engine) as gateway:
        events = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for event in gateway.stub.Generate(ask()):
                events.append(event)
    found = failure(caught.value)
    assert found.code == grpc.StatusCode.UNAVAILABLE and found.reason == "UNAVAILABLE"
    assert found.retry_delay_s is not None and found.retry_delay_s > 0
    assert "finished" not in fields_of(events)


@pytest.mark.parametrize(
    "first", [Script(ANSWER, fail_after=0), Script(ANSWER, fail_after=2), Script([], refusal="no")]
)
async def test_a_try_that_fails_before_its_first_word_moves_to_another_engine(
    first: Script,
) -> None:
    engines = [FakeEngine("e1", scripts=[first]), FakeEngine("e2", scripts=[Script(ANSWER)])]
    async with running_gateway(*engines) as gateway:
        events = [event async for event in gateway.stub.Generate(ask())]
    assert fields_of(events).count("started") == 1
    assert text_of(events, pb.CHANNEL_FINAL) == FINAL
    assert events[-2].usage.output_tokens == len(ANSWER)
    (one,), (two,) = engines[0].submits, engines[1].submits
    assert (one.epoch, two.epoch) == (1, 2)
    assert one.sampling.seed == two.sampling.seed


async def test_tries_are_not_endless() -> None:
    engines = [FakeEngine(f"e{i}", scripts=[Script(ANSWER, fail_after=0)]) for i in range(4)]
    async with running_gateway(*engines) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in gateway.stub.Generate(ask()):
                pass
    assert failure(caught.value).code == grpc.StatusCode.UNAVAILABLE
    assert sum(len(engine.submits) for engine in engines) == 3


async def test_an_engine_that_could_not_be_reached_is_tried_again_where_it_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_link, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(engine_link, "MAX_RECONNECT_S", 0.05)
    late = FakeEngine("e1", port=free_port(), scripts=[Script(ANSWER)])
    async with running_gateway() as gateway:
        await gateway.register(late.info())
        answer = asyncio.create_task(answered(gateway))
        await until(lambda: gateway.router._policy.stats().placed_total == 2)
        async with running_engine(late):
            assert await answer == FINAL
    assert late.submits[0].epoch > 1


async def test_an_engine_that_cannot_be_reached_costs_a_try_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_link, "CONNECT_TIMEOUT_S", 0.3)
    gone = FakeEngine("e1", port=free_port())
    there = FakeEngine("e2", scripts=[Script(ANSWER), Script(ANSWER)])
    async with running_gateway(there) as gateway:
        await gateway.register(gone.info())
        async with asyncio.TaskGroup() as group:
            answers = [group.create_task(answered(gateway)) for _ in range(2)]
    assert [answer.result() for answer in answers] == [FINAL, FINAL]
    assert sorted(submit.epoch for submit in there.submits) == [1, 2]


async def test_an_engine_that_stays_away_is_unavailable_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_link, "CONNECT_TIMEOUT_S", 0.1)
    async with running_gateway() as gateway:
        await gateway.register(FakeEngine("e1", port=free_port()).info())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answered(gateway)
    assert failure(caught.value).message == "no link to engine e1"
