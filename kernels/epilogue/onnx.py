"""ScanEpilogue in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx
from onnx.defs import OpSchema

from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.onnx_domain import (
    FLOATS,
    PLANE_SIZES,
    PLUGIN_ATTRIBUTES,
    normed,
    product,
)

SCHEMA = OpSchema(
    "ScanEpilogue",
    DOMAIN,
    VERSION,
    doc="What follows a scan: the norm, the gate, the projection and the residual.",
    inputs=[
        OpSchema.FormalParameter("y", "T", "[S', H, W, D]"),
        OpSchema.FormalParameter("volume", "T", "[S, hq, wq, hs, ws, D]"),
        OpSchema.FormalParameter("norm_weight", "T", "[D]"),
        OpSchema.FormalParameter("norm_bias", "T", "[D]"),
        OpSchema.FormalParameter("gate_weight", "T", "[D, D]"),
        OpSchema.FormalParameter("out_norm_weight", "T", "[D]"),
        OpSchema.FormalParameter("out_norm_bias", "T", "[D]"),
        OpSchema.FormalParameter("projection", "T", "[D, D]"),
    ],
    outputs=[OpSchema.FormalParameter("out", "T", "[S, hq, wq, hs, ws, D]")],
    type_constraints=[("T", FLOATS, "floating point")],
    attributes=[
        OpSchema.Attribute("plane", OpSchema.AttrType.INT, required=True),
        *PLUGIN_ATTRIBUTES,
    ],
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: products in its type, float32 else.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    return onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["": {opset}]>
    ScanEpilogue <plane, aot, plugin_namespace, plugin_version>
        (y, volume, norm_weight, norm_bias, gate_weight, out_norm_weight, out_norm_bias, projection)
        => (out)
    {{
        {PLANE_SIZES}
        {normed("y", "out_norm_weight", "out_norm_bias", "scanned")}
        plane_sizes = Concat <axis = 0> (shots, third, second, fourth, channels_size)
        planes = Reshape (scanned, plane_sizes)
        split = Transpose <perm = [0, 2, 1, 3, 4]> (planes)
        volume_sizes = Shape (volume)
        by_cell = Reshape (split, volume_sizes)
        {normed("volume", "norm_weight", "norm_bias", "normed")}
        {product("normed", "gate_weight", "gate", dtype)}
        gate_32 = Cast <to = 1> (gate)
        share = Sigmoid (gate_32)
        open = Mul (gate_32, share)
        gated = Mul (by_cell, open)
        {product("gated", "projection", "added", dtype)}
        added_32 = Cast <to = 1> (added)
        out_32 = Add (normed_of, added_32)
        out = Cast <to = {dtype}> (out_32)
    }}
    """)
