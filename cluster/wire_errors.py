"""Request bytes to a message, or an error that says where the bytes stop being valid.

protobuf says only that parsing failed. On failure this module walks the bytes along the message's
descriptor and names the field: a length that reaches past the end, a wire type of no meaning, a
string that is not UTF-8.

Source: protobuf.dev/programming-guides/encoding.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from moeray.cluster.errors import FieldViolation, InvalidRequest

M = TypeVar("M", bound=Message)

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_START_GROUP: Final = 3
_END_GROUP: Final = 4
_FIXED32: Final = 5
_FIXED_BYTES: Final = {_FIXED64: 8, _FIXED32: 4}
_MAX_VARINT_BYTES: Final = 10
_MAX_DEPTH: Final = 100  # protobuf's own limit on nested messages


def parse(message_class: type[M], data: bytes) -> M:
    """Parse ``data``. Raises InvalidRequest, whose violation names the field's path."""
    try:
        return message_class.FromString(data)
    except DecodeError:
        descriptor = cast(Descriptor, message_class.DESCRIPTOR)
        raise InvalidRequest([_find(descriptor, data)]) from None


class _Broken(Exception):
    """The bytes are wrong at ``path``."""

    def __init__(self, path: str, description: str) -> None:
        self.path = path
        self.description = description


@dataclass(slots=True)
class _Cursor:
    data: bytes
    position: int
    end: int

    def varint(self, path: str, what: str) -> int:
        value = 0
        for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
            if self.position >= self.end:
                raise _Broken(path, f"truncated: the bytes end inside {what}")
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise _Broken(path, f"{what} is longer than {_MAX_VARINT_BYTES} bytes")

    def take(self, count: int, path: str) -> int:
        """Step over ``count`` bytes; return where they begin."""
        start = self.position
        if count > self.end - start:
            raise _Broken(path, f"truncated: {count} bytes announced, {self.end - start} left")
        self.position += count
        return start


def _find(descriptor: Descriptor, data: bytes) -> FieldViolation:
    try:
        _walk(descriptor, _Cursor(data, 0, len(data)), path="", depth=0)
    except _Broken as broken:
        return FieldViolation(broken.path or descriptor.name, broken.description)
    return FieldViolation(descriptor.name, f"not a valid {descriptor.full_name} in protobuf format")


def _walk(descriptor: Descriptor, cursor: _Cursor, *, path: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _Broken(path, f"nested deeper than {_MAX_DEPTH} messages")
    seen: Counter[int] = Counter()
    while cursor.position < cursor.end:
        number, wire_type = _tag(cursor, path)
        field = descriptor.fields_by_number.get(number)
        if field is None:
            _skip(cursor, number, wire_type, path)
            continue
        inner = f"{path}.{field.name}" if path else field.name
        if field.is_repeated:
            inner += f"[{seen[number]}]"
            seen[number] += 1
        _value(field, cursor, wire_type, path=inner, depth=depth)


def _value(
    field: FieldDescriptor, cursor: _Cursor, wire_type: int, *, path: str, depth: int
) -> None:
    if wire_type != _LENGTH:
        # A known field in an unknown wire type is kept as an unknown field.
        _skip(cursor, field.number, wire_type, path)
        return
    length = cursor.varint(path, "a length")
    start = cursor.take(length, path)
    inner = _Cursor(cursor.data, start, start + length)
    if field.message_type is not None:
        _walk(field.message_type, inner, path=path, depth=depth + 1)
    elif field.type == FieldDescriptor.TYPE_STRING:
        try:
            cursor.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Broken(path, f"not UTF-8: {error.reason} at byte {error.start}") from None
    elif field.type != FieldDescriptor.TYPE_BYTES:
        _packed(field, inner, path)


def _packed(field: FieldDescriptor, cursor: _Cursor, path: str) -> None:
    width = _packed_width(field)
    while cursor.position < cursor.end:
        if width is None:
            cursor.varint(path, "a number")
        else:
            cursor.take(width, path)


def _packed_width(field: FieldDescriptor) -> int | None:
    """Bytes of one packed number; None for varints."""
    if field.type in (
        FieldDescriptor.TYPE_DOUBLE,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
    ):
        return 8
    if field.type in (
        FieldDescriptor.TYPE_FLOAT,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_SFIXED32,
    ):
        return 4
    return None


def _tag(cursor: _Cursor, path: str) -> tuple[int, int]:
    tag = cursor.varint(path, "a field's tag")
    number, wire_type = tag >> 3, tag & 7
    if not 1 <= number <= FieldDescriptor.MAX_FIELD_NUMBER:
        raise _Broken(path, f"{number} is not a field number")
    return number, wire_type


def _skip(cursor: _Cursor, number: int, wire_type: int, path: str) -> None:
    """Step over one value of an unknown field, a group with all that is in it."""
    open_groups: list[int] = []
    while True:
        if wire_type == _START_GROUP:
            open_groups.append(number)
        elif wire_type == _END_GROUP:
            if not open_groups or open_groups.pop() != number:
                raise _Broken(path, f"group {number} ends without a beginning")
        else:
            _skip_scalar(cursor, wire_type, path)
        if not open_groups:
            return
        if cursor.position >= cursor.end:
            raise _Broken(path, f"truncated: group {open_groups[-1]} does not end")
        number, wire_type = _tag(cursor, path)


def _skip_scalar(cursor: _Cursor, wire_type: int, path: str) -> None:
    if wire_type == _VARINT:
        cursor.varint(path, "a number")
    elif wire_type == _LENGTH:
        cursor.take(cursor.varint(path, "a length"), path)
    elif wire_type in _FIXED_BYTES:
        cursor.take(_FIXED_BYTES[wire_type], path)
    else:
        raise _Broken(path, f"wire type {wire_type} does not exist")
