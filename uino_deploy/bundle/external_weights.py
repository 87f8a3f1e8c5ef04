"""The weight files that an ONNX graph reads, found without the onnx package.

A graph names the files of its large weights. ONNX Runtime 1.23 reads them from anywhere on the
machine, and no version checks a manifest, so the names are read here first. A field that this
reader does not know could name another file: such a graph is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uino_deploy.bundle.protobuf import fields, submessage, text
from uino_deploy.errors import BundleError

# For each message of onnx.proto: the fields that lead to a tensor, and the messages they hold.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
}
# Their other fields, none of which leads to a tensor (onnx 1.23).
_PLAIN: dict[str, set[int]] = {
    "model": {1, 2, 3, 4, 5, 6, 8, 14, 26},
    "training": {3, 4},
    "graph": {2, 10, 11, 12, 13, 14, 16},
    "function": {1, 4, 5, 6, 8, 9, 10, 12, 13, 14},
    "node": {1, 2, 3, 4, 6, 7, 8, 9, 10},
    "attribute": {1, 2, 3, 4, 7, 8, 9, 13, 14, 15, 20, 21},
    "sparse": {3},
    "tensor": {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16},
}
_OPERATOR = 4
# A node that runs a compiled graph of some provider, from a file that it names in its own way.
_CONTEXT = "EPContext"


def external_weights(path: Path) -> set[str]:
    """Return the names under which a graph refers to its weight files.

    Args:
        path: an ONNX file.

    Raises:
        BundleError: see `weights_of`.
    """
    return weights_of(path.read_bytes(), str(path))


def weights_of(data: bytes, name: str) -> set[str]:
    """Return the names under which the graph in an ONNX file's bytes refers to its weight files.

    Args:
        data: the file's bytes.
        name: the file's name, for errors.

    Raises:
        BundleError: the bytes are not an ONNX model, or hold what this reader does not know.
    """
    try:
        return set(_locations(memoryview(data), "model"))
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else error
        raise BundleError(
            f"{name} is not an ONNX file that can be checked: {reason}", "export the bundle again"
        ) from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    for number, value, *_ in fields(message):
        inner = _FIELDS[kind].get(number)
        if inner == "external_data":
            entry = {each.number: text(each.value) for each in fields(submessage(value))}
            if not entry.keys() <= {1, 2}:
                raise ValueError("an unknown field in a tensor's external data")
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif inner is not None:
            yield from _locations(submessage(value), inner)
        elif number not in _PLAIN[kind]:
            raise ValueError(f"unknown field {number} in a {kind}")
        elif kind == "node" and number == _OPERATOR and text(value) == _CONTEXT:
            raise ValueError(f"a node {_CONTEXT}, which reads files of its own")
