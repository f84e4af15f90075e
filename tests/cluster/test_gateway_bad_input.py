"""Bad input of every kind through a whole gateway: a typed error, and nobody else disturbed."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from moeray.v1 import inference_pb2 as pb

from .fake_engine import FakeEngine, Script
from .running_gateway import ANSWER, RunningGateway, ask, failure, running_gateway

GENERATE = "/moeray.v1.InferenceService/Generate"
COMPLETE = "/moeray.v1.InferenceService/Complete"

INVALID = [
    ("messages", pb.GenerateRequest()),
    ("messages[0].role", pb.GenerateRequest(messages=[pb.Message(content="x")])),
    ("reasoning_effort", ask(reasoning_effort=77)),
    ("sampling.temperature", ask(sampling=pb.Sampling(temperature=2.5))),
    ("sampling.temperature", ask(sampling=pb.Sampling(temperature=float("nan")))),
    ("sampling.top_p", ask(sampling=pb.Sampling(top_p=0.0))),
    ("max_output_tokens", ask(max_output_tokens=3)),
    ("max_output_tokens", ask(max_output_tokens=100_000)),
    ("priority", ask(priority=1000)),
    ("current_date", ask(current_date="yesterday")),
    ("conversation_id", ask(conversation_id="c" * 200)),
    ("tools[0].parameters_json_schema", ask(tools=[pb.Tool(name="f", parameters_json_schema="[")])),
    ("tools[0].name", ask(tools=[pb.Tool(name="no spaces")])),
    ("stop[1]", ask(stop=["x", ""])),
    ("stop_token_ids[0]", ask(stop_token_ids=[200_002])),
    ("top_logprobs", ask(top_logprobs=21)),
    ("cache_salt", ask(cache_salt="s" * 129)),
    ("n", ask(n=17)),
    ("min_output_tokens", ask(min_output_tokens=20, max_output_tokens=19)),
    ("min_output_tokens", ask(min_output_tokens=257)),
    ("sampling.logit_bias[200002]", ask(sampling=pb.Sampling(logit_bias={200_002: 1.0}))),
    ("response_format", ask(response_format=pb.ResponseFormat())),
    ("messages", ask("long " * 5000)),
]


@pytest.fixture
async def gateway() -> AsyncIterator[RunningGateway]:
    engine = FakeEngine("e1", scripts=[Script(ANSWER, gate=asyncio.Event())])
    async with running_gateway(engine) as running:
        yield running


async def failed_call(
    gateway: RunningGateway, data: bytes, method: str = GENERATE
) -> grpc.aio.AioRpcError:
    """Send raw bytes while another answer streams, and check that this one is whole."""
    gate = gateway.engines[0].scripts[0].gate
    assert gate is not None
    bystander = asyncio.create_task(answer_of(gateway))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in gateway.channel.unary_stream(method)(data):
            pass
    assert not bystander.done()
    gate.set()
    assert await bystander == "It is four, naïvely: 🙂."
    info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
    assert info.running_requests == 0
    assert len(gateway.engines[0].submits) == 1, "bad input reached the engine"
    return caught.value


async def answer_of(gateway: RunningGateway) -> str:
    call = gateway.stub.Generate(ask())
    return "".join([e.delta.text async for e in call if e.delta.channel == pb.CHANNEL_FINAL])


@pytest.mark.parametrize(
    ("path", "request_"), INVALID, ids=[f"{i}-{case[0]}" for i, case in enumerate(INVALID)]
)
async def test_invalid_requests_name_their_field(
    gateway: RunningGateway, path: str, request_: pb.GenerateRequest
) -> None:
    found = failure(await failed_call(gateway, request_.SerializeToString()))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert found.reason == "INVALID_REQUEST" and found.retry_delay_s is None
    assert path in found.violations


async def test_a_field_of_a_message_inside_is_named_from_outside(gateway: RunningGateway) -> None:
    request = pb.CompleteRequest(generation=ask(priority=1000))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.Complete(request)
    assert failure(caught.value).violations == ["generation.priority"]


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"\xff\xff\xff\xff garbage", "GenerateRequest"),
        (ask("x" * 50).SerializeToString()[:-3], "messages[0]"),
        (b"\x0a\x03\xff\xfe\xfd", "model"),
        (b"\x12\x06\x08\x03\x12\x02\xc3\x28", "messages[0].content"),
    ],
    ids=["garbage", "truncated", "model is not UTF-8", "content is not UTF-8"],
)
async def test_malformed_bytes_are_invalid_and_named(
    gateway: RunningGateway, data: bytes, path: str
) -> None:
    found = failure(await failed_call(gateway, data))
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert len(found.violations) == 1 and found.violations[0].startswith(path)


async def test_malformed_bytes_in_a_unary_call(gateway: RunningGateway) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.channel.unary_unary(COMPLETE)(b"\x0a\x05\x12\x03\x08\x03\x12")
    found = failure(caught.value)
    assert found.code == grpc.StatusCode.INVALID_ARGUMENT
    assert found.violations[0].startswith("generation")


async def test_ten_mebibytes_are_too_much(gateway: RunningGateway) -> None:
    error = await failed_call(gateway, ask("x" * (10 << 20)).SerializeToString())
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_model_is_not_found(gateway: RunningGateway) -> None:
    found = failure(await failed_call(gateway, ask(model="gpt-5").SerializeToString()))
    assert found.code == grpc.StatusCode.NOT_FOUND and found.reason == "MODEL_NOT_FOUND"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.GetModel(pb.GetModelRequest(name="gpt-5"))
    assert failure(caught.value).code == grpc.StatusCode.NOT_FOUND


async def test_a_method_that_does_not_exist_is_unimplemented(gateway: RunningGateway) -> None:
    error = await failed_call(gateway, b"", "/moeray.v1.InferenceService/Destroy")
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
