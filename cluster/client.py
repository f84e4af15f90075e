"""A plain gRPC client of a running cluster: what ``moeray generate``, ``chat`` and ``demo`` use.

A gateway that is killed or stands still ends its calls with UNAVAILABLE, the latter within five
seconds. Such a status comes from this side of the connection, so it has no google.rpc details, and
no RetryInfo: try again at once, other gateways share the port.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Self, TypeVar, cast

import grpc
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from moeray.cluster.keepalive import keepalive_options
from moeray.v1 import inference_pb2 as pb
from moeray.v1 import inference_pb2_grpc

EFFORTS = {
    "low": pb.REASONING_EFFORT_LOW,
    "medium": pb.REASONING_EFFORT_MEDIUM,
    "high": pb.REASONING_EFFORT_HIGH,
}
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    # Not below what its server allows.
    *keepalive_options(every_s=2.5, timeout_s=2.0),
    # How long a connection may take to be made.
    ("grpc.min_reconnect_backoff_ms", 2_000),
)
"""Of a channel to a gateway."""

Detail = TypeVar("Detail", bound=ProtoMessage)
Request = TypeVar("Request", bound=ProtoMessage)
Response = TypeVar("Response", bound=ProtoMessage)


class ClientError(Exception):
    """A call failed; the message says why, with field paths and retry delays where given.

    ``retry_after_s`` is the delay in seconds after which the same call may succeed; None where it
    would fail again.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Client:
    """One channel to ``target`` (HOST:PORT). Every call raises ClientError when it fails."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.close()

    def generate(
        self, request: pb.GenerateRequest, timeout_s: float | None = None
    ) -> Iterator[pb.GenerateResponse]:
        """Stream one answer. Closing the iterator cancels the call and frees what it held."""
        call = self._inference.Generate(request, timeout=timeout_s)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._failed(error) from None
        finally:
            call.cancel()

    def complete(
        self, request: pb.GenerateRequest, timeout_s: float | None = None
    ) -> pb.CompleteResponse:
        """The whole of what ``generate`` streams."""
        return self._unary(
            self._inference.Complete, pb.CompleteRequest(generation=request), timeout_s
        )

    def count_tokens(self, request: pb.GenerateRequest) -> pb.CountTokensResponse:
        """Render a request without running it; the answer holds the rendered prompt too."""
        counted = pb.CountTokensRequest(generation=request, include_prompt=True)
        return self._unary(self._inference.CountTokens, counted)

    def models(self) -> list[pb.Model]:
        """The models that are served now."""
        return list(self._unary(self._inference.ListModels, pb.ListModelsRequest()).models)

    def server_info(self) -> pb.GetServerInfoResponse:
        """The server's version and load."""
        return self._unary(self._inference.GetServerInfo, pb.GetServerInfoRequest())

    def is_serving(self, timeout_s: float = 1.0) -> bool:
        """Whether the health service says SERVING; False also when nobody listens."""
        try:
            answer = self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _unary(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Request, Response]",
        request: Request,
        timeout_s: float | None = None,
    ) -> Response:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._failed(error) from None

    def _failed(self, error: grpc.RpcError) -> ClientError:
        return ClientError(describe(error, self.target), retry_after_s=_retry_after_s(error))


def user_request(
    prompt: str,
    *,
    effort: str = "medium",
    thinking_budget: int | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    current_date: str = "",
) -> pb.GenerateRequest:
    """A request with one user message; what is None or empty is left to the server."""
    return pb.GenerateRequest(
        messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
        reasoning_effort=EFFORTS[effort],
        thinking_budget=thinking_budget,
        max_output_tokens=max_output_tokens,
        sampling=pb.Sampling(temperature=temperature, top_p=top_p, seed=seed),
        current_date=current_date,
    )


def describe(error: grpc.RpcError, target: str) -> str:
    """A failed call in one line, with what its google.rpc details say."""
    code, message = error.code(), error.details() or ""
    parts = [f"{code.name}: {message}"]
    for violation in _detail(error, error_details_pb2.BadRequest()).field_violations:
        if violation.field not in message:
            parts.append(f"{violation.field}: {violation.description}")
    delay = _detail(error, error_details_pb2.RetryInfo()).retry_delay
    if delay.seconds or delay.nanos:
        parts.append(f"try again in {delay.seconds + delay.nanos / 1e9:.1f} s")
    if code == grpc.StatusCode.UNAVAILABLE and len(parts) == 1:
        parts.append(f"is `moeray serve` running at {target}?")
    return "; ".join(parts)


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """Of a call that another try may save: what the server says, or at once."""
    found = _detail(error, error_details_pb2.RetryInfo())
    delay_s: float = found.retry_delay.seconds + found.retry_delay.nanos / 1e9
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return delay_s
    # Without a delay it is a limit that no waiting lifts, as of a message's size.
    exhausted = error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    return delay_s if exhausted and delay_s else None


def _detail(error: grpc.RpcError, empty: Detail) -> Detail:
    # Errors that a stub raises are calls as well, but the stubs of grpc do not say so.
    status = rpc_status.from_call(cast(grpc.Call, error))
    for packed in status.details if status is not None else ():
        if packed.Unpack(empty):
            break
    return empty
