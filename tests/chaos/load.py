"""A steady load of observed streams: when one ends, the next question is asked.

Prompts and seeds come from a fixed pool whose fault-free answers are recorded first. Each stream
has a connection of its own, so that streams spread over all gateways of the port.
"""

import asyncio
import random
import time
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from moeray.cluster.client import CHANNEL_OPTIONS, user_request
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc
from tests.chaos.observer import Answer, Ending, StreamObserver, Violation

DEADLINE_S = 150.0
HANG_S = 120.0
"""Longer than a request may have to wait for the next engine."""
RETRY_S = 0.2
COMPANIES = (32, 12, 20)
"""Requests in flight while answers are recorded, by round."""
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@dataclass(frozen=True, slots=True)
class Pool:
    """Questions and their fault-free answers."""

    questions: tuple[pb.GenerateRequest, ...]
    answers: tuple[Answer, ...]

    def observer(self, number: int) -> StreamObserver:
        others = {t for i, a in enumerate(self.answers) if i != number for t in a.token_ids}
        own = set(self.answers[number].token_ids)
        return StreamObserver(self.answers[number], frozenset(others - own))


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """One stream from its start to its end. Times are of time.monotonic()."""

    question: int
    started_at: float
    spoke_at: float | None = None
    ended_at: float | None = None
    engine_id: str = ""
    tokens: int = 0
    ending: Ending | None = None
    violations: list[Violation] = field(default_factory=list)

    @property
    def outcome(self) -> str:
        """ "complete", "unavailable" or "other"."""
        if self.ending is None or self.violations:
            return "other"
        return "complete" if self.ending.code is grpc.StatusCode.OK else "unavailable"


def questions(count: int, seed: int) -> tuple[pb.GenerateRequest, ...]:
    """Prompts of many lengths, drawn greedily and at random, of 20 to 70 tokens."""
    draw = random.Random(seed)
    asked = []
    for number in range(count):
        request = user_request(
            " ".join(f"word{draw.randrange(1000)}" for _ in range(draw.randint(1, 60))),
            effort=draw.choice(["low", "medium", "high"]),
            thinking_budget=draw.choice([0, 8, 20]),
            max_output_tokens=draw.randint(20, 70),
            temperature=draw.choice([0.0, 1.0]),
            seed=number,
            current_date="2026-01-01",
        )
        request.include_token_ids = True
        asked.append(request)
    return tuple(asked)


async def record(target: str, asked: tuple[pb.GenerateRequest, ...]) -> Pool:
    """The answers of a cluster without faults. Raises grpc.aio.AioRpcError.

    A matrix product rounds by the number of its rows, so once in some ten thousand tokens a draw or
    an expert stands on an edge, and company decides. Questions are asked in several companies, and
    those with such a token are left out: what is left says the same always.
    """

    async def answer(request: pb.GenerateRequest, places: asyncio.Semaphore) -> Answer:
        whole = Answer()
        async with places, _channel(target) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            async for event in stub.Generate(request, timeout=DEADLINE_S):
                whole.add(event)
        return whole

    rounds = []
    for company in COMPANIES:
        places = asyncio.Semaphore(company)
        rounds.append(await asyncio.gather(*(answer(request, places) for request in asked)))
    same = [
        number
        for number, said in enumerate(zip(*rounds, strict=True))
        if all(other.token_ids == said[0].token_ids for other in said)
    ]
    return Pool(tuple(asked[n] for n in same), tuple(rounds[0][n] for n in same))


class Load:
    """``start`` it, let faults happen, ``stop`` it; ``ended`` and ``open`` are its streams."""

    def __init__(self, target: str, pool: Pool, *, streams: int, seed: int) -> None:
        self.ended: list[Stream] = []
        self.open: set[Stream] = set()
        self.engine_ids: dict[str, float] = {}
        """Engines that answered, and since when."""
        self._target = target
        self._pool = pool
        self._streams = streams
        self._draw = random.Random(seed)
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._ask_forever()) for _ in range(self._streams)]

    async def stop(self) -> None:
        """Ask nothing more and wait for the ends of all streams."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def ask(self, number: int | None = None) -> Stream:
        """Ask one question and observe its answer to the end."""
        chosen = self._draw.randrange(len(self._pool.questions)) if number is None else number
        stream = Stream(question=chosen, started_at=time.monotonic())
        observer = self._pool.observer(chosen)
        self.open.add(stream)
        try:
            stream.ending = await self._follow(stream, observer)
            stream.violations += observer.end(stream.ending)
        except TimeoutError:
            stream.violations.append(observer.hang(HANG_S))
        finally:
            stream.ended_at = time.monotonic()
            self.open.discard(stream)
            self.ended.append(stream)
        return stream

    async def _ask_forever(self) -> None:
        while not self._stopping:
            stream = await self.ask()
            if stream.outcome != "complete":
                await asyncio.sleep(RETRY_S)

    async def _follow(self, stream: Stream, observer: StreamObserver) -> Ending:
        """Raises TimeoutError where the stream neither speaks nor ends."""
        async with _channel(self._target) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Generate(self._pool.questions[stream.question], timeout=DEADLINE_S)
            try:
                while True:
                    async with asyncio.timeout(HANG_S):
                        event = await call.read()
                    if not isinstance(event, pb.GenerateResponse):
                        return Ending(code=grpc.StatusCode.OK)
                    observer.see(event)
                    self._note(stream, observer)
            except grpc.aio.AioRpcError as error:
                return ending_of(error)
            finally:
                call.cancel()

    def _note(self, stream: Stream, observer: StreamObserver) -> None:
        now = time.monotonic()
        if observer.has_spoken and stream.spoke_at is None:
            stream.spoke_at = now
        stream.tokens = len(observer.seen.token_ids)
        if observer.engine_id and not stream.engine_id:
            stream.engine_id = observer.engine_id
            self.engine_ids.setdefault(observer.engine_id, now)


def ending_of(error: grpc.aio.AioRpcError) -> Ending:
    """What a failed call's status says."""
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    has_retry = status is not None and any(detail.Unpack(retry) for detail in status.details)
    return Ending(
        code=error.code(),
        message=error.details() or "",
        from_server=status is not None,
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
    )


def _channel(target: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(target, options=(*CHANNEL_OPTIONS, *_OWN_CONNECTION))


async def gateways(target: str, connections: int) -> dict[str, int]:
    """Requests running on each gateway that answers over some fresh connections, by its id."""

    async def one() -> tuple[str, int] | None:
        async with _channel(target) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            try:
                info = await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=2.0)
            except grpc.aio.AioRpcError:
                return None
            return info.gateway_id, info.running_requests

    said = await asyncio.gather(*(one() for _ in range(connections)))
    return dict(answer for answer in said if answer is not None)
