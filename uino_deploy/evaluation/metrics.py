"""mIoU and FB-IoU of few-shot segmentation, from intersections and unions accumulated per class.

As PFENet (Tian et al., TPAMI 2020) and HSNet (Min et al., ICCV 2021) count: over all episodes of a
class the intersections are summed and divided by the summed unions; ignored pixels count nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.dataset import IGNORED

Counts = NDArray[np.int64]
"""[..., 4] pixels: foreground intersection and union, background intersection and union."""


def count_pixels(predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> Counts:
    """Count one image.

    Args:
        predicted: mask [H, W], non-zero where the class is.
        truth: mask [H, W], likewise; 255 (`IGNORED`) counts nowhere.

    Returns:
        [4]: see `Counts`.
    """
    counted = truth != IGNORED
    found, real = (predicted != 0) & counted, (truth != 0) & counted
    both, either = np.count_nonzero(found & real), np.count_nonzero(found | real)
    pixels = np.count_nonzero(counted)
    return np.array([both, either, pixels - either, pixels - both], dtype=np.int64)


class SegmentationScore:
    """Accumulates predictions; masks are compared at the image's own size.

    mIoU is the mean over the classes seen of (sum of intersections) / (sum of unions). FB-IoU is
    the mean of that ratio for the foreground of all classes together and for the background.
    """

    def __init__(self, classes: int) -> None:
        self.totals: Counts = np.zeros((classes, 4), dtype=np.int64)

    @classmethod
    def of(cls, classes: int, labels: Sequence[int], counts: Counts) -> SegmentationScore:
        """Return the score of images that were counted before.

        Args:
            classes: how many there are.
            labels: the class of each image.
            counts: [images, 4].
        """
        score = cls(classes)
        np.add.at(score.totals, np.asarray(labels, dtype=np.intp), counts)
        return score

    def add(self, label: int, predicted: NDArray[np.generic], truth: NDArray[np.generic]) -> Counts:
        """Count one image, as `count_pixels` does; return its counts.

        Args:
            label: the target's class number.
            predicted: mask [H, W], non-zero where the class is.
            truth: mask [H, W], likewise; 255 counts nowhere.
        """
        counts = count_pixels(predicted, truth)
        self.totals[label] += counts
        return counts

    @property
    def miou(self) -> float:
        """Mean IoU over the classes seen, in per cent."""
        return float(mean_iou(self.totals))

    @property
    def fb_iou(self) -> float:
        """Mean of the foreground's and the background's IoU, in per cent."""
        return float(foreground_background_iou(self.totals))

    @property
    def class_ious(self) -> dict[int, float]:
        """IoU in per cent of every class seen."""
        return {
            label: float(100 * total[0] / total[1])
            for label, total in enumerate(self.totals)
            if total[1]
        }


def mean_iou(totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean over classes of IoU in per cent, from [..., classes, 4] -> [...].

    A class without a foreground pixel, true or predicted, was not seen and does not count.
    """
    seen = totals[..., 1] > 0
    ious = np.where(seen, totals[..., 0] / np.maximum(totals[..., 1], 1), 0)
    mean: NDArray[np.float64] = 100 * ious.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return mean


def foreground_background_iou(totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of both IoUs over all classes in per cent, [..., classes, 4] -> [...]."""
    summed = totals.sum(axis=-2)
    parts = summed[..., [0, 2]] / np.maximum(summed[..., [1, 3]], 1)
    mean: NDArray[np.float64] = 100 * parts.mean(axis=-1)
    return mean
