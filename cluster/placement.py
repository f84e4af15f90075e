"""Which engine and rank a request runs on: places, the waiting queue, and who holds what.

Pure policy: no Ray, no clock of its own (``now`` is passed in, a Unix time in seconds). An engine
has ``max_running_per_rank`` places on each rank and never gets more; what finds no place waits
here, in the one queue. A placement holds its place until its gateway releases it or vanishes. It
stays on record while its engine is gone, so that an engine which registers again under its id
finds its places as they are.

Rules: whoever could be placed never waits; an expired request is never placed; a request is never
placed on an engine that it is to avoid.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moeray.cluster.contracts import (
    EngineInfo,
    EngineLoad,
    KvEvents,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    RouterStats,
    Waiting,
)
from moeray.cluster.drain_rate import DrainRate
from moeray.cluster.engine_table import EngineTable, Held
from moeray.cluster.gateway_sessions import GatewaySessions
from moeray.cluster.rank_choice import RankChoice
from moeray.cluster.ranks import Rank, RankOrder
from moeray.cluster.recent_prefixes import RecentPrefixes
from moeray.cluster.waiting_queue import WaitingEntry, WaitingQueue

Key = tuple[str, str]
"""Gateway id and request id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementLimits:
    """Bounds of the policy. Times are in seconds."""

    max_waiting: int = 1024
    """Requests that may wait."""
    max_waiting_tokens: int = 4_000_000
    """Prompt tokens that may wait."""
    engine_timeout_s: float = 5.0
    """An engine that reports no load for this long has vanished."""
    gateway_timeout_s: float = 10.0
    """A gateway that does not call for this long has vanished."""
    no_engine_wait_s: float = 30.0
    """How long a request without a deadline waits while no engine could take it; one that has a
    deadline waits until then."""
    priority_step_s: float = 1.0
    """Seconds of waiting that one step of priority is worth."""
    drain_window_s: float = 10.0
    """Over which releases are counted for the retry delay."""
    max_conversations: int = 65536
    """Conversations whose last rank is remembered."""
    recent_prefix_s: float = 1.0
    """How long a placement counts as cached before its engine has said so."""
    max_recent_prefixes: int = 131072
    """Prefixes of recent placements that are remembered, twice over."""


class PlacementPolicy:
    """The router's state. ``incarnation`` names this run of it, to tell a restart."""

    def __init__(self, limits: PlacementLimits, incarnation: str) -> None:
        self.limits = limits
        self._gateways = GatewaySessions(incarnation)
        self._engines = EngineTable()
        self._held: dict[Key, Held] = {}
        self._queue = WaitingQueue(
            max_requests=limits.max_waiting,
            max_tokens=limits.max_waiting_tokens,
            priority_step_s=limits.priority_step_s,
        )
        recent = RecentPrefixes(
            lifetime_s=limits.recent_prefix_s, max_prefixes=limits.max_recent_prefixes
        )
        self._choice = RankChoice(
            self._engines.ledger, recent, max_conversations=limits.max_conversations
        )
        self._drain = DrainRate(limits.drain_window_s)
        self._placed_total = 0
        self._refused_total: dict[str, int] = {}
        self._prompt_blocks_total = 0
        self._matched_blocks_total = 0

    @property
    def version(self) -> int:
        """Changes with the list of engines."""
        return self._engines.version

    @property
    def engines(self) -> list[EngineInfo]:
        return self._engines.infos

    def register_engine(self, info: EngineInfo, now: float) -> None:
        """Offer an engine's places. Registering again keeps what is held on it."""
        held = (p for p in self._held.values() if p[0].engine_id == info.engine_id)
        self._engines.add(info, held, now)
        self._fill(now)

    def report_load(self, load: EngineLoad, now: float) -> bool:
        """A sign of life; False: unknown engine, it must register again."""
        return self._engines.heard_of(load.engine_id, now)

    def report_kv(self, engine_id: str, events: list[KvEvents], now: float) -> list[int]:
        """Bring the ledger up to date; returns the ranks whose snapshot is wanted."""
        self._engines.heard_of(engine_id, now)
        return self._engines.take_events(engine_id, events)

    def deregister_engine(self, engine_id: str) -> None:
        self._engines.remove(engine_id)

    def heartbeat(self, gateway_id: str, now: float) -> str:
        """A gateway's sign of life; returns its session: another one if it had vanished."""
        return self._gateways.heartbeat(gateway_id, now)

    def place(
        self, gateway_id: str, request: PlacementRequest, now: float
    ) -> Placement | Waiting | Refused:
        """Place, queue or refuse a request; asked again for the same one, answer the same."""
        return self.place_all(gateway_id, [request], now)[0]

    def place_all(
        self, gateway_id: str, requests: Iterable[PlacementRequest], now: float
    ) -> list[Placement | Waiting | Refused]:
        """``place`` for each, in order."""
        self._gateways.heartbeat(gateway_id, now)
        outcomes = self._gateways.outcomes(gateway_id)
        return [self._place((gateway_id, r.request_id), r, outcomes, now) for r in requests]

    def _place(
        self,
        key: Key,
        request: PlacementRequest,
        outcomes: dict[str, Placement | Refused],
        now: float,
    ) -> Placement | Waiting | Refused:
        if (placed := self._held.get(key)) is not None:
            return placed[0]
        if key in self._queue.by_key:
            return Waiting(request.request_id)
        if outcomes:
            outcomes.pop(request.request_id, None)
        order = self._engines.order(request.model)
        if refused := self._refusal(request, order, now):
            return refused
        if order is not None and (chosen := self._choice.choose(order, request, now)) is not None:
            return self._hold(key, request, chosen, now)
        if not self._queue.has_room(request.prompt_tokens):
            return self._try_later(request, "queue_full", "the waiting queue is full", now)
        entry = self._queue.add(key[0], request, now)
        self._note_stranded(entry, now)
        return Waiting(request.request_id)

    def release(self, gateway_id: str, request_ids: Iterable[str], now: float) -> None:
        """Free places and queue entries; ids that are not known are none to free."""
        outcomes = self._gateways.outcomes(gateway_id)
        for request_id in request_ids:
            if outcomes:
                outcomes.pop(request_id, None)
            key = (gateway_id, request_id)
            placed = self._held.pop(key, None)
            if placed is not None:
                self._engines.count(placed, -1)
                self._drain.note(placed[1], now)
            else:
                self._queue.remove(key)
        self._fill(now)

    def announce(self, gateway_id: str, placements: Iterable[LivePlacement], now: float) -> None:
        """Take back placements made before this session; they hold, also above the places."""
        self.heartbeat(gateway_id, now)
        for live in placements:
            key = (gateway_id, live.placement.request_id)
            if key not in self._held:
                self._queue.remove(key)
                self._held[key] = placed = (live.placement, live.tokens)
                self._engines.count(placed, +1)

    def has_outcomes(self, gateway_id: str) -> bool:
        return bool(self._gateways.outcomes(gateway_id))

    def take_outcomes(self, gateway_id: str) -> list[Placement | Refused]:
        """Outcomes of requests that waited, each handed out once."""
        return self._gateways.take_outcomes(gateway_id)

    def excuse(self, now: float) -> None:
        """Nobody was heard of for a reason of our own: count everyone's silence from now."""
        self._engines.excuse(now)
        self._gateways.excuse(now)

    def expire(self, now: float) -> None:
        """Drop engines and gateways that are silent, and requests whose time is over."""
        for engine_id in self._engines.silent_since(now - self.limits.engine_timeout_s):
            self._engines.remove(engine_id)
        for gateway_id in self._gateways.silent_since(now - self.limits.gateway_timeout_s):
            self._forget_gateway(gateway_id, now)
        self._give_up(now)

    def stats(self) -> RouterStats:
        return RouterStats(
            waiting=len(self._queue),
            waiting_prompt_tokens=self._queue.tokens,
            running=len(self._held),
            engines=len(self._engines),
            placed_total=self._placed_total,
            refused_total=dict(self._refused_total),
            prompt_blocks_total=self._prompt_blocks_total,
            matched_blocks_total=self._matched_blocks_total,
        )

    def _forget_gateway(self, gateway_id: str, now: float) -> None:
        held = [request_id for owner, request_id in self._held if owner == gateway_id]
        waiting = [e.request.request_id for e in self._queue if e.gateway_id == gateway_id]
        self.release(gateway_id, held + waiting, now)
        self._gateways.forget(gateway_id)

    def _refusal(
        self, request: PlacementRequest, order: RankOrder | None, now: float
    ) -> Refused | None:
        if _is_expired(request, now):
            return self._refuse(request, "deadline", "the deadline passed")
        if order is None and len(self._engines):
            message = f"no engine serves the model {request.model!r}"
            return self._refuse(request, "model_not_found", message)
        return None

    def _try_later(
        self, request: PlacementRequest, reason: str, message: str, now: float
    ) -> Refused:
        """Refuse until those who wait, and this one behind them, would have found places."""
        tokens = self._queue.held_tokens + request.prompt_tokens + request.max_output_tokens
        delay_s = self._drain.delay_s(len(self._queue) + 1, tokens, now)
        return self._refuse(request, reason, message, delay_s)

    def _refuse(
        self, request: PlacementRequest, reason: str, message: str, retry_after_s: float = 0.0
    ) -> Refused:
        self._refused_total[reason] = self._refused_total.get(reason, 0) + 1
        return Refused(request.request_id, reason, message, retry_after_s)

    def _choose(self, request: PlacementRequest, now: float) -> tuple[Rank, int] | None:
        order = self._engines.order(request.model)
        return None if order is None else self._choice.choose(order, request, now)

    def _hold(
        self, key: Key, request: PlacementRequest, chosen: tuple[Rank, int], now: float
    ) -> Placement:
        rank, matched = chosen
        cached = matched * rank.block_tokens
        placement = Placement(request.request_id, rank.engine_id, rank.number, cached)
        tokens = request.prompt_tokens + request.max_output_tokens
        self._held[key] = placement, tokens
        self._choice.note(request, rank, matched, now)
        rank.hold(1, tokens - cached)
        self._placed_total += 1
        self._prompt_blocks_total += len(request.block_hashes)
        self._matched_blocks_total += matched
        return placement

    def _fill(self, now: float) -> None:
        """Give free places to those who wait, in order."""
        if not len(self._queue) or not self._engines.has_free_places():
            return
        for entry in self._queue:
            if _is_expired(entry.request, now):
                continue
            if (chosen := self._choose(entry.request, now)) is not None:
                key = (entry.gateway_id, entry.request.request_id)
                self._settle(entry, self._hold(key, entry.request, chosen, now))
            elif not self._engines.has_free_places():
                break

    def _give_up(self, now: float) -> None:
        """Refuse those who wait whose deadline passed, or whom no engine could take for long."""
        for entry in self._queue:
            request = entry.request
            if _is_expired(request, now):
                message = "the deadline passed while the request waited"
                self._settle(entry, self._refuse(request, "deadline", message))
            elif self._note_stranded(entry, now):
                message = "no engine can take the request"
                self._settle(entry, self._try_later(request, "unavailable", message, now))

    def _settle(self, entry: WaitingEntry, outcome: Placement | Refused) -> None:
        self._queue.remove((entry.gateway_id, entry.request.request_id))
        self._gateways.add_outcome(entry.gateway_id, outcome)

    def _note_stranded(self, entry: WaitingEntry, now: float) -> bool:
        """Whether no engine could take the entry for as long as it waits for that."""
        if self._engines.could_take(entry.request):
            entry.stranded_since = None
            return False
        if entry.stranded_since is None:
            entry.stranded_since = now
        waited = now - entry.stranded_since >= self.limits.no_engine_wait_s
        return waited and entry.request.deadline is None

    def check_integrity(self, now: float) -> None:
        """Assert what must always hold; for tests."""
        self._queue.check_integrity()
        self._engines.check_integrity(self._held.values())
        self._choice.check_integrity()
        for key, (placement, _) in self._held.items():
            assert key[1] == placement.request_id
            assert key not in self._queue.by_key, f"{key} is both placed and waiting"
            assert key[0] in self._gateways, f"{key} belongs to no gateway"
        for entry in self._queue:
            assert entry.gateway_id in self._gateways
            if not _is_expired(entry.request, now):
                chosen = self._choose(entry.request, now)
                assert chosen is None, f"{entry.request} waits at a free place"


def _is_expired(request: PlacementRequest, now: float) -> bool:
    return request.deadline is not None and request.deadline <= now
