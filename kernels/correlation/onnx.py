"""Correlation4d in ONNX: its schema, and a portable function for runtimes that lack it."""

import onnx
from onnx.defs import OpSchema

from uino_deploy.kernels.identity import DOMAIN, EPS
from uino_deploy.kernels.onnx_domain import FLOATS, PLUGIN_ATTRIBUTES

SCHEMA = OpSchema(
    "Correlation4d",
    DOMAIN,
    1,  # the domain's version that has it as it is
    doc="The weighted, pooled, rectified cosine of query and support tokens.",
    inputs=[
        OpSchema.FormalParameter("query", "T", "[B, L, Nq, D]"),
        OpSchema.FormalParameter("support", "T", "[B or 1, K, L, Ns, D]"),
        OpSchema.FormalParameter("weight", "T", "[B or 1, K, Ns]"),
    ],
    outputs=[OpSchema.FormalParameter("volume", "T", "[B, K, L, Nq, h'*w']")],
    type_constraints=[("T", FLOATS, "floating point")],
    attributes=[
        *(
            OpSchema.Attribute(name, OpSchema.AttrType.INT, required=True)
            for name in ("height", "width", "pool")
        ),
        *PLUGIN_ATTRIBUTES,
    ],
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
    return onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["": {opset}]>
    Correlation4d <height, width, pool, aot, plugin_namespace, plugin_version>
        (query, support, weight) => (volume)
    {{
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
    }}
    """)
