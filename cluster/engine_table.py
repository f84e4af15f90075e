"""The engines that are registered, what is held on each of their ranks, and what their ranks cache.

Pure policy: no Ray, no clock of its own. When an engine goes, everything known of it goes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moeray.cluster.contracts import EngineInfo, KvEvents, Placement, PlacementRequest
from moeray.cluster.kv_ledger import KvLedger
from moeray.cluster.ranks import Rank, RankOrder

Held = tuple[Placement, int]
"""A placement and its tokens: prompt and limit on output."""


@dataclass(slots=True)
class _Engine:
    info: EngineInfo
    last_seen: float
    ranks: list[Rank]


class EngineTable:
    """``version`` changes with the list of engines."""

    def __init__(self) -> None:
        self.version = 1
        self.ledger = KvLedger()
        self._engines: dict[str, _Engine] = {}
        self._orders: dict[str, RankOrder] = {}
        """By model; none for a model that no engine serves."""
        self._serials = 0

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def infos(self) -> list[EngineInfo]:
        return [engine.info for engine in self._engines.values()]

    def add(self, info: EngineInfo, held: Iterable[Held], now: float) -> None:
        """Offer an engine's places but those that are held; it replaces one of the same id."""
        self.remove(info.engine_id)
        ranks = []
        for number in range(info.ranks):
            self._serials += 1
            ranks.append(Rank(info=info, number=number, serial=self._serials))
        order = self._orders.setdefault(info.model, RankOrder())
        for rank in ranks:
            order.add(rank)
        self._engines[info.engine_id] = _Engine(info, now, ranks)
        for placed in held:
            self.count(placed, +1)
        self.version += 1

    def remove(self, engine_id: str) -> None:
        """Drop an engine, its ranks and their blocks; one that is not there is none to drop."""
        engine = self._engines.pop(engine_id, None)
        if engine is None:
            return
        order = self._orders[engine.info.model]
        for rank in engine.ranks:
            order.remove(rank)
            self.ledger.forget(rank)
        if not order.ranks:
            del self._orders[engine.info.model]
        self.version += 1

    def heard_of(self, engine_id: str, now: float) -> bool:
        """An engine's sign of life; False where it is unknown."""
        engine = self._engines.get(engine_id)
        if engine is not None:
            engine.last_seen = now
        return engine is not None

    def excuse(self, now: float) -> None:
        """Count every engine's silence from now."""
        for engine in self._engines.values():
            engine.last_seen = now

    def silent_since(self, time: float) -> list[str]:
        """Engines that were not heard of after ``time``."""
        return [name for name, engine in self._engines.items() if engine.last_seen < time]

    def take_events(self, engine_id: str, batch: Iterable[KvEvents]) -> list[int]:
        """Bring the ledger up to date; returns the ranks whose snapshot is wanted."""
        engine = self._engines.get(engine_id)
        if engine is None:
            return sorted({events.rank for events in batch})
        wanted = set()
        for events in batch:
            if self.ledger.apply(engine.ranks[events.rank], events):
                wanted.discard(events.rank)
            else:
                wanted.add(events.rank)
        return sorted(wanted)

    def count(self, placed: Held, sign: int) -> None:
        """A placement is held (+1) or not any more (-1). Its engine may be gone."""
        placement = placed[0]
        engine = self._engines.get(placement.engine_id)
        if engine is not None and placement.rank < len(engine.ranks):
            rank = engine.ranks[placement.rank]
            rank.hold(sign, sign * _tokens_to_compute(placed))
            if sign < 0:
                self._orders[rank.model].work_left(rank)

    def order(self, model: str) -> RankOrder | None:
        """The ranks that serve a model; None where no engine does."""
        return self._orders.get(model)

    def has_free_places(self) -> bool:
        return any(order.least_loaded() is not None for order in self._orders.values())

    def could_take(self, request: PlacementRequest) -> bool:
        """Whether there is an engine for the request, with free places or not."""
        order = self._orders.get(request.model)
        avoid = request.avoid_engine_ids
        return order is not None and any(rank.engine_id not in avoid for rank in order.ranks)

    def check_integrity(self, held: Iterable[Held]) -> None:
        """Assert that places, orders and ledger agree with the placements and each other."""
        held = list(held)
        ranks = [rank for engine in self._engines.values() for rank in engine.ranks]
        for rank in ranks:
            here = [
                placed
                for placed in held
                if (placed[0].engine_id, placed[0].rank) == (rank.engine_id, rank.number)
            ]
            assert rank.requests == len(here), f"{rank.engine_id}/{rank.number}: places"
            assert rank.tokens == sum(_tokens_to_compute(placed) for placed in here), "tokens"
        for model, order in self._orders.items():
            assert order.ranks == {rank for rank in ranks if rank.model == model}
            assert order.ranks, "a model without an engine"
            order.check_integrity()
        self.ledger.check_integrity(ranks)


def _tokens_to_compute(placed: Held) -> int:
    """Of its rank, at most."""
    return placed[1] - placed[0].cached_tokens
