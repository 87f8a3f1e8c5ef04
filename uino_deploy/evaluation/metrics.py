"""mIoU and FB-IoU of few-shot segmentation; nothing else computes them.

As in PFENet (Tian et al., TPAMI 2020) and HSNet (Min et al., ICCV 2021), intersections and unions
are summed over all episodes of a class before they are divided; ignored pixels do not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uino_deploy.data.dataset import IGNORED

Counts = NDArray[np.int64]
"""[..., 4] pixels: foreground intersection and union, background intersection and union."""

Mask = NDArray[np.generic]
"""[H, W], non-zero in the foreground."""


def count_pixels(predicted: Mask, truth: Mask) -> Counts:
    """Count the pixels of one image.

    Args:
        predicted: mask [H, W], non-zero in the foreground.
        truth: mask [H, W], likewise; pixels of 255 (`IGNORED`) are ignored.

    Returns:
        [4]: see `Counts`.
    """
    counted = truth != IGNORED
    positive, real = (predicted != 0) & counted, (truth != 0) & counted
    both, either = np.count_nonzero(positive & real), np.count_nonzero(positive | real)
    pixels = np.count_nonzero(counted)
    return np.array([both, either, pixels - either, pixels - both], dtype=np.int64)


def foreground_iou(predicted: Mask, truth: Mask) -> float:
    """Return the IoU of one mask with the truth, 0 to 1; 0 if both are empty."""
    both, either, *_ = count_pixels(predicted, truth).tolist()
    return float(both / max(either, 1))


@dataclass(frozen=True, eq=False)
class SegmentationScore:
    """The figures of many images, from sums over the images of each class.

    mIoU is the mean over the classes seen of (sum of intersections) / (sum of unions). FB-IoU is
    the mean of that ratio for the foreground of all classes together and for the background.

    Attributes:
        totals: [classes, 4], see `Counts`.
    """

    totals: Counts

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


def score_counts(classes: int, labels: Sequence[int], counts: Counts) -> SegmentationScore:
    """Score images from their pixel counts.

    Args:
        classes: the number of classes.
        labels: the class of each image.
        counts: [images, 4], see `count_pixels`.
    """
    totals: Counts = np.zeros((classes, 4), dtype=np.int64)
    np.add.at(totals, np.asarray(labels, dtype=np.intp), counts)
    return SegmentationScore(totals)


def score_masks(
    classes: int, labels: Sequence[int], predicted: Iterable[Mask], truths: Iterable[Mask]
) -> SegmentationScore:
    """Score predicted masks.

    Args:
        classes: the number of classes.
        labels: the class of each image.
        predicted: a mask [H, W] for each image.
        truths: a mask [H, W] for each image; pixels of 255 are ignored.
    """
    counts = [count_pixels(*pair) for pair in zip(predicted, truths, strict=True)]
    return score_counts(classes, labels, np.asarray(counts, dtype=np.int64).reshape(-1, 4))


def mean_iou(totals: Counts) -> NDArray[np.float64]:
    """Return the mean over classes of IoU in per cent, from [..., classes, 4] -> [...].

    A class without a foreground pixel, true or predicted, was not seen and does not count.
    """
    seen = totals[..., 1] > 0
    ious = np.where(seen, totals[..., 0] / np.maximum(totals[..., 1], 1), 0)
    mean: NDArray[np.float64] = 100 * ious.sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1)
    return mean


def foreground_background_iou(totals: Counts) -> NDArray[np.float64]:
    """Return the mean of both IoUs over all classes in per cent, [..., classes, 4] -> [...]."""
    summed = totals.sum(axis=-2)
    parts = summed[..., [0, 2]] / np.maximum(summed[..., [1, 3]], 1)
    mean: NDArray[np.float64] = 100 * parts.mean(axis=-1)
    return mean
