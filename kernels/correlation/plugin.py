"""Correlation4d for TensorRT: attributes, tensors, shapes, launch. Needs no Triton and no torch."""

from __future__ import annotations

from uino_deploy.kernels.plugins.expressions import Dimension, Expression, ceil_div, product
from uino_deploy.kernels.plugins.operator import (
    Attributes,
    Constants,
    Operator,
    Scalar,
    Shapes,
    Tensor,
)

LARGEST_POOL = 8

_BATCH, _LAYERS = Dimension("query", 0), Dimension("query", 1)
_N_QUERY, _CHANNELS = Dimension("query", 2), Dimension("query", 3)
_SHOTS = Dimension("support", 1)


def _windows(attributes: Attributes) -> Expression:
    pool = attributes["pool"]
    return product(ceil_div(attributes["height"], pool), ceil_div(attributes["width"], pool))


def _output_shapes(attributes: Attributes) -> tuple[tuple[Expression, ...], ...]:
    return ((_BATCH, _SHOTS, _LAYERS, _N_QUERY, _windows(attributes)),)


def _grid(
    attributes: Attributes, constants: Constants
) -> tuple[Expression, Expression, Expression]:
    """Return (tiles of queries and windows, layers, batch and shots), as `Tile.grid` does."""
    windows_of_a_tile = constants["BLOCK_S"] // attributes["pool"] ** 2
    tiles = product(
        ceil_div(_N_QUERY, constants["BLOCK_Q"]), ceil_div(_windows(attributes), windows_of_a_tile)
    )
    return tiles, _LAYERS, product(_BATCH, _SHOTS)


def _configurations(attributes: Attributes, _shapes: Shapes) -> list[str]:
    return [f"p{attributes['pool']}"]


def _check(attributes: Attributes, shapes: Shapes) -> None:
    batch, layers, _, channels = shapes["query"]
    shots, cells = shapes["support"][1], attributes["height"] * attributes["width"]
    if not 1 <= attributes["pool"] <= LARGEST_POOL:
        raise ValueError(f"pool {attributes['pool']} is not 1 to {LARGEST_POOL}")
    for name, expected in (
        ("support", (shots, layers, cells, channels)),
        ("weight", (shots, cells)),
    ):
        first, *rest = shapes[name]
        if first not in (1, batch) or tuple(rest) != expected:
            raise ValueError(f"{name} is {tuple(shapes[name])}, not (1 or {batch}, *{expected})")


OPERATOR = Operator(
    name="Correlation4d",
    kernel="correlation4d",
    inputs=(Tensor("query", 4), Tensor("support", 5), Tensor("weight", 3)),
    outputs=(Tensor("out", 5),),
    attributes=("height", "width", "pool"),
    scalars=(
        Scalar("layers", lambda _: _LAYERS),
        Scalar("shots", lambda _: _SHOTS),
        Scalar("n_query", lambda _: _N_QUERY),
        Scalar("channels", lambda _: _CHANNELS, multiple_of=16),
        Scalar("height", lambda attributes: attributes["height"]),
        Scalar("width", lambda attributes: attributes["width"]),
        Scalar("support_batches", lambda _: Dimension("support", 0)),
        Scalar("weight_batches", lambda _: Dimension("weight", 0)),
    ),
    output_shapes=_output_shapes,
    grid=_grid,
    configurations=_configurations,
    check=_check,
)
