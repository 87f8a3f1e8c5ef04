"""Explicit quantisation in ONNX: QuantizeLinear and DequantizeLinear around matrix products.

A layer `MatMul(x, W)` becomes `MatMul(DQ(Q(x)), DQ(w))`: the weight `w` lies in the file in its
8 bits with a scale for each output channel (axis 1), an input has one scale, and all zero points
are 0, which is the form that TensorRT and TensorRT-RTX compile to an 8-bit product. In attention's
products both operands are activations with one scale each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from uino_deploy.export.calibration import Calibrated, CalibratedPair, weight_scale
from uino_deploy.export.formats import Float32, Format


@dataclass(frozen=True)
class Linear:
    """A MatMul with a constant weight [K, N].

    Attributes:
        name: the node's.
        source: the tensor that it reads.
        weight: the weight's initialiser.
        norm: the LayerNormalization whose output only this layer reads; empty if another node
            makes it.
    """

    name: str
    source: str
    weight: str
    norm: str


def linear_layers(model: onnx.ModelProto) -> list[Linear]:
    """Return a graph's linear layers, in its order."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    read = Counter(name for node in graph.node for name in node.input)
    read.update(value.name for value in graph.output)
    norms = {
        node.output[0]: node.name
        for node in graph.node
        if node.op_type == "LayerNormalization" and read[node.output[0]] == 1
    }
    return [
        Linear(node.name, node.input[0], node.input[1], norms.get(node.input[0], ""))
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]


@dataclass(frozen=True)
class Attention:
    """One attention: softmax(query @ key) @ value.

    Attributes:
        scores: the first product's node.
        mixed: the second's.
        query: the tensor [B, heads, N, width].
        key: the tensor [B, heads, width, N].
        value: the tensor [B, heads, N, width].
    """

    scores: str
    mixed: str
    query: str
    key: str
    value: str


def attentions(model: onnx.ModelProto) -> list[Attention]:
    """Return a graph's attentions, in its order."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for node in model.graph.node:
        softmax = makers.get(node.input[0]) if node.op_type == "MatMul" else None
        scores = makers.get(softmax.input[0]) if softmax and softmax.op_type == "Softmax" else None
        if scores is not None and scores.op_type == "MatMul":
            query, key = scores.input
            found.append(Attention(scores.name, node.name, query, key, node.input[1]))
    return found


def insert_pairs(
    model: onnx.ModelProto, chosen: Mapping[str, CalibratedPair], kind: Format, dtype: np.dtype[Any]
) -> None:
    """Quantise products of two activations in place.

    Args:
        model: the graph.
        chosen: products by their nodes' names.
        kind: the format.
        dtype: the activations' type, which their scales have too.
    """
    made = {}
    for node in model.graph.node:
        if node.name in chosen:
            before = list[onnx.NodeProto]()
            for index, scale in enumerate(chosen[node.name].scales):
                name = f"{node.name}/{index}"
                read, pair = _restored(model.graph, name, node.input[index], scale, dtype, kind)
                node.input[index] = read
                before += pair
            made[node.name] = [*before, node]
    replace_nodes(model.graph, made)


def insert(model: onnx.ModelProto, chosen: Mapping[Linear, Calibrated], kind: Format) -> None:
    """Quantise layers of a graph in place, and fold their smoothings into the norms before them."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    made: dict[str, list[onnx.NodeProto]] = {}
    for layer, how in chosen.items():
        if how.smoothing is not None:
            _fold(graph, nodes[layer.norm], tensors, how.smoothing)
        weight = numpy_helper.to_array(tensors[layer.weight])
        read, before = _restored(graph, layer.name, layer.source, how.scale, weight.dtype, kind)
        own = _weight(graph, layer.name, weight, how, kind)
        nodes[layer.name].input[:] = [read, own.output[0]]
        made[layer.name] = [*before, own, nodes[layer.name]]
    replace_nodes(graph, made)


def replace_nodes(graph: onnx.GraphProto, made: Mapping[str, list[onnx.NodeProto]]) -> None:
    """Put nodes in the place of others, by their names, and drop constants that nothing reads."""
    changed = onnx.GraphProto()
    for node in graph.node:
        changed.node.extend(made.get(node.name, [node]))
    read = {name for node in changed.node for name in node.input}
    changed.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    for field in ("node", "initializer"):
        graph.ClearField(field)
    graph.MergeFrom(changed)


def _restored(
    graph: onnx.GraphProto,
    name: str,
    source: str,
    step: np.float32,
    dtype: np.dtype[Any],
    kind: Format,
) -> tuple[str, list[onnx.NodeProto]]:
    """Add the scale of a tensor; return what to read in its place, and its Q and DQ."""
    scale, zero, inner, outer = (f"{name}/{what}" for what in ("scale", "zero", "stored", "input"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(step, dtype), scale))
    graph.initializer.append(numpy_helper.from_array(np.zeros((), kind.dtype), zero))
    return outer, [
        helper.make_node("QuantizeLinear", [source, scale, zero], [inner], name=f"{name}/quantise"),
        helper.make_node("DequantizeLinear", [inner, scale, zero], [outer], name=f"{name}/restore"),
    ]


def _weight(
    graph: onnx.GraphProto, name: str, weight: npt.NDArray[Any], how: Calibrated, kind: Format
) -> onnx.NodeProto:
    """Add a layer's weight in 8 bits and its scales, in the weight's type; return its DQ."""
    values = weight.astype(np.float32)
    if how.smoothing is not None:
        values = values * how.smoothing[:, None]
    scales = weight_scale(values, kind).astype(weight.dtype)
    constants = {
        f"{name}/weight": kind.stored(values, scales.astype(np.float32)),
        f"{name}/weight_scale": scales,
        f"{name}/weight_zero": np.zeros(scales.shape, kind.dtype),
    }
    graph.initializer.extend(numpy_helper.from_array(v, key) for key, v in constants.items())
    return helper.make_node(
        "DequantizeLinear",
        list(constants),
        [f"{name}/restored_weight"],
        name=f"{name}/restore_weight",
        axis=1,
    )


def _fold(
    graph: onnx.GraphProto,
    norm: onnx.NodeProto,
    tensors: Mapping[str, onnx.TensorProto],
    smoothing: Float32,
) -> None:
    """Divide a norm's gain and bias by a smoothing.

    They become constants of its own: the exporter writes equal ones once, for several norms.
    """
    for index in range(1, len(norm.input)):
        values = numpy_helper.to_array(tensors[norm.input[index]])
        name = f"{norm.name}/smoothed/{index}"
        changed = (values / smoothing).astype(values.dtype)
        graph.initializer.append(numpy_helper.from_array(changed, name))
        norm.input[index] = name
