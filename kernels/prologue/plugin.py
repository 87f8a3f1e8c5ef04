"""ScanPrologue for TensorRT: tensors, shapes, launch. Needs no Triton and no torch."""

from __future__ import annotations

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.plugins import volumes
from uino_deploy.kernels.plugins.expressions import Dimension, Expression
from uino_deploy.kernels.plugins.operator import Attributes, Operator, Shapes, Tensor, check_shapes

_PACKED = Dimension("projection", 1)


def _output_shapes(attributes: Attributes) -> tuple[tuple[Expression, ...], ...]:
    planes = volumes.planes(attributes)
    return (*planes, volumes.CHANNELS), (*planes, DIRECTIONS, _PACKED)


def _configurations(attributes: Attributes, shapes: Shapes) -> list[str]:
    channels, packed = shapes["volume"][-1], shapes["projection"][1]
    return [f"{volumes.PLANES[attributes['plane']]}-d{channels}p{packed}"]


def _check(attributes: Attributes, shapes: Shapes) -> None:
    volumes.check_plane(attributes)
    channels, packed = shapes["volume"][-1], shapes["projection"][1]
    expected = {
        "norm_weight": (channels,),
        "norm_bias": (channels,),
        "in_weight": (channels, channels),
        "conv_weight": (channels, 3, 3),
        "conv_bias": (channels,),
        "projection": (DIRECTIONS, packed, channels),
    }
    check_shapes(shapes, expected)


OPERATOR = Operator(
    name="ScanPrologue",
    kernel="scan_prologue",
    inputs=(
        Tensor("volume", 6),
        Tensor("norm_weight", 1),
        Tensor("norm_bias", 1),
        Tensor("in_weight", 2),
        Tensor("conv_weight", 3),
        Tensor("conv_bias", 1),
        Tensor("projection", 3),
    ),
    outputs=(Tensor("x", 4), Tensor("packed", 5)),
    attributes=("plane",),
    scalars=volumes.SCALARS,
    output_shapes=_output_shapes,
    grid=volumes.grid,
    configurations=_configurations,
    check=_check,
)
