"""The paper's figures, and a table of ours beside them.

Only figures that the paper's text states (UINO-FSS, arXiv 2504.15669; per cent): the means on both
benchmarks and COCO-20i's folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from uino_deploy.evaluation.episodes import Evaluation


@dataclass(frozen=True)
class Published:
    """mIoU of the paper's model on one benchmark.

    Attributes:
        benchmark: its name in the paper.
        folds: mIoU of each fold; None if the paper does not state it.
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

Row = list[str]
ByFold = Mapping[int | None, Evaluation]
"""Figures by fold; None if the data set has no folds."""


def paper_table(dataset: str, shots: int, ours: Mapping[str, ByFold]) -> tuple[Row, list[Row]]:
    """Lay results out like the paper's tables: a row for each method, a column for each fold.

    Args:
        dataset: by the command line's name.
        shots: support images per episode.
        ours: the figures of each method, by its name.

    Returns:
        The columns (method, the folds, mean, FB-IoU) and the rows. Means are over all folds; if
        a fold is missing, they are "-".
    """
    folds = FOLDS.get(dataset, 0)
    title = f"{TITLES.get(dataset, dataset)}, {shots}-shot"
    columns = [title, *(f"fold {fold}" for fold in range(folds)), "mean", "FB-IoU"]
    rows = []
    published = PUBLISHED.get((dataset, shots))
    if published is not None:
        stated = [_figure(value) for value in published.folds]
        rows.append(["UINO-FSS (paper)", *stated, _figure(published.mean), "-"])
    rows += [[name, *_ours(figures, folds)] for name, figures in ours.items()]
    return columns, rows


def _ours(figures: ByFold, folds: int) -> Sequence[str]:
    measured = list(figures.values())
    if not folds:  # a folder's folds are ours, not a benchmark's: one number stands for the run
        (only,) = measured
        return [_figure(only.miou), _figure(only.fb_iou)]
    complete = len(measured) == folds
    return [
        *(_figure(figures[fold].miou if fold in figures else None) for fold in range(folds)),
        _figure(mean(each.miou for each in measured) if complete else None),
        _figure(mean(each.fb_iou for each in measured) if complete or len(measured) == 1 else None),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
