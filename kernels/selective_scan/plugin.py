"""SelectiveScan2d for TensorRT: tensors, shapes, launch. Needs no Triton and no torch."""

from __future__ import annotations

from uino_deploy.kernels.identity import DIRECTIONS
from uino_deploy.kernels.plugins.expressions import Dimension, Expression, ceil_div
from uino_deploy.kernels.plugins.operator import (
    Attributes,
    Constants,
    Operator,
    Scalar,
    Shapes,
    Tensor,
    check_shapes,
)
from uino_deploy.kernels.selective_scan.tiling import tilings

_SEQUENCES, _HEIGHT = Dimension("x", 0), Dimension("x", 1)
_WIDTH, _CHANNELS = Dimension("x", 2), Dimension("x", 3)


def _output_shapes(_attributes: Attributes) -> tuple[tuple[Expression, ...], ...]:
    return ((_SEQUENCES, _HEIGHT, _WIDTH, _CHANNELS),)


def _grid(
    _attributes: Attributes, constants: Constants
) -> tuple[Expression, Expression, Expression]:
    """Return (sequences or groups of them, channel blocks, 1), as `Tiling.grid` does."""
    groups = _SEQUENCES if constants["PARALLEL"] else ceil_div(_SEQUENCES, constants["ROWS"])
    return groups, ceil_div(_CHANNELS, constants["BLOCK_D"]), 1


def _configurations(_attributes: Attributes, shapes: Shapes) -> list[str]:
    """Return both tilings: each computes every shape, and a folder may hold only one."""
    sequences, height, width, channels = shapes["x"]
    states, rank = shapes["a"][2], shapes["dt_weight"][2]
    both = tilings(sequences, height * width, channels, states)
    return [tiling.config(states, rank, shapes["packed"][4]) for tiling in both]


def _check(_attributes: Attributes, shapes: Shapes) -> None:
    *cells, channels = shapes["x"]
    states, rank = shapes["a"][2], shapes["dt_weight"][2]
    width = max(shapes["packed"][-1], rank + 2 * states)
    expected = {
        "packed": (*cells, DIRECTIONS, width),
        "dt_weight": (DIRECTIONS, channels, rank),
        "dt_bias": (DIRECTIONS, channels),
        "a": (DIRECTIONS, channels, states),
        "skip": (DIRECTIONS, channels),
    }
    check_shapes(shapes, expected)


OPERATOR = Operator(
    name="SelectiveScan2d",
    kernel="selective_scan2d",
    inputs=(
        Tensor("x", 4),
        Tensor("packed", 5),
        Tensor("dt_weight", 3, "float32"),
        Tensor("dt_bias", 2, "float32"),
        Tensor("a", 3, "float32"),
        Tensor("skip", 2, "float32"),
    ),
    outputs=(Tensor("y", 4),),
    attributes=(),
    scalars=(
        Scalar("sequences", lambda _: _SEQUENCES),
        Scalar("height", lambda _: _HEIGHT),
        Scalar("width", lambda _: _WIDTH),
        Scalar("channels", lambda _: _CHANNELS, multiple_of=16),
    ),
    output_shapes=_output_shapes,
    grid=_grid,
    configurations=_configurations,
    check=_check,
)
