"""Block tables hold exactly what queries can see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.worker.blocks import BlockTable, KvBlocks
from moeray.worker.kv_plan import KvPlan


@settings(deadline=None)
@given(
    block_tokens=st.integers(1, 8),
    window=st.integers(1, 20),
    chunks=st.lists(st.integers(1, 12), min_size=1, max_size=12),
)
def test_windowed_blocks_are_exactly_those_that_the_next_query_sees(
    block_tokens: int, window: int, chunks: list[int]
) -> None:
    kv = KvBlocks(
        KvPlan(block_tokens=block_tokens, full_blocks=200, window_blocks=200, window_tokens=window)
    )
    table = BlockTable()
    position = 0
    hashes = [bytes([index]) for index in range(200)]
    for rows in chunks:
        kv.grow(table, position + rows)
        # Every row of the chunk finds what it sees.
        assert table.window_first * block_tokens <= max(0, position - window + 1)
        position += rows
        if position >= table.due:
            kv.settle(table, hashes, position)
        assert table.published == position // block_tokens
        kv.check_integrity([table])
        held = range(table.window_first, table.window_first + len(table.window))
        seen = {p // block_tokens for p in range(max(0, position - window + 1), position)}
        # Beside what is seen, only the block that the next position falls into may be held.
        assert seen <= set(held) <= seen | {(position - 1) // block_tokens}
        assert len(table.full) == -(-position // block_tokens)
        # One token more needs no more than needed() says.
        full, windowed = kv.needed(position + 1)
        kv.grow(table, position + 1)
        assert len(table.full) == full
        assert len(table.window) <= windowed
    kv.clear(table)
    assert kv.full.free_blocks == kv.full.capacity
    assert kv.window.free_blocks == kv.window.capacity


def test_growing_beyond_reach_is_refused_and_changes_nothing() -> None:
    kv = KvBlocks(KvPlan(block_tokens=4, full_blocks=4, window_blocks=3, window_tokens=4))
    table = BlockTable()
    assert kv.reach(table) == 8
    with pytest.raises(ValueError, match="free"):
        kv.grow(table, 9)
    kv.check_integrity([table])
    assert kv.reach(table) == 8
    assert kv.reach(table, leaving=1) == 4
    # One block is always for whoever asks.
    assert kv.reach(table, leaving=5) == 4
