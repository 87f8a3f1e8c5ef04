"""Correlation4d in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx

from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.onnx_domain import operator_function, operator_schema

SCHEMA = operator_schema(
    "Correlation4d",
    "The weighted, pooled, rectified cosine of query and support tokens.",
    {
        "query": "[B, L, Nq, D]",
        "support": "[B or 1, K, L, Ns, D]",
        "weight": "[B or 1, K, Ns]",
    },
    {"volume": "[B, K, L, Nq, h'*w']"},
    attributes=("height", "width", "pool"),
    version=1,  # the domain's version that has it as it is
)


def portable_function(
    height: int, width: int, pool: int, dtype: int, opset: int
) -> onnx.FunctionProto:
    """Return the operator as a function of standard operators, computed in float32.

    Args:
        height: rows of the support grid.
        width: columns of the support grid.
        pool: side of the averaging window.
        dtype: the inputs' type, an `onnx.TensorProto` number.
        opset: the model's opset of standard operators.
    """
    nodes = f"""
        eps = Constant <value = float {{{EPS}}}> ()
        last = Constant <value = int64[1] {{-1}}> ()
        query_32 = Cast <to = 1> (query)
        query_norm = ReduceL2 (query_32, last)
        query_length = Max (query_norm, eps)
        query_unit = Div (query_32, query_length)
        support_32 = Cast <to = 1> (support)
        support_norm = ReduceL2 (support_32, last)
        support_length = Max (support_norm, eps)
        support_unit = Div (support_32, support_length)
        shots = Constant <value = int64[1] {{1}}> ()
        query_shots = Unsqueeze (query_unit, shots)
        support_columns = Transpose <perm = [0, 1, 2, 4, 3]> (support_unit)
        cosine = MatMul (query_shots, support_columns)
        positive = Relu (cosine)
        weight_32 = Cast <to = 1> (weight)
        weight_axes = Constant <value = int64[2] {{2, 3}}> ()
        weight_volume = Unsqueeze (weight_32, weight_axes)
        weighted = Mul (positive, weight_volume)
        plane = Constant <value = int64[4] {{-1, 1, {height}, {width}}}> ()
        planes = Reshape (weighted, plane)
        pooled = AveragePool <kernel_shape = [{pool}, {pool}], strides = [{pool}, {pool}],
            ceil_mode = 1, count_include_pad = 0> (planes)
        lead = Shape <start = 0, end = 4> (weighted)
        shape = Concat <axis = 0> (lead, last)
        volume_32 = Reshape (pooled, shape)
        volume = Cast <to = {dtype}> (volume_32)
    """
    return operator_function(SCHEMA, opset, nodes)
