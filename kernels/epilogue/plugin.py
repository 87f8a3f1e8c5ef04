"""ScanEpilogue for TensorRT: tensors, shapes, launch. Needs no Triton and no torch."""

from __future__ import annotations

from uino_deploy.kernels.plugins import volumes
from uino_deploy.kernels.plugins.expressions import Expression, Numbers, evaluate
from uino_deploy.kernels.plugins.operator import Attributes, Operator, Shapes, Tensor, check_shapes


def _output_shapes(_attributes: Attributes) -> tuple[tuple[Expression, ...], ...]:
    return (volumes.WHOLE,)


def _configurations(attributes: Attributes, shapes: Shapes) -> list[str]:
    return [f"{volumes.PLANES[attributes['plane']]}-d{shapes['volume'][-1]}"]


def _check(attributes: Attributes, shapes: Shapes) -> None:
    volumes.check_plane(attributes)
    channels = shapes["volume"][-1]
    planes = (evaluate(e, Numbers(shapes)) for e in volumes.planes(attributes))
    expected = {
        "y": (*planes, channels),
        "norm_weight": (channels,),
        "norm_bias": (channels,),
        "gate_weight": (channels, channels),
        "out_norm_weight": (channels,),
        "out_norm_bias": (channels,),
        "projection": (channels, channels),
    }
    check_shapes(shapes, expected)


OPERATOR = Operator(
    name="ScanEpilogue",
    kernel="scan_epilogue",
    inputs=(
        Tensor("y", 4),
        Tensor("volume", 6),
        Tensor("norm_weight", 1),
        Tensor("norm_bias", 1),
        Tensor("gate_weight", 2),
        Tensor("out_norm_weight", 1),
        Tensor("out_norm_bias", 1),
        Tensor("projection", 2),
    ),
    outputs=(Tensor("out", 6),),
    attributes=("plane",),
    scalars=volumes.SCALARS,
    output_shapes=_output_shapes,
    grid=volumes.grid,
    configurations=_configurations,
    check=_check,
)
