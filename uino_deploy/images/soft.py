"""Grey masks of many values: soft edges and lossy coding told from labels and from photographs.

A mask is dark or light nearly everywhere; a photograph is grey. What is measured, on values brought
to 0 to 255 (dark: up to an eighth of the range; light: from seven eighths; grey: between):

- Two levels that a lossy coder blurred: nine tenths of the pixels lie near one of two values. They
  are parted halfway between.
- Labels that it blurred, or an unsure region: what is not quite black or white lies near a few
  values, in flat areas.
- Soft edges and probabilities: at most half of the pixels are grey; of those that are not dark,
  three tenths or more lie above half, and no more than that near it. A smooth ramp may be grey
  throughout, if it reaches both ends.
- Anything else is a picture.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from uino_deploy.errors import InputError
from uino_deploy.images.opening import UInt8

_DARK, _LIGHT = 32, 223
# Half widths of what counts as one level after a lossy coder: for two levels, and for labels.
_SPREAD, _NEAR = 20, 6
_LABELS = 4
FEW_LABELS = 8
"""More labels than this must lie flatter, or they are a picture's."""

HINT = "give a mask of two levels, 0 and 255, or name the object's value with --label"
"""What to do about a mask that allows more than one reading."""


def half(values: npt.NDArray[Any], histogram: npt.NDArray[Any], top: float, seen: str) -> float:
    """Return half of the range, where a soft mask is cut.

    Args:
        values: [H, W], at most `top`.
        histogram: [256], how many pixels have each value, brought to 0 to 255.
        top: the value that is white.
        seen: what the mask holds, for the message.

    Raises:
        InputError: the values are those of labels or of a picture.
    """
    if not histogram[128:].any():
        raise InputError(f"{seen}, and none reaches half of {top:g}", HINT)
    total, light = histogram.sum(), histogram[_LIGHT:].sum()
    grey, dark = histogram[_DARK + 1 : _LIGHT].sum(), histogram[: _DARK + 1].sum()
    if _flat_levels(values, histogram, top):
        raise InputError(f"{seen}: labels, or an unsure region, blurred by a coder?", HINT)
    unsure = histogram[112:144].sum() / (grey + light)
    if unsure > 0.3:
        raise InputError(f"{seen}; {unsure:.0%} of what is not dark lies near half", HINT)
    soft = grey <= total / 2 and histogram[128:].sum() >= 0.3 * (grey + light)
    ramp = dark >= 0.1 * total and light >= 0.02 * total
    if soft or (ramp and _turns(values, top) <= 1.05):
        return top / 2
    raise InputError(
        f"{seen}; {grey / total:.0%} of its pixels are neither dark nor light: it is a picture",
        HINT,
    )


def flat(values: npt.NDArray[Any], where: npt.NDArray[np.bool_], near: float = 0) -> float:
    """Return the share of some pixels that equal three of their four neighbours or more.

    Args:
        values: [H, W].
        where: bool [H, W]: the pixels.
        near: the largest difference that counts as equal.
    """
    total = np.count_nonzero(where)
    if not total:
        return 1.0
    equal = np.zeros(values.shape, np.uint8)
    down = _difference(values[1:], values[:-1]) <= near
    across = _difference(values[:, 1:], values[:, :-1]) <= near
    equal[1:] += down
    equal[:-1] += down
    equal[:, 1:] += across
    equal[:, :-1] += across
    return float(np.count_nonzero((equal >= 3) & where) / total)


def halfway(values: npt.NDArray[Any], histogram: npt.NDArray[Any], top: float) -> float | None:
    """Return the value halfway between two levels that a lossy coder blurred; None without them.

    Nearly all pixels lie near one of the two, most of them right at it; and those that do not, the
    coder's ringing, are no areas of their own, as labels are.
    """
    around = np.convolve(histogram, np.ones(2 * _SPREAD + 1), "same")
    right_at = np.convolve(histogram, np.ones(5), "same")
    first = int(histogram.argmax())
    apart = np.abs(np.arange(256) - first) > 2 * _SPREAD
    second = int(np.where(apart, histogram, -1).argmax())
    pair, total = [first, second], histogram.sum()
    if around[pair].sum() < 0.9 * total or right_at[pair].sum() < 0.5 * total:
        return None
    if (right_at[pair] < 0.3 * around[pair]).any() or min(pair) > _DARK or not around[second]:
        return None
    scaled = to_bytes(values, top)
    few = np.count_nonzero(histogram) <= FEW_LABELS
    if flat(scaled, (scaled != first) & (scaled != second)) >= (0.5 if few else 0.75):
        return None
    return (first + second) / 2 * top / 255


def _flat_levels(values: npt.NDArray[Any], histogram: npt.NDArray[Any], top: float) -> bool:
    """Return whether what is not quite black or white lies flat, near at most `_LABELS` values."""
    left = histogram.astype(np.float64)
    left[: _NEAR + 1] = left[255 - _NEAR :] = 0
    between, found = left.sum(), 0.0
    for _ in range(_LABELS):
        level = int(np.convolve(left, np.ones(2 * _NEAR + 1), "same").argmax())
        near = slice(max(0, level - _NEAR), level + _NEAR + 1)
        found += left[near].sum()
        left[near] = 0
    if found < 0.75 * between or between < 0.01 * histogram.sum():
        return False
    scaled = to_bytes(values, top)
    return flat(scaled, (scaled > _NEAR) & (scaled < 255 - _NEAR), _NEAR) >= 0.5


def _turns(values: npt.NDArray[Any], top: float) -> float:
    """Return how often a row or column goes from dark to light or back, on the average."""
    scaled = to_bytes(values, top)
    down = _difference(scaled[1:], scaled[:-1]).sum(dtype=np.int64) / scaled.shape[1]
    across = _difference(scaled[:, 1:], scaled[:, :-1]).sum(dtype=np.int64) / scaled.shape[0]
    return float(down + across) / 2 / 255


def to_bytes(values: npt.NDArray[Any], top: float) -> UInt8:
    """Return values of 0 to `top` brought to 0 to 255."""
    if values.dtype == np.uint8 and top == 255:
        return np.asarray(values, np.uint8)
    scaled = np.floor(values.astype(np.float32) * np.float32(255 / top) + 0.5)
    return np.asarray(scaled, np.uint8)


def _difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    difference: npt.NDArray[Any] = np.maximum(one, other) - np.minimum(one, other)
    return difference
