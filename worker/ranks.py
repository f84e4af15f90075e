"""The leader's side of its ranks: send each its plan, gather what they drew.

``LocalRanks`` runs one rank in this process; ``SocketRanks`` has one process for each, connected
over a Unix socket in a private folder. Either way a step runs on all ranks or fails as a whole: a
rank that dies, raises, hangs or falls silent raises RankFailure, and the group is of no use
afterwards.
"""

import hmac
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final, Protocol

from moeray.worker.plan import Drawn, RankPlan
from moeray.worker.socket_folder import SocketFolder
from moeray.worker.wire import (
    Heartbeat,
    StepError,
    StepResult,
    decode_hello,
    decode_reply,
    encode_plan,
    receive_message,
    send_message,
)

_LISTENS: Final = 8
"""How often, at least, ranks are listened to before one counts as silent."""


class RankFailure(Exception):
    """A rank is lost, and the group with it."""

    def __init__(self, rank: int, reason: str) -> None:
        self.rank = rank
        super().__init__(f"rank {rank}: {reason}")


class StepExecutor(Protocol):
    """What runs a plan on one rank: ``rank.Rank``, or a fake."""

    def execute(self, plan: RankPlan) -> Drawn:
        """Runs one step; returns what was drawn for its K samples."""


class RankGroup(Protocol):
    """All ranks of one engine."""

    def execute(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        """Runs one step everywhere; returns what each rank drew. Raises RankFailure."""

    def close(self) -> None:
        """Lets the ranks go; they return from ``rank.serve``."""


class LocalRanks:
    """A group of one rank in this process."""

    def __init__(self, executor: StepExecutor) -> None:
        self._executor = executor

    def execute(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        (plan,) = plans
        try:
            return [self._executor.execute(plan)]
        except Exception as error:
            raise RankFailure(0, f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        pass


class SocketRanks:
    """Ranks in processes of their own: they connect to ``path`` and show ``secret``.

    Make it, start the ranks (``Rank.serve``), call ``accept``, then ``execute`` step by step.
    """

    def __init__(self, ranks: int, *, step_timeout_s: float = 30.0, silence_s: float = 3.0) -> None:
        """``step_timeout_s`` bounds a step; ``silence_s`` is how long a living rank may say
        nothing, not even a heartbeat, while this process is there to listen."""
        self.secret = secrets.token_bytes(32)
        self._step_timeout_s = step_timeout_s
        self._silence_s = silence_s
        self._connections: dict[int, socket.socket] = {}
        self._silence: dict[int, float] = {}
        """Seconds for which each rank said nothing, as far as this process was there to listen."""
        self._listened_at = time.monotonic()
        self._ranks = ranks
        self._in_use = threading.Lock()
        self._folder = SocketFolder()
        self.path = str(self._folder.socket)
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(ranks)

    def accept(self, *, timeout_s: float) -> None:
        """Waits until every rank is connected; raises RankFailure naming one that is not."""
        deadline = time.monotonic() + timeout_s
        while missing := sorted(set(range(self._ranks)) - set(self._connections)):
            self._listener.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                silent = f"not connected within {timeout_s:g} s (missing: {missing})"
                raise RankFailure(missing[0], silent) from None
            self._greet(connection)
        # Nobody else is to connect, and nothing is left on disk, however this process ends.
        self._listener.close()
        self._folder.remove()

    def execute(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        """Runs one step on all ranks; raises RankFailure where one is lost or too late."""
        with self._in_use:
            for rank, plan in enumerate(plans):
                try:
                    send_message(self._connections[rank], encode_plan(plan))
                except OSError as error:
                    raise RankFailure(rank, f"lost before the step: {error}") from error
            return self._gather(plans)

    def check(self) -> None:
        """Raises RankFailure where a rank is lost between steps; from any thread, never waiting.

        Also takes the heartbeats off the sockets, so call it about as often as they come.
        """
        if not self._in_use.acquire(blocking=False):
            return  # the step that runs watches the ranks itself
        try:
            for rank in self._ready_ranks(0.0):
                if self._receive(rank) is not None:
                    raise RankFailure(rank, "it answered without a plan")
            self._refuse_silence()
        finally:
            self._in_use.release()

    def _gather(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        results: dict[int, Drawn] = {}
        deadline = time.monotonic() + self._step_timeout_s
        # All connections are watched, so that one lost rank is seen while others are still silent.
        while missing := sorted(set(range(self._ranks)) - set(results)):
            now = time.monotonic()
            if now >= deadline:
                late = f"no answer within {self._step_timeout_s:g} s (silent: {missing})"
                raise RankFailure(missing[0], late)
            for rank in self._ready_ranks(min(self._silence_s / _LISTENS, deadline - now)):
                if (result := self._receive(rank)) is not None:
                    results[rank] = self._drawn_of(rank, result, plans[rank])
            self._refuse_silence()
        return [results[rank] for rank in range(self._ranks)]

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._listener.close()
        self._selector.close()
        self._folder.remove()

    def _greet(self, connection: socket.socket) -> None:
        """Takes the connection in, or closes it where it is no rank of this group."""
        # A message once begun goes on: ranks send theirs whole.
        connection.settimeout(self._silence_s)
        try:
            hello = decode_hello(receive_message(connection))
        except (EOFError, OSError, ValueError):
            connection.close()
            return
        known = hmac.compare_digest(hello.secret, self.secret)
        if not known or hello.rank >= self._ranks or hello.rank in self._connections:
            connection.close()
            return
        self._connections[hello.rank] = connection
        self._silence[hello.rank] = 0.0
        self._selector.register(connection, selectors.EVENT_READ, hello.rank)

    def _ready_ranks(self, timeout_s: float) -> list[int]:
        return [key.data for key, _ in self._selector.select(timeout_s)]

    def _receive(self, rank: int) -> StepResult | None:
        """One message of a rank: a result, or None for a heartbeat."""
        try:
            reply = decode_reply(receive_message(self._connections[rank]))
        except (EOFError, OSError, ValueError) as error:
            raise RankFailure(rank, f"lost: {error}") from error
        self._silence[rank] = 0.0
        if isinstance(reply, StepError):
            raise RankFailure(rank, reply.text)
        return None if isinstance(reply, Heartbeat) else reply

    def _refuse_silence(self) -> None:
        """Call it after what is there was read. However long it was not called, it counts little:
        where this process stood still, so may the ranks have, with the whole machine.
        """
        now = time.monotonic()
        passed = min(now - self._listened_at, self._silence_s / _LISTENS)
        self._listened_at = now
        for rank in self._silence:
            self._silence[rank] += passed
            if self._silence[rank] >= self._silence_s:
                raise RankFailure(rank, f"it said nothing for {self._silence_s:g} s")

    def _drawn_of(self, rank: int, result: StepResult, plan: RankPlan) -> Drawn:
        if result.step != plan.step or len(result.drawn.tokens) != len(plan.samples.sequences):
            raise RankFailure(rank, f"its answer does not belong to step {plan.step}")
        return result.drawn
