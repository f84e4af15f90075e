"""Placement policy: named cases. Random ones are in test_placement_machine.py."""

from moeray.cluster.contracts import EngineInfo, LivePlacement, Placement, Refused, Waiting
from moeray.cluster.drain_rate import MAX_RETRY_S, MIN_RETRY_S
from moeray.cluster.placement import PlacementLimits, PlacementPolicy

from .contract_samples import engine, load, request

LIMITS = PlacementLimits(max_waiting=4, max_waiting_tokens=1000, no_engine_wait_s=20.0)


def policy(*engines: EngineInfo, limits: PlacementLimits = LIMITS) -> PlacementPolicy:
    made = PlacementPolicy(limits, incarnation="test")
    for info in engines:
        made.register_engine(info, 0.0)
    return made


def test_ties_go_to_the_lowest_rank_and_then_to_the_least_loaded() -> None:
    placing = policy(engine(places=2))
    ranks = [placing.place("g", request(str(i)), 0.0) for i in range(4)]
    assert ranks == [Placement(str(i), "e1", i % 2) for i in range(4)]


def test_load_counts_tokens_per_free_place() -> None:
    placing = policy(engine(places=4))
    placing.place("g", request("big", tokens=500), 0.0)
    small = [placing.place("g", request(f"s{i}"), 0.0) for i in range(3)]
    assert [p.rank for p in small if isinstance(p, Placement)] == [1, 1, 1]


def test_no_place_means_waiting_and_a_release_places_the_first() -> None:
    placing = policy(engine())
    placing.place("g", request("a"), 0.0)
    placing.place("g", request("b"), 0.0)
    assert placing.place("g", request("c"), 1.0) == Waiting("c")
    assert placing.place("g", request("d"), 2.0) == Waiting("d")
    placing.release("g", ["b"], 3.0)
    assert placing.take_outcomes("g") == [Placement("c", "e1", 1)]
    assert placing.take_outcomes("g") == []
    placing.check_integrity(3.0)


def test_the_same_request_asked_again_gets_the_same_answer() -> None:
    placing = policy(engine(ranks=1))
    first = placing.place("g", request("a"), 0.0)
    assert placing.place("g", request("a"), 0.0) == first
    assert placing.place("g", request("b"), 0.0) == Waiting("b")
    assert placing.place("g", request("b"), 0.0) == Waiting("b")
    placing.check_integrity(0.0)


def test_requests_of_two_gateways_with_one_name_are_two() -> None:
    placing = policy(engine())
    placing.place("g1", request("a"), 0.0)
    placing.place("g2", request("a"), 0.0)
    placing.release("g1", ["a"], 0.0)
    assert placing.place("g1", request("b"), 0.0) == Placement("b", "e1", 0)
    assert placing.place("g1", request("c"), 0.0) == Waiting("c")


def test_higher_priority_first_but_waiting_long_enough_wins() -> None:
    placing = policy(engine(ranks=1))
    placing.place("g", request("running"), 0.0)
    placing.place("g", request("low"), 0.0)
    placing.place("g", request("high", priority=5), 1.0)
    placing.place("g", request("later", priority=5), 6.0)
    order = []
    done = "running"
    for _ in range(3):
        placing.release("g", [done], 7.0)
        (placed,) = placing.take_outcomes("g")
        order.append(done := placed.request_id)
    assert order == ["high", "low", "later"]


def test_a_conversation_returns_to_its_rank_while_that_has_little_to_do() -> None:
    placing = policy(engine(places=3))
    placing.place("g", request("x", tokens=500), 0.0)
    assert rank_of(placing, "a", tokens=90, conversation="c") == 1
    placing.release("g", ["x", "a"], 0.0)
    assert rank_of(placing, "b", tokens=30, conversation="c") == 1
    assert rank_of(placing, "d", tokens=100, conversation="c") == 1
    assert rank_of(placing, "e", tokens=100, conversation="c") == 0, "computing it is cheaper"
    assert rank_of(placing, "f", tokens=300, conversation="c") == 0


def rank_of(placing: PlacementPolicy, name: str, *, tokens: int, conversation: str) -> int:
    placed = placing.place("g", request(name, tokens=tokens, conversation=conversation), 0.0)
    assert isinstance(placed, Placement)
    return placed.rank


def test_the_queue_is_bounded_in_requests_and_tokens() -> None:
    placing = policy(engine(ranks=1))
    placing.place("g", request("a"), 0.0)
    assert placing.place("g", request("huge", tokens=5000), 0.0) == Waiting("huge")
    refused = placing.place("g", request("b"), 0.0)
    assert isinstance(refused, Refused) and refused.reason == "queue_full"
    placing.release("g", ["huge"], 0.0)
    for i in range(4):
        assert placing.place("g", request(f"w{i}"), 0.0) == Waiting(f"w{i}")
    refused = placing.place("g", request("c"), 0.0)
    assert isinstance(refused, Refused) and refused.reason == "queue_full"


def test_an_expired_request_is_refused_and_never_placed() -> None:
    placing = policy(engine(ranks=1))
    late = placing.place("g", request("late", deadline=5.0), 5.0)
    assert isinstance(late, Refused) and late.reason == "deadline"
    placing.place("g", request("a"), 0.0)
    placing.place("g", request("b", deadline=3.0), 0.0)
    placing.release("g", ["a"], 3.0)
    assert placing.take_outcomes("g") == []
    placing.expire(3.0)
    (refused,) = placing.take_outcomes("g")
    assert isinstance(refused, Refused) and refused.reason == "deadline"


def test_an_expired_request_lets_those_behind_it_pass_and_frees_its_room() -> None:
    placing = policy(engine(ranks=1))
    placing.place("g", request("running"), 0.0)
    placing.place("g", request("late", deadline=2.0, priority=9), 0.0)
    for index in range(3):
        placing.place("g", request(f"w{index}"), 0.0)
    full = placing.place("g", request("x"), 1.0)
    assert isinstance(full, Refused) and full.reason == "queue_full"
    placing.release("g", ["running"], 2.0)
    placing.expire(2.0)
    first, refused = placing.take_outcomes("g")
    assert first == Placement("w0", "e1", 0)
    assert isinstance(refused, Refused) and refused.request_id == "late"
    assert placing.place("g", request("x"), 2.0) == Waiting("x")
    placing.check_integrity(2.0)


def test_an_unknown_model_is_refused_but_none_at_all_waits() -> None:
    placing = policy()
    assert placing.place("g", request("a"), 0.0) == Waiting("a")
    placing.register_engine(engine(model="other"), 1.0)
    refused = placing.place("g", request("b"), 1.0)
    assert isinstance(refused, Refused) and refused.reason == "model_not_found"
    placing.register_engine(engine("e2"), 2.0)
    assert placing.take_outcomes("g") == [Placement("a", "e2", 0)]


def test_without_an_engine_a_request_waits_only_so_long() -> None:
    placing = policy()
    placing.place("g", request("a"), 0.0)
    placing.heartbeat("g", 19.0)
    placing.expire(19.0)
    assert placing.take_outcomes("g") == []
    placing.expire(20.0)
    (refused,) = placing.take_outcomes("g")
    assert isinstance(refused, Refused) and refused.reason == "unavailable"
    assert MIN_RETRY_S <= refused.retry_after_s <= MAX_RETRY_S


def test_without_an_engine_a_request_with_a_deadline_waits_until_then() -> None:
    placing = policy()
    placing.place("g", request("a", deadline=100.0), 0.0)
    placing.heartbeat("g", 99.0)
    placing.expire(99.0)
    assert placing.take_outcomes("g") == []
    placing.expire(100.0)
    (refused,) = placing.take_outcomes("g")
    assert isinstance(refused, Refused) and refused.reason == "deadline"


def test_a_request_is_not_placed_where_it_was_lost() -> None:
    placing = policy(engine("e1"), engine("e2", ranks=1))
    assert placing.place("g", request("a", avoid=("e1",)), 0.0) == Placement("a", "e2", 0)
    assert placing.place("g", request("b", avoid=("e1",)), 0.0) == Waiting("b")
    assert placing.place("g", request("c"), 0.0) == Placement("c", "e1", 0)


def test_a_silent_engine_vanishes_and_finds_its_places_when_it_is_back() -> None:
    placing = policy(engine(ranks=1))
    version = placing.version
    placing.place("g", request("a"), 0.0)
    assert placing.report_load(load(), 3.0)
    placing.heartbeat("g", 8.0)
    placing.expire(8.0)
    assert len(placing.engines) == 1
    placing.expire(8.1)
    assert placing.engines == [] and placing.version > version
    assert not placing.report_load(load(), 8.2)
    assert placing.place("g", request("b"), 8.2) == Waiting("b")
    placing.register_engine(engine(ranks=1), 8.3)
    assert placing.take_outcomes("g") == []
    placing.release("g", ["a"], 8.4)
    assert placing.take_outcomes("g") == [Placement("b", "e1", 0)]
    placing.check_integrity(8.4)


def test_silence_for_a_reason_of_the_routers_own_is_excused() -> None:
    placing = policy(engine(ranks=1))
    placing.place("g", request("a"), 0.0)
    placing.excuse(100.0)
    placing.expire(100.0)
    placing.expire(105.0)
    assert len(placing.engines) == 1 and placing.stats().running == 1
    placing.expire(105.1)
    assert placing.engines == [] and placing.stats().running == 1
    placing.expire(110.1)
    assert placing.stats().running == 0
    placing.check_integrity(110.1)


def test_a_silent_gateway_frees_what_it_held_and_gets_a_new_session() -> None:
    placing = policy(engine(ranks=1))
    session = placing.heartbeat("g1", 0.0)
    placing.place("g1", request("a"), 0.0)
    placing.place("g1", request("b"), 0.0)
    placing.place("g2", request("c"), 4.0)
    placing.report_load(load(), 11.0)
    placing.expire(11.0)
    assert placing.take_outcomes("g2") == [Placement("c", "e1", 0)]
    assert placing.heartbeat("g1", 11.0) != session
    placing.check_integrity(11.0)


def test_announced_placements_hold_their_places_in_a_new_router() -> None:
    placing = policy(engine(ranks=1))
    live = LivePlacement(Placement("a", "e1", 0), 20)
    placing.announce("g", [live], 0.0)
    placing.announce("g", [live], 0.0)
    assert placing.place("g", request("b"), 0.0) == Waiting("b")
    placing.release("g", ["a", "never-heard-of"], 0.0)
    assert placing.take_outcomes("g") == [Placement("b", "e1", 0)]
    placing.check_integrity(0.0)


def test_the_memory_of_conversations_is_bounded() -> None:
    placing = policy(engine(places=9), limits=PlacementLimits(max_conversations=2))
    for i in range(5):
        placing.place("g", request(str(i), conversation=f"c{i}"), 0.0)
    placing.check_integrity(0.0)
