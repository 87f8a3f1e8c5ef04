"""NormMlp in ONNX: its schema, and a portable function for runtimes that lack it."""

import math

import onnx
from onnx.defs import OpSchema

from uino_deploy.kernels.identity import DOMAIN, VERSION
from uino_deploy.kernels.onnx_domain import FLOATS, PLUGIN_ATTRIBUTES, normed, product

SCHEMA = OpSchema(
    "NormMlp",
    DOMAIN,
    VERSION,
    doc="A volume and what two layers make of its norm, cell by cell.",
    inputs=[
        OpSchema.FormalParameter("volume", "T", "[S, hq, wq, hs, ws, D]"),
        OpSchema.FormalParameter("norm_weight", "T", "[D]"),
        OpSchema.FormalParameter("norm_bias", "T", "[D]"),
        OpSchema.FormalParameter("weight1", "T", "[F, D]"),
        OpSchema.FormalParameter("bias1", "T", "[F]"),
        OpSchema.FormalParameter("weight2", "T", "[D, F]"),
        OpSchema.FormalParameter("bias2", "T", "[D]"),
    ],
    outputs=[OpSchema.FormalParameter("out", "T", "[S, hq, wq, hs, ws, D]")],
    type_constraints=[("T", FLOATS, "floating point")],
    attributes=PLUGIN_ATTRIBUTES,
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: products in its type, float32 else.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    return onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["": {opset}]>
    NormMlp <aot, plugin_namespace, plugin_version>
        (volume, norm_weight, norm_bias, weight1, bias1, weight2, bias2) => (out)
    {{
        half = Constant <value = float {{0.5}}> ()
        unit = Constant <value = float {{1.0}}> ()
        root = Constant <value = float {{{math.sqrt(2)}}}> ()
        {normed("volume", "norm_weight", "norm_bias", "normed")}
        {product("normed", "weight1", "first", dtype)}
        first_32 = Cast <to = 1> (first)
        offset1 = Cast <to = 1> (bias1)
        hidden = Add (first_32, offset1)
        scaled = Div (hidden, root)
        integral = Erf (scaled)
        shifted = Add (integral, unit)
        share = Mul (half, shifted)
        active = Mul (hidden, share)
        {product("active", "weight2", "second", dtype)}
        second_32 = Cast <to = 1> (second)
        offset2 = Cast <to = 1> (bias2)
        added = Add (second_32, offset2)
        out_32 = Add (normed_of, added)
        out = Cast <to = {dtype}> (out_32)
    }}
    """)
