"""An operator alone in an ONNX file: the node that the exporter writes, with its function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from uino_deploy.export.opsets import DEFAULT_OPSET, IR_VERSION
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.plugins.expressions import Numbers, evaluate
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.kernels.selective_scan import onnx as selective_scan

OUTPUT = "out"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}


def operator_model(
    operator: Operator,
    attributes: Mapping[str, int],
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
) -> onnx.ModelProto:
    """Return a model of one call of an operator, with its portable ONNX function.

    Its inputs have the operator's names and its output is `OUTPUT`. All are float32, since numpy
    has no bfloat16; in half types a cast stands before and behind the node.

    Args:
        operator: which.
        attributes: the call's own; those that ask for a plugin are added.
        shapes: of the inputs.
        dtype: the element type in which it computes, such as "float16".
    """
    names, nodes = [], []
    for tensor, kind in zip(operator.inputs, operator.types(dtype), strict=False):
        name = tensor.name if kind == "float32" else f"{tensor.name}_{kind}"
        names.append(name)
        if name != tensor.name:
            nodes.append(helper.make_node("Cast", [tensor.name], [name], to=_TYPES[kind]))
    result = OUTPUT if dtype == "float32" else f"{OUTPUT}_{dtype}"
    node = helper.make_node(
        operator.name, names, [result], f"node_{operator.kernel}", domain=DOMAIN
    )
    for key, value in {**attributes, **PLUGIN}.items():
        node.attribute.append(helper.make_attribute(key, value))
    nodes.append(node)
    if result != OUTPUT:
        nodes.append(helper.make_node("Cast", [result], [OUTPUT], to=TensorProto.FLOAT))
    inputs = [helper.make_tensor_value_info(t.name, 1, shapes[t.name]) for t in operator.inputs]
    output = helper.make_tensor_value_info(
        OUTPUT, TensorProto.FLOAT, output_shape(operator, attributes, shapes)
    )
    return helper.make_model(
        helper.make_graph(nodes, operator.kernel, inputs, [output]),
        opset_imports=[
            helper.make_opsetid("", DEFAULT_OPSET),
            helper.make_opsetid(DOMAIN, VERSION),
        ],
        functions=[_function(operator, attributes, dtype)],
        ir_version=IR_VERSION,
    )


def output_shape(
    operator: Operator, attributes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> list[int]:
    """Return the size of an operator's result for concrete shapes."""
    return [evaluate(e, Numbers(shapes)) for e in operator.output_shape(attributes)]


def _function(operator: Operator, attributes: Mapping[str, int], dtype: str) -> onnx.FunctionProto:
    if operator.name == correlation.SCHEMA.name:
        return correlation.portable_function(**attributes, dtype=_TYPES[dtype], opset=DEFAULT_OPSET)
    return selective_scan.portable_function(_TYPES[dtype], DEFAULT_OPSET)
