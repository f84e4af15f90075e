"""The engine's gRPC face: one stream for each gateway, whatever the number of its requests.

The service runs in an asyncio loop and talks to the engine's thread. Tokens of all requests of a
gateway leave in one StepBatch per engine step. A gateway's mistake costs that gateway its own
request, or its stream, and nobody else anything; when a stream ends, its requests are cancelled.
Each stream carries heartbeats from this loop, so that a gateway can tell a long step from an engine
that stands still.
"""

import asyncio
import contextlib
import itertools
import time
from collections import defaultdict
from typing import Any

import grpc
import structlog

from moeray.engine.v1 import engine_pb2, engine_pb2_grpc
from moeray.vocabulary.cluster_token import (
    NONCE_METADATA,
    PROOF_METADATA,
    engine_proof,
    gateway_proof,
    proofs_equal,
)
from moeray.worker.engine_thread import EngineThread
from moeray.worker.request import (
    EngineRequest,
    FinishReason,
    RequestKey,
    TokenLogprobs,
    TokenRow,
)
from moeray.worker.submit import engine_request

MAX_UNACKNOWLEDGED_BATCHES = 1024
HEARTBEAT_S = 1.0

_FINISH_REASONS = {
    None: engine_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: engine_pb2.FINISH_REASON_STOP,
    FinishReason.TOOL_CALL: engine_pb2.FINISH_REASON_TOOL_CALL,
    FinishReason.LENGTH: engine_pb2.FINISH_REASON_LENGTH,
    FinishReason.FAILED: engine_pb2.FINISH_REASON_FAILED,
    FinishReason.EXPIRED: engine_pb2.FINISH_REASON_EXPIRED,
}

_SERVER_OPTIONS = (
    # Two servers on one port would share its connections without a word.
    ("grpc.so_reuseport", 0),
    # A gateway whose machine is gone sends no end of stream: its requests would run on.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

_log = structlog.get_logger("moeray.engine_service")

_Context = grpc.aio.ServicerContext[engine_pb2.ConnectRequest, engine_pb2.ConnectResponse]


class LinkBroken(Exception):
    """Ends a gateway's stream with this status."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        self.code = code
        super().__init__(reason)


class Link:
    """One gateway's stream."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.outbox: asyncio.Queue[engine_pb2.ConnectResponse] = asyncio.Queue()
        self.overrun = asyncio.Event()
        self.request_ids: dict[int, str] = {}
        """What clients call the requests that run, by their keys: for logs."""
        self._batches = 0
        self._acknowledged = 0

    def put_result(self, submit_result: engine_pb2.SubmitResult) -> None:
        self.outbox.put_nowait(engine_pb2.ConnectResponse(submit_result=submit_result))

    def put_batch(self, rows: list[engine_pb2.StepRow], *, max_unacknowledged: int) -> None:
        self._batches += 1
        batch = engine_pb2.StepBatch(sequence_number=self._batches, rows=rows)
        self.outbox.put_nowait(engine_pb2.ConnectResponse(step_batch=batch))
        if self._batches - self._acknowledged > max_unacknowledged:
            self.overrun.set()

    def put_heartbeat(self) -> None:
        """Says that this process lives, where nothing else waits to be sent that would say so."""
        if self.outbox.empty():
            heartbeat = engine_pb2.Heartbeat()
            self.outbox.put_nowait(engine_pb2.ConnectResponse(heartbeat=heartbeat))

    def acknowledge(self, sequence_number: int) -> None:
        if not self._acknowledged <= sequence_number <= self._batches:
            raise LinkBroken(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"ack.sequence_number: {sequence_number} is not between the last one"
                f" ({self._acknowledged}) and the last batch ({self._batches})",
            )
        self._acknowledged = sequence_number


class EngineService(engine_pb2_grpc.EngineServiceServicer):
    """Serves moeray.engine.v1.EngineService. Make it inside the event loop that serves it."""

    def __init__(
        self,
        thread: EngineThread,
        token: bytes,
        *,
        vocabulary_size: int,
        max_unacknowledged: int = MAX_UNACKNOWLEDGED_BATCHES,
    ) -> None:
        self._thread = thread
        self._token = token
        self._vocabulary_size = vocabulary_size
        self._max_unacknowledged = max_unacknowledged
        self._loop = asyncio.get_running_loop()
        self._links: dict[int, Link] = {}
        self._link_numbers = itertools.count(1)

    def rows_from_engine(self, rows: list[TokenRow]) -> None:
        """Takes a step's rows in the engine's thread."""
        self._call_in_loop(self._deliver, rows)

    # The generated signature knows only generators; grpc.aio also takes a coroutine that reads and
    # writes through its context, whose cancellation reaches the code below at once.
    async def Connect(  # type: ignore[override]
        self, request_iterator: Any, context: _Context
    ) -> None:
        """Carries one gateway's requests; returns when the gateway ends the stream."""
        await self._prove(context)
        link = Link(next(self._link_numbers))
        self._links[link.number] = link
        try:
            await self._converse(link, context)
        except LinkBroken as broken:
            await context.abort(broken.code, str(broken))
        finally:
            del self._links[link.number]
            self._thread.cancel_link(link.number)

    async def _prove(self, context: _Context) -> None:
        """Checks the gateway's proof and answers with the engine's."""
        metadata = dict(context.invocation_metadata() or ())
        nonce = str(metadata.get(NONCE_METADATA, ""))
        proof = str(metadata.get(PROOF_METADATA, ""))
        if not nonce or not proofs_equal(proof, gateway_proof(self._token, nonce)):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no proof of the cluster's token")
        await context.send_initial_metadata(((PROOF_METADATA, engine_proof(self._token, nonce)),))

    async def _converse(self, link: Link, context: _Context) -> None:
        """Reads and writes until the stream ends; raises LinkBroken."""
        reading = asyncio.create_task(self._read(link, context))
        tasks = {
            reading,
            asyncio.create_task(self._write(link, context)),
            asyncio.create_task(self._beat(link)),
            asyncio.create_task(self._await_overrun(link)),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, link: Link, context: _Context) -> None:
        # What ends the stream is grpc.aio.EOF.
        while isinstance(message := await context.read(), engine_pb2.ConnectRequest):
            match message.WhichOneof("message"):
                case "submit":
                    self._submit(link, message.submit)
                case "cancel":
                    link.request_ids.pop(message.cancel.request_key, None)
                    self._thread.cancel(RequestKey(link.number, message.cancel.request_key))
                case "ack":
                    link.acknowledge(message.ack.sequence_number)
                case _:
                    raise LinkBroken(grpc.StatusCode.INVALID_ARGUMENT, "message: not set")

    async def _write(self, link: Link, context: _Context) -> None:
        while True:
            await context.write(await link.outbox.get())

    async def _beat(self, link: Link) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            link.put_heartbeat()

    async def _await_overrun(self, link: Link) -> None:
        await link.overrun.wait()
        raise LinkBroken(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"more than {self._max_unacknowledged} step batches are not acknowledged",
        )

    def _submit(self, link: Link, submit: engine_pb2.Submit) -> None:
        try:
            request = engine_request(
                submit,
                link=link.number,
                vocabulary_size=self._vocabulary_size,
                now=time.monotonic(),
            )
        except ValueError as error:
            _log_refusal(submit.request_id, str(error))
            link.put_result(_submit_result(submit.request_key, submit.epoch, str(error)))
            return
        link.request_ids[submit.request_key] = submit.request_id
        self._thread.submit(request, self._result_from_engine)

    def _result_from_engine(self, request: EngineRequest, refusal: str) -> None:
        self._call_in_loop(self._answer_submit, request, refusal)

    def _answer_submit(self, request: EngineRequest, refusal: str) -> None:
        if link := self._links.get(request.key.link):
            if refusal:
                _log_refusal(link.request_ids.pop(request.key.key, ""), refusal)
            link.put_result(_submit_result(request.key.key, request.epoch, refusal))

    def _deliver(self, rows: list[TokenRow]) -> None:
        by_link: defaultdict[int, list[engine_pb2.StepRow]] = defaultdict(list)
        for row in rows:
            by_link[row.key.link].append(_step_row(row))
        for number, step_rows in by_link.items():
            if link := self._links.get(number):
                for ended in (row for row in step_rows if row.finish_reason):
                    _log_failure(link.request_ids.pop(ended.request_key, ""), ended.failure)
                link.put_batch(step_rows, max_unacknowledged=self._max_unacknowledged)

    def _call_in_loop(self, function: Any, *arguments: Any) -> None:
        # The loop is closed only when the server is gone, and every link with it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


async def serve_engine(
    thread: EngineThread, token: bytes, *, host: str, vocabulary_size: int
) -> tuple[grpc.aio.Server, int]:
    """Starts the engine's thread and a server on a free port of ``host``; returns both.

    To end: ``thread.drain()`` and ``thread.join()`` (or ``stop``), then ``server.stop(grace)``.
    """
    service = EngineService(thread, token, vocabulary_size=vocabulary_size)
    server = grpc.aio.server(options=_SERVER_OPTIONS)
    engine_pb2_grpc.add_EngineServiceServicer_to_server(service, server)
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    thread.start(service.rows_from_engine)
    return server, port


def _log_refusal(request_id: str, reason: str) -> None:
    _log.warning("request_refused", request_id=request_id, reason=reason)


def _log_failure(request_id: str, failure: str) -> None:
    if failure:
        _log.warning("request_failed", request_id=request_id, reason=failure)


def _submit_result(key: int, epoch: int, refusal: str) -> engine_pb2.SubmitResult:
    return engine_pb2.SubmitResult(request_key=key, epoch=epoch, refusal=refusal)


def _step_row(row: TokenRow) -> engine_pb2.StepRow:
    return engine_pb2.StepRow(
        request_key=row.key.key,
        epoch=row.epoch,
        first_index=row.first_index,
        token_ids=row.token_ids,
        finish_reason=_FINISH_REASONS[row.finish_reason],
        failure=row.failure,
        cached_tokens=row.cached_tokens,
        logprobs=None if row.logprobs is None else _token_logprobs(row.logprobs),
    )


def _token_logprobs(logprobs: TokenLogprobs) -> engine_pb2.TokenLogprobs:
    return engine_pb2.TokenLogprobs(
        index=logprobs.answer_index,
        logprob=logprobs.logprob,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )
