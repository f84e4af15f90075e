"""The router as a gateway reaches it over Ray: by name, found again after it is lost."""

import asyncio
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RaySystemError

from moeray.cluster.contracts import (
    ROUTER_NAME,
    ROUTER_NAMESPACE,
    GatewayUpdate,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    Waiting,
)
from moeray.cluster.router_client import RouterUnreachable


class RayRouter:
    """The router actor's methods; each raises RouterUnreachable while it cannot be called."""

    def __init__(self, name: str = ROUTER_NAME, namespace: str = ROUTER_NAMESPACE) -> None:
        self._name = name
        self._namespace = namespace
        self._actor: Any = None

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
        try:
            if self._actor is None:
                # A blocking call to Ray's control store.
                self._actor = await asyncio.to_thread(ray.get_actor, self._name, self._namespace)
            return await getattr(self._actor, method).remote(*arguments)
        except (RayActorError, RaySystemError, ValueError) as error:  # ValueError: no such name
            self._actor = None
            raise RouterUnreachable(str(error)) from error
