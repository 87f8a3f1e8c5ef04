"""Protocol Buffers' wire format, read without generated code.

A message is a sequence of fields, each a number and a value. That is enough to walk an ONNX file
without the onnx package. The format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Value = int | memoryview

_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5
# Readers differ in what they do with more than this, and a file must mean the same to all of them.
_TAG_BYTES, _NUMBER_BYTES = 5, 10
_LARGEST_TAG = (1 << 32) - 1


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: the field's number in the message's definition.
        value: a number, or the bytes of a value with a length or a fixed size.
        start: the field's first byte in its message.
        end: the byte after its last.
    """

    number: int
    value: Value
    start: int
    end: int


def fields(message: memoryview) -> Iterator[Field]:
    """Yield a message's fields in their order.

    Raises:
        ValueError: the bytes are not a message, or are written in a way that readers understand
            differently: a tag over 32 bits or longer than it need be.
    """
    end = 0
    while end < len(message):
        start = end
        tag, end = _varint(message, start)
        if not 8 <= tag <= _LARGEST_TAG or end - start > _TAG_BYTES:
            raise ValueError("a field's number is out of range")
        if end - start > 1 and not message[end - 1]:
            raise ValueError("a field's number is longer than it need be")
        wire = tag & 7
        value: Value
        if wire == _VARINT:
            value, end = _varint(message, end)
        else:
            size, end = _size(message, end, wire)
            value, end = message[end : end + size], end + size
        if end > len(message):
            raise ValueError("a field reaches over its message's end")
        yield Field(tag >> 3, value, start, end)


def field_bytes(number: int, body: bytes) -> bytes:
    """Return a field that holds a message or a text, as bytes."""
    return _number_bytes(number << 3 | _LENGTH_DELIMITED) + _number_bytes(len(body)) + body


def _number_bytes(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def submessage(value: Value) -> memoryview:
    """Return the value of a field that must hold a message or a text.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def numbers(value: Value) -> list[int]:
    """Return the numbers of a repeated field: one alone, or several packed into bytes.

    Raises:
        ValueError: the bytes are not numbers.
    """
    if isinstance(value, int):
        return [value]
    found, end = [], 0
    while end < len(value):
        number, end = _varint(value, end)
        found.append(number)
    return found


def text(value: Value) -> str:
    """Return a field's value as text.

    Raises:
        ValueError: it is a number, or not UTF-8.
    """
    return str(submessage(value), "utf-8")


def _size(message: memoryview, position: int, wire: int) -> tuple[int, int]:
    """Return the bytes of a field's value, and the position where it begins."""
    if wire == _LENGTH_DELIMITED:
        size, end = _varint(message, position)
        if size < 0:
            raise ValueError("a negative length")
        return size, end
    if wire in {_EIGHT_BYTES, _FOUR_BYTES}:
        return 8 if wire == _EIGHT_BYTES else 4, position
    raise ValueError(f"unknown wire type {wire}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number stored in 7 bits a byte, lowest first, and the position after it."""
    result = shift = 0
    last = position + _NUMBER_BYTES
    while position < min(len(message), last):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            if result >> 64:
                raise ValueError("a number over 64 bits")
            # An int64 is written as its two's complement.
            return (result - (1 << 64) if result >> 63 else result), position
    raise ValueError("a number has no end")
