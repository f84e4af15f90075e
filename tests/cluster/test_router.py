"""The router actor's class without Ray: long polls, outcomes, and time passing."""

import asyncio
import time
from dataclasses import replace

from moeray.cluster.contracts import (
    EngineLoad,
    LivePlacement,
    Placement,
    Refused,
    Waiting,
)
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router import TICK_S, RouterActor
from tests.cluster.contract_samples import chain, kv_events, request
from tests.cluster.contract_samples import one_rank_engine as engine

from .hang import HANG_S


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_watch_answers_at_once_when_the_engine_list_is_another() -> None:
    router = RouterActor(PlacementLimits())
    await router.register_engine(engine())
    update = await router.watch("g", 0, 60.0)
    assert [info.engine_id for info in update.engines] == ["e1"]
    again = await router.watch("g", update.version, 0.01)
    assert (again.version, again.session, again.outcomes) == (update.version, update.session, [])


async def test_watch_wakes_when_an_engine_registers_or_leaves() -> None:
    router = RouterActor(PlacementLimits())
    version = (await router.watch("g", 0, 1.0)).version
    for change, engines in (
        (router.register_engine(engine()), ["e1"]),
        (router.deregister_engine("e1"), []),
    ):
        poll = asyncio.create_task(router.watch("g", version, 60.0))
        await asyncio.sleep(0)
        await change
        update = await asyncio.wait_for(poll, HANG_S)
        assert [info.engine_id for info in update.engines] == engines
        version = update.version


async def test_an_outcome_wakes_only_its_gateway() -> None:
    router = RouterActor(PlacementLimits())
    await router.register_engine(engine())
    version = (await router.watch("g1", 0, 1.0)).version
    assert await router.place("g1", [request("a"), request("b")]) == [
        Placement("a", "e1", 0),
        Waiting("b"),
    ]
    mine = asyncio.create_task(router.watch("g1", version, 60.0))
    other = asyncio.create_task(router.watch("g2", version, 60.0))
    await asyncio.sleep(0)
    await router.release("g1", ["a"])
    update = await asyncio.wait_for(mine, HANG_S)
    assert update.outcomes == [Placement("b", "e1", 0)]
    assert not other.done()
    other.cancel()


async def test_the_tick_expires_deadlines_engines_and_gateways() -> None:
    clock = Clock()
    router = RouterActor(PlacementLimits(), clock)
    await router.register_engine(engine())
    first = await router.watch("g", 0, 1.0)
    await router.place("g", [request("a"), request("b", deadline=clock.now + 1)])
    poll = asyncio.create_task(router.watch("g", first.version, 60.0))
    await asyncio.sleep(0)
    clock.now += 2
    (refused,) = (await asyncio.wait_for(poll, HANG_S)).outcomes
    assert isinstance(refused, Refused) and refused.reason == "deadline"
    poll = asyncio.create_task(router.watch("g", first.version, 60.0))
    await asyncio.sleep(0)
    clock.now += 6
    assert (await asyncio.wait_for(poll, HANG_S)).engines == []
    load = EngineLoad(engine_id="e1", running=[0], waiting=[0], free_blocks=[1], steps=0)
    assert not await router.report_load(load)


async def test_a_router_that_stood_still_takes_nobody_for_gone() -> None:
    router = RouterActor(PlacementLimits(engine_timeout_s=2.0, gateway_timeout_s=2.0))
    await router.register_engine(engine())
    await router.place("g", [request("a")])
    version = (await router.watch("g", 0, 0.0)).version
    await asyncio.sleep(1.5 * TICK_S)
    time.sleep(2.4)
    await asyncio.sleep(1.5 * TICK_S)
    stats = await router.stats()
    assert (stats.engines, stats.running) == (1, 1)
    async with asyncio.timeout(HANG_S):  # an engine that stays silent is gone after all
        while (await router.watch("g", version, 60.0)).engines:
            pass


async def test_announced_placements_count_again() -> None:
    router = RouterActor(PlacementLimits())
    await router.announce("g", [LivePlacement(Placement("a", "e1", 0), 10)])
    await router.register_engine(engine())
    assert await router.place("g", [request("b")]) == [Waiting("b")]
    await router.release("g", ["a"])
    assert (await router.watch("g", 0, 1.0)).outcomes == [Placement("b", "e1", 0)]


async def test_a_batch_is_placed_in_order_with_one_result_each() -> None:
    router = RouterActor(PlacementLimits(max_waiting=1))
    await router.register_engine(engine(places=2))
    asked = [request("a"), request("b", deadline=1.0), request("c"), request("d"), request("e")]
    outcomes = await router.place("g", [*asked, request("a")])
    assert [outcome.request_id for outcome in outcomes] == ["a", "b", "c", "d", "e", "a"]
    kinds = [Placement, Refused, Placement, Waiting, Refused, Placement]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert outcomes[0] == outcomes[-1]


async def test_kv_events_lead_requests_to_where_their_prefix_is() -> None:
    router, prompt = RouterActor(PlacementLimits()), chain("p", 4)
    for number in range(3):
        await router.register_engine(replace(engine(places=9), engine_id=f"e{number}"))
    events = kv_events(1, full=prompt, window=prompt)
    assert await router.report_kv("e2", [events]) == []
    assert await router.report_kv("e2", [kv_events(3)]) == [0]
    assert await router.report_kv("unknown", [events]) == [0]
    asked = request("a", tokens=70, hashes=prompt)
    assert await router.place("g", [asked]) == [Placement("a", "e2", 0, 64)]
    stats = await router.stats()
    assert (stats.running, stats.engines, stats.placed_total) == (1, 3, 1)
    assert (stats.prompt_blocks_total, stats.matched_blocks_total) == (4, 4)
