"""Timings from samples: median, percentiles, and the spread over the rounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from uino_deploy.benchmarks.record import PERCENTILES, Timing


def summarise(rounds: Sequence[Sequence[float]]) -> Timing:
    """Summarise the samples of every round.

    Args:
        rounds: seconds of each sample, by round; not all rounds may be empty.

    Raises:
        ValueError: there are no samples.
    """
    samples = sorted(sample for one in rounds for sample in one)
    if not samples:
        raise ValueError("no sample was taken")
    percentiles = {
        percent: percentile(samples, percent) if len(samples) >= least else None
        for percent, least in PERCENTILES.items()
    }
    return Timing(
        median=median(samples),
        p90=percentiles[90],
        p95=percentiles[95],
        p99=percentiles[99],
        minimum=samples[0],
        samples=len(samples),
        rounds=[median(one) for one in rounds if one],
    )


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Return the least sample that `percent` per cent of the samples do not exceed (nearest rank).

    Args:
        ordered: at least one sample, sorted.
        percent: above 0, up to 100.
    """
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
