"""An engine's reports to the router's policy: events, registration, snapshots after losses."""

from dataclasses import dataclass, field

from moeray.cluster.contracts import EngineInfo, EngineLoad, KvEvents
from moeray.cluster.engine_reports import EngineReports
from moeray.cluster.placement import PlacementLimits, PlacementPolicy
from moeray.cluster.router_client import RouterUnreachable

from .contract_samples import chain, engine, load, request


@dataclass
class Changes:
    rank: int
    stored_full: list[bytes]
    removed_full: list[bytes] = field(default_factory=list)
    stored_window: list[bytes] = field(default_factory=list)
    removed_window: list[bytes] = field(default_factory=list)
    is_snapshot: bool = False


class Caches:
    """Two ranks' caches, whose windowed blocks are those of the full layers."""

    def __init__(self) -> None:
        self.held: list[list[bytes]] = [[], []]
        self.untold: list[list[bytes]] = [[], []]
        self.due: set[int] = set()

    def store(self, rank: int, hashes: tuple[bytes, ...]) -> None:
        self.held[rank] += hashes
        self.untold[rank] += hashes

    def take_kv_changes(self) -> list[Changes]:
        taken = []
        for rank in range(2):
            if rank in self.due or self.untold[rank]:
                is_snapshot = rank in self.due
                told = list(self.held[rank] if is_snapshot else self.untold[rank])
                taken.append(Changes(rank, told, stored_window=told, is_snapshot=is_snapshot))
                self.untold[rank].clear()
        self.due.clear()
        return taken

    def request_kv_snapshot(self, rank: int) -> None:
        self.due.add(rank)


class Router:
    """The policy behind calls that can be lost, before or after they arrive."""

    def __init__(self) -> None:
        self.loses = ""
        self.restart()

    def restart(self) -> None:
        self.policy = PlacementPolicy(PlacementLimits(), incarnation="test")

    def _lose(self, what: str) -> None:
        if self.loses == what:
            raise RouterUnreachable(what)

    async def register_engine(self, info: EngineInfo) -> None:
        self._lose("call")
        self.policy.register_engine(info, 0.0)
        self._lose("registered")

    async def report_load(self, told: EngineLoad) -> bool:
        self._lose("call")
        return self.policy.report_load(told, 0.0)

    async def report_kv(self, engine_id: str, events: list[KvEvents]) -> list[int]:
        self._lose("call")
        wanted = self.policy.report_kv(engine_id, events, 0.0)
        self._lose("reply")
        return wanted

    def known(self, rank: int, hashes: tuple[bytes, ...]) -> bool:
        holders = self.policy._engines.ledger.holders(hashes[-1])
        return any(holder.number == rank for holder in holders)


def reporting() -> tuple[Router, Caches, EngineReports]:
    router, caches = Router(), Caches()
    return router, caches, EngineReports(engine(), router, caches, load)


async def round_of(reports: EngineReports) -> None:
    await reports.report_load()
    await reports.report_kv()


async def test_an_engine_registers_and_tells_what_it_caches() -> None:
    router, caches, reports = reporting()
    caches.store(0, chain("before", 2))
    await round_of(reports)
    assert router.known(0, chain("before", 2))
    caches.store(1, chain("later", 2))
    await reports.report_kv()
    assert router.known(1, chain("later", 2)) and not router.known(0, chain("later", 2))
    assert router.policy.place("g", request("a"), 0.0)


async def test_a_router_that_lost_its_memory_gets_snapshots_of_all_ranks() -> None:
    router, caches, reports = reporting()
    await round_of(reports)
    caches.store(0, chain("zero", 2))
    caches.store(1, chain("one", 2))
    await reports.report_kv()
    router.restart()
    await round_of(reports)
    assert router.known(0, chain("zero", 2)) and router.known(1, chain("one", 2))
    caches.store(1, chain("more", 2))
    await reports.report_kv()
    assert router.known(1, chain("more", 2))


async def test_lost_events_are_followed_by_a_snapshot() -> None:
    for loses in ("call", "reply"):
        router, caches, reports = reporting()
        await round_of(reports)
        caches.store(0, chain("a", 2))
        router.loses = loses
        await reports.report_kv()
        router.loses = ""
        await reports.report_kv()
        assert router.known(0, chain("a", 2)), loses
        assert caches.take_kv_changes() == []


async def test_a_lost_registration_is_made_up_for() -> None:
    router, caches, reports = reporting()
    caches.store(0, chain("a", 2))
    for loses in ("call", "registered", ""):
        router.loses = loses
        await round_of(reports)
    await reports.report_kv()
    assert router.known(0, chain("a", 2))


async def test_it_reports_until_the_engine_is_dead() -> None:
    router, caches, reports = reporting()
    caches.store(1, chain("a", 2))
    await reports.run(lambda: not router.known(1, chain("a", 2)))
    assert [info.engine_id for info in router.policy.engines] == ["e1"]
