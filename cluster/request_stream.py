"""The rows of one request as they come from its engine, in order and without gaps.

A message to a client costs far more than a token, so rows wait for company for up to ``flush_s``
after the last ones were handed out. The first token goes at once, and so does the end.
"""

import asyncio
from typing import Protocol, Self

from moeray.cluster.errors import DeadlineExpired, MoerayError, Unavailable
from moeray.engine.v1 import engine_pb2


class Forget(Protocol):
    """How a stream takes leave of its link; ``cancel`` frees the request at the engine too."""

    def __call__(self, stream: "RequestStream", *, cancel: bool) -> None: ...


class RequestStream:
    """One try of one request: an async iterator of the rows that piled up, in order.

    Ends after the row with a finish reason, or when it is closed. Raises Unavailable when the
    request is lost, and DeadlineExpired when its time ran out, at once, also where rows were still
    to be read. Close it when done: a request that still runs is cancelled at the engine.
    """

    def __init__(self, key: int, epoch: int, *, flush_s: float, forget: Forget) -> None:
        self.key = key
        self.epoch = epoch
        self._flush_s = flush_s
        self._forget = forget
        self._cached_tokens: int | None = None
        self._rows: list[engine_pb2.StepRow] = []
        self._next_index = 0
        self.flush_at = 0.0
        """By the event loop's clock: rows that come from then on are handed out at once."""
        self._ready = False
        """Whether the rows may be read."""
        self._finished = False
        self._failure: MoerayError | None = None
        self._news = asyncio.Event()

    async def admission(self) -> int:
        """Wait for the first row, which may hold no token yet; it is left to be read.

        Returns the prompt tokens that were found in the prefix cache.
        """
        while self._cached_tokens is None:
            await self._wait_for_news()
        return self._cached_tokens

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[engine_pb2.StepRow]:
        while not self._ready and not self._finished:
            await self._wait_for_news()
        if self._failure is not None:
            raise self._failure
        if not self._rows:
            raise StopAsyncIteration
        rows, self._rows = self._rows, []
        self._ready = False
        return rows

    def close(self) -> None:
        """End it here: no more rows come. Closing it again changes nothing."""
        self._forget(self, cancel=not self._finished and self._failure is None)
        self._finished = True

    def take_result(self, result: engine_pb2.SubmitResult) -> None:
        if result.epoch == self.epoch and result.refusal:
            self.fail(f"the engine refused the request: {result.refusal}")

    def take_row(self, row: engine_pb2.StepRow, now: float) -> bool:
        """Takes the next row. False: it is held, and ``flush`` is due at ``flush_at``."""
        if row.epoch < self.epoch or self._finished or self._failure is not None:
            return True
        if row.epoch > self.epoch or row.first_index != self._next_index:
            self.fail(
                f"tokens were lost: expected epoch {self.epoch} index {self._next_index},"
                f" got epoch {row.epoch} index {row.first_index}"
            )
            self._forget(self, cancel=True)
        elif row.finish_reason == engine_pb2.FINISH_REASON_FAILED:
            self.fail(row.failure or "the engine lost the request")
        elif row.finish_reason == engine_pb2.FINISH_REASON_EXPIRED:
            self._end(DeadlineExpired("the request's time ran out"))
        else:
            return self._keep(row, now)
        return True

    def flush(self, now: float) -> None:
        """Lets the rows be read that are here; none are where they were read with others before."""
        if self._rows:
            self._ready = True
            self.flush_at = now + self._flush_s
            self._news.set()

    def fail(self, message: str) -> None:
        self._end(Unavailable(message))

    def _keep(self, row: engine_pb2.StepRow, now: float) -> bool:
        if self._cached_tokens is None:
            self._cached_tokens = row.cached_tokens
        self._next_index += len(row.token_ids)
        self._rows.append(row)
        self._finished = row.finish_reason != engine_pb2.FINISH_REASON_UNSPECIFIED
        if self._finished or now >= self.flush_at:
            self.flush(now)
            if not row.token_ids:  # that was no token yet: the first one goes at once too
                self.flush_at = now
            return True
        return False

    def _end(self, failure: MoerayError) -> None:
        self._failure = self._failure or failure
        self._news.set()

    async def _wait_for_news(self) -> None:
        if self._failure is None:
            await self._news.wait()
            self._news.clear()
        if self._failure is not None:
            raise self._failure
