"""The table of tolerances: how far a result may be from its reference, and why.

Errors are relative L2 norms, |result - reference| / |reference|. Tests, `verify`, the GPU self-test
and the benchmarks take their bounds from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Tolerance:
    """The largest relative L2 error allowed, and the reason for that number."""

    relative_l2: float
    reason: str


# An operator against float64 on the same, already rounded inputs.
OPERATOR: dict[str, Tolerance] = {
    "float32": Tolerance(1e-5, "float32 sums of some thousand terms, in another order"),
    "float16": Tolerance(2e-3, "float32 inside; the result is rounded to 11 bits"),
    "bfloat16": Tolerance(1e-2, "float32 inside; the result is rounded to 8 bits"),
}

# A piece in one precision against float32 PyTorch on the same inputs.
_PIECE: dict[str, Tolerance] = {
    "fp32": Tolerance(
        1e-4, "the same float32 mathematics in another order, through up to 24 blocks"
    ),
    "fp16": Tolerance(2e-2, "11-bit weights and activations; errors add over the blocks"),
    "bf16": Tolerance(1e-1, "8-bit weights and activations; errors add over the blocks"),
    "fp8": Tolerance(1.5e-1, "4-bit weights and activations, at any size; errors add over blocks"),
    "int8": Tolerance(1.5e-1, "256 steps for the range of a tensor; errors add over the blocks"),
}

# Any output that went through several pieces, against float32 PyTorch throughout.
_WHOLE: dict[str, Tolerance] = {
    "fp32": Tolerance(5e-4, "the pieces' float32 errors, carried through the decoder"),
    "fp16": Tolerance(5e-2, "the pieces' float16 errors, carried through the decoder"),
    "bf16": Tolerance(5e-2, "the pieces' bfloat16 errors, carried through the decoder"),
    "fp8": Tolerance(1.5e-1, "the encoder's fp8 errors, carried through the other pieces"),
    "int8": Tolerance(1.5e-1, "the encoder's int8 errors, carried through the other pieces"),
}

# The lowest acceptable IoU of the mask with float32 PyTorch's.
_MASK_IOU: dict[str, float] = {"fp32": 0.995, "fp16": 0.97, "bf16": 0.90, "fp8": 0.85, "int8": 0.85}

# How many points of mIoU a bundle may lose on the demo's held-out episodes: 0.1 is a handful of
# borderline pixels, 0.2, 0.5 and 1.0 are what half precision, fp8 and int8 promise to users.
_MIOU_DROP: dict[str, float] = {"fp32": 0.1, "fp16": 0.2, "bf16": 0.2, "fp8": 0.5, "int8": 1.0}

# How far, either way, a machine's error may be from its forecast: one that fuses nodes rounds less
# often than the graph says, and sums in another order.
FORECAST_FACTOR = 4.0

FINENESS = ("fp32", "fp16", "bf16", "fp8", "int8")


def piece_tolerance(precision: str) -> Tolerance:
    """Return the bound for one exported piece in `precision` (a name of `FINENESS`)."""
    return _PIECE[precision]


def whole_tolerance(precisions: Sequence[str]) -> Tolerance:
    """Return the bound for a chain of pieces: that of the coarsest of their precisions."""
    return _WHOLE[_coarsest(precisions)]


def mask_iou_floor(precisions: Sequence[str]) -> float:
    """Return the lowest mask IoU allowed for a chain of pieces: that of the coarsest precision."""
    return _MASK_IOU[_coarsest(precisions)]


def miou_drop(precisions: Sequence[str]) -> float:
    """Return how many points of mIoU a chain of pieces may lose: that of the coarsest precision."""
    return _MIOU_DROP[_coarsest(precisions)]


def _coarsest(precisions: Sequence[str]) -> str:
    return max(precisions, key=FINENESS.index)


def relative_l2(got: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """Return |got - wanted| / |wanted|; infinite if shapes differ or a value is not finite."""
    if got.shape != wanted.shape:
        return float("inf")
    difference = got.astype(np.float64) - wanted.astype(np.float64)
    if not np.isfinite(difference).all():
        return float("inf")
    norm = float(np.linalg.norm(wanted.astype(np.float64)))
    error = float(np.linalg.norm(difference))
    return error / norm if norm else error
