"""Correlation4d in OpenVINO's own operators, for static shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from uino_deploy.kernels.identity import EPS
from uino_deploy.kernels.openvino_nodes import float32, integers


def correlation4d(node: Any) -> list[Any]:
    """Convert the node: [B,L,Nq,D], [.,K,L,Ns,D], [.,K,Ns] -> [B,K,L,Nq,h'*w']."""
    import openvino.opset13 as op

    query, support, weight = (node.get_input(i) for i in range(3))
    pool = node.get_attribute("pool")
    batch, layers, count, _ = query.get_shape()
    shots, tokens = list(support.get_shape())[1:4:2]
    cosine = op.matmul(op.unsqueeze(_unit(query), integers(1)), _unit(support), False, True)
    weights = op.reshape(float32(weight), [-1, shots, 1, 1, tokens], False)
    weighted = op.multiply(op.relu(float32(cosine)), weights)
    plane = [-1, 1, node.get_attribute("height"), node.get_attribute("width")]
    pooled = op.avg_pool(
        op.reshape(weighted, plane, False),
        strides=[pool, pool],
        pads_begin=[0, 0],
        pads_end=[0, 0],
        kernel_shape=[pool, pool],
        exclude_pad=True,
        rounding_type="ceil",
    )
    volume = op.reshape(pooled, [batch, shots, layers, count, -1], False)
    return [op.convert(volume, query.get_element_type()).output(0)]


def _unit(tokens: Any) -> Any:
    """Scale tokens to length 1, in float32; return them in their own type."""
    import openvino.opset13 as op

    exact = float32(tokens)
    length = op.maximum(op.reduce_l2(exact, integers(-1), keep_dims=True), np.float32(EPS))
    return op.convert(op.divide(exact, length), tokens.get_element_type())
