"""Common to every form of the operators: their domain, and constants of their mathematics."""

DOMAIN = "uino"
"""The ONNX domain of the operators, and TensorRT's namespace of their plugins."""

VERSION = 2
"""The version of the domain's operators."""

EPS = 1e-6
"""The smallest length by which the correlation divides a token."""

NORM_EPS = 1e-5
"""What the epilogue's LayerNorm adds to the variance."""

DIRECTIONS = 4
"""The number of orders in which the scan visits a plane: by row, by column, and both reversed."""
