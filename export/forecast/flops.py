"""Additions and multiplications of products and of our operators, counted by their shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from onnx import NodeProto

from uino_deploy.export.forecast.blocks import integers
from uino_deploy.kernels.identity import DOMAIN

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_SCAN_STEP = 6  # operations that advance one state: two products, a sum, exp, and the output's


def flops_of(node: NodeProto, shapes: Shapes) -> int:
    """Return the additions and multiplications of a product or one of our operators; 0 of others.

    Args:
        node: the node.
        shapes: of the tensors that it takes and gives, by name.
    """
    taken = [shapes.get(name, ()) for name in node.input]
    given = shapes[node.output[0]]
    count = _COUNTS.get(node.op_type, _fused if node.domain == DOMAIN else None)
    return count(node, taken, given) if count else 0


def _gemm(node: NodeProto, taken: list[Shape], given: Shape) -> int:
    return 2 * prod(given) * taken[0][-2 if integers(node).get("transA") else -1]


def _scan(_node: NodeProto, taken: list[Shape], _given: Shape) -> int:
    cells, (directions, channels, rank), states = prod(taken[0][:-1]), taken[2], taken[4][-1]
    return cells * directions * channels * (_SCAN_STEP * states + 2 * rank)


def _fused(_node: NodeProto, taken: list[Shape], _given: Shape) -> int:
    """Count a fused operator, whose weights act on every cell of its first input."""
    return 2 * prod(taken[0][:-1]) * sum(prod(each) for each in taken[1:] if len(each) == 2)


_COUNTS: dict[str, Callable[[NodeProto, list[Shape], Shape], int]] = {
    "MatMul": lambda _, taken, given: 2 * prod(given) * taken[0][-1],
    "Gemm": _gemm,
    "Conv": lambda _, taken, given: 2 * prod(given) * prod(taken[1][1:]),
    "ConvTranspose": lambda _, taken, given: 2 * prod(taken[0]) * prod(taken[1][1:]),
    "Correlation4d": lambda _, taken, given: 2 * prod(taken[0]) * taken[1][1] * taken[1][3],
    "SelectiveScan2d": _scan,
}
