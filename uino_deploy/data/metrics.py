"""mIoU and FB-IoU of few-shot segmentation, from intersections and unions accumulated per class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SegmentationScore:
    """Accumulates predictions; masks are compared at the image's own size.

    mIoU is the mean over the classes seen of (sum of intersections) / (sum of unions). FB-IoU is
    the mean of that ratio for the foreground of all classes together and for the background.
    """

    def __init__(self, classes: int) -> None:
        self._foreground = np.zeros((classes, 2), dtype=np.int64)  # intersection, union
        self._background = np.zeros(2, dtype=np.int64)

    def add(self, label: int, predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> None:
        """Count one image.

        Args:
            label: the target's class number.
            predicted: mask [H, W], non-zero where the class is.
            truth: mask [H, W], likewise.
        """
        found, real = predicted != 0, truth != 0
        both, either = np.count_nonzero(found & real), np.count_nonzero(found | real)
        self._foreground[label] += both, either
        self._background += found.size - either, found.size - both

    @property
    def miou(self) -> float:
        """Mean IoU over the classes seen, in per cent."""
        seen = self._foreground[self._foreground[:, 1] > 0]
        return float(100 * np.mean(seen[:, 0] / seen[:, 1]))

    @property
    def fb_iou(self) -> float:
        """Mean of the foreground's and the background's IoU, in per cent."""
        both = np.stack([self._foreground.sum(axis=0), self._background])
        return float(100 * np.mean(both[:, 0] / both[:, 1]))
