"""How many engines there should be: what holds for every load, and for every course of it."""

import dataclasses
import logging
from collections.abc import Iterable
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeray.cluster.autoscaling import (
    MAX_GAP_S,
    AutoscalingRules,
    AutoscalingState,
    EngineAutoscaler,
    EngineStats,
    Observation,
    decide,
    observe,
    wanted_engines,
)

RULES = AutoscalingRules(
    min_engines=0,
    max_engines=8,
    target_kv_usage=0.8,
    target_waiting_tokens=1000,
    scale_up_delay_s=2.0,
    scale_down_delay_s=5.0,
    scale_to_zero_delay_s=20.0,
)


def report(**given: float) -> EngineStats:
    idle = EngineStats(
        requests=0, places=10, kv_usage=0, waiting_tokens=0, queued_requests=0, queued_tokens=0
    )
    return dataclasses.replace(idle, **given)


IDLE = report()


@st.composite
def reports(draw: st.DrawFn) -> EngineStats:
    queued = draw(st.integers(0, 30))
    return EngineStats(
        requests=draw(st.integers(0, 10)),
        places=10,
        kv_usage=draw(st.floats(0, 1)),
        waiting_tokens=draw(st.integers(0, 5000)),
        queued_requests=queued,
        queued_tokens=queued * draw(st.integers(1, 500)),
    )


@st.composite
def rules(draw: st.DrawFn) -> AutoscalingRules:
    fewest = draw(st.integers(0, 3))
    delays = st.sampled_from([0.0, 1.0, 5.0, 20.0])
    return AutoscalingRules(
        min_engines=fewest,
        max_engines=draw(st.integers(max(1, fewest), 12)),
        target_kv_usage=draw(st.floats(0.1, 1)),
        target_waiting_tokens=draw(st.integers(1, 10_000)),
        scale_up_delay_s=draw(delays),
        scale_down_delay_s=draw(delays),
        scale_to_zero_delay_s=draw(delays),
    )


class Run:
    """A course of decisions; Serve's target follows each one at once, as Serve's does."""

    def __init__(self, rules: AutoscalingRules = RULES, target: int = 0) -> None:
        self.rules = rules
        self.target = target
        self.now = 1000.0
        self.state: AutoscalingState | None = None
        self.targets = [target]

    def see(
        self, engines: Iterable[EngineStats | None], wake_calls: float = 0.0, after_s: float = 1.0
    ) -> int:
        self.now += after_s
        seen = Observation(
            now=self.now, target=self.target, engines=tuple(engines), wake_calls=wake_calls
        )
        self.target, self.state = decide(self.rules, self.state, seen)
        self.targets.append(self.target)
        return self.target


@given(rules(), st.lists(reports(), max_size=6), st.data())
def test_more_load_never_asks_for_fewer(
    rules: AutoscalingRules, engines: list[EngineStats], data: st.DataObject
) -> None:
    heavier = list(engines)
    for index, stats in enumerate(engines):
        grown = data.draw(reports())
        heavier[index] = EngineStats(
            **{
                field.name: max(getattr(stats, field.name), getattr(grown, field.name))
                for field in dataclasses.fields(EngineStats)
            }
        )
    wake_calls = data.draw(st.integers(0, 2))
    light = Observation(now=0, target=len(engines), engines=tuple(engines))
    heavy = dataclasses.replace(light, engines=tuple(heavier), wake_calls=wake_calls)
    assert wanted_engines(rules, light) <= wanted_engines(rules, heavy)


@given(rules(), st.integers(0, 12), st.lists(st.lists(reports(), max_size=6), max_size=30))
def test_every_decision_is_within_bounds_and_keeps_what_the_requests_need(
    rules: AutoscalingRules, target: int, course: list[list[EngineStats]]
) -> None:
    run = Run(rules, min(max(target, rules.min_engines), rules.max_engines))
    for engines in course:
        before = run.target
        after = run.see(engines)
        assert rules.min_engines <= after <= rules.max_engines
        in_use = sum(max(e.kv_usage, e.requests / e.places) for e in engines)
        holds = min(rules.max_engines, in_use / rules.target_kv_usage - 1e-6)
        assert after >= min(before, holds)
        if after == 0 < before:
            assert not any(e.requests or e.queued_requests or e.waiting_tokens for e in engines)


@given(rules(), st.integers(0, 12), st.lists(reports(), min_size=1, max_size=6))
def test_constant_load_settles_once(
    rules: AutoscalingRules, target: int, engines: list[EngineStats]
) -> None:
    run = Run(rules, min(max(target, rules.min_engines), rules.max_engines))
    for _ in range(45):
        run.see(engines)
    assert run.targets == sorted(run.targets) or run.targets == sorted(run.targets, reverse=True)
    wanted = wanted_engines(rules, Observation(now=0, target=run.target, engines=tuple(engines)))
    assert run.target == wanted
    assert len(set(run.targets)) <= 3  # at once, or over 1 to 0


@given(st.lists(reports(), min_size=1, max_size=4), st.integers(1, 8))
def test_nothing_is_taken_away_while_a_load_is_unknown(
    engines: list[EngineStats], target: int
) -> None:
    run = Run(target=target)
    for _ in range(45):
        assert run.see([*engines, None]) >= target


def test_what_waits_wakes_the_first_engine_at_once() -> None:
    run = Run()
    assert run.see([]) == 0
    assert run.see([], wake_calls=0.2) == 1


def test_the_first_engine_is_not_taken_away_while_it_starts_for_somebody() -> None:
    run = Run()
    for _ in range(100):
        assert run.see([], wake_calls=1.0) == 1


def test_idle_time_before_the_engine_came_does_not_count_against_it() -> None:
    run = Run()
    for _ in range(100):
        run.see([])
    assert run.see([], wake_calls=1.0) == 1
    for _ in range(19):
        assert run.see([IDLE]) == 1


def test_nor_where_serve_started_the_engine_itself() -> None:
    run = Run()
    for _ in range(100):
        run.see([])
    run.target = 1  # for a wake call, without asking the policy
    for _ in range(20):
        assert run.see([IDLE]) == 1


def test_the_last_engine_goes_when_nothing_ran_for_the_delay() -> None:
    run = Run(target=1)
    run.see([report(requests=1, kv_usage=0.01)])
    for _ in range(20):
        assert run.see([IDLE]) == 1
    assert run.see([IDLE]) == 0


@pytest.mark.parametrize(
    "busy",
    [
        report(requests=1),
        report(kv_usage=0.001),
        report(waiting_tokens=1),
        report(queued_requests=1, queued_tokens=1),
    ],
)
def test_the_least_load_keeps_the_last_engine(busy: EngineStats) -> None:
    run = Run(target=1)
    for moment in range(100):
        assert run.see([busy if moment % 15 == 0 else IDLE]) == 1


def test_more_engines_come_after_their_delay_and_by_the_least_that_was_asked_for() -> None:
    run = Run(target=1)
    full = [report(requests=10)]
    assert [run.see([report(requests=10, waiting_tokens=4000)]), run.see(full)] == [1, 1]
    assert run.see([report(requests=10, waiting_tokens=4000)]) == 2


def test_a_peak_shorter_than_the_delay_changes_nothing() -> None:
    run = Run(target=1)
    for _ in range(30):
        run.see([report(requests=10)])
        run.see([report(requests=2)])
    assert set(run.targets) == {1}


def test_fewer_engines_after_their_delay_and_by_the_least_that_was_asked_for() -> None:
    run = Run(target=4)
    course = [report(requests=10), *[IDLE] * 5]
    assert [run.see([stats]) for stats in course] == [4, 4, 4, 4, 4, 2]


def test_idle_engines_go_down_to_one_and_then_to_none() -> None:
    run = Run(target=4)
    for _ in range(30):
        run.see([IDLE] * run.target)
    assert run.targets == [4] * 6 + [1] * 15 + [0] * 10


def test_what_is_queued_counts_once_whoever_reports_it() -> None:
    queued = report(queued_requests=4, queued_tokens=1500)
    seen = Observation(now=0, target=3, engines=(queued, queued, IDLE))
    assert wanted_engines(RULES, seen) == 2


def test_engines_full_of_requests_are_full_whatever_their_cache() -> None:
    full = report(requests=10, kv_usage=0.05)
    assert wanted_engines(RULES, Observation(now=0, target=3, engines=(full,) * 3)) == 4


def test_a_gap_begins_a_new_history() -> None:
    run = Run(target=1)
    run.see([IDLE])
    assert run.see([IDLE], after_s=MAX_GAP_S + 20) == 1
    assert run.see([IDLE], after_s=-1000.0) == 1
    for _ in range(19):
        assert run.see([IDLE]) == 1
    assert run.see([IDLE]) == 0


def context(**given: object) -> SimpleNamespace:
    """The parts of Serve's AutoscalingContext that are read."""
    series = {
        name: {"a": [SimpleNamespace(value=9.0), SimpleNamespace(value=value)]}
        for name, value in report(requests=10, kv_usage=0.5).as_dict().items()
    }
    defaults = {
        "policy_state": {},
        "raw_metrics": series,
        "running_replicas": ["a"],
        "current_time": 1000.0,
        "target_num_replicas": 1,
        "total_queued_requests": 0.0,
    }
    return SimpleNamespace(**defaults | given)


def test_the_newest_reports_of_running_engines_are_taken() -> None:
    seen = observe(context(running_replicas=["a", "b"]))  # type: ignore[arg-type]
    assert seen.engines == (report(requests=10, kv_usage=0.5), None)
    assert (seen.now, seen.target, seen.wake_calls) == (1000.0, 1, 0.0)


def test_serve_gets_decisions_and_keeps_the_state() -> None:
    autoscaler = EngineAutoscaler(**dataclasses.asdict(RULES))
    state: dict[str, object] = {}
    decisions = []
    for second in range(3):
        given = context(current_time=1000.0 + second, policy_state=state)
        engines, state = autoscaler(given)  # type: ignore[arg-type]
        decisions.append(engines)
    assert decisions == [1, 1, 2]


def test_an_error_leaves_the_engines_as_they_are() -> None:
    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("ray.serve").addHandler(listener)
    autoscaler = EngineAutoscaler(**dataclasses.asdict(RULES))
    kept = {"ours": 1}
    broken = context(raw_metrics={"requests": None}, policy_state=kept, target_num_replicas=5)
    for _ in range(3):
        assert autoscaler(broken) == (5, kept)  # type: ignore[arg-type]
    logging.getLogger("ray.serve").removeHandler(listener)
    assert [record.exc_info is not None for record in said] == [True]
    assert autoscaler(context())[0] == 1  # type: ignore[arg-type]
