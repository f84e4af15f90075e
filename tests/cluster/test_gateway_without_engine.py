"""A gateway before there is any engine: it says what will be served, and waits where it may."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moeray.cluster.catalogue import ServedModel
from moeray.cluster.contracts import EngineInfo
from moeray.cluster.gateway_process import GatewayProcess, GatewaySettings
from moeray.cluster.gateway_server import ServerOptions
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router import RouterActor
from moeray.v1 import inference_pb2 as pb

from .fake_engine import TOKEN, FakeEngine, Script, running_engine
from .hang import HANG_S, until
from .running_gateway import ANSWER, RunningGateway, ask, failure, tokenizer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def served(info: EngineInfo) -> ServedModel:
    """What the gateway is told beforehand of engines like this one."""
    return ServedModel(
        name=info.model,
        engines=0,
        ranks=info.ranks,
        context_length=info.context_length,
        vocabulary_size=info.vocabulary_size,
        max_sequence_tokens=info.max_sequence_tokens,
        default_max_output_tokens=info.default_max_output_tokens,
        block_tokens=info.block_tokens,
    )


@asynccontextmanager
async def gateway_for(engine: FakeEngine, *, wakes_engines: bool) -> AsyncIterator[RunningGateway]:
    """The engine runs but is not registered."""
    async with running_engine(engine):
        settings = GatewaySettings(
            server=ServerOptions(host="127.0.0.1", port=0),
            cluster_token=TOKEN,
            no_engine_wait_s=5.0,
            drain_grace_s=0.2,
            model=served(engine.info()),
            wakes_engines=wakes_engines,
        )
        router = RouterActor(PlacementLimits(engine_timeout_s=3600.0))
        process = GatewayProcess(settings, router, tokenizer(), gateway_id="g")
        target = f"127.0.0.1:{await process.start()}"
        try:
            async with grpc.aio.insecure_channel(target) as channel:
                yield RunningGateway(process, router, channel, target)
        finally:
            await process.drain()


async def health(gateway: RunningGateway) -> int:
    stub = health_pb2_grpc.HealthStub(gateway.channel)
    status: int = (await stub.Check(health_pb2.HealthCheckRequest())).status
    return status


async def models(gateway: RunningGateway) -> list[pb.Model]:
    return list((await gateway.stub.ListModels(pb.ListModelsRequest())).models)


async def until_engines(gateway: RunningGateway, count: int) -> pb.Model:
    """Wait until the gateway knows so many engines; returns the only model."""
    async with asyncio.timeout(HANG_S):
        while True:
            (model,) = await models(gateway)
            if model.engines == count:
                return model
            await asyncio.sleep(0.005)


async def until_health(gateway: RunningGateway, status: int) -> None:
    async with asyncio.timeout(HANG_S):
        while await health(gateway) != status:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("wakes_engines", [True, False])
async def test_it_serves_only_where_a_request_brings_an_engine(wakes_engines: bool) -> None:
    engine = FakeEngine("e1")
    async with gateway_for(engine, wakes_engines=wakes_engines) as gateway:
        assert await health(gateway) == (SERVING if wakes_engines else NOT_SERVING)
        await gateway.router.register_engine(engine.info())
        await until_engines(gateway, 1)
        await until_health(gateway, SERVING)
        await gateway.router.deregister_engine("e1")
        await until_engines(gateway, 0)
        await until_health(gateway, SERVING if wakes_engines else NOT_SERVING)


async def test_the_configured_model_is_listed_as_engines_will_register_it() -> None:
    engine = FakeEngine("e1")
    async with gateway_for(engine, wakes_engines=True) as gateway:
        (before,) = await models(gateway)
        await gateway.router.register_engine(engine.info())
        after = await until_engines(gateway, 1)
    assert (before.engines, after.engines) == (0, 1)
    before.engines = 1
    assert before == after


async def test_a_request_waits_and_says_that_an_engine_is_wanted() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with gateway_for(engine, wakes_engines=True) as gateway:
        assert not gateway.process.lacks_engine
        call = gateway.stub.Complete(pb.CompleteRequest(generation=ask()), timeout=HANG_S)
        await until(lambda: gateway.process.lacks_engine)
        await gateway.router.register_engine(engine.info())
        assert (await call).answers[0].final
        assert not gateway.process.lacks_engine


async def test_nobody_is_waited_for_when_the_client_is_gone() -> None:
    async with gateway_for(FakeEngine("e1"), wakes_engines=True) as gateway:
        call = gateway.stub.Complete(pb.CompleteRequest(generation=ask()), timeout=HANG_S)
        await until(lambda: gateway.process.lacks_engine)
        call.cancel()
        await until(lambda: not gateway.process.lacks_engine)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "another"}, grpc.StatusCode.NOT_FOUND),
        ({"max_output_tokens": 10_000_000}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_served_wakes_no_engine(
    fields: dict[str, object], code: grpc.StatusCode
) -> None:
    async with gateway_for(FakeEngine("e1"), wakes_engines=True) as gateway:
        generation = ask(**fields)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(HANG_S):
                await gateway.stub.Complete(pb.CompleteRequest(generation=generation))
        assert failure(caught.value).code == code
        assert not gateway.process.lacks_engine
