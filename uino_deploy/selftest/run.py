"""The run of the groups of claims, each in its own process, within a time limit."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from uino_deploy import __version__
from uino_deploy.bundle import Bundle
from uino_deploy.child import Child, ChildFailed
from uino_deploy.errors import DependencyError
from uino_deploy.selftest.findings import Claim, Finding, Verdict, without
from uino_deploy.selftest.groups import Request, groups, required
from uino_deploy.selftest.setting import Setting

Say = Callable[[str], None]
Keep = Callable[[Finding], None]

_CHECK = "uino_deploy.selftest.groups:check"
_DESCRIBE = "uino_deploy.selftest.groups:describe"
_NO_GPU = "no usable GPU on this machine"
_NOT_BEGUN = "not started before the time limit"


class Report(msgspec.Struct, kw_only=True):
    """The results of the self-test.

    Attributes:
        version: this package's version.
        gpu: name, architecture and CUDA release of the GPU; None if none was looked for or
            found.
        without_gpu: why no GPU claim was checked; empty if one was, or none was requested.
        required: group that must run on this machine -> "", or why it did not finish.
        findings: every claim's verdict.
        seconds: duration of the whole run.
    """

    version: str
    gpu: dict[str, str] | None
    without_gpu: str
    required: dict[str, str]
    findings: list[Finding]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """Return the number of findings with a verdict."""
        return sum(finding.verdict == verdict for finding in self.findings)

    @property
    def checked(self) -> bool:
        """Whether anything was checked at all."""
        return not self.without_gpu and any(one.verdict != "skipped" for one in self.findings)

    @property
    def failures(self) -> list[str]:
        """The reasons for not passing: failed claims, then required groups that did not run."""
        failed = [f"{one.group}: {one.claim}" for one in self.findings if one.verdict == "failed"]
        missed = [f"{name} did not run: {why}" for name, why in self.required.items() if why]
        return failed + missed

    @property
    def ran(self) -> list[str]:
        """The required groups that finished."""
        return [name for name, why in self.required.items() if not why]

    def document(self) -> dict[str, Any]:
        """Return plain values for JSON: the verdict, the counts and the whole report."""
        verdicts: tuple[Verdict, ...] = ("passed", "failed", "skipped")
        counts = {verdict: self.count(verdict) for verdict in verdicts}
        passed = self.checked and not self.failures
        return {"passed": passed, "counts": counts, **msgspec.to_builtins(self)}


def run_selftest(
    bundle: Path | None = None,
    gpu: bool = False,
    kernels: Path | None = None,
    minutes: float = 8.0,
    say: Say = lambda _line: None,
) -> Report:
    """Check every claim that this machine can check.

    Args:
        bundle: the bundle to check; None exports the bundled checkpoint, with torch and onnx.
        gpu: check what needs an NVIDIA GPU, and only that.
        kernels: folder that `uino-deploy kernels build` wrote.
        minutes: time limit; no claim starts after it, and one that is still running fails.
        say: receives a line for each finding.

    Raises:
        BundleError: the bundle is damaged.
    """
    if bundle is not None:
        Bundle.open(bundle)
    begun = time.monotonic()
    findings: list[Finding] = []

    def keep(finding: Finding) -> None:
        findings.append(finding)
        say(line_of(finding))

    with tempfile.TemporaryDirectory(prefix="uino-selftest-") as scratch:
        setting = Setting(
            scratch=scratch,
            bundle=None if bundle is None else str(bundle.absolute()),
            kernels=None if kernels is None else str(kernels.absolute()),
            precision="fp16" if gpu else "fp32",  # what each kind of machine runs it in
        )
        deadline = begun + 60 * minutes
        device, missing, fault = _find_device(setting, deadline) if gpu else (None, "", "")
        if device is not None:
            setting.architecture, setting.cuda = device["architecture"], device["cuda"]
        for name, make in groups(setting, gpu).items():
            claims = make()
            if missing:
                findings += [without(name, claim, "skipped", _NO_GPU) for claim in claims]
                say(f"skipped {name}: {len(claims)} claims - {_NO_GPU}")
            elif fault and name == "gpu":
                _give_up(name, claims, "failed", fault, keep)
            elif fault:
                _give_up(name, claims, "skipped", "the GPU cannot be started", keep)
            else:
                request = Request(setting=setting, group=name, gpu=gpu)
                _run_group(request, claims, deadline, keep)
        needed = [] if missing else required(setting, gpu)
    return Report(
        version=__version__,
        gpu=device,
        without_gpu=missing,
        required={name: _why_not([f for f in findings if f.group == name]) for name in needed},
        findings=findings,
        seconds=round(time.monotonic() - begun, 1),
    )


def line_of(finding: Finding) -> str:
    """Return a finding as a line for people."""
    measured = ""
    if finding.measured is not None:
        measured = f": {_number(finding.measured, finding.unit)}"
        if finding.bound is not None:
            unit = "bytes" if finding.unit == "bytes" else ""
            measured += f" ({finding.sense} {_number(finding.bound, unit)})"
    why = f" - {finding.reason}" if finding.reason else ""
    return f"{finding.verdict:7} {finding.group}: {finding.claim}{measured}{why}"


def _number(value: float, unit: str) -> str:
    return f"{value / 1e6:.1f} MB" if unit == "bytes" else f"{value:.4g} {unit}".strip()


def _find_device(setting: Setting, deadline: float) -> tuple[dict[str, str] | None, str, str]:
    """Look for the GPU in another process; return the GPU, what is missing, or its fault."""
    try:
        return _describe_device(setting, deadline - time.monotonic()), "", ""
    except DependencyError as error:
        return None, str(error), ""
    except ChildFailed as error:
        return None, "", f"its process {error}"


def _describe_device(setting: Setting, seconds: float) -> dict[str, str]:
    """Return the GPU's name, architecture and CUDA release.

    Raises:
        DependencyError: the GPU, its driver or cuda-python is missing.
        ChildFailed: CUDA fails or hangs on the GPU.
    """
    with Child(_DESCRIBE) as child:
        answer = child.ask(setting, seconds=seconds)
    if "missing" in answer:
        raise DependencyError(answer["missing"])
    device: dict[str, str] = answer["device"]
    return device


def _give_up(
    group: str, claims: Iterable[Claim], verdict: Verdict, reason: str, keep: Keep
) -> None:
    for claim in claims:
        keep(without(group, claim, verdict, reason))


def _run_group(request: Request, claims: list[Claim], deadline: float, keep: Keep) -> None:
    """Check a group in its own process; give the claims that it did not reach a verdict."""
    name = request.group
    left = {claim.name: claim for claim in claims}
    running = ""

    def note(message: Any) -> None:
        nonlocal running
        running = message.get("begin", running)
        if "findings" in message:
            left.pop(running)
            for finding in msgspec.convert(message["findings"], list[Finding]):
                keep(finding)

    if time.monotonic() >= deadline:
        _give_up(name, claims, "skipped", _NOT_BEGUN, keep)
        return
    try:
        with Child(_CHECK) as child:
            child.ask(request, note, seconds=deadline - time.monotonic())
    except ChildFailed as error:
        culprit = left.pop(running, None)
        if error.timed_out:
            if culprit is not None:
                why = f"still running at the time limit; last output: {error.words}"
                keep(without(name, culprit, "failed", why))
            _give_up(name, left.values(), "skipped", _NOT_BEGUN, keep)
        elif culprit is not None:
            keep(without(name, culprit, "failed", f"its process {error}"))
            _give_up(name, left.values(), "skipped", f"{running!r} ended the process", keep)
        else:
            _give_up(name, left.values(), "failed", f"its process {error}", keep)


def _why_not(findings: list[Finding]) -> str:
    """Return "" for a group that finished, else why it did not."""
    if any(finding.reason == _NOT_BEGUN for finding in findings):
        return _NOT_BEGUN
    if any(finding.verdict != "skipped" for finding in findings):
        return ""
    return findings[0].reason if findings else "it has no claims"
