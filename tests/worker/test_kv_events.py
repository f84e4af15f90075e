"""What is told of the prefix caches adds up to what is cached, across takes and threads."""

import queue
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.vocabulary.block_hash import block_hashes
from moeray.worker.engine_thread import EngineThread
from moeray.worker.kv_events import HashChanges, KvJournal, RankKvChanges
from tests.worker.engine_fakes import fake_engine, request


class Ledger:
    """What a router knows of one rank."""

    def __init__(self) -> None:
        self.full: set[bytes] = set()
        self.window: set[bytes] = set()
        self.snapshots = 0

    def take(self, changes: RankKvChanges) -> None:
        if changes.is_snapshot:
            self.full, self.window = set(), set()
            self.snapshots += 1
        assert self.full.issuperset(changes.removed_full)
        assert self.window.issuperset(changes.removed_window)
        self.full -= set(changes.removed_full)
        self.window -= set(changes.removed_window)
        assert self.full.isdisjoint(changes.stored_full)
        assert self.window.isdisjoint(changes.stored_window)
        self.full |= set(changes.stored_full)
        self.window |= set(changes.stored_window)


@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("toggle"), st.integers(0, 5), st.booleans()),
            st.sampled_from(["record", "take", "snapshot"]).map(lambda name: (name, 0, False)),
        ),
        max_size=60,
    )
)
def test_any_order_of_changes_and_takes_adds_up(steps: list[tuple[str, int, bool]]) -> None:
    journal, ledger = KvJournal(1), Ledger()
    full, window = HashChanges(), HashChanges()
    cached: dict[bool, set[bytes]] = {True: set(), False: set()}
    recorded: dict[bool, set[bytes]] = {True: set(), False: set()}
    wanted = False
    for name, number, in_full in steps:
        if name == "toggle":
            block_hash, changes = bytes([number]), full if in_full else window
            if block_hash in cached[in_full]:
                changes.remove(block_hash)
            else:
                changes.store(block_hash)
            cached[in_full] ^= {block_hash}
        elif name == "record":
            journal.record(0, full, window)
            recorded = {group: set(hashes) for group, hashes in cached.items()}
        elif name == "snapshot":
            journal.request_snapshot(0)
            wanted = True
        else:
            taken = journal.take()
            for change in taken:
                assert change.is_snapshot == wanted
                ledger.take(change)
            assert bool(taken) >= wanted
            wanted = False
            assert (ledger.full, ledger.window) == (recorded[True], recorded[False])
            assert journal.take() == []


def test_what_comes_and_goes_between_takes_is_not_told() -> None:
    journal, full, window = KvJournal(2), HashChanges(), HashChanges()
    full.store(b"a")
    journal.record(1, full, window)
    full.remove(b"a")
    full.store(b"b")
    journal.record(1, full, window)
    assert journal.take() == [
        RankKvChanges(
            rank=1, stored_full=[b"b"], removed_full=[], stored_window=[], removed_window=[]
        )
    ]


def test_a_rank_that_is_not_there_has_no_snapshot() -> None:
    with pytest.raises(ValueError, match="rank 2"):
        KvJournal(2).request_snapshot(2)


def test_a_thread_that_takes_while_the_engine_runs_knows_what_is_cached() -> None:
    engine = fake_engine(ranks=2, full_blocks=40, window_blocks=30, max_running=3)
    thread = EngineThread(engine)
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    ledgers = [Ledger(), Ledger()]
    stop = threading.Event()

    def follow() -> None:
        takes = 0
        while not stop.wait(0.001):
            for changes in thread.take_kv_changes():
                ledgers[changes.rank].take(changes)
            takes += 1
            if takes % 7 == 0:
                thread.request_kv_snapshot(takes % 2)

    follower = threading.Thread(target=follow)
    follower.start()
    thread.start(lambda rows: [ended.put(None) for row in rows if row.finish_reason] and None)
    for key in range(60):
        prompt = [key % 5] * 20 + [key] * (key % 13)
        thread.submit(request(key, prompt=prompt, rank=key % 2), lambda wanted, refusal: None)
    for _ in range(60):
        ended.get(timeout=30)
    thread.drain()
    assert thread.join(30)
    stop.set()
    follower.join()
    for changes in thread.take_kv_changes():
        ledgers[changes.rank].take(changes)
    for rank, ledger in zip(engine.scheduler.ranks, ledgers, strict=True):
        assert ledger.full == set(rank.blocks.full.hashes) != set()
        assert ledger.window == set(rank.blocks.window.hashes) != set()
    assert thread.take_kv_changes() == []


def test_a_sleeping_engine_gives_a_snapshot_at_once() -> None:
    engine = fake_engine(block_tokens=4)
    thread = EngineThread(engine)
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    thread.start(lambda rows: [ended.put(None) for row in rows if row.finish_reason] and None)
    wanted = request(1, prompt=range(1, 9), max_output_tokens=3)
    thread.submit(wanted, lambda wanted, refusal: None)
    ended.get(timeout=30)
    thread.drain()
    assert thread.join(30)
    (changes,) = thread.take_kv_changes()
    assert changes.stored_full[:2] == block_hashes(wanted.prompt, 4)
    thread.request_kv_snapshot(0)
    (snapshot,) = thread.take_kv_changes()
    assert snapshot.is_snapshot
    assert set(snapshot.stored_full) == set(changes.stored_full)
