"""ScanPrologue in OpenVINO's own operators, for static shapes."""

from __future__ import annotations

from typing import Any

from uino_deploy.kernels.openvino_nodes import float32, integers, normed, projected


def scan_prologue(node: Any) -> list[Any]:
    """Convert the node: [S,hq,wq,hs,ws,D] and weights -> x [S',H,W,D], packed [S',H,W,4,P]."""
    import openvino.opset13 as op

    volume, norm_weight, norm_bias, in_weight, *after = (node.get_input(i) for i in range(7))
    conv_weight, conv_bias, projection = after
    plane = node.get_attribute("plane")
    shots, hq, wq, hs, ws, channels = volume.get_shape()
    kind, (height, width) = volume.get_element_type(), ((hq, wq), (hs, ws))[plane]
    inner = projected(normed(volume, norm_weight, norm_bias), in_weight)
    if plane == 0:
        cells = op.reshape(inner, integers(shots, hq * wq, hs * ws, channels), False)
        inner = op.transpose(cells, integers(0, 2, 1, 3))
    last = op.reshape(inner, integers(-1, height, width, channels), False)
    planes = op.transpose(last, integers(0, 3, 1, 2))
    kernels = op.reshape(float32(conv_weight), integers(channels, 1, 1, 3, 3), False)
    convolved = op.group_convolution(planes, kernels, [1, 1], [1, 1], [1, 1], [1, 1])
    offsets = op.reshape(float32(conv_bias), integers(1, channels, 1, 1), False)
    active = op.swish(op.add(convolved, offsets))
    x = op.convert(op.transpose(active, integers(0, 2, 3, 1)), kind)
    rows = op.reshape(projection, integers(-1, channels), False)
    sizes = integers(-1, height, width, *projection.get_shape()[:2])
    packed = op.reshape(projected(x, rows), sizes, False)
    return [x.output(0), op.convert(packed, kind).output(0)]
