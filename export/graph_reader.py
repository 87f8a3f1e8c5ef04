"""A summary of an ONNX file for engine builds, read without the onnx package.

The machines that build TensorRT engines have numpy and TensorRT, not onnx.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import NamedTuple

from uino_deploy.bundle import Precision
from uino_deploy.bundle.protobuf import field_bytes, fields, numbers, submessage, text
from uino_deploy.bundle.reference import OUTPUTS
from uino_deploy.errors import BuildError
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.tolerances import FINENESS

# TensorProto.DataType: what weights are stored in, and the precision that it means.
_DOUBLE = 11
_PRECISION_OF: dict[int, Precision] = {
    **{1: "fp32", 10: "fp16", 16: "bf16"},
    **{2: "int8", 3: "int8", 17: "fp8"},
}
# What a product of 8-bit operands is called in a network and in an engine.
_QUANTISED_TYPES = {3: "INT8", 17: "FP8"}
# In a piece of a precision at least this share of the weights has its type; the others, such as
# convolutions that no bfloat16 exists for, and the scan's, are float32.
_LEAST_SHARE = 0.1

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _FUNCTION_NODE = 1, 5, 7
_GRAPH_OUTPUT, _VALUE_NAME = 12, 1
_NODE_NAME, _NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_STRING = 1, 3, 4
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
_TENSOR_DIMENSIONS, _TENSOR_TYPE, _TENSOR_NAME = 1, 2, 8
_NODE_INPUT, _NODE_OUTPUT = 1, 2


@dataclass(frozen=True)
class Call:
    """A node of our domain: which operator, and its integer and string attributes."""

    name: str
    operator: str
    attributes: dict[str, int | str]


@dataclass(frozen=True)
class GraphSummary:
    """A summary of an ONNX file for engine builds.

    Attributes:
        calls: the nodes of our domain, in the graph's order.
        functions: names of the operators with a portable ONNX function.
        doubles: the constants and casts in float64, by name.
        casts: the types that casts give, by ONNX's numbers.
        quantised: the products whose operands are both dequantised: name -> INT8 or FP8, the type
            of their zero points.
    """

    calls: list[Call] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    doubles: list[str] = field(default_factory=list)
    casts: set[int] = field(default_factory=set)
    quantised: dict[str, str] = field(default_factory=dict)


def read_graph(path: Path) -> GraphSummary:
    """Read an ONNX file.

    Raises:
        BuildError: the file is not ONNX.
    """
    summary = GraphSummary()
    try:
        for number, value, *_ in fields(memoryview(path.read_bytes())):
            if number == _MODEL_GRAPH:
                _read_nodes(submessage(value), _GRAPH_NODE, summary)
                summary.quantised.update(_quantised(submessage(value)))
            elif number == _MODEL_FUNCTIONS:
                _read_function(submessage(value), summary)
    except (ValueError, KeyError) as error:
        raise BuildError(f"{path} is not an ONNX file", "export the bundle again") from error
    return summary


def precision_of(data: bytes) -> Precision:
    """Return the precision of a graph: the coarsest type of its weights and casts.

    What a manifest says of a piece is a label; this is what the piece computes with.

    Args:
        data: an ONNX file's bytes.

    Raises:
        BuildError: they are none.
    """
    elements: Counter[Precision] = Counter()
    rounded: set[Precision] = set()
    try:
        for graph in (f.value for f in fields(memoryview(data)) if f.number == _MODEL_GRAPH):
            _count_weights(submessage(graph), elements)
            summary = GraphSummary()
            _read_nodes(submessage(graph), _GRAPH_NODE, summary)
            rounded = {_PRECISION_OF[dtype] for dtype in summary.casts if dtype in _PRECISION_OF}
    except ValueError as error:
        raise BuildError("not an ONNX file", "export the bundle again") from error
    least = _LEAST_SHARE * elements.total()
    stored = {kind for kind, count in elements.items() if count >= least}
    return max(stored | rounded | {"fp32"}, key=FINENESS.index)


def _count_weights(graph: memoryview, elements: Counter[Precision]) -> None:
    """Count the elements of those initialisers that a node of the graph takes."""
    taken = {name for node in _nodes(graph) for name in node.inputs}
    for found in fields(graph):
        if found.number != _GRAPH_INITIALIZER:
            continue
        name, dtype, count = "", 0, 1
        for number, value, *_ in fields(submessage(found.value)):
            if number == _TENSOR_NAME:
                name = text(value)
            elif number == _TENSOR_TYPE and isinstance(value, int):
                dtype = value
            elif number == _TENSOR_DIMENSIONS:
                count *= prod(numbers(value))
        if name in taken and dtype in _PRECISION_OF:
            elements[_PRECISION_OF[dtype]] += count


class Tap(NamedTuple):
    """A tensor at one of our operators: the call's number, "input" or one of `OUTPUTS`, a name."""

    call: int
    what: str
    tensor: str


def with_taps(data: bytes) -> tuple[bytes, list[Tap]]:
    """Return an ONNX file that also gives what our operators take first and give.

    What comes from outside the graph is left out.

    Args:
        data: a checked ONNX file's bytes.
    """
    parts, taps = [], list[Tap]()
    for number, value, start, end in fields(memoryview(data)):
        if number != _MODEL_GRAPH:
            parts.append(data[start:end])
            continue
        graph = submessage(value)
        nodes = _nodes(graph)
        ours = [node for node in nodes if node.domain == DOMAIN]
        made = {name for node in nodes for name in node.outputs}
        given = {
            text(each.value)
            for f in fields(graph)
            if f.number == _GRAPH_OUTPUT
            for each in fields(submessage(f.value))
            if each.number == _VALUE_NAME
        }
        for call, node in enumerate(ours):
            ends = (("input", node.inputs[0]), *zip(OUTPUTS, node.outputs, strict=False))
            taps += [Tap(call, what, name) for what, name in ends if name in made]
        added = dict.fromkeys(tap.tensor for tap in taps if tap.tensor not in given)
        more = [field_bytes(_GRAPH_OUTPUT, field_bytes(_VALUE_NAME, n.encode())) for n in added]
        parts.append(field_bytes(_MODEL_GRAPH, b"".join([bytes(graph), *more])))
    return b"".join(parts), taps


class _Node(NamedTuple):
    name: str
    operator: str
    domain: str
    inputs: list[str]
    outputs: list[str]

    @classmethod
    def read(cls, node: memoryview) -> _Node:
        single = (_NODE_NAME, _NODE_OPERATOR, _NODE_DOMAIN)
        found: dict[int, list[str]] = {n: [] for n in (*single, _NODE_INPUT, _NODE_OUTPUT)}
        for number, value, *_ in fields(node):
            if number in found:
                found[number].append(text(value))
        name, operator, domain = ("".join(found[number][-1:]) for number in single)
        return cls(name, operator, domain, found[_NODE_INPUT], found[_NODE_OUTPUT])


def _nodes(graph: memoryview) -> list[_Node]:
    return [_Node.read(submessage(f.value)) for f in fields(graph) if f.number == _GRAPH_NODE]


def _quantised(graph: memoryview) -> dict[str, str]:
    """Return the products of a graph whose operands are both dequantised, with their types."""
    nodes = _nodes(graph)
    zeros = {n.outputs[0]: n.inputs[-1] for n in nodes if n.operator == "DequantizeLinear"}
    stored: dict[str, int] = {}
    for each in (f.value for f in fields(graph) if f.number == _GRAPH_INITIALIZER):
        told = {f.number: f.value for f in fields(submessage(each))}
        kind = told.get(_TENSOR_TYPE)
        if isinstance(kind, int):
            stored[text(told.get(_TENSOR_NAME, memoryview(b"")))] = kind
    found = {}
    for node in nodes:
        if node.operator == "MatMul" and all(name in zeros for name in node.inputs):
            kinds = {stored.get(zeros[name], 0) for name in node.inputs}
            if len(kinds) == 1 and kinds <= _QUANTISED_TYPES.keys():
                found[node.name] = _QUANTISED_TYPES[kinds.pop()]
    return found


def without_functions(path: Path) -> bytes:
    """Return an ONNX file without its operators' functions, so only plugins can compute them."""
    data = memoryview(path.read_bytes())
    return b"".join(
        data[start:end] for number, _, start, end in fields(data) if number != _MODEL_FUNCTIONS
    )


def _read_function(function: memoryview, summary: GraphSummary) -> None:
    names = {each.number: each.value for each in fields(function)}
    if text(names.get(_FUNCTION_DOMAIN, memoryview(b""))) == DOMAIN:
        summary.functions.add(text(names[_FUNCTION_NAME]))
    _read_nodes(function, _FUNCTION_NODE, summary)


def _read_nodes(graph: memoryview, node_field: int, summary: GraphSummary) -> None:
    """Read the nodes and constants of a graph or a function."""
    for number, value, *_ in fields(graph):
        if number == node_field:
            _read_node(submessage(value), summary)
        elif number == _GRAPH_INITIALIZER and node_field == _GRAPH_NODE:
            _read_tensor(submessage(value), "", summary)


def _read_node(node: memoryview, summary: GraphSummary) -> None:
    name = operator = domain = ""
    attributes: dict[str, int | str] = {}
    for number, value, *_ in fields(node):
        if number == _NODE_NAME:
            name = text(value)
        elif number == _NODE_OPERATOR:
            operator = text(value)
        elif number == _NODE_DOMAIN:
            domain = text(value)
    for number, value, *_ in fields(node):
        if number == _NODE_ATTRIBUTE:
            _read_attribute(submessage(value), name or operator, attributes, summary)
    if operator == "Cast" and isinstance(attributes.get("to"), int):
        summary.casts.add(int(attributes["to"]))
    if operator == "Cast" and attributes.get("to") == _DOUBLE:
        summary.doubles.append(f"the cast {name}".rstrip())
    if domain == DOMAIN:
        summary.calls.append(Call(name, operator, attributes))


def _read_attribute(
    attribute: memoryview, node: str, attributes: dict[str, int | str], summary: GraphSummary
) -> None:
    name = ""
    for number, value, *_ in fields(attribute):
        if number == _ATTRIBUTE_NAME:
            name = text(value)
        elif number == _ATTRIBUTE_INT and isinstance(value, int):
            attributes[name] = value
        elif number == _ATTRIBUTE_STRING:
            attributes[name] = text(value)
        elif number == _ATTRIBUTE_TENSOR:
            _read_tensor(submessage(value), node, summary)
        elif number == _ATTRIBUTE_GRAPH:
            _read_nodes(submessage(value), _GRAPH_NODE, summary)


def _read_tensor(tensor: memoryview, node: str, summary: GraphSummary) -> None:
    name, dtype = node, 0
    for number, value, *_ in fields(tensor):
        if number == _TENSOR_NAME and len(submessage(value)):
            name = text(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            dtype = value
    if dtype == _DOUBLE:
        summary.doubles.append(f"the constant {name}".rstrip())
