"""Faults at random moments under a steady load, one after the other, each until it is healed."""

import asyncio
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.chaos.load import Load, Pool, Stream, gateways, questions, record
from tests.chaos.processes import Census, Kind, abandoned_folders, held, is_gone, sockets, strike
from tests.chaos.report import Fault, Report
from tests.integration.serving import Server

HEAL_LIMIT_S = 90.0
REST_LIMIT_S = 30.0
_POLL_S = 0.1
_CONNECTIONS = 12
"""Fresh ones that are looked over for gateways: enough to meet each."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do to which cluster."""

    strikes: Sequence[tuple[Kind, signal.Signals]]
    streams: int
    seed: int
    engines: int
    ranks: int
    gateways: int
    pool: int = 32
    limit_s: float = math.inf
    """No fault is begun later than this after the start."""

    def arguments(self) -> list[str]:
        """Of ``moeray serve``."""
        sizes = {"engines": self.engines, "ranks": self.ranks, "gateways": self.gateways}
        return [part for name, size in sizes.items() for part in (f"--{name}", str(size))]

    def processes(self) -> dict[Kind, int]:
        return {
            Kind.RANK: self.engines * self.ranks,
            Kind.LEADER: self.engines,
            Kind.GATEWAY: self.gateways,
            Kind.ROUTER: 1,
        }


def drawn(
    count: int, kinds: Sequence[Kind], signals: Sequence[signal.Signals], seed: int
) -> list[tuple[Kind, signal.Signals]]:
    """Every kind and signal about as often, in random order."""
    pairs = [(kind, number) for kind in kinds for number in signals]
    strikes = [pairs[index % len(pairs)] for index in range(count)]
    random.Random(seed).shuffle(strikes)
    return strikes


async def run_campaign(server: Server, plan: Plan, progress: Progress) -> Report:
    """Record the fault-free answers, strike as planned, and look at what is left."""
    campaign = _Campaign(server, plan, progress)
    await campaign.prepare()
    until = time.monotonic() + plan.limit_s
    for number, (kind, sent) in enumerate(plan.strikes):
        if time.monotonic() > until:
            progress(f"time is up after {number} faults")
            break
        await campaign.fault(number, kind, sent)
    return await campaign.finish()


class _Campaign:
    def __init__(self, server: Server, plan: Plan, progress: Progress) -> None:
        self._server = server
        self._plan = plan
        self._progress = progress
        self._draw = random.Random(plan.seed)
        self._report = Report()
        self._folders = abandoned_folders()
        self._sockets: Counter[str] = Counter()
        self._load: Load

    async def prepare(self) -> None:
        await self._await_processes()
        asked = questions(self._plan.pool, self._plan.seed)
        pool: Pool = await record(self._server.target, asked)
        self._progress(
            f"recorded {len(pool.questions)} answers without faults; {len(asked)} were asked,"
            " those that rounding can change are left out"
        )
        await asyncio.sleep(1.0)
        self._sockets = sockets(self._server)
        self._load = Load(
            self._server.target, pool, streams=self._plan.streams, seed=self._plan.seed
        )
        self._load.start()

    async def fault(self, number: int, kind: Kind, sent: signal.Signals) -> None:
        """Strike once and wait until the cluster is whole again."""
        await asyncio.sleep(self._draw.uniform(0.5, 3.0))
        census = Census.take(self._server)
        victim = self._draw.choice(sorted(census.pids[kind]))
        known = frozenset(self._load.engine_ids)
        open_streams = len(self._load.open)
        struck_at = await asyncio.to_thread(strike, victim, sent)
        fault = Fault(kind=kind, signal=sent.name, struck_at=struck_at, open_streams=open_streams)
        self._report.faults.append(fault)
        probe = asyncio.create_task(self._probe(struck_at))
        fault.rebuilt_s = await self._await_rebuilt(fault, kind, victim, known)
        fault.served_s = await probe
        self._progress(
            f"fault {number + 1} of {len(self._plan.strikes)}: {sent.name} {kind} {victim},"
            f" rebuilt {_seconds(fault.rebuilt_s)}, served {_seconds(fault.served_s)},"
            f" {len(self._load.ended)} streams so far"
        )

    async def finish(self) -> Report:
        await self._load.stop()
        self._report.count_streams(self._load.ended)
        self._report.leaks += await self._leaks()
        return self._report

    async def _probe(self, struck_at: float) -> float | None:
        """Ask until answered; returns when the answer began. Each try is observed like the rest."""
        while time.monotonic() < struck_at + HEAL_LIMIT_S:
            stream: Stream = await self._load.ask()
            if stream.outcome == "complete" and stream.spoke_at is not None:
                return stream.spoke_at - struck_at
        return None

    async def _await_rebuilt(
        self, fault: Fault, kind: Kind, victim: int, known: frozenset[str]
    ) -> float | None:
        while time.monotonic() < fault.struck_at + HEAL_LIMIT_S:
            await asyncio.sleep(_POLL_S)
            if not is_gone(victim) or not await self._is_replaced(kind, known):
                continue
            healed_at = time.monotonic()
            await self._await_processes()
            return healed_at - fault.struck_at
        return None

    async def _is_replaced(self, kind: Kind, known: frozenset[str]) -> bool:
        """Whether what was lost works again, as seen from outside."""
        match kind:
            case Kind.RANK | Kind.LEADER:
                return bool(self._load.engine_ids.keys() - known)
            case Kind.GATEWAY:
                found = await gateways(self._server.target, _CONNECTIONS)
                return len(found) == self._plan.gateways
            case Kind.ROUTER:
                return len(Census.take(self._server).pids[Kind.ROUTER]) == 1

    async def _await_processes(self) -> None:
        """Until there are exactly the processes that there should be, none of them stopped."""
        deadline = time.monotonic() + HEAL_LIMIT_S
        while time.monotonic() < deadline:
            census = await asyncio.to_thread(Census.take, self._server)
            if census.counts() == self._plan.processes() and not census.stopped:
                return
            await asyncio.sleep(_POLL_S)
        self._report.leaks.append(f"processes: {census.counts()}, stopped: {census.stopped}")

    async def _leaks(self) -> list[str]:
        """What is left when all streams have ended."""
        await self._await_processes()
        deadline = time.monotonic() + REST_LIMIT_S
        while (left := await self._what_is_left()) and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
        return left

    async def _what_is_left(self) -> list[str]:
        left = [f"{name}: {value:g}" for name, value in held(self._server).items()]
        if folders := abandoned_folders() - self._folders:
            left.append(f"folders: {sorted(folders)}")
        open_now = sockets(self._server)
        if open_now.total() > self._sockets.total():
            more, fewer = open_now - self._sockets, self._sockets - open_now
            left.append(f"sockets: {dict(more)} more and {dict(fewer)} fewer than before")
        return left


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"after {value:.1f} s"
