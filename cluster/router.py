"""The router: one named actor that owns admission, the waiting queue and the placements.

Thin over ``placement.py``: it brings the clock, the long polls of the gateways and a tick that lets
time pass. It runs on one event loop and no method waits before it has changed the policy, so the
policy needs no lock. Lost with its process, all of it is rebuilt: engines register again when
report_load() says False and send snapshots of their caches, gateways announce what they hold when
they see another session and ask again for what waited. The class is plain; the Ray actor is made
of it elsewhere.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

from moeray.cluster.contracts import (
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
from moeray.cluster.placement import PlacementLimits, PlacementPolicy

TICK_S = 0.1
STANDSTILL_S = 1.0
"""A tick that takes longer: what engines and gateways said meanwhile may still be unheard."""


class RouterActor:
    """See ``contracts.py`` for what each method promises."""

    def __init__(self, limits: PlacementLimits, clock: Callable[[], float] = time.time) -> None:
        self._policy = PlacementPolicy(limits, incarnation=secrets.token_hex(8))
        self._max_poll_s = limits.gateway_timeout_s / 2
        self._clock = clock
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._woken_version = self._policy.version
        self._ticker: asyncio.Task[None] | None = None

    async def register_engine(self, info: EngineInfo) -> None:
        self._start_ticking()
        self._policy.register_engine(info, self._clock())
        self._wake_watchers()

    async def report_load(self, load: EngineLoad) -> bool:
        return self._policy.report_load(load, self._clock())

    async def report_kv(self, engine_id: str, events: list[KvEvents]) -> list[int]:
        return self._policy.report_kv(engine_id, events, self._clock())

    async def deregister_engine(self, engine_id: str) -> None:
        self._policy.deregister_engine(engine_id)
        self._wake_watchers()

    async def place(
        self, gateway_id: str, requests: list[PlacementRequest]
    ) -> list[Placement | Waiting | Refused]:
        self._start_ticking()
        return self._policy.place_all(gateway_id, requests, self._clock())

    async def release(self, gateway_id: str, request_ids: list[str]) -> None:
        self._policy.release(gateway_id, request_ids, self._clock())
        self._wake_watchers()

    async def announce(self, gateway_id: str, placements: list[LivePlacement]) -> None:
        self._policy.announce(gateway_id, placements, self._clock())

    async def stats(self) -> RouterStats:
        return self._policy.stats()

    async def watch(self, gateway_id: str, version: int, timeout_s: float) -> GatewayUpdate:
        """Answer when there are outcomes or another engine list, or after ``timeout_s``."""
        self._start_ticking()
        session = self._policy.heartbeat(gateway_id, self._clock())
        outcomes = self._policy.take_outcomes(gateway_id)
        if not outcomes and version == self._policy.version:
            await self._wait_for_change(gateway_id, min(timeout_s, self._max_poll_s))
            session = self._policy.heartbeat(gateway_id, self._clock())
            outcomes = self._policy.take_outcomes(gateway_id)
        return GatewayUpdate(
            session=session,
            version=self._policy.version,
            engines=self._policy.engines,
            outcomes=outcomes,
        )

    async def _wait_for_change(self, gateway_id: str, timeout_s: float) -> None:
        changed = asyncio.Event()
        watchers = self._watchers.setdefault(gateway_id, set())
        watchers.add(changed)
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass
        finally:
            watchers.discard(changed)
            if not watchers:
                self._watchers.pop(gateway_id, None)

    def _wake_watchers(self) -> None:
        """Wake the gateways that something is there for."""
        changed = self._policy.version != self._woken_version
        self._woken_version = self._policy.version
        for gateway_id, watchers in self._watchers.items():
            if changed or self._policy.has_outcomes(gateway_id):
                for watcher in watchers:
                    watcher.set()

    def _start_ticking(self) -> None:
        # Not in __init__: an actor's constructor runs before there is a loop.
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_S)
            if time.monotonic() - before > STANDSTILL_S:
                self._policy.excuse(self._clock())
            self._policy.expire(self._clock())
            self._wake_watchers()
