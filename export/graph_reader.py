"""What an engine build must know of an ONNX file, read without the onnx package.

The machines that build TensorRT engines have numpy and TensorRT, not onnx. Protocol Buffers' wire
format is small enough to walk: a message is a sequence of (field number, value), and the field
numbers used here are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from uino_deploy.errors import BuildError

DOMAIN = "uino"
_DOUBLE = 11  # TensorProto.DataType

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _FUNCTION_NODE = 1, 5, 7
_NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_STRING = 1, 3, 4
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 2, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2

Value = int | memoryview


@dataclass(frozen=True)
class Call:
    """A node of our domain: which operator, and its integer and string attributes."""

    name: str
    operator: str
    attributes: dict[str, int | str]


@dataclass(frozen=True)
class GraphSummary:
    """What a build must know of a file.

    Attributes:
        calls: the nodes of our domain, in the graph's order.
        bodies: names of the operators that bring a body in standard operators.
        doubles: where float64 occurs: constants' names, and casts.
        weights: names of the files beside it that hold its weights.
    """

    calls: list[Call] = field(default_factory=list)
    bodies: set[str] = field(default_factory=set)
    doubles: list[str] = field(default_factory=list)
    weights: set[str] = field(default_factory=set)


def read_graph(path: Path) -> GraphSummary:
    """Read an ONNX file.

    Raises:
        BuildError: it is not one.
    """
    summary = GraphSummary()
    try:
        for number, value in _fields(memoryview(path.read_bytes())):
            if number == _MODEL_GRAPH:
                _read_nodes(_message(value), _GRAPH_NODE, summary)
            elif number == _MODEL_FUNCTIONS:
                _read_function(_message(value), summary)
    except (IndexError, TypeError, UnicodeDecodeError) as error:
        raise BuildError(f"{path} is not an ONNX file", "export the bundle again") from error
    return summary


def without_bodies(path: Path) -> bytes:
    """Return an ONNX file without its operators' bodies, so that only plugins can compute them."""
    data = memoryview(path.read_bytes())
    return b"".join(
        data[start:end] for number, _value, start, end in _spans(data) if number != _MODEL_FUNCTIONS
    )


def _read_function(function: memoryview, summary: GraphSummary) -> None:
    names = {number: value for number, value in _fields(function) if isinstance(value, memoryview)}
    if _text(names.get(_FUNCTION_DOMAIN, memoryview(b""))) == DOMAIN:
        summary.bodies.add(_text(names[_FUNCTION_NAME]))
    _read_nodes(function, _FUNCTION_NODE, summary)


def _read_nodes(graph: memoryview, node_field: int, summary: GraphSummary) -> None:
    """Read the nodes and constants of a graph or a function."""
    for number, value in _fields(graph):
        if number == node_field:
            _read_node(_message(value), summary)
        elif number == _GRAPH_INITIALIZER and node_field == _GRAPH_NODE:
            _read_tensor(_message(value), "", summary)


def _read_node(node: memoryview, summary: GraphSummary) -> None:
    name = operator = domain = ""
    attributes: dict[str, int | str] = {}
    for number, value in _fields(node):
        if number == _NODE_NAME:
            name = _text(value)
        elif number == _NODE_OPERATOR:
            operator = _text(value)
        elif number == _NODE_DOMAIN:
            domain = _text(value)
    for number, value in _fields(node):
        if number == _NODE_ATTRIBUTE:
            _read_attribute(_message(value), name or operator, attributes, summary)
    if operator == "Cast" and attributes.get("to") == _DOUBLE:
        summary.doubles.append(f"the cast {name}".rstrip())
    if domain == DOMAIN:
        summary.calls.append(Call(name, operator, attributes))


def _read_attribute(
    attribute: memoryview, node: str, attributes: dict[str, int | str], summary: GraphSummary
) -> None:
    name = ""
    for number, value in _fields(attribute):
        if number == _ATTRIBUTE_NAME:
            name = _text(value)
        elif number == _ATTRIBUTE_INT and isinstance(value, int):
            attributes[name] = value
        elif number == _ATTRIBUTE_STRING:
            attributes[name] = _text(value)
        elif number == _ATTRIBUTE_TENSOR:
            _read_tensor(_message(value), node, summary)
        elif number == _ATTRIBUTE_GRAPH:
            _read_nodes(_message(value), _GRAPH_NODE, summary)


def _read_tensor(tensor: memoryview, node: str, summary: GraphSummary) -> None:
    name, dtype = node, 0
    for number, value in _fields(tensor):
        if number == _TENSOR_NAME and len(_message(value)):
            name = _text(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            dtype = value
        elif number == _TENSOR_EXTERNAL:
            entry = dict(_fields(_message(value)))
            if _text(entry[_ENTRY_KEY]) == "location":
                summary.weights.add(_text(entry[_ENTRY_VALUE]))
    if dtype == _DOUBLE:
        summary.doubles.append(f"the constant {name}".rstrip())


def _fields(data: memoryview) -> Iterator[tuple[int, Value]]:
    """Yield the number and value of each field of a message."""
    for number, value, _start, _end in _spans(data):
        yield number, value


def _spans(data: memoryview) -> Iterator[tuple[int, Value, int, int]]:
    """Yield (number, value, start, end) of each field: where it begins and ends in the message."""
    end = 0
    while end < len(data):
        start = end
        key, end = _varint(data, start)
        value: Value
        kind = key & 7
        if kind == 0:
            value, end = _varint(data, end)
        else:
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                size, end = _varint(data, end)
            elif not size:
                raise IndexError(f"wire type {kind}")
            value, end = data[end : end + size], end + size
        if end > len(data):
            raise IndexError("truncated")
        yield key >> 3, value, start, end


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return a base-128 number and the position after it."""
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            # int64 is written as its two's complement.
            return (result - (1 << 64) if result >> 63 else result), position
        shift += 7


def _message(value: Value) -> memoryview:
    if isinstance(value, int):
        raise TypeError("a number where a message belongs")
    return value


def _text(value: Value) -> str:
    return str(_message(value), "utf-8")
