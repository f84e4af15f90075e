"""Times of ops inside CUDA graphs, over copies of their inputs that no cache holds.

An op's copies take turns, so that together they are several times the L2: each call finds its
weights where a decode step would, in memory. A graph holds ``CALLS`` calls, so a time includes what
one launch costs in a graph and nothing of Python.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import median
from typing import TypeVar

import torch
from triton.runtime.errors import OutOfResources

CACHE_BYTES = 200 * 2**20
"""Copies of an input together have at least this; an H200's L2 has 60 MB."""
MOST_COPIES = 64
CALLS = 20
REPEATS = 15

Call = Callable[[], object]
Config = TypeVar("Config")


def copies_for(bytes_each: int) -> int:
    """How many copies of an input of that size must take turns."""
    return max(2, min(MOST_COPIES, -(-CACHE_BYTES // max(bytes_each, 1))))


def microseconds(calls: Sequence[Call]) -> float:
    """The median time of one call, over ``REPEATS`` replays of a graph of all ``calls`` in turn."""
    return _timed(_captured(calls), _count(calls))


def side_by_side(ours: Sequence[Call], theirs: Sequence[Call]) -> tuple[float, float]:
    """The median times of both, replayed in alternation so that they share what else happens."""
    graphs = _captured(ours), _captured(theirs)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for graph, own in zip(graphs, times, strict=True):
            own.append(_replayed(graph))
    return median(times[0]) / _count(ours), median(times[1]) / _count(theirs)


def fastest(
    candidates: Iterable[Config], calls: Callable[[Config], Sequence[Call]]
) -> list[tuple[float, Config]]:
    """The times of an op by configuration, shortest first, without those that do not fit."""
    timed = []
    for config in candidates:
        with suppress(OutOfResources):
            timed.append((microseconds(calls(config)), config))
    return sorted(timed, key=lambda pair: pair[0])


def _count(calls: Sequence[Call]) -> int:
    return max(CALLS, len(calls))


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    for call in calls:  # compiles, tunes and allocates
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(_count(calls)):
            calls[i % len(calls)]()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _timed(graph: torch.cuda.CUDAGraph, calls: int) -> float:
    return median(_replayed(graph) for _ in range(REPEATS)) / calls


def _replayed(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1000
