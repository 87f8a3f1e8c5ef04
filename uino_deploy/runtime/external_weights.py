"""Which weight files an ONNX graph reads, found without the onnx package.

A graph names the files of its large weights itself. ONNX Runtime 1.23 reads them from anywhere on
the machine, and no version knows of a manifest; so the names are read here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uino_deploy.errors import BundleError

Message = memoryview

# For each message of onnx.proto, the fields on the ways to a tensor and the messages they hold.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
}
_VARINT, _EIGHT_BYTES, _LENGTH_DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


def external_weights(path: Path) -> set[str]:
    """Return the names under which a graph refers to its weight files.

    Args:
        path: an ONNX file.

    Raises:
        BundleError: it is no protocol buffer.
    """
    data = path.read_bytes()
    try:
        return set(_locations(memoryview(data), "model"))
    except (ValueError, IndexError, RecursionError) as error:
        raise BundleError(f"{path} is not an ONNX file", "export the bundle again") from error


def _locations(message: Message, kind: str) -> Iterator[str]:
    for number, value in _fields(message):
        inner = _FIELDS[kind].get(number)
        if inner == "external_data":
            entry = {key: bytes(text).decode() for key, text in _fields(value)}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif inner is not None:
            yield from _locations(value, inner)


def _fields(message: Message) -> Iterator[tuple[int, Message]]:
    """Yield the number and the bytes of each field that has a length; the others hold no name."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, position = _varint(message, position)
        elif wire in {_EIGHT_BYTES, _FOUR_BYTES}:
            position += 8 if wire == _EIGHT_BYTES else 4
        elif wire == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a field reaches over its message's end")
            yield number, message[position : position + size]
            position += size
        else:
            raise ValueError(f"unknown wire type {wire}")


def _varint(message: Message, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, position
