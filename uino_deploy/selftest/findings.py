"""A claim, its check, and the findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from uino_deploy.errors import DependencyError, UinoDeployError

Verdict = Literal["passed", "failed", "skipped"]


class CannotCheck(Exception):
    """This machine lacks what a claim needs; the message says what."""


@dataclass(frozen=True)
class Measured:
    """One number that a check found.

    Attributes:
        value: the number; one that is not finite fails.
        unit: the value's unit, such as "relative L2", "ms" or "bytes".
        bound: the limit; None for a number that is only reported.
        at_least: the bound is the least allowed, not the largest.
        what: which part of the claim, such as an output's name.
    """

    value: float
    unit: str
    bound: float | None = None
    at_least: bool = False
    what: str = ""

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound."""
        if self.bound is None:
            return abs(self.value) < float("inf")
        return self.value >= self.bound if self.at_least else self.value <= self.bound


@dataclass(frozen=True)
class Claim:
    """A statement to check on this machine.

    Attributes:
        name: the claim in a few words, unique within its group.
        how: how it is checked.
        check: yields its measurements. It raises `CannotCheck` or `DependencyError` if the machine
            lacks something, and anything else, such as `CudaError`, if the claim fails.
    """

    name: str
    how: str
    check: Callable[[], Iterable[Measured]]


class Finding(msgspec.Struct, kw_only=True):
    """The result of a claim, or of one part of it.

    Attributes:
        group: the group of claims.
        claim: the claim.
        how: how it was checked.
        measured: the measured number, if any.
        unit: the number's unit.
        bound: the limit for the number; None if it is only reported.
        sense: whether the bound is the largest ("at most") or the least ("at least") allowed.
        verdict: passed, failed or skipped.
        reason: why it failed or was skipped.
        seconds: how long the whole claim took.
    """

    group: str
    claim: str
    how: str
    measured: float | None = None
    unit: str = ""
    bound: float | None = None
    sense: Literal["at most", "at least"] = "at most"
    verdict: Verdict
    reason: str = ""
    seconds: float = 0.0


def judge(group: str, claim: Claim) -> list[Finding]:
    """Check a claim; whatever it raises becomes its verdict."""
    begun = time.perf_counter()
    findings: list[Finding] = []
    try:
        for measured in claim.check():
            findings.append(_finding(group, claim, measured))  # kept if the next one raises
        if not findings:
            findings.append(without(group, claim, "failed", "the check measured nothing"))
    except (CannotCheck, DependencyError) as error:
        findings.append(without(group, claim, "skipped", _line(error)))
    # Any error becomes a verdict: that is what this command is for.
    except Exception as error:
        kind = "" if isinstance(error, UinoDeployError) else f"{type(error).__name__}: "
        findings.append(without(group, claim, "failed", kind + _line(error)))
    for finding in findings:
        finding.seconds = round(time.perf_counter() - begun, 3)
    return findings


def without(group: str, claim: Claim, verdict: Verdict, reason: str) -> Finding:
    """Return a verdict without a measurement."""
    return Finding(group=group, claim=claim.name, how=claim.how, verdict=verdict, reason=reason)


def _finding(group: str, claim: Claim, measured: Measured) -> Finding:
    sense: Literal["at most", "at least"] = "at least" if measured.at_least else "at most"
    return Finding(
        group=group,
        claim=f"{claim.name}: {measured.what}" if measured.what else claim.name,
        how=claim.how,
        # JSON has no infinity.
        measured=measured.value if abs(measured.value) < float("inf") else None,
        unit=measured.unit,
        bound=measured.bound,
        sense=sense,
        verdict="passed" if measured.holds else "failed",
        reason="" if measured.holds else _breach(measured, sense),
    )


def _breach(measured: Measured, sense: str) -> str:
    if measured.bound is None:
        return f"{measured.value} {measured.unit} is not a number"
    return f"{measured.value:.3g} {measured.unit}, allowed: {sense} {measured.bound:.3g}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
