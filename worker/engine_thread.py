"""The thread that owns an Engine, and the only way to talk to it.

Commands come in through a queue and are answered between steps; rows go out through one callback
per step. So no lock guards the scheduler, and no caller waits for a step. Callbacks run in the
engine's thread and must only hand their argument on.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from moeray.worker.engine import Engine, EngineLoad
from moeray.worker.kv_events import KvJournal, RankKvChanges
from moeray.worker.request import EngineRequest, RequestKey, TokenRow
from moeray.worker.scheduler import RequestRefused

RowsCallback = Callable[[list[TokenRow]], None]
SubmitCallback = Callable[[EngineRequest, str], None]
"""Gets the request and why it was refused; empty where it was taken."""


@dataclass(frozen=True, slots=True)
class _Submit:
    request: EngineRequest
    on_result: SubmitCallback


@dataclass(frozen=True, slots=True)
class _Cancel:
    key: RequestKey


@dataclass(frozen=True, slots=True)
class _CancelLink:
    link: int


class _Drain:
    """Take no more requests, finish those that are here, then end."""


class _Stop:
    """End now; requests that are here get a FAILED row."""


_Command = _Submit | _Cancel | _CancelLink | _Drain | _Stop


class EngineThread:
    """Runs one engine from ``start`` until ``drain`` or ``stop``, and closes it at the end.

    When a step raises, every request ends with a FAILED row, ``failed`` says why, and the engine
    takes no more requests; the thread stays to say so until it is stopped.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._commands: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._on_rows: RowsCallback = _discard
        self._draining = False
        self._stopping = False
        self._kv_journal = KvJournal(len(engine.scheduler.ranks))
        self.on_step: Callable[[float], None] = _ignore
        """Gets the seconds that each step took, in the engine's thread."""
        self.failed: str | None = None
        self.load: EngineLoad = engine.load()
        """As of the last step or command; replaced as a whole, so readable from any thread."""

    def start(self, on_rows: RowsCallback) -> None:
        self._on_rows = on_rows
        self._thread.start()

    def submit(self, request: EngineRequest, on_result: SubmitCallback) -> None:
        """``on_result`` is called before the request's first row goes out."""
        self._commands.put(_Submit(request, on_result))

    def cancel(self, key: RequestKey) -> None:
        """Frees what the request holds before the next step. An unknown key is passed over."""
        self._commands.put(_Cancel(key))

    def cancel_link(self, link: int) -> None:
        """Cancels every request of one gateway's stream."""
        self._commands.put(_CancelLink(link))

    def take_kv_changes(self) -> list[RankKvChanges]:
        """What changed in the ranks' prefix caches since the last take, up to the last step; a rank
        without changes is left out. From any thread, without waiting for a step.
        """
        return self._kv_journal.take()

    def request_kv_snapshot(self, rank: int) -> None:
        """The next take has a snapshot of this rank's prefix cache, in place of its changes."""
        self._kv_journal.request_snapshot(rank)

    def drain(self) -> None:
        """The thread takes no more requests, finishes those it has, and ends."""
        self._commands.put(_Drain())

    def stop(self) -> None:
        """The thread ends after the step it is in; its requests get a FAILED row."""
        self._commands.put(_Stop())

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; False where it did not come in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._done():
                self._sleep_while_idle()
                self._obey_queued()
                if not self._stopping:
                    self._step()
                self._report()
            self._end()
        finally:
            self._engine.close()

    def _done(self) -> bool:
        return self._stopping or (self._draining and not self._engine.busy)

    def _sleep_while_idle(self) -> None:
        if not self._engine.busy:
            self._obey(self._commands.get())

    def _obey_queued(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._obey(self._commands.get_nowait())

    def _end(self) -> None:
        self._stopping = True
        self._obey_queued()
        self._publish(self._engine.fail("the engine was stopped"))
        self._report()

    def _obey(self, command: _Command) -> None:
        match command:
            case _Submit(request, on_result):
                on_result(request, self._refusal(request))
            case _Cancel(key):
                self._engine.cancel(key)
            case _CancelLink(link):
                self._engine.cancel_link(link)
            case _Drain():
                self._draining = True
            case _Stop():
                self._stopping = True

    def _refusal(self, request: EngineRequest) -> str:
        """Submits the request; returns why it was refused, or nothing."""
        if self.failed is not None:
            return f"the engine failed: {self.failed}"
        if self._draining or self._stopping:
            return "the engine is shutting down"
        try:
            self._engine.submit(request)
        except RequestRefused as refusal:
            return str(refusal)
        return ""

    def _step(self) -> None:
        try:
            self._publish(self._engine.expire())
            began = time.perf_counter()
            rows = self._engine.step()
            self.on_step(time.perf_counter() - began)
            self._publish(rows)
        # Whatever it was, requests must not wait for a step that never comes.
        except Exception as error:
            self.failed = f"{type(error).__name__}: {error}"
            self._publish(self._engine.fail(self.failed))

    def _report(self) -> None:
        self.load = self._engine.load()
        self._engine.record_kv_changes(self._kv_journal)

    def _publish(self, rows: list[TokenRow]) -> None:
        if rows:
            # Who sees a row sees the load and the cache that it left.
            self._report()
            self._on_rows(rows)


def _ignore(step_s: float) -> None:
    del step_s


def _discard(rows: list[TokenRow]) -> None:
    del rows
