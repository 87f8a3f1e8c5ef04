"""The types that an engine multiplies in, read back product by product under ONNX's node names.

A builder may accept Q/DQ and still dequantise a weight and multiply in floating point. The plan of
TensorRT-RTX says so in plain text, which needs no GPU: it describes tensors with their types, and
lists what runs, each with the ONNX nodes that it comes from (`header { version = 5`, as 1.7 writes
it). TensorRT's inspector says it in each layer's "Metadata".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from uino_deploy.errors import CheckFailed
from uino_deploy.export.inspector import tensor_type, type_name

# Node -> the type of all its operands, or "FLOAT" where one of them is none of 8 bits.
Products = dict[str, str]

_GRAPH = re.compile(rb"\ndescriptors \{(.*?)\nmain \{(.*?)\nshape_main \{", re.DOTALL)
_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]+)"[^\n]*? type=(\w+) \}')
_PRODUCT = re.compile(rb"\n *(fully_connected|runtime_fusion|function)=\{ name=([^\n ]+)[^\n]*")
_OPERANDS = re.compile(rb" input(?:_args)?=\{([^}\n]*)\}")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_QUOTED = re.compile(rb'"([^"]*)"')
_EIGHT_BIT = ("INT8", "FP8")
_PRODUCT_LAYERS = ("gemm", "matrix", "convolution", "fullyconnected", "mha")


def read_plan(plan: bytes) -> Products:
    """Read the matrix products of a TensorRT-RTX plan.

    Raises:
        CheckFailed: none is found: the plan is written in an unknown way.
    """
    found: Products = {}
    for graph in _GRAPH.finditer(plan):
        types = {name: kind.decode() for name, kind in _TENSOR.findall(graph[1])}
        for product in _PRODUCT.finditer(graph[2]):
            if product[1] == b"function" and b"mha" not in product[2]:
                continue  # arithmetic between products
            operands = _OPERANDS.search(product[0])
            # Attention fused into one kernel reads query, key and value; its products share it.
            count = 3 if product[1] == b"function" else 2
            names = _QUOTED.findall(operands[1])[:count] if operands else []
            # A fused kernel that casts its operands multiplies what they were cast to.
            casts = product[1] == b"runtime_fusion" and b"Cast" in product[2]
            kind = "FLOAT" if casts else _common([type_name(types.get(name, "")) for name in names])
            _note(found, product[0].decode("utf-8", "replace"), kind)
    if not found:
        raise CheckFailed(
            "the plan lists no products in a way that is known, so what it computes in 8 bits "
            "cannot be checked",
            "build with TensorRT-RTX 1.7, and report this version",
        )
    return found


def read_layers(inspected: str) -> Products:
    """Read the matrix products of TensorRT's inspector, which `inspector.read_inspector` accepts.

    Layers without "Metadata" are left out.
    """
    found: Products = {}
    for layer in msgspec.json.decode(inspected)["Layers"]:
        if isinstance(layer, dict) and _is_product(layer):
            operands = [tensor_type(tensor) for tensor in layer.get("Inputs") or []][:2]
            _note(found, str(layer.get("Metadata", "")), _common(operands))
    return found


def check_products(piece: str, planned: Mapping[str, str], found: Products) -> dict[str, int]:
    """Refuse an engine that multiplies a quantised layer in another type.

    Args:
        piece: the piece's name.
        planned: the quantised products of its file, with the type of each.
        found: what the engine has.

    Returns:
        The number of quantised products of each type.

    Raises:
        CheckFailed: some are computed otherwise, or not found.
    """
    lost = {name: found.get(name, "nothing known") for name in planned}
    lost = {name: kind for name, kind in lost.items() if kind != planned[name]}
    if lost:
        some = ", ".join(f"{name} in {kind}" for name, kind in list(lost.items())[:4])
        raise CheckFailed(
            f"{piece}: {len(lost)} of {len(planned)} quantised layers are not computed in "
            f"{' or '.join(sorted(set(planned.values())))} by the engine: {some}",
            "build with another version, or export this piece in fp16",
        )
    kinds = list(planned.values())
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _note(found: Products, text: str, kind: str) -> None:
    """Note a product under every node that it names; a node with an 8-bit product has that."""
    for name in _NODE.findall(text):
        if found.get(name, "FLOAT") == "FLOAT":
            found[name] = kind


def _common(operands: Sequence[str]) -> str:
    """Return the 8-bit type of all operands, or FLOAT."""
    return next((kind for kind in _EIGHT_BIT if set(operands) == {kind}), "FLOAT")


def _is_product(layer: Mapping[str, Any]) -> bool:
    kind = str(layer.get("LayerType", "")).lower()
    return any(word in kind for word in _PRODUCT_LAYERS)
