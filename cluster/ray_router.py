"""The router as gateways and engines reach it over Ray: by name, found again after it is lost."""

import asyncio
from typing import Any, cast

import ray
import structlog
from ray.exceptions import RayActorError, RayError, RaySystemError

from moeray.cluster.contracts import (
    ROUTER_NAME,
    ROUTER_NAMESPACE,
    EngineInfo,
    EngineLoad,
    GatewayUpdate,
    KvEvents,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    RouterStats,
    Waiting,
)
from moeray.cluster.router_client import RouterUnreachable
from moeray.cluster.router_silence import RouterSilence

TICK_S = 1.0

_LOST = (RayActorError, RaySystemError, ValueError)
"""What Ray raises for an actor that cannot be called; ValueError: there is none of that name."""

_log = structlog.get_logger("moeray.ray_router")


class _NamedActor:
    """An actor by its name; its methods raise RouterUnreachable while it cannot be called."""

    def __init__(self, name: str, namespace: str) -> None:
        self._name = name
        self._namespace = namespace
        self._handle: Any = None

    async def call(self, method: str, *arguments: object) -> object:
        try:
            if self._handle is None:
                # A blocking call to Ray's control store.
                self._handle = await asyncio.to_thread(ray.get_actor, self._name, self._namespace)
            return await getattr(self._handle, method).remote(*arguments)
        except _LOST as error:
            self._handle = None
            raise RouterUnreachable(str(error)) from error

    async def end(self) -> None:
        """End the actor's process; Ray starts another one."""
        if (handle := self._handle) is not None:
            await asyncio.to_thread(ray.kill, handle, no_restart=False)


class RayRouter:
    """What gateways call; each method raises RouterUnreachable while the router cannot be called.

    A router that answers nothing for seconds though calls are open is ended, so that Ray starts
    another one: see ``router_silence.py``.
    """

    def __init__(self, name: str = ROUTER_NAME, namespace: str = ROUTER_NAMESPACE) -> None:
        self._actor = _NamedActor(name, namespace)
        self._silence = RouterSilence()
        self._ticker: asyncio.Task[None] | None = None

    async def place(
        self, gateway_id: str, requests: list[PlacementRequest]
    ) -> list[Placement | Waiting | Refused]:
        outcomes = await self._call("place", gateway_id, requests)
        return cast(list[Placement | Waiting | Refused], outcomes)

    async def watch(self, gateway_id: str, version: int, timeout_s: float) -> GatewayUpdate:
        return cast(GatewayUpdate, await self._call("watch", gateway_id, version, timeout_s))

    async def release(self, gateway_id: str, request_ids: list[str]) -> None:
        await self._call("release", gateway_id, request_ids)

    async def announce(self, gateway_id: str, placements: list[LivePlacement]) -> None:
        await self._call("announce", gateway_id, placements)

    async def _call(self, method: str, *arguments: object) -> object:
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.create_task(self._tick())
        self._silence.asked()
        try:
            answer = await self._actor.call(method, *arguments)
        except RouterUnreachable:
            self._silence.lost()
            raise
        except BaseException:
            self._silence.given_up()
            raise
        self._silence.answered()
        return answer

    async def _tick(self) -> None:
        """Runs while calls are open."""
        while True:
            await asyncio.sleep(TICK_S)
            is_silent = self._silence.tick()
            if not self._silence.is_waiting:
                return
            if is_silent:
                _log.error("router_silent", action="it is ended and started again")
                try:
                    await self._actor.end()
                except (RayError, ValueError) as error:
                    _log.warning("router_not_ended", error=str(error))


class RayEngineRouter:
    """What engines call; each method raises RouterUnreachable while the router cannot be called."""

    def __init__(self, name: str = ROUTER_NAME, namespace: str = ROUTER_NAMESPACE) -> None:
        self._actor = _NamedActor(name, namespace)

    async def register_engine(self, info: EngineInfo) -> None:
        await self._call("register_engine", info)

    async def report_load(self, load: EngineLoad) -> bool:
        return cast(bool, await self._call("report_load", load))

    async def report_kv(self, engine_id: str, events: list[KvEvents]) -> list[int]:
        return cast(list[int], await self._call("report_kv", engine_id, events))

    async def stats(self) -> RouterStats:
        return cast(RouterStats, await self._call("stats"))

    async def _call(self, method: str, *arguments: object) -> object:
        try:
            return await self._actor.call(method, *arguments)
        except RayError as error:
            # An engine works on, whatever it was that the router failed in.
            _log.exception("router_failed", method=method)
            raise RouterUnreachable(str(error)) from error
