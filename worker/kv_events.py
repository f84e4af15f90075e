"""What changes in the ranks' prefix caches, for the router that places requests by it.

Changes are batched and netted: a hash that came and went since the last take is not told, and one
that went and came back neither. A block pool notes its changes (``HashChanges``), the engine's
thread moves them into the journal between steps, and any thread takes them from there.
"""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankKvChanges:
    """What one rank's cache gained and lost since it was last taken, by block group.

    A snapshot holds everything that is cached and replaces what was known. Hashes are those of
    ``vocabulary/block_hash.py``; those stored are in the order in which they were stored.
    """

    rank: int
    stored_full: list[bytes]
    removed_full: list[bytes]
    stored_window: list[bytes]
    removed_window: list[bytes]
    is_snapshot: bool = False


class HashChanges:
    """Hashes stored and removed since the last clear, netted. One owner, no lock."""

    __slots__ = ("removed", "stored")

    def __init__(self) -> None:
        self.stored: dict[bytes, None] = {}
        self.removed: dict[bytes, None] = {}

    def __bool__(self) -> bool:
        return bool(self.stored or self.removed)

    def store(self, block_hash: bytes) -> None:
        """Notes a hash that was not there."""
        if block_hash in self.removed:
            del self.removed[block_hash]
        else:
            self.stored[block_hash] = None

    def remove(self, block_hash: bytes) -> None:
        """Notes that a hash is there no more."""
        if block_hash in self.stored:
            del self.stored[block_hash]
        else:
            self.removed[block_hash] = None

    def clear(self) -> None:
        self.stored.clear()
        self.removed.clear()


class _Group:
    """One rank's hashes of one block group: what is there, and what is not told yet."""

    __slots__ = ("changes", "held")

    def __init__(self) -> None:
        self.held: dict[bytes, None] = {}
        self.changes = HashChanges()

    def merge(self, changes: HashChanges) -> None:
        for block_hash in changes.removed:
            del self.held[block_hash]
            self.changes.remove(block_hash)
        for block_hash in changes.stored:
            self.held[block_hash] = None
            self.changes.store(block_hash)

    def take(self, is_snapshot: bool) -> tuple[list[bytes], list[bytes]]:
        """(stored, removed) since the last take, or (everything, nothing)."""
        stored = list(self.held if is_snapshot else self.changes.stored)
        removed = [] if is_snapshot else list(self.changes.removed)
        self.changes.clear()
        return stored, removed


class KvJournal:
    """The changes of all ranks between the engine's thread and whoever takes them.

    Thread-safe. It holds every cached hash once more, so that a snapshot waits for no step.
    """

    def __init__(self, ranks: int) -> None:
        self._lock = threading.Lock()
        self._full = [_Group() for _ in range(ranks)]
        self._window = [_Group() for _ in range(ranks)]
        self._snapshots_due: set[int] = set()

    def record(self, rank: int, full: HashChanges, window: HashChanges) -> None:
        """Takes over a rank's changes and clears them."""
        if full or window:
            with self._lock:
                self._full[rank].merge(full)
                self._window[rank].merge(window)
            full.clear()
            window.clear()

    def request_snapshot(self, rank: int) -> None:
        """The next changes taken of this rank are a snapshot. Raises ValueError if there is none
        such.
        """
        if not 0 <= rank < len(self._full):
            raise ValueError(f"rank {rank}: the engine has {len(self._full)}")
        with self._lock:
            self._snapshots_due.add(rank)

    def take(self) -> list[RankKvChanges]:
        """What changed since the last take; a rank without changes is left out."""
        with self._lock:
            changed = [rank for rank in range(len(self._full)) if self._is_due(rank)]
            return [self._take(rank) for rank in changed]

    def _is_due(self, rank: int) -> bool:
        changed = self._full[rank].changes or self._window[rank].changes
        return bool(changed) or rank in self._snapshots_due

    def _take(self, rank: int) -> RankKvChanges:
        is_snapshot = rank in self._snapshots_due
        self._snapshots_due.discard(rank)
        stored_full, removed_full = self._full[rank].take(is_snapshot)
        stored_window, removed_window = self._window[rank].take(is_snapshot)
        return RankKvChanges(
            rank=rank,
            stored_full=stored_full,
            removed_full=removed_full,
            stored_window=stored_window,
            removed_window=removed_window,
            is_snapshot=is_snapshot,
        )
