"""The boundary around a service that misbehaves: ids, errors, log lines, and what stays unsaid."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from moeray.cluster.errors import QueueFull
from moeray.cluster.interceptors import Call, OnEnd, RpcBoundary
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc

from .hang import until
from .running_gateway import failure

SECRET = "what the user asked"


class Misbehaving:
    """Does what the request's conversation id says, and keeps the calls it got."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.closed = 0

    async def Generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncIterator[pb.GenerateResponse]:
        self.calls.append(call)
        call.add("tokens", 1)
        call.add("tokens", 1)
        try:
            while True:
                yield pb.GenerateResponse(delta=pb.Delta(text=request.model))
                if request.conversation_id == "raise":
                    raise ValueError(request.model)
                if request.conversation_id == "refuse":
                    raise QueueFull("full", 1.5)
        finally:
            self.closed += 1

    async def Complete(self, request: pb.CompleteRequest, call: Call) -> pb.CompleteResponse:
        self.calls.append(call)
        call.add("tokens", 1)
        call.add("tokens", 1)
        if request.generation.conversation_id == "raise":
            raise ValueError(request.generation.model)
        return pb.CompleteResponse(request_id=call.request_id)

    def __getattr__(self, name: str) -> Any:
        return self.Complete


@asynccontextmanager
async def serving(
    on_end: OnEnd | None = None,
) -> AsyncIterator[tuple[Misbehaving, RpcBoundary, "inference_pb2_grpc.InferenceServiceAsyncStub"]]:
    boundary = RpcBoundary(pb.DESCRIPTOR.services_by_name["InferenceService"], on_end)
    server = grpc.aio.server(interceptors=(boundary,))
    service = Misbehaving()
    servicer = cast(inference_pb2_grpc.InferenceServiceServicer, service)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        stub.target = f"127.0.0.1:{port}"
        yield service, boundary, stub
    await server.stop(None)


def generation(conversation_id: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=SECRET, conversation_id=conversation_id)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2:3", True), ("x" * 65, False), ("spaces no", False), ("", False), (None, False)],
)
async def test_a_sane_request_id_is_kept_and_another_minted(given: str | None, kept: bool) -> None:
    metadata = () if given is None else (("x-request-id", given),)
    async with serving() as (_, _boundary, stub):
        ids = {(await stub.Complete(pb.CompleteRequest(), metadata=metadata)).request_id
               for _ in range(2)}  # fmt: skip
    assert (ids == {given}) is kept
    assert all(ids) and len(ids) == (1 if kept else 2)


async def test_the_request_id_goes_back_as_metadata() -> None:
    metadata = (("x-request-id", "mine"),)
    async with serving() as (_, _boundary, stub):
        unary = stub.Complete(pb.CompleteRequest(), metadata=metadata)
        streaming = stub.Generate(generation("endless"), metadata=metadata)
        await anext(aiter(streaming))
        for call in (unary, streaming):
            assert dict(await call.initial_metadata())["x-request-id"] == "mine"
        assert dict(await unary.trailing_metadata())["x-request-id"] == "mine"
        streaming.cancel()


async def test_a_refusal_names_the_request_too_but_can_be_retried() -> None:
    async with serving() as (_, boundary, stub):
        boundary.draining = True
        call = stub.Complete(pb.CompleteRequest(), metadata=(("x-request-id", "mine"),))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert dict(await call.initial_metadata()) == {}
    assert dict(caught.value.trailing_metadata())["x-request-id"] == "mine"
    assert failure(caught.value).reason == "UNAVAILABLE"


async def test_a_client_with_a_retry_policy_tries_a_refused_call_again() -> None:
    policy = {
        "maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s",
        "backoffMultiplier": 1, "retryableStatusCodes": ["UNAVAILABLE"],
    }  # fmt: skip
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    ends: list[tuple[str, str]] = []
    async with serving(lambda *end: ends.append(end)) as (_, boundary, stub):
        boundary.draining = True
        target, options = stub.target, (("grpc.service_config", config),)
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            retrying = inference_pb2_grpc.InferenceServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                await retrying.Complete(pb.CompleteRequest())
    assert len(ends) == 3


async def test_the_deadline_is_passed_on() -> None:
    async with serving() as (service, _, stub):
        await stub.Complete(pb.CompleteRequest())
        await stub.Complete(pb.CompleteRequest(), timeout=60)
    without, with_deadline = service.calls
    assert without.deadline is None and without.time_left_s(7) == 7
    # grpc rounds deadlines up on the wire.
    assert 50 < with_deadline.time_left_s(7) <= 61


@pytest.mark.parametrize("streaming", [True, False])
async def test_what_is_unexpected_is_internal_and_says_nothing(streaming: bool) -> None:
    with capture_logs() as logs:
        async with serving() as (service, boundary, stub):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                if streaming:
                    async for _ in stub.Generate(generation("raise")):
                        pass
                else:
                    await stub.Complete(pb.CompleteRequest(generation=generation("raise")))
    found = failure(caught.value)
    assert found.code == grpc.StatusCode.INTERNAL and SECRET not in found.message
    assert service.calls[0].request_id in found.message
    assert boundary.running == 0
    assert SECRET not in str(logs)
    (error,) = [line for line in logs if line["event"] == "unexpected_error"]
    assert error["error"] == "ValueError" and "test_interceptors.py" in error["stack"]


async def test_each_call_is_one_log_line() -> None:
    ends: list[tuple[str, str]] = []
    with capture_logs([merge_contextvars]) as logs:
        async with serving(lambda *end: ends.append(end)) as (service, _, stub):
            await stub.Complete(pb.CompleteRequest())
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stub.Generate(generation("refuse")):
                    pass
            call = stub.Generate(generation("endless"))
            await anext(aiter(call))
            call.cancel()
            await until(lambda: service.closed == 2)
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stub.Generate(generation("endless"), timeout=0.1):
                    pass
            await until(lambda: service.closed == 3)
    lines = [line for line in logs if line["event"] == "rpc"]
    assert [line["code"] for line in lines] == [
        "OK",
        "RESOURCE_EXHAUSTED",
        "CANCELLED",
        "DEADLINE_EXCEEDED",
    ]
    assert [line["request_id"] for line in lines] == [call.request_id for call in service.calls]
    assert lines[1]["method"] == "/moeray.v1.InferenceService/Generate"
    assert all(line["duration_ms"] >= 0 for line in lines)
    assert [line["tokens"] for line in lines] == [2, 2, 2, 2]
    assert ends == [(line["method"], line["code"]) for line in lines]


async def test_a_cancelled_stream_is_closed_at_once() -> None:
    async with serving() as (service, boundary, stub):
        call = stub.Generate(generation("endless"))
        await anext(aiter(call))
        call.cancel()
        await until(lambda: service.closed == 1 and boundary.running == 0)


async def test_while_draining_calls_are_refused_with_a_delay() -> None:
    async with serving() as (service, boundary, stub):
        boundary.draining = True
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Complete(pb.CompleteRequest())
    found = failure(caught.value)
    assert found.code == grpc.StatusCode.UNAVAILABLE and found.retry_delay_s == 1.0
    assert service.calls == []


async def test_other_services_pass_through() -> None:
    boundary = RpcBoundary(pb.DESCRIPTOR.services_by_name["InferenceService"])
    handler = object()

    class Details:
        method = "/grpc.health.v1.Health/Check"

    async def continuation(_: object) -> object:
        return handler

    assert await boundary.intercept_service(continuation, cast(Any, Details())) is handler
