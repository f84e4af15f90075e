"""The KV ledger: the hybrid rule against a naive one, events in and out of order, the index."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.contracts import KvEvents
from moeray.cluster.kv_ledger import (
    KvLedger,
    cached_blocks,
    chain_end,
    usable_blocks,
    windowed_end,
)
from moeray.cluster.ranks import Rank

from .contract_samples import chain, engine, kv_events, longest_hit


def new_rank(number: int = 0, *, window_tokens: int = 128) -> Rank:
    return Rank(info=engine(window_tokens=window_tokens), number=number, serial=number)


@given(
    full=st.sets(st.integers(0, 11)),
    window=st.sets(st.integers(0, 11)),
    window_tokens=st.integers(1, 70),
    blocks=st.integers(0, 12),
    rest=st.integers(0, 15),
)
def test_the_longest_hit_is_that_of_the_naive_rule(
    full: set[int], window: set[int], window_tokens: int, blocks: int, rest: int
) -> None:
    hashes, rank = chain("p", 12), new_rank(window_tokens=window_tokens)
    rank.full = {hashes[i] for i in full}
    rank.window = {hashes[i] for i in window}
    prompt_tokens = blocks * 16 + rest
    limit = usable_blocks(hashes[:blocks], prompt_tokens, 16)
    expected = longest_hit(rank.full, rank.window, hashes[:blocks], prompt_tokens, window_tokens)
    assert cached_blocks(rank, hashes[:limit]) == expected


def test_a_hit_needs_its_whole_window_and_never_the_whole_prompt() -> None:
    hashes, rank = chain("p", 16), new_rank()
    rank.full = set(hashes)
    rank.window = set(hashes[4:12])
    assert rank.window_blocks == 8
    assert cached_blocks(rank, hashes) == 12
    rank.window.remove(hashes[4])
    assert cached_blocks(rank, hashes) == 0
    rank.window |= set(hashes[:3])
    assert cached_blocks(rank, hashes) == 3
    assert usable_blocks(hashes, 256, 16) == 15
    assert usable_blocks(hashes, 257, 16) == 16
    assert usable_blocks(hashes, 0, 16) == 0


@given(held=st.lists(st.booleans(), max_size=40))
def test_windowed_end_finds_the_longest_run(held: list[bool]) -> None:
    hashes, rank = chain("w", len(held)), new_rank(window_tokens=33)
    rank.window = {h for h, is_held in zip(hashes, held, strict=True) if is_held}
    ends = [e for e in range(len(held) + 1) if all(held[max(0, e - 2) : e])]
    assert windowed_end(rank, hashes, len(held)) == max(ends)


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40))
def test_chain_end_loses_no_chain(known: list[bool], limit: int) -> None:
    hashes = chain("c", len(known))
    limit = min(limit, len(known))
    there = {h for h, is_known in zip(hashes, known, strict=True) if is_known}
    first_gap = next((i for i in range(limit) if not known[i]), limit)
    end = chain_end(there, hashes, limit)
    assert first_gap <= end <= limit
    assert end == limit or hashes[end] not in there
    if not any(known[first_gap:limit]):
        assert end == first_gap


def test_chain_end_looks_at_few_blocks_of_a_long_prompt() -> None:
    class Counting(set[bytes]):
        looks = 0

        def __contains__(self, key: object) -> bool:
            self.looks += 1
            return super().__contains__(key)

    hashes = chain("long", 8192)
    known = Counting(hashes[:5000])
    assert chain_end(known, hashes, 8192) == 5000
    assert known.looks <= 15


def test_events_are_taken_once_and_in_order() -> None:
    ledger, rank, (a, b, c) = KvLedger(), new_rank(), chain("e", 3)
    assert ledger.apply(rank, kv_events(1, full=[a], window=[a]))
    assert ledger.apply(rank, kv_events(2, full=[b], gone_full=[a], gone_window=[a]))
    assert (rank.full, rank.window) == ({b}, set())
    assert ledger.holders(a) == () and ledger.holders(b) == (rank,)
    assert ledger.apply(rank, kv_events(1, full=[a])), "heard before"
    assert ledger.apply(rank, kv_events(2, full=[c])), "heard before"
    assert rank.full == {b}
    ledger.check_integrity([rank])


def test_a_gap_asks_for_a_snapshot_until_one_comes() -> None:
    ledger, rank, (a, b, c) = KvLedger(), new_rank(), chain("g", 3)
    ledger.apply(rank, kv_events(1, full=[a]))
    assert not ledger.apply(rank, kv_events(3, full=[b]))
    assert not ledger.apply(rank, kv_events(4, gone_full=[a]))
    assert rank.full == {a}, "what was known stays"
    assert ledger.apply(rank, kv_events(5, full=[b, c], window=[c], is_snapshot=True))
    assert (rank.full, rank.window) == ({b, c}, {c})
    assert ledger.apply(rank, kv_events(6, gone_full=[c]))
    assert rank.full == {b}
    ledger.check_integrity([rank])


def test_removals_come_first_in_a_batch() -> None:
    ledger, rank, (a,) = KvLedger(), new_rank(), chain("r", 1)
    ledger.apply(rank, kv_events(1, full=[a], gone_full=[a], window=[a], gone_window=[a]))
    assert (rank.full, rank.window) == ({a}, {a})


def test_a_rank_that_is_gone_leaves_nothing() -> None:
    ledger, one, two, (a, b) = KvLedger(), new_rank(1), new_rank(2), chain("f", 2)
    ledger.apply(one, kv_events(1, full=[a, b]))
    ledger.apply(two, kv_events(1, full=[a]))
    assert set(ledger.holders(a)) == {one, two}
    ledger.forget(one)
    assert ledger.holders(a) == (two,) and ledger.holders(b) == ()
    ledger.check_integrity([two])
    ledger.forget(two)
    ledger.check_integrity([])
    assert not ledger._holders


@pytest.mark.parametrize("seed", range(5))
def test_the_index_holds_what_ranks_hold_under_random_events(seed: int) -> None:
    draw, ledger = random.Random(seed), KvLedger()
    ranks = [new_rank(number) for number in range(3)]
    hashes = chain("i", 12)
    told = [0, 0, 0]
    for _ in range(300):
        number = draw.randrange(3)
        told[number] += draw.choice([1, 1, 1, 2])
        events = KvEvents(
            rank=number,
            sequence_number=told[number],
            stored_full=draw.sample(hashes, draw.randrange(5)),
            removed_full=draw.sample(hashes, draw.randrange(5)),
            stored_window=[],
            removed_window=[],
            is_snapshot=draw.random() < 0.2,
        )
        ledger.apply(ranks[number], events)
        ledger.check_integrity(ranks)


@given(
    held=st.lists(st.sets(st.integers(0, 19)), min_size=1, max_size=7),
    limit=st.integers(0, 20),
)
def test_nobody_but_the_deepest_holders_comes_to_their_own_depth(
    held: list[set[int]], limit: int
) -> None:
    ledger, hashes = KvLedger(), chain("d", 20)
    ranks = [new_rank(number) for number in range(len(held))]
    for rank, blocks in zip(ranks, held, strict=True):
        ledger.apply(rank, kv_events(1, full=[hashes[i] for i in sorted(blocks)]))
    lengths = [next(i for i in range(21) if i == limit or i not in blocks) for blocks in held]
    depth, holders, own = ledger.deepest(hashes, limit)
    assert max(lengths) <= depth <= limit
    assert all(hashes[depth - 1] in rank.full for rank in holders)
    assert bool(holders) == (depth > 0)
    assert 1 <= own <= max(depth, 1)
    for rank, length in zip(ranks, lengths, strict=True):
        assert rank in holders or length < own
