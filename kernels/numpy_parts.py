"""Common parts of the operators' references in numpy and float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.kernels.identity import NORM_EPS

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


def layer_norm(values: Array, weight: Array, bias: Array) -> Float64:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift it."""
    exact = values.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + NORM_EPS)
    normed: Float64 = centred / deviation * weight + bias
    return normed


def silu(values: Array) -> Float64:
    """Return values times their sigmoid, exp(-log(1 + exp(-v))), which does not overflow."""
    scaled: Float64 = values * np.exp(-np.logaddexp(0, -values))
    return scaled
