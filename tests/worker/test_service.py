"""The engine's gRPC service over loopback, with fake ranks behind it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import grpc
import pytest

from moeray.engine.v1 import engine_pb2, engine_pb2_grpc
from moeray.vocabulary.cluster_token import (
    NONCE_METADATA,
    PROOF_METADATA,
    engine_proof,
    gateway_proof,
    mint_token,
    new_nonce,
)
from moeray.worker.engine import Engine
from moeray.worker.engine_thread import EngineThread, SubmitCallback
from moeray.worker.plan import Drawn, RankPlan
from moeray.worker.request import EngineRequest
from moeray.worker.service import EngineService, Link, serve_engine
from tests.worker.engine_fakes import expected_answer, fake_engine, request

TOKEN = mint_token()
VOCABULARY = 1000

Stream = grpc.aio.StreamStreamCall[engine_pb2.ConnectRequest, engine_pb2.ConnectResponse]


class Served:
    """A running engine service and the channel to it."""

    def __init__(self, thread: EngineThread, channel: grpc.aio.Channel, port: int) -> None:
        self.thread = thread
        self.port = port
        self.stub = engine_pb2_grpc.EngineServiceStub(channel)

    def connect(self, token: bytes = TOKEN) -> "Gateway":
        nonce = new_nonce()
        metadata = ((NONCE_METADATA, nonce), (PROOF_METADATA, gateway_proof(token, nonce)))
        return Gateway(self.stub.Connect(metadata=metadata), nonce)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for what the engine's thread does in its own time."""
        async with asyncio.timeout(30):
            while not holds():
                await asyncio.sleep(0.005)

    def idle(self) -> bool:
        load = self.thread.load
        return sum(load.running) + sum(load.waiting) == 0 and load.free_blocks == (64,)


class Gateway:
    """One stream, and what came over it."""

    def __init__(self, stream: Stream, nonce: str) -> None:
        self.stream = stream
        self.nonce = nonce
        self.results: dict[int, engine_pb2.SubmitResult] = {}
        self.tokens: dict[int, list[int]] = {}
        self.last: dict[int, engine_pb2.StepRow] = {}
        self.batches = 0
        self.heartbeats = 0

    async def submit(self, wanted: EngineRequest, *, epoch: int = 0) -> None:
        await self.send(submit=submit_message(wanted, epoch))

    async def send(
        self,
        submit: engine_pb2.Submit | None = None,
        cancel: engine_pb2.Cancel | None = None,
        ack: engine_pb2.Ack | None = None,
    ) -> None:
        await self.stream.write(engine_pb2.ConnectRequest(submit=submit, cancel=cancel, ack=ack))

    async def receive(self, *, acknowledge: bool = True) -> None:
        """Takes one message; checks that batches and rows continue one another."""
        async with asyncio.timeout(30):
            message = await self.stream.read()
            while isinstance(message, engine_pb2.ConnectResponse) and message.HasField("heartbeat"):
                self.heartbeats += 1
                message = await self.stream.read()
        assert isinstance(message, engine_pb2.ConnectResponse), "the stream ended"
        if message.HasField("submit_result"):
            self.results[message.submit_result.request_key] = message.submit_result
            return
        self.batches += 1
        assert message.step_batch.sequence_number == self.batches
        for row in message.step_batch.rows:
            tokens = self.tokens.setdefault(row.request_key, [])
            assert row.first_index == len(tokens)
            assert row.request_key in self.results, "a row before the submit's answer"
            tokens += row.token_ids
            if row.finish_reason:
                self.last[row.request_key] = row
        if acknowledge:
            await self.send(ack=engine_pb2.Ack(sequence_number=self.batches))

    async def finish(self, *keys: int) -> None:
        while not set(keys) <= set(self.last):
            await self.receive()

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """Reads to the end of the stream."""
        async with asyncio.timeout(30):
            try:
                while await self.stream.read() is not grpc.aio.EOF:
                    pass
            except grpc.aio.AioRpcError:
                pass
            return await self.stream.code(), await self.stream.details()


def submit_message(wanted: EngineRequest, epoch: int = 0) -> engine_pb2.Submit:
    rules = wanted.channel_rules
    return engine_pb2.Submit(
        request_key=wanted.key.key,
        epoch=epoch,
        rank=wanted.rank,
        prompt_token_ids=wanted.prompt,
        max_output_tokens=wanted.max_output_tokens,
        sampling=engine_pb2.Sampling(
            temperature=0, top_p=1, repetition_penalty=1, seed=wanted.sampling.seed
        ),
        channel_rules=engine_pb2.ChannelRules(
            turn_opening=rules.turn_opening,
            headers=[
                engine_pb2.Header(token_ids=header.token_ids, kind=engine_pb2.BODY_KIND_FINAL)
                for header in rules.headers
            ],
            thinking_budget=rules.thinking_budget,
        ),
        priority=wanted.priority,
    )


@asynccontextmanager
async def serving(engine: Engine) -> AsyncIterator[Served]:
    thread = EngineThread(engine)
    server, port = await serve_engine(thread, TOKEN, host="127.0.0.1", vocabulary_size=VOCABULARY)
    async with ended(server, thread), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(thread, channel, port)
    engine.scheduler.check_integrity()


@asynccontextmanager
async def unstarted(
    thread: EngineThread, *, max_unacknowledged: int = 1024
) -> AsyncIterator[tuple[Served, EngineService]]:
    """Serves a thread that the test starts itself."""
    service = EngineService(
        thread, TOKEN, vocabulary_size=VOCABULARY, max_unacknowledged=max_unacknowledged
    )
    server = grpc.aio.server()
    engine_pb2_grpc.add_EngineServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with ended(server, thread), grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(thread, channel, port), service


@asynccontextmanager
async def ended(server: grpc.aio.Server, thread: EngineThread) -> AsyncIterator[None]:
    try:
        yield
    finally:
        thread.stop()
        assert await asyncio.to_thread(thread.join, 30)
        await server.stop(0)


def endless(key: int) -> EngineRequest:
    """A request that runs as long as nobody ends it: a seed without an early STOP."""
    return request(key, prompt=(5,), max_output_tokens=200, seed=ENDLESS_SEED)


ENDLESS_SEED = next(
    seed
    for seed in range(10_000)
    if len(expected_answer(request(1, prompt=(5,), max_output_tokens=200, seed=seed))[0]) == 200
)


async def test_two_gateways_get_their_own_tokens() -> None:
    async with serving(fake_engine()) as served:
        gateways = [served.connect(), served.connect()]
        wanted = [request(key, prompt=(5, 6), max_output_tokens=25) for key in range(1, 9)]
        for index, each in enumerate(wanted):
            await gateways[index % 2].submit(each)
        for index, gateway in enumerate(gateways):
            mine = wanted[index::2]
            await gateway.finish(*(each.key.key for each in mine))
            assert set(gateway.tokens) == {each.key.key for each in mine}
            for each in mine:
                tokens, reason = expected_answer(each)
                assert tuple(gateway.tokens[each.key.key]) == tokens
                name = f"FINISH_REASON_{reason.name}"
                last = gateway.last[each.key.key]
                assert engine_pb2.FinishReason.Name(last.finish_reason) == name
            metadata = dict(await gateway.stream.initial_metadata())
            assert metadata[PROOF_METADATA] == engine_proof(TOKEN, gateway.nonce)
            await gateway.stream.done_writing()
            assert (await gateway.status())[0] is grpc.StatusCode.OK
        await served.until(served.idle)


async def test_rows_of_one_step_share_a_batch() -> None:
    class CountingThread(EngineThread):
        submitted = 0

        def submit(self, request: EngineRequest, on_result: SubmitCallback) -> None:
            super().submit(request, on_result)
            self.submitted += 1

    thread = CountingThread(fake_engine())
    async with unstarted(thread) as (served, service):
        gateway = served.connect()
        for key in (1, 2, 3):
            await gateway.submit(request(key, prompt=(5,), max_output_tokens=9, seed=ENDLESS_SEED))
        await served.until(lambda: thread.submitted == 3)
        thread.start(service.rows_from_engine)
        await gateway.finish(1, 2, 3)
        assert gateway.batches == thread.load.steps


@pytest.mark.parametrize("token", [mint_token(), TOKEN[:-1]], ids=["another", "shorter"])
async def test_a_wrong_proof_is_refused(token: bytes) -> None:
    async with serving(fake_engine()) as served:
        gateway = served.connect(token)
        assert (await gateway.status())[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_missing_foreign_and_reflected_proofs_are_refused() -> None:
    nonce = new_nonce()
    async with serving(fake_engine()) as served:
        for metadata in (
            (),
            ((NONCE_METADATA, nonce),),
            ((PROOF_METADATA, gateway_proof(TOKEN, nonce)),),
            ((NONCE_METADATA, "other"), (PROOF_METADATA, gateway_proof(TOKEN, nonce))),
            ((NONCE_METADATA, nonce), (PROOF_METADATA, engine_proof(TOKEN, nonce))),
        ):
            gateway = Gateway(served.stub.Connect(metadata=metadata), nonce)
            assert (await gateway.status())[0] is grpc.StatusCode.UNAUTHENTICATED
            # The engine does not prove itself to one that did not.
            assert PROOF_METADATA not in dict(await gateway.stream.initial_metadata())


async def test_cancel_frees_the_request_and_its_key() -> None:
    async with serving(fake_engine(step_s=0.01)) as served:
        gateway = served.connect()
        await gateway.submit(endless(1))
        await gateway.receive()
        await gateway.send(cancel=engine_pb2.Cancel(request_key=1))
        await gateway.send(cancel=engine_pb2.Cancel(request_key=77))
        again = request(1, prompt=(6,), max_output_tokens=10)
        await gateway.submit(again, epoch=1)
        while not (1 in gateway.results and gateway.results[1].epoch == 1):
            await gateway.receive()
        assert gateway.results[1].refusal == ""
        gateway.tokens.clear()
        await gateway.finish(1)
        assert gateway.last[1].epoch == 1
        assert tuple(gateway.tokens[1]) == expected_answer(again)[0]
        await served.until(served.idle)
        assert served.thread.load.steps < 150


async def test_a_refused_submit_disturbs_nobody() -> None:
    async with serving(fake_engine()) as served:
        good, bad = served.connect(), served.connect()
        await good.submit(endless(1))
        wrong = submit_message(request(2))
        wrong.prompt_token_ids.append(VOCABULARY)
        await bad.send(submit=wrong)
        await bad.submit(request(3, max_output_tokens=100_000))
        await bad.submit(request(4, rank=5))
        await bad.send(submit=engine_pb2.Submit(request_key=5))
        await bad.submit(request(6))
        while len(bad.results) < 5:
            await bad.receive()
        assert "prompt_token_ids: 1000" in bad.results[2].refusal
        assert "100001 tokens" in bad.results[3].refusal
        assert "rank 5" in bad.results[4].refusal
        assert "max_output_tokens" in bad.results[5].refusal
        assert bad.results[6].refusal == ""
        await bad.finish(6)
        await good.finish(1)
        assert tuple(good.tokens[1]) == expected_answer(endless(1))[0]


async def _send_nothing(gateway: Gateway) -> None:
    await gateway.send()


async def _acknowledge_the_future(gateway: Gateway) -> None:
    await gateway.send(ack=engine_pb2.Ack(sequence_number=1_000_000))


@pytest.mark.parametrize("offence", [_send_nothing, _acknowledge_the_future])
async def test_a_malformed_message_ends_its_own_stream_alone(
    offence: Callable[[Gateway], Awaitable[None]],
) -> None:
    async with serving(fake_engine()) as served:
        good, bad = served.connect(), served.connect()
        await good.submit(endless(1))
        await bad.submit(endless(1))
        await offence(bad)
        assert (await bad.status())[0] is grpc.StatusCode.INVALID_ARGUMENT
        await good.finish(1)
        assert tuple(good.tokens[1]) == expected_answer(endless(1))[0]
        await served.until(served.idle)


async def test_bytes_that_are_no_message_end_their_own_stream_alone() -> None:
    async with serving(fake_engine()) as served:
        good = served.connect()
        await good.submit(endless(1))
        await good.receive()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            nonce = new_nonce()
            raw = channel.stream_stream("/moeray.engine.v1.EngineService/Connect")(
                metadata=((NONCE_METADATA, nonce), (PROOF_METADATA, gateway_proof(TOKEN, nonce)))
            )
            await raw.write(b"\xff\xff\xff")
            async with asyncio.timeout(30):
                assert await raw.code() is not grpc.StatusCode.OK
        await good.finish(1)
        assert tuple(good.tokens[1]) == expected_answer(endless(1))[0]


@pytest.mark.parametrize("how", ["half close", "cancel"])
async def test_a_stream_that_ends_frees_what_it_held(how: str) -> None:
    # One place, so that one request runs and one waits: by themselves they take 400 steps.
    async with serving(fake_engine(max_running=1, step_s=0.01)) as served:
        gateway = served.connect()
        await gateway.submit(endless(1))
        await gateway.submit(endless(2))
        while not gateway.tokens:
            await gateway.receive()
        if how == "cancel":
            gateway.stream.cancel()
        else:
            await gateway.stream.done_writing()
        await served.until(served.idle)
        assert served.thread.load.steps < 300


async def test_a_gateway_that_does_not_acknowledge_is_cut_off() -> None:
    async with unstarted(EngineThread(fake_engine()), max_unacknowledged=5) as (served, service):
        served.thread.start(service.rows_from_engine)
        gateway = served.connect()
        await gateway.submit(endless(1))
        code, details = await gateway.status()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "more than 5 step batches" in details
        await served.until(served.idle)


async def test_a_lost_rank_ends_requests_with_a_failed_row() -> None:
    async with serving(fake_engine(fail_at=4)) as served:
        gateway = served.connect()
        await gateway.submit(endless(1))
        await gateway.finish(1)
        assert gateway.last[1].finish_reason == engine_pb2.FINISH_REASON_FAILED
        assert "killed by the test" in gateway.last[1].failure
        await gateway.submit(endless(2))
        while 2 not in gateway.results:
            await gateway.receive()
        assert "the engine failed" in gateway.results[2].refusal


class HeldRanks:
    """Ranks whose steps begin only when the test says so, and what was planned for each."""

    def __init__(self, engine: Engine) -> None:
        self._ranks = engine.ranks
        self._scheduler = engine.scheduler
        self._may_go = threading.Semaphore(0)
        self.planned: list[tuple[int, int]] = []
        """Of each step that was planned: sequences in it, and KV blocks in use."""

    def execute(self, plans: Sequence[RankPlan]) -> list[Drawn]:
        used = self._scheduler.ranks[0].blocks.full.referenced_blocks
        self.planned.append((len(plans[0].full_blocks), used))
        assert self._may_go.acquire(timeout=30)
        return self._ranks.execute(plans)

    def let_go(self, steps: int = 1) -> None:
        self._may_go.release(steps)

    def close(self) -> None:
        self._ranks.close()


@pytest.mark.parametrize("how", ["cancel", "end of the stream"])
async def test_blocks_are_free_before_the_next_step_is_planned(how: str) -> None:
    engine = fake_engine()
    held = HeldRanks(engine)
    engine.ranks = held
    async with serving(engine) as served:
        stays, goes = served.connect(), served.connect()
        await stays.submit(endless(1))
        await served.until(lambda: len(held.planned) == 1)
        await goes.submit(endless(2))
        await served.until(lambda: not served.thread._commands.empty())
        held.let_go()
        await served.until(lambda: len(held.planned) == 2)
        assert held.planned[1][0] == 2
        # A step is running. What arrives now is obeyed when it ends, and before the next one.
        if how == "cancel":
            await goes.send(cancel=engine_pb2.Cancel(request_key=2))
        else:
            goes.stream.cancel()
        await served.until(lambda: not served.thread._commands.empty())
        held.let_go()
        await served.until(lambda: len(held.planned) == 3)
        sequences, used = held.planned[2]
        assert sequences == 1
        assert used == len(engine.scheduler.ranks[0].running[0].blocks.full)
        held.let_go(1000)


async def test_an_engine_that_does_nothing_says_that_it_lives() -> None:
    async with serving(fake_engine()) as served:
        gateway = served.connect()
        async with asyncio.timeout(30):
            message = await gateway.stream.read()
        assert isinstance(message, engine_pb2.ConnectResponse)
        assert message.WhichOneof("message") == "heartbeat"


async def test_heartbeats_do_not_pile_up_for_a_gateway_that_does_not_read() -> None:
    link = Link(1)
    for _ in range(5):
        link.put_heartbeat()
    assert link.outbox.qsize() == 1
