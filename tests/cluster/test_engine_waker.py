"""A call to the engines is under way while one is wanted, and only then."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from moeray.cluster import engine_waker
from moeray.cluster.engine_waker import EngineWaker

from .hang import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_waker, "POLL_S", 0.005)
    monkeypatch.setattr(engine_waker, "RETRY_S", 0.01)


@dataclass(slots=True)
class Engines:
    """What Serve does with calls: they wait until an engine runs."""

    wanted: bool = False
    running: asyncio.Event = field(default_factory=asyncio.Event)
    calls: int = 0
    under_way: int = 0
    error: Exception | None = None

    async def wake(self) -> None:
        self.calls += 1
        self.under_way += 1
        try:
            if self.error is not None:
                raise self.error
            await self.running.wait()
        finally:
            self.under_way -= 1


@asynccontextmanager
async def waking(engines: Engines) -> AsyncIterator[None]:
    task = asyncio.create_task(EngineWaker(lambda: engines.wanted, engines.wake).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert engines.under_way == 0


def equals(get: Callable[[], int], value: int) -> Callable[[], bool]:
    return lambda: get() == value


async def test_nothing_is_called_while_nobody_waits() -> None:
    engines = Engines()
    async with waking(engines):
        await asyncio.sleep(0.05)
    assert engines.calls == 0


async def test_one_call_stays_until_an_engine_runs() -> None:
    engines = Engines(wanted=True)
    async with waking(engines):
        await until(equals(lambda: engines.under_way, 1))
        await asyncio.sleep(0.05)
        assert engines.calls == 1
        engines.wanted = False
        engines.running.set()
        await until(equals(lambda: engines.under_way, 0))
        await asyncio.sleep(0.05)
    assert engines.calls == 1


async def test_the_call_is_given_up_when_nobody_waits_any_more() -> None:
    engines = Engines(wanted=True)
    async with waking(engines):
        await until(equals(lambda: engines.under_way, 1))
        engines.wanted = False
        await until(equals(lambda: engines.under_way, 0))
        engines.wanted = True
        await until(equals(lambda: engines.calls, 2))


async def test_a_call_that_fails_is_made_again() -> None:
    engines = Engines(wanted=True, error=RuntimeError("no controller"))
    async with waking(engines):
        await until(lambda: engines.calls >= 3)
        engines.error = None
        await until(equals(lambda: engines.under_way, 1))


async def test_stopping_gives_the_call_up() -> None:
    engines = Engines(wanted=True)
    async with waking(engines):
        await until(equals(lambda: engines.under_way, 1))
