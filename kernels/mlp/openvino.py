"""NormMlp in OpenVINO's own operators."""

from __future__ import annotations

from typing import Any

from uino_deploy.kernels.openvino_nodes import float32, normed, projected


def norm_mlp(node: Any) -> list[Any]:
    """Convert the node: a volume [S,hq,wq,hs,ws,D] and weights -> the volume."""
    import openvino.opset13 as op

    volume, norm_weight, norm_bias, *layers = (node.get_input(i) for i in range(7))
    weight1, bias1, weight2, bias2 = layers
    first = projected(normed(volume, norm_weight, norm_bias), weight1)
    active = op.gelu(op.add(first, float32(bias1)), "ERF")
    added = op.add(projected(active, weight2), float32(bias2))
    return [op.convert(op.add(float32(volume), added), volume.get_element_type()).output(0)]
