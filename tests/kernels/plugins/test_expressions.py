"""Expressions fold where they can, and mean the same as Python's integers."""

from hypothesis import given
from hypothesis import strategies as st

from uino_deploy.kernels.plugins.expressions import (
    CeilDiv,
    Dimension,
    Numbers,
    Product,
    ceil_div,
    evaluate,
    product,
)

X, Y = Dimension("t", 0), Dimension("t", 1)
SIZES = st.integers(1, 10_000)


@given(SIZES, SIZES, SIZES, SIZES)
def test_an_expression_is_what_python_says(x, y, divisor, factor):
    numbers = Numbers({"t": (x, y)})
    expression = product(product(ceil_div(X, divisor), Y), factor)
    assert evaluate(expression, numbers) == -(-x // divisor) * y * factor


def test_numbers_fold():
    assert product(3, 5) == 15
    assert ceil_div(7, 2) == 4
    assert evaluate(product(3, ceil_div(7, 2)), Numbers({})) == 12


def test_numbers_stand_right():
    """TensorRT's symbols have no reflected operators."""
    assert product(3, X) == Product(X, 3)
    assert product(X, ceil_div(Y, 2)) == Product(X, CeilDiv(Y, 2))
