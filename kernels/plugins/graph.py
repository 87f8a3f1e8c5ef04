"""An exported model as TensorRT must see it for the plugins to be used, and nothing else."""

from __future__ import annotations

import onnx

from uino_deploy.errors import BuildError
from uino_deploy.kernels.onnx_domain import DOMAIN, PLUGIN
from uino_deploy.kernels.plugins.library import OPERATORS


def onnx_for_plugins(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose operators only plugins can compute: without their function bodies.

    Where a node has a body, TensorRT up to 10.6 always expands it, and later versions do so
    silently whenever the plugin is not found; without one, a missing plugin is the parser's error.
    External weights stay where they are: parse with the original file's path.

    Args:
        model: a piece, in memory; its external weights need not be loaded.

    Raises:
        BuildError: a node is of no known operator, or lacks an attribute. TensorRT skips a missing
            one, and gives each later value to the attribute before it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.functions[:]
    copy.functions.extend(f for f in model.functions if f.domain != DOMAIN)
    names = {node.name for node in copy.graph.node}
    for index, node in enumerate(copy.graph.node):
        if node.domain == DOMAIN:
            _check(node)
            if not node.name:  # the engine's inspector names layers after their nodes
                node.name = _unused(f"{node.op_type}_{index}", names)
                names.add(node.name)
    return copy


def plugin_nodes(model: onnx.ModelProto) -> dict[str, str]:
    """Return the plugin of each node that needs one: node name -> operator."""
    return {node.name: node.op_type for node in model.graph.node if node.domain == DOMAIN}


def _check(node: onnx.NodeProto) -> None:
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        raise BuildError(
            f"node {node.name}: {DOMAIN}::{node.op_type} has no plugin; there are "
            f"{', '.join(OPERATORS)}"
        )
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name in (*operator.attributes, *PLUGIN):
        if name not in given:
            raise BuildError(f"node {node.name}: {node.op_type} has no attribute {name}")
    for name, wanted in PLUGIN.items():
        value = given[name].decode() if isinstance(given[name], bytes) else given[name]
        if value != wanted:
            raise BuildError(f"node {node.name}: {name} is {value!r}, not {wanted!r}")
    if len(node.input) != len(operator.inputs):
        raise BuildError(
            f"node {node.name}: {len(node.input)} inputs, {node.op_type} has {len(operator.inputs)}"
        )


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
