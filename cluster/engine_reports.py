"""What an engine tells the router: that it lives, how loaded it is, and what its ranks cache.

Knows neither Ray nor the engine's own types. A router that is lost is called again in the next
round; one that lost its memory knows the engine no more, so it registers again and sends snapshots
of all ranks' caches. Events whose arrival is unknown are followed by a snapshot.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from moeray.cluster.contracts import EngineInfo, EngineLoad, KvEvents
from moeray.cluster.router_client import RouterUnreachable

KV_PERIOD_S = 0.2
LOAD_PERIOD_S = 0.5


class EngineRouter(Protocol):
    """The router's methods that engines call. Each may raise RouterUnreachable."""

    async def register_engine(self, info: EngineInfo) -> None: ...

    async def report_load(self, load: EngineLoad) -> bool: ...

    async def report_kv(self, engine_id: str, events: list[KvEvents]) -> list[int]: ...


class KvChanges(Protocol):
    """What changed in one rank's prefix cache since it was last taken."""

    @property
    def rank(self) -> int: ...
    @property
    def stored_full(self) -> list[bytes]: ...
    @property
    def removed_full(self) -> list[bytes]: ...
    @property
    def stored_window(self) -> list[bytes]: ...
    @property
    def removed_window(self) -> list[bytes]: ...
    @property
    def is_snapshot(self) -> bool: ...


class KvSource(Protocol):
    """The engine's prefix caches."""

    def take_kv_changes(self) -> Sequence[KvChanges]: ...

    def request_kv_snapshot(self, rank: int) -> None: ...


class EngineReports:
    """Keeps the router informed about one engine."""

    def __init__(
        self,
        info: EngineInfo,
        router: EngineRouter,
        caches: KvSource,
        load: Callable[[], EngineLoad],
    ) -> None:
        self._info = info
        self._router = router
        self._caches = caches
        self._load = load
        self._sequence_numbers = [0] * info.ranks

    async def run(self, is_alive: Callable[[], bool]) -> None:
        """Report until the engine is dead."""
        loop = asyncio.get_running_loop()
        load_due_at = loop.time()
        while is_alive():
            # Where the router was not reached, it is told in the next round.
            if loop.time() >= load_due_at and await self.report_load():
                load_due_at = loop.time() + LOAD_PERIOD_S
            await self.report_kv()
            await asyncio.sleep(KV_PERIOD_S)

    async def report_load(self) -> bool:
        """A sign of life; registers the engine where the router does not know it. False: the
        router was not reached.
        """
        try:
            if not await self._router.report_load(self._load()):
                await self._router.register_engine(self._info)
                self._request_snapshots(range(self._info.ranks))
        except RouterUnreachable:
            # It may have registered the engine, so its ledger may lack what follows from here.
            self._request_snapshots(range(self._info.ranks))
            return False
        return True

    async def report_kv(self) -> None:
        """Send what changed in the caches since the last call, if anything did."""
        changes = self._caches.take_kv_changes()
        if not changes:
            return
        events = [self._numbered(change) for change in changes]
        try:
            wanted = await self._router.report_kv(self._info.engine_id, events)
        except RouterUnreachable:
            wanted = [change.rank for change in changes]
        self._request_snapshots(wanted)

    def _request_snapshots(self, ranks: Sequence[int]) -> None:
        for rank in ranks:
            self._caches.request_kv_snapshot(rank)

    def _numbered(self, changes: KvChanges) -> KvEvents:
        self._sequence_numbers[changes.rank] += 1
        return KvEvents(
            rank=changes.rank,
            sequence_number=self._sequence_numbers[changes.rank],
            stored_full=changes.stored_full,
            removed_full=changes.removed_full,
            stored_window=changes.stored_window,
            removed_window=changes.removed_window,
            is_snapshot=changes.is_snapshot,
        )
