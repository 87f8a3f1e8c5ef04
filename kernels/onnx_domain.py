"""What the operators' ONNX nodes share: types, and the attributes that request a plugin."""

from __future__ import annotations

from onnx.defs import OpSchema

FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]

# Declared for `plugins.names.PLUGIN`, which every node carries.
PLUGIN_ATTRIBUTES = [
    OpSchema.Attribute("aot", OpSchema.AttrType.INT, required=True),
    OpSchema.Attribute("plugin_namespace", OpSchema.AttrType.STRING, required=True),
    OpSchema.Attribute("plugin_version", OpSchema.AttrType.STRING, required=True),
]
