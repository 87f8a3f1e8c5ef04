"""What the paper reports, to print beside our own (UINO-FSS, arXiv 2504.15669; 1-shot, per cent).

Only figures that the paper's text states: the means on both benchmarks and COCO-20i's folds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """mIoU of the paper's model on one benchmark.

    Attributes:
        benchmark: its name in the paper.
        folds: mIoU of each fold; None where we do not have the number.
        mean: over the folds.
    """

    benchmark: str
    folds: tuple[float | None, ...]
    mean: float


FOLDS = {"pascal": 4, "coco": 4, "fss1000": 0}
"""Folds of the benchmarks that the paper reports on, by the command line's names."""

TITLES = {"pascal": "PASCAL-5i", "coco": "COCO-20i", "fss1000": "FSS-1000"}

PUBLISHED = {
    ("pascal", 1): Published("PASCAL-5i", (None, None, None, None), 80.6),
    ("coco", 1): Published("COCO-20i", (62.2, 66.0, 65.5, 64.4), 64.5),
}
"""By data set and shots."""
