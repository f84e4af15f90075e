"""Where prompts were placed a moment ago: they will be cached there, but no event says so yet.

Pure policy: no Ray, no clock of its own. A hint and no more: it decides between ranks and is told
to nobody. It lives for one to two lifetimes; by then events have said more.
"""

from bisect import bisect_right
from collections.abc import Sequence

from moeray.cluster.ranks import Rank

DEPTHS = tuple(sorted({size << power for size in (4, 6) for power in range(14)}))
"""Prefixes are noted at these lengths in blocks only, two in each octave: what two prompts share is
underrated by a third at most, and few look-ups find it."""


class RecentPrefixes:
    """The last rank of each prefix, for ``lifetime_s`` at least while there is room."""

    def __init__(self, *, lifetime_s: float, max_prefixes: int) -> None:
        self._lifetime_s = lifetime_s
        self._max_prefixes = max_prefixes
        self._young: dict[bytes, Rank] = {}
        self._old: dict[bytes, Rank] = {}
        self._turned_at = 0.0

    def note(self, hashes: Sequence[bytes], known: int, rank: Rank, now: float) -> None:
        """A prompt was placed on the rank, which is known to have its first ``known`` blocks."""
        if now - self._turned_at >= self._lifetime_s or len(self._young) >= self._max_prefixes:
            is_recent = now - self._turned_at < 2 * self._lifetime_s
            self._old = self._young if is_recent else {}
            self._young = {}
            self._turned_at = now
        for depth in DEPTHS[bisect_right(DEPTHS, known) : bisect_right(DEPTHS, len(hashes))]:
            self._young[hashes[depth - 1]] = rank

    def find(
        self, hashes: Sequence[bytes], known: int, limit: int, now: float
    ) -> tuple[Rank, int] | None:
        """The rank where the longest prefix of ``known`` to ``limit`` blocks went; its length."""
        if now - self._turned_at >= 2 * self._lifetime_s:
            return None
        found = None
        for depth in DEPTHS[bisect_right(DEPTHS, known) : bisect_right(DEPTHS, limit)]:
            block_hash = hashes[depth - 1]
            rank = self._young.get(block_hash) or self._old.get(block_hash)
            if rank is None:
                break
            found = rank, depth
        return found

    def check_integrity(self) -> None:
        assert len(self._young) <= self._max_prefixes + len(DEPTHS)
        assert len(self._old) <= self._max_prefixes + len(DEPTHS)
