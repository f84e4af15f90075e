"""One gateway put together: server, router client, engine links and answers. No Ray in here."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from moeray.cluster.answers import Answers
from moeray.cluster.catalogue import Catalogue, ServedModel
from moeray.cluster.contracts import EngineInfo
from moeray.cluster.engine_link import EngineLinks
from moeray.cluster.gateway_metrics import GatewayMetrics
from moeray.cluster.gateway_server import GatewayServer, ServerOptions
from moeray.cluster.harmony import HarmonyRenderer
from moeray.cluster.inference_service import InferenceService
from moeray.cluster.logs import LogLevel
from moeray.cluster.metrics_server import (
    MetricsOptions,
    MetricsPages,
    MetricsServer,
    MetricsTarget,
    reachable_host,
)
from moeray.cluster.port_lock import host_port
from moeray.cluster.router_client import Router, RouterClient
from moeray.cluster.tokenizer import HarmonyTokenizer
from moeray.cluster.validation import Validator


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """What a gateway is told. Plain data, so that it can travel to any node."""

    server: ServerOptions
    cluster_token: bytes
    """What gateways and engines prove to each other that they know."""
    tokenizer_file: Path | None = None
    """A tokenizer.json or tiktoken file that wins over the checkpoint's tokenizer.json."""
    checkpoint: Path | None = None
    """The served checkpoint's folder, for its tokenizer. None: the packaged vocabulary."""
    no_engine_wait_s: float = 30.0
    """How long a request without a deadline waits while no engine is registered."""
    flush_s: float = 0.0
    """How long tokens may wait for more of their answer, so that fewer messages are sent."""
    drain_grace_s: float = 30.0
    """How long running answers may take to finish when the gateway stops."""
    metrics: MetricsOptions | None = None
    """Where metrics are served; None: nowhere."""
    log_level: LogLevel = "info"
    model: ServedModel | None = None
    """What engines will register. None: not known before."""
    wakes_engines: bool = False
    """Whether a request is enough to have an engine started, so that the gateway serves without."""


class GatewayProcess:
    """Start it, ask ``check`` from time to time, and drain it. Make it inside its event loop."""

    def __init__(
        self,
        settings: GatewaySettings,
        router: Router,
        tokenizer: HarmonyTokenizer,
        *,
        gateway_id: str,
        metrics_targets: Callable[[], list[MetricsTarget]] | None = None,
    ) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings.model)
        self._links = EngineLinks(settings.cluster_token, flush_s=settings.flush_s)
        self._router = RouterClient(router, gateway_id, self._take_engines)
        renderer = HarmonyRenderer(tokenizer)
        metrics = GatewayMetrics(
            running=lambda: self._answers.running, link_breaks=lambda: self._links.breaks
        )
        self._answers = Answers(
            validator=Validator(renderer.tool_problem),
            tokenizer=tokenizer,
            renderer=renderer,
            catalogue=self._catalogue,
            router=self._router,
            links=self._links,
            no_engine_wait_s=settings.no_engine_wait_s,
            observe=metrics.observe_answer,
        )
        service = InferenceService(
            self._answers, self._catalogue, tokenizer, gateway_id=gateway_id, version=_version()
        )
        self._server = GatewayServer(settings.server, service, metrics.call_ended)
        self._metrics_pages = MetricsPages(
            metrics=metrics,
            unhealthy=lambda: self._server.unhealthy,
            targets=metrics_targets,
        )
        self._metrics_server: MetricsServer | None = None
        self._health_changes: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen and begin to follow the router; returns the port.

        Raises PortNotBound and MetricsPortNotBound.
        """
        if self._settings.metrics is not None:
            self._metrics_server = MetricsServer(self._settings.metrics, self._metrics_pages)
        port = await self._server.start()
        self._router.start()
        if self._settings.wakes_engines:
            await self._server.set_serving(True)
        return port

    def metrics_address(self, node_address: str) -> str | None:
        """HOST:PORT where metrics are served, once started; None: nowhere."""
        if self._settings.metrics is None or self._metrics_server is None:
            return None
        host = reachable_host(self._settings.metrics.host, node_address)
        return host_port(host, self._metrics_server.port)

    @property
    def lacks_engine(self) -> bool:
        """Whether requests wait and no engine is registered."""
        return self._router.waiting > 0 and not self._router.engines

    def check(self) -> None:
        """Raises RuntimeError when this gateway cannot go on."""
        self._router.check()

    async def drain(self) -> None:
        """Refuse new calls, let running ones finish, then let go of everything."""
        await self._server.drain(self._settings.drain_grace_s)
        await self._router.close()
        await self._links.close()
        if self._metrics_server is not None:
            await self._metrics_server.close()

    def _take_engines(self, engines: list[EngineInfo]) -> None:
        self._catalogue.update(engines)
        self._links.update(engines)
        serves = bool(engines) or self._settings.wakes_engines
        change = asyncio.create_task(self._server.set_serving(serves))
        self._health_changes.add(change)
        change.add_done_callback(self._health_changes.discard)


def _version() -> str:
    try:
        return version("moeray")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
