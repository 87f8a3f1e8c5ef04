"""Integer expressions over tensors' dimensions, evaluated on numbers or by TensorRT.

Shapes and launches of plugins need only products, and divisions by a number rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar


@dataclass(frozen=True)
class Dimension:
    """The size of an input tensor along an axis."""

    tensor: str
    axis: int


@dataclass(frozen=True)
class Product:
    """The product left * right."""

    left: Symbolic
    right: Expression


@dataclass(frozen=True)
class CeilDiv:
    """The quotient left / right, rounded up."""

    left: Symbolic
    right: int


Symbolic = Dimension | Product | CeilDiv
Expression = int | Symbolic

T = TypeVar("T")


class Symbols(Protocol[T]):
    """An evaluator of expressions: as numbers, or as symbols of a TensorRT interface."""

    def dimension(self, tensor: str, axis: int) -> T:
        """Return an input's size along an axis."""

    def product(self, left: T, right: T | int) -> T:
        """Return left * right."""

    def ceil_div(self, left: T, right: int) -> T:
        """Return left / right, rounded up."""


def product(left: Expression, right: Expression) -> Expression:
    """Return left * right; a number if both are."""
    if isinstance(left, int):
        # Numbers go on the right: TensorRT's symbols have no reflected operators.
        return left * right if isinstance(right, int) else Product(right, left)
    return Product(left, right)


def ceil_div(left: Expression, right: int) -> Expression:
    """Return left / right, rounded up; a number if left is one."""
    return -(-left // right) if isinstance(left, int) else CeilDiv(left, right)


def evaluate(expression: Expression, symbols: Symbols[T]) -> T | int:
    """Return an expression's value; an int expression is its own value."""
    return expression if isinstance(expression, int) else _evaluate(expression, symbols)


def _evaluate(expression: Symbolic, symbols: Symbols[T]) -> T:
    if isinstance(expression, Dimension):
        return symbols.dimension(expression.tensor, expression.axis)
    left = _evaluate(expression.left, symbols)
    if isinstance(expression, CeilDiv):
        return symbols.ceil_div(left, expression.right)
    right = expression.right
    return symbols.product(left, right if isinstance(right, int) else _evaluate(right, symbols))


class Numbers:
    """An evaluator of expressions for concrete shapes."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self._shapes = shapes

    def dimension(self, tensor: str, axis: int) -> int:
        """Return an input's size along an axis."""
        return int(self._shapes[tensor][axis])

    def product(self, left: int, right: int) -> int:
        """Return left * right."""
        return left * right

    def ceil_div(self, left: int, right: int) -> int:
        """Return left / right, rounded up."""
        return -(-left // right)
