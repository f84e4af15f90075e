"""A limit on waiting that a standstill of this process does not use up.

After one, every clock says that the time is over, although nobody had the chance to answer: what
came meanwhile lies unread behind the timers.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

_PARTS: Final = 4
"""A standstill, however long, costs one of so many parts of the time."""

_T = TypeVar("_T")


async def within(seconds: float, answer: Coroutine[Any, Any, _T]) -> _T:
    """Await ``answer`` for at most ``seconds`` of this loop's running. Raises TimeoutError."""
    task = asyncio.create_task(answer)
    try:
        for _ in range(_PARTS):
            await asyncio.wait({task}, timeout=seconds / _PARTS)
            if task.done():
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
