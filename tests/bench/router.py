"""Placements per second, and how the cost of one grows from 1 to 1000 engines.

Run as ``python -m tests.bench.router [--engines 1 10 100 1000] [--runs 5]``. Every rank's ledger
holds the blocks of other conversations behind a system prompt that all have; prompts are 64 blocks
of which a share is cached: 0 %, 50 % (the system prompt, on every rank) or 90 % (a conversation, on
one rank). Some 400 placements are held at a time, so ranks are loaded unevenly. Prints the median
of the CPU time over the runs: the policy alone, with and without the releases, and the actor's
methods in this process, in batches of 64.
"""

import argparse
import asyncio
import gc
import random
import time
from collections.abc import Iterator
from statistics import median

from moeray.cluster.contracts import EngineInfo, KvEvents, PlacementRequest
from moeray.cluster.placement import PlacementLimits, PlacementPolicy
from moeray.cluster.router import RouterActor

BLOCK_TOKENS = 16
PROMPT_BLOCKS = 64
RANKS = 2
PLACES = 256
PLACEMENTS = 8192
LIVE = 400
"""Placements held at a time, at most."""
BATCH = 64
CONVERSATIONS = 8
"""Cached on each rank, PROMPT_BLOCKS each."""
GATEWAY = "gateway"
SHARES = (0.0, 0.5, 0.9)


def engine_info(number: int) -> EngineInfo:
    return EngineInfo(
        engine_id=f"engine-{number}",
        address="127.0.0.1:1",
        model="m",
        ranks=RANKS,
        context_length=131072,
        vocabulary_size=201088,
        max_sequence_tokens=131072,
        default_max_output_tokens=512,
        max_running_per_rank=PLACES,
        block_tokens=BLOCK_TOKENS,
        blocks_per_rank=16384,
        window_tokens=128,
    )


class Cluster:
    """Engines with filled caches, and prompts that share with them what is asked for."""

    def __init__(self, engines: int, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.infos = [engine_info(number) for number in range(engines)]
        self._system = self._hashes(PROMPT_BLOCKS // 2)
        self._conversations: list[list[bytes]] = []
        self.events: list[tuple[str, KvEvents]] = []
        for info in self.infos:
            for rank in range(RANKS):
                self.events.append((info.engine_id, self._filled(rank)))

    def _hashes(self, count: int) -> list[bytes]:
        return [self._random.randbytes(16) for _ in range(count)]

    def _filled(self, rank: int) -> KvEvents:
        stored = list(self._system)
        for _ in range(CONVERSATIONS):
            own = self._hashes(PROMPT_BLOCKS // 2)
            self._conversations.append(self._system + own)
            stored += own
        return KvEvents(
            rank=rank,
            sequence_number=1,
            stored_full=stored,
            removed_full=[],
            stored_window=stored,
            removed_window=[],
        )

    def requests(self, share: float, count: int, run: int) -> list[PlacementRequest]:
        return [self._request(share, f"{run}-{index}") for index in range(count)]

    def _request(self, share: float, name: str) -> PlacementRequest:
        cached = round(PROMPT_BLOCKS * share)
        source = self._system if share <= 0.5 else self._random.choice(self._conversations)
        # As they come from a socket: equal bytes, other objects.
        prefix = [bytes(bytearray(block_hash)) for block_hash in source[:cached]]
        return PlacementRequest(
            request_id=name,
            model="m",
            prompt_tokens=PROMPT_BLOCKS * BLOCK_TOKENS + 1,
            max_output_tokens=256,
            priority=0,
            conversation_id="",
            deadline=None,
            block_hashes=tuple(prefix + self._hashes(PROMPT_BLOCKS - cached)),
        )


def policy_of(cluster: Cluster) -> PlacementPolicy:
    policy = PlacementPolicy(PlacementLimits(), incarnation="bench")
    for info in cluster.infos:
        policy.register_engine(info, 0.0)
    for engine_id, events in cluster.events:
        assert policy.report_kv(engine_id, [events], 0.0) == []
    return policy


def batches(requests: list[PlacementRequest]) -> Iterator[list[PlacementRequest]]:
    for start in range(0, len(requests), BATCH):
        yield requests[start : start + BATCH]


def time_policy(cluster: Cluster, share: float, run: int) -> tuple[float, float]:
    """Seconds of all placements, and with all releases."""
    policy, now = policy_of(cluster), 1.0
    requests = cluster.requests(share, PLACEMENTS, run)
    live: list[str] = []
    gc.collect()  # the last run's policy, in no timed part of this one
    placing = releasing = 0.0
    for batch in batches(requests):
        now += 0.001
        start = time.process_time()
        policy.place_all(GATEWAY, batch, now)
        placed = time.process_time()
        live += [request.request_id for request in batch]
        ended, live = live[:-LIVE], live[-LIVE:]
        begin = time.process_time()
        policy.release(GATEWAY, ended, now)
        releasing += time.process_time() - begin
        placing += placed - start
    assert policy.stats().placed_total == PLACEMENTS
    return placing, placing + releasing


async def time_actor(cluster: Cluster, share: float, run: int) -> float:
    """Seconds of all placements and releases through the actor's methods."""
    actor = RouterActor(PlacementLimits(), clock=lambda: 1.0)
    for info in cluster.infos:
        await actor.register_engine(info)
    for engine_id, events in cluster.events:
        await actor.report_kv(engine_id, [events])
    requests = cluster.requests(share, PLACEMENTS, run)
    live: list[str] = []
    gc.collect()
    start = time.process_time()
    for batch in batches(requests):
        await actor.place(GATEWAY, batch)
        live += [request.request_id for request in batch]
        ended, live = live[:-LIVE], live[-LIVE:]
        await actor.release(GATEWAY, ended)
    return time.process_time() - start


def matched_share(cluster: Cluster, share: float) -> float:
    """The share of the prompts' blocks that the ledger knew where they were placed."""
    policy = policy_of(cluster)
    for request in cluster.requests(share, 400, 0):
        policy.place(GATEWAY, request, 1.0)
    stats = policy.stats()
    return stats.matched_blocks_total / stats.prompt_blocks_total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{'engines':>8} {'cached':>7} {'matched':>8} {'place/s':>9} {'us':>6}", end="")
    print(f" {'+release/s':>11} {'us':>6} {'actor/s':>9} {'us':>6}")
    for engines in arguments.engines:
        cluster = Cluster(engines)
        for share in SHARES:
            runs = [time_policy(cluster, share, run) for run in range(arguments.runs)]
            actor = [asyncio.run(time_actor(cluster, share, run)) for run in range(arguments.runs)]
            seconds = (median(r[0] for r in runs), median(r[1] for r in runs), median(actor))
            print(f"{engines:>8} {share:>7.0%} {matched_share(cluster, share):>8.0%}", end="")
            for value, width in zip(seconds, (9, 11, 9), strict=True):
                rate = PLACEMENTS / value
                print(f" {rate:>{width},.0f} {1e6 / rate:>6.1f}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
