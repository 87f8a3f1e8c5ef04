"""The node at which a machine departs from what its graph says, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from uino_deploy.export.forecast.blocks import MOVES
from uino_deploy.tolerances import relative_l2

Array = npt.NDArray[Any]
# Builds a model and runs it on named inputs: on a device, or for comparison on the CPU.
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], Mapping[str, Array]]

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def first_departure(
    model: onnx.ModelProto, feeds: Mapping[str, Array], device: Run, cpu: Run, allowed: float
) -> str:
    """Return the first node of a piece whose output on a device is wrong; "" if none is.

    The outputs of nodes are marked one at a time, in a bisection over the graph's order, so the
    device builds about the logarithm of the number of nodes. It finds a departure that the later
    nodes carry on, as one does that spoils the piece's output.

    Args:
        model: the piece as it was built, with its weights.
        feeds: its inputs.
        device: runs a model on the suspected machine.
        cpu: runs it on a trusted one.
        allowed: the largest relative L2 difference of a tensor between the two.
    """
    marks = _marks(model)
    wanted = cpu(_marked(model, [name for _, name, _ in marks]), feeds)

    def wrong(place: int) -> bool:
        _, name, _ = marks[place]
        got = device(_marked(model, [name]), feeds)[name]
        return not relative_l2(got, wanted[name]) <= allowed

    low, high = 0, len(marks) - 1
    if not marks or not wrong(high):
        return ""
    while low < high:
        middle = (low + high) // 2
        if wrong(middle):
            high = middle
        else:
            low = middle + 1
    return marks[low][0]


def _marks(model: onnx.ModelProto) -> list[tuple[str, str, int]]:
    """Return the nodes whose results the last output depends on: name, result and its type."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.output)
    }
    needed, found = {model.graph.output[0].name}, []
    for node in reversed(model.graph.node):
        if needed.isdisjoint(node.output):
            continue
        needed.update(node.input)
        if node.op_type not in MOVES and types.get(node.output[0]) in _FLOATS:
            found.append((node.name, node.output[0], types[node.output[0]]))
    return found[::-1]


def _marked(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a model that gives some inner tensors in place of its outputs."""
    types = {name: dtype for _, name, dtype in _marks(model)}
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    del marked.graph.output[:]
    marked.graph.output.extend(
        helper.make_tensor_value_info(name, types[name], None) for name in dict.fromkeys(names)
    )
    return marked
