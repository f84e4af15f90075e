"""The leader's side of its ranks: send each its plan, gather what they drew.

``LocalRanks`` runs one rank in this process; ``SocketRanks`` has one process for each, connected
over a Unix socket in a private folder. Either way a step runs on all ranks or fails as a whole: a
rank that dies, raises or hangs raises RankFailure, and the group is of no use afterwards.
"""

import hmac
import secrets
import selectors
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from moeray.worker.plan import RankPlan
from moeray.worker.wire import (
    Int64,
    StepError,
    decode_hello,
    decode_reply,
    encode_plan,
    receive_message,
    send_message,
)


class RankFailure(Exception):
    """A rank is lost, and the group with it."""

    def __init__(self, rank: int, reason: str) -> None:
        self.rank = rank
        super().__init__(f"rank {rank}: {reason}")


class StepExecutor(Protocol):
    """What runs a plan on one rank: ``rank.Rank``, or a fake."""

    def execute(self, plan: RankPlan) -> Int64:
        """Runs one step; returns the tokens drawn, [K] int64."""


class RankGroup(Protocol):
    """All ranks of one engine."""

    def execute(self, plans: Sequence[RankPlan]) -> list[Int64]:
        """Runs one step everywhere; returns each rank's tokens. Raises RankFailure."""

    def close(self) -> None:
        """Lets the ranks go; they return from ``rank.serve``."""


class LocalRanks:
    """A group of one rank in this process."""

    def __init__(self, executor: StepExecutor) -> None:
        self._executor = executor

    def execute(self, plans: Sequence[RankPlan]) -> list[Int64]:
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

    def __init__(self, ranks: int, *, step_timeout_s: float = 30.0) -> None:
        self.secret = secrets.token_bytes(32)
        self._step_timeout_s = step_timeout_s
        self._connections: dict[int, socket.socket] = {}
        self._ranks = ranks
        # mkdtemp makes the folder for this user alone (0700).
        self._folder = tempfile.mkdtemp(prefix="moeray-")
        self.path = str(Path(self._folder) / "ranks")
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

    def execute(self, plans: Sequence[RankPlan]) -> list[Int64]:
        """Runs one step on all ranks; raises RankFailure where one dies, raises or is too late."""
        for rank, plan in enumerate(plans):
            try:
                send_message(self._connections[rank], encode_plan(plan))
            except OSError as error:
                raise RankFailure(rank, f"lost before the step: {error}") from error
        results: dict[int, Int64] = {}
        deadline = time.monotonic() + self._step_timeout_s
        # All connections are watched, so that one lost rank is seen while others are still silent.
        while silent := sorted(set(range(self._ranks)) - set(results)):
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                late = f"no answer within {self._step_timeout_s:g} s (silent: {silent})"
                raise RankFailure(silent[0], late)
            for key, _ in ready:
                rank = key.data
                results[rank] = self._receive(rank, plans[rank])
        return [results[rank] for rank in range(self._ranks)]

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._listener.close()
        self._selector.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _greet(self, connection: socket.socket) -> None:
        """Takes the connection in, or closes it where it is no rank of this group."""
        connection.settimeout(self._step_timeout_s)
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
        self._selector.register(connection, selectors.EVENT_READ, hello.rank)

    def _receive(self, rank: int, plan: RankPlan) -> Int64:
        try:
            reply = decode_reply(receive_message(self._connections[rank]))
        except (EOFError, OSError, ValueError) as error:
            raise RankFailure(rank, f"lost in step {plan.step}: {error}") from error
        if isinstance(reply, StepError):
            raise RankFailure(rank, reply.text)
        if reply.step != plan.step or len(reply.tokens) != len(plan.samples.sequences):
            raise RankFailure(rank, f"its answer does not belong to step {plan.step}")
        return reply.tokens
