"""KV blocks: who holds which, in plain Python.

A rank has two pools of blocks: one for its full-attention layers, where a sequence keeps a block
for every stretch of positions, and one for its windowed layers, where blocks that no later query
can see go back to the pool. Block 0 of each pool is scratch: padded rows write there, unused
entries of a block table point there, and it is never handed out.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from moeray.worker.kv_plan import KvPlan


class BlockPool:
    """The free blocks of one pool; its ids are 1 to blocks - 1."""

    def __init__(self, blocks: int) -> None:
        if blocks < 2:
            raise ValueError(f"a pool of {blocks} blocks has none beside the scratch block")
        self.capacity = blocks - 1
        self._free = list(range(blocks - 1, 0, -1))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hands out ``count`` blocks; raises ValueError when fewer are free."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} free")
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        self._free.extend(blocks)

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raises RuntimeError unless ``held`` and the free blocks are every block exactly once."""
        if sorted([*self._free, *held]) != list(range(1, self.capacity + 1)):
            raise RuntimeError("a KV block is lost, shared, or free while held")


@dataclass(slots=True, eq=False)
class BlockTable:
    """One sequence's blocks. Both groups always reach to the same position."""

    full: "array[int]" = field(default_factory=lambda: array("i"))
    """Entry i holds logical block i, that is positions i * block_tokens on."""
    window: "array[int]" = field(default_factory=lambda: array("i"))
    """Entry i holds logical block window_first + i."""
    window_first: int = 0


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

    def reach(self, table: BlockTable) -> int:
        """Positions below this are in the table, or would be with every free block."""
        free = min(self.full.free_blocks, self.window.free_blocks)
        return (len(table.full) + free) * self.block_tokens

    def grow(self, table: BlockTable, end: int) -> None:
        """Makes the table hold positions below ``end``; raises ValueError beyond its reach."""
        missing = -(-end // self.block_tokens) - len(table.full)
        if missing > 0:
            table.full.extend(self.full.take(missing))
            table.window.extend(self.window.take(missing))

    def trim(self, table: BlockTable, position: int) -> None:
        """Gives back the windowed blocks that no query from ``position`` on can see."""
        first_seen = (position - self._window_tokens + 1) // self.block_tokens
        if (behind := first_seen - table.window_first) > 0:
            self.window.give_back(table.window[:behind])
            del table.window[:behind]
            table.window_first = first_seen

    def clear(self, table: BlockTable) -> None:
        """Gives back everything; the table starts again at position 0."""
        self.full.give_back(table.full)
        self.window.give_back(table.window)
        del table.full[:]
        del table.window[:]
        table.window_first = 0

    def check_integrity(self, tables: list[BlockTable]) -> None:
        """Raises RuntimeError unless the tables and the pools hold every block exactly once."""
        self.full.check_integrity(block for table in tables for block in table.full)
        self.window.check_integrity(block for table in tables for block in table.window)
        if any(len(t.full) != t.window_first + len(t.window) for t in tables):
            raise RuntimeError("a block table's groups end at different positions")
