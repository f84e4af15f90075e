"""The errors a client can meet. Each knows its stable reason; rpc_status.py maps them to gRPC."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field. ``field`` is its path, as in ``messages[2].content``."""

    field: str
    description: str


class MoerayError(Exception):
    """Base of all errors that reach a client. ``reason`` is upper snake case and stable."""

    reason = "INTERNAL"


class InvalidRequest(MoerayError):
    """The request itself is wrong: trying it again cannot help."""

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[FieldViolation]) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations))


class ModelNotFound(MoerayError):
    """No engine serves a model of that name."""

    reason = "MODEL_NOT_FOUND"


class QueueFull(MoerayError):
    """The waiting queue is full: try again after ``retry_after_s`` seconds."""

    reason = "QUEUE_FULL"

    def __init__(self, message: str, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unavailable(MoerayError):
    """Nobody can serve this now (no engine, engine lost, draining): try again later."""

    reason = "UNAVAILABLE"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotReached(Unavailable):
    """The engine was not there in time: it never saw the request."""


class DeadlineExpired(MoerayError):
    """The client's deadline passed before the answer was complete."""

    reason = "DEADLINE_EXPIRED"
