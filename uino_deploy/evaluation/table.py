"""Results as a table laid out like the paper's: a row for each method, a column for each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from uino_deploy.evaluation.published import FOLDS, PUBLISHED, TITLES

Row = list[str]


def paper_table(
    dataset: str, shots: int, ours: Mapping[str, Mapping[int | None, tuple[float, float]]]
) -> tuple[Row, list[Row]]:
    """Return a table's columns and rows.

    Args:
        dataset: by the command line's name.
        shots: of each episode.
        ours: for each model, by fold (None where there are no folds), mIoU and FB-IoU.

    Returns:
        The head: method, the folds, mean, FB-IoU. Means are over all folds; where one is missing,
        "-" stands.
    """
    folds = FOLDS.get(dataset, 0)
    title = f"{TITLES.get(dataset, dataset)}, {shots}-shot"
    columns = [title, *(f"fold {fold}" for fold in range(folds)), "mean", "FB-IoU"]
    rows = []
    published = PUBLISHED.get((dataset, shots))
    if published is not None:
        figures = [_figure(value) for value in published.folds]
        rows.append(["UINO-FSS (paper)", *figures, _figure(published.mean), "-"])
    rows += [[name, *_ours(measured, folds)] for name, measured in ours.items()]
    return columns, rows


def _ours(measured: Mapping[int | None, tuple[float, float]], folds: int) -> Sequence[str]:
    wanted: list[int | None] = list(range(folds)) if folds else [None]
    if not folds:  # a folder's folds are ours, not a benchmark's: one number stands for the run
        (pair,) = measured.values()
        return [_figure(pair[0]), _figure(pair[1])]
    found = [measured.get(fold) for fold in wanted]
    whole = [pair for pair in found if pair is not None]
    complete = len(whole) == folds
    return [
        *(_figure(None if pair is None else pair[0]) for pair in found),
        _figure(mean(pair[0] for pair in whole) if complete else None),
        _figure(mean(pair[1] for pair in whole) if complete or len(whole) == 1 else None),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
