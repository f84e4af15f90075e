"""Where the tries of one answer failed, and which engines the next one keeps away from.

Pure policy. An engine that lost a request may have died of it: it never gets it again. One that was
not reached never saw it: others come first, but it is better than none.
"""

from collections.abc import Iterable

from moeray.cluster.contracts import EngineInfo
from moeray.cluster.errors import NotReached, Unavailable


class FailedTries:
    """The failed tries of one answer so far; their number is its length."""

    def __init__(self) -> None:
        self._lost_on: list[str] = []
        self._not_reached: list[str] = []

    def __len__(self) -> int:
        return len(self._lost_on) + len(self._not_reached)

    def note(self, engine_id: str, error: Unavailable) -> None:
        tries = self._not_reached if isinstance(error, NotReached) else self._lost_on
        tries.append(engine_id)

    def avoided(self, engines: Iterable[EngineInfo], model: str) -> tuple[str, ...]:
        """The ids of engines to keep away from, where ``engines`` are all there are."""
        failed = (*self._lost_on, *self._not_reached)
        if any(engine.model == model and engine.engine_id not in failed for engine in engines):
            return failed
        return tuple(self._lost_on)
