"""The gateway's links to engines: one bidirectional stream each, whatever the number of requests.

Both ends prove that they know the cluster's token before anything else is said. A token is known by
(request, epoch, index): rows of an older epoch are dropped, and a gap ends the request. A request
never hangs and never ends in silence: when the stream dies or falls silent, the engine lets it go,
or rows do not follow each other, it fails with Unavailable; with NotReached where it was not even
sent. A broken link is opened again while its engine is registered.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Final

import grpc
import structlog

from moeray.cluster.contracts import EngineInfo
from moeray.cluster.errors import NotReached
from moeray.cluster.keepalive import keepalive_options
from moeray.cluster.patience import within
from moeray.cluster.request_stream import RequestStream
from moeray.engine.v1 import engine_pb2, engine_pb2_grpc
from moeray.vocabulary.cluster_token import (
    NONCE_METADATA,
    PROOF_METADATA,
    engine_proof,
    gateway_proof,
    new_nonce,
    proofs_equal,
)

CONNECT_TIMEOUT_S: Final = 1.0
"""How long a submit waits for its link."""
RECONNECT_S: Final = 0.1
MAX_RECONNECT_S: Final = 2.0
SILENCE_TICK_S: Final = 0.25
MAX_SILENT_TICKS: Final = 14
"""An engine that says nothing for so long (3.5 s; its heartbeats come once a second) stands still.
Ticks of this loop are counted, not the clock: while this process stands still, none passes."""
ACK_BATCHES: Final = 64
ACK_S: Final = 0.1
_CHANNEL_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    # Not below what its server allows.
    *keepalive_options(every_s=6.0, timeout_s=5.0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", 64 << 20),
)

_Call = grpc.aio.StreamStreamCall[engine_pb2.ConnectRequest, engine_pb2.ConnectResponse]


class LinkBroken(Exception):
    """The stream cannot be used any more."""


class EngineLink:
    """One stream to one engine, kept open. ``flush_s`` is how long tokens may wait for company."""

    def __init__(
        self,
        engine: EngineInfo,
        token: bytes,
        *,
        flush_s: float = 0.0,
        on_break: Callable[[], None] | None = None,
    ) -> None:
        self.engine = engine
        self._flush_s = flush_s
        self._on_break = on_break
        self._token = token
        self._log = structlog.get_logger("moeray.engine_link").bind(engine_id=engine.engine_id)
        self._open: dict[int, RequestStream] = {}
        self._outgoing: asyncio.Queue[engine_pb2.ConnectRequest] = asyncio.Queue()
        self._connected = asyncio.Event()
        self._received = 0
        self._acknowledged = 0
        self._silent_ticks = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._holding: set[RequestStream] = set()
        """Streams with rows that wait for company."""
        self._flush_timer: asyncio.TimerHandle | None = None
        self._leaving = False
        self._task = asyncio.create_task(self._run())

    @property
    def is_idle(self) -> bool:
        return not self._open

    @property
    def is_closed(self) -> bool:
        return self._task.done()

    async def submit(self, submit: engine_pb2.Submit) -> RequestStream:
        """Start a request. Raises NotReached when there is no connection in time."""
        if not self._connected.is_set():
            try:
                await within(CONNECT_TIMEOUT_S, self._connected.wait())
            except TimeoutError:
                raise NotReached(f"no link to engine {self.engine.engine_id}") from None
        stream = RequestStream(
            submit.request_key, submit.epoch, flush_s=self._flush_s, forget=self.forget
        )
        self._open[stream.key] = stream
        self._outgoing.put_nowait(engine_pb2.ConnectRequest(submit=submit))
        return stream

    def forget(self, stream: RequestStream, *, cancel: bool) -> None:
        """Drop what else comes for this try; ``cancel`` frees it at the engine too."""
        if self._open.get(stream.key) is not stream:
            return
        del self._open[stream.key]
        if cancel:
            message = engine_pb2.Cancel(request_key=stream.key)
            self._outgoing.put_nowait(engine_pb2.ConnectRequest(cancel=message))
        self._close_if_done()

    def leave(self) -> None:
        """Close when the last request has ended."""
        self._leaving = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._leaving and not self._open:
            self._task.cancel()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        async with grpc.aio.insecure_channel(
            self.engine.address, options=_CHANNEL_OPTIONS
        ) as channel:
            delay_s = RECONNECT_S
            while not self._leaving:
                reason = "it was closed"
                try:
                    await self._converse(channel)
                except (LinkBroken, grpc.aio.AioRpcError, TimeoutError) as error:
                    code = error.code().name if isinstance(error, grpc.aio.AioRpcError) else ""
                    reason = code or str(error) or "no answer"
                    self._log.warning("engine_link_broken", reason=reason)
                    if self._on_break is not None and self._connected.is_set():
                        self._on_break()
                finally:
                    delay_s = RECONNECT_S if self._connected.is_set() else 2 * delay_s
                    self._disconnect(f"the link to the engine broke: {reason}")
                await asyncio.sleep(min(delay_s, MAX_RECONNECT_S))

    async def _converse(self, channel: grpc.aio.Channel) -> None:
        """One stream from proof to end; always ends in an exception.

        A write that fails needs no care of its own: the stream has ended, and reading says why.
        """
        nonce = new_nonce()
        metadata = ((NONCE_METADATA, nonce), (PROOF_METADATA, gateway_proof(self._token, nonce)))
        call = engine_pb2_grpc.EngineServiceStub(channel).Connect(metadata=metadata)
        try:
            await self._check_proof(call, nonce)
            self._connected.set()
            self._log.info("engine_link_open", address=self.engine.address)
            writing = asyncio.create_task(self._write(call))
            ends = {
                asyncio.create_task(self._read(call)),
                asyncio.create_task(self._listen_for_silence()),
            }
            try:
                done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (tasks := [writing, *ends]):
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            call.cancel()

    async def _listen_for_silence(self) -> None:
        """Raises LinkBroken when nothing arrives any more."""
        self._silent_ticks = 0
        while self._silent_ticks < MAX_SILENT_TICKS:
            await asyncio.sleep(SILENCE_TICK_S)
            self._silent_ticks += 1
        raise LinkBroken(f"it said nothing for {SILENCE_TICK_S * MAX_SILENT_TICKS:g} s")

    async def _check_proof(self, call: _Call, nonce: str) -> None:
        metadata = await within(CONNECT_TIMEOUT_S, call.initial_metadata())
        given = str(dict(metadata or ()).get(PROOF_METADATA, ""))
        if not given and call.done():
            raise LinkBroken(f"{(await call.code()).name}: {await call.details()}")
        if not proofs_equal(given, engine_proof(self._token, nonce)):
            raise LinkBroken("the engine gave no proof of the cluster's token")

    async def _write(self, call: _Call) -> None:
        while True:
            await call.write(await self._outgoing.get())

    async def _read(self, call: _Call) -> None:
        async for response in call:
            self._silent_ticks = 0
            match response.WhichOneof("message"):
                case "step_batch":
                    self._take_batch(response.step_batch)
                case "submit_result":
                    result = response.submit_result
                    if (stream := self._open.get(result.request_key)) is not None:
                        stream.take_result(result)
        raise LinkBroken("the engine ended the stream")

    def _take_batch(self, batch: engine_pb2.StepBatch) -> None:
        if batch.sequence_number != self._received + 1:
            raise LinkBroken(f"batch {batch.sequence_number} came after {self._received}")
        self._received = batch.sequence_number
        loop = asyncio.get_running_loop()
        now = loop.time()
        for row in batch.rows:
            if (stream := self._open.get(row.request_key)) is not None:
                if stream.take_row(row, now):
                    self._holding.discard(stream)
                else:
                    self._holding.add(stream)
        self._plan_flush()
        if self._received - self._acknowledged >= ACK_BATCHES:
            self._acknowledge()
        elif self._ack_timer is None:
            self._ack_timer = loop.call_later(ACK_S, self._acknowledge)

    def _plan_flush(self) -> None:
        if self._holding and self._flush_timer is None:
            first = min(stream.flush_at for stream in self._holding)
            self._flush_timer = asyncio.get_running_loop().call_at(first, self._flush)

    def _flush(self) -> None:
        """Hands out what was held, where no later row has done so."""
        self._flush_timer = None
        now = asyncio.get_running_loop().time()
        for stream in [stream for stream in self._holding if stream.flush_at <= now]:
            stream.flush(now)
            self._holding.discard(stream)
        self._plan_flush()

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if self._received > self._acknowledged:
            self._acknowledged = self._received
            message = engine_pb2.Ack(sequence_number=self._received)
            self._outgoing.put_nowait(engine_pb2.ConnectRequest(ack=message))

    def _disconnect(self, reason: str) -> None:
        self._connected.clear()
        for timer in (self._ack_timer, self._flush_timer):
            if timer is not None:
                timer.cancel()
        self._ack_timer = self._flush_timer = None
        self._holding.clear()
        self._received = self._acknowledged = 0
        self._outgoing = asyncio.Queue()
        for stream in self._open.values():
            stream.fail(reason)
        self._open.clear()


class EngineLinks:
    """The links of one gateway, one for each registered engine."""

    def __init__(self, token: bytes, *, flush_s: float = 0.0) -> None:
        self.breaks = 0
        """How often a link broke."""
        self._token = token
        self._flush_s = flush_s
        self._links: dict[str, EngineLink] = {}
        self._leaving: set[EngineLink] = set()
        self._changed = asyncio.Event()

    def update(self, engines: Iterable[EngineInfo]) -> None:
        """Open links to new engines; those of engines that left close after their last request."""
        listed = {engine.engine_id: engine for engine in engines}
        self._leaving = {link for link in self._leaving if not link.is_closed}
        for engine_id in self._links.keys() - listed.keys():
            link = self._links.pop(engine_id)
            link.leave()
            self._leaving.add(link)
        for engine_id in listed.keys() - self._links.keys():
            self._links[engine_id] = EngineLink(
                listed[engine_id], self._token, flush_s=self._flush_s, on_break=self._count_break
            )
        self._changed.set()
        self._changed = asyncio.Event()

    async def submit(self, engine_id: str, submit: engine_pb2.Submit) -> RequestStream:
        """Start a request on an engine. Raises NotReached."""
        if engine_id not in self._links:
            # A placement may arrive before the list that names its engine.
            with contextlib.suppress(TimeoutError):
                await within(CONNECT_TIMEOUT_S, self._listing(engine_id))
        link = self._links.get(engine_id)
        if link is None:
            raise NotReached(f"engine {engine_id} is not registered")
        return await link.submit(submit)

    async def _listing(self, engine_id: str) -> None:
        while engine_id not in self._links:
            await self._changed.wait()

    def _count_break(self) -> None:
        self.breaks += 1

    async def close(self) -> None:
        links = {*self._links.values(), *self._leaving}
        self._links.clear()
        self._leaving.clear()
        await asyncio.gather(*(link.close() for link in links))
