"""Messages between the leader and its ranks, as bytes on a Unix socket: never pickle.

A message is a fixed little-endian header (magic, version, kind, step, ten counts) and raw arrays
in a fixed order. Decoding is strict: whatever does not fit raises ValueError. On the socket each
message follows its length, 4 bytes little-endian.
"""

import math
import socket
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moeray.worker.plan import Drawn, Int32, RankPlan, SampleRows

MAX_MESSAGE_BYTES = 1 << 30
"""Penalised ids alone take up to 1.6 MB a sample, where its tokens are all different."""

_MAGIC = b"MoeR"
_VERSION = 2
_COUNTS = 10
"""Even, so that the arrays behind the header are aligned to 8 bytes."""
_HEADER = struct.Struct(f"<4sHHQ{_COUNTS}I")
_LENGTH = struct.Struct("<I")
_TRUTH = "?"
_Layout = list[tuple[str, str, tuple[int, ...]]]


class _Kind(IntEnum):
    HELLO = 1
    PLAN = 2
    RESULT = 3
    ERROR = 4
    HEARTBEAT = 5


class Hello(NamedTuple):
    """A rank's first message: who it is, and the secret it was started with."""

    rank: int
    secret: bytes


class StepResult(NamedTuple):
    """What a rank drew for the K samples of its plan."""

    step: int
    drawn: Drawn


class StepError(NamedTuple):
    """A rank's last message: why it stops."""

    text: str


class Heartbeat(NamedTuple):
    """A rank's process is alive, whatever it computes."""


def encode_hello(hello: Hello) -> bytes:
    return _encode(_Kind.HELLO, 0, [hello.rank, len(hello.secret)], [hello.secret])


def decode_hello(data: bytearray) -> Hello:
    _, counts = _decode_header(data, _Kind.HELLO)
    _check_size(data, counts[1])
    return Hello(counts[0], bytes(data[_HEADER.size :]))


def encode_plan(plan: RankPlan) -> bytes:
    samples = plan.samples
    sequences, full_width = plan.full_blocks.shape
    counts = [
        plan.padded_rows,
        len(plan.tokens),
        sequences,
        full_width,
        plan.window_blocks.shape[1],
        len(samples.sequences),
        len(samples.legal_ids),
        len(samples.bias_ids),
        len(samples.penalised_ids),
    ]
    arrays = (
        np.asarray(getattr(samples if name in SampleRows.__slots__ else plan, name), dtype)
        for name, dtype, _ in _plan_layout(_filled(counts))
    )
    return _encode(_Kind.PLAN, plan.step, counts, (array.tobytes() for array in arrays))


def decode_plan(data: bytearray) -> RankPlan:
    """The arrays are views into ``data``: writable, and alive as long as they are."""
    step, counts = _decode_header(data, _Kind.PLAN)
    arrays = _decode_arrays(data, _plan_layout(counts))
    _check_plan(arrays, counts)
    samples = SampleRows(**{name: arrays.pop(name) for name in SampleRows.__slots__})
    return RankPlan(step=step, padded_rows=counts[0], samples=samples, **arrays)


def encode_result(result: StepResult) -> bytes:
    drawn = result.drawn
    counts = [len(drawn.tokens), len(drawn.logprob_rows), len(drawn.top_ids)]
    arrays = (
        np.asarray(getattr(drawn, name), dtype)
        for name, dtype, _ in _result_layout(_filled(counts))
    )
    return _encode(_Kind.RESULT, result.step, counts, (array.tobytes() for array in arrays))


def encode_error(error: StepError) -> bytes:
    text = error.text.encode(errors="replace")[: MAX_MESSAGE_BYTES // 2]
    return _encode(_Kind.ERROR, 0, [len(text)], [text])


def encode_heartbeat() -> bytes:
    return _encode(_Kind.HEARTBEAT, 0, [], [])


def decode_reply(data: bytearray) -> StepResult | StepError | Heartbeat:
    """What a rank sends after its hello."""
    step, counts = _decode_header(data, _Kind.RESULT, _Kind.ERROR, _Kind.HEARTBEAT)
    if _kind_of(data) is _Kind.HEARTBEAT:
        _check_size(data, 0)
        return Heartbeat()
    if _kind_of(data) is _Kind.ERROR:
        _check_size(data, counts[0])
        return StepError(data[_HEADER.size :].decode(errors="replace"))
    arrays = _decode_arrays(data, _result_layout(counts))
    _check_result(arrays, counts)
    return StepResult(step, Drawn(**arrays))


def send_message(connection: socket.socket, data: bytes) -> None:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} travel")
    connection.sendall(_LENGTH.pack(len(data)) + data)


def receive_message(connection: socket.socket) -> bytearray:
    """Raises EOFError where the peer closed, ValueError where the length is out of range."""
    (length,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes; at most {MAX_MESSAGE_BYTES} travel")
    return _receive_exactly(connection, length)


def _receive_exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise EOFError("the peer closed the connection")
        view = view[received:]
    return data


def _encode(kind: _Kind, step: int, counts: list[int], parts: Iterable[bytes]) -> bytes:
    header = _HEADER.pack(_MAGIC, _VERSION, kind, step, *_filled(counts))
    return b"".join([header, *parts])


def _filled(counts: Sequence[int]) -> tuple[int, ...]:
    """The header's counts: those that a kind of message does not use are 0."""
    return (*counts, *[0] * (_COUNTS - len(counts)))


def _decode_header(data: bytearray, *expected: _Kind) -> tuple[int, tuple[int, ...]]:
    if len(data) < _HEADER.size:
        raise ValueError(f"a message of {len(data)} bytes is shorter than its header")
    magic, version, kind, step, *counts = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != _VERSION:
        raise ValueError(f"magic {magic!r} version {version} is not {_MAGIC!r} version {_VERSION}")
    if kind not in expected:
        raise ValueError(f"a message of kind {kind} where {expected} was expected")
    return step, tuple(counts)


def _kind_of(data: bytearray) -> _Kind:
    return _Kind(_HEADER.unpack_from(data)[2])


def _check_size(data: bytearray, payload: int) -> None:
    if len(data) != _HEADER.size + payload:
        raise ValueError(f"a message of {len(data)} bytes; {_HEADER.size + payload} expected")


def _decode_arrays(data: bytearray, layout: _Layout) -> dict[str, NDArray[Any]]:
    """Views into the message, by name; raises ValueError where it is longer, shorter or has a
    truth value other than 0 and 1.
    """
    _check_size(data, sum(math.prod(shape) * np.dtype(d).itemsize for _, d, shape in layout))
    arrays: dict[str, NDArray[Any]] = {}
    offset = _HEADER.size
    for name, dtype, shape in layout:
        flat = np.frombuffer(data, dtype, math.prod(shape), offset)
        offset += flat.nbytes
        if dtype == _TRUTH and (flat.view(np.uint8) > 1).any():
            raise ValueError(f"{name} holds other bytes than 0 and 1")
        arrays[name] = flat.reshape(shape)
    return arrays


# Layouts name each array with its dtype and shape, the widest dtypes first so that all are aligned.
def _plan_layout(counts: Sequence[int]) -> _Layout:
    _, rows, sequences, full_width, window_width, samples, legal_ids, biased, penalised, _ = counts
    return [
        ("seed", "<u8", (samples,)),
        ("draw_position", "<u8", (samples,)),
        ("tokens", "<i4", (rows,)),
        ("positions", "<i4", (rows,)),
        ("row_starts", "<i4", (sequences + 1,)),
        ("full_blocks", "<i4", (sequences, full_width)),
        ("window_blocks", "<i4", (sequences, window_width)),
        ("window_first", "<i4", (sequences,)),
        ("sequences", "<i4", (samples,)),
        ("temperature", "<f4", (samples,)),
        ("top_p", "<f4", (samples,)),
        ("top_k", "<i4", (samples,)),
        ("min_p", "<f4", (samples,)),
        ("repetition_penalty", "<f4", (samples,)),
        ("presence_penalty", "<f4", (samples,)),
        ("frequency_penalty", "<f4", (samples,)),
        ("top_logprobs", "<i4", (samples,)),
        ("legal_starts", "<i4", (samples + 1,)),
        ("legal_ids", "<i4", (legal_ids,)),
        ("bias_starts", "<i4", (samples + 1,)),
        ("bias_ids", "<i4", (biased,)),
        ("bias", "<f4", (biased,)),
        ("penalised_starts", "<i4", (samples + 1,)),
        ("penalised_ids", "<i4", (penalised,)),
        ("output_counts", "<i4", (penalised,)),
        ("wants_logprobs", _TRUTH, (samples,)),
        ("text_legal", _TRUTH, (samples,)),
    ]


def _result_layout(counts: Sequence[int]) -> _Layout:
    samples, logprobs, top, *_ = counts
    return [
        ("tokens", "<i8", (samples,)),
        ("logprob_rows", "<i4", (logprobs,)),
        ("logprobs", "<f4", (logprobs,)),
        ("top_starts", "<i4", (logprobs + 1,)),
        ("top_ids", "<i4", (top,)),
        ("top_logprobs", "<f4", (top,)),
        ("sound", _TRUTH, (samples,)),
    ]


def _check_plan(arrays: dict[str, NDArray[Any]], counts: tuple[int, ...]) -> None:
    padded_rows, rows, sequences, _, _, _, legal_ids, biased, penalised, _ = counts
    if padded_rows < max(rows, 1):
        raise ValueError(f"{rows} rows are padded to {padded_rows}")
    _check_offsets("row_starts", arrays["row_starts"], rows)
    _check_offsets("legal_starts", arrays["legal_starts"], legal_ids)
    _check_offsets("bias_starts", arrays["bias_starts"], biased)
    _check_offsets("penalised_starts", arrays["penalised_starts"], penalised)
    sampled = arrays["sequences"]
    if ((sampled < 0) | (sampled >= sequences)).any():
        raise ValueError(f"a sample is of a sequence beyond the plan's {sequences}")
    if (arrays["top_logprobs"] < 0).any() or (arrays["output_counts"] < 0).any():
        raise ValueError("top_logprobs or output_counts holds a number below 0")


def _check_result(arrays: dict[str, NDArray[Any]], counts: Sequence[int]) -> None:
    samples, _, top, *_ = counts
    _check_offsets("top_starts", arrays["top_starts"], top)
    rows = arrays["logprob_rows"]
    ascending = (np.diff(rows.astype(np.int64)) > 0).all()
    if len(rows) and not (ascending and rows[0] >= 0 and rows[-1] < samples):
        raise ValueError(f"logprob_rows do not ascend within {samples} samples")


def _check_offsets(name: str, offsets: Int32, total: int) -> None:
    if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} does not run from 0 up to {total}")
