"""The blocks of one pool: who refers to which, and which hold a cached prefix.

A block is in one of three states. Referenced: one or more sequences have it in their tables.
Cached: nobody refers to it, but its keys and values are known under a hash and may be found again.
Free: neither. Cached blocks count as free, because they are evicted, the longest unused first, when
no free one is left. A block is published under its hash once all of its tokens are computed, and is
never written again while it has that hash.

Block 0 is scratch (see ``kv_plan.py``) and is never handed out.
"""

from collections import OrderedDict
from collections.abc import Iterable

from moeray.worker.kv_events import HashChanges


class BlockPool:
    """The blocks of one pool; its ids are 1 to blocks - 1."""

    def __init__(self, blocks: int) -> None:
        if blocks < 2:
            raise ValueError(f"a pool of {blocks} blocks has none beside the scratch block")
        self.capacity = blocks - 1
        self.free_blocks = blocks - 1
        """Blocks that ``take`` can hand out, cached ones among them: read far more than changed."""
        self.changes = HashChanges()
        """Hashes that came and went since somebody cleared it."""
        self._references = [0] * blocks
        self._hashes: list[bytes | None] = [None] * blocks
        self._published: dict[bytes, int] = {}
        self._free = list(range(blocks - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        """The longest unused first."""

    @property
    def referenced_blocks(self) -> int:
        return self.capacity - self.free_blocks

    @property
    def hashes(self) -> Iterable[bytes]:
        """Of all published blocks."""
        return self._published.keys()

    def find(self, block_hash: bytes) -> int | None:
        """The block published under this hash."""
        return self._published.get(block_hash)

    def unreferenced(self, blocks: Iterable[int]) -> int:
        """How many of these blocks nobody refers to."""
        references = self._references
        return sum(not references[block] for block in blocks)

    def take(self, count: int) -> list[int]:
        """Hands out ``count`` blocks for writing; raises ValueError when fewer are free."""
        if count > self.free_blocks:
            raise ValueError(f"{count} blocks wanted, {self.free_blocks} free")
        free = self._free
        first = max(0, len(free) - count)
        taken = free[first:]
        del free[first:]
        while len(taken) < count:
            block, _ = self._cached.popitem(last=False)
            self._forget(block)
            taken.append(block)
        self.free_blocks -= count
        for block in taken:
            self._references[block] = 1
        return taken

    def refer(self, blocks: Iterable[int]) -> None:
        """One more reference to each of these published blocks, for reading."""
        for block in blocks:
            if not self._references[block]:
                del self._cached[block]
                self.free_blocks -= 1
            self._references[block] += 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One reference less to each. Of those given back first, the first are evicted first."""
        for block in blocks:
            self._references[block] -= 1
            if not self._references[block]:
                self.free_blocks += 1
                if self._hashes[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None

    def publish(self, block: int, block_hash: bytes) -> None:
        """Makes a block of computed tokens known. Where the hash has a block, that one stays."""
        if block_hash not in self._published:
            self._published[block_hash] = block
            self._hashes[block] = block_hash
            self.changes.store(block_hash)

    def withdraw(self, block_hash: bytes) -> None:
        """Makes what is published under this hash unknown; its references stay."""
        block = self._published.get(block_hash)
        if block is not None:
            self._forget(block)
            if not self._references[block]:
                del self._cached[block]
                self._free.append(block)

    def check_integrity(self, held: Iterable[int]) -> None:
        """Raises RuntimeError unless ``held`` are exactly the references, and each block is
        referenced, cached or free.
        """
        references = [0] * len(self._references)
        for block in held:
            references[block] += 1
        if references != self._references:
            raise RuntimeError("a KV block is lost, or held by more or fewer than it knows of")
        unheld = {block for block, count in enumerate(references) if not count} - {0}
        free, cached = set(self._free), self._cached.keys()
        if not len(self._free) + len(cached) == len(unheld) == self.free_blocks:
            raise RuntimeError("the free KV blocks are counted wrong")
        if free | cached != unheld:
            raise RuntimeError("a KV block is lost, or free while held")
        published = self._published.values()
        if [self._hashes[block] for block in published] != list(self._published):
            raise RuntimeError("a hash is published for a block that does not have it")
        if len(self._published) + self._hashes.count(None) != len(self._hashes):
            raise RuntimeError("a KV block has a hash that is not published")
        if not cached <= set(published) or not free.isdisjoint(published):
            raise RuntimeError("a cached KV block has no hash, or a free one has one")

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._published[block_hash]
            self._hashes[block] = None
            self.changes.remove(block_hash)
