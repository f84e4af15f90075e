"""The one table from Moeray's errors to gRPC statuses with google.rpc details.

Every status carries ErrorInfo with a stable reason and the request's id; BadRequest names the
fields that are wrong; RetryInfo says when trying again can help. An error that is not Moeray's own
becomes INTERNAL and says nothing but the request's id.
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from moeray.cluster import errors

ERROR_DOMAIN: Final = "moeray"
MAX_MESSAGE_CHARACTERS: Final = 1000
"""A status travels in HTTP/2 headers, which are small."""
MAX_VIOLATIONS: Final = 16
MAX_DESCRIPTION_CHARACTERS: Final = 200

_CODES: Final[dict[type[errors.MoerayError], code_pb2.Code.ValueType]] = {
    errors.InvalidRequest: code_pb2.INVALID_ARGUMENT,
    errors.ModelNotFound: code_pb2.NOT_FOUND,
    errors.QueueFull: code_pb2.RESOURCE_EXHAUSTED,
    errors.Unavailable: code_pb2.UNAVAILABLE,
    errors.DeadlineExpired: code_pb2.DEADLINE_EXCEEDED,
}


def rpc_status(error: BaseException, request_id: str) -> status_pb2.Status:
    """The status that a client gets for ``error``."""
    code = _code(error)
    if code == code_pb2.INTERNAL or not isinstance(error, errors.MoerayError):
        message, reason = f"internal error; request id {request_id}", errors.MoerayError.reason
    else:
        message, reason = _shortened(str(error), MAX_MESSAGE_CHARACTERS), error.reason
    status = status_pb2.Status(code=code, message=message)
    info = error_details_pb2.ErrorInfo(
        reason=reason, domain=ERROR_DOMAIN, metadata={"request_id": request_id}
    )
    for detail in (info, *_details(error)):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _code(error: BaseException) -> code_pb2.Code.ValueType:
    for kind, code in _CODES.items():
        if isinstance(error, kind):
            return code
    return code_pb2.INTERNAL


def _details(error: BaseException) -> Iterator[Message]:
    if isinstance(error, errors.InvalidRequest):
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=_shortened(violation.field, MAX_DESCRIPTION_CHARACTERS),
                    description=_shortened(violation.description, MAX_DESCRIPTION_CHARACTERS),
                )
                for violation in error.violations[:MAX_VIOLATIONS]
            ]
        )
    if isinstance(error, errors.QueueFull | errors.Unavailable):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_s * 1e9))
        yield error_details_pb2.RetryInfo(retry_delay=delay)


def _shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 3] + "..."
