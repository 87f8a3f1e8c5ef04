"""A claim gets a verdict whatever happens in its check."""

import math

import msgspec
import pytest

from uino_deploy.errors import BundleError, CudaError, DependencyError
from uino_deploy.selftest.findings import CannotCheck, Claim, Measured, judge


def judged(*measured, error=None):
    def check():
        yield from measured
        if error is not None:
            raise error

    return judge("group", Claim("it works", "by looking", check))


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        (Measured(1.0, "ms"), "passed"),
        (Measured(1.0, "x", 1.0), "passed"),
        (Measured(1.01, "x", 1.0), "failed"),
        (Measured(0.99, "IoU", 1.0, at_least=True), "failed"),
        (Measured(1.0, "IoU", 0.97, at_least=True), "passed"),
        (Measured(math.nan, "x", 1.0), "failed"),
        (Measured(math.nan, "IoU", 0.5, at_least=True), "failed"),
        (Measured(math.inf, "x", 1.0), "failed"),
        (Measured(math.nan, "ms"), "failed"),
    ],
)
def test_a_number_is_held_against_its_bound(measured, verdict):
    (finding,) = judged(measured)
    assert finding.verdict == verdict
    assert bool(finding.reason) == (verdict == "failed")
    msgspec.json.decode(msgspec.json.encode(finding))


def test_the_reason_names_both_numbers():
    (finding,) = judged(Measured(0.5, "IoU", 0.97, at_least=True, what="mask"))
    assert finding.claim == "it works: mask"
    assert finding.reason == "0.5 IoU, allowed: at least 0.97"


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (CannotCheck("no torch"), "skipped", "no torch"),
        (DependencyError("no driver", "install one"), "skipped", "no driver; install one"),
        (
            CudaError("copying: cudaErrorIllegalAddress (700)"),
            "failed",
            "copying: cudaErrorIllegalAddress (700)",
        ),
        (BundleError("stale plan", "build it"), "failed", "stale plan; build it"),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
        (MemoryError(), "failed", "MemoryError: MemoryError"),
        (ValueError("two\nlines"), "failed", "ValueError: two lines"),
    ],
)
def test_an_error_is_the_claims_own_verdict(error, verdict, reason):
    (finding,) = judged(error=error)
    assert (finding.verdict, finding.reason) == (verdict, reason)


def test_what_was_measured_before_an_error_is_kept():
    before, after = judged(Measured(1.0, "ms"), error=RuntimeError("broke"))
    assert (before.verdict, after.verdict) == ("passed", "failed")
    # What could not be finished is not half a pass.
    before, after = judged(Measured(1.0, "ms"), error=CannotCheck("the rest needs a GPU"))
    assert (before.verdict, after.verdict) == ("passed", "skipped")


def test_a_check_that_measures_nothing_proves_nothing():
    (finding,) = judged()
    assert finding.verdict == "failed"
