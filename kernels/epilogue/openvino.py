"""ScanEpilogue in OpenVINO's own operators, for static shapes."""

from __future__ import annotations

from typing import Any

from uino_deploy.kernels.openvino_nodes import float32, integers, normed, projected


def scan_epilogue(node: Any) -> list[Any]:
    """Convert the node: y [S',H,W,D], the volume [S,hq,wq,hs,ws,D] and weights -> the volume."""
    import openvino.opset13 as op

    y, volume, norm_weight, norm_bias, gate_weight, *ending = (node.get_input(i) for i in range(8))
    out_norm_weight, out_norm_bias, projection = ending
    shots, hq, wq, hs, ws, channels = size = list(volume.get_shape())
    by_cell = normed(y, out_norm_weight, out_norm_bias)
    if node.get_attribute("plane") == 0:
        planes = op.reshape(by_cell, integers(shots, hs * ws, hq * wq, channels), False)
        by_cell = op.transpose(planes, integers(0, 2, 1, 3))
    by_cell = op.reshape(by_cell, integers(*size), False)
    gate = op.swish(projected(normed(volume, norm_weight, norm_bias), gate_weight))
    added = projected(op.multiply(by_cell, gate), projection)
    out = op.add(float32(volume), added)
    return [op.convert(out, volume.get_element_type()).output(0)]
