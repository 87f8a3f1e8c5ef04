"""Blocks rewritten so that chosen nodes compute on rounded values, as another type's hardware does.

Rounding is exact, and done by the graph itself; sums stay float32:

    fp16, bf16  every float input and output of the node is rounded to nearest, ties to even; what
                is too large becomes infinite. Sums, norms and softmax are float32 inside, as on
                tensor cores and in our kernels, whose float32 parameters stay float32
    tf32        inputs of a product have 10 bits of fraction, to nearest; its output is float32
    int8        inputs of a product are whole multiples of a scale, -127 to 127, symmetric
    fp8         inputs of a product are scaled to at most 448 and rounded to e4m3

In int8 and fp8 a weight has one scale for each output channel, an activation one for each token (a
convolution's: one for all), the largest magnitude of these images; the output is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from uino_deploy.export.forecast.blocks import Block, Node, integers
from uino_deploy.export.formats import FORMATS, Float32
from uino_deploy.kernels.identity import DOMAIN

Kind = Literal["fp16", "bf16", "tf32", "int8", "fp8"]

KINDS: tuple[Kind, ...] = get_args(Kind)
HALVES: tuple[Kind, ...] = ("fp16", "bf16")
LARGEST: dict[Kind, float] = {"fp16": 65504.0, "bf16": 3.3895314e38}
SMALLEST_NORMAL: dict[Kind, float] = {"fp16": 2.0**-14, "bf16": 2.0**-126}

_ONNX = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SPLIT = float(2**13 + 1)  # Veltkamp's: leaves 11 of 24 bits
_FP8_OPSET = 19  # the first whose Cast knows float8
_TINY = 1e-30

# The axes that share a scale; None is all of them.
Axes = tuple[int, ...] | None


def applies(node: Node, kind: Kind) -> bool:
    """Return whether a node has a form in a type: only products have others than halves."""
    return node.product or kind in HALVES


def rounded(block: Block, kinds: Mapping[str, Kind]) -> onnx.ModelProto:
    """Return a block in which some nodes compute in other types.

    Args:
        block: float32.
        kinds: nodes' names and types; nodes of other blocks and forms that do not exist are
            ignored.
    """
    chosen = {n.proto.name: kinds[n.name] for n in block.nodes if n.name in kinds}
    writer = _Writer(block)
    for node in block.model.graph.node:
        kind = chosen.get(node.name)
        writer.add(node, kind if kind in HALVES or node.op_type in _OPERANDS else None)
    model = onnx.ModelProto()
    model.CopyFrom(block.model)
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(writer.nodes)
    used = {name for node in writer.nodes for name in node.input}
    model.graph.initializer.extend(t for n, t in writer.constants.items() if n in used)
    if "fp8" in chosen.values():
        for opset in [*model.opset_import, *(o for f in model.functions for o in f.opset_import)]:
            if opset.domain == "":
                opset.version = max(opset.version, _FP8_OPSET)
    return model


def float_operands(block: Block, node: NodeProto) -> Iterator[tuple[int, str]]:
    """Yield the inputs that have a node's own floating type: place and name."""
    for place in float_places(node, block.types):
        yield place, node.input[place]


def float_places(node: NodeProto, types: Mapping[str, int]) -> Iterator[int]:
    """Yield the places of the inputs that have a node's own floating type.

    Our operators have float32 parameters, which keep their type.

    Args:
        node: of a float32 graph.
        types: element types of the graph's tensors.
    """
    fixed = set()
    if node.domain == DOMAIN:
        schema = onnx.defs.get_schema(node.op_type, domain=DOMAIN)
        fixed = {i for i, each in enumerate(schema.inputs) if each.type_str == "tensor(float)"}
    for place, name in enumerate(node.input):
        if name and place not in fixed and types.get(name) == TensorProto.FLOAT:
            yield place


def _matmul(_node: NodeProto) -> list[Axes]:
    return [(-1,), (-2,)]


def _gemm(node: NodeProto) -> list[Axes]:
    own = integers(node)
    return [(-2,) if own.get("transA") else (-1,), (-1,) if own.get("transB") else (-2,)]


# Of each product the two operands, by the axes that share a scale.
_OPERANDS: dict[str, Callable[[NodeProto], list[Axes]]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": lambda _: [None, (1, 2, 3)],
    "ConvTranspose": lambda _: [None, (0, 2, 3)],
}


class _Writer:
    """The nodes and constants of a block as it is rewritten; each rounding is written once."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.nodes: list[NodeProto] = []
        self.constants = block.constants
        self._done: dict[tuple[str, Kind, Axes], str] = {}
        self._rounded: set[tuple[str, Kind]] = set()

    def add(self, node: NodeProto, kind: Kind | None) -> None:
        """Add a node, rounded if it has a type."""
        copy = NodeProto()
        copy.CopyFrom(node)
        self.nodes.append(copy)
        if kind is None:
            return
        self.nodes.pop()
        if kind in HALVES:
            for place, name in float_operands(self.block, node):
                copy.input[place] = self._input(name, kind, None)
            self.nodes.append(copy)
            self._outputs(copy, kind)
        else:
            for place, axes in enumerate(_OPERANDS[node.op_type](node)):
                copy.input[place] = self._input(node.input[place], kind, axes)
            self.nodes.append(copy)

    def _input(self, name: str, kind: Kind, axes: Axes) -> str:
        if (name, kind) in self._rounded:
            return name
        key = (name, kind, axes)
        if key not in self._done:
            result = self._done[key] = f"{name}~{kind}{len(self._done)}"
            if name in self.constants:
                values = numpy_helper.to_array(self.constants[name])
                self.constants[result] = numpy_helper.from_array(
                    round_array(values, kind, axes), result
                )
            else:
                self._round(name, result, kind, axes)
        return self._done[key]

    def _outputs(self, node: NodeProto, kind: Kind) -> None:
        for place, name in enumerate(node.output):
            if name and self.block.types.get(name) == TensorProto.FLOAT:
                node.output[place] = f"{name}~exact"
                self._round(f"{name}~exact", name, kind, None)
                self._rounded.add((name, kind))

    def _round(self, name: str, result: str, kind: Kind, axes: Axes) -> None:
        if kind in HALVES:
            self._emit("Cast", [name], f"{result}~half", to=_ONNX[kind])
            self._emit("Cast", [f"{result}~half"], result, to=TensorProto.FLOAT)
        elif kind == "tf32":
            self._emit("Mul", [name, self._number(_SPLIT)], f"{result}~wide")
            self._emit("Sub", [f"{result}~wide", name], f"{result}~rest")
            self._emit("Sub", [f"{result}~wide", f"{result}~rest"], result)
        else:
            self._scaled(name, result, kind, axes)

    def _scaled(self, name: str, result: str, kind: Kind, axes: Axes) -> None:
        self._emit("Abs", [name], f"{result}~abs")
        reduced = [f"{result}~abs"]
        if axes is not None:
            reduced.append(self._constant(np.array(axes, np.int64)))
        self._emit("ReduceMax", reduced, f"{result}~max", keepdims=1)
        self._emit("Max", [f"{result}~max", self._number(_TINY)], f"{result}~least")
        self._emit("Div", [f"{result}~least", self._number(FORMATS[kind].top)], f"{result}~scale")
        self._emit("Div", [name, f"{result}~scale"], f"{result}~steps")
        if kind == "int8":
            self._emit("Round", [f"{result}~steps"], f"{result}~whole")
        else:
            self._emit("Cast", [f"{result}~steps"], f"{result}~eight", to=TensorProto.FLOAT8E4M3FN)
            self._emit("Cast", [f"{result}~eight"], f"{result}~whole", to=TensorProto.FLOAT)
        self._emit("Mul", [f"{result}~whole", f"{result}~scale"], result)

    def _emit(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _constant(self, value: npt.NDArray[Any]) -> str:
        name = f"~{value.dtype}{value.tolist()}"
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name


def round_array(values: npt.NDArray[Any], kind: Kind, axes: Axes = None) -> Float32:
    """Round values as the graphs do.

    Args:
        values: float32, of any shape.
        kind: the type.
        axes: those that share a scale in int8 and fp8; None is all.

    Returns:
        float32, of the same shape.
    """
    exact: Float32 = np.asarray(values, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "fp16":
            return exact.astype(np.float16).astype(np.float32)
        if kind == "bf16":
            return exact.astype(ml_dtypes.bfloat16).astype(np.float32)
        if kind == "tf32":
            wide = exact * np.float32(_SPLIT)
            return (wide - (wide - exact)).astype(np.float32)
    largest = np.abs(exact).max(axis=axes, keepdims=True, initial=0.0)
    scale = np.maximum(largest, np.float32(_TINY)) / np.float32(FORMATS[kind].top)
    return FORMATS[kind].rounded(exact, scale)
