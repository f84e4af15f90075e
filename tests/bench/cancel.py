"""How long after a client's cancel, or its deadline, the engine's KV blocks are free.

Run as `python -m tests.bench.cancel [--streams 32] [--trials 100]`. A whole gateway, the router's
class and a whole engine with a random model on the CPU, in one process, over loopback. The
streams run all the time; each trial ends one of them. Prints milliseconds from the client's cancel,
or from the instant of its deadline, to the engine's freeing of the blocks, and the time of a step:
commands are obeyed between steps, so that is what most of it is.
"""

import argparse
import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles

import torch

from moeray.cluster.client import user_request
from moeray.v1 import inference_pb2 as pb
from moeray.vocabulary.harmony_tokens import VOCABULARY_SIZE
from moeray.worker.communicator import SingleRank
from moeray.worker.config import EngineConfig
from moeray.worker.engine import Engine
from moeray.worker.engine_thread import EngineThread
from moeray.worker.model_config import ModelConfig
from moeray.worker.rank import Rank
from moeray.worker.ranks import LocalRanks
from moeray.worker.request import RequestKey, TokenRow
from moeray.worker.service import serve_engine
from tests.cluster.fake_engine import TOKEN, FakeEngine
from tests.cluster.running_gateway import RunningGateway, running_gateway
from tests.integration.serving import CACHE
from tests.random_model import ensure_random_model

LONG = 3000
GOAL_MS = 100.0


class WatchedEngine(Engine):
    """Notes when requests were freed before their end, and how long steps take."""

    freed_at: list[float]

    def cancel(self, key: RequestKey) -> bool:
        is_freed = super().cancel(key)
        if is_freed:
            self.freed_at.append(time.perf_counter())
        return is_freed

    def expire(self) -> list[TokenRow]:
        rows = super().expire()
        self.freed_at += [time.perf_counter()] * len(rows)
        return rows


class Streams:
    """A number of endless answers, kept running."""

    def __init__(self, gateway: RunningGateway, engine: WatchedEngine, count: int) -> None:
        self._gateway = gateway
        self._engine = engine
        self._numbers = iter(range(10_000_000))
        self._calls: list[object] = []
        self._count = count

    async def fill(self) -> None:
        while len(self._calls) < self._count:
            self._calls.append(await self._started(None))

    async def cancel_one(self) -> float:
        """Seconds from the cancel to the blocks being free."""
        before = len(self._engine.freed_at)
        call = self._calls.pop(random.randrange(len(self._calls)))
        cancelled_at = time.perf_counter()
        call.cancel()  # type: ignore[attr-defined]
        return await self._freed_after(before) - cancelled_at

    async def expire_one(self, timeout_s: float) -> float:
        """Seconds from the deadline to the blocks being free."""
        before = len(self._engine.freed_at)
        asked_at = time.perf_counter()
        call = await self._started(timeout_s)
        freed_at = await self._freed_after(before)
        del call
        return freed_at - (asked_at + timeout_s)

    async def _started(self, timeout_s: float | None) -> object:
        request = user_request("hi", max_output_tokens=LONG, seed=next(self._numbers))
        call = self._gateway.stub.Generate(request, timeout=timeout_s)
        while True:
            event = await call.read()
            if isinstance(event, pb.GenerateResponse) and event.WhichOneof("event") == "delta":
                return call

    async def _freed_after(self, before: int) -> float:
        async with asyncio.timeout(60):
            while len(self._engine.freed_at) <= before:
                await asyncio.sleep(0.001)
        return self._engine.freed_at[before]


@asynccontextmanager
async def serving(streams: int) -> AsyncIterator[tuple[RunningGateway, WatchedEngine, list[float]]]:
    config = EngineConfig(
        model=ensure_random_model(CACHE),
        max_running_per_rank=max(64, 2 * streams),
        threads_per_rank=1,
    )
    model = ModelConfig.read(Path(config.model) / "config.json")
    rank = Rank.load(config, device=torch.device("cpu"), communicator=SingleRank())
    engine = WatchedEngine.of(config, model, LocalRanks(rank))
    assert isinstance(engine, WatchedEngine)
    engine.freed_at = []
    thread, steps = EngineThread(engine), list[float]()
    thread.on_step = steps.append
    server, port = await serve_engine(
        thread, TOKEN, host="127.0.0.1", vocabulary_size=VOCABULARY_SIZE
    )
    info = FakeEngine("engine", port=port).info(
        places=2 * streams, max_sequence_tokens=engine.scheduler.max_sequence_tokens
    )
    try:
        async with running_gateway() as gateway:
            await gateway.register(info)
            yield gateway, engine, steps
    finally:
        thread.stop()
        await asyncio.to_thread(thread.join, 30)
        await server.stop(None)


async def measure(streams: int, trials: int) -> dict[str, list[float]]:
    """Seconds by what was measured."""
    async with serving(streams) as (gateway, engine, steps):
        running = Streams(gateway, engine, streams)
        await running.fill()
        steps.clear()
        cancelled, expired = [], []
        for _ in range(trials):
            cancelled.append(await running.cancel_one())
            await running.fill()
            expired.append(await running.expire_one(random.uniform(3.0, 4.0)))
        return {"cancel": cancelled, "deadline": expired, "step": steps}


def show(name: str, seconds: Sequence[float]) -> None:
    cuts = quantiles([second * 1e3 for second in seconds], n=100, method="inclusive")
    print(f"{name:10} p50 {cuts[49]:7.1f} ms   p99 {cuts[98]:7.1f} ms   of {len(seconds)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--trials", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = asyncio.run(measure(options.streams, options.trials))
    print(f"{options.streams} running streams; goal: {GOAL_MS:g} ms")
    for name, seconds in measured.items():
        show(name, seconds)


if __name__ == "__main__":
    main()
