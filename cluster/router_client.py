"""A gateway's side of the router: batched calls, one long poll, and what it holds.

One task sends, with one call under way at a time: what comes meanwhile travels together in the
next, and a release can never overtake the placement it ends. Another task keeps the long poll. When
the router is lost, both try again: requests wait for it, running ones do not notice. A router that
lost its memory shows another session; then placements are announced and waiting requests asked for
again.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from moeray.cluster import errors
from moeray.cluster.contracts import (
    EngineInfo,
    GatewayUpdate,
    LivePlacement,
    Placement,
    PlacementRequest,
    Refused,
    Waiting,
)

BATCH_S = 0.001
"""How long a call waits for company."""
POLL_S = 2.0
RETRY_S = 0.1
ANSWER_MARGIN_S = 3.0
"""A router that takes this much longer than it should is lost."""
SETTLE_S = 3.0
"""How long a router that started anew may know no engine before that is believed."""
UNREACHABLE_LIMIT_S = 30.0
"""How long requests wait for a lost router."""


class RouterUnreachable(Exception):
    """The router is restarting, or its node is gone; whether it heard the call is unknown."""


class Router(Protocol):
    """The router's methods that gateways call. Each may raise RouterUnreachable."""

    async def place(
        self, gateway_id: str, requests: list[PlacementRequest]
    ) -> list[Placement | Waiting | Refused]: ...

    async def watch(self, gateway_id: str, version: int, timeout_s: float) -> GatewayUpdate: ...

    async def release(self, gateway_id: str, request_ids: list[str]) -> None: ...

    async def announce(self, gateway_id: str, placements: list[LivePlacement]) -> None: ...


@dataclass(slots=True)
class _Pending:
    request: PlacementRequest
    outcome: asyncio.Future[Placement | Refused]
    sent: bool = False


class RouterClient:
    """``on_engines`` is called with the whole list of engines when it changed."""

    def __init__(
        self, router: Router, gateway_id: str, on_engines: Callable[[list[EngineInfo]], None]
    ) -> None:
        self.engines: list[EngineInfo] = []
        self._router = router
        self._gateway_id = gateway_id
        self._on_engines = on_engines
        self._pending: dict[str, _Pending] = {}
        self._live: dict[str, LivePlacement] = {}
        self._released: list[str] = []
        self._must_announce = False
        self._session: str | None = None
        self._settled_at = 0.0
        self._lost_since: float | None = None
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [
            asyncio.create_task(self._send_forever()),
            asyncio.create_task(self._watch_forever()),
        ]

    @property
    def waiting(self) -> int:
        """Requests that have no place yet."""
        return len(self._pending)

    def check(self) -> None:
        """Raises RuntimeError when a task of this client has died."""
        for task in self._tasks:
            if task.done():
                raise RuntimeError("the gateway has lost its line to the router")

    async def close(self) -> None:
        """Stop calling; the router frees what is held when it misses this gateway."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail_pending("the gateway is stopping")

    async def place(self, request: PlacementRequest) -> Placement:
        """A place for the request; the caller must release it.

        Waits in the router's queue. Raises QueueFull, Unavailable, ModelNotFound, DeadlineExpired.
        """
        pending = _Pending(request, asyncio.get_running_loop().create_future())
        self._pending[request.request_id] = pending
        self._wake.set()
        try:
            outcome = await pending.outcome
        except asyncio.CancelledError:
            self.release(request.request_id)
            raise
        finally:
            del self._pending[request.request_id]
        if isinstance(outcome, Refused):
            raise _error(outcome)
        return outcome

    def release(self, request_id: str) -> None:
        """Give back a placement; soon, in the next batch. Ids that hold none are harmless."""
        self._live.pop(request_id, None)
        self._released.append(request_id)
        self._wake.set()

    async def _send_forever(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(BATCH_S)
            self._wake.clear()
            try:
                await self._send_batch()
            except RouterUnreachable:
                self._wake.set()
                await asyncio.sleep(RETRY_S)

    async def _send_batch(self) -> None:
        """One call of each kind. What fails is sent again."""
        released, self._released = self._released, []
        try:
            if self._must_announce:
                self._must_announce = False
                with self._calling():
                    await self._router.announce(self._gateway_id, list(self._live.values()))
            if released:
                with self._calling():
                    await self._router.release(self._gateway_id, released)
                released = []
        except RouterUnreachable:
            self._must_announce = True
            self._released = released + self._released
            raise
        asked = [pending for pending in self._pending.values() if not pending.sent]
        if not asked:
            return
        for pending in asked:
            pending.sent = True
        try:
            with self._calling():
                outcomes = await self._router.place(self._gateway_id, [p.request for p in asked])
        except RouterUnreachable:
            self._ask_again()
            raise
        for outcome in outcomes:
            if not isinstance(outcome, Waiting):
                self._settle(outcome)

    async def _watch_forever(self) -> None:
        version = 0
        while True:
            try:
                with self._calling():
                    async with asyncio.timeout(POLL_S + ANSWER_MARGIN_S):
                        update = await self._router.watch(self._gateway_id, version, POLL_S)
            except (RouterUnreachable, TimeoutError):
                # Its answer may have held outcomes; asked again, the router repeats them.
                version = 0
                self._ask_again()
                await asyncio.sleep(RETRY_S)
                continue
            version = update.version
            self._take(update)

    def _take(self, update: GatewayUpdate) -> None:
        if update.session != self._session:
            if self._session is not None:
                self._settled_at = time.monotonic() + SETTLE_S
                self._must_announce = True
                self._ask_again()
            self._session = update.session
        is_believed = update.engines or time.monotonic() >= self._settled_at
        if is_believed and update.engines != self.engines:
            self.engines = update.engines
            self._on_engines(update.engines)
        for outcome in update.outcomes:
            self._settle(outcome)

    def _settle(self, outcome: Placement | Refused) -> None:
        request_id = outcome.request_id
        pending = self._pending.get(request_id)
        waited_for = pending is not None and not pending.outcome.done()
        if isinstance(outcome, Placement) and request_id not in self._live:
            if pending is None or not waited_for:
                self.release(request_id)
                return
            tokens = pending.request.prompt_tokens + pending.request.max_output_tokens
            self._live[request_id] = LivePlacement(outcome, tokens)
        if pending is not None and waited_for:
            pending.outcome.set_result(outcome)

    def _ask_again(self) -> None:
        for pending in self._pending.values():
            pending.sent = False
        self._wake.set()

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Keeps count of how long the router is lost, and gives up on it for those who wait."""
        try:
            yield
        except (RouterUnreachable, TimeoutError):
            now = time.monotonic()
            if self._lost_since is None:
                self._lost_since = now
            if now - self._lost_since > UNREACHABLE_LIMIT_S:
                self._fail_pending("the router cannot be reached")
            raise
        self._lost_since = None

    def _fail_pending(self, message: str) -> None:
        for pending in self._pending.values():
            if not pending.outcome.done():
                pending.outcome.set_exception(errors.Unavailable(message))


def _error(refused: Refused) -> errors.MoerayError:
    match refused.reason:
        case "queue_full":
            return errors.QueueFull(refused.message, refused.retry_after_s)
        case "model_not_found":
            return errors.ModelNotFound(refused.message)
        case "deadline":
            return errors.DeadlineExpired(refused.message)
        case _:
            return errors.Unavailable(refused.message, refused.retry_after_s)
