"""What a gateway counts, scraped over HTTP while fake engines answer."""

import asyncio
from contextlib import AbstractAsyncContextManager

import grpc
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from moeray.cluster.gateway_metrics import GatewayMetrics
from moeray.cluster.generation import ReasoningEffort
from moeray.cluster.interceptors import Call
from moeray.cluster.metrics_server import MetricsOptions
from moeray.v1 import inference_pb2 as pb

from .fake_engine import FakeEngine, Script
from .free_port import free_port
from .hang import HANG_S
from .running_gateway import ANSWER, RunningGateway, ask, running_gateway
from .scraping import Families, fetch, scrape, value

HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
)
COUNTERS = (
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "request_retries",
    "request_success",
    "reasoning_tokens",
    "harmony_recovered",
    "engine_link_breaks",
    "rpcs",
)


def measured(*engines: FakeEngine) -> AbstractAsyncContextManager[RunningGateway]:
    return running_gateway(*engines, metrics=MetricsOptions(host="127.0.0.1", port=free_port()))


async def metrics(gateway: RunningGateway) -> Families:
    address = gateway.process.metrics_address("127.0.0.1")
    assert address is not None
    return await asyncio.to_thread(scrape, address)


async def test_every_metric_is_there_before_anything_happens() -> None:
    async with measured() as gateway:
        found = await metrics(gateway)
    for name in HISTOGRAMS:
        assert found[f"moeray:{name}"].type == "histogram"
    for name in COUNTERS:
        assert found[f"moeray:{name}"].type == "counter"
    assert found["moeray:gateway_requests_running"].type == "gauge"


async def test_an_answer_moves_them() -> None:
    gate = asyncio.Event()
    script = Script(ANSWER, per_step=2, cached_tokens=16, gate=gate)
    async with measured(FakeEngine("e1", scripts=[script])) as gateway:
        asked = ask(reasoning_effort=pb.REASONING_EFFORT_HIGH)
        call = asyncio.ensure_future(gateway.stub.Complete(pb.CompleteRequest(generation=asked)))
        try:
            async with asyncio.timeout(HANG_S):
                while value(await metrics(gateway), "moeray:gateway_requests_running") != 1:
                    await asyncio.sleep(0.01)
        finally:
            gate.set()
        usage = (await call).answers[0].usage
        found = await metrics(gateway)
    assert usage.output_tokens == len(ANSWER) and usage.reasoning_tokens > 0
    model = {"model_name": "tiny"}
    expected = {
        "prompt_tokens_total": usage.prompt_tokens,
        "prompt_tokens_cached_total": 16,
        "generation_tokens_total": usage.output_tokens,
        "request_retries_total": 0,
        "time_to_first_token_seconds_count": 1,
        "e2e_request_latency_seconds_count": 1,
        "request_queue_time_seconds_count": 1,
        "request_prompt_tokens_sum": usage.prompt_tokens,
        "request_generation_tokens_sum": usage.output_tokens,
    }
    for name, wanted in expected.items():
        assert value(found, f"moeray:{name}", **model) == wanted, name
    assert value(found, "moeray:reasoning_tokens_total", effort="high") == usage.reasoning_tokens
    assert value(found, "moeray:request_success_total", finished_reason="stop", **model) == 1
    # Of the tokens after those of the first event, all but those that stand for no text.
    gaps = value(found, "moeray:inter_token_latency_seconds_count", **model)
    assert 0 < gaps < usage.output_tokens
    assert value(found, "moeray:gateway_requests_running") == 0
    assert value(found, "moeray:rpcs_total", method="Complete", code="OK") == 1


async def test_a_retry_and_a_broken_link_are_counted() -> None:
    breaking = FakeEngine("e1", scripts=[Script(ANSWER, end_stream_after=0)])
    other = FakeEngine("e2", scripts=[Script(ANSWER)])
    async with measured(breaking, other) as gateway:
        with capture_logs([merge_contextvars]) as logs:
            call = gateway.stub.Complete(
                pb.CompleteRequest(generation=ask()), metadata=(("x-request-id", "mine"),)
            )
            await call
        found = await metrics(gateway)
    assert value(found, "moeray:request_retries_total") == 1
    assert value(found, "moeray:engine_link_breaks_total") == 1
    assert value(found, "moeray:request_queue_time_seconds_count") == 2
    (failed,) = [line for line in logs if line["event"] == "try_failed"]
    assert (failed["request_id"], failed["engine_id"]) == ("mine", "e1")
    (ended,) = [line for line in logs if line["event"] == "rpc" and "effort" in line]
    assert ended["request_id"] == "mine" and ended["engine_id"] == "e2" and ended["retries"] == 1
    assert ended["output_tokens"] == len(ANSWER) and ended["finish_reason"] == "stop"
    assert ended["prompt_tokens"] > 0 and ended["cached_tokens"] == 0
    assert other.submits[0].request_id == breaking.submits[0].request_id == "mine"
    assert "2 + 2" not in str(logs) and "four" not in str(logs)


async def test_repairs_are_counted_by_kind() -> None:
    # Ends in the middle of a header.
    engine = FakeEngine("e1", scripts=[Script(ANSWER[:1])])
    async with measured(engine) as gateway:
        await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        found = await metrics(gateway)
    recovered = found["moeray:harmony_recovered"].samples
    assert sum(sample.value for sample in recovered) == 1 and recovered[0].labels["kind"]


async def test_refusals_are_calls_with_a_code() -> None:
    async with measured(FakeEngine("e1")) as gateway:
        with pytest.raises(grpc.aio.AioRpcError):
            await gateway.stub.Complete(pb.CompleteRequest())
        found = await metrics(gateway)
    assert value(found, "moeray:rpcs_total", method="Complete", code="INVALID_ARGUMENT") == 1


async def test_healthz_follows_the_engines() -> None:
    async with measured() as gateway:
        address = gateway.process.metrics_address("127.0.0.1")
        assert address is not None
        assert await asyncio.to_thread(fetch, address, "/healthz") == (
            503,
            "no engine is registered\n",
        )
        engine = FakeEngine("e1", port=1)
        await gateway.register(engine.info())
        assert await asyncio.to_thread(fetch, address, "/healthz") == (200, "ok\n")


def test_tokens_of_one_event_share_its_time() -> None:
    counted = GatewayMetrics(running=lambda: 0, link_breaks=lambda: 0)
    observer = counted.observe_answer(Call("r", None), "m", ReasoningEffort.LOW)
    observer.placed("e1")
    for tokens in (3, 4, 4, 7):
        observer.progress(tokens)
    observer.finished(
        pb.Usage(prompt_tokens=9, output_tokens=8), pb.FINISH_REASON_LENGTH, {"stray": 2}
    )
    found = {family.name: family for family in counted.collect()}
    assert value(found, "moeray:inter_token_latency_seconds_count") == 4
    assert value(found, "moeray:generation_tokens_total") == 8
    assert value(found, "moeray:harmony_recovered_total", kind="stray") == 2
    assert value(found, "moeray:request_success_total", finished_reason="length") == 1
