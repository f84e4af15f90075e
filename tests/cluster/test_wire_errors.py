"""Broken request bytes are answered with the path of the field where they break."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.cluster.errors import InvalidRequest
from moeray.cluster.wire_errors import parse
from moeray.v1.inference_pb2 import (
    ROLE_USER,
    CompleteRequest,
    Delta,
    GenerateRequest,
    GenerateResponse,
    Message,
    Sampling,
    Tool,
    ToolCall,
)


def request() -> GenerateRequest:
    return GenerateRequest(
        model="gpt-oss",
        messages=[
            Message(role=ROLE_USER, content="one"),
            Message(role=ROLE_USER, content="two", tool_calls=[ToolCall(id="a", name="béta")]),
        ],
        tools=[Tool(name="get", description="d", parameters_json_schema="{}")],
        sampling=Sampling(temperature=0.5, seed=7),
        stop=["x", "y"],
        priority=-3,
    )


def path_of(message_class: type[GenerateRequest] | type[CompleteRequest], data: bytes) -> str:
    with pytest.raises(InvalidRequest) as error:
        parse(message_class, data)
    (violation,) = error.value.violations
    assert violation.description
    return violation.field


def test_good_bytes_parse() -> None:
    assert parse(GenerateRequest, request().SerializeToString()) == request()
    assert parse(GenerateRequest, b"") == GenerateRequest()


@pytest.mark.parametrize(
    ("good", "bad", "path"),
    [
        (b"gpt-oss", b"gpt-\xffss", "model"),
        (b"two", b"\xc3wo", "messages[1].content"),
        (b"b\xc3\xa9ta", b"b\xc3\xc3ta", "messages[1].tool_calls[0].name"),
        (b"{}", b"{\x80", "tools[0].parameters_json_schema"),
        (b"\x01y", b"\x01\xfe", "stop[1]"),
    ],
)
def test_text_that_is_not_utf8_is_named(good: bytes, bad: bytes, path: str) -> None:
    data = request().SerializeToString()
    assert data.count(good) == 1
    assert path_of(GenerateRequest, data.replace(good, bad)) == path


def test_the_path_leads_through_wrapping_messages() -> None:
    data = CompleteRequest(generation=request()).SerializeToString()
    assert path_of(CompleteRequest, data.replace(b"two", b"\xffwo")) == (
        "generation.messages[1].content"
    )


@pytest.mark.parametrize(
    ("data", "path"),
    [
        (b"\x0a\x05ab", "model"),  # five bytes announced, two there
        (b"\x12\x04\x12\x09ab", "messages[0].content"),  # longer than the message around it
        (b"\x12\x00\x12\x03\x08\x01\x12", "messages[1].content"),  # no length
        (b"\x12\x02\x08\x80", "messages[0].role"),  # a number that does not end
        (b"\x32\x02\x09\x00", "sampling.temperature"),  # two of eight bytes
        (b"\x0e", "model"),  # wire type 6
        (b"\x06", "GenerateRequest"),  # field 0
        (b"\x80", "GenerateRequest"),  # a tag that does not end
        (b"\xff" * 12, "GenerateRequest"),
        (b"\xfb\x07", "GenerateRequest"),  # an unknown group that does not end
        (b"\xfc\x07", "GenerateRequest"),  # the end of a group that was not begun
        (b"\x12\x01\xff", "messages[0]"),
    ],
)
def test_broken_structure_is_named(data: bytes, path: str) -> None:
    assert path_of(GenerateRequest, data) == path


def test_packed_numbers_are_walked() -> None:
    good = GenerateResponse(delta=Delta(token_ids=[1, 300])).SerializeToString()
    with pytest.raises(InvalidRequest) as error:
        parse(GenerateResponse, good[:-1] + b"\x80")
    assert error.value.violations[0].field == "delta.token_ids[0]"


def refuses_only_with_invalid_request(data: bytes) -> None:
    try:
        parse(GenerateRequest, data)
    except InvalidRequest as error:
        (violation,) = error.violations
        assert violation.field
        assert violation.description


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    refuses_only_with_invalid_request(data)


@settings(deadline=None, max_examples=500)
@given(st.data())
def test_spoilt_requests_parse_or_are_refused(data: st.DataObject) -> None:
    good = bytearray(CompleteRequest(generation=request()).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    refuses_only_with_invalid_request(bytes(good[:cut]))


@pytest.mark.parametrize("opening", [b"\xfb\x07", b"\x12\x7f"])
def test_deep_nesting_is_refused(opening: bytes) -> None:
    refuses_only_with_invalid_request(opening * 20_000)
