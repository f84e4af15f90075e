"""The one bounded queue of requests that wait for a place.

Order: priority, then arrival, and nobody starves. One step of priority is worth a fixed number of
seconds of waiting, so a request's place in the order never changes while it waits: the key is its
arrival, moved back by its priority.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from moeray.cluster.contracts import PlacementRequest


@dataclass(slots=True, kw_only=True)
class WaitingEntry:
    """One request in the queue. Times are Unix times in seconds."""

    gateway_id: str
    request: PlacementRequest
    order: tuple[float, int]
    stranded_since: float | None = None
    """Since when no engine could ever take it; None while one could."""


@dataclass(slots=True, kw_only=True)
class WaitingQueue:
    """Bounded in requests and in prompt tokens; iterates in the order of service."""

    max_requests: int
    max_tokens: int
    priority_step_s: float
    tokens: int = 0
    """Prompt tokens of all that wait."""
    held_tokens: int = 0
    """Tokens that they will hold: prompts and limits on output."""
    by_key: dict[tuple[str, str], WaitingEntry] = field(default_factory=dict)
    """By gateway and request; to be read only."""
    _entries: list[WaitingEntry] = field(default_factory=list)
    _arrivals: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[WaitingEntry]:
        """A snapshot, so that entries may be removed on the way."""
        return iter(tuple(self._entries))

    def has_room(self, prompt_tokens: int) -> bool:
        """Whether one more fits. A prompt above the bound in tokens may wait alone."""
        if len(self._entries) >= self.max_requests:
            return False
        return not self._entries or self.tokens + prompt_tokens <= self.max_tokens

    def add(self, gateway_id: str, request: PlacementRequest, now: float) -> WaitingEntry:
        self._arrivals += 1
        order = (now - request.priority * self.priority_step_s, self._arrivals)
        entry = WaitingEntry(gateway_id=gateway_id, request=request, order=order)
        insort(self._entries, entry, key=_order)
        self.by_key[gateway_id, request.request_id] = entry
        self.tokens += request.prompt_tokens
        self.held_tokens += request.prompt_tokens + request.max_output_tokens
        return entry

    def remove(self, key: tuple[str, str]) -> bool:
        """Take an entry out; False if it does not wait."""
        entry = self.by_key.pop(key, None)
        if entry is None:
            return False
        del self._entries[bisect_left(self._entries, entry.order, key=_order)]
        request = entry.request
        self.tokens -= request.prompt_tokens
        self.held_tokens -= request.prompt_tokens + request.max_output_tokens
        return True

    def check_integrity(self) -> None:
        orders = [entry.order for entry in self._entries]
        assert orders == sorted(orders), "the queue is out of order"
        assert self.tokens == sum(e.request.prompt_tokens for e in self._entries)
        outputs = sum(e.request.max_output_tokens for e in self._entries)
        assert self.held_tokens == self.tokens + outputs
        keys = {(e.gateway_id, e.request.request_id) for e in self._entries}
        assert keys == set(self.by_key) and len(keys) == len(self._entries)
        assert len(self._entries) <= self.max_requests
        assert len(self._entries) <= 1 or self.tokens <= self.max_tokens


def _order(entry: WaitingEntry) -> tuple[float, int]:
    return entry.order
