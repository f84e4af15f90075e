"""Errors to google.rpc statuses: each error's code, reason and details, and nothing unexpected."""

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from moeray.cluster import errors
from moeray.cluster.rpc_status import rpc_status

CASES: list[tuple[BaseException, int, str]] = [
    (
        errors.InvalidRequest([errors.FieldViolation("a.b[0]", "is wrong")]),
        code_pb2.INVALID_ARGUMENT,
        "INVALID_REQUEST",
    ),
    (errors.ModelNotFound("no x"), code_pb2.NOT_FOUND, "MODEL_NOT_FOUND"),
    (errors.QueueFull("full", 2.5), code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
    (errors.Unavailable("gone"), code_pb2.UNAVAILABLE, "UNAVAILABLE"),
    (errors.DeadlineExpired("late"), code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
    (KeyError("the prompt's text"), code_pb2.INTERNAL, "INTERNAL"),
    (errors.MoerayError("the prompt's text"), code_pb2.INTERNAL, "INTERNAL"),
]


def details(status: status_pb2.Status) -> dict[str, object]:
    kinds = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
    )
    found = {}
    for packed in status.details:
        for kind in kinds:
            message = kind()
            if packed.Unpack(message):
                found[kind.__name__] = message
    return found


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=[c[2] for c in CASES])
def test_code_and_reason(error: BaseException, code: int, reason: str) -> None:
    status = rpc_status(error, "r-1")
    assert status.code == code
    info = details(status)["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        reason,
        "moeray",
        {"request_id": "r-1"},
    )
    assert "the prompt's text" not in str(status)


def test_every_error_of_moeray_has_its_own_code() -> None:
    kinds = errors.MoerayError.__subclasses__()
    assert {type(error) for error, code, _ in CASES if code != code_pb2.INTERNAL} == set(kinds)


def test_bad_fields_and_retry_delays_are_details() -> None:
    (bad,) = [d for n, d in details(rpc_status(CASES[0][0], "r")).items() if n == "BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a.b[0]", "is wrong")]
    retry = details(rpc_status(CASES[2][0], "r"))["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 500_000_000)
    assert "RetryInfo" not in details(rpc_status(CASES[0][0], "r"))


def test_a_status_stays_small_enough_for_its_headers() -> None:
    many = [errors.FieldViolation(f"messages[{i}]" + "x" * 5000, "y" * 5000) for i in range(1000)]
    assert rpc_status(errors.InvalidRequest(many), "r").ByteSize() < 8192
