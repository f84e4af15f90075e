"""The processes of a running cluster: victims, proof that a fault took effect, and what is left."""

import fcntl
import math
import os
import signal
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from moeray.cluster.port_lock import METRICS_PORTS
from tests.integration.serving import Server

_EFFECT_S = 5.0


class Kind(StrEnum):
    RANK = "rank"
    LEADER = "leader"
    GATEWAY = "gateway"
    ROUTER = "router"


_TITLES = {
    Kind.RANK: "ray::RankActor",
    Kind.LEADER: "ray::ServeReplica:moeray:Engine",
    Kind.GATEWAY: "ray::ServeReplica:moeray:Gateway",
    Kind.ROUTER: "ray::RouterProcess",
}


_WITH_METRICS = (Kind.LEADER, Kind.GATEWAY, Kind.ROUTER)
_METRICS_PORTS = frozenset(range(9464, 9464 + METRICS_PORTS))
_HELD = (
    "moeray:num_requests_running",
    "moeray:num_requests_waiting",
    "moeray:kv_cache_usage_perc",
    "moeray:gateway_requests_running",
    "moeray:router_running_requests",
    "moeray:router_waiting_requests",
)
"""Requests, KV blocks and placements, as they are named in metrics."""


class FaultWithoutEffect(Exception):
    """The signal was sent, but the process goes on."""


@dataclass(frozen=True, slots=True)
class Census:
    """Pids by kind, and those that stand still."""

    pids: dict[Kind, frozenset[int]]
    stopped: frozenset[int]

    @classmethod
    def take(cls, server: Server) -> "Census":
        pids: dict[Kind, set[int]] = {kind: set() for kind in Kind}
        stopped = set()
        for process in psutil.Process(server.process.pid).children(recursive=True):
            try:
                title, status = (process.cmdline() or [""])[0], process.status()
            except psutil.Error:
                continue
            for kind, beginning in _TITLES.items():
                if title.startswith(beginning) and status != psutil.STATUS_ZOMBIE:
                    pids[kind].add(process.pid)
            if status == psutil.STATUS_STOPPED:
                stopped.add(process.pid)
        return cls({kind: frozenset(found) for kind, found in pids.items()}, frozenset(stopped))

    def counts(self) -> dict[Kind, int]:
        return {kind: len(found) for kind, found in self.pids.items()}


def strike(pid: int, number: signal.Signals) -> float:
    """Signal a process and wait for the proof; returns when it was sent (time.monotonic())."""
    process = psutil.Process(pid)
    struck_at = time.monotonic()
    process.send_signal(number)
    while not _has_taken_effect(process, number):
        if time.monotonic() > struck_at + _EFFECT_S:
            raise FaultWithoutEffect(f"{process} goes on after {number.name}")
        time.sleep(0.005)
    return struck_at


def _has_taken_effect(process: psutil.Process, number: signal.Signals) -> bool:
    try:
        status = process.status()
    except psutil.NoSuchProcess:
        return True
    if number is signal.SIGSTOP:
        return bool(status == psutil.STATUS_STOPPED)
    return bool(status == psutil.STATUS_ZOMBIE)


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def abandoned_folders() -> set[str]:
    """Folders for ranks' sockets that no living process holds."""
    return set(_unlocked(Path(tempfile.gettempdir()).glob("moeray-ranks-*")))


def _unlocked(folders: Iterable[Path]) -> Iterable[str]:
    for folder in folders:
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield str(folder)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


def sockets(server: Server) -> Counter[str]:
    """TCP connections and listeners of the cluster's leaders and gateways, by what they join."""
    census = Census.take(server)
    kinds = {pid: kind for kind in (Kind.LEADER, Kind.GATEWAY) for pid in census.pids[kind]}
    owners = {c.laddr.port: c.pid for c in psutil.net_connections("inet")}
    return Counter(
        f"{kind} {c.status} {_title(owners.get(c.raddr.port)) if c.raddr else ''}".strip()
        for pid, kind in kinds.items()
        for c in _connections(pid)
    )


def _title(pid: int | None) -> str:
    if pid is None:
        return "gone"
    try:
        return Path((psutil.Process(pid).cmdline() or [""])[0]).name
    except psutil.Error:
        return ""


def held(server: Server) -> dict[str, float]:
    """What processes say that they hold for requests, from their own metrics; empty at rest. What
    none of them reports counts as held: nan.
    """
    census = Census.take(server)
    found = {}
    unreported = set(_HELD)
    for pid in frozenset[int]().union(*(census.pids[kind] for kind in _WITH_METRICS)):
        for sample in metrics_of(pid):
            unreported.discard(sample.name)
            if sample.name in _HELD and sample.value:
                labels = ",".join(sample.labels.values())
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found | dict.fromkeys(unreported, math.nan)


def metrics_of(pid: int) -> Iterator[Sample]:
    """All samples at the one port of a process that serves them."""
    ports = {c.laddr.port for c in _connections(pid) if c.status == psutil.CONN_LISTEN}
    for port in ports & _METRICS_PORTS:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
            for family in text_string_to_metric_families(page.read().decode()):
                yield from family.samples


def _connections(pid: int) -> list[Any]:
    try:
        return list(psutil.Process(pid).net_connections("inet"))
    except psutil.Error:
        return []
