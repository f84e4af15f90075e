"""Several answers to one request, as one stream of events.

The answers are independent requests to the engines. Answer 0 goes first; the others start when it
has begun to speak, because the prompt is in the prefix cache by then. An answer that fails fails
them all.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from moeray.v1 import inference_pb2 as pb

MAX_QUEUED: Final = 64
"""Events that wait for the client; the answers wait behind them."""

_GOLDEN_GAMMA: Final = 0x9E3779B97F4A7C15
_MASK: Final = (1 << 64) - 1

Answer = AsyncGenerator[pb.GenerateResponse, None]


def answer_seed(seed: int, index: int) -> int:
    """The seed of answer ``index`` to a request with ``seed``: unsigned 64-bit integers.

    Answer 0 has the request's own. The others have the outputs 1, 2, ... of splitmix64 started at
    ``seed`` (Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014).
    """
    if index == 0:
        return seed
    z = (seed + index * _GOLDEN_GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def merged(answers: Sequence[Answer]) -> Answer:
    """The events of all answers as they come, each marked with its answer's index.

    Raises what the first answer to fail raises; the others are closed then, as they are when the
    stream is closed.
    """
    return answers[0] if len(answers) == 1 else _merged(answers)


async def _merged(answers: Sequence[Answer]) -> Answer:
    queue: asyncio.Queue[pb.GenerateResponse | Exception | None] = asyncio.Queue(MAX_QUEUED)
    has_spoken = asyncio.Event()
    readers = [
        asyncio.create_task(_read(answer, index, has_spoken, queue))
        for index, answer in enumerate(answers)
    ]
    try:
        running = len(readers)
        while running:
            event = await queue.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                running -= 1
            else:
                yield event
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    answer: Answer,
    index: int,
    has_spoken: asyncio.Event,
    queue: asyncio.Queue[pb.GenerateResponse | Exception | None],
) -> None:
    """Move one answer's events to the queue; behind them None, or the error that ended it."""
    try:
        if index > 0:
            await has_spoken.wait()
        async with aclosing(answer):
            async for event in answer:
                event.answer = index
                if event.WhichOneof("event") != "started":
                    has_spoken.set()
                await queue.put(event)
    except Exception as error:
        await queue.put(error)
    else:
        await queue.put(None)
