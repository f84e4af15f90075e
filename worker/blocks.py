"""KV blocks: who holds which, in plain Python.

A rank has two pools of blocks: one for its full-attention layers, where a sequence keeps a block
for every stretch of positions, and one for its windowed layers, where blocks that no later query
can see go back to the pool. Both remember what they computed, by hash, until the block is needed
for something else (``block_pool.py``, ``prefix_cache.py``).

A table's leading blocks may be shared with other tables. They are whole, computed and never
written again: a sequence writes only behind what it found.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from moeray.worker.block_pool import BlockPool
from moeray.worker.kv_plan import KvPlan
from moeray.worker.prefix_cache import Hit, longest_hit


@dataclass(slots=True, eq=False)
class BlockTable:
    """One sequence's blocks. Both groups always reach to the same position."""

    full: "array[int]" = field(default_factory=lambda: array("i"))
    """Entry i holds logical block i, that is positions i * block_tokens on."""
    window: "array[int]" = field(default_factory=lambda: array("i"))
    """Entry i holds logical block window_first + i."""
    window_first: int = 0
    end: int = 0
    """Positions below this are held."""
    published: int = 0
    """Leading blocks that were found in the cache, or published to it."""
    due: int = 0
    """Computed positions at which there is a block to publish or to give back."""
    version: int = 0
    """Another whenever the ids in the table change."""


class KvBlocks:
    """The two pools of one rank, and the rules by which block tables grow and shrink."""

    def __init__(self, plan: KvPlan) -> None:
        self.full = BlockPool(plan.full_blocks)
        self.window = BlockPool(plan.window_blocks)
        self.block_tokens = plan.block_tokens
        self._window_tokens = plan.window_tokens
        # The positions that one query sees touch at most this many blocks.
        self._window_span = -(-(plan.window_tokens - 1) // plan.block_tokens) + 1

    def needed(self, tokens: int) -> tuple[int, int]:
        """Blocks (full, windowed) that a sequence of that many tokens holds while it decodes."""
        blocks = -(-tokens // self.block_tokens)
        return blocks, min(blocks, self._window_span)

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens of the longest sequence that fits when it is alone."""
        blocks = self.full.capacity
        if self.window.capacity < self._window_span:
            blocks = min(blocks, self.window.capacity)
        return blocks * self.block_tokens

    def find(self, hashes: Sequence[bytes]) -> Hit:
        """The longest hit for a sequence whose first whole blocks have these hashes."""
        return longest_hit(
            self.full,
            self.window,
            hashes,
            block_tokens=self.block_tokens,
            window_tokens=self._window_tokens,
        )

    def cost(self, tokens: int, hit: Hit) -> tuple[int, int]:
        """Free blocks (full, windowed) that a sequence of that many tokens takes after the hit:
        the cached blocks of the hit itself are free until somebody refers to them.
        """
        full, window = self.needed(tokens)
        full -= len(hit.full) - self.full.unreferenced(hit.full)
        window -= len(hit.window) - self.window.unreferenced(hit.window)
        return full, window

    def adopt(self, table: BlockTable, hit: Hit) -> None:
        """Begins an empty table with the blocks of a hit."""
        self.full.refer(hit.full)
        self.window.refer(hit.window)
        table.full.extend(hit.full)
        table.window.extend(hit.window)
        table.window_first = hit.window_first
        table.version += 1
        table.published = len(hit.full)
        table.end = len(hit.full) * self.block_tokens

    def missing(self, table: BlockTable, tokens: int) -> int:
        """Full blocks that the table lacks for that many tokens."""
        return -(-tokens // self.block_tokens) - len(table.full)

    def reach(self, table: BlockTable, *, leaving: int = 0) -> int:
        """Positions below this are in the table, or would be with the free blocks, but for
        ``leaving`` of them where there are more.
        """
        free = min(self.full.free_blocks, self.window.free_blocks)
        usable = max(free - leaving, min(free, 1))
        return (len(table.full) + usable) * self.block_tokens

    def grow(self, table: BlockTable, end: int) -> None:
        """Makes the table hold positions below ``end``; raises ValueError beyond its reach."""
        missing = self.missing(table, end)
        if missing > 0:
            if missing > (free := min(self.full.free_blocks, self.window.free_blocks)):
                raise ValueError(f"{missing} blocks wanted, {free} free")
            table.full.extend(self.full.take(missing))
            table.window.extend(self.window.take(missing))
            table.version += 1
            table.end = len(table.full) * self.block_tokens

    def add_block(self, table: BlockTable) -> bool:
        """Takes one block more for the table's next position; False where none is free."""
        if not self.full.free_blocks or not self.window.free_blocks:
            return False
        table.full.extend(self.full.take(1))
        table.window.extend(self.window.take(1))
        table.version += 1
        table.end += self.block_tokens
        return True

    def settle(self, table: BlockTable, hashes: Sequence[bytes], computed: int) -> None:
        """Publishes the whole blocks below position ``computed``, whose hashes are given, and
        gives back the windowed blocks that no query from there on can see.
        """
        for index in range(table.published, computed // self.block_tokens):
            self.full.publish(table.full[index], hashes[index])
            self.window.publish(table.window[index - table.window_first], hashes[index])
            table.published = index + 1
        first_seen = (computed - self._window_tokens + 1) // self.block_tokens
        if (behind := first_seen - table.window_first) > 0:
            self.window.give_back(table.window[:behind])
            del table.window[:behind]
            table.window_first = first_seen
            table.version += 1
        next_behind = (table.window_first + 1) * self.block_tokens + self._window_tokens - 1
        table.due = min((table.published + 1) * self.block_tokens, next_behind)

    def clear(self, table: BlockTable) -> None:
        """Gives back everything, the last block first: a prefix is of use without what follows
        it, and not the other way round. The table starts again at position 0.
        """
        self.full.give_back(reversed(table.full))
        self.window.give_back(reversed(table.window))
        del table.full[:]
        del table.window[:]
        table.window_first = table.published = table.due = table.end = 0
        table.version += 1

    def withdraw(self, hashes: Sequence[bytes]) -> None:
        """Makes unknown what is published under these hashes, for what was computed wrong."""
        for block_hash in hashes:
            self.full.withdraw(block_hash)
            self.window.withdraw(block_hash)

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Raises RuntimeError unless the tables and the pools hold every block exactly once."""
        self.full.check_integrity(block for table in tables for block in table.full)
        self.window.check_integrity(block for table in tables for block in table.window)
        for table in tables:
            if len(table.full) != table.window_first + len(table.window):
                raise RuntimeError("a block table's groups end at different positions")
            if table.end != len(table.full) * self.block_tokens:
                raise RuntimeError("a block table does not know where it ends")
            if not table.window_first <= table.published <= len(table.full):
                raise RuntimeError("a block table has given back blocks before publishing them")
