"""Bootstrap intervals of mIoU and FB-IoU, and of their difference between two runs.

Episodes are resampled with replacement within each class. With n episodes per class this
understates the variance by the factor (n - 1) / n: intervals from a handful of episodes per class
are too narrow. A few classes, such as a fold's, are fixed: the interval is about them. Many
(`SAMPLED`) are a sample of all there could be, so the classes are resampled too, each time with
its episodes resampled anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from uino_deploy.evaluation.metrics import (
    Counts,
    foreground_background_iou,
    mean_iou,
    score_counts,
)

RESAMPLES = 2000
SAMPLED = 50  # classes with episodes, from which on they are a sample of classes
ENDS = (0.025, 0.975)
SEED = 0
_CHUNK = 100  # resamples at a time: their weights take 8 bytes for each episode

Statistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A 95 % interval around a measured figure."""

    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """The intervals of both figures, in per cent."""

    miou: Interval
    fb_iou: Interval


def bootstrap(classes: int, labels: Sequence[int], counts: Counts) -> Intervals:
    """Return the intervals of a run's figures.

    Args:
        classes: the number of classes.
        labels: the class of each episode.
        counts: [episodes, 4].
    """
    figures = np.concatenate([_figures(t) for t in _totals(classes, labels, counts)], axis=-1)
    return _intervals(figures, _figures(_summed(classes, labels, counts)))


def bootstrap_difference(
    classes: int, labels: Sequence[int], counts: Counts, against: Counts
) -> Intervals:
    """Return the intervals of the difference (run - other) on the same episodes.

    Both runs are resampled together, so an episode that is hard for both cancels out.

    Args:
        classes: the number of classes.
        labels: the class of each episode.
        counts: the run's, [episodes, 4].
        against: the other's, [episodes, 4].
    """
    both = np.concatenate([counts, against], axis=1)
    figures = np.concatenate(
        [
            _figures(totals[..., :4]) - _figures(totals[..., 4:])
            for totals in _totals(classes, labels, both)
        ],
        axis=-1,
    )
    summed = [_figures(_summed(classes, labels, each)) for each in (counts, against)]
    return _intervals(figures, summed[0] - summed[1])


def _summed(classes: int, labels: Sequence[int], counts: Counts) -> Counts:
    """Return the sums of all episodes, [1, classes, 4]."""
    return score_counts(classes, labels, counts).totals[None]


def _totals(classes: int, labels: Sequence[int], counts: Counts) -> Iterator[Counts]:
    """Yield resampled sums [up to 100 resamples, classes, columns of counts]."""
    rng = np.random.default_rng(SEED)
    label = np.asarray(labels)
    shown = np.unique(label)
    groups = [np.flatnonzero(label == c) for c in shown.tolist()]
    for first in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - first)
        totals = np.zeros((size, classes, counts.shape[1]), dtype=np.int64)
        # Which group takes each class's place in each resample: its own, or any.
        places = np.tile(np.arange(len(groups)), (size, 1))
        if len(groups) >= SAMPLED:
            places = rng.integers(len(groups), size=places.shape)
        for group, members in enumerate(groups):
            rows, columns = np.nonzero(places == group)
            share = np.full(len(members), 1 / len(members))
            drawn = rng.multinomial(len(members), share, size=len(rows))
            totals[rows, shown[columns]] = drawn @ counts[members]
        yield totals


def _figures(totals: Counts) -> NDArray[np.float64]:
    """Return mIoU and FB-IoU, from [resamples, classes, 4] -> [2, resamples]."""
    return np.stack([mean_iou(totals), foreground_background_iou(totals)])


def _intervals(figures: NDArray[np.float64], measured: NDArray[np.float64]) -> Intervals:
    """Return bias-corrected percentiles (Efron 1987) of [2, resamples] around [2, 1].

    With few episodes, resampled ratios of sums are not centred on the measured ratio.
    """
    normal = NormalDist()
    below = (figures < measured).mean(axis=1) + 0.5 * (figures == measured).mean(axis=1)
    intervals = []
    for values, share in zip(figures, below.clip(1 / RESAMPLES, 1 - 1 / RESAMPLES), strict=True):
        shift = 2 * normal.inv_cdf(float(share))
        ends = [normal.cdf(shift + normal.inv_cdf(end)) for end in ENDS]
        low, high = np.quantile(values, ends)
        intervals.append(Interval(float(low), float(high)))
    return Intervals(*intervals)
