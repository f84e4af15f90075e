"""Complete sampling through a whole gateway: stop strings, log-probabilities, several answers."""

import asyncio
from collections import Counter
from contextlib import aclosing

import grpc
import pytest

from moeray.cluster.contracts import PlacementRequest
from moeray.cluster.interceptors import Call
from moeray.cluster.parallel_answers import answer_seed
from moeray.engine.v1 import engine_pb2
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.block_hash import block_hashes

from .fake_engine import FakeEngine, Script
from .hang import HANG_S, until
from .running_gateway import ANSWER, ask, failure, running_gateway, said, tokenizer

COUNTING = said(("final", " ".join(str(number) for number in range(40))))


def kinds_by_answer(events: list[pb.GenerateResponse], n: int) -> list[list[str | None]]:
    return [[e.WhichOneof("event") for e in events if e.answer == i] for i in range(n)]


async def test_the_engine_is_told_how_to_sample_and_when_to_end() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    request = ask(
        sampling=pb.Sampling(
            seed=3,
            min_p=0.1,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0.25,
            logit_bias={7: -100.0, 9: 1.5},
        ),
        top_logprobs=0,
        cache_salt="mine",
        stop_token_ids=[9, 4, 9],
        ignore_eos=True,
        min_output_tokens=12,
    )
    async with running_gateway(engine) as gateway:
        async for _ in gateway.stub.Generate(request, timeout=60):
            pass
    (submit,) = engine.submits
    assert submit.sampling == engine_pb2.Sampling(
        temperature=1.0,
        top_p=1.0,
        seed=3,
        min_p=0.1,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0.25,
        logit_bias={7: -100.0, 9: 1.5},
        top_logprobs=0,
    )
    rules = submit.channel_rules
    assert (list(rules.stop_token_ids), rules.ignore_eos) == ([4, 9], True)
    assert (rules.min_output_tokens, submit.cache_salt) == (12, "mine")
    assert 50_000 < submit.time_left_ms < 61_000  # grpc rounds deadlines up


async def test_without_a_deadline_the_engine_has_none() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
    (submit,) = engine.submits
    assert not submit.HasField("time_left_ms")
    assert not submit.sampling.HasField("top_logprobs")


async def test_the_router_is_told_what_the_prompt_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    placed: list[PlacementRequest] = []
    async with running_gateway(engine) as gateway:
        place = gateway.router.place

        async def recording(gateway_id: str, requests: list[PlacementRequest]) -> object:
            placed.extend(requests)
            return await place(gateway_id, requests)

        monkeypatch.setattr(gateway.router, "place", recording)
        asked = ask("word " * 100, cache_salt="mine")
        await gateway.stub.Complete(pb.CompleteRequest(generation=asked))
    prompt = list(engine.submits[0].prompt_token_ids)
    assert placed[0].block_hashes == tuple(block_hashes(prompt, 16, "mine"))
    assert len(placed[0].block_hashes) == len(prompt) // 16 > 5


async def test_an_answer_starts_with_the_engines_first_row() -> None:
    gate = asyncio.Event()
    script = Script(ANSWER, per_step=1000, admits_early=True, cached_tokens=32, gate=gate)
    engine = FakeEngine("e1", scripts=[script])
    async with running_gateway(engine) as gateway:
        events = aiter(gateway.stub.Generate(ask()))
        first = await anext(events)
        assert first.started.cached_tokens == 32
        gate.set()
        rest = [event async for event in events]
    assert rest[-2].usage.cached_tokens == 32


async def test_a_stop_string_ends_the_answer_and_the_engines_work() -> None:
    engine = FakeEngine("e1", scripts=[Script(COUNTING, hold_after=len(COUNTING) - 5)])
    async with running_gateway(engine) as gateway:
        events = [e async for e in gateway.stub.Generate(ask(stop=["7 8 9", "21"]))]
        await until(lambda: engine.cancelled == [engine.submits[0].request_key])
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
    text = "".join(event.delta.text for event in events)
    assert text == "0 1 2 3 4 5 6 "
    assert events[-1].finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop="7 8 9")
    counted = len(tokenizer().encode("0 1 2 3 4 5 6 7 8 9"))
    assert events[-2].usage.final_tokens == counted
    assert info.running_requests == 0


async def test_a_stop_string_frees_the_engine_before_a_slow_client_has_read() -> None:
    tokens = said(("analysis", "Hm."), ("final", "Say STOP and go on."))
    per_step = len(tokens) - 2
    engine = FakeEngine("e1", scripts=[Script(tokens, per_step=per_step, hold_after=per_step)])
    async with running_gateway(engine) as gateway:
        call = Call(request_id="slow", deadline=None)
        async with aclosing(gateway.process._answers.stream(ask(stop=["STOP"]), call)) as events:
            assert (await anext(events)).HasField("started")
            assert (await anext(events)).delta.text == "Hm."
            await until(lambda: len(engine.cancelled) == 1)
            assert (await anext(events)).delta.text == "Say "


async def test_a_stop_string_in_the_engines_last_row_cancels_nothing() -> None:
    engine = FakeEngine("e1", scripts=[Script(COUNTING, per_step=1000)])
    async with running_gateway(engine) as gateway:
        asked = pb.CompleteRequest(generation=ask(stop=["3 4"]))
        (answer,) = (await gateway.stub.Complete(asked)).answers
        await asyncio.sleep(0.02)
    assert (answer.final, answer.finished.stop) == ("0 1 2 ", "3 4")
    assert engine.cancelled == []


async def test_stop_strings_wait_for_the_least_output() -> None:
    engine = FakeEngine("e1", scripts=[Script(COUNTING)])
    async with running_gateway(engine) as gateway:
        asked = pb.CompleteRequest(generation=ask(stop=["3"], min_output_tokens=20))
        (answer,) = (await gateway.stub.Complete(asked)).answers
    decode = tokenizer().encoding.decode
    spared, rest = decode(COUNTING[3:20]), decode(COUNTING[20:-1])
    assert "3" in spared and answer.final == spared + rest[: rest.index("3")]
    assert answer.usage.output_tokens > 20


async def test_a_stop_token_ends_the_answer() -> None:
    tokens = COUNTING[: len(COUNTING) // 2]
    engine = FakeEngine("e1", scripts=[Script(tokens)])
    async with running_gateway(engine) as gateway:
        asked = pb.CompleteRequest(generation=ask(stop_token_ids=[tokens[-1]]))
        (answer,) = (await gateway.stub.Complete(asked)).answers
    assert answer.finished == pb.Finished(reason=pb.FINISH_REASON_STOP, stop_token_id=tokens[-1])
    assert answer.final == tokenizer().encoding.decode(tokens[3:-1])
    assert answer.usage.output_tokens == len(tokens)


async def test_logprobs_travel_with_their_text() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, logprobs=True)] * 2)
    async with running_gateway(engine) as gateway:
        request = ask(top_logprobs=2, stop=[" naïvely: 🙂!"])
        deltas = [e.delta async for e in gateway.stub.Generate(request) if e.HasField("delta")]
        (whole,) = (await gateway.stub.Complete(pb.CompleteRequest(generation=request))).answers
    assert len(deltas) > 5
    for delta in deltas:
        tokens = b"".join(each.token.token for each in delta.logprobs)
        assert tokens.decode() == delta.text
        assert all(len(each.top) == 2 for each in delta.logprobs)
    assert [each for delta in deltas for each in delta.logprobs] == list(whole.logprobs)
    body = tokenizer().encode("Adding two numbers.") + tokenizer().encode(whole.final)
    assert [each.token.token_id for each in whole.logprobs] == body


async def test_three_answers_stream_as_one() -> None:
    texts = ["one", "two two", "three three three"]
    scripts = [
        Script(said(("final", text)), step_s=0.002, cached_tokens=i) for i, text in enumerate(texts)
    ]
    engine = FakeEngine("e1", scripts=scripts)
    async with running_gateway(engine) as gateway:
        request = ask(n=3, sampling=pb.Sampling(seed=5))
        events = [event async for event in gateway.stub.Generate(request)]
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.running_requests == 0
    for index, kinds in enumerate(kinds_by_answer(events, 3)):
        assert kinds[0] == "started" and kinds[-2:] == ["usage", "finished"]
        assert set(kinds[1:-2]) == {"delta"}
        mine = [event for event in events if event.answer == index]
        assert "".join(event.delta.text for event in mine) == texts[index]
        assert mine[-2].usage.cached_tokens == mine[0].started.cached_tokens == index
        assert mine[-2].usage.output_tokens == len(said(("final", texts[index])))
    assert [s.sampling.seed for s in engine.submits] == [answer_seed(5, i) for i in range(3)]
    assert engine.submits[0].sampling.seed == 5
    assert len({submit.request_key for submit in engine.submits}) == 3


async def test_the_other_answers_begin_when_the_first_has_spoken() -> None:
    gate = asyncio.Event()
    first = Script(ANSWER, per_step=1000, admits_early=True, gate=gate)
    engine = FakeEngine("e1", scripts=[first, Script(ANSWER), Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        events = aiter(gateway.stub.Generate(ask(n=3)))
        assert (await anext(events)).WhichOneof("event") == "started"
        await asyncio.sleep(0.02)
        assert len(engine.submits) == 1
        gate.set()
        rest = [event async for event in events]
    assert Counter(event.answer for event in rest if event.HasField("finished")) == {
        0: 1,
        1: 1,
        2: 1,
    }


async def test_complete_collects_all_answers() -> None:
    texts = ["one", "two", "three"]
    engine = FakeEngine("e1", scripts=[Script(said(("final", text))) for text in texts])
    async with running_gateway(engine) as gateway:
        asked = pb.CompleteRequest(generation=ask(n=3, include_token_ids=True))
        whole = await gateway.stub.Complete(asked)
    assert [answer.final for answer in whole.answers] == texts
    assert [list(answer.token_ids) for answer in whole.answers] == [
        said(("final", text)) for text in texts
    ]
    assert whole.model == "tiny"


async def test_one_lost_answer_fails_the_call_and_frees_the_others() -> None:
    held = Script(ANSWER, hold_after=8)
    engine = FakeEngine("e1", scripts=[held, Script(ANSWER, fail_after=8, step_s=0.01), held])
    async with running_gateway(engine) as gateway:
        events = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for event in gateway.stub.Generate(ask(n=3)):
                events.append(event)
        keys = {engine.submits[0].request_key, engine.submits[2].request_key}
        await until(lambda: set(engine.cancelled) == keys)
    assert failure(caught.value).code == grpc.StatusCode.UNAVAILABLE
    assert not any(event.HasField("finished") for event in events)


async def test_a_first_answer_that_is_lost_in_silence_leaves_nothing_waiting() -> None:
    scripts = [Script(ANSWER, fail_after=0)]
    engines = [FakeEngine(f"e{i}", scripts=scripts[:]) for i in range(3)]
    async with running_gateway(*engines) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Complete(pb.CompleteRequest(generation=ask(n=3)), timeout=HANG_S)
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert failure(caught.value).code == grpc.StatusCode.UNAVAILABLE
    assert info.running_requests == 0
    assert sum(len(engine.submits) for engine in engines) == 3


async def test_each_answer_has_its_own_tries() -> None:
    lost = Script(ANSWER, fail_after=2)
    engines = [FakeEngine("e1", scripts=[lost] * 3), FakeEngine("e2", scripts=[Script(ANSWER)] * 3)]
    async with running_gateway(*engines) as gateway:
        whole = await gateway.stub.Complete(pb.CompleteRequest(generation=ask(n=3)))
    assert [answer.final for answer in whole.answers] == ["It is four, naïvely: 🙂."] * 3
    tries = {(s.request_key, s.epoch) for engine in engines for s in engine.submits}
    assert len({key for key, _ in tries}) == 3


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("ending", ["cancel", "deadline"])
async def test_a_client_that_leaves_frees_every_answer_at_once(n: int, ending: str) -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, hold_after=8)] * n)
    async with running_gateway(engine) as gateway:
        call = gateway.stub.Generate(ask(n=n), timeout=3 if ending == "deadline" else None)
        events = aiter(call)
        await anext(events)
        await until(lambda: len(engine.submits) == n)
        if ending == "cancel":
            call.cancel()
        keys = {submit.request_key for submit in engine.submits}
        await until(lambda: set(engine.cancelled) == keys)
        assert len(engine.cancelled) == n
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            async for _ in events:
                pass
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.running_requests == 0


async def test_an_answer_that_expires_in_the_engine_is_past_its_deadline() -> None:
    scripts = [Script(ANSWER, expire_after=0), Script(ANSWER, expire_after=8)]
    engine = FakeEngine("e1", scripts=scripts)
    async with running_gateway(engine) as gateway:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
            found = failure(caught.value)
            assert found.code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert found.reason == "DEADLINE_EXPIRED"
    assert len(engine.submits) == 2, "it is not tried again"
    assert engine.cancelled == []
