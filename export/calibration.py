"""Calibration of one product: which scales, and which smoothing, hurt its output least.

Candidates are measured, not trusted: every combination is simulated on rows of the product's
real inputs and compared with the exact product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from uino_deploy.export.formats import Float32, Format

# What an input's scale may cover: all values, one of these percentiles of them, or the share of the
# largest that leaves the least square error.
_PERCENTILES = (99.99, 99.9)
_CLIPS = np.geomspace(1.0, 0.1, 24)
# SmoothQuant's exponents: the share of an outlying channel's size that moves into the weights.
_EXPONENTS = (0.4, 0.6, 0.8)
_LEAST = 1e-5  # of a channel's size, so that a dead channel is no division by zero


@dataclass(frozen=True)
class Inputs:
    """A layer's inputs as seen on the calibration images.

    Attributes:
        rows: some of its rows, float32 [R, K].
        peaks: each channel's largest magnitude over all rows, float32 [K].
    """

    rows: Float32
    peaks: Float32


@dataclass(frozen=True)
class Calibrated:
    """How a layer is quantised.

    Attributes:
        scale: of its inputs.
        smoothing: what its input channels are divided by, and the weight's rows multiplied with,
            float32 [K]; None if that does not help or nothing before the layer can take it.
        error: of its output on the rows, relative L2.
    """

    scale: np.float32
    smoothing: Float32 | None
    error: float


@dataclass(frozen=True)
class CalibratedPair:
    """How a product of two activations is quantised.

    Attributes:
        scales: of the left and the right one.
        error: of the product, relative L2.
    """

    scales: tuple[np.float32, np.float32]
    error: float


def calibrate(inputs: Inputs, weight: Float32, kind: Format, foldable: bool) -> Calibrated:
    """Return the way of quantising a layer that changes its output least.

    Args:
        inputs: what the layer reads.
        weight: float32 [K, N].
        kind: the format of both operands.
        foldable: whether a smoothing can be folded into what precedes the layer.
    """
    exact = inputs.rows @ weight
    size = float(np.linalg.norm(exact)) or 1.0
    best: Calibrated | None = None
    for smoothing in (None, *(_smoothings(inputs, weight) if foldable else ())):
        factors = np.ones_like(inputs.peaks) if smoothing is None else smoothing
        rows, smoothed = inputs.rows / factors, weight * factors[:, None]
        rounded = kind.rounded(smoothed, weight_scale(smoothed, kind))
        for scale in _scales(rows, float((inputs.peaks / factors).max()), kind):
            error = float(np.linalg.norm(kind.rounded(rows, scale) @ rounded - exact)) / size
            if best is None or error < best.error:
                best = Calibrated(scale, smoothing, error)
    if best is None:
        raise AssertionError("a layer has at least one scale")
    return best


def calibrate_pair(
    left: Float32, right: Float32, peaks: tuple[float, float], kind: Format
) -> CalibratedPair:
    """Return the scales of two activations that change their product least.

    Args:
        left: some rows of the left one, float32 [..., R, K].
        right: the right one, float32 [..., K, N].
        peaks: the largest magnitudes that they may have.
        kind: the format of both.
    """
    exact = left @ right
    size = float(np.linalg.norm(exact)) or 1.0
    best: CalibratedPair | None = None
    rights = [(scale, kind.rounded(right, scale)) for scale in _scales(right, peaks[1], kind)]
    for scale in _scales(left, peaks[0], kind):
        rounded = kind.rounded(left, scale)
        for other, values in rights:
            error = float(np.linalg.norm(rounded @ values - exact)) / size
            if best is None or error < best.error:
                best = CalibratedPair((scale, other), error)
    if best is None:
        raise AssertionError("a product has at least one pair of scales")
    return best


def weight_scale(weight: Float32, kind: Format) -> Float32:
    """Return one scale for each output channel of a weight [K, N], float32 [N]."""
    peaks = np.abs(weight).max(axis=0) / np.float32(kind.top)
    return np.where(peaks > 0, peaks, np.float32(1)).astype(np.float32)


def _smoothings(inputs: Inputs, weight: Float32) -> Iterator[Float32]:
    activations = np.maximum(inputs.peaks, _LEAST)
    weights = np.maximum(np.abs(weight).max(axis=1), _LEAST)
    for exponent in _EXPONENTS:
        yield (activations**exponent / weights ** (1 - exponent)).astype(np.float32)


def _scales(rows: Float32, peak: float, kind: Format) -> Iterator[np.float32]:
    """Yield the scales of all values, of the percentiles, and of the least square error."""
    peak = peak or 1.0
    yield np.float32(peak / kind.top)
    for size in np.percentile(np.abs(rows), _PERCENTILES):
        yield np.float32((float(size) or peak) / kind.top)
    some = rows.reshape(-1, rows.shape[-1])
    some = some[:: max(1, len(some) // 64)]
    candidates = [np.float32(peak * clip / kind.top) for clip in _CLIPS]
    errors = [float(np.square(kind.rounded(some, scale) - some).sum()) for scale in candidates]
    yield candidates[int(np.argmin(errors))]
