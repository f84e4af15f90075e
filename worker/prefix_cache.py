"""Which part of a sequence is cached: hashes of its blocks, and the rule of a hit.

A hit of L tokens needs every block of the full-attention layers up to L, and the blocks of the
windowed layers that hold the ``window_tokens - 1`` positions before L: what the next row sees. The
longest such L counts. Windowed layers cannot be computed from their last window alone, since each
of them looks back one window more; so a hit without their blocks is none.
"""

from collections.abc import Sequence
from typing import NamedTuple

from moeray.vocabulary.block_hash import next_hash, root_hash
from moeray.worker.block_pool import BlockPool


class BlockHashes:
    """The chained hashes of one sequence's whole blocks. Each is computed once: tokens are only
    ever appended.
    """

    __slots__ = ("_block_tokens", "_hashes", "_root")

    def __init__(self, block_tokens: int, cache_salt: str) -> None:
        self._block_tokens = block_tokens
        self._root = root_hash(cache_salt)
        self._hashes: list[bytes] = []

    def first(self, blocks: int, tokens: Sequence[int]) -> list[bytes]:
        """The hashes of at least the first ``blocks`` blocks of ``tokens``."""
        hashes, size = self._hashes, self._block_tokens
        while len(hashes) < blocks:
            parent = hashes[-1] if hashes else self._root
            start = len(hashes) * size
            hashes.append(next_hash(parent, tokens[start : start + size]))
        return hashes

    def known(self) -> list[bytes]:
        """Those that were asked for so far."""
        return self._hashes


class Hit(NamedTuple):
    """Published blocks that a sequence may begin with."""

    full: list[int]
    """Logical blocks 0 on."""
    window: list[int]
    """Logical blocks window_first on, up to the same end."""
    window_first: int


def longest_hit(
    full: BlockPool,
    window: BlockPool,
    hashes: Sequence[bytes],
    *,
    block_tokens: int,
    window_tokens: int,
) -> Hit:
    """The longest hit for a sequence whose first whole blocks have these hashes."""
    full_blocks: list[int] = []
    window_blocks: list[int] = []
    for block_hash in hashes:
        block = full.find(block_hash)
        if block is None:
            break
        full_blocks.append(block)
    index = end = len(full_blocks)
    # Downwards from the end: where a windowed block is missing, the hit ends before it.
    while index > (first := first_visible_block(end, block_tokens, window_tokens)):
        index -= 1
        block = window.find(hashes[index])
        if block is None:
            end, window_blocks = index, []
        else:
            window_blocks.append(block)
    return Hit(full_blocks[:end], window_blocks[::-1], first)


def first_visible_block(blocks: int, block_tokens: int, window_tokens: int) -> int:
    """The first block that the row behind ``blocks`` whole blocks sees in a windowed layer."""
    return max(0, blocks * block_tokens - window_tokens + 1) // block_tokens
