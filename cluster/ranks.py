"""What the router knows of one rank of an engine, and which rank of a model has the least to do.

Pure data and policy: no Ray, no clock. Finding the least loaded rank costs the same however many
ranks there are.
"""

import heapq
from collections.abc import Collection
from dataclasses import dataclass, field
from math import inf

from moeray.cluster.contracts import EngineInfo

HELD_TOKEN_COST = 0.5
"""Prompt tokens to compute that weigh as much as one token held on a rank.

A request on a rank slows every step of those beside it, for as long as they generate. A step of a
20b model grows by about 0.06 ms with each request, the time in which the same GPU computes some
five prompt tokens; but held tokens are limits, of which answers use a part.
"""

Entry = tuple[float, int, int, "Rank"]
"""Load, turn, serial number, and the rank they were those of."""


@dataclass(slots=True, eq=False, kw_only=True)
class Rank:
    """One rank: its places, and its prefix cache as its engine's events tell it."""

    info: EngineInfo
    number: int
    """In its engine."""
    serial: int
    """Another one for each rank of a router's life."""
    engine_id: str = field(init=False)
    model: str = field(init=False)
    places: int = field(init=False)
    block_tokens: int = field(init=False)
    window_blocks: int = field(init=False)
    """Windowed blocks that a hit needs before its end."""
    requests: int = 0
    """Held places."""
    tokens: int = 0
    """Of the held places: prompts but what was cached of them, and limits on output."""
    load: float = 0.0
    """Cost of what is held, in prompt tokens to compute. Infinite: it takes no request."""
    turn: int = 0
    """Number of the placement that came here last: of equals, the one with the oldest is next."""
    full: set[bytes] = field(default_factory=set)
    """Hashes of the cached blocks of the full-attention layers."""
    window: set[bytes] = field(default_factory=set)
    """Hashes of the cached blocks of the windowed layers."""
    sequence_number: int = 0
    """Of the last events that were taken in."""
    alone: tuple["Rank", ...] = field(init=False)
    """This rank as the only holder of a block: one tuple for all its blocks."""
    entry: Entry | None = None
    """Its entry in the order of load; older ones are void."""

    def __post_init__(self) -> None:
        self.engine_id = self.info.engine_id
        self.model = self.info.model
        self.places = self.info.max_running_per_rank
        self.block_tokens = self.info.block_tokens
        self.window_blocks = -(-(self.info.window_tokens - 1) // self.info.block_tokens)
        self.alone = (self,)
        self.weigh()

    @property
    def free(self) -> int:
        """Places that nobody holds."""
        return max(0, self.places - self.requests)

    def hold(self, requests: int, tokens: int) -> None:
        """That many more places are held, or fewer."""
        self.requests += requests
        self.tokens += tokens
        self.weigh()

    def weigh(self) -> None:
        """Set ``load``: held tokens, weighing the more the fewer places are free."""
        free = self.places - self.requests
        self.load = HELD_TOKEN_COST * self.tokens * self.places / free if free > 0 else inf


class RankOrder:
    """The ranks of one model by load.

    A heap with one valid entry for each rank, which is never above what the rank would have now: a
    rank that got work keeps its entry until that comes to the top, one that lost work gets another.
    """

    def __init__(self) -> None:
        self.ranks: set[Rank] = set()
        self._heap: list[Entry] = []

    def add(self, rank: Rank) -> None:
        self.ranks.add(rank)
        self._push(rank)

    def remove(self, rank: Rank) -> None:
        """Take a rank out; it will never be chosen again."""
        self.ranks.discard(rank)
        rank.load, rank.entry = inf, None

    def work_left(self, rank: Rank) -> None:
        """To be called when a rank's load fell."""
        entry = rank.entry
        if entry is not None and rank.load < entry[0]:
            self._push(rank)

    def least_loaded(self, avoid_engine_ids: Collection[str] = ()) -> Rank | None:
        """The free rank with the least load, of equals the one whose last placement is oldest."""
        passed = []
        rank = self._top()
        while rank is not None and rank.engine_id in avoid_engine_ids:
            passed.append(heapq.heappop(self._heap))
            rank = self._top()
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return rank

    def _top(self) -> Rank | None:
        heap = self._heap
        while heap:
            entry = heap[0]
            rank = entry[3]
            if rank.entry is not entry:
                heapq.heappop(heap)
            elif entry[0] == rank.load and entry[1] == rank.turn:
                return rank if rank.load < inf else None
            else:
                rank.entry = (rank.load, rank.turn, rank.serial, rank)
                heapq.heapreplace(heap, rank.entry)
        return None

    def _push(self, rank: Rank) -> None:
        rank.entry = (rank.load, rank.turn, rank.serial, rank)
        heapq.heappush(self._heap, rank.entry)
        if len(self._heap) > 2 * len(self.ranks) + 64:
            self._heap = [entry for entry in self._heap if entry[3].entry is entry]
            heapq.heapify(self._heap)

    def check_integrity(self) -> None:
        """Assert that every rank is in the heap once, at or below its own place."""
        valid = [entry for entry in self._heap if entry[3].entry is entry]
        assert {entry[3] for entry in valid} == self.ranks
        assert len(valid) == len(self.ranks)
        for load, turn, _, rank in valid:
            assert (load, turn) <= (rank.load, rank.turn), "an entry above its rank"
        assert len(self._heap) <= 2 * len(self.ranks) + 64
        best = self.least_loaded()
        assert best is None or best.load == min(rank.load for rank in self.ranks)
        assert best is not None or all(rank.load == inf for rank in self.ranks)
