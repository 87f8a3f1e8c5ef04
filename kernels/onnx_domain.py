"""Common parts of the operators' ONNX nodes: types, and the request for a plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx.defs import OpSchema

from uino_deploy.kernels.plugins import names

if TYPE_CHECKING:
    from collections.abc import Mapping

FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]

# TensorRT 10.15+ replaces a function by a plugin only if the node names a namespace;
# `aot` selects the ahead-of-time plugin (onnx-tensorrt, importerUtils.cpp). Others ignore both.
PLUGIN: Mapping[str, int | str] = {
    "aot": 1,
    "plugin_namespace": names.NAMESPACE,
    "plugin_version": names.VERSION,
}

PLUGIN_ATTRIBUTES = [
    OpSchema.Attribute("aot", OpSchema.AttrType.INT, required=True),
    OpSchema.Attribute("plugin_namespace", OpSchema.AttrType.STRING, required=True),
    OpSchema.Attribute("plugin_version", OpSchema.AttrType.STRING, required=True),
]
