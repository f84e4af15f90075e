"""What every RPC of the public service passes through: the boundary between gRPC and Moeray.

The interceptor takes requests as bytes and parses them itself, because grpc's own way answers a
malformed message with INTERNAL. It names each call, turns errors into google.rpc statuses by the
one table in ``rpc_status.py``, refuses calls while the gateway drains, and logs one line for each:
method, code, duration and request id, never what was said. Handlers get a ``Call`` in place of
grpc's context, and streams are closed at once when their client is gone.
"""

import asyncio
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2
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


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler may know of its RPC."""

    request_id: str
    deadline: float | None
    """Unix time; None where the client set none."""

    def remaining_s(self, limit_s: float) -> float:
        """Seconds to the deadline, but at most ``limit_s`` and not below 0."""
        if self.deadline is None:
            return limit_s
        return max(0.0, min(limit_s, self.deadline - time.time()))


class RpcBoundary(grpc.aio.ServerInterceptor):
    """Wraps every method of ``service``; other services (health, reflection) pass through."""

    def __init__(self, service: ServiceDescriptor) -> None:
        self._request_classes = {
            f"/{service.full_name}/{method.name}": GetMessageClass(method.input_type)
            for method in service.methods
        }
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
                        async for response in responses:
                            await context.write(response)

                await self._serve(method, request_class, data, context, answer)

            return grpc.unary_stream_rpc_method_handler(
                cast(Any, stream), response_serializer=handler.response_serializer
            )

        async def unary(data: bytes, context: _Context) -> Message | None:
            answer = cast(_Unary, handler.unary_unary)
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
        started = time.perf_counter()
        code = "OK"
        self.running += 1
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
            status = rpc_status(error, call.request_id)
            code = code_pb2.Code.Name(cast(code_pb2.Code.ValueType, status.code))
            if not isinstance(error, MoerayError):
                self._log_unexpected(error, call)
            await context.abort_with_status(grpc_rpc_status.to_status(status))
        finally:
            self.running -= 1
            duration_ms = round((time.perf_counter() - started) * 1e3, 1)
            self._log.info(
                "rpc", method=method, code=code, duration_ms=duration_ms, request_id=call.request_id
            )

    def _log_unexpected(self, error: Exception, call: Call) -> None:
        # Without the exception's text: it may quote the request.
        stack = "".join(traceback.format_tb(error.__traceback__))
        self._log.error(
            "unexpected_error", error=type(error).__name__, stack=stack, request_id=call.request_id
        )


def _call(context: _Context) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    given = metadata.get(REQUEST_ID_METADATA)
    sane = isinstance(given, str) and _SANE_REQUEST_ID.fullmatch(given)
    remaining_s = context.time_remaining()
    return Call(
        request_id=str(given) if sane else uuid.uuid4().hex,
        deadline=None if remaining_s is None else time.time() + remaining_s,
    )


def _cancelled_code(call: Call) -> str:
    # grpc rounds a deadline up on its way, so the client lets go a little before ours.
    expired = call.deadline is not None and time.time() >= call.deadline - _DEADLINE_MARGIN_S
    return "DEADLINE_EXCEEDED" if expired else "CANCELLED"
