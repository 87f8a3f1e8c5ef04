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
from uino_deploy.export.formats import Format


@dataclass(frozen=True)
class Linears:
    """The MatMuls with constant weights [K, N] that read one tensor.

    Attributes:
        source: the tensor that they read.
        names: the nodes' names.
        weights: their weights' initialisers.
        norm: the LayerNormalization whose output only they read; empty if another node makes it.
    """

    source: str
    names: tuple[str, ...]
    weights: tuple[str, ...]
    norm: str


def linear_layers(model: onnx.ModelProto) -> list[Linears]:
    """Return a graph's linear layers, in its order."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in constants:
            found.setdefault(node.input[0], []).append(node)
    read = Counter(name for node in graph.node for name in node.input)
    read.update(value.name for value in graph.output)
    norms = {n.output[0]: n.name for n in graph.node if n.op_type == "LayerNormalization"}
    return [
        Linears(
            source,
            tuple(node.name for node in nodes),
            tuple(node.input[1] for node in nodes),
            norms.get(source, "") if read[source] == len(nodes) else "",
        )
        for source, nodes in found.items()
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


def insert(model: onnx.ModelProto, chosen: Mapping[Linears, Calibrated], kind: Format) -> None:
    """Quantise layers of a graph in place, and fold their smoothings into the norms before them."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes = {node.name: node for node in graph.node}
    made: dict[str, list[onnx.NodeProto]] = {}
    for layers, how in chosen.items():
        if how.smoothing is not None:
            for name in nodes[layers.norm].input[1:]:
                _replace(tensors[name], numpy_helper.to_array(tensors[name]) / how.smoothing)
        read, before = layers.source, list[onnx.NodeProto]()
        for name, weight in zip(layers.names, layers.weights, strict=True):
            values = numpy_helper.to_array(tensors[weight])
            if not before:
                read, before = _restored(graph, name, layers.source, how.scale, values.dtype, kind)
                made[name] = before
            own = _weight(graph, name, values, how, kind)
            nodes[name].input[:] = [read, own.output[0]]
            made[name] = [*made.get(name, ()), own, nodes[name]]
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


def _replace(tensor: onnx.TensorProto, values: npt.NDArray[Any]) -> None:
    dtype = numpy_helper.to_array(tensor).dtype
    tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype), tensor.name))
