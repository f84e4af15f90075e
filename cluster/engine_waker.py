"""Has the first engine started where requests wait and none is there.

A gateway's requests do not pass through Serve, so nothing would tell Serve that an engine is
wanted. A call to the engines does: while no replica runs it stays queued, Serve counts it and
starts a replica, and the call ends there. Nothing is done through it. It is given up when nobody
waits any more.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

POLL_S: Final = 0.1
RETRY_S: Final = 1.0
"""Between the end of a call and the next: an engine registers soon after it runs."""


class EngineWaker:
    """Keeps one ``call`` under way while ``is_wanted()``, and cancels it after."""

    def __init__(self, is_wanted: Callable[[], bool], call: Callable[[], Awaitable[None]]) -> None:
        self._is_wanted = is_wanted
        self._call = call
        self._log = structlog.get_logger("moeray.engine_waker")

    async def run(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            if self._is_wanted():
                self._log.info("engine_wanted")
                await self._call_while_wanted()
                await asyncio.sleep(RETRY_S)

    async def _call_while_wanted(self) -> None:
        call = asyncio.ensure_future(self._call())
        try:
            while not call.done() and self._is_wanted():
                await asyncio.wait([call], timeout=POLL_S)
        finally:
            call.cancel()
            (error,) = await asyncio.gather(call, return_exceptions=True)
        if isinstance(error, Exception):
            self._log.warning("wake_call_failed", error=str(error))
