"""Messages between leader and ranks: what is decoded is what was sent, or a ValueError."""

import dataclasses
import socket
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeray.worker import wire
from moeray.worker.plan import Drawn, RankPlan, SampleRows

INT32 = st.integers(-(2**31), 2**31 - 1)
NATURAL = st.integers(0, 2**31 - 1)
UINT64 = st.integers(0, 2**64 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)


def _array(values: list[Any], dtype: Any) -> Any:
    return np.array(values, dtype)


@st.composite
def plans(draw: st.DrawFn) -> RankPlan:
    lengths = draw(st.lists(st.integers(1, 4), max_size=5))
    rows, sequences = sum(lengths), len(lengths)
    sampled = [index for index in range(sequences) if draw(st.booleans())]
    lengths_of = st.lists(st.integers(0, 3), min_size=len(sampled), max_size=len(sampled))
    legal, biased, penalised = draw(lengths_of), draw(lengths_of), draw(lengths_of)

    def many(strategy: st.SearchStrategy[Any], count: int, dtype: Any) -> Any:
        return _array(draw(st.lists(strategy, min_size=count, max_size=count)), dtype)

    def table() -> Any:
        width = draw(st.integers(0, 3))
        return many(INT32, sequences * width, np.int32).reshape(sequences, width)

    return RankPlan(
        step=draw(UINT64),
        padded_rows=max(rows, 1) + draw(st.integers(0, 9)),
        tokens=many(INT32, rows, np.int32),
        positions=many(INT32, rows, np.int32),
        row_starts=np.cumsum([0, *lengths], dtype=np.int32),
        full_blocks=table(),
        window_blocks=table(),
        window_first=many(INT32, sequences, np.int32),
        samples=SampleRows(
            sequences=_array(sampled, np.int32),
            temperature=many(FLOAT32, len(sampled), np.float32),
            top_p=many(FLOAT32, len(sampled), np.float32),
            top_k=many(INT32, len(sampled), np.int32),
            min_p=many(FLOAT32, len(sampled), np.float32),
            repetition_penalty=many(FLOAT32, len(sampled), np.float32),
            presence_penalty=many(FLOAT32, len(sampled), np.float32),
            frequency_penalty=many(FLOAT32, len(sampled), np.float32),
            wants_logprobs=many(st.booleans(), len(sampled), np.bool_),
            top_logprobs=many(NATURAL, len(sampled), np.int32),
            seed=many(UINT64, len(sampled), np.uint64),
            draw_position=many(UINT64, len(sampled), np.uint64),
            text_legal=many(st.booleans(), len(sampled), np.bool_),
            legal_starts=np.cumsum([0, *legal], dtype=np.int32),
            legal_ids=many(INT32, sum(legal), np.int32),
            bias_starts=np.cumsum([0, *biased], dtype=np.int32),
            bias_ids=many(INT32, sum(biased), np.int32),
            bias=many(FLOAT32, sum(biased), np.float32),
            penalised_starts=np.cumsum([0, *penalised], dtype=np.int32),
            penalised_ids=many(INT32, sum(penalised), np.int32),
            output_counts=many(NATURAL, sum(penalised), np.int32),
        ),
    )


def assert_equal(left: Any, right: Any) -> None:
    for field in dataclasses.fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, SampleRows):
            assert_equal(a, b)
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert a.tobytes() == b.tobytes()
            assert a.flags.writeable
        else:
            assert a == b


@settings(deadline=None)
@given(plans())
def test_a_plan_comes_back_as_it_was(plan: RankPlan) -> None:
    assert_equal(wire.decode_plan(bytearray(wire.encode_plan(plan))), plan)


@settings(deadline=None)
@given(plans(), st.data())
def test_a_plan_of_another_length_is_refused(plan: RankPlan, data: st.DataObject) -> None:
    encoded = wire.encode_plan(plan)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:cut], encoded + b"\0"):
        with pytest.raises(ValueError, match="message of"):
            wire.decode_plan(bytearray(wrong))


@settings(deadline=None)
@given(plans(), st.data())
def test_a_damaged_plan_is_decoded_or_refused_and_nothing_else(
    plan: RankPlan, data: st.DataObject
) -> None:
    encoded = bytearray(wire.encode_plan(plan))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = wire.decode_plan(encoded)
    except ValueError:
        return
    assert decoded.row_starts[-1] == len(decoded.tokens) <= decoded.padded_rows


def some_plan(**changes: Any) -> bytearray:
    """Two sequences of three rows, the second sampled, with fields changed."""
    ragged = {
        "legal_starts": [0, 2],
        "legal_ids": [7, 8],
        "bias_starts": [0, 1],
        "bias_ids": [4],
        "penalised_starts": [0, 2],
        "penalised_ids": [5, 6],
        "output_counts": [0, 3],
        "top_logprobs": [20],
    }
    samples = dataclasses.replace(
        SampleRows.greedy(_array(changes.pop("sequences", [1]), np.int32), _array([3], np.uint64)),
        bias=_array([-np.inf], np.float32),
        **{name: _array(changes.pop(name, value), np.int32) for name, value in ragged.items()},
    )
    plan = RankPlan(
        step=1,
        padded_rows=changes.pop("padded_rows", 3),
        tokens=_array([1, 2, 3], np.int32),
        positions=_array([0, 1, 0], np.int32),
        row_starts=_array(changes.pop("row_starts", [0, 2, 3]), np.int32),
        full_blocks=_array([[1], [2]], np.int32),
        window_blocks=_array([[1], [2]], np.int32),
        window_first=_array([0, 0], np.int32),
        samples=samples,
    )
    return bytearray(wire.encode_plan(plan))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"padded_rows": 2}, "3 rows are padded to 2"),
        ({"row_starts": [0, 4, 3]}, "row_starts"),
        ({"row_starts": [1, 2, 3]}, "row_starts"),
        ({"row_starts": [0, 2, 2]}, "row_starts"),
        ({"legal_starts": [0, 1]}, "legal_starts"),
        ({"bias_starts": [0, 2]}, "bias_starts"),
        ({"bias_starts": [1, 1]}, "bias_starts"),
        ({"penalised_starts": [0, 1]}, "penalised_starts"),
        ({"output_counts": [0, -1]}, "output_counts"),
        ({"top_logprobs": [-1]}, "top_logprobs"),
        ({"bias_ids": [1, 2]}, "message of"),
        ({"output_counts": [1]}, "message of"),
        ({"sequences": [2]}, "beyond the plan's 2"),
        ({"sequences": [-1]}, "beyond the plan's 2"),
    ],
)
def test_contradictions_in_a_plan_are_refused(changes: dict[str, Any], reason: str) -> None:
    wire.decode_plan(some_plan())
    with pytest.raises(ValueError, match=reason):
        wire.decode_plan(some_plan(**changes))


def test_wrong_magic_version_kind_and_text_legal_are_refused() -> None:
    for offset, value, reason in (
        (0, 0, "magic"),
        (4, 9, "version 9"),
        (6, wire._Kind.RESULT, "kind"),
        (-1, 2, "text_legal"),
        (-2, 255, "wants_logprobs"),
    ):
        encoded = some_plan()
        encoded[offset] = value
        with pytest.raises(ValueError, match=reason):
            wire.decode_plan(encoded)


@st.composite
def results(draw: st.DrawFn) -> Drawn:
    tokens = draw(st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.booleans()), max_size=6))
    rows = [index for index in range(len(tokens)) if draw(st.booleans())]
    tops = [draw(st.lists(st.tuples(INT32, FLOAT32), max_size=3)) for _ in rows]
    flat = [pair for top in tops for pair in top]
    return Drawn(
        tokens=_array([token for token, _ in tokens], np.int64),
        sound=_array([sound for _, sound in tokens], np.bool_),
        logprob_rows=_array(rows, np.int32),
        logprobs=_array([draw(FLOAT32) for _ in rows], np.float32),
        top_starts=np.cumsum([0, *map(len, tops)], dtype=np.int32),
        top_ids=_array([token for token, _ in flat], np.int32),
        top_logprobs=_array([logprob for _, logprob in flat], np.float32),
    )


@settings(deadline=None)
@given(UINT64, results(), st.data())
def test_a_result_comes_back_as_it_was(step: int, drawn: Drawn, data: st.DataObject) -> None:
    encoded = wire.encode_result(wire.StepResult(step, drawn))
    result = wire.decode_reply(bytearray(encoded))
    assert isinstance(result, wire.StepResult)
    assert result.step == step
    assert_equal(result.drawn, drawn)
    assert result.drawn.logprobs_by_row().keys() == set(drawn.logprob_rows.tolist())
    cut = data.draw(st.integers(0, len(encoded) - 1))
    for wrong in (encoded[:cut], encoded + b"\0"):
        with pytest.raises(ValueError, match="message of"):
            wire.decode_reply(bytearray(wrong))


@settings(deadline=None)
@given(results(), st.data())
def test_a_damaged_result_is_decoded_or_refused_and_nothing_else(
    drawn: Drawn, data: st.DataObject
) -> None:
    encoded = bytearray(wire.encode_result(wire.StepResult(1, drawn)))
    position = data.draw(st.integers(0, len(encoded) - 1))
    encoded[position] ^= data.draw(st.integers(1, 255))
    try:
        reply = wire.decode_reply(encoded)
    except ValueError:
        return
    if isinstance(reply, wire.StepResult):
        assert all(0 <= row < len(reply.drawn.tokens) for row in reply.drawn.logprobs_by_row())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"logprob_rows": [0, 0]}, "logprob_rows"),
        ({"logprob_rows": [1, 0]}, "logprob_rows"),
        ({"logprob_rows": [-1, 0]}, "logprob_rows"),
        ({"logprob_rows": [0, 2]}, "logprob_rows"),
        ({"top_starts": [0, 2, 1]}, "top_starts"),
        ({"top_starts": [0, 0, 2]}, "top_starts"),
        ({"top_starts": [1, 1, 1]}, "top_starts"),
        ({"top_starts": [0, 1]}, "message of"),
    ],
)
def test_contradictions_in_a_result_are_refused(changes: dict[str, Any], reason: str) -> None:
    good = dataclasses.replace(
        Drawn.plain(_array([5, 6], np.int64)),
        logprob_rows=_array([0, 1], np.int32),
        logprobs=_array([-1, -2], np.float32),
        top_starts=_array([0, 0, 1], np.int32),
        top_ids=_array([3], np.int32),
        top_logprobs=_array([-0.5], np.float32),
    )
    encoded = bytearray(wire.encode_result(wire.StepResult(1, good)))
    wire.decode_reply(encoded)
    encoded[-1] = 2
    with pytest.raises(ValueError, match="sound"):
        wire.decode_reply(encoded)
    bad = dataclasses.replace(good, **{k: _array(v, np.int32) for k, v in changes.items()})
    with pytest.raises(ValueError, match=reason):
        wire.decode_reply(bytearray(wire.encode_result(wire.StepResult(1, bad))))


@settings(deadline=None)
@given(st.text())
def test_an_error_comes_back_as_it_was(text: str) -> None:
    reply = wire.decode_reply(bytearray(wire.encode_error(wire.StepError(text))))
    assert reply == wire.StepError(text)


def test_a_heartbeat_comes_back_as_it_was() -> None:
    encoded = wire.encode_heartbeat()
    assert wire.decode_reply(bytearray(encoded)) == wire.Heartbeat()
    with pytest.raises(ValueError, match="message of"):
        wire.decode_reply(bytearray(encoded + b"x"))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.binary(max_size=40))
def test_a_hello_comes_back_as_it_was(rank: int, secret: bytes) -> None:
    encoded = wire.encode_hello(wire.Hello(rank, secret))
    assert wire.decode_hello(bytearray(encoded)) == wire.Hello(rank, secret)
    with pytest.raises(ValueError, match="kind"):
        wire.decode_reply(bytearray(encoded))


def test_messages_on_a_socket_keep_their_borders() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for data in (b"one", b"", b"three" * 1000):
            wire.send_message(ours, data)
            assert wire.receive_message(theirs) == data
        theirs.sendall(struct.pack("<I", wire.MAX_MESSAGE_BYTES + 1))
        with pytest.raises(ValueError, match="at most"):
            wire.receive_message(ours)
        ours.sendall(struct.pack("<I", 10) + b"half")
        ours.close()
        with pytest.raises(EOFError):
            wire.receive_message(theirs)
