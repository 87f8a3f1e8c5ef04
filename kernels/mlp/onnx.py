"""NormMlp in ONNX: its schema, and a portable function for runtimes that lack it."""

import math

import onnx

from uino_deploy.kernels.onnx_domain import normed, operator_function, operator_schema, product

SCHEMA = operator_schema(
    "NormMlp",
    "A volume and what two layers make of its norm, cell by cell.",
    {
        "volume": "[S, hq, wq, hs, ws, D]",
        "norm_weight": "[D]",
        "norm_bias": "[D]",
        "weight1": "[F, D]",
        "bias1": "[F]",
        "weight2": "[D, F]",
        "bias2": "[D]",
    },
    {"out": "[S, hq, wq, hs, ws, D]"},
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: products in its type, float32 else.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    nodes = f"""
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
    """
    return operator_function(SCHEMA, opset, nodes)
