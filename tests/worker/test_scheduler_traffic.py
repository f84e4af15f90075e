"""Many steps of random traffic: the prefix cache, preemption, cancels and deadlines all at once.

The checks are those of ``scheduler_model.py``, after each step; mistakes planted in the cache's
rules show that they catch what they are for.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from moeray.worker import blocks as blocks_module
from moeray.worker import prefix_cache
from moeray.worker.block_pool import BlockPool
from moeray.worker.blocks import BlockTable, KvBlocks
from moeray.worker.prefix_cache import BlockHashes, Hit
from moeray.worker.rank_scheduler import RankScheduler
from moeray.worker.sequence import Sequence
from tests.worker.scheduler_model import Sizes, Traffic

PARTS = 4
ENGINE_STEPS = 200_000 // PARTS
SOAK_REQUESTS = 10_000
SIZES = st.builds(
    Sizes,
    ranks=st.sampled_from([1, 1, 2]),
    block_tokens=st.integers(1, 5),
    full_blocks=st.integers(8, 40),
    window_blocks=st.integers(8, 40),
    window_tokens=st.integers(1, 12),
    max_running=st.integers(1, 5),
    step_tokens=st.integers(5, 20),
    context_length=st.integers(20, 90),
)
SEEDS = st.integers(0, 2**32)
MUST_HAPPEN = (
    "requests", "refused", "hits", "evicted", "shared", "chunked", "preempted",
    "resumed from cache", "cancelled", "expired", "failed", "stop", "length",
)  # fmt: skip


class TrafficMachine(RuleBasedStateMachine):
    """Any sizes, any traffic; hundreds of engine steps for each rule."""

    totals: Counter[str]

    @initialize(sizes=SIZES, seed=SEEDS)
    def make(self, sizes: Sizes, seed: int) -> None:
        self.traffic = Traffic(sizes, Random(seed))
        self.seed = seed

    @rule(seed=SEEDS, steps=st.integers(200, 400), busy=st.sampled_from([0.1, 0.3, 0.8]))
    def run(self, seed: int, steps: int, busy: float) -> None:
        self.traffic.run(Random(seed), steps, busy=busy)

    @rule(seed=SEEDS, requests=st.integers(1, 8))
    def burst(self, seed: int, requests: int) -> None:
        random = Random(seed)
        for _ in range(requests):
            self.traffic.submit(random)

    @rule(seed=SEEDS)
    def run_dry(self, seed: int) -> None:
        self.traffic.finish(Random(seed))

    def teardown(self) -> None:
        if hasattr(self, "traffic"):
            self.traffic.finish(Random(self.seed))
            self.totals.update(self.traffic.seen)


@pytest.mark.timeout(600)  # It is work, not waiting: a busy machine takes its time.
@pytest.mark.parametrize("part", range(PARTS))
def test_any_traffic_gets_its_answers_and_keeps_the_books(part: int) -> None:
    totals: Counter[str] = Counter()
    machine = type("Machine", (TrafficMachine,), {"totals": totals})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=12,
            deadline=None,
            # No shrinking, no tracing: seeds make failures easy to repeat, and steps count.
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
    # However the dice fell, the promised number of steps is run.
    random = Random(part)
    while totals["steps"] < ENGINE_STEPS:
        traffic = Traffic(Sizes(), random)
        traffic.run(random, 2000)
        traffic.finish(random)
        totals.update(traffic.seen)
    assert all(totals[event] for event in MUST_HAPPEN), totals


@pytest.mark.timeout(600)
def test_ten_thousand_requests_leave_nothing_behind() -> None:
    random = Random(3)
    traffic = Traffic(Sizes(full_blocks=60, window_blocks=50, max_running=6), random)
    while traffic.seen["requests"] < SOAK_REQUESTS:
        traffic.run(random, 100, busy=0.9)
    traffic.finish(random)
    ended = sum(traffic.seen[e] for e in ("stop", "length", "cancelled", "expired", "failed"))
    assert ended == traffic.seen["requests"]


def _ignore_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    def hit(full: BlockPool, window: BlockPool, hashes: Seq[bytes], **sizes: int) -> Hit:
        full_blocks = [b for b in map(full.find, hashes) if b is not None]
        window_blocks = [b for b in map(window.find, hashes) if b is not None]
        shared = min(len(full_blocks), len(window_blocks))
        return Hit(full_blocks[:shared], window_blocks[:shared], 0)

    monkeypatch.setattr(blocks_module, "longest_hit", hit)


def _see_one_windowed_block_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prefix_cache.first_visible_block
    monkeypatch.setattr(
        prefix_cache,
        "first_visible_block",
        lambda blocks, size, window: min(blocks, first(blocks, size, window) + 1),
    )


def _skip_a_missing_block(monkeypatch: pytest.MonkeyPatch) -> None:
    longest_hit = prefix_cache.longest_hit

    def hit(full: BlockPool, window: BlockPool, hashes: Seq[bytes], **sizes: int) -> Hit:
        known = [h for h in hashes if full.find(h) is not None]
        return longest_hit(full, window, known, **sizes)

    monkeypatch.setattr(blocks_module, "longest_hit", hit)


def _hit_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    def block_hashes(self: Sequence, blocks: int) -> list[bytes]:
        size = self.hashes._block_tokens
        return self.hashes.first(max(blocks, len(self.tokens) // size), self.tokens)

    monkeypatch.setattr(Sequence, "block_hashes", block_hashes)


def _publish_before_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = RankScheduler._grow

    def eager(self: RankScheduler, sequence: Sequence, wanted: int, behind: int) -> int:
        rows = grow(self, sequence, wanted, behind)
        table, whole = sequence.blocks, (sequence.computed + rows) // self.blocks.block_tokens
        for index in range(table.published, whole):
            block_hash = sequence.block_hashes(whole)[index]
            self.blocks.full.publish(table.full[index], block_hash)
            self.blocks.window.publish(table.window[index - table.window_first], block_hash)
        return rows

    monkeypatch.setattr(RankScheduler, "_grow", eager)


def _forget_the_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_cache, "root_hash", lambda cache_salt: b"same for all")


def _hash_blocks_without_what_precedes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    next_hash = prefix_cache.next_hash
    monkeypatch.setattr(prefix_cache, "next_hash", lambda parent, tokens: next_hash(b"", tokens))


def _hash_stale_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    first = BlockHashes.first

    def off_by_one(self: BlockHashes, blocks: int, tokens: Seq[int]) -> list[bytes]:
        return first(self, blocks, [0, *tokens[:-1]])

    monkeypatch.setattr(BlockHashes, "first", off_by_one)


def _free_shared_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_back(self: BlockPool, blocks: Seq[int]) -> None:
        for block in blocks:
            self._references[block] = 0
            if self._hashes[block] is None:
                self._free.append(block)
            else:
                self._cached[block] = None

    monkeypatch.setattr(BlockPool, "give_back", give_back)


def _keep_the_hash_of_a_reused_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BlockPool, "_forget", lambda self, block: None)


def _leak_on_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    def clear(self: KvBlocks, table: BlockTable) -> None:
        self.full.give_back(reversed(table.full))
        del table.full[:]
        del table.window[:]
        table.window_first = table.published = table.due = 0

    monkeypatch.setattr(KvBlocks, "clear", clear)


def _trim_a_block_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    settle = KvBlocks.settle

    def eager(self: KvBlocks, table: BlockTable, hashes: Seq[bytes], computed: int) -> None:
        settle(self, table, hashes, computed)
        if len(table.window) > 1 and table.published > table.window_first:
            self.window.give_back(table.window[:1])
            del table.window[:1]
            table.window_first += 1

    monkeypatch.setattr(KvBlocks, "settle", eager)


def _trust_unsound_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KvBlocks, "withdraw", lambda self, hashes: None)


def _tell_the_hit_again(monkeypatch: pytest.MonkeyPatch) -> None:
    admit = RankScheduler._admit

    def forgetful(self: RankScheduler) -> Sequence | None:
        if self.waiting:
            self.waiting[0].started = False
        return admit(self)

    monkeypatch.setattr(RankScheduler, "_admit", forgetful)


MISTAKES = (
    _ignore_the_window,
    _see_one_windowed_block_too_few,
    _skip_a_missing_block,
    _hit_every_token,
    _publish_before_computed,
    _forget_the_salt,
    _hash_blocks_without_what_precedes_them,
    _hash_stale_tokens,
    _free_shared_blocks,
    _keep_the_hash_of_a_reused_block,
    _leak_on_clear,
    _trim_a_block_too_many,
    _trust_unsound_rows,
    _tell_the_hit_again,
)


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_mistake_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, RuntimeError, LookupError, ValueError)):
        for seed in range(40):
            random = Random(seed)
            traffic = Traffic(Sizes(ranks=1 + seed % 2), random)
            traffic.run(random, 300)
            traffic.finish(random, max_steps=2000)


def test_without_a_mistake_the_same_traffic_passes() -> None:
    for seed in range(6):
        random = Random(seed)
        traffic = Traffic(Sizes(ranks=1 + seed % 2), random)
        traffic.run(random, 300)
        traffic.finish(random, max_steps=2000)
