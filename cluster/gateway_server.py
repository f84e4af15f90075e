"""The gateway's own gRPC server: options, health, reflection, and an orderly end.

Gateways of one cluster share their port (SO_REUSEPORT); ``port_lock.py`` keeps other clusters off
it. Health says SERVING only while an engine is registered and the gateway is not draining.

A draining gateway stops listening at once, so that new connections find another one, and tells open
ones to go (GOAWAY). A call that is under way just then may still reach it: it is refused with
UNAVAILABLE, or cancelled by grpc where it came too late even for that.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from moeray.cluster.inference_service import InferenceService
from moeray.cluster.interceptors import OnEnd, RpcBoundary
from moeray.cluster.keepalive import keepalive_options
from moeray.cluster.port_lock import host_port
from moeray.v1 import inference_pb2, inference_pb2_grpc

SERVICE: Final = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
_KEEPALIVE_TIMEOUT_S: Final = 10.0
_IDLE_POLL_S: Final = 0.02
_LAST_WORDS_S: Final = 0.5
"""How long a drained gateway may take to send what is written."""
_NEVER_S: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """How the server listens. Times are in seconds."""

    host: str
    port: int
    """0: a free one."""
    reflection: bool = True
    max_message_bytes: int = 4 << 20
    """A larger request is refused with RESOURCE_EXHAUSTED."""
    max_concurrent_calls: int = 10_000
    """More are refused with RESOURCE_EXHAUSTED before they are read."""
    max_connection_age_s: float = 3600.0
    """After this a client must connect again, so that it finds new gateways."""
    max_connection_age_grace_s: float = 3600.0
    """How long answers may go on on a connection that is too old."""
    keepalive_s: float = 30.0
    """A silent client is asked this often whether it is still there."""
    min_ping_interval_s: float = 2.0
    """Clients may ask no more often."""

    def channel_arguments(self) -> tuple[tuple[str, int], ...]:
        return (
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_connection_age_ms", round(self.max_connection_age_s * 1e3)),
            ("grpc.max_connection_age_grace_ms", round(self.max_connection_age_grace_s * 1e3)),
            *keepalive_options(every_s=self.keepalive_s, timeout_s=_KEEPALIVE_TIMEOUT_S),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", round(self.min_ping_interval_s * 1e3)),
        )


class PortNotBound(RuntimeError):
    """The server could not listen where it was told to."""


class GatewayServer:
    """Serves InferenceService, health and reflection. Make it inside its event loop."""

    def __init__(
        self, options: ServerOptions, service: InferenceService, on_call_end: OnEnd | None = None
    ) -> None:
        self.port = options.port
        self.unhealthy = "starting"
        """Why health says NOT_SERVING; empty where it does not."""
        self._options = options
        self._boundary = RpcBoundary(SERVICE, on_call_end)
        self._server = grpc.aio.server(
            interceptors=(self._boundary,),
            options=options.channel_arguments(),
            maximum_concurrent_rpcs=options.max_concurrent_calls,
        )
        # The boundary hands a Call to the handlers, where the generated class has grpc's context.
        servicer = cast(inference_pb2_grpc.InferenceServiceServicer, service)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if options.reflection:
            names = (SERVICE.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Listen; returns the port. Raises PortNotBound."""
        await self.set_serving(False)
        listening = host_port(self._options.host, self._options.port)
        try:
            self.port = self._server.add_insecure_port(listening)
        except RuntimeError as error:
            raise PortNotBound(f"{listening} cannot be bound: {error}") from error
        await self._server.start()
        return self.port

    async def set_serving(self, serving: bool) -> None:
        """What health says of the gateway; NOT_SERVING for good once it drains."""
        if self._boundary.draining:
            return
        self.unhealthy = "" if serving else "no engine is registered"
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE.full_name):
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """Stop listening, refuse new calls, let running ones finish for ``grace_s`` seconds."""
        self._boundary.draining = True
        self.unhealthy = "draining"
        await self._health.enter_graceful_shutdown()
        # One stop of grpc's has no end of its own, and another cuts it short: where a stop's time
        # runs out beside another stop, or a stop is cancelled, grpc crashes.
        stopping = asyncio.create_task(self._server.stop(_NEVER_S))
        clock = asyncio.get_running_loop().time
        ends_at = clock() + grace_s
        while self._boundary.running and clock() < ends_at:
            await asyncio.sleep(_IDLE_POLL_S)
        if not self._boundary.running:
            # Streams of health and reflection end when their client likes: they are not waited for.
            await asyncio.wait({stopping}, timeout=_LAST_WORDS_S)
        await self._server.stop(None)
        await stopping
