"""KV blocks: pools conserve them, and tables hold exactly what queries can see."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moeray.worker.blocks import BlockPool, BlockTable, KvBlocks
from moeray.worker.kv_plan import KvPlan


class PoolMachine(RuleBasedStateMachine):
    """Takes and gives back in any order; the model is the set of held blocks."""

    @initialize(blocks=st.integers(2, 30))
    def make(self, blocks: int) -> None:
        self.pool = BlockPool(blocks)
        self.held: list[int] = []

    @rule(count=st.integers(0, 31))
    def take(self, count: int) -> None:
        if count > self.pool.free_blocks:
            with pytest.raises(ValueError, match="free"):
                self.pool.take(count)
            return
        taken = self.pool.take(count)
        assert len(taken) == count
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(self.held), unique=True))
        self.pool.give_back(blocks)
        self.held = [block for block in self.held if block not in blocks]

    @invariant()
    def conserved(self) -> None:
        self.pool.check_integrity(self.held)
        assert 0 not in self.held
        assert self.pool.free_blocks + len(self.held) == self.pool.capacity


PoolMachine.TestCase.settings = settings(deadline=None)
TestPool = PoolMachine.TestCase


def test_integrity_check_sees_a_lost_a_shared_and_a_double_block() -> None:
    pool = BlockPool(5)
    first, second = pool.take(2)
    pool.check_integrity([first, second])
    for wrong in ([first], [first, second, second], [first, second, 4]):
        with pytest.raises(RuntimeError):
            pool.check_integrity(wrong)


def test_a_pool_needs_a_block_beside_scratch() -> None:
    with pytest.raises(ValueError, match="scratch"):
        BlockPool(1)


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
    for rows in chunks:
        kv.grow(table, position + rows)
        # Every row of the chunk finds what it sees.
        assert table.window_first * block_tokens <= max(0, position - window + 1)
        position += rows
        kv.trim(table, position)
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
