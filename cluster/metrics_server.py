"""A process's own HTTP port for Prometheus and probes: /metrics, /healthz and /sd.

It runs in threads of its own, so that a scrape never holds up the event loop. Every process takes
the first free port of a range and holds it alone: with SO_REUSEPORT two processes would share the
scrapes of one address. So processes of one machine, also of two clusters, never collide, and where
each has its own address (Kubernetes) all have the range's first port.
"""

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address
from socketserver import ThreadingTCPServer
from threading import Thread
from typing import TYPE_CHECKING, Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from moeray.cluster.port_lock import METRICS_PORTS, host_port

if TYPE_CHECKING:  # the router starts anew in less time without pydantic
    from moeray.cluster.config import Settings

_CLIENT_TIMEOUT_S: Final = 10.0
_TEXT: Final = "text/plain; charset=utf-8"
_WILDCARDS: Final = ("0.0.0.0", "::")


class MetricsPortNotBound(RuntimeError):
    """No port could be bound; the message names the setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsOptions:
    """Where a process serves its metrics."""

    host: str
    port: int
    """The first of METRICS_PORTS ports."""

    @classmethod
    def of(cls, settings: "Settings") -> "MetricsOptions | None":
        """None: nothing is served."""
        port = settings.metrics_port
        return cls(host=settings.host, port=port) if port else None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsTarget:
    """One process that serves metrics, as Prometheus' HTTP service discovery is told."""

    component: str
    id: str
    address: str
    """HOST:PORT."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsPages:
    """What a process serves. The functions are called in other threads than its own."""

    metrics: Collector
    unhealthy: Callable[[], str]
    """Why this process does not serve; empty where it does."""
    targets: Callable[[], list[MetricsTarget]] | None = None
    """All processes that serve metrics; None: this process does not know."""


class MetricsServer:
    """Serves ``pages`` from its making until ``close``. Raises MetricsPortNotBound."""

    def __init__(self, options: MetricsOptions, pages: MetricsPages) -> None:
        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(pages.metrics)
        self._server = _listen(options, _handler(registry, pages))
        self.port = int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop listening; returns when the port is free."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()


def on_node(options: MetricsOptions, node_address: str) -> MetricsOptions:
    """The same on another node: an address of one node is none of the others'."""
    host = options.host
    is_everywhere = host in (*_WILDCARDS, "localhost") or _is_loopback(host)
    return options if is_everywhere else replace(options, host=node_address)


def reachable_host(host: str, node_address: str) -> str:
    """The address that others use for a process that listens on ``host``."""
    return node_address if host in _WILDCARDS else host


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True  # of an earlier process: connections in TIME_WAIT hold nothing


class _Server6(_Server):
    address_family = socket.AF_INET6


def _listen(options: MetricsOptions, handler: type[BaseHTTPRequestHandler]) -> _Server:
    server = _Server6 if ":" in options.host else _Server
    last = min(options.port + METRICS_PORTS - 1, 65535)
    for port in range(options.port, last + 1):
        try:
            return server((options.host, port), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                address = host_port(options.host, port)
                raise MetricsPortNotBound(
                    f"metrics_port: {address} cannot be bound: {error.strerror or error}"
                ) from error
    raise MetricsPortNotBound(
        f"metrics_port: no port from {options.port} to {last} is free on {options.host}"
    )


def _handler(registry: CollectorRegistry, pages: MetricsPages) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT_S
        server_version = "moeray"
        sys_version = ""

        def do_GET(self) -> None:
            try:
                answer = self._page(self.path.partition("?")[0])
            # Of the process that is asked, as a router that does not answer: not this server's end.
            except Exception as error:
                reason = f"{type(error).__name__}: {error}\n"
                answer = (HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, reason.encode())
            self._answer(*answer)

        def _page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
            if path == "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)
            if path == "/healthz":
                reason = pages.unhealthy()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
                return status, _TEXT, f"{reason or 'ok'}\n".encode()
            if path == "/sd" and pages.targets is not None:
                found = _service_discovery(pages.targets())
                return HTTPStatus.OK, "application/json", found
            return HTTPStatus.NOT_FOUND, _TEXT, b"not found\n"

        def log_message(self, format: str, *args: object) -> None:
            """Scrapes and probes are not worth a line."""

        def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _service_discovery(targets: list[MetricsTarget]) -> bytes:
    """In the form of Prometheus' http_sd_config."""
    groups = [
        {
            "targets": [target.address],
            "labels": {"moeray_component": target.component, "moeray_id": target.id},
        }
        for target in targets
    ]
    return json.dumps(groups).encode()
