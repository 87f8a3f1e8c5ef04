"""Medians, percentiles that are not guessed, and the spread over rounds."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uino_deploy.benchmarks.statistics import percentile, summarise

SECONDS = st.floats(1e-6, 1e3)


def test_a_known_set():
    timing = summarise([[3.0, 1.0, 2.0], [5.0, 4.0]])
    assert timing.median == 3.0
    assert timing.minimum == 1.0
    assert timing.samples == 5
    assert timing.rounds == [2.0, 4.5]
    assert timing.spread == (2.0, 4.5)


@pytest.mark.parametrize(
    ("samples", "known"),
    [(9, set()), (10, {"p90"}), (20, {"p90", "p95"}), (100, {"p90", "p95", "p99"})],
)
def test_a_percentile_needs_a_sample_beyond_it(samples, known):
    timing = summarise([[float(i) for i in range(samples)]])
    found = {name for name in ("p90", "p95", "p99") if getattr(timing, name) is not None}
    assert found == known


def test_percentiles_of_a_hundred():
    timing = summarise([[float(i) for i in range(1, 101)]])
    assert (timing.p90, timing.p95, timing.p99) == (90.0, 95.0, 99.0)


@settings(deadline=None)
@given(st.lists(SECONDS, min_size=1, max_size=60), st.floats(0.1, 100))
def test_nearest_rank_by_its_definition(samples, percent):
    ordered = sorted(samples)
    found = percentile(ordered, percent)
    assert found in ordered
    needed = len(ordered) * percent / 100
    assert sum(sample <= found for sample in ordered) >= math.floor(needed)
    assert sum(sample < found for sample in ordered) < max(needed, 1e-12)


@settings(deadline=None)
@given(st.lists(st.lists(SECONDS, min_size=1, max_size=5), min_size=1, max_size=5))
def test_the_median_lies_within_the_samples(rounds):
    timing = summarise(rounds)
    low, high = timing.spread
    assert min(map(min, rounds)) <= low <= high <= max(map(max, rounds))
    assert timing.samples == sum(map(len, rounds))


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match="no sample"):
        summarise([[], []])
