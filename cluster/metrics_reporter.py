"""Tells the router, again and again, where a process serves its metrics."""

import asyncio
import contextlib
from typing import Final, NoReturn

import ray
import structlog
from ray.exceptions import RayError

from moeray.cluster.contracts import ROUTER_NAME, ROUTER_NAMESPACE
from moeray.cluster.metrics_server import (
    MetricsOptions,
    MetricsPages,
    MetricsServer,
    MetricsTarget,
    on_node,
    reachable_host,
)
from moeray.cluster.port_lock import host_port
from moeray.cluster.router_process import LOOPBACK, REPORT_S

LIST_TIMEOUT_S: Final = 2.0

_log = structlog.get_logger("moeray.metrics")


async def report_metrics(target: MetricsTarget, router_name: str = ROUTER_NAME) -> NoReturn:
    """Runs until it is cancelled. A router that cannot be reached is told in the next round."""
    while True:
        with contextlib.suppress(RayError, ValueError):
            # A blocking call to Ray's control store.
            router = await asyncio.to_thread(ray.get_actor, router_name, ROUTER_NAMESPACE)
            await router.report_metrics.remote(target)
        await asyncio.sleep(REPORT_S)


def all_targets(router_name: str = ROUTER_NAME) -> list[MetricsTarget]:
    """The router's list, for a thread. Raises RayError or ValueError where it cannot be had."""
    router = ray.get_actor(router_name, ROUTER_NAMESPACE)
    targets: list[MetricsTarget] = ray.get(router.metrics_targets.remote(), timeout=LIST_TIMEOUT_S)
    return targets


class ReportedMetrics:
    """An engine's metrics server, and the task that tells the router of it.

    Make it inside the process's event loop. Raises MetricsPortNotBound.
    """

    def __init__(
        self, asked: MetricsOptions, pages: MetricsPages, *, engine_id: str, loopback: bool
    ) -> None:
        node_address = LOOPBACK if loopback else ray.util.get_node_ip_address()
        options = on_node(asked, node_address)
        self._server = MetricsServer(options, pages)
        address = host_port(reachable_host(options.host, node_address), self._server.port)
        _log.info("metrics", address=address)
        target = MetricsTarget(component="engine", id=engine_id, address=address)
        self._reporting = asyncio.create_task(report_metrics(target))

    async def close(self) -> None:
        self._reporting.cancel()
        await self._server.close()
