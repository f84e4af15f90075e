"""The router's process: the router with its logs, its metrics, and where everybody's metrics are.

``application.py`` makes the Ray actor of ``RouterProcess``. Engines and gateways say every few
seconds where they serve metrics; the list is Prometheus' HTTP service discovery, at /sd of each.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import ray
import structlog
from prometheus_client.core import Metric

from moeray.cluster.contracts import RouterStats
from moeray.cluster.logs import LogLevel, configure_logs
from moeray.cluster.metrics import counter, gauge
from moeray.cluster.metrics_server import (
    MetricsOptions,
    MetricsPages,
    MetricsServer,
    MetricsTarget,
    on_node,
    reachable_host,
)
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.port_lock import host_port
from moeray.cluster.router import RouterActor

LOOPBACK: Final = "127.0.0.1"
REPORT_S: Final = 2.0
"""How often a process says where its metrics are."""
FORGET_S: Final = 10.0
_STATS_TIMEOUT_S: Final = 2.0
"""How long a scrape waits for the router's loop."""

_log = structlog.get_logger("moeray.router")


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterProcessOptions:
    """What the router's process is told beside its limits."""

    log_level: LogLevel | None = None
    """None: this process's logs are set up by others."""
    metrics: MetricsOptions | None = None
    """None: it serves no metrics."""
    loopback: bool = False
    """Whether the whole cluster is on this machine."""


class RouterProcess(RouterActor):
    """See ``contracts.py`` for what its methods promise, and ``report_metrics`` here."""

    def __init__(self, limits: PlacementLimits, options: RouterProcessOptions) -> None:
        if options.log_level is not None:
            configure_logs("router", options.log_level)
        super().__init__(limits)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reported: dict[str, tuple[MetricsTarget, float]] = {}
        self._own_target: MetricsTarget | None = None
        if options.metrics is not None:
            node_address = LOOPBACK if options.loopback else ray.util.get_node_ip_address()
            metrics = on_node(options.metrics, node_address)
            pages = MetricsPages(metrics=self, unhealthy=lambda: "", targets=self._targets)
            self._metrics_server = MetricsServer(metrics, pages)
            host = reachable_host(metrics.host, node_address)
            self._own_target = MetricsTarget(
                component="router",
                id="router",
                address=host_port(host, self._metrics_server.port),
            )
            _log.info("metrics", address=self._own_target.address)

    async def report_metrics(self, target: MetricsTarget) -> None:
        """A process serves its metrics there; to be said again every REPORT_S seconds."""
        self._loop = asyncio.get_running_loop()
        self._reported[target.id] = (target, time.monotonic())

    async def metrics_address(self) -> str:
        """HOST:PORT of the router's own metrics; empty where it serves none."""
        return self._own_target.address if self._own_target else ""

    async def metrics_targets(self) -> list[MetricsTarget]:
        """Where every process serves its metrics."""
        return self._targets()

    def _targets(self) -> list[MetricsTarget]:
        oldest = time.monotonic() - FORGET_S
        reported = [target for target, at in list(self._reported.values()) if at >= oldest]
        return [*([self._own_target] if self._own_target else []), *reported]

    def collect(self) -> Iterator[Metric]:
        """The router's metrics; called in a thread of the metrics' server."""
        if self._loop is None:  # nobody has called yet
            return
        asked = asyncio.run_coroutine_threadsafe(self.stats(), self._loop)
        yield from router_metrics(asked.result(_STATS_TIMEOUT_S))


def router_metrics(stats: RouterStats) -> Iterator[Metric]:
    """The router at one moment."""

    def now(name: str, help_text: str, value: float) -> Metric:
        return gauge(name, help_text, (), [((), value)])

    def total(name: str, help_text: str, value: float) -> Metric:
        return counter(name, help_text, (), [((), value)])

    yield now("router_waiting_requests", "Requests that wait for a place.", stats.waiting)
    yield now("router_waiting_tokens", "Prompt tokens that wait.", stats.waiting_prompt_tokens)
    yield now("router_running_requests", "Places held.", stats.running)
    yield now("router_engines", "Engines registered.", stats.engines)
    yield total("router_placements", "Requests that were given a place.", stats.placed_total)
    yield counter(
        "router_refusals", "Requests refused.", ("reason",),
        [((reason,), count) for reason, count in stats.refused_total.items()],
    )  # fmt: skip
    yield total(
        "router_prompt_blocks", "Whole blocks of placed prompts.", stats.prompt_blocks_total
    )
    yield total(
        "router_matched_blocks", "Of these, blocks known to be cached where they were placed.",
        stats.matched_blocks_total,
    )  # fmt: skip
