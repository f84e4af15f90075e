"""A pool conserves its blocks, whoever takes, shares, publishes and gives back, and keeps what is
published until it must go.
"""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from moeray.worker.block_pool import BlockPool


class PoolMachine(RuleBasedStateMachine):
    """Anything in any order; the model: references, hashes, and the order of what is cached."""

    @initialize(blocks=st.integers(2, 30))
    def make(self, blocks: int) -> None:
        self.pool = BlockPool(blocks)
        self.held: list[int] = []
        self.hashes: dict[int, bytes] = {}
        self.cached: list[int] = []
        self.told: set[bytes] = set()
        self.names = 0

    @rule(count=st.integers(0, 31))
    def take(self, count: int) -> None:
        if count > self.pool.free_blocks:
            with pytest.raises(ValueError, match="free"):
                self.pool.take(count)
            return
        free = self.pool.free_blocks - len(self.cached)
        taken = self.pool.take(count)
        assert len(taken) == count
        # Unpublished blocks go first, then what was unused the longest.
        evicted = max(0, count - free)
        assert taken[count - evicted :] == self.cached[:evicted]
        for block in self.cached[:evicted]:
            del self.hashes[block]
        del self.cached[:evicted]
        self.held += taken

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(self.held), unique=True))
        self.pool.give_back(blocks)
        for block in blocks:
            self.held.remove(block)
            if block in self.hashes and block not in self.held:
                self.cached.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), known=st.booleans())
    def publish(self, data: st.DataObject, known: bool) -> None:
        block = data.draw(st.sampled_from(self.held))
        if block in self.hashes:
            return
        if known and self.hashes:
            # The first block of a hash stays.
            block_hash = data.draw(st.sampled_from(sorted(self.hashes.values())))
            self.pool.publish(block, block_hash)
            assert self.pool.find(block_hash) != block
            return
        self.names += 1
        self.hashes[block] = self.names.to_bytes(2)
        self.pool.publish(block, self.hashes[block])

    @precondition(lambda self: self.hashes)
    @rule(data=st.data())
    def find_and_refer(self, data: st.DataObject) -> None:
        wanted = data.draw(st.sampled_from(sorted(self.hashes)))
        block = self.pool.find(self.hashes[wanted])
        assert block == wanted
        assert self.pool.unreferenced([block]) == (block in self.cached)
        self.pool.refer([block])
        self.held.append(block)
        if block in self.cached:
            self.cached.remove(block)

    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        if self.hashes:
            block = data.draw(st.sampled_from(sorted(self.hashes)))
            self.pool.withdraw(self.hashes.pop(block))
            if block in self.cached:
                self.cached.remove(block)
        self.pool.withdraw(b"unknown")

    @rule()
    def tell(self) -> None:
        changes = self.pool.changes
        assert self.told.issuperset(changes.removed)
        assert self.told.isdisjoint(changes.stored)
        self.told = (self.told - set(changes.removed)) | set(changes.stored)
        changes.clear()
        assert not changes
        assert self.told == set(self.hashes.values())

    @invariant()
    def conserved(self) -> None:
        self.pool.check_integrity(self.held)
        assert 0 not in self.held
        assert self.pool.free_blocks + len(set(self.held)) == self.pool.capacity
        assert self.pool.referenced_blocks == len(set(self.held))
        assert set(self.pool.hashes) == set(self.hashes.values())


TestPool = PoolMachine.TestCase


def test_integrity_check_sees_a_lost_a_shared_and_a_double_block() -> None:
    pool = BlockPool(5)
    first, second = pool.take(2)
    pool.check_integrity([first, second])
    for wrong in ([first], [first, second, second], [first, second, 4]):
        with pytest.raises(RuntimeError):
            pool.check_integrity(wrong)


def test_integrity_check_sees_wrong_hashes() -> None:
    for spoil in (
        lambda pool: pool._published.update({b"b": 3}),
        lambda pool: pool._hashes.__setitem__(3, b"b"),
        lambda pool: pool._published.clear(),
        lambda pool: pool._free.append(pool._cached.popitem()[0]),
    ):
        pool = BlockPool(5)
        (block,) = pool.take(1)
        pool.publish(block, b"a")
        pool.give_back([block])
        pool.check_integrity([])
        spoil(pool)
        with pytest.raises(RuntimeError):
            pool.check_integrity([])


def test_a_pool_needs_a_block_beside_scratch() -> None:
    with pytest.raises(ValueError, match="scratch"):
        BlockPool(1)
