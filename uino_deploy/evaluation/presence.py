"""How well present and absent are told apart: the area under the ROC curve, and its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uino_deploy.evaluation.intervals import ENDS, RESAMPLES, SEED, Interval

Scores = NDArray[np.float64]


def area_under_roc(present: Scores, absent: Scores) -> float:
    """Return the chance that a present target scores higher than an absent one; ties count half.

    Args:
        present: [P], scores of queries that show the target; not empty.
        absent: [A], scores of queries that do not; not empty.
    """
    ordered = np.sort(absent)
    below = np.searchsorted(ordered, present, "left") + np.searchsorted(ordered, present, "right")
    return float(below.mean() / (2 * len(absent)))


def bootstrap_area(present: Scores, absent: Scores) -> Interval:
    """Return the 95 % interval of `area_under_roc`: both kinds of queries are resampled."""
    rng = np.random.default_rng(SEED)
    areas = [
        area_under_roc(rng.choice(present, len(present)), rng.choice(absent, len(absent)))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(areas, ENDS)
    return Interval(float(low), float(high))
