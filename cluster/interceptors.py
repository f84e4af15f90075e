"""What every RPC of the public service passes through: the boundary between gRPC and Moeray.

The interceptor takes requests as bytes and parses them itself, because grpc's own way answers a
malformed message with INTERNAL. It names each call, turns errors into google.rpc statuses by the
one table in ``rpc_status.py``, refuses calls while the gateway drains, and logs one line for each:
method, code, duration, request id and counts, never what was said. Handlers get a ``Call`` in place
of grpc's context, and streams are closed at once when their client is gone.

A call's id is the client's ``x-request-id`` where that is sane, and new otherwise. It goes back as
initial metadata with the first message and as trailing metadata always, and stands in every log
line that the call causes in this process. Errors come without initial metadata: grpc's clients
retry only calls that have not seen any.
"""

import asyncio
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status as grpc_rpc_status

from moeray.cluster import wire_errors
from moeray.cluster.errors import MoerayError, Unavailable
from moeray.cluster.rpc_status import rpc_status

REQUEST_ID_METADATA: Final = "x-request-id"
_SANE_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_DRAIN_RETRY_S: Final = 1.0
_DEADLINE_MARGIN_S: Final = 0.2

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[bytes, Message]
_Unary = Callable[[Message, "Call"], Awaitable[Message]]
_Streaming = Callable[[Message, "Call"], AsyncIterator[Message]]
OnEnd = Callable[[str, str], None]
"""Hears of each call's end: its method and its status."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know of its RPC."""

    request_id: str
    deadline: float | None
    """Unix time; None where the client set none."""
    arrived_s: float = field(default_factory=time.perf_counter)
    """By time.perf_counter()."""
    facts: dict[str, str | int] = field(default_factory=dict)
    """What the call's log line says beside the usual; never what was asked or answered."""

    def add(self, fact: str, count: int) -> None:
        """Count up one of the facts."""
        self.facts[fact] = int(self.facts.get(fact, 0)) + count

    def time_left_s(self, default_s: float) -> float:
        """Seconds to the deadline, not below 0; ``default_s`` where there is none."""
        return default_s if self.deadline is None else max(0.0, self.deadline - time.time())


class RpcBoundary(grpc.aio.ServerInterceptor):
    """Wraps every method of ``service``; other services (health, reflection) pass through."""

    def __init__(self, service: ServiceDescriptor, on_end: OnEnd | None = None) -> None:
        self._request_classes = {
            f"/{service.full_name}/{method.name}": GetMessageClass(method.input_type)
            for method in service.methods
        }
        self._on_end = on_end
        self._log = structlog.get_logger("moeray.rpc")
        self.draining = False
        self.running = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        request_class = self._request_classes.get(method)
        if handler is None or request_class is None:
            return handler

        if handler.response_streaming:

            async def stream(data: bytes, context: _Context) -> None:
                async def answer(request: Message, call: Call) -> None:
                    streaming = cast(_Streaming, handler.unary_stream)
                    async with aclosing(cast(Any, streaming(request, call))) as responses:
                        is_first = True
                        async for response in responses:
                            if is_first:
                                await context.send_initial_metadata(_metadata(call))
                                is_first = False
                            await context.write(response)

                await self._serve(method, request_class, data, context, answer)

            return grpc.unary_stream_rpc_method_handler(
                cast(Any, stream), response_serializer=handler.response_serializer
            )

        async def unary(data: bytes, context: _Context) -> Message | None:
            async def answer(request: Message, call: Call) -> Message:
                response = await cast(_Unary, handler.unary_unary)(request, call)
                await context.send_initial_metadata(_metadata(call))
                return response

            return await self._serve(method, request_class, data, context, answer)

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, unary), response_serializer=handler.response_serializer
        )

    async def _serve(
        self,
        method: str,
        request_class: type[Message],
        data: bytes,
        context: _Context,
        answer: Callable[[Message, Call], Awaitable[_T]],
    ) -> _T | None:
        call = _call(context)
        context.set_trailing_metadata(_metadata(call))
        code = "OK"
        self.running += 1
        with structlog.contextvars.bound_contextvars(request_id=call.request_id):
            try:
                if self.draining:
                    raise Unavailable("the gateway is draining", _DRAIN_RETRY_S)
                return await answer(wire_errors.parse(request_class, data), call)
            except asyncio.CancelledError:
                code = _cancelled_code(call)
                raise
            except grpc.aio.InternalError:
                # The client went away under a write.
                code = _cancelled_code(call)
                return None
            except Exception as error:
                status = self._status(error, call)
                code = code_pb2.Code.Name(cast(code_pb2.Code.ValueType, status.code))
                await _abort(context, status, call)
            finally:
                self.running -= 1
                self._ended(method, code, call)
        return None

    def _status(self, error: Exception, call: Call) -> status_pb2.Status:
        if not isinstance(error, MoerayError):
            self._log_unexpected(error)
        return rpc_status(error, call.request_id)

    def _ended(self, method: str, code: str, call: Call) -> None:
        duration_ms = round((time.perf_counter() - call.arrived_s) * 1e3, 1)
        self._log.info("rpc", method=method, code=code, duration_ms=duration_ms, **call.facts)
        if self._on_end is not None:
            self._on_end(method, code)

    def _log_unexpected(self, error: Exception) -> None:
        # Without the exception's text: it may quote the request.
        stack = "".join(traceback.format_tb(error.__traceback__))
        self._log.error("unexpected_error", error=type(error).__name__, stack=stack)


def _call(context: _Context) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    given = metadata.get(REQUEST_ID_METADATA)
    sane = isinstance(given, str) and _SANE_REQUEST_ID.fullmatch(given)
    remaining_s = context.time_remaining()
    return Call(
        request_id=str(given) if sane else uuid.uuid4().hex,
        deadline=None if remaining_s is None else time.time() + remaining_s,
    )


async def _abort(context: _Context, status: status_pb2.Status, call: Call) -> None:
    packed = grpc_rpc_status.to_status(status)
    metadata = (*packed.trailing_metadata, *_metadata(call))
    await context.abort(packed.code, packed.details, metadata)


def _metadata(call: Call) -> tuple[tuple[str, str], ...]:
    return ((REQUEST_ID_METADATA, call.request_id),)


def _cancelled_code(call: Call) -> str:
    # grpc rounds a deadline up on its way, so the client lets go a little before ours.
    expired = call.deadline is not None and time.time() >= call.deadline - _DEADLINE_MARGIN_S
    return "DEADLINE_EXCEEDED" if expired else "CANCELLED"
