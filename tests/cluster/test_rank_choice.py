"""Which rank: prefixes against load, hot prefixes, holes in chains, recent placements."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.contracts import EngineInfo, Placement
from moeray.cluster.kv_ledger import KvLedger, cached_blocks
from moeray.cluster.placement import PlacementLimits, PlacementPolicy
from moeray.cluster.rank_choice import RankChoice, clearly_cheapest
from moeray.cluster.ranks import Rank, RankOrder
from moeray.cluster.recent_prefixes import RecentPrefixes

from .contract_samples import chain, engine, kv_events, request


def policy(*engines: EngineInfo) -> PlacementPolicy:
    made = PlacementPolicy(PlacementLimits(), incarnation="test")
    for info in engines:
        made.register_engine(info, 0.0)
    return made


def cache(placing: PlacementPolicy, engine_id: str, hashes: tuple[bytes, ...]) -> None:
    """Have the first rank of a new engine cache these blocks."""
    events = kv_events(1, full=hashes, window=hashes)
    assert placing.report_kv(engine_id, [events], 0.0) == []


def place(
    placing: PlacementPolicy,
    name: str,
    hashes: tuple[bytes, ...],
    now: float = 0.0,
    avoid: tuple[str, ...] = (),
) -> Placement:
    asked = request(name, tokens=16 * len(hashes) + 5, hashes=hashes, avoid=avoid)
    placed = placing.place("g", asked, now)
    assert isinstance(placed, Placement)
    placing.check_integrity(now)
    return placed


@pytest.fixture
def three() -> PlacementPolicy:
    """Three engines of one rank with 64 places."""
    return policy(*(engine(f"e{n}", ranks=1, places=64) for n in range(3)))


def test_the_longest_prefix_wins_on_equal_load(three: PlacementPolicy) -> None:
    prompt = chain("p", 40)
    cache(three, "e1", prompt[:12])
    cache(three, "e2", prompt[:30])
    assert place(three, "a", prompt) == Placement("a", "e2", 0, 30 * 16)
    assert place(three, "b", prompt, avoid=("e2",)) == Placement("b", "e1", 0, 12 * 16)
    assert place(three, "c", prompt, avoid=("e1", "e2")) == Placement("c", "e0", 0, 0)


def test_the_prompt_itself_is_never_cached_whole(three: PlacementPolicy) -> None:
    prompt = chain("p", 4)
    cache(three, "e1", prompt)
    whole = request("a", tokens=64, hashes=prompt)
    assert three.place("g", whole, 0.0) == Placement("a", "e1", 0, 48)
    more = request("b", tokens=65, hashes=prompt)
    assert three.place("g", more, 0.0) == Placement("b", "e1", 0, 64)


def test_a_full_rank_gives_way_to_the_next_best() -> None:
    placing = policy(*(engine(f"e{n}", ranks=1, places=1) for n in range(3)))
    prompt = chain("p", 40)
    cache(placing, "e1", prompt[:12])
    cache(placing, "e2", prompt[:30])
    assert [place(placing, n, prompt).engine_id for n in "abc"] == ["e2", "e1", "e0"]


def test_a_busy_rank_is_left_when_computing_is_cheaper(three: PlacementPolicy) -> None:
    prompt = chain("p", 10)
    cache(three, "e1", prompt)
    assert place(three, "a", prompt).engine_id == "e1"
    for index in range(4):
        place(three, f"x{index}", chain(f"x{index}", 10), avoid=("e0", "e2"))
    assert place(three, "b", prompt).engine_id != "e1"


def test_a_hot_prefix_spreads_over_the_ranks() -> None:
    ranks = 16
    placing = policy(*(engine(f"e{n}", ranks=1, places=64) for n in range(ranks)))
    hot = chain("hot", 8)
    cache(placing, "e3", hot)
    placed = Counter(
        place(placing, str(n), hot + chain(str(n), 4)).engine_id for n in range(4 * ranks)
    )
    assert len(placed) == ranks
    assert max(placed.values()) <= 3 * 4, "three times the fair share"


def test_holders_of_a_hot_prefix_are_taken_in_turn() -> None:
    placing = policy(*(engine(f"e{n}", ranks=1, places=64) for n in range(40)))
    hot = chain("hot", 64)
    for number in range(20):
        cache(placing, f"e{number}", hot)
    placed = Counter(place(placing, str(n), hot + chain(str(n), 4)).engine_id for n in range(40))
    assert set(placed) <= {f"e{number}" for number in range(20)}
    assert len(placed) >= 15
    assert max(placed.values()) <= 4


def test_ties_go_round(three: PlacementPolicy) -> None:
    seen = []
    for name in "abcdef":
        seen.append(place(three, name, chain(name, 3)).engine_id)
        three.release("g", [name], 0.0)
    assert sorted(seen[:3]) == sorted(seen[3:]) == ["e0", "e1", "e2"]


def test_a_chain_with_a_hole_counts_to_the_hole(three: PlacementPolicy) -> None:
    prompt = chain("p", 32)
    cache(three, "e1", prompt[:10] + prompt[11:])
    cache(three, "e2", prompt[:16])
    assert place(three, "a", prompt) == Placement("a", "e2", 0, 16 * 16)
    assert place(three, "b", prompt, avoid=("e2",)) == Placement("b", "e1", 0, 10 * 16)


def test_windowed_blocks_that_are_gone_shorten_the_hit(three: PlacementPolicy) -> None:
    prompt = chain("p", 32)
    events = kv_events(1, full=prompt, window=prompt[:20])
    three.report_kv("e1", [events], 0.0)
    cache(three, "e2", prompt[:24])
    assert place(three, "a", prompt) == Placement("a", "e2", 0, 24 * 16)
    assert place(three, "b", prompt, avoid=("e2",)) == Placement("b", "e1", 0, 20 * 16)


def test_what_was_just_placed_is_followed_before_events_come(three: PlacementPolicy) -> None:
    prompt, seen = chain("p", 64), []
    for name, now in (("a", 10.0), ("b", 10.5), ("c", 11.2), ("late", 13.5)):
        placed = place(three, name, prompt + chain(name, 2), now=now)
        three.release("g", [name], now)
        assert placed.cached_tokens == 0
        seen.append(placed.engine_id)
    assert seen == ["e0", "e0", "e0", "e1"], "in the end events would have said so"


def test_a_lost_engine_is_followed_no_more(three: PlacementPolicy) -> None:
    prompt = chain("p", 64)
    cache(three, "e1", prompt)
    assert place(three, "a", prompt + chain("a", 2)).engine_id == "e1"
    three.deregister_engine("e1")
    for name in ("b", "c"):
        placed = place(three, name, prompt + chain(name, 2))
        assert placed.engine_id != "e1" and placed.cached_tokens == 0


def test_an_engine_that_registers_again_has_nothing_until_it_says_so(
    three: PlacementPolicy,
) -> None:
    prompt = chain("p", 8)
    cache(three, "e1", prompt)
    three.register_engine(engine("e1", ranks=1, places=64), 0.0)
    assert place(three, "a", prompt).cached_tokens == 0
    gap = kv_events(2, full=prompt, window=prompt)
    assert three.report_kv("e1", [gap], 0.0) == [0]
    snapshot = kv_events(3, full=prompt, window=prompt, is_snapshot=True)
    assert three.report_kv("e1", [snapshot], 0.0) == []
    assert place(three, "b", prompt) == Placement("b", "e1", 0, 8 * 16)


def test_an_unknown_engine_is_asked_for_snapshots(three: PlacementPolicy) -> None:
    batch = [kv_events(1, rank=1), kv_events(1, rank=0)]
    assert three.report_kv("nobody", batch, 0.0) == [0, 1]


def test_stats_count_what_the_ledger_matched(three: PlacementPolicy) -> None:
    prompt = chain("p", 10)
    cache(three, "e1", prompt[:6])
    place(three, "a", prompt)
    place(three, "b", chain("other", 4))
    stats = three.stats()
    assert (stats.placed_total, stats.running, stats.waiting, stats.engines) == (2, 2, 0, 3)
    assert (stats.prompt_blocks_total, stats.matched_blocks_total) == (14, 6)


HASHES = chain("p", 12)
BLOCKS = st.sets(st.integers(0, 11))


def loaded_ranks(
    caches: list[tuple[set[int], set[int], int]],
) -> tuple[KvLedger, RankOrder, list[Rank]]:
    """Ranks with these full-attention and windowed blocks of HASHES, and held tokens."""
    ledger, order, ranks = KvLedger(), RankOrder(), []
    for number, (full, window, tokens) in enumerate(caches):
        rank = Rank(info=engine(f"e{number}", places=64), number=0, serial=number)
        stored = [HASHES[i] for i in sorted(full)]
        ledger.apply(rank, kv_events(1, full=stored, window=[HASHES[i] for i in window]))
        rank.hold(1, tokens)
        order.add(rank)
        ranks.append(rank)
    return ledger, order, ranks


def cost(rank: Rank) -> float:
    return rank.load - 16 * cached_blocks(rank, HASHES)


@given(
    caches=st.lists(st.tuples(BLOCKS, BLOCKS, st.integers(0, 400)), min_size=1, max_size=7),
    avoid=st.sets(st.integers(0, 6), max_size=2),
)
def test_no_rank_is_cheaper_than_the_clearly_cheapest_whatever_was_evicted(
    caches: list[tuple[set[int], set[int], int]], avoid: set[int]
) -> None:
    ledger, order, ranks = loaded_ranks(caches)
    asked = request("a", tokens=193, hashes=HASHES, avoid=tuple(f"e{n}" for n in avoid))
    idle = order.least_loaded(asked.avoid_engine_ids)
    if idle is not None:
        clear = clearly_cheapest(ledger, asked, idle, *ledger.deepest(HASHES, 12))
        if clear is not None:
            usable = [rank for rank in ranks if rank.engine_id not in asked.avoid_engine_ids]
            assert clear[1] == cached_blocks(clear[0], HASHES)
            assert clear[0] in usable
            assert cost(clear[0]) == min(map(cost, usable))


@given(
    shared=st.integers(0, 12),
    longer=st.lists(st.integers(0, 12), max_size=2),
    busy=st.lists(st.integers(0, 400), min_size=2, max_size=9),
)
def test_the_cheapest_rank_is_found_where_few_know_more_than_all(
    shared: int, longer: list[int], busy: list[int]
) -> None:
    lengths = [max(shared, n) for n in longer] + [shared] * (len(busy) - len(longer))
    caches = [
        (set(range(n)), set(range(n)), tokens) for n, tokens in zip(lengths, busy, strict=True)
    ]
    ledger, order, ranks = loaded_ranks(caches)
    recent = RecentPrefixes(lifetime_s=1.0, max_prefixes=16)
    choice = RankChoice(ledger, recent, max_conversations=4)
    chosen = choice.choose(order, request("a", tokens=193, hashes=HASHES), 0.0)
    assert chosen is not None and chosen[1] == cached_blocks(chosen[0], HASHES)
    assert cost(chosen[0]) == min(map(cost, ranks))
