"""Common parts of the operators' OpenVINO forms: constants and casts.

OpenVINO's ONNX reader does not expand the functions that an ONNX file defines. It calls the
operators' converters instead, which know every shape and can return the form that its CPU plugin
runs best. Everything is computed in float32 except the correlation's matrix product, which takes
unit vectors in the inputs' type and sums in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def float32(tensor: Any) -> Any:
    """Return a tensor cast to float32."""
    import openvino.opset13 as op

    return op.convert(tensor, "f32")


def integers(*values: int) -> Any:
    """Return an int64 constant."""
    return constant(np.array(values, np.int64))


def constant(values: Any) -> Any:
    """Return a constant of the array's type."""
    import openvino.opset13 as op

    return op.constant(values)
