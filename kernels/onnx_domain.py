"""What the operators' ONNX forms share: their schemas, signatures, and parts of their functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx
from onnx.defs import OpSchema

from uino_deploy.kernels.identity import DOMAIN, NORM_EPS, VERSION

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]

# Declared for `plugins.names.PLUGIN`, which every node carries.
_PLUGIN_ATTRIBUTES = [
    OpSchema.Attribute("aot", OpSchema.AttrType.INT, required=True),
    OpSchema.Attribute("plugin_namespace", OpSchema.AttrType.STRING, required=True),
    OpSchema.Attribute("plugin_version", OpSchema.AttrType.STRING, required=True),
]

# Nodes of a function with the attribute `plane` and the input volume [S, hq, wq, hs, ws, D].
#
# A function cannot choose a permutation by an attribute, only sizes. So the volume is seen as
# [S, second, third, fourth, D]: hq*wq, hs*ws, 1 for the query's plane, and 1, hq*wq, hs*ws for the
# support's. Exchanging the second axis and the third then makes planes of either, and moves nothing
# where they are planes already.
PLANE_SIZES = """
        all = Constant <value = int64[1] {-1}> ()
        one = Constant <value = int64[1] {1}> ()
        plane_number = Constant <value_int: int = @plane> ()
        over_support = Reshape (plane_number, one)
        over_query = Sub (one, over_support)
        shots = Shape <start = 0, end = 1> (volume)
        query_height = Shape <start = 1, end = 2> (volume)
        query_width = Shape <start = 2, end = 3> (volume)
        support_height = Shape <start = 3, end = 4> (volume)
        support_width = Shape <start = 4, end = 5> (volume)
        channels_size = Shape <start = 5, end = 6> (volume)
        query_cells = Mul (query_height, query_width)
        support_cells = Mul (support_height, support_width)
        query_if_query = Mul (query_cells, over_query)
        query_if_support = Mul (query_cells, over_support)
        support_if_query = Mul (support_cells, over_query)
        support_if_support = Mul (support_cells, over_support)
        second = Add (query_if_query, over_support)
        third = Add (support_if_query, query_if_support)
        fourth = Add (over_query, support_if_support)
"""


def operator_schema(
    name: str,
    doc: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    *,
    attributes: Collection[str] = (),
    float32: Collection[str] = (),
    version: int = VERSION,
) -> OpSchema:
    """Return an operator's schema.

    Args:
        name: the operator's.
        doc: what it computes.
        inputs: their shapes by name, in the node's order.
        outputs: likewise.
        attributes: its own, all of them integers; the plugin's are added.
        float32: the inputs of this type; all else has the operator's own floating type.
        version: the domain's version that has the operator as it is.
    """
    taken, given = (
        [
            OpSchema.FormalParameter(tensor, "tensor(float)" if tensor in float32 else "T", shape)
            for tensor, shape in group.items()
        ]
        for group in (inputs, outputs)
    )
    own = [OpSchema.Attribute(each, OpSchema.AttrType.INT, required=True) for each in attributes]
    return OpSchema(
        name,
        DOMAIN,
        version,
        doc=doc,
        inputs=taken,
        outputs=given,
        type_constraints=[("T", _FLOATS, "floating point")],
        attributes=[*own, *_PLUGIN_ATTRIBUTES],
    )


def operator_function(schema: OpSchema, opset: int, nodes: str) -> onnx.FunctionProto:
    """Return an operator's portable function, whose signature is the schema's.

    Args:
        schema: of the operator.
        opset: the model's opset of standard operators.
        nodes: the body in ONNX's textual syntax.
    """
    attributes = ", ".join(sorted(schema.attributes))
    inputs, outputs = (
        ", ".join(tensor.name for tensor in group) for group in (schema.inputs, schema.outputs)
    )
    return onnx.parser.parse_function(f"""
    <domain: "{DOMAIN}", opset_import: ["": {opset}]>
    {schema.name} <{attributes}> ({inputs}) => ({outputs}) {{{nodes}}}
    """)


def normed(name: str, weight: str, bias: str, result: str) -> str:
    """Return nodes that normalise the last axis of `name` in float32."""
    return f"""
        {result}_of = Cast <to = 1> ({name})
        {result}_scale = Cast <to = 1> ({weight})
        {result}_shift = Cast <to = 1> ({bias})
        {result} = LayerNormalization <axis = -1, epsilon = {NORM_EPS}>
            ({result}_of, {result}_scale, {result}_shift)
    """


def product(name: str, weight: str, result: str, dtype: int) -> str:
    """Return nodes that give weight @ `name`, operands and result in `dtype`.

    In a half type such a product runs on tensor cores; a product of float32 would not.
    """
    return f"""
        {result}_operand = Cast <to = {dtype}> ({name})
        {result}_columns = Transpose <perm = [1, 0]> ({weight})
        {result} = MatMul ({result}_operand, {result}_columns)
    """
