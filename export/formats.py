"""The 8-bit number formats of quantised layers: int8 and fp8 e4m3, rounded as ONNX and GPUs do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """One format: symmetric around zero, which is why no zero point is ever anything but 0.

    Attributes:
        element: ONNX's number for the type of a stored value.
        top: the largest value that a scale is chosen for.
    """

    element: int
    top: float

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored values' type in numpy."""
        return onnx.helper.tensor_dtype_to_np_dtype(self.element)

    def stored(self, values: Float32, scale: Float32 | np.float32) -> npt.NDArray[Any]:
        """Divide values by a scale that broadcasts, round half to even and saturate."""
        return self._steps(values, scale).astype(self.dtype)

    def rounded(self, values: Float32, scale: Float32 | np.float32) -> Float32:
        """Return what remains of float32 values after storing them; NaN stays NaN."""
        return self._steps(values, scale) * scale

    def _steps(self, values: Float32, scale: Float32 | np.float32) -> Float32:
        steps = values / scale
        if self.element == onnx.TensorProto.INT8:
            return np.clip(np.rint(steps), -128, 127)
        return np.clip(steps, -self.top, self.top).astype(self.dtype).astype(np.float32)


FORMATS = {
    "int8": Format(onnx.TensorProto.INT8, 127.0),
    "fp8": Format(onnx.TensorProto.FLOAT8E4M3FN, 448.0),
}
