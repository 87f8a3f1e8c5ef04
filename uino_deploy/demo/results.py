"""The results of a demo, its conditions of passing, and the document of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = "1.0"


@dataclass(frozen=True)
class Threshold:
    """One condition of passing: `value` must be at least `least`, or at most `most`."""

    name: str
    meaning: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def failure(self) -> str:
        """The failure in a few words; empty if the condition holds."""
        if self.least is not None and not self.value >= self.least:
            return f"{self.name} is {self.value:.2f}, not at least {self.least:g}"
        if self.most is not None and not self.value <= self.most:
            return f"{self.name} is {self.value:.2f}, not at most {self.most:g}"
        return ""

    @property
    def sentence(self) -> str:
        """The condition as a sentence."""
        bound = f"at least {self.least:g}" if self.most is None else f"at most {self.most:g}"
        return f"{self.meaning} is {bound} (measured {self.value:.2f})"


@dataclass(frozen=True)
class Accuracy:
    """mIoU and FB-IoU of one segmenter on one pool, in per cent."""

    miou: float
    fb_iou: float


@dataclass(frozen=True)
class Results:
    """All measurements of a demo.

    Attributes:
        bundle: the bundle on held-out classes.
        reference: PyTorch on the same episodes.
        baseline: mIoU of the prototype similarity on the same episodes.
        digits: the bundle on handwritten digits.
        seconds_per_query: median time of one query, batch 1.
        seconds: the time of each phase.
        verify: the verification's document.
        provenance: checkpoint, versions, machine, seed.
        episodes: the numbers of queries and classes, by pool.
    """

    bundle: Accuracy
    reference: Accuracy
    baseline: float
    digits: Accuracy
    seconds_per_query: float
    seconds: Mapping[str, float]
    verify: Mapping[str, Any]
    provenance: Mapping[str, Any]
    episodes: Mapping[str, Mapping[str, int]]

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """The conditions of passing, besides those of the verification.

        The floors lie below what the bundled checkpoint reaches over 1,000 episodes (67.0 and 37.7)
        by about two standard errors of these shorter samples.
        """
        drift = abs(self.bundle.miou - self.reference.miou)
        return (
            Threshold("mIoU", "mIoU on held-out classes", self.bundle.miou, least=62),
            Threshold("digits mIoU", "mIoU on handwritten digits", self.digits.miou, least=32),
            Threshold("drift", "The bundle's distance in mIoU from PyTorch", drift, most=0.5),
            Threshold(
                "gain",
                "The gain in mIoU over the prototype baseline",
                self.bundle.miou - self.baseline,
                least=15,
            ),
        )

    @property
    def failures(self) -> list[str]:
        """A line for each condition that does not hold; empty when the demo passed."""
        wrong = [threshold.failure for threshold in self.thresholds if threshold.failure]
        if not self.verify["passed"]:
            wrong.insert(0, "verification failed")
        return wrong

    def document(self) -> dict[str, Any]:
        """Return `report.json`: mIoUs in per cent, times in seconds."""
        return {
            "schema_version": SCHEMA,
            "verdict": "FAILED" if self.failures else "PASSED",
            "failures": self.failures,
            "miou_reference": round(self.reference.miou, 3),
            "miou_bundle": round(self.bundle.miou, 3),
            "miou_prototype_baseline": round(self.baseline, 3),
            "miou_digits": round(self.digits.miou, 3),
            "seconds_per_query": round(self.seconds_per_query, 5),
            "fb_iou_reference": round(self.reference.fb_iou, 3),
            "fb_iou_bundle": round(self.bundle.fb_iou, 3),
            "fb_iou_digits": round(self.digits.fb_iou, 3),
            "thresholds": [_threshold_document(each) for each in self.thresholds],
            "episodes": self.episodes,
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
            "verify": self.verify,
            "provenance": self.provenance,
        }


def _threshold_document(threshold: Threshold) -> dict[str, Any]:
    bounds = {"least": threshold.least, "most": threshold.most}
    return {
        "name": threshold.name,
        "value": round(threshold.value, 3),
        **{name: bound for name, bound in bounds.items() if bound is not None},
        "passed": not threshold.failure,
    }


def spread(count: int, wanted: int) -> Sequence[int]:
    """Return `wanted` indices spread evenly over `range(count)`, both ends included."""
    if wanted <= 1 or count <= wanted:
        return range(min(count, wanted))
    return [round(step * (count - 1) / (wanted - 1)) for step in range(wanted)]
