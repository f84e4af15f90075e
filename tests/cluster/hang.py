"""How tests wait for what must come."""

import asyncio
from collections.abc import Callable
from typing import Final

HANG_S: Final = 60.0
"""No measure of speed: a busy machine may stand still for seconds."""


async def until(condition: Callable[[], bool]) -> None:
    """Polls ``condition``. Raises TimeoutError after ``HANG_S``."""
    async with asyncio.timeout(HANG_S):
        while not condition():
            await asyncio.sleep(0.005)
