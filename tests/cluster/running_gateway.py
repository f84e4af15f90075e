"""A whole gateway on loopback: real gRPC on both sides, the router's class, fake engines."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import grpc
import openai_harmony as oh
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from moeray.cluster.contracts import EngineInfo
from moeray.cluster.gateway_process import GatewayProcess, GatewaySettings
from moeray.cluster.gateway_server import ServerOptions
from moeray.cluster.metrics_server import MetricsOptions
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router import RouterActor
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from moeray.vocabulary.harmony_tokens import CALL, RETURN

from .fake_engine import TOKEN, FakeEngine, running_engine
from .hang import HANG_S


@cache
def tokenizer() -> HarmonyTokenizer:
    return HarmonyTokenizer.load()


def said(*messages: tuple[str, str], tool: tuple[str, str] | None = None) -> list[int]:
    """What a model says, laid out by openai-harmony: (channel, text) and a call (name, JSON)."""
    rendered: list[int] = []
    for channel, text in messages:
        message = oh.Message.from_role_and_content(oh.Role.ASSISTANT, text).with_channel(channel)
        rendered += tokenizer().harmony.render(message)
    if tool is not None:
        message = oh.Message.from_role_and_content(oh.Role.ASSISTANT, tool[1])
        message = message.with_channel("commentary").with_recipient(f"functions.{tool[0]}")
        rendered += tokenizer().harmony.render(message.with_content_type("<|constrain|>json"))
    opening = tokenizer().encode_with_specials("<|start|>assistant")
    assert rendered[: len(opening)] == opening
    return [*rendered[len(opening) : -1], RETURN if tool is None else CALL]


ANSWER = said(("analysis", "Adding two numbers."), ("final", "It is four, naïvely: 🙂."))


@dataclass(slots=True)
class RunningGateway:
    process: GatewayProcess
    router: RouterActor
    channel: grpc.aio.Channel
    target: str
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def stub(self) -> "inference_pb2_grpc.InferenceServiceAsyncStub":
        return inference_pb2_grpc.InferenceServiceStub(self.channel)

    async def register(self, info: EngineInfo) -> None:
        """Register an engine and wait until the gateway knows it."""
        await self.router.register_engine(info)
        async with asyncio.timeout(HANG_S):
            while True:
                models = await self.stub.ListModels(pb.ListModelsRequest())
                if any(model.name == info.model for model in models.models):
                    return
                await asyncio.sleep(0.01)


@asynccontextmanager
async def running_gateway(
    *engines: FakeEngine,
    places: int = 4,
    limits: PlacementLimits | None = None,
    reflection: bool = True,
    no_engine_wait_s: float = 5.0,
    max_sequence_tokens: int = 4096,
    metrics: MetricsOptions | None = None,
    flush_s: float = 0.0,
) -> AsyncIterator[RunningGateway]:
    """A gateway with these engines registered. Their load is never reported, nor asked for."""
    router = RouterActor(limits or PlacementLimits(engine_timeout_s=3600.0))
    settings = GatewaySettings(
        server=ServerOptions(host="127.0.0.1", port=0, reflection=reflection),
        cluster_token=TOKEN,
        no_engine_wait_s=no_engine_wait_s,
        drain_grace_s=0,
        metrics=metrics,
        flush_s=flush_s,
    )
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(running_engine(engine))
        process = GatewayProcess(settings, router, tokenizer(), gateway_id="gateway-1")
        target = f"127.0.0.1:{await process.start()}"
        stack.push_async_callback(process.drain)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        gateway = RunningGateway(process, router, channel, target, list(engines))
        for engine in engines:
            await gateway.register(
                engine.info(places=places, max_sequence_tokens=max_sequence_tokens)
            )
        yield gateway


def ask(text: str = "What is 2 + 2?", **fields: object) -> pb.GenerateRequest:
    message = pb.Message(role=pb.ROLE_USER, content=text)
    return pb.GenerateRequest(messages=[message], **fields)  # type: ignore[arg-type]


def text_of(events: list[pb.GenerateResponse], channel: pb.Channel.ValueType) -> str:
    return "".join(e.delta.text for e in events if e.delta.channel == channel)


def fields_of(events: list[pb.GenerateResponse]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call with its google.rpc details; ``violations`` are field paths."""

    code: grpc.StatusCode
    message: str
    reason: str
    violations: list[str]
    retry_delay_s: float | None


def failure(error: grpc.aio.AioRpcError) -> Failure:
    """Reads the details of an error that must carry them."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no google.rpc details: {error.code()} {error.details()}"
    info = _detail(status, error_details_pb2.ErrorInfo())
    assert info is not None and info.domain == "moeray"
    bad = _detail(status, error_details_pb2.BadRequest())
    retry = _detail(status, error_details_pb2.RetryInfo())
    return Failure(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        violations=[v.field for v in bad.field_violations] if bad else [],
        retry_delay_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry else None,
    )


D = TypeVar("D", bound=Message)


def _detail(status: status_pb2.Status, empty: D) -> D | None:
    for packed in status.details:
        if packed.Unpack(empty):
            return empty
    return None
