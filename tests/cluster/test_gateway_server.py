"""The gateway's server: health, reflection, models, an engine that comes late, and the drain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moeray.cluster.gateway_process import GatewayProcess, GatewaySettings
from moeray.cluster.gateway_server import PortNotBound, ServerOptions
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router import RouterActor
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc

from .fake_engine import TOKEN, FakeEngine, Script, running_engine
from .hang import HANG_S, until
from .running_gateway import ANSWER, RunningGateway, ask, failure, running_gateway, tokenizer

SERVICE = "moeray.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(gateway: RunningGateway, service: str) -> int:
    request = health_pb2.HealthCheckRequest(service=service)
    return int((await health_pb2_grpc.HealthStub(gateway.channel).Check(request)).status)


async def until_health(gateway: RunningGateway, status: int) -> None:
    async with asyncio.timeout(HANG_S):
        for service in ("", SERVICE):
            while await health(gateway, service) != status:
                await asyncio.sleep(0.01)


async def reflected(gateway: RunningGateway) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for response in stub.ServerReflectionInfo(iter([request])):
        return {service.name for service in response.list_services_response.service}
    return set()


async def test_health_follows_the_engines() -> None:
    engine = FakeEngine("e1")
    async with running_engine(engine), running_gateway() as gateway:
        assert await health(gateway, "") == await health(gateway, SERVICE) == NOT_SERVING
        await gateway.router.register_engine(engine.info())
        await until_health(gateway, SERVING)
        await gateway.router.deregister_engine("e1")
        await until_health(gateway, NOT_SERVING)


async def test_reflection_lists_the_services() -> None:
    async with running_gateway() as gateway:
        assert {SERVICE, "grpc.health.v1.Health"} <= await reflected(gateway)


async def test_reflection_can_be_switched_off() -> None:
    async with running_gateway(reflection=False) as gateway:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(gateway)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_models_are_those_of_the_engines() -> None:
    engines = [FakeEngine("e1"), FakeEngine("e2"), FakeEngine("e3", model="other")]
    async with running_gateway(*engines) as gateway:
        models = (await gateway.stub.ListModels(pb.ListModelsRequest())).models
        assert [(m.name, m.engines) for m in models] == [("other", 1), ("tiny", 2)]
        named = await gateway.stub.GetModel(pb.GetModelRequest(name="tiny"))
        assert named.model == models[1] and named.model.context_length == 131072
        info = await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert (info.gateway_id, info.engines, info.running_requests) == ("gateway-1", 3, 0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        assert failure(caught.value).violations == ["generation.model"]


async def test_tokens_are_counted_as_they_would_be_sent() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_gateway(engine) as gateway:
        counted = await gateway.stub.CountTokens(
            pb.CountTokensRequest(generation=ask("Hello"), include_prompt=True)
        )
        await gateway.stub.Complete(pb.CompleteRequest(generation=ask("Hello")))
    sent = list(engine.submits[0].prompt_token_ids)
    assert counted.prompt_tokens == len(sent) and counted.context_length == 131072
    assert tokenizer().encode_with_specials(counted.prompt) == sent
    assert counted.prompt.endswith("<|start|>user<|message|>Hello<|end|><|start|>assistant")


async def test_without_an_engine_calls_are_unavailable() -> None:
    async with running_gateway(no_engine_wait_s=0.1) as gateway:
        calls = [
            gateway.stub.Complete(pb.CompleteRequest(generation=ask())),
            gateway.stub.CountTokens(pb.CountTokensRequest(generation=ask())),
            gateway.stub.GetModel(pb.GetModelRequest(name="tiny")),
        ]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            found = failure(caught.value)
            assert found.code == grpc.StatusCode.UNAVAILABLE and found.retry_delay_s


async def test_a_request_waits_for_the_first_engine() -> None:
    engine = FakeEngine("e1", scripts=[Script(ANSWER)])
    async with running_engine(engine), running_gateway() as gateway:
        call = gateway.stub.Complete(pb.CompleteRequest(generation=ask()), timeout=HANG_S)
        await asyncio.sleep(0.1)
        await gateway.router.register_engine(engine.info())
        assert (await call).answers[0].final == "It is four, naïvely: 🙂."


async def test_a_request_whose_engine_died_waits_for_its_replacement() -> None:
    dying = FakeEngine("e1", scripts=[Script([], refusal="draining")])
    replacement = FakeEngine("e2", scripts=[Script(ANSWER)])
    async with running_engine(replacement), running_gateway(dying) as gateway:
        call = gateway.stub.Complete(pb.CompleteRequest(generation=ask()), timeout=HANG_S)
        await asyncio.sleep(0.1)
        await gateway.router.register_engine(replacement.info())
        assert (await call).answers[0].final == "It is four, naïvely: 🙂."


@asynccontextmanager
async def drainable(engine: FakeEngine) -> AsyncIterator[RunningGateway]:
    """A gateway that the test drains itself."""
    async with running_engine(engine):
        router = RouterActor(PlacementLimits(engine_timeout_s=3600.0))
        settings = GatewaySettings(
            server=ServerOptions(host="127.0.0.1", port=0), cluster_token=TOKEN, drain_grace_s=600.0
        )
        process = GatewayProcess(settings, router, tokenizer(), gateway_id="g")
        target = f"127.0.0.1:{await process.start()}"
        async with grpc.aio.insecure_channel(target) as channel:
            gateway = RunningGateway(process, router, channel, target)
            await gateway.register(engine.info())
            process.check()
            yield gateway


async def test_a_drain_lets_running_answers_finish_and_listens_no_more() -> None:
    gate = asyncio.Event()
    engine = FakeEngine("e1", scripts=[Script(ANSWER, gate=gate)])
    async with drainable(engine) as gateway:
        running = gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        await until(lambda: bool(engine.submits))
        draining = asyncio.create_task(gateway.process.drain())
        async with asyncio.timeout(HANG_S):
            while await can_connect(gateway.target):
                await asyncio.sleep(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await gateway.stub.ListModels(pb.ListModelsRequest())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not draining.done()
        gate.set()
        assert (await running).answers[0].final == "It is four, naïvely: 🙂."
        await asyncio.wait_for(draining, HANG_S)


async def test_health_says_that_a_gateway_drains_but_does_not_hold_it_up() -> None:
    async with drainable(FakeEngine("e1")) as gateway:
        health_stub = health_pb2_grpc.HealthStub(gateway.channel)
        watch = health_stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await watch.read()).status == SERVING
        draining = asyncio.create_task(gateway.process.drain())
        assert (await watch.read()).status == NOT_SERVING
        # Its grace is 10 min, and the watch has no end of its own.
        await asyncio.wait_for(draining, HANG_S)


async def test_a_drain_that_ends_early_cancels_no_stop_of_grpcs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that was cancelled just when its time ran out failed every later one (grpc 1.85)."""
    ends: list[BaseException | None] = []
    servers = type(grpc.aio.server())
    stop = servers.stop

    async def watched_stop(server: grpc.aio.Server, grace: float | None) -> None:
        try:
            await stop(server, grace)
        except BaseException as error:
            ends.append(error)
            raise
        ends.append(None)

    monkeypatch.setattr(servers, "stop", watched_stop)
    gate = asyncio.Event()
    engine = FakeEngine("e1", scripts=[Script(ANSWER, gate=gate)])
    async with drainable(engine) as gateway:
        watch = health_pb2_grpc.HealthStub(gateway.channel).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        running = gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        await until(lambda: bool(engine.submits))
        draining = asyncio.create_task(gateway.process.drain())
        assert (await watch.read()).status == NOT_SERVING
        gate.set()
        await asyncio.wait_for(draining, HANG_S)
        assert (await running).answers[0].final == "It is four, naïvely: 🙂."
    assert ends and set(ends) == {None}


async def test_another_gateway_on_the_port_takes_over_at_once() -> None:
    gate = asyncio.Event()
    engine = FakeEngine("e1", scripts=[Script(ANSWER, gate=gate)])
    async with drainable(engine) as gateway:
        options = ServerOptions(host="127.0.0.1", port=int(gateway.target.rpartition(":")[2]))
        settings = GatewaySettings(server=options, cluster_token=TOKEN, drain_grace_s=0.0)
        second = GatewayProcess(settings, gateway.router, tokenizer(), gateway_id="second")
        await second.start()
        running = gateway.stub.Complete(pb.CompleteRequest(generation=ask()))
        await until(lambda: bool(engine.submits))
        draining = asyncio.create_task(gateway.process.drain())
        await asyncio.sleep(0.1)  # the drain runs in this loop
        found = {await gateway_id(gateway.target) for _ in range(20)}
        # Also from the client that was connected to the first one.
        found.add((await gateway.stub.GetServerInfo(pb.GetServerInfoRequest())).gateway_id)
        assert found == {"second"}
        gate.set()
        assert (await running).answers[0].final
        await draining
        await second.drain()


async def can_connect(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:
        return False
    writer.close()
    return True


async def gateway_id(target: str) -> str:
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return str((await stub.GetServerInfo(pb.GetServerInfoRequest())).gateway_id)


async def test_gateways_of_one_cluster_share_their_port() -> None:
    async with running_gateway() as gateway:
        port = int(gateway.target.rpartition(":")[2])
        options = ServerOptions(host="127.0.0.1", port=port)
        settings = GatewaySettings(server=options, cluster_token=TOKEN, drain_grace_s=0.0)
        second = GatewayProcess(settings, gateway.router, tokenizer(), gateway_id="gateway-2")
        assert await second.start() == port
        await second.drain()


async def test_an_address_that_is_not_ours_is_refused() -> None:
    settings = GatewaySettings(
        server=ServerOptions(host="203.0.113.1", port=0), cluster_token=TOKEN
    )
    router = RouterActor(PlacementLimits())
    process = GatewayProcess(settings, router, tokenizer(), gateway_id="g")
    with pytest.raises(PortNotBound, match=r"203\.0\.113\.1"):
        await process.start()
