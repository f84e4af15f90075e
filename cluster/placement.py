"""Which engine and rank a request runs on: places, the waiting queue, and who holds what.

Pure policy: no Ray, no clock of its own (``now`` is passed in, a Unix time in seconds). An engine
has ``max_running_per_rank`` places on each rank and never gets more; what finds no place waits
here, in the one queue. A placement holds its place until its gateway releases it or vanishes. It
stays on record while its engine is gone, so that an engine which registers again under its id
finds its places as they are.

Rules: whoever could be placed never waits; an expired request is never placed; a request is never
placed on an engine that lost it before.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from moeray.cluster.contracts import (
    EngineInfo,
    EngineLoad,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    Waiting,
)
from moeray.cluster.waiting_queue import WaitingEntry, WaitingQueue

MIN_RETRY_S = 0.1
MAX_RETRY_S = 30.0

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
    """How long a request waits while no engine could take it, if its deadline is not earlier."""
    priority_step_s: float = 1.0
    """Seconds of waiting that one step of priority is worth."""
    drain_window_s: float = 10.0
    """Over which releases are counted for the retry delay."""
    max_conversations: int = 65536
    """Conversations whose last rank is remembered."""


@dataclass(slots=True)
class _Engine:
    info: EngineInfo
    last_seen: float
    requests: list[int]
    """Held places by rank."""
    tokens: list[int]
    """Prompt and output limit of the held places, by rank."""

    def free(self, rank: int) -> int:
        return max(0, self.info.max_running_per_rank - self.requests[rank])


@dataclass(slots=True)
class _Gateway:
    session: str
    last_seen: float
    outcomes: dict[str, Placement | Refused] = field(default_factory=dict)
    """Of requests that waited, until they are taken."""


class PlacementPolicy:
    """The router's state. ``incarnation`` names this run of it, to tell a restart."""

    def __init__(self, limits: PlacementLimits, incarnation: str) -> None:
        self.limits = limits
        self.version = 1
        """Changes with the list of engines."""
        self._incarnation = incarnation
        self._sessions = 0
        self._engines: dict[str, _Engine] = {}
        self._gateways: dict[str, _Gateway] = {}
        self._held: dict[Key, LivePlacement] = {}
        self._queue = WaitingQueue(
            max_requests=limits.max_waiting,
            max_tokens=limits.max_waiting_tokens,
            priority_step_s=limits.priority_step_s,
        )
        self._conversations: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._releases: deque[float] = deque()

    @property
    def engines(self) -> list[EngineInfo]:
        return [engine.info for engine in self._engines.values()]

    def register_engine(self, info: EngineInfo, now: float) -> None:
        """Offer an engine's places. Registering again keeps what is held on it."""
        engine = _Engine(info, now, [0] * info.ranks, [0] * info.ranks)
        self._engines[info.engine_id] = engine
        for live in self._held.values():
            if live.placement.engine_id == info.engine_id:
                self._count(live, +1)
        self.version += 1
        self._fill(now)

    def report_load(self, load: EngineLoad, now: float) -> bool:
        """A sign of life; False: unknown engine, it must register again."""
        engine = self._engines.get(load.engine_id)
        if engine is not None:
            engine.last_seen = now
        return engine is not None

    def deregister_engine(self, engine_id: str) -> None:
        if self._engines.pop(engine_id, None) is not None:
            self.version += 1

    def heartbeat(self, gateway_id: str, now: float) -> str:
        """A gateway's sign of life; returns its session: another one if it had vanished."""
        gateway = self._gateways.get(gateway_id)
        if gateway is None:
            self._sessions += 1
            gateway = _Gateway(f"{self._incarnation}.{self._sessions}", now)
            self._gateways[gateway_id] = gateway
        gateway.last_seen = now
        return gateway.session

    def place(
        self, gateway_id: str, request: PlacementRequest, now: float
    ) -> Placement | Waiting | Refused:
        """Place, queue or refuse a request; asked again for the same one, answer the same."""
        self.heartbeat(gateway_id, now)
        key = (gateway_id, request.request_id)
        if (live := self._held.get(key)) is not None:
            return live.placement
        if key in self._queue:
            return Waiting(request.request_id)
        self._gateways[gateway_id].outcomes.pop(request.request_id, None)
        if refused := self._refusal(request, now):
            return refused
        if (chosen := self._choose(request)) is not None:
            return self._hold(gateway_id, request, *chosen)
        if not self._queue.has_room(request.prompt_tokens):
            return self._refuse(request, "queue_full", "the waiting queue is full", now)
        entry = self._queue.add(gateway_id, request, now)
        self._note_stranded(entry, now)
        return Waiting(request.request_id)

    def release(self, gateway_id: str, request_ids: Iterable[str], now: float) -> None:
        """Free places and queue entries; ids that are not known are none to free."""
        gateway = self._gateways.get(gateway_id)
        for request_id in request_ids:
            if gateway is not None:
                gateway.outcomes.pop(request_id, None)
            live = self._held.pop((gateway_id, request_id), None)
            if live is not None:
                self._count(live, -1)
                self._releases.append(now)
            else:
                self._queue.remove((gateway_id, request_id))
        self._fill(now)

    def announce(self, gateway_id: str, placements: Iterable[LivePlacement], now: float) -> None:
        """Take back placements made before this session; they hold, also above the places."""
        self.heartbeat(gateway_id, now)
        for live in placements:
            key = (gateway_id, live.placement.request_id)
            if key not in self._held:
                self._queue.remove(key)
                self._held[key] = live
                self._count(live, +1)

    def has_outcomes(self, gateway_id: str) -> bool:
        gateway = self._gateways.get(gateway_id)
        return gateway is not None and bool(gateway.outcomes)

    def take_outcomes(self, gateway_id: str) -> list[Placement | Refused]:
        """Outcomes of requests that waited, each handed out once."""
        gateway = self._gateways.get(gateway_id)
        if gateway is None:
            return []
        outcomes = list(gateway.outcomes.values())
        gateway.outcomes.clear()
        return outcomes

    def expire(self, now: float) -> None:
        """Drop engines and gateways that are silent, and requests whose time is over."""
        for engine_id, engine in list(self._engines.items()):
            if now - engine.last_seen > self.limits.engine_timeout_s:
                self.deregister_engine(engine_id)
        for gateway_id, gateway in list(self._gateways.items()):
            if now - gateway.last_seen > self.limits.gateway_timeout_s:
                self._forget_gateway(gateway_id, now)
        self._give_up(now)

    def _forget_gateway(self, gateway_id: str, now: float) -> None:
        held = [request_id for owner, request_id in self._held if owner == gateway_id]
        waiting = [e.request.request_id for e in self._queue if e.gateway_id == gateway_id]
        self.release(gateway_id, held + waiting, now)
        del self._gateways[gateway_id]

    def _refusal(self, request: PlacementRequest, now: float) -> Refused | None:
        if _is_expired(request, now):
            return Refused(request.request_id, "deadline", "the deadline passed", 0.0)
        serves_it = any(e.info.model == request.model for e in self._engines.values())
        if self._engines and not serves_it:
            message = f"no engine serves the model {request.model!r}"
            return Refused(request.request_id, "model_not_found", message, 0.0)
        return None

    def _refuse(self, request: PlacementRequest, reason: str, message: str, now: float) -> Refused:
        """Refuse with the time that the queue takes to empty at the measured rate."""
        window = self.limits.drain_window_s
        while self._releases and now - self._releases[0] > window:
            self._releases.popleft()
        rate = len(self._releases) / window
        delay = max(1, len(self._queue)) / rate if rate else MAX_RETRY_S
        delay = min(max(delay, MIN_RETRY_S), MAX_RETRY_S)
        return Refused(request.request_id, reason, message, delay)

    def _usable(self, request: PlacementRequest) -> list[_Engine]:
        avoid = request.avoid_engine_ids
        engines = self._engines.items()
        return [e for name, e in engines if e.info.model == request.model and name not in avoid]

    def _choose(self, request: PlacementRequest) -> tuple[str, int] | None:
        """The rank with the fewest held tokens per free place; a conversation's last one first."""
        free = [
            (engine, rank)
            for engine in self._usable(request)
            for rank in range(engine.info.ranks)
            if engine.free(rank)
        ]
        if not free:
            return None
        last = self._conversations.get(request.conversation_id)
        for engine, rank in free:
            if last == (engine.info.engine_id, rank):
                return last

        def load(place: tuple[_Engine, int]) -> tuple[float, float, str, int]:
            engine, rank = place
            tokens = engine.tokens[rank] / engine.free(rank)
            requests = engine.requests[rank] / engine.free(rank)
            return tokens, requests, engine.info.engine_id, rank

        engine, rank = min(free, key=load)
        return engine.info.engine_id, rank

    def _hold(
        self, gateway_id: str, request: PlacementRequest, engine_id: str, rank: int
    ) -> Placement:
        placement = Placement(request.request_id, engine_id, rank)
        live = LivePlacement(placement, request.prompt_tokens + request.max_output_tokens)
        self._held[gateway_id, request.request_id] = live
        self._count(live, +1)
        if request.conversation_id:
            self._conversations[request.conversation_id] = (engine_id, rank)
            self._conversations.move_to_end(request.conversation_id)
            if len(self._conversations) > self.limits.max_conversations:
                self._conversations.popitem(last=False)
        return placement

    def _count(self, live: LivePlacement, sign: int) -> None:
        engine = self._engines.get(live.placement.engine_id)
        if engine is not None and live.placement.rank < engine.info.ranks:
            engine.requests[live.placement.rank] += sign
            engine.tokens[live.placement.rank] += sign * live.tokens

    def _fill(self, now: float) -> None:
        """Give free places to those who wait, in order."""
        free = sum(e.free(rank) for e in self._engines.values() for rank in range(e.info.ranks))
        for entry in self._queue if free and len(self._queue) else ():
            if _is_expired(entry.request, now):
                continue
            if (chosen := self._choose(entry.request)) is not None:
                placement = self._hold(entry.gateway_id, entry.request, *chosen)
                self._settle(entry, placement)
                free -= 1
                if not free:
                    break

    def _give_up(self, now: float) -> None:
        """Refuse those who wait whose deadline passed, or whom no engine could take for long."""
        for entry in self._queue:
            request = entry.request
            if _is_expired(request, now):
                message = "the deadline passed while the request waited"
                self._settle(entry, Refused(request.request_id, "deadline", message, 0.0))
            elif self._note_stranded(entry, now):
                message = "no engine can take the request"
                self._settle(entry, self._refuse(request, "unavailable", message, now))

    def _settle(self, entry: WaitingEntry, outcome: Placement | Refused) -> None:
        self._queue.remove((entry.gateway_id, entry.request.request_id))
        self._gateways[entry.gateway_id].outcomes[entry.request.request_id] = outcome

    def _note_stranded(self, entry: WaitingEntry, now: float) -> bool:
        """Whether no engine could take the entry for as long as one waits for that."""
        if self._usable(entry.request):
            entry.stranded_since = None
            return False
        if entry.stranded_since is None:
            entry.stranded_since = now
        return now - entry.stranded_since >= self.limits.no_engine_wait_s

    def check_integrity(self, now: float) -> None:
        """Assert what must always hold; for tests, and cheap enough to call when idle."""
        self._queue.check_integrity()
        for engine_id, engine in self._engines.items():
            on_it = [p for p in self._held.values() if p.placement.engine_id == engine_id]
            for rank in range(engine.info.ranks):
                here = [p for p in on_it if p.placement.rank == rank]
                assert engine.requests[rank] == len(here), f"{engine_id}/{rank}: places"
                assert engine.tokens[rank] == sum(p.tokens for p in here), "tokens"
        for key, live in self._held.items():
            assert key[1] == live.placement.request_id
            assert key not in self._queue, f"{key} is both placed and waiting"
            assert key[0] in self._gateways, f"{key} belongs to no gateway"
        for entry in self._queue:
            assert entry.gateway_id in self._gateways
            if not _is_expired(entry.request, now):
                assert self._choose(entry.request) is None, f"{entry.request} waits at a free place"
        assert len(self._conversations) <= self.limits.max_conversations


def _is_expired(request: PlacementRequest, now: float) -> bool:
    return request.deadline is not None and request.deadline <= now
