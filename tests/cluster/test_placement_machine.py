"""Placement policy as a state machine against a simple model of who holds and caches what."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moeray.cluster.contracts import LivePlacement, Placement, Refused, Waiting
from moeray.cluster.drain_rate import MAX_RETRY_S, MIN_RETRY_S
from moeray.cluster.placement import PlacementLimits, PlacementPolicy

from .contract_samples import chain, engine, kv_events, load, longest_hit, request

WINDOW_TOKENS = 33
PROMPTS = [chain(name, 6) for name in "pq"]
HASHES = [block_hash for prompt in PROMPTS for block_hash in prompt]


@dataclass
class Cache:
    """A rank's prefix cache as its engine has it, and as the router must know it."""

    full: set[bytes] = field(default_factory=set)
    window: set[bytes] = field(default_factory=set)
    sequence_number: int = 0
    known_full: set[bytes] = field(default_factory=set)
    known_window: set[bytes] = field(default_factory=set)
    heard_number: int = 0


class PlacementMachine(RuleBasedStateMachine):
    """Random engines, gateways and requests; the model knows who holds a place and who waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.limits = PlacementLimits(max_waiting=3, max_waiting_tokens=60, no_engine_wait_s=7.0)
        self.placing = PlacementPolicy(self.limits, incarnation="machine")
        self.deadlines: dict[tuple[str, str], float | None] = {}
        self.prompts: dict[tuple[str, str], tuple[int, Sequence[bytes]]] = {}
        self.placed: dict[tuple[str, str], Placement] = {}
        self.waiting: set[tuple[str, str]] = set()
        self.announced: set[tuple[str, str]] = set()
        self.counter = 0
        self.caches: dict[tuple[str, int], Cache] = defaultdict(Cache)

    def settle(self, key: tuple[str, str], outcome: Placement | Waiting | Refused) -> None:
        assert outcome.request_id == key[1]
        if isinstance(outcome, Waiting):
            self.waiting.add(key)
            return
        self.waiting.discard(key)
        if isinstance(outcome, Placement):
            deadline = self.deadlines[key]
            assert deadline is None or deadline > self.now, "an expired request was placed"
            assert outcome.cached_tokens == 16 * self.naive_hit(key, outcome)
            self.placed[key] = outcome
        else:
            assert outcome.reason in ("queue_full", "model_not_found", "unavailable", "deadline")
            if outcome.reason in ("queue_full", "unavailable"):
                assert MIN_RETRY_S <= outcome.retry_after_s <= MAX_RETRY_S

    def naive_hit(self, key: tuple[str, str], placed: Placement) -> int:
        cache = self.caches[placed.engine_id, placed.rank]
        tokens, hashes = self.prompts[key]
        return longest_hit(cache.known_full, cache.known_window, hashes, tokens, WINDOW_TOKENS)

    def collect(self) -> None:
        for gateway_id in ("g0", "g1"):
            for outcome in self.placing.take_outcomes(gateway_id):
                key = (gateway_id, outcome.request_id)
                assert key in self.waiting, "an outcome for nobody who waits"
                self.settle(key, outcome)

    @rule(number=st.integers(0, 2), ranks=st.integers(1, 2), model=st.sampled_from("mn"))
    def register(self, number: int, ranks: int, model: str) -> None:
        if all(info.engine_id != f"e{number}" for info in self.placing.engines):
            held_ranks = [p.rank for p in self.placed.values() if p.engine_id == f"e{number}"]
            ranks = max([ranks, *(rank + 1 for rank in held_ranks)])
            info = engine(
                f"e{number}", ranks=ranks, places=2, model=model, window_tokens=WINDOW_TOKENS
            )
            self.router_forgets(f"e{number}")
            self.placing.register_engine(info, self.now)
            self.collect()

    def router_forgets(self, engine_id: str) -> None:
        """Its engine goes on counting, so that the next events come behind a gap."""
        for (owner, _), cache in self.caches.items():
            if owner == engine_id:
                cache.known_full, cache.known_window, cache.heard_number = set(), set(), 0

    @rule(
        number=st.integers(0, 2),
        rank=st.integers(0, 1),
        stored=st.sets(st.sampled_from(HASHES)),
        removed=st.sets(st.sampled_from(HASHES)),
        window_too=st.booleans(),
        fate=st.sampled_from(["heard", "heard", "heard", "lost", "repeated"]),
    )
    def cache_changes(
        self,
        number: int,
        rank: int,
        stored: set[bytes],
        removed: set[bytes],
        window_too: bool,
        fate: str,
    ) -> None:
        if rank not in self.ranks_of(f"e{number}"):
            return
        cache = self.caches[f"e{number}", rank]
        cache.full = (cache.full - removed) | stored
        cache.window = (cache.window - removed) | (stored if window_too else set())
        cache.sequence_number += 1
        if fate == "lost":
            return
        events = kv_events(
            cache.sequence_number,
            rank=rank,
            full=stored,
            gone_full=removed,
            window=stored if window_too else (),
            gone_window=removed,
        )
        misses_some = cache.sequence_number != cache.heard_number + 1
        for _ in range(2 if fate == "repeated" else 1):
            wanted = self.placing.report_kv(f"e{number}", [events], self.now)
            assert wanted == ([rank] if misses_some else [])
        if not misses_some:
            cache.heard_number = cache.sequence_number
            cache.known_full, cache.known_window = set(cache.full), set(cache.window)

    @rule(number=st.integers(0, 2), rank=st.integers(0, 1))
    def snapshot(self, number: int, rank: int) -> None:
        if rank not in self.ranks_of(f"e{number}"):
            return
        cache = self.caches[f"e{number}", rank]
        cache.sequence_number += 1
        events = kv_events(
            cache.sequence_number,
            rank=rank,
            full=cache.full,
            window=cache.window,
            is_snapshot=True,
        )
        assert self.placing.report_kv(f"e{number}", [events], self.now) == []
        cache.heard_number = cache.sequence_number
        cache.known_full, cache.known_window = set(cache.full), set(cache.window)

    def ranks_of(self, engine_id: str) -> range:
        infos = {info.engine_id: info for info in self.placing.engines}
        return range(infos[engine_id].ranks) if engine_id in infos else range(0)

    @rule(number=st.integers(0, 2))
    def deregister(self, number: int) -> None:
        self.placing.deregister_engine(f"e{number}")

    @rule(
        gateway=st.integers(0, 1),
        tokens=st.integers(1, 120),
        prompt=st.sampled_from(PROMPTS),
        priority=st.integers(-100, 100),
        patience=st.none() | st.floats(0.0, 5.0),
        model=st.sampled_from("mn"),
        conversation=st.sampled_from(["", "c"]),
        avoid=st.sets(st.sampled_from(["e0", "e1"])),
    )
    def place(
        self,
        gateway: int,
        tokens: int,
        prompt: tuple[bytes, ...],
        priority: int,
        patience: float | None,
        model: str,
        conversation: str,
        avoid: set[str],
    ) -> None:
        self.counter += 1
        key = (f"g{gateway}", f"r{self.counter}")
        self.deadlines[key] = None if patience is None else self.now + patience
        asked = request(
            key[1],
            tokens=tokens,
            priority=priority,
            deadline=self.deadlines[key],
            model=model,
            conversation=conversation,
            avoid=tuple(sorted(avoid)),
            hashes=prompt[: tokens // 16],
        )
        self.prompts[key] = (tokens, asked.block_hashes)
        outcome = self.placing.place(key[0], asked, self.now)
        self.settle(key, outcome)
        if isinstance(outcome, Placement):
            assert outcome.engine_id not in avoid
            assert self.placing.place(key[0], asked, self.now) == outcome

    @rule(choice=st.integers(0, 100))
    def release(self, choice: int) -> None:
        known = sorted(set(self.placed) | self.waiting)
        if known:
            key = known[choice % len(known)]
            self.placing.release(key[0], [key[1]], self.now)
            self.placed.pop(key, None)
            self.waiting.discard(key)
            self.announced.discard(key)
            self.collect()

    @rule(seconds=st.floats(0.1, 4.0), reporting=st.booleans())
    def time_passes(self, seconds: float, reporting: bool) -> None:
        self.now += seconds
        for gateway_id in ("g0", "g1"):
            self.placing.heartbeat(gateway_id, self.now)
        if reporting:
            for info in self.placing.engines:
                assert self.placing.report_load(load(info.engine_id), self.now)
        self.placing.expire(self.now)
        self.collect()
        late = [k for k in self.waiting if (d := self.deadlines[k]) is not None and d <= self.now]
        assert late == [], "a request waits past its deadline"

    @rule(seconds=st.floats(1.0, 100.0))
    def router_stands_still(self, seconds: float) -> None:
        engines = self.placing.engines
        self.now += seconds
        self.placing.excuse(self.now)
        self.placing.expire(self.now)
        assert self.placing.engines == engines
        self.collect()

    @rule(gateway=st.integers(0, 1))
    def gateway_vanishes(self, gateway: int) -> None:
        gone, other = f"g{gateway}", f"g{1 - gateway}"
        self.placing.heartbeat(gone, self.now)
        self.now += self.limits.gateway_timeout_s + 1
        self.placing.heartbeat(other, self.now)
        for info in self.placing.engines:
            self.placing.report_load(load(info.engine_id), self.now)
        self.placing.expire(self.now)
        self.placed = {k: p for k, p in self.placed.items() if k[0] != gone}
        self.waiting = {k for k in self.waiting if k[0] != gone}
        self.announced = {k for k in self.announced if k[0] != gone}
        self.collect()

    @rule()
    def router_restarts(self) -> None:
        engines = self.placing.engines
        self.placing = PlacementPolicy(self.limits, incarnation="again")
        for gateway_id in ("g0", "g1"):
            mine = [LivePlacement(p, 5) for k, p in self.placed.items() if k[0] == gateway_id]
            self.placing.announce(gateway_id, mine, self.now)
        self.waiting.clear()
        self.announced = set(self.placed)
        for info in engines:
            self.router_forgets(info.engine_id)
            self.placing.register_engine(info, self.now)

    @invariant()
    def places_are_counted(self) -> None:
        self.placing.check_integrity(self.now)
        for info in self.placing.engines:
            for rank in range(info.ranks):
                here = [
                    k
                    for k, p in self.placed.items()
                    if (p.engine_id, p.rank) == (info.engine_id, rank)
                ]
                assert len(here) <= info.max_running_per_rank, "more requests than places"


PlacementMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
TestPlacementMachine = PlacementMachine.TestCase
