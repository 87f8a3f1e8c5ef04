"""A float32 piece with chosen nodes in float16: explicit casts where the type changes.

The graph is strongly typed: a tensor's type is the one in the file. A node in float16 takes, holds
and gives float16; what only moves values has the type of what it moves. Images, masks, logits and
predicted IoUs stay float32, and so do our operators' float32 parameters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from msgspec.structs import replace
from onnx import NodeProto, TensorProto, helper, numpy_helper

from uino_deploy.bundle import DType, Edge, Piece
from uino_deploy.export.forecast.blocks import MOVES, element_types
from uino_deploy.export.forecast.rounding import float_places
from uino_deploy.export.onnx_writer import operator_functions
from uino_deploy.kernels.identity import DOMAIN
from uino_deploy.pipeline import QUERY

_HALF, _SINGLE = int(TensorProto.FLOAT16), int(TensorProto.FLOAT)
_NAMES: dict[int, DType] = {_SINGLE: "float32", _HALF: "float16"}


def mixed_piece(
    piece: Piece, model: onnx.ModelProto, halves: Collection[str], taken: Mapping[str, DType]
) -> tuple[Piece, onnx.ModelProto]:
    """Return a piece with some nodes in float16, and its description.

    Args:
        piece: float32.
        model: its graph, with weights.
        halves: names of nodes in the graph that compute in float16. All nodes of our operators are
            of one type, since the model has one function for each.
        taken: element types of the piece's inputs, by name.
    """
    writer = _Writer(model, halves, taken)
    for node in model.graph.node:
        writer.add(node)
    outputs = [_typed(edge, writer.give(edge)) for edge in piece.outputs]
    inputs = [_typed(edge, taken[edge.name]) for edge in piece.inputs]
    graph = helper.make_graph(
        writer.nodes,
        model.graph.name,
        [_value(edge) for edge in inputs],
        [_value(edge) for edge in outputs],
        writer.used_constants(),
    )
    mixed = helper.make_model(
        graph,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        producer_name="uino-deploy",
    )
    mixed.graph.value_info.extend(writer.operator_types())
    opset = next(each.version for each in model.opset_import if each.domain == "")
    mixed.functions.extend(operator_functions(mixed, opset))
    del mixed.graph.value_info[:]
    precision = "fp16" if writer.halved else "fp32"
    return replace(piece, precision=precision, inputs=inputs, outputs=outputs), mixed


def _typed(edge: Edge, dtype: DType) -> Edge:
    return replace(edge, dtype=dtype)


def _value(edge: Edge) -> onnx.ValueInfoProto:
    dtype = _HALF if edge.dtype == "float16" else _SINGLE
    return helper.make_tensor_value_info(edge.name, dtype, edge.shape)


class _Writer:
    """The nodes and constants of a piece as they are written."""

    def __init__(
        self, model: onnx.ModelProto, halves: Collection[str], taken: Mapping[str, DType]
    ) -> None:
        self.nodes: list[NodeProto] = []
        self.halved = False
        self._halves = halves
        self._declared = element_types(model)
        self._types = dict(self._declared)
        for name, dtype in taken.items():
            self._types[name] = _HALF if dtype == "float16" else _SINGLE
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._cast: dict[tuple[str, int], str] = {}
        self._outputs = {value.name for value in model.graph.output}

    def add(self, node: NodeProto) -> None:
        """Add a node in its type, behind the casts that it needs."""
        copy = NodeProto()
        copy.CopyFrom(node)
        places = list(float_places(node, self._declared))
        if places:
            wanted = self._type_of(node, [node.input[place] for place in places])
            self.halved |= wanted == _HALF and node.op_type not in MOVES
            for place in places:
                copy.input[place] = self._in_type(node.input[place], wanted)
            for name in node.output:
                if self._declared.get(name) == _SINGLE:
                    self._types[name] = wanted
        self.nodes.append(copy)

    def give(self, edge: Edge) -> DType:
        """Return an output's type; what leaves the model is cast to float32."""
        if edge.name in QUERY.ends.outputs and self._types[edge.name] == _HALF:
            inner = f"{edge.name}_half"
            for node in self.nodes:
                for names in (node.input, node.output):
                    names[:] = [inner if name == edge.name else name for name in names]
            cast = helper.make_node(
                "Cast", [inner], [edge.name], f"node_{inner}", to=TensorProto.FLOAT
            )
            self.nodes.append(cast)
            return "float32"
        return _NAMES[self._types[edge.name]]

    def operator_types(self) -> list[onnx.ValueInfoProto]:
        """Return the types of what our operators give, which inference does not know."""
        return [
            helper.make_tensor_value_info(name, self._types[name], None)
            for node in self.nodes
            if node.domain == DOMAIN
            for name in node.output
        ]

    def used_constants(self) -> list[TensorProto]:
        """Return the constants that a node takes."""
        used = {name for node in self.nodes for name in node.input}
        return [tensor for name, tensor in self._constants.items() if name in used]

    def _type_of(self, node: NodeProto, operands: Sequence[str]) -> int:
        if node.op_type not in MOVES:
            return _HALF if node.name in self._halves else _SINGLE
        moved = [name for name in operands if name not in self._constants]
        kinds = {self._types[name] for name in moved}
        return _HALF if kinds == {_HALF} else _SINGLE

    def _in_type(self, name: str, wanted: int) -> str:
        if self._types[name] == wanted:
            return name
        if (name, wanted) not in self._cast:
            result = f"{name}_as_{_NAMES[wanted]}"
            self._cast[name, wanted] = result
            self._types[result] = wanted
            if name in self._constants:
                with np.errstate(over="ignore"):
                    values = numpy_helper.to_array(self._constants[name]).astype(np.float16)
                self._constants[result] = numpy_helper.from_array(values, result)
            else:
                cast = helper.make_node("Cast", [name], [result], f"node_{result}", to=wanted)
                self.nodes.append(cast)
        return self._cast[name, wanted]
