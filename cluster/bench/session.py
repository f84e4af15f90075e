"""One session of ``moeray bench``: look at the server, calibrate, warm up, measure."""

import asyncio
import os
import platform
import signal
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
from rich.console import Console

from moeray.cluster.bench.load import Calibration, ClosedLoop, Load, Shape, Workload
from moeray.cluster.bench.progress import display
from moeray.cluster.bench.report import BenchReport
from moeray.cluster.bench.run import Limits, LoadRun
from moeray.cluster.bench.stats import ServiceLevel, summarise
from moeray.cluster.client import ClientError, describe
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc

if TYPE_CHECKING:
    from moeray.v1.inference_pb2_grpc import InferenceServiceAsyncStub

_INFO_TIMEOUT_S: Final = 10.0
_COUNT_TIMEOUT_S: Final = 60.0
_MAX_MESSAGE_BYTES: Final = 64 << 20
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

T = TypeVar("T")


class Interrupted(Exception):
    """The user stopped before anything was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    target: str
    channels: int
    """Connections; requests take turns on them."""
    shape: Shape
    load: Load
    limits: Limits
    warmup: int
    """Requests before the measured ones, in a closed loop."""
    warmup_concurrency: int
    service_level: ServiceLevel | None
    settings: dict[str, Any]
    """The flags, for the report."""


async def run_session(plan: Plan, console: Console) -> BenchReport:
    """Run ``plan``; progress goes to ``console``. SIGINT and SIGTERM end it early.

    Raises ClientError where there is no server to measure, and Interrupted where the user stopped
    before the measured part began.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.set)
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ]
    try:
        async with AsyncExitStack() as stack:
            stubs: list[InferenceServiceAsyncStub] = []
            for _ in range(plan.channels):
                channel = grpc.aio.insecure_channel(plan.target, options=options)
                await stack.enter_async_context(channel)
                stubs.append(inference_pb2_grpc.InferenceServiceStub(channel))
            return await _measure(plan, stubs, console, stop)
    except grpc.aio.AioRpcError as error:
        raise ClientError(describe(error, plan.target)) from None
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _measure(
    plan: Plan, stubs: list["InferenceServiceAsyncStub"], console: Console, stop: asyncio.Event
) -> BenchReport:
    environment = await _unless(stop, _environment(stubs[0]))
    calibration = await _unless(stop, _calibrate(plan.shape, stubs[0]))
    environment["calibration"] = asdict(calibration)
    if plan.warmup:
        await _warm_up(plan, calibration, stubs, console, stop)
    workload = Workload(plan.shape, calibration, "measured")
    run = LoadRun(stubs, plan.target, workload, plan.load, plan.limits, plan.shape.seed)
    with display(console, plan.limits) as shown:
        health = await run.run(stop, shown.show)
    return BenchReport(
        settings=plan.settings,
        environment=environment,
        interrupted=run.interrupted,
        client=health,
        summary=summarise(run.records, plan.service_level),
        records=run.records,
    )


async def _warm_up(
    plan: Plan,
    calibration: Calibration,
    stubs: list["InferenceServiceAsyncStub"],
    console: Console,
    stop: asyncio.Event,
) -> None:
    limits = Limits(requests=plan.warmup, duration_s=None, timeout_s=plan.limits.timeout_s)
    load = ClosedLoop(min(plan.warmup_concurrency, plan.warmup))
    workload = Workload(plan.shape, calibration, "warmup")
    run = LoadRun(stubs, plan.target, workload, load, limits, plan.shape.seed)
    console.print(f"warming up with {plan.warmup} requests", style="dim")
    with display(console, limits) as shown:
        await run.run(stop, shown.show)
    if run.interrupted:
        raise Interrupted
    if all(not record.is_ok for record in run.records):
        raise ClientError(f"every request of the warm-up failed: {run.records[0].error}")


async def _environment(stub: "InferenceServiceAsyncStub") -> dict[str, Any]:
    info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_INFO_TIMEOUT_S)
    listed = await stub.ListModels(pb.ListModelsRequest(), timeout=_INFO_TIMEOUT_S)
    models = [
        {
            "name": model.name,
            "context_length": model.context_length,
            "engines": model.engines,
            "ranks": model.ranks,
        }
        for model in listed.models
    ]
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "client": {
            "moeray": version("moeray"),
            "python": platform.python_version(),
            "grpc": grpc.__version__,
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
        },
        "server": {"moeray": info.version, "gateway_id": info.gateway_id, "models": models},
    }


async def _calibrate(shape: Shape, stub: "InferenceServiceAsyncStub") -> Calibration:
    async def count(message: pb.GenerateRequest) -> int:
        counted = await stub.CountTokens(
            pb.CountTokensRequest(generation=message), timeout=_COUNT_TIMEOUT_S
        )
        return counted.prompt_tokens

    return await Calibration.measure(shape, count)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. Raises Interrupted when ``stop`` comes first."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted
        return working.result()
    finally:
        working.cancel()
        stopping.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
