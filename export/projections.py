"""Attention's joint projection of query, key and value, split before anything else is done to it.

The exporter adds the bias, reshapes and transposes the whole, and slices the result. A builder that
moves such slices in front of an 8-bit product loses its scales: TensorRT-RTX 1.7 then dequantises
the weight and multiplies in floating point, as its plans say. Split right behind the product, and
with a bias for each part, the product stays one and in 8 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from uino_deploy.export.qdq import replace_nodes

# [B, N, 3, heads, width] to [3, B, heads, N, width].
_PARTS_FIRST = [2, 0, 3, 1, 4]


def split_projections(model: onnx.ModelProto) -> int:
    """Split every joint projection of a graph in place; return how many there were.

    Each is MatMul, Add, Reshape to [B, N, 3, heads, width] and Transpose, whose result is only
    sliced and squeezed.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    made: dict[str, list[onnx.NodeProto]] = {}
    count = 0
    for transpose in graph.node:
        if transpose.op_type == "Transpose" and transpose.attribute[0].ints == _PARTS_FIRST:
            reshape = makers[transpose.input[0]]
            bias = makers[reshape.input[0]]
            takes = readers[transpose.output[0]]
            squeezes = [readers[take.output[0]][0] for take in takes]
            starts = [int(numpy_helper.to_array(tensors[take.input[1]]).item()) for take in takes]
            results = {start: s.output[0] for start, s in zip(starts, squeezes, strict=True)}
            shape = numpy_helper.to_array(tensors[reshape.input[1]])
            offset = numpy_helper.to_array(tensors[bias.input[1]])
            made |= {node.name: [] for node in (reshape, transpose, *takes, *squeezes)}
            made[bias.name] = _parts(graph, bias, offset, shape, results)
            count += 1
    replace_nodes(graph, made)
    return count


def _parts(
    graph: onnx.GraphProto,
    bias: onnx.NodeProto,
    offset: npt.NDArray[Any],
    shape: npt.NDArray[np.int64],
    results: dict[int, str],
) -> list[onnx.NodeProto]:
    """Return the nodes that make the parts of a product, in the place of its bias.

    Args:
        graph: receives their constants.
        bias: the Add behind the product.
        offset: its constant [3 * heads * width].
        shape: of the whole, [B, N, 3, heads, width].
        results: the parts' names by their numbers.
    """
    name, width = bias.name, len(offset) // len(results)
    constants = {
        f"{name}/sizes": np.full(len(results), width, np.int64),
        f"{name}/heads": np.delete(shape, 2),
        **{f"{name}/{i}/bias": offset[i * width : (i + 1) * width].copy() for i in results},
    }
    graph.initializer.extend(numpy_helper.from_array(v, key) for key, v in constants.items())
    parts = [f"{name}/{index}" for index in sorted(results)]
    nodes = [
        helper.make_node(
            "Split", [bias.input[0], f"{name}/sizes"], parts, name=f"{name}/split", axis=2
        )
    ]
    for index, part in enumerate(parts):
        added, viewed, result = f"{part}/sum", f"{part}/view", results[index]
        nodes += [
            helper.make_node("Add", [part, f"{part}/bias"], [added], name=f"{part}/add"),
            helper.make_node("Reshape", [added, f"{name}/heads"], [viewed], name=f"{part}/reshape"),
            helper.make_node(
                "Transpose", [viewed], [result], name=f"{part}/transpose", perm=[0, 2, 1, 3]
            ),
        ]
    return nodes
