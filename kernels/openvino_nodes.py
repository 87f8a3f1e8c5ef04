"""Common parts of the operators' OpenVINO forms: constants, casts, norms and products.

OpenVINO's ONNX reader does not expand the functions that an ONNX file defines. It calls the
operators' converters instead, which know every shape and can return the form that its CPU plugin
runs best. Everything is computed in float32 except matrix products outside the scan, which take
operands in the inputs' type and sum in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uino_deploy.kernels.identity import NORM_EPS


def float32(tensor: Any) -> Any:
    """Return a tensor cast to float32."""
    import openvino.opset13 as op

    return op.convert(tensor, "f32")


def normed(tensor: Any, weight: Any, bias: Any) -> Any:
    """Normalise the last axis in float32, then scale and shift it."""
    import openvino.opset13 as op

    centred = op.mvn(float32(tensor), integers(-1), True, NORM_EPS, "inside_sqrt")
    return op.add(op.multiply(centred, float32(weight)), float32(bias))


def projected(tensor: Any, weight: Any) -> Any:
    """Return weight @ tensor in float32, of a tensor rounded to the weight's type."""
    import openvino.opset13 as op

    return float32(op.matmul(op.convert(tensor, weight.get_element_type()), weight, False, True))


def integers(*values: int) -> Any:
    """Return an int64 constant."""
    return constant(np.array(values, np.int64))


def constant(values: Any) -> Any:
    """Return a constant of the array's type."""
    import openvino.opset13 as op

    return op.constant(values)
