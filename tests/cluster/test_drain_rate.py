"""The retry delay: measured, bounded, and near the time at which a place is really free."""

import heapq

import pytest

from moeray.cluster.contracts import Placement, Refused, Waiting
from moeray.cluster.drain_rate import MAX_RETRY_S, MIN_RETRY_S, DrainRate
from moeray.cluster.placement import PlacementLimits, PlacementPolicy

from .contract_samples import engine, load, request


def test_without_a_release_the_delay_is_the_longest() -> None:
    assert DrainRate(10.0).delay_s(1, 100, 0.0) == MAX_RETRY_S


def test_the_delay_is_that_of_requests_or_of_tokens_whichever_is_longer() -> None:
    drain = DrainRate(10.0)
    for second in range(5):
        drain.note(100, float(second))
    assert drain.delay_s(3, 300, 5.0) == pytest.approx(3.0)
    assert drain.delay_s(3, 900, 5.0) == pytest.approx(9.0)
    assert drain.delay_s(3, 30, 5.0) == pytest.approx(3.0)


def test_old_releases_are_forgotten() -> None:
    drain = DrainRate(10.0)
    for index in range(100):
        drain.note(1, index / 100)
    assert drain.delay_s(5, 5, 1.0) == MIN_RETRY_S
    drain.note(1, 20.0)
    assert drain.delay_s(1, 1, 22.0) == pytest.approx(2.0)
    assert drain.delay_s(1, 1, 40.0) == MAX_RETRY_S


class Script:
    """A rank with four places whose requests take ``service_s`` each, on a scripted clock."""

    def __init__(self, tokens: int, service_s: float) -> None:
        self.limits = PlacementLimits(max_waiting=8, gateway_timeout_s=1e9)
        self.placing = PlacementPolicy(self.limits, incarnation="script")
        self.placing.register_engine(engine(ranks=1, places=4), 0.0)
        self.tokens, self.service_s = tokens, service_s
        self.ends: list[tuple[float, str]] = []
        self.names = 0

    def arrive(self, now: float) -> Placement | Waiting | Refused:
        self.names += 1
        asked = request(f"r{self.names}", tokens=self.tokens)
        outcome = self.placing.place("g", asked, now)
        self.started(outcome, now)
        return outcome

    def started(self, outcome: Placement | Waiting | Refused, now: float) -> None:
        if isinstance(outcome, Placement):
            heapq.heappush(self.ends, (now + self.service_s, outcome.request_id))

    def run_until(self, time: float) -> None:
        while self.ends and self.ends[0][0] <= time:
            now, name = heapq.heappop(self.ends)
            self.placing.report_load(load(), now)
            self.placing.release("g", [name], now)
            for outcome in self.placing.take_outcomes("g"):
                self.started(outcome, now)


@pytest.mark.parametrize("service_s", [0.4, 2.0, 5.0])
def test_after_the_delay_a_place_is_free(service_s: float) -> None:
    script = Script(tokens=100, service_s=service_s)
    now, refused = 0.0, None
    # Arrivals at twice the rate of service, until the queue is full and the rate is known.
    while refused is None or now < 4 * service_s:
        now += service_s / 8
        script.run_until(now)
        outcome = script.arrive(now)
        refused = outcome if isinstance(outcome, Refused) else refused
    assert isinstance(outcome, Refused) and outcome.reason == "queue_full"
    waited = 0.0
    while script.placing.stats().waiting or script.placing.stats().running == 4:
        waited += service_s / 40
        script.run_until(now + waited)
    assert outcome.retry_after_s == pytest.approx(waited, rel=0.5)


def test_refusals_say_how_long_and_are_counted() -> None:
    script = Script(tokens=100, service_s=1.0)
    outcomes = [script.arrive(0.0) for _ in range(14)]
    assert [type(outcome) for outcome in outcomes[-2:]] == [Refused, Refused]
    assert script.placing.stats().refused_total == {"queue_full": 2}
    assert script.placing.stats().waiting_prompt_tokens == 800
