"""Attention's joint projection of query, key and value, parted into three linear layers.

The exporter writes one product and slices it. A builder that moves the slices in front of an 8-bit
product cannot keep its scales with them: TensorRT-RTX 1.7 then dequantises the weight and computes
the product in floating point, as its plans say. Three products leave nothing to slice.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from uino_deploy.export.qdq import replace_nodes

# [B, N, 3, heads, width] to [3, B, heads, N, width].
_PARTS_FIRST = [2, 0, 3, 1, 4]


def part_projections(model: onnx.ModelProto) -> int:
    """Part every joint projection of a graph in place; return how many there were.

    Each is MatMul, Add, Reshape to [B, N, 3, heads, width] and Transpose, whose result is only
    sliced.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    made: dict[str, list[onnx.NodeProto]] = {}
    for transpose in graph.node:
        chain = _joint(transpose, makers, tensors)
        if chain is None:
            continue
        product, bias, reshape = chain
        shape = numpy_helper.to_array(tensors[reshape.input[1]])
        for take in readers[transpose.output[0]]:
            (squeeze,) = readers[take.output[0]]
            index = int(numpy_helper.to_array(tensors[take.input[1]]).item())
            made[squeeze.name] = _part(graph, tensors, product, bias, shape, index, squeeze)
            made[take.name] = []
        for gone in (product, bias, reshape, transpose):
            made[gone.name] = []
    replace_nodes(graph, made)
    return sum(not nodes for nodes in made.values()) // 7


def _joint(
    transpose: onnx.NodeProto,
    makers: dict[str, onnx.NodeProto],
    tensors: dict[str, onnx.TensorProto],
) -> tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto] | None:
    """Return the product, the bias and the reshape before a transpose that puts parts first."""
    if transpose.op_type != "Transpose" or list(transpose.attribute[0].ints) != _PARTS_FIRST:
        return None
    reshape = makers[transpose.input[0]]
    bias = makers.get(reshape.input[0], reshape)
    product = makers.get(bias.input[0], bias)
    if [bias.op_type, product.op_type] != ["Add", "MatMul"] or product.input[1] not in tensors:
        return None
    return product, bias, reshape


def _part(
    graph: onnx.GraphProto,
    tensors: dict[str, onnx.TensorProto],
    product: onnx.NodeProto,
    bias: onnx.NodeProto,
    shape: np.ndarray,
    index: int,
    squeeze: onnx.NodeProto,
) -> list[onnx.NodeProto]:
    """Return the nodes of one part, whose result has the name of what was sliced."""
    name = f"{product.name}/{index}"
    weight, offset = (numpy_helper.to_array(tensors[node.input[1]]) for node in (product, bias))
    width = weight.shape[1] // int(shape[2])
    columns = slice(index * width, (index + 1) * width)
    constants = {
        f"{name}/kernel": weight[:, columns],
        f"{name}/bias": offset[columns],
        f"{name}/shape": np.delete(shape, 2),
    }
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(value), key)
        for key, value in constants.items()
    )
    kernel, offsets, heads = constants
    return [
        helper.make_node("MatMul", [product.input[0], kernel], [f"{name}/product"], name=name),
        helper.make_node("Add", [f"{name}/product", offsets], [f"{name}/sum"], name=f"{name}/add"),
        helper.make_node("Reshape", [f"{name}/sum", heads], [f"{name}/heads"], name=f"{name}/view"),
        helper.make_node(
            "Transpose",
            [f"{name}/heads"],
            [squeeze.output[0]],
            name=f"{name}/permute",
            perm=[0, 2, 1, 3],
        ),
    ]
