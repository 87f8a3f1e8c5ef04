"""Common to every form of the two operators: their domain and two constants."""

DOMAIN = "uino"
"""The ONNX domain of the operators, and TensorRT's namespace of their plugins."""

VERSION = 1
"""The version of the domain's operators."""

EPS = 1e-6
"""The smallest length by which the correlation divides a token."""

DIRECTIONS = 4
"""The number of orders in which the scan visits a plane: by row, by column, and both reversed."""
