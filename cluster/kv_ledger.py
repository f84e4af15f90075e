"""Which rank has which KV blocks cached, as engines tell it, and how much of a prompt that covers.

Pure policy: no Ray, no clock. A block's hash stands for the whole prefix up to its end
(``vocabulary/block_hash.py``). Each rank's blocks are known by group; for the full-attention group
an index also leads from a hash to the ranks that hold it, so that a look-up costs by what it finds,
not by the number of ranks.

A hit of L blocks needs the full-attention blocks before L, all of them, and the windowed blocks
that the first token behind it looks back on: of positions
``L * block_tokens - (window_tokens - 1)`` to ``L * block_tokens - 1``. Where these are gone, a
shorter L may have them.
"""

from collections.abc import Container, Iterable, Sequence
from itertools import takewhile

from moeray.cluster.contracts import KvEvents
from moeray.cluster.ranks import Rank

FEW = 4
"""Holders of a block that are compared with those of another."""


class KvLedger:
    """The blocks of all ranks. It holds nothing that no rank holds."""

    def __init__(self) -> None:
        self._holders: dict[bytes, tuple[Rank, ...]] = {}
        """By hash of a full-attention block."""

    def apply(self, rank: Rank, events: KvEvents) -> bool:
        """Take events in; False: some were missed, and a snapshot is wanted.

        Until it comes, what was known stays and later events are passed over. Events that came
        before are passed over too: their sender did not hear that they had arrived.
        """
        if events.is_snapshot:
            self._replace(rank, set(events.stored_full), set(events.stored_window))
        elif events.sequence_number > rank.sequence_number + 1:
            return False
        elif events.sequence_number == rank.sequence_number + 1:
            self._remove(rank, events.removed_full)
            self._store(rank, events.stored_full)
            rank.window.difference_update(events.removed_window)
            rank.window.update(events.stored_window)
        else:
            return True
        rank.sequence_number = events.sequence_number
        return True

    def forget(self, rank: Rank) -> None:
        """Drop everything of a rank that is gone."""
        self._replace(rank, set(), set())

    def holders(self, block_hash: bytes) -> tuple[Rank, ...]:
        """The ranks that have a full-attention block."""
        return self._holders.get(block_hash, ())

    def deepest(self, hashes: Sequence[bytes], limit: int) -> tuple[int, tuple[Rank, ...], int]:
        """How far the ranks reach into the first ``limit`` blocks, in O(log limit) look-ups.

        Returns a depth that no rank's prefix goes beyond, the ranks that have the block there, and
        a depth that no other rank's prefix comes to. The first is that of the longest prefix, but
        for chains that lost a block in their middle everywhere.
        """
        known = self._holders.get
        if not limit or (holders := known(hashes[0])) is None:
            return 0, (), 1
        end, own, beyond = 1, 1, limit + 1
        while beyond - end > 1 and len(holders) > 1:
            middle = (end + beyond) // 2
            found = known(hashes[middle - 1])
            if found is None:
                beyond = middle
                continue
            end = middle
            if len(found) > FEW or found != holders:
                own, holders = middle, found
        if len(holders) == 1:
            full = holders[0].full
            while beyond - end > 1:
                middle = (end + beyond) // 2
                if hashes[middle - 1] in full:
                    end = middle
                else:
                    beyond = middle
        return end, holders, own

    def _replace(self, rank: Rank, full: set[bytes], window: set[bytes]) -> None:
        self._remove(rank, list(rank.full - full))
        self._store(rank, full)
        rank.window = window

    def _store(self, rank: Rank, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            if block_hash not in rank.full:
                rank.full.add(block_hash)
                others = self._holders.get(block_hash)
                self._holders[block_hash] = others + rank.alone if others else rank.alone

    def _remove(self, rank: Rank, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            if block_hash in rank.full:
                rank.full.remove(block_hash)
                others = tuple(r for r in self._holders[block_hash] if r is not rank)
                if others:
                    self._holders[block_hash] = others
                else:
                    del self._holders[block_hash]

    def check_integrity(self, ranks: Iterable[Rank]) -> None:
        """Assert that index and ranks agree, and that nothing of a rank that is gone is left."""
        ranks = list(ranks)
        for block_hash, holders in self._holders.items():
            assert holders and len(set(holders)) == len(holders), "empty or double holders"
            assert all(block_hash in rank.full for rank in holders), "a holder without the block"
            assert set(holders) <= set(ranks), "a holder that is gone"
        indexed = sum(len(holders) for holders in self._holders.values())
        assert indexed == sum(len(rank.full) for rank in ranks), "a block that is not indexed"


def chain_end(known: Container[bytes], hashes: Sequence[bytes], limit: int) -> int:
    """A length of the known chain among the first ``limit`` hashes, in O(log limit) look-ups.

    The hash behind it is not known, so no known chain is longer. It may be too long, where a hash
    in its middle is not known.
    """
    if not limit or hashes[0] not in known:
        return 0
    end, beyond = 1, limit + 1
    while beyond - end > 1:
        middle = (end + beyond) // 2
        if hashes[middle - 1] in known:
            end = middle
        else:
            beyond = middle
    return end


def cached_blocks(rank: Rank, hashes: Sequence[bytes]) -> int:
    """Blocks of the longest hit of a prompt's ``hashes`` on a rank."""
    if rank.full.issuperset(hashes):
        full = len(hashes)
    else:
        full = len(list(takewhile(rank.full.__contains__, hashes)))
    return windowed_end(rank, hashes, full)


def windowed_end(rank: Rank, hashes: Sequence[bytes], end: int) -> int:
    """The longest hit of at most ``end`` blocks as far as windowed blocks go."""
    window, reach = rank.window, rank.window_blocks
    while end > 0:
        start = end - reach if end > reach else 0
        if window.issuperset(hashes[start:end]):
            return end
        # No hit ends where its window would hold the first block that is missing.
        end = next(block for block in range(start, end) if hashes[block] not in window)
    return 0


def usable_blocks(hashes: Sequence[bytes], prompt_tokens: int, block_tokens: int) -> int:
    """How many blocks of a prompt a hit may have: the last token is always computed."""
    usable = (prompt_tokens - 1) // block_tokens
    if usable >= len(hashes):
        return len(hashes)
    return usable if usable > 0 else 0
