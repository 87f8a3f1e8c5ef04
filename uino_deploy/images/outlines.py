"""The outlines of a mask as polygons, by scikit-image's marching squares."""

from __future__ import annotations

import numpy as np

from uino_deploy.dependencies import require
from uino_deploy.images.opening import UInt8


def outlines_of_mask(mask: UInt8) -> list[list[float]]:
    """Return the outlines of a mask, holes among them.

    Args:
        mask: [H, W], non-zero in the foreground.

    Returns:
        Closed polygons x, y, x, y, ... in pixels, pixel (0, 0) reaching from 0 to 1: a pixel is
        foreground where its centre lies inside an odd number of them.

    Raises:
        DependencyError: scikit-image is not installed.
    """
    require("instances", "skimage")
    from skimage.measure import find_contours

    padded = np.pad(mask != 0, 1).astype(np.float32)
    # A contour passes midway between two centres; its last point is its first.
    return [
        (points[:-1, ::-1] - 0.5).ravel().tolist()
        for points in find_contours(padded, 0.5, fully_connected="high")
    ]
