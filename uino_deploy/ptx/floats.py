"""Float formats and roundings that numpy lacks: bfloat16, TF32, flushing, saturation."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

_SMALLEST_NORMAL = np.float32(2.0**-126)


def widen_bf16(bits: Array) -> Array:
    """Turn bfloat16 bits (uint16, any shape) into float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def round_bf16(values: Array, mode: str = "rn") -> Array:
    """Round float32 values to bfloat16 bits (uint16), to nearest even (`rn`) or to zero (`rz`)."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    if mode == "rn":
        bits = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded = (bits >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FFF), rounded)


def round_f16(values: Array, mode: str = "rn") -> Array:
    """Round float32 or float64 values to float16, to nearest even (`rn`) or to zero (`rz`)."""
    nearest = values.astype(np.float16)
    if mode == "rn":
        return nearest
    away = np.abs(nearest.astype(values.dtype)) > np.abs(values)
    return np.where(away, np.nextafter(nearest, np.float16(0)), nearest)


def round_tf32(values: Array, mode: str = "rna") -> Array:
    """Round float32 to TF32's ten mantissa bits, as float32.

    `rna` rounds halves away from zero, `rn` to even, `rz` truncates, as the tensor core does
    with unconverted operands.
    """
    values = np.ascontiguousarray(values)
    bits = values.view(np.uint32)
    if mode == "rna":
        bits = bits + np.uint32(0x1000)
    elif mode == "rn":
        bits = bits + (np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)))
    rounded = (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return rounded if mode == "rz" else np.where(np.isfinite(values), rounded, values)


def flush(values: Array) -> Array:
    """Replace float32 subnormals with zeros of their sign (`.ftz`)."""
    return np.where(np.abs(values) < _SMALLEST_NORMAL, np.copysign(np.float32(0), values), values)


def saturate(values: Array) -> Array:
    """Clamp to [0, 1], NaN to 0 (`.sat`)."""
    clamped: Array = np.clip(np.where(np.isnan(values), 0, values), 0, 1).astype(values.dtype)
    return clamped
