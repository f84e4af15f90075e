"""The order of ranks by load: the least loaded is found, whatever happened to the others."""

from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from moeray.cluster.ranks import HELD_TOKEN_COST, Rank, RankOrder

from .contract_samples import engine


def new_rank(serial: int, *, places: int = 4) -> Rank:
    return Rank(info=engine(f"e{serial}", places=places), number=0, serial=serial)


def test_load_weighs_held_tokens_more_the_fewer_places_are_free() -> None:
    rank = new_rank(1)
    assert rank.load == 0
    loads = []
    for _ in range(4):
        rank.requests += 1
        rank.tokens += 100
        rank.weigh()
        loads.append(rank.load / HELD_TOKEN_COST)
    assert loads == [100 * 4 / 3, 200 * 4 / 2, 300 * 4 / 1, inf]
    assert rank.free == 0


def test_a_rank_that_holds_more_than_its_places_is_full() -> None:
    rank = new_rank(1, places=1)
    rank.requests = 3
    rank.weigh()
    assert (rank.load, rank.free) == (inf, 0)


class OrderMachine(RuleBasedStateMachine):
    """Work comes to ranks and leaves them; each is as loaded as its tokens say."""

    def __init__(self) -> None:
        super().__init__()
        self.order = RankOrder()
        self.turns = 0
        self.serials = 0

    def ranks(self) -> list[Rank]:
        return sorted(self.order.ranks, key=lambda rank: rank.serial)

    @rule()
    def add(self) -> None:
        self.serials += 1
        self.order.add(new_rank(self.serials))

    @rule(choice=st.integers(0, 100))
    def remove(self, choice: int) -> None:
        if ranks := self.ranks():
            self.order.remove(ranks[choice % len(ranks)])

    @rule(choice=st.integers(0, 100), tokens=st.integers(1, 5))
    def work_comes(self, choice: int, tokens: int) -> None:
        if ranks := self.ranks():
            rank = ranks[choice % len(ranks)]
            self.turns += 1
            rank.turn = self.turns
            rank.requests += 1
            rank.tokens += tokens
            rank.weigh()

    @rule(choice=st.integers(0, 100))
    def work_leaves(self, choice: int) -> None:
        busy = [rank for rank in self.ranks() if rank.requests]
        if busy:
            rank = busy[choice % len(busy)]
            rank.requests -= 1
            rank.tokens = rank.tokens // 2 if rank.requests else 0
            rank.weigh()
            self.order.work_left(rank)

    @rule(avoid=st.sets(st.integers(1, 6).map(lambda serial: f"e{serial}")))
    def ask(self, avoid: set[str]) -> None:
        usable = [r for r in self.ranks() if r.engine_id not in avoid and r.load < inf]
        best = min(usable, key=lambda rank: (rank.load, rank.turn), default=None)
        found = self.order.least_loaded(avoid)
        assert (found is None) == (best is None)
        if found is not None and best is not None:
            assert (found.load, found.turn) == (best.load, best.turn)

    @invariant()
    def order_is_sound(self) -> None:
        self.order.check_integrity()


OrderMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestOrderMachine = OrderMachine.TestCase


def test_the_heap_stays_small_where_work_comes_and_goes() -> None:
    order, ranks = RankOrder(), [new_rank(serial) for serial in range(5)]
    for rank in ranks:
        order.add(rank)
    for turn in range(2000):
        rank = order.least_loaded() or ranks[0]
        rank.turn, rank.requests, rank.tokens = turn, 1, 10
        rank.weigh()
        order.least_loaded()
        rank.requests, rank.tokens = 0, 0
        rank.weigh()
        order.work_left(rank)
        order.check_integrity()
