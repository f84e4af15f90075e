"""The driver of ``moeray bench``: starts requests when they are due and watches their streams.

An open loop never holds a request back: it starts when due, whatever still runs. How much later
than due the client was, and how long its own event loop stood still, is measured, because a client
that falls behind measures itself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import grpc

from moeray.cluster.bench.load import ClosedLoop, Load, PlannedRequest, Poisson, Ramp, Workload
from moeray.cluster.bench.record import (
    CUT_OFF,
    INTERRUPTED,
    MISCOUNTED,
    OK,
    Observer,
    RequestRecord,
)
from moeray.cluster.client import describe

if TYPE_CHECKING:
    from moeray.v1.inference_pb2_grpc import InferenceServiceAsyncStub

SAMPLE_S: Final = 0.1
_RECENT: Final = 500
_ERRORS: Final = {
    OK: "",
    CUT_OFF: "the stream ended before the answer did",
    MISCOUNTED: "the tokens that came are not as many as the server counted",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When to stop starting requests: after so many, or so many seconds. Running ones finish."""

    requests: int | None
    duration_s: float | None
    timeout_s: float | None
    """Deadline of each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHealth:
    """Whether this client kept up."""

    cpu_share: float
    """Of one core, over the run."""
    max_loop_lag_s: float
    """The longest that its event loop came late to a timer."""
    peak_running: int
    """Most requests in flight at once."""


@dataclass(slots=True)
class Recent:
    """What a display shows while the run goes on: the last few hundred latencies, in seconds."""

    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    inter_token_s: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))


class LoadRun:
    """One run of a load. ``stubs`` are of as many channels; requests take turns on them."""

    def __init__(
        self,
        stubs: Sequence["InferenceServiceAsyncStub"],
        target: str,
        workload: Workload,
        load: Load,
        limits: Limits,
        seed: int,
    ) -> None:
        self.records: list[RequestRecord] = []
        self.recent = Recent()
        self.running = 0
        self.peak_running = 0
        self.failed = 0
        self.tokens = 0
        self.interrupted = False
        self._stubs = stubs
        self._target = target
        self._workload = workload
        self._load = load
        self._limits = limits
        self._seed = seed
        self._started = 0
        self._begin = 0.0
        self._max_loop_lag_s = 0.0

    @property
    def now_s(self) -> float:
        return time.perf_counter() - self._begin

    async def run(self, stop: asyncio.Event, show: Callable[["LoadRun"], None]) -> ClientHealth:
        """Drive the load to its end, or until ``stop``; ``show`` is called every SAMPLE_S seconds.

        When it stops early, running requests are cancelled and recorded as INTERRUPTED.
        """
        self._begin, cpu_s = time.perf_counter(), time.process_time()
        driving = asyncio.create_task(self._drive())
        stopping = asyncio.create_task(stop.wait())
        sampling = asyncio.create_task(self._sample(show))
        try:
            await asyncio.wait({driving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            self.interrupted = not driving.done()
        finally:
            for task in (driving, stopping, sampling):
                task.cancel()
            ended = await asyncio.gather(driving, stopping, sampling, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        self.records.sort(key=lambda record: record.index)
        return ClientHealth(
            cpu_share=(time.process_time() - cpu_s) / self.now_s,
            max_loop_lag_s=self._max_loop_lag_s,
            peak_running=self.peak_running,
        )

    async def _drive(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            match self._load:
                case ClosedLoop(concurrency=concurrency):
                    for _ in range(concurrency):
                        tasks.create_task(self._ask_again_and_again())
                case Poisson() | Ramp():
                    await self._start_when_due(tasks, self._load)

    async def _ask_again_and_again(self) -> None:
        while True:
            # Made before it is due: making a long prompt takes time.
            planned = self._workload.request(self._started)
            moment_s = self.now_s
            if not self._may_start(moment_s):
                return
            self._started += 1
            await self._ask(planned, moment_s)

    async def _start_when_due(self, tasks: asyncio.TaskGroup, load: Poisson | Ramp) -> None:
        for due_s in load.arrivals(self._seed):
            if not self._may_start(due_s):
                return
            planned = self._workload.request(self._started)
            self._started += 1
            # Also where the next one is due already: a client that lags must still read.
            await asyncio.sleep(max(0.0, due_s - self.now_s))
            tasks.create_task(self._ask(planned, due_s))

    def _may_start(self, moment_s: float) -> bool:
        limits = self._limits
        return (limits.requests is None or self._started < limits.requests) and (
            limits.duration_s is None or moment_s < limits.duration_s
        )

    async def _ask(self, planned: PlannedRequest, due_s: float) -> None:
        """Ask, and record what happened, whatever it was."""
        observer = Observer(planned=planned, due_s=due_s, started_s=self.now_s)
        self.running += 1
        self.peak_running = max(self.peak_running, self.running)
        status, error = INTERRUPTED, ""
        try:
            await self._watch(self._stubs[planned.index % len(self._stubs)], observer)
            status = observer.end_of_stream()
            error = _ERRORS[status]
        except grpc.aio.AioRpcError as failure:
            status, error = failure.code().name, describe(failure, self._target)
        finally:
            self.running -= 1
            self.failed += status not in (OK, INTERRUPTED)
            self.records.append(observer.record(status, error, self.now_s))

    async def _watch(self, stub: "InferenceServiceAsyncStub", observer: Observer) -> None:
        call = stub.Generate(observer.planned.message, timeout=self._limits.timeout_s)
        try:
            async for event in call:
                before_s = observer.times_s[-1] if observer.times_s else None
                now_s = self.now_s
                brought = observer.add(event, now_s)
                if not brought:
                    continue
                self.tokens += brought
                if before_s is None:
                    self.recent.ttft_s.append(now_s - observer.due_s)
                else:
                    self.recent.inter_token_s.append((now_s - before_s) / brought)
        finally:
            call.cancel()

    async def _sample(self, show: Callable[["LoadRun"], None]) -> None:
        while True:
            due = time.perf_counter() + SAMPLE_S
            await asyncio.sleep(SAMPLE_S)
            self._max_loop_lag_s = max(self._max_loop_lag_s, time.perf_counter() - due)
            show(self)
