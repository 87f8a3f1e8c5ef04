"""An operator alone in an ONNX file: the node that the exporter writes, with its function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import TensorProto, helper

from uino_deploy.export.opsets import DEFAULT_OPSET, IR_VERSION
from uino_deploy.kernels.correlation import onnx as correlation
from uino_deploy.kernels.epilogue import onnx as epilogue
from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.mlp import onnx as norm_mlp
from uino_deploy.kernels.plugins.names import PLUGIN
from uino_deploy.kernels.plugins.operator import Operator
from uino_deploy.kernels.prologue import onnx as prologue
from uino_deploy.kernels.selective_scan import onnx as selective_scan

_FUNCTIONS = {
    module.SCHEMA.name: module.portable_function
    for module in (prologue, selective_scan, epilogue, norm_mlp)
}
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

    Its inputs and outputs have the operator's names. All are float32, since numpy has no bfloat16;
    in half types casts stand before and behind the node.

    Args:
        operator: which.
        attributes: the call's own; those that ask for a plugin are added.
        shapes: of the inputs.
        dtype: the element type in which it computes, such as "float16".
    """
    kinds = operator.types(dtype)
    tensors = [*operator.inputs, *operator.outputs]
    own = {
        t.name: t.name if k == "float32" else f"{t.name}_{k}"
        for t, k in zip(tensors, kinds, strict=True)
    }
    taken, given = ([own[t.name] for t in group] for group in (operator.inputs, operator.outputs))
    node = helper.make_node(operator.name, taken, given, f"node_{operator.kernel}", domain=DOMAIN)
    for key, value in {**attributes, **_more(operator, shapes), **PLUGIN}.items():
        node.attribute.append(helper.make_attribute(key, value))
    before = [
        helper.make_node("Cast", [t.name], [own[t.name]], to=_TYPES[dtype])
        for t in operator.inputs
        if own[t.name] != t.name
    ]
    after = [
        helper.make_node("Cast", [own[t.name]], [t.name], to=TensorProto.FLOAT)
        for t in operator.outputs
        if own[t.name] != t.name
    ]
    sizes = operator.sizes(attributes, shapes)
    outputs = [_float32(t.name, size) for t, size in zip(operator.outputs, sizes, strict=True)]
    inputs = [_float32(t.name, shapes[t.name]) for t in operator.inputs]
    return helper.make_model(
        helper.make_graph([*before, node, *after], operator.kernel, inputs, outputs),
        opset_imports=[
            helper.make_opsetid("", DEFAULT_OPSET),
            helper.make_opsetid(DOMAIN, VERSION),
        ],
        functions=[_function(operator, attributes, dtype)],
        ir_version=IR_VERSION,
    )


def _float32(name: str, size: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, size)


def _function(operator: Operator, attributes: Mapping[str, int], dtype: str) -> onnx.FunctionProto:
    if operator.name == correlation.SCHEMA.name:
        return correlation.portable_function(**attributes, dtype=_TYPES[dtype], opset=DEFAULT_OPSET)
    return _FUNCTIONS[operator.name](_TYPES[dtype], DEFAULT_OPSET)


def _more(operator: Operator, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the attributes that only the function reads."""
    return {"channels": shapes["volume"][-1]} if operator.name == prologue.SCHEMA.name else {}
