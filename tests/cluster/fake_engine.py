"""An engine without a model: speaks engine.proto and says scripted tokens.

Each request gets the next script. A script's tokens are sent one step at a time; what a test wants
to see (submits, cancels, acks) is recorded, and what it wants to go wrong is switched on.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from moeray.cluster.contracts import EngineInfo
from moeray.engine.v1 import engine_pb2, engine_pb2_grpc
from moeray.vocabulary.cluster_token import (
    NONCE_METADATA,
    PROOF_METADATA,
    engine_proof,
    gateway_proof,
    proofs_equal,
)
from moeray.vocabulary.harmony_tokens import CALL, RETURN

TOKEN = b"a cluster's token"
HEARTBEAT_S = 1.0


@dataclass(slots=True)
class Script:
    """What the engine says to one request."""

    tokens: Sequence[int]
    per_step: int = 1
    step_s: float = 0.0
    refusal: str = ""
    cached_tokens: int = 0
    admits_early: bool = False
    """Begins with a row without tokens, as an engine does whose first step is all prefill."""
    logprobs: bool = False
    """Gives each token the log-probability ``-index / 8``, and itself as the likeliest."""
    hold_after: int | None = None
    """Says no more after this many tokens, until cancelled."""
    gate: asyncio.Event | None = None
    """Says its last step only when this is set."""
    fail_after: int | None = None
    """Loses the request after this many tokens."""
    expire_after: int | None = None
    """Says after this many tokens that the request's time ran out."""
    end_stream_after: int | None = None
    """Ends the whole stream after this many tokens."""
    rows: Sequence[engine_pb2.StepRow] = ()
    """Sent as they are (but for the request's key) in place of ``tokens``."""


@dataclass(slots=True)
class FakeEngine:
    """Use ``running_engine``. Scripts are taken in the order of the submits."""

    engine_id: str
    model: str = "tiny"
    token: bytes = TOKEN
    proof_token: bytes = TOKEN
    """Another one than ``token`` makes an impostor."""
    scripts: list[Script] = field(default_factory=list)
    submits: list[engine_pb2.Submit] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    connections: int = 0
    disconnections: int = 0
    port: int = 0
    first_sequence_number: int = 1
    is_silent: bool = False
    """Sends no heartbeats, as an engine that stands still."""

    def info(
        self, *, ranks: int = 1, places: int = 4, max_sequence_tokens: int = 4096
    ) -> EngineInfo:
        return EngineInfo(
            engine_id=self.engine_id,
            address=f"127.0.0.1:{self.port}",
            model=self.model,
            ranks=ranks,
            context_length=131072,
            vocabulary_size=201088,
            max_sequence_tokens=max_sequence_tokens,
            default_max_output_tokens=256,
            max_running_per_rank=places,
            block_tokens=16,
            blocks_per_rank=256,
            window_tokens=128,
        )


class _Service(engine_pb2_grpc.EngineServiceServicer):
    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def Connect(self, request_iterator: Any, context: Any) -> Any:
        metadata = dict(context.invocation_metadata())
        nonce = metadata[NONCE_METADATA]
        if not proofs_equal(metadata[PROOF_METADATA], gateway_proof(self._engine.token, nonce)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no proof")
        proof = engine_proof(self._engine.proof_token, nonce)
        await context.send_initial_metadata(((PROOF_METADATA, proof),))
        self._engine.connections += 1
        conversation = _Conversation(self._engine, context)
        try:
            await conversation.run()
        finally:
            self._engine.disconnections += 1
            conversation.close()


class _Conversation:
    def __init__(self, engine: FakeEngine, context: Any) -> None:
        self._engine = engine
        self._context = context
        self._outbox: asyncio.Queue[engine_pb2.ConnectResponse | None] = asyncio.Queue()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._batches = engine.first_sequence_number - 1

    async def run(self) -> None:
        reading = asyncio.create_task(self._read())
        beating = asyncio.create_task(self._beat())
        try:
            while (response := await self._outbox.get()) is not None:
                await self._context.write(response)
        finally:
            reading.cancel()
            beating.cancel()
            await asyncio.gather(reading, beating, return_exceptions=True)

    def close(self) -> None:
        for task in self._requests.values():
            task.cancel()

    async def _beat(self) -> None:
        while not self._engine.is_silent:
            self._outbox.put_nowait(engine_pb2.ConnectResponse(heartbeat=engine_pb2.Heartbeat()))
            await asyncio.sleep(HEARTBEAT_S)

    async def _read(self) -> None:
        while isinstance(message := await self._context.read(), engine_pb2.ConnectRequest):
            match message.WhichOneof("message"):
                case "submit":
                    self._engine.submits.append(message.submit)
                    script = self._engine.scripts.pop(0)
                    task = asyncio.create_task(self._say(message.submit, script))
                    self._requests[message.submit.request_key] = task
                case "cancel":
                    key = message.cancel.request_key
                    self._engine.cancelled.append(key)
                    if (task := self._requests.get(key)) is not None:
                        task.cancel()
                case "ack":
                    self._engine.acknowledged.append(message.ack.sequence_number)
        self._outbox.put_nowait(None)

    async def _say(self, submit: engine_pb2.Submit, script: Script) -> None:
        result = engine_pb2.SubmitResult(
            request_key=submit.request_key,
            epoch=submit.epoch,
            refusal=script.refusal,
        )
        self._outbox.put_nowait(engine_pb2.ConnectResponse(submit_result=result))
        if script.refusal:
            return
        for row in script.rows or self._rows(submit, script):
            row.request_key = submit.request_key
            if script.step_s:
                await asyncio.sleep(script.step_s)
            if script.gate is not None and row.finish_reason:
                await script.gate.wait()
            if script.end_stream_after is not None and row.first_index >= script.end_stream_after:
                self._outbox.put_nowait(None)
                return
            if script.hold_after is not None and row.first_index >= script.hold_after:
                return
            self._batches += 1
            batch = engine_pb2.StepBatch(sequence_number=self._batches, rows=[row])
            self._outbox.put_nowait(engine_pb2.ConnectResponse(step_batch=batch))

    def _rows(self, submit: engine_pb2.Submit, script: Script) -> list[engine_pb2.StepRow]:
        cuts = (submit.max_output_tokens, script.fail_after, script.expire_after)
        limit = min(len(script.tokens), *(cut for cut in cuts if cut is not None))
        rows = []
        if script.admits_early:
            rows.append(engine_pb2.StepRow(epoch=submit.epoch))
        for start in range(0, limit, script.per_step):
            tokens = script.tokens[start : min(start + script.per_step, limit)]
            rows.append(engine_pb2.StepRow(epoch=submit.epoch, first_index=start, token_ids=tokens))
            if script.logprobs:
                rows[-1].logprobs.CopyFrom(logprobs_of(start, tokens[0]))
        if script.fail_after is not None or script.expire_after is not None:
            rows.append(engine_pb2.StepRow(epoch=submit.epoch, first_index=limit))
        rows[0].cached_tokens = script.cached_tokens
        rows[-1].finish_reason = _finish_reason(submit, script, limit)
        if script.fail_after is not None:
            rows[-1].failure = "lost it"
        return rows


def logprobs_of(index: int, token: int) -> engine_pb2.TokenLogprobs:
    """What a Script with ``logprobs`` says of a token."""
    return engine_pb2.TokenLogprobs(
        index=index, logprob=-index / 8, top_token_ids=[token, 17], top_logprobs=[-index / 8, -99.0]
    )


def _finish_reason(
    submit: engine_pb2.Submit, script: Script, limit: int
) -> "engine_pb2.FinishReason.ValueType":
    if script.fail_after is not None:
        return engine_pb2.FINISH_REASON_FAILED
    if script.expire_after is not None:
        return engine_pb2.FINISH_REASON_EXPIRED
    last = script.tokens[limit - 1]
    if last == RETURN or last in submit.channel_rules.stop_token_ids:
        return engine_pb2.FINISH_REASON_STOP
    return engine_pb2.FINISH_REASON_TOOL_CALL if last == CALL else engine_pb2.FINISH_REASON_LENGTH


@asynccontextmanager
async def running_engine(engine: FakeEngine) -> AsyncIterator[grpc.aio.Server]:
    """Serve ``engine`` on a free port of loopback; its ``port`` is set."""
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    engine_pb2_grpc.add_EngineServiceServicer_to_server(_Service(engine), server)
    engine.port = server.add_insecure_port(f"127.0.0.1:{engine.port}")
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)
