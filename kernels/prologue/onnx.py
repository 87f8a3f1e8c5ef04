"""ScanPrologue in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.onnx_domain import (
    PLANE_SIZES,
    normed,
    operator_function,
    operator_schema,
    product,
)

SCHEMA = operator_schema(
    "ScanPrologue",
    "What a scan takes: the norm, the projection and the convolution of one plane of a volume.",
    {
        "volume": "[S, hq, wq, hs, ws, D]",
        "norm_weight": "[D]",
        "norm_bias": "[D]",
        "in_weight": "[D, D]",
        "conv_weight": "[D, 3, 3]",
        "conv_bias": "[D]",
        "projection": "[4, P, D]",
    },
    {"x": "[S', H, W, D]", "packed": "[S', H, W, 4, P]"},
    # `channels` for the function alone: Conv's number of groups must be an attribute.
    attributes=("plane", "channels"),
)


def portable_function(dtype: int, opset: int) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators: products in its type, float32 else.

    Args:
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    nodes = f"""
        {PLANE_SIZES}
        directions = Constant <value = int64[1] {{{DIRECTIONS}}}> ()
        width = Shape <start = 1, end = 2> (projection)
        query_height_if_query = Mul (query_height, over_query)
        query_width_if_query = Mul (query_width, over_query)
        support_height_if_support = Mul (support_height, over_support)
        support_width_if_support = Mul (support_width, over_support)
        H = Add (query_height_if_query, support_height_if_support)
        W = Add (query_width_if_query, support_width_if_support)
        {normed("volume", "norm_weight", "norm_bias", "normed")}
        {product("normed", "in_weight", "inner", dtype)}
        inner_32 = Cast <to = 1> (inner)
        split_sizes = Concat <axis = 0> (shots, second, third, fourth, channels_size)
        split = Reshape (inner_32, split_sizes)
        channels_first = Transpose <perm = [0, 2, 4, 1, 3]> (split)
        plane_sizes = Concat <axis = 0> (all, channels_size, H, W)
        planes = Reshape (channels_first, plane_sizes)
        kernels_32 = Cast <to = 1> (conv_weight)
        kernels = Unsqueeze (kernels_32, one)
        offsets = Cast <to = 1> (conv_bias)
        convolved = Conv <group: int = @channels, kernel_shape = [3, 3], pads = [1, 1, 1, 1]>
            (planes, kernels, offsets)
        share = Sigmoid (convolved)
        active = Mul (convolved, share)
        x_32 = Transpose <perm = [0, 2, 3, 1]> (active)
        x = Cast <to = {dtype}> (x_32)
        row_sizes = Concat <axis = 0> (all, channels_size)
        rows = Reshape (projection, row_sizes)
        {product("x", "rows", "packed_rows", dtype)}
        packed_sizes = Concat <axis = 0> (all, H, W, directions, width)
        packed = Reshape (packed_rows, packed_sizes)
    """
    return operator_function(SCHEMA, opset, nodes)
