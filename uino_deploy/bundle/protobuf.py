"""Protocol Buffers' wire format, read without generated code.

A message is a sequence of fields, each a number and a value; that is all one needs to walk an ONNX
file where the onnx package is not installed. The format:
https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

Value = int | memoryview

_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: as the message's definition has it.
        value: a number, or the bytes of whatever has a length or a fixed size.
        start: where the field begins in its message.
        end: where it ends.
    """

    number: int
    value: Value
    start: int
    end: int


def fields(message: memoryview) -> Iterator[Field]:
    """Yield a message's fields in their order.

    Raises:
        ValueError: this is no message.
    """
    end = 0
    while end < len(message):
        start = end
        tag, end = _varint(message, start)
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


def submessage(value: Value) -> memoryview:
    """Return a field's value where a message or a text belongs.

    Raises:
        ValueError: it is a number.
    """
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return value


def text(value: Value) -> str:
    """Return a field's value as text.

    Raises:
        ValueError: it is a number, or no UTF-8.
    """
    return str(submessage(value), "utf-8")


def _size(message: memoryview, position: int, wire: int) -> tuple[int, int]:
    """Return the bytes of a field's value, and where it begins."""
    if wire == _LENGTH_DELIMITED:
        return _varint(message, position)
    if wire in {_EIGHT_BYTES, _FOUR_BYTES}:
        return 8 if wire == _EIGHT_BYTES else 4, position
    raise ValueError(f"unknown wire type {wire}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, lowest first, and the position after it."""
    result = shift = 0
    while position < len(message):
        byte = message[position]
        position += 1
        result |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            # int64 is written as its two's complement.
            return (result - (1 << 64) if result >> 63 else result), position
    raise ValueError("a number reaches over its message's end")
