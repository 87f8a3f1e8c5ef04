"""What the operators' OpenVINO forms have in common: constants and casts.

OpenVINO's ONNX reader does not expand the functions that an ONNX file defines. It asks the
operators' converters instead, which know every shape and so give it the forms that its CPU plugin
runs best. Inputs of any float type are computed in float32, but for the correlation's matrix
product, which takes unit vectors in the inputs' own type and sums in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def float32(tensor: Any) -> Any:
    """Return a tensor cast to float32."""
    import openvino.opset13 as op

    return op.convert(tensor, "f32")


def integers(*values: int) -> Any:
    """Return a constant of int64."""
    return constant(np.array(values, np.int64))


def constant(values: Any) -> Any:
    """Return a constant of an array's own type."""
    import openvino.opset13 as op

    return op.constant(values)
