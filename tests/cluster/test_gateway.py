"""Answers through a whole gateway: what a client sees, what the engine is told, what is freed."""

import asyncio

import grpc
import pytest

from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.validation import Validator
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.harmony_tokens import CHANNEL, START

from .fake_engine import FakeEngine, Script
from .hang import HANG_S, until
from .running_gateway import (
    ANSWER,
    ask,
    failure,
    fields_of,
    running_gateway,
    said,
    text_of,
    tokenizer,
)

TOOL = pb.Tool(
    name="get_weather",
    description="The weather.",
    parameters_json_schema='{"type": "object", "properties": {"city": {"type": "string"}}}',
)


@pytest.mark.parametrize("per_step", [1, 7, 1000])
async def test_an_answer_streams_by_channel(per_step: int) -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, per_step=per_step, cached_tokens=3)])
    async with running_gateway(engine) as gateway:
        call = gateway.stub.Generate(ask(), metadata=(("x-request-id", "mine-1"),))
        events = [event async for event in call]
    kinds = fields_of(events)
    assert kinds[0] == "started" and kinds[-2:] == ["usage", "finished"]
    assert set(kinds[1:-2]) == {"delta"}
    started = events[0].started
    assert (started.request_id, started.model, started.engine_id) == ("mine-1", "tiny", "e1")
    assert text_of(events, pb.CHANNEL_ANALYSIS) == "Adding two numbers."
    assert text_of(events, pb.CHANNEL_FINAL) == "It is four, naïvely: 🙂."
    assert events[-1].finished.reason == pb.FINISH_REASON_STOP
    assert not any(event.delta.token_ids for event in events)
    usage = events[-2].usage
    assert usage.output_tokens == len(ANSWER) and usage.cached_tokens == 3
    assert usage.prompt_tokens == started.prompt_tokens == len(engine.submits[0].prompt_token_ids)
    assert usage.reasoning_tokens == len(tokenizer().encode("Adding two numbers."))
    assert usage.output_tokens == (
        usage.reasoning_tokens
        + usage.commentary_tokens
        + usage.tool_call_tokens
        + usage.final_tokens
        + usage.control_tokens
    )


async def test_the_engine_is_told_what_was_asked() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    request = ask(
        tools=[TOOL],
        reasoning_effort=pb.REASONING_EFFORT_HIGH,
        thinking_budget=40,
        sampling=pb.Sampling(temperature=0.5, top_p=0.9, top_k=5, seed=11),
        max_output_tokens=99,
        priority=7,
        current_date="2026-01-02",
    )
    async with running_gateway(engine) as gateway:
        async for _ in gateway.stub.Generate(request):
            pass
    (submit,) = engine.submits
    renderer = HarmonyRenderer(tokenizer())
    valid = Validator(renderer.tool_problem).validate(request)
    assert list(submit.prompt_token_ids) == renderer.render(valid)
    assert submit.channel_rules == renderer.channel_rules(valid)
    assert submit.channel_rules.thinking_budget == 40
    assert (submit.max_output_tokens, submit.priority, submit.epoch) == (99, 7, 1)
    assert submit.sampling == engine_pb2.Sampling(
        temperature=0.5, top_p=0.9, top_k=5, seed=11, repetition_penalty=1.0
    )


async def test_what_waits_together_is_one_event() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, per_step=1000)])
    async with running_gateway(engine) as gateway:
        events = [event async for event in gateway.stub.Generate(ask())]
    assert fields_of(events) == ["started", "delta", "delta", "usage", "finished"]


@pytest.mark.parametrize("per_step", [1, 1000])
async def test_a_tool_call_streams_in_parts(per_step: int) -> None:
    arguments = '{"city": "Oslo"}'
    tokens = said(("analysis", "Look it up."), tool=("get_weather", arguments))
    engine = FakeEngine("e1", scripts=[Script(tokens, per_step=per_step)] * 2)
    async with running_gateway(engine) as gateway:
        events = [event async for event in gateway.stub.Generate(ask(tools=[TOOL]))]
        whole = await gateway.stub.Complete(pb.CompleteRequest(generation=ask(tools=[TOOL])))
    parts = [event.tool_call for event in events if event.HasField("tool_call")]
    kinds = [part.WhichOneof("part") for part in parts]
    assert kinds[0] == "start" and kinds[-1] == "end" and set(kinds[1:-1]) == {"arguments"}
    assert parts[0].start.name == "get_weather" and parts[0].start.id
    assert "".join(part.arguments for part in parts) == arguments
    assert events[-1].finished.reason == pb.FINISH_REASON_TOOL_CALL
    assert events[-2].usage.tool_call_tokens == len(tokenizer().encode(arguments))
    (call,) = whole.answers[0].tool_calls
    assert (call.name, call.arguments) == ("get_weather", arguments)
    assert call.id != parts[0].start.id


async def test_token_ids_are_sent_when_asked_for_and_none_is_missing() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, per_step=3)])
    async with running_gateway(engine) as gateway:
        events = [e async for e in gateway.stub.Generate(ask(include_token_ids=True))]
    ids = [token for event in events for token in event.delta.token_ids]
    assert ids == ANSWER


async def test_the_length_limit_ends_the_answer() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER[:-1] * 9)])
    async with running_gateway(engine) as gateway:
        events = [e async for e in gateway.stub.Generate(ask(max_output_tokens=20))]
    assert events[-1].finished.reason == pb.FINISH_REASON_LENGTH
    assert events[-2].usage.output_tokens == 20


async def test_an_answer_cut_in_a_header_loses_no_token() -> None:
    # Long enough for the smallest limit, and cut after "<|start|>assistant<|channel|>".
    spoken = said(("analysis", "one two three " * 9), ("final", "four"))
    tokens = spoken[: spoken.index(START) + 3]
    assert tokens[-1] == CHANNEL
    engine = FakeEngine("e1", scripts=[Script(tokens)])
    request = ask(include_token_ids=True, max_output_tokens=len(tokens))
    async with running_gateway(engine) as gateway:
        events = [event async for event in gateway.stub.Generate(request)]
    assert [token for event in events for token in event.delta.token_ids] == tokens
    assert events[-2].usage.output_tokens == len(tokens)


async def test_complete_is_the_same_answer_in_one_message() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        whole = await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
    assert whole.model == "tiny" and whole.request_id
    (answer,) = whole.answers
    assert (answer.analysis, answer.final) == ("Adding two numbers.", "It is four, naïvely: 🙂.")
    assert answer.finished == pb.Finished(reason=pb.FINISH_REASON_STOP)
    assert answer.usage.output_tokens == len(ANSWER)
    assert not answer.token_ids and not answer.logprobs


async def test_cancelling_frees_the_engine_and_the_place() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, hold_after=8), Script(ANSWER)])
    async with running_gateway(engine, places=1) as gateway:
        call = gateway.stub.Generate(ask())
        events = aiter(call)
        await anext(events)
        await anext(events)
        waiting = gateway.stub.Complete(pb.CompleteRequest(generation=ask()), timeout=HANG_S)
        await asyncio.sleep(0.05)
        assert not waiting.done() and len(engine.submits) == 1
        call.cancel()
        await until(lambda: engine.cancelled == [engine.submits[0].request_key])
        assert (await waiting).answers[0].final
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.running_requests == 0


async def test_a_client_that_disconnects_frees_the_engine() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, hold_after=8)])
    async with running_gateway(engine) as gateway:
        async with grpc.aio.insecure_channel(
            gateway.target, options=(("grpc.use_local_subchannel_pool", 1),)
        ) as channel:
            stub = type(gateway.stub)(channel)
            await anext(aiter(stub.Generate(ask())))
        await until(lambda: len(engine.cancelled) == 1)


@pytest.mark.parametrize("running", [True, False], ids=["running", "waiting"])
async def test_the_deadline_frees_what_was_held(running: bool) -> None:
    scripts = [Script(ANSWER, hold_after=8), Script(ANSWER, hold_after=8), Script(ANSWER)]
    engine = FakeEngine("e1", scripts=scripts)
    async with running_gateway(engine, places=1 if not running else 2) as gateway:
        first = gateway.stub.Generate(ask())
        await anext(aiter(first))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in gateway.stub.Generate(ask(), timeout=0.3):
                pass
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: len(engine.cancelled) == int(running))
        assert len(engine.submits) == 1 + int(running)
        first.cancel()


async def test_a_full_queue_is_resource_exhausted_with_a_delay() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, hold_after=8)])
    limits = PlacementLimits(max_waiting=0, engine_timeout_s=3600.0)
    async with running_gateway(engine, places=1, limits=limits) as gateway:
        running = gateway.stub.Generate(ask())
        await anext(aiter(running))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        running.cancel()
    found = failure(caught.value)
    assert found.code == grpc.StatusCode.RESOURCE_EXHAUSTED and found.reason == "QUEUE_FULL"
    assert found.retry_delay_s is not None and 0.1 <= found.retry_delay_s <= 30


async def test_two_calls_with_one_request_id_are_two_requests() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, hold_after=8), Script(ANSWER)])
    metadata = (("x-request-id", "same"),)
    async with running_gateway(engine, places=2) as gateway:
        held = gateway.stub.Generate(ask(), metadata=metadata)
        await anext(aiter(held))
        generation = pb.CompleteRequest(generation=ask())
        whole = await gateway.stub.Complete(generation, metadata=metadata)
        assert whole.answers[0].final and whole.request_id == "same"
        assert engine.cancelled == []
        held.cancel()
