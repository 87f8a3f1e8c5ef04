"""NormMlp for TensorRT: tensors, shapes, launch. Needs no Triton and no torch."""

from __future__ import annotations

from uino_deploy.kernels.plugins import volumes
from uino_deploy.kernels.plugins.expressions import Expression
from uino_deploy.kernels.plugins.operator import (
    Attributes,
    Operator,
    Scalar,
    Shapes,
    Tensor,
    check_shapes,
)


def _output_shapes(_attributes: Attributes) -> tuple[tuple[Expression, ...], ...]:
    return (volumes.WHOLE,)


def _configurations(_attributes: Attributes, shapes: Shapes) -> list[str]:
    return [f"d{shapes['volume'][-1]}f{shapes['weight1'][0]}"]


def _check(_attributes: Attributes, shapes: Shapes) -> None:
    channels, hidden = shapes["volume"][-1], shapes["weight1"][0]
    expected = {
        "norm_weight": (channels,),
        "norm_bias": (channels,),
        "weight1": (hidden, channels),
        "bias1": (hidden,),
        "weight2": (channels, hidden),
        "bias2": (channels,),
    }
    check_shapes(shapes, expected)


OPERATOR = Operator(
    name="NormMlp",
    kernel="norm_mlp",
    inputs=(
        Tensor("volume", 6),
        Tensor("norm_weight", 1),
        Tensor("norm_bias", 1),
        Tensor("weight1", 2),
        Tensor("bias1", 1),
        Tensor("weight2", 2),
        Tensor("bias2", 1),
    ),
    outputs=(Tensor("out", 6),),
    attributes=(),
    scalars=(Scalar("cells", lambda _: volumes.CELLS),),
    output_shapes=_output_shapes,
    grid=volumes.grid,
    configurations=_configurations,
    check=_check,
)
