"""A limit on waiting, with and without a standstill."""

import asyncio
import time

import pytest

from moeray.cluster.patience import within


async def test_what_comes_in_time_is_returned_and_what_it_raises_is_raised() -> None:
    async def fails() -> None:
        raise ValueError("bad")

    assert await within(60, asyncio.sleep(0, "here")) == "here"
    with pytest.raises(ValueError, match="bad"):
        await within(60, fails())


async def test_what_does_not_come_is_cancelled() -> None:
    never = asyncio.Event()
    waiting = never.wait()
    with pytest.raises(TimeoutError):
        await within(0.02, waiting)
    await asyncio.sleep(0)
    assert waiting.cr_frame is None


async def test_who_gives_up_waiting_cancels_it() -> None:
    async def answer() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    ended = asyncio.Event()
    waiting = asyncio.create_task(within(60, answer()))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_standstill_does_not_use_up_the_time() -> None:
    loop, answer = asyncio.get_running_loop(), asyncio.Event()
    waiting = asyncio.create_task(within(0.4, answer.wait()))
    await asyncio.sleep(0.01)
    time.sleep(0.5)
    loop.call_later(0.05, answer.set)
    assert await waiting
