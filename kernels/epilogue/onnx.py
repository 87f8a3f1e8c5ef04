"""ScanEpilogue in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx

from uino_deploy.kernels.onnx_domain import (
    PLANE_SIZES,
    normed,
    operator_function,
    operator_schema,
    product,
)

SCHEMA = operator_schema(
    "ScanEpilogue",
    "What follows a scan: the norm, the gate, the projection and the residual.",
    {
        "y": "[S', H, W, D]",
        "volume": "[S, hq, wq, hs, ws, D]",
        "norm_weight": "[D]",
        "norm_bias": "[D]",
        "gate_weight": "[D, D]",
        "out_norm_weight": "[D]",
        "out_norm_bias": "[D]",
        "projection": "[D, D]",
    },
    {"out": "[S, hq, wq, hs, ws, D]"},
    attributes=("plane",),
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: products in its type, float32 else.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    nodes = f"""
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
    """
    return operator_function(SCHEMA, opset, nodes)
