"""A gateway's client over the router class: batches, cancellation, and a router that is lost."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from moeray.cluster import errors, router_client
from moeray.cluster.contracts import (
    EngineInfo,
    GatewayUpdate,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    Waiting,
)
from moeray.cluster.placement import PlacementLimits
from moeray.cluster.router import RouterActor
from moeray.cluster.router_client import RouterClient, RouterUnreachable
from tests.cluster.contract_samples import one_rank_engine as engine
from tests.cluster.contract_samples import request

from .hang import HANG_S, until


class LosableRouter:
    """A router actor behind a seam that can lose the call, the reply, or the whole router."""

    def __init__(self, limits: PlacementLimits) -> None:
        self.limits = limits
        self.actor = RouterActor(limits)
        self.down = False
        self.lose_replies = 0
        self.place_calls: list[list[str]] = []
        self.delay_s = 0.0

    def restart(self) -> None:
        self.actor = RouterActor(self.limits)

    async def _call(self, call: Callable[[], Awaitable[object]]) -> object:
        if self.down:
            raise RouterUnreachable("down")
        actor = self.actor
        answer = await call()
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.lose_replies:
            self.lose_replies -= 1
            raise RouterUnreachable("the reply was lost")
        if self.down or self.actor is not actor:
            raise RouterUnreachable("died")
        return answer

    async def place(
        self, gateway_id: str, requests: list[PlacementRequest]
    ) -> list[Placement | Waiting | Refused]:
        self.place_calls.append([request.request_id for request in requests])
        return await self._call(lambda: self.actor.place(gateway_id, requests))  # type: ignore[return-value]

    async def watch(self, gateway_id: str, version: int, timeout_s: float) -> GatewayUpdate:
        poll_s = min(timeout_s, 0.05)
        return await self._call(lambda: self.actor.watch(gateway_id, version, poll_s))  # type: ignore[return-value]

    async def release(self, gateway_id: str, request_ids: list[str]) -> None:
        await self._call(lambda: self.actor.release(gateway_id, request_ids))

    async def announce(self, gateway_id: str, placements: list[LivePlacement]) -> None:
        await self._call(lambda: self.actor.announce(gateway_id, placements))


@asynccontextmanager
async def connected(
    limits: PlacementLimits | None = None,
) -> AsyncIterator[tuple[LosableRouter, RouterClient, list[list[EngineInfo]]]]:
    router = LosableRouter(limits or PlacementLimits())
    seen: list[list[EngineInfo]] = []
    client = RouterClient(router, "g", seen.append)
    client.start()
    try:
        yield router, client, seen
    finally:
        await client.close()


async def place(client: RouterClient, asked: PlacementRequest) -> Placement:
    return await asyncio.wait_for(client.place(asked), HANG_S)


async def test_requests_of_one_tick_travel_in_one_call() -> None:
    async with connected() as (router, client, _):
        await router.actor.register_engine(engine(places=9))
        placed = await asyncio.gather(*(place(client, request(str(i))) for i in range(5)))
        assert [p.request_id for p in placed] == ["0", "1", "2", "3", "4"]
        assert router.place_calls == [["0", "1", "2", "3", "4"]]


async def test_a_waiting_request_is_placed_when_another_is_released() -> None:
    async with connected() as (router, client, _):
        await router.actor.register_engine(engine())
        await place(client, request("a"))
        waiting = asyncio.create_task(place(client, request("b")))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        client.release("a")
        assert (await waiting).request_id == "b"


async def test_cancelling_a_wait_or_a_call_under_way_leaves_nothing_behind() -> None:
    async with connected() as (router, client, _):
        await router.actor.register_engine(engine())
        await place(client, request("a"))
        for delay_s in (0.0, 0.03):
            router.delay_s = delay_s
            waiting = asyncio.create_task(place(client, request(f"b{delay_s}")))
            await asyncio.sleep(0.015)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        router.delay_s = 0.0
        client.release("a")
        assert (await place(client, request("c"))).request_id == "c"


async def test_cancelling_a_wait_frees_its_place_in_the_queue() -> None:
    async with connected(PlacementLimits(max_waiting=1)) as (router, client, _):
        await router.actor.register_engine(engine())
        await place(client, request("a"))
        waiting = asyncio.create_task(place(client, request("b")))
        await until(lambda: len(router.actor._policy._queue) == 1)
        waiting.cancel()
        await until(lambda: len(router.actor._policy._queue) == 0)


@pytest.mark.parametrize(
    ("limits", "asked", "expected"),
    [
        (PlacementLimits(max_waiting=0), request("x"), errors.QueueFull),
        (PlacementLimits(), request("x", model="other"), errors.ModelNotFound),
        (PlacementLimits(), request("x", deadline=1.0), errors.DeadlineExpired),
    ],
)
async def test_refusals_are_typed(
    limits: PlacementLimits, asked: PlacementRequest, expected: type[errors.MoerayError]
) -> None:
    async with connected(limits) as (router, client, _):
        await router.actor.register_engine(engine())
        await place(client, request("a"))
        with pytest.raises(expected):
            await place(client, asked)


async def test_without_an_engine_the_wait_ends_as_unavailable() -> None:
    async with connected(PlacementLimits(no_engine_wait_s=0.05)) as (_, client, _engines):
        with pytest.raises(errors.Unavailable):
            await place(client, request("a"))


async def test_engine_changes_are_told() -> None:
    async with connected() as (router, client, seen):
        await router.actor.register_engine(engine())
        await until(lambda: bool(client.engines))
        await router.actor.deregister_engine("e1")
        await until(lambda: not client.engines)
        assert [info.engine_id for engines in seen for info in engines][:1] == ["e1"]


async def test_a_lost_reply_is_asked_for_again_and_holds_one_place() -> None:
    async with connected() as (router, client, _):
        await router.actor.register_engine(engine(places=2))
        await until(lambda: bool(client.engines))
        router.lose_replies = 2
        await place(client, request("a"))
        await place(client, request("b"))
        client.release("a")
        assert (await place(client, request("c"))).request_id == "c"


async def test_requests_wait_for_a_router_that_restarts_and_placements_are_announced() -> None:
    async with connected() as (router, client, _):
        await router.actor.register_engine(engine())
        await place(client, request("running"))
        waiting = asyncio.create_task(place(client, request("waiting")))
        await asyncio.sleep(0.02)
        router.down = True
        late = asyncio.create_task(place(client, request("late")))
        await asyncio.sleep(0.05)
        router.restart()
        router.down = False
        announced = router.actor._policy._held
        await until(lambda: ("g", "running") in announced)
        await router.actor.register_engine(engine())
        await asyncio.sleep(0.05)
        assert not waiting.done() and not late.done()
        client.release("running")
        done, _ = await asyncio.wait({waiting, late}, timeout=HANG_S, return_when="FIRST_COMPLETED")
        (first,) = done
        client.release(first.result().request_id)
        await asyncio.wait_for(asyncio.gather(waiting, late), HANG_S)


async def test_a_restarted_router_without_engines_does_not_empty_the_list_at_once() -> None:
    async with connected() as (router, client, seen):
        await router.actor.register_engine(engine())
        await until(lambda: bool(client.engines))
        seen.clear()
        router.restart()
        await asyncio.sleep(0.3)
        assert [] not in seen and client.engines


async def test_a_router_lost_for_good_fails_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_client, "UNREACHABLE_LIMIT_S", 0.1)
    async with connected() as (router, client, _):
        router.down = True
        with pytest.raises(errors.Unavailable):
            await place(client, request("a"))


async def test_closing_fails_who_waits() -> None:
    async with connected() as (_, client, _engines):
        waiting = asyncio.create_task(client.place(request("a")))
        await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(errors.Unavailable):
            await waiting
