"""The gateway's Serve deployment: what Serve calls, and nothing else.

Serve deploys, heals and stops the gateway. Requests do not pass through Serve: the gateway has a
port of its own, so Serve counts no ongoing request and stops a replica at once; the drain happens
in ``__del__``, which Serve awaits. The one call through Serve is that which has it start an engine.
"""

import asyncio
import uuid
from functools import partial
from typing import Any

import ray
import structlog
from ray.serve.handle import DeploymentHandle

from moeray.cluster.contracts import ROUTER_NAME
from moeray.cluster.engine_waker import EngineWaker
from moeray.cluster.gateway_process import GatewayProcess, GatewaySettings
from moeray.cluster.logs import configure_logs
from moeray.cluster.metrics_reporter import all_targets, report_metrics
from moeray.cluster.metrics_server import MetricsTarget
from moeray.cluster.ray_router import RayRouter
from moeray.cluster.tokenizer import HarmonyTokenizer

_log = structlog.get_logger("moeray.gateway")


class Gateway:
    """One gateway replica.

    ``serve.deployment(Gateway).bind(settings, engines)`` makes the application: the handle of the
    engines is what has Serve deploy them with the gateways.
    """

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: GatewaySettings,
        engines: DeploymentHandle[Any],
        router_name: str = ROUTER_NAME,
    ) -> None:
        gateway_id = f"gateway-{uuid.uuid4().hex[:12]}"
        configure_logs("gateway", settings.log_level, gateway_id=gateway_id)
        self._process: GatewayProcess | None = None
        self._tasks: list[asyncio.Task[None]] = []
        tokenizer = await asyncio.to_thread(
            HarmonyTokenizer.load,
            tokenizer_file=settings.tokenizer_file,
            checkpoint=settings.checkpoint,
        )
        self._process = GatewayProcess(
            settings,
            RayRouter(router_name),
            tokenizer,
            gateway_id=gateway_id,
            metrics_targets=partial(all_targets, router_name),
        )
        await self._process.start()
        reporting = _report_metrics(self._process, gateway_id, router_name)
        self._tasks.append(asyncio.create_task(reporting))
        if settings.wakes_engines:
            process = self._process
            waker = EngineWaker(lambda: process.lacks_engine, lambda: _wake(engines))
            self._tasks.append(asyncio.create_task(waker.run()))

    async def check_health(self) -> None:
        """Serve calls this; raising has the replica replaced."""
        if self._process is not None:
            self._process.check()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        # The attribute is missing when __init__ did not run.
        process = getattr(self, "_process", None)
        if process is not None:
            self._process = None
            await process.drain()
            for task in self._tasks:
                task.cancel()


async def _report_metrics(process: GatewayProcess, gateway_id: str, router_name: str) -> None:
    address = process.metrics_address(ray.util.get_node_ip_address())
    if address is not None:
        _log.info("metrics", address=address)
        target = MetricsTarget(component="gateway", id=gateway_id, address=address)
        await report_metrics(target, router_name)


async def _wake(engines: DeploymentHandle[Any]) -> None:
    """Call any engine; ends when one runs."""
    response: Any = engines.wake.remote()
    try:
        await response
    finally:
        response.cancel()
