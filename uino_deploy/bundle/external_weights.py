"""The weight files that an ONNX graph reads, found without the onnx package.

A graph names the files of its large weights. ONNX Runtime 1.23 reads them from anywhere on the
machine, and no version checks a manifest, so the names are read here first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from uino_deploy.bundle.protobuf import fields, submessage, text
from uino_deploy.errors import BundleError

# For each message of onnx.proto: the fields that lead to a tensor, and the messages they hold.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external_data"},
}


def external_weights(path: Path) -> set[str]:
    """Return the names under which a graph refers to its weight files.

    Args:
        path: an ONNX file.

    Raises:
        BundleError: the file is not a protocol buffer.
    """
    data = path.read_bytes()
    try:
        return set(_locations(memoryview(data), "model"))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not an ONNX file", "export the bundle again") from error


def _locations(message: memoryview, kind: str) -> Iterator[str]:
    for number, value, *_ in fields(message):
        inner = _FIELDS[kind].get(number)
        if inner == "external_data":
            entry = {each.number: text(each.value) for each in fields(submessage(value))}
            if entry.get(1) == "location":
                yield entry.get(2, "")
        elif inner is not None:
            yield from _locations(submessage(value), inner)
