"""What every form of the two operators agrees on: their names' domain, and two numbers."""

DOMAIN = "uino"
"""The ONNX domain of the operators, and TensorRT's namespace of their plugins."""

VERSION = 1
"""The version of the domain's operators."""

EPS = 1e-6
"""The least length that the correlation divides a token by."""

DIRECTIONS = 4
"""In which the scan visits a plane: by row, by column, and both reversed."""
